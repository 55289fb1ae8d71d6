"""Handling of signals that end a program: it finishes and saves the current step, then exits with code 128 + signal and
one line that says how to continue.

    with stop_on_signals() as stop:
        for step in ...:
            ...
            stop.save_and_exit(lambda: save(...), f"after step {step}", "resume with --resume auto")

This covers all signals that can be caught, end the process by default and do not report a fault of the program:
SIGTERM, Ctrl-C, a closed terminal (SIGHUP), warnings of a batch system (SIGUSR1, SIGUSR2, SIGXCPU) and so on. A second
SIGTERM, SIGINT or SIGQUIT kills the process immediately. Signals that were ignored when the program started (nohup)
stay ignored, and existing handlers of a surrounding program are kept.

Must run on Python 3.7 with only the standard library, because `errors.run` uses it.
"""

import logging
import signal
import threading
from contextlib import contextmanager

log = logging.getLogger(__name__)
NAMES = "TERM INT HUP QUIT USR1 USR2 XCPU ALRM VTALRM PROF PWR IO"
SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in NAMES.split() if hasattr(signal, f"SIG{name}"))
INSISTING = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT      # these kill when sent again


class Stopped(KeyboardInterrupt):
    """A signal ended the program after its work was saved. The text is the line to show; it is also logged.

    Args:
        number: the signal.
        done: what was saved, such as "after step 3".
        remedy: how to continue; without it, no line is shown.

    Attributes:
        code: exit code of the program, 128 + signal.
    """

    def __init__(self, number, done="", remedy=""):
        line = f"stopped by {signal.Signals(number).name}{' ' * bool(done)}{done}; {remedy}"
        super().__init__(line if remedy else "")
        self.code = 128 + number
        if remedy:
            log.info(line)


class Stop:
    """Handler that stores the first signal; a loop checks it after every step."""

    def __init__(self):
        self.signal = None

    def __call__(self, number, frame):
        self.signal = self.signal or number
        signal.signal(number, signal.SIG_DFL if number in INSISTING else signal.SIG_IGN)

    def save_and_exit(self, save, done, remedy):
        """If a signal was received, save and raise `Stopped`.

        Args:
            save: function without arguments.
            done: what was saved, such as "after step 3".
            remedy: how to continue.
        """
        if self.signal:
            save()
            raise Stopped(self.signal, done, remedy)


@contextmanager
def handled(handler):
    """Install `handler` for all signals while the block runs; does nothing in a thread, which cannot handle signals."""
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
            if old is not None:                 # None: installed by a C library, and not replaced
                signal.signal(number, old)


@contextmanager
def stop_on_signals():
    """Yield a `Stop` that handles signals while the block runs."""
    stop = Stop()
    with handled(stop):
        yield stop


def exit_now(number, frame):
    """Handler for programs that have no step to finish: raises `Stopped`."""
    for other in SIGNALS:
        if signal.getsignal(other) is exit_now:
            signal.signal(other, signal.SIG_DFL if other in INSISTING else signal.SIG_IGN)
    raise Stopped(number, "", "files already written are kept; run the command again to continue")


def ignore_signals(worker):
    """`worker_init_fn` of a DataLoader: a signal reaches all processes of a terminal or job, but the run needs its
    workers until it finishes the step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
