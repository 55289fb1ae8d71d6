"""Signals that end a program: what is under way is finished and saved, then the program ends with exit code
128 + signal and one line that says how to continue.

    with stop_on_signals() as stop:
        for step in ...:
            ...
            stop.save_and_exit(lambda: save(...), f"after step {step}", "resume with --resume auto")

All signals count that can be caught, whose default is to end the process and that do not report a fault of the program:
SIGTERM, Ctrl-C, a closed terminal (SIGHUP), warnings of a batch system (SIGUSR1, SIGUSR2, SIGXCPU) and so on. A second
SIGTERM, SIGINT or SIGQUIT kills at once. A signal that was ignored when the program started (nohup) stays ignored, and
one that the surrounding program handles is left to it.

Valid Python 3.7, standard library alone: `errors.run` needs it wherever that runs.
"""

import logging
import signal
import threading
from contextlib import contextmanager

log = logging.getLogger(__name__)
NAMES = "TERM INT HUP QUIT USR1 USR2 XCPU ALRM VTALRM PROF PWR IO"
SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in NAMES.split() if hasattr(signal, f"SIG{name}"))
INSISTING = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT      # sent again, they kill


class Stopped(KeyboardInterrupt):
    """A signal ended the program, and what it had is saved.

    Args:
        number: the signal.
        done: what was saved, as "after step 3".
        remedy: what to do to continue; without it there is nothing to say.

    Attributes:
        code: exit code of the program, 128 + signal. The text is the line to show, which a log that listens has by now.
    """

    def __init__(self, number, done="", remedy=""):
        line = f"stopped by {signal.Signals(number).name}{' ' * bool(done)}{done}; {remedy}"
        super().__init__(line if remedy else "")
        self.code = 128 + number
        if remedy:
            log.info(line)


class Stop:
    """Handler that notes the first signal; the loop that it is for looks at `signal` after every step."""

    def __init__(self):
        self.signal = None

    def __call__(self, number, frame):
        self.signal = self.signal or number
        signal.signal(number, signal.SIG_DFL if number in INSISTING else signal.SIG_IGN)

    def save_and_exit(self, save, done, remedy):
        """If a signal came: save and raise `Stopped`.

        Args:
            save: called without arguments.
            done: what is saved, as "after step 3".
            remedy: what to do to continue.
        """
        if self.signal:
            save()
            raise Stopped(self.signal, done, remedy)


@contextmanager
def handled(handler):
    """Let `handler` take all signals while the block runs; in a thread, which cannot listen, nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, old in before.items():
        if old in (signal.SIG_DFL, signal.default_int_handler, exit_now) or isinstance(old, Stop):
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:                 # None: of a library in C, and untouched
                signal.signal(number, old)


@contextmanager
def stop_on_signals():
    """Give a `Stop` that listens while the block runs."""
    stop = Stop()
    with handled(stop):
        yield stop


def exit_now(number, frame):
    """Handler for where no step has to be finished: raises `Stopped`."""
    for other in SIGNALS:
        if signal.getsignal(other) is exit_now:
            signal.signal(other, signal.SIG_DFL if other in INSISTING else signal.SIG_IGN)
    raise Stopped(number, "", "nothing that was written is lost; repeat the call to continue")


def ignore_signals(worker):
    """`worker_init_fn` of a DataLoader: a signal reaches all processes of a terminal or job, and the run needs its
    workers until it has finished the step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
