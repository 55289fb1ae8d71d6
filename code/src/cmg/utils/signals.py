"""SIGTERM and SIGINT: what is under way is finished and saved, then the program ends with exit code 128 + signal and
one line that says how to go on. A second signal kills.

    with stop_on_signals() as stop:
        for step in ...:
            ...
            stop.here(lambda: save(...), f"after step {step}", "resume with --resume auto")

Valid Python 3.7, standard library alone: `errors.run` needs it wherever that runs.
"""

import logging
import signal
import threading
from contextlib import contextmanager

log = logging.getLogger(__name__)
SIGNALS = signal.SIGTERM, signal.SIGINT


class Stopped(KeyboardInterrupt):
    """The program was told to stop and has saved what it had. `code` is its exit code, the text is the line, which a
    log has taken already if it listens."""

    def __init__(self, number, done="", how=""):
        line = f"stopped by {signal.Signals(number).name}{' ' * bool(done)}{done}; {how}"
        super().__init__(line if how else "")
        self.code = 128 + number
        if how:
            log.info(line)


class Stop:
    """Set by a signal; the loop that listens looks at it when a step is done."""

    def __init__(self):
        self.signal = None

    def __call__(self, number, frame):
        self.signal = number
        for name in SIGNALS:
            signal.signal(name, signal.SIG_DFL)

    def here(self, save, done, how):
        """If a signal came: save and raise `Stopped`.

        Args:
            save: called without arguments.
            done: what is saved, as "after step 3".
            how: what to do to go on.
        """
        if self.signal:
            save()
            raise Stopped(self.signal, done, how)


@contextmanager
def handled(handler):
    """`handler` takes both signals while the block runs; in a thread that cannot listen nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, handler) for name in SIGNALS}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)


@contextmanager
def stop_on_signals():
    """Give a `Stop` that listens while the block runs."""
    stop = Stop()
    with handled(stop):
        yield stop


def exit_now(number, frame):
    """Handler where nothing is under way that a later call could go on with: end here."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_DFL)
    raise Stopped(number, "", "nothing that was written is lost; repeat the call to go on")


def ignore_signals(worker):
    """`worker_init_fn` of a DataLoader: a signal reaches all processes of a terminal or job; the run finishes its step
    and needs its workers until then."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
