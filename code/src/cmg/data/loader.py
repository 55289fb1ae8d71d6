"""A DataLoader that reports lost worker processes and fits their number to shared memory."""

import logging
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager

import numpy as np
from torch.utils.data import DataLoader

from cmg.utils.errors import InputError
from cmg.utils.signals import ignore_signals

log = logging.getLogger(__name__)
SHARED_MEMORY = "/dev/shm"      # used by workers to send batches on Linux; 64 MB in a container by default
AHEAD = 2                       # batches prefetched per worker, DataLoader's default
OF_SYSTEM = re.compile("shared memory|</torch_|No space left|Too many open files|Cannot allocate memory")
USED = 0.9                      # fraction of the shared memory that may be used


class WorkersLost(InputError):
    """A worker process was killed, or cannot send its batches."""


class ClipLoader(DataLoader):
    """A DataLoader that reduces the number of workers, with a log message, if their batches exceed shared memory.

    Iterating raises `WorkersLost` if a worker was killed or lacks system resources, and `InputError` if a clip cannot
    be read.

    Args:
        dataset: items are dicts of arrays of equal shapes, or such arrays; without a batch size, anything small.
        batch_size, num_workers, persistent_workers, options: see DataLoader.
        alone: value of --workers that uses no worker processes, for messages.
    """

    def __init__(self, dataset, batch_size, num_workers=0, persistent_workers=False, alone=0, **options):
        self.alone = alone
        workers = num_workers if batch_size is None else _fitting(dataset, batch_size, num_workers)
        super().__init__(dataset, batch_size, num_workers=workers, worker_init_fn=ignore_signals,
                         persistent_workers=persistent_workers and workers > 0, **options)

    def __iter__(self):
        self.processes = []
        try:
            with _without_child_handler():
                batches = super().__iter__()
            self.processes = list(getattr(batches, "_workers", []))
            for batch in batches:
                yield batch
                self.require_workers()
        except (RuntimeError, OSError, EOFError) as error:
            for process in self.processes:
                process.kill()                  # they ignore other signals, and may wait for a dead worker's lock
            if str(error).startswith("Caught RuntimeError") and not OF_SYSTEM.search(str(error)):
                raise                           # a bug of ours in a worker
            raise self._lost(_reason(error)) from error

    def require_workers(self):
        """Raise `WorkersLost` if a worker of the last pass was killed, even if its work was done: the cause, such as a
        lack of memory, affects others."""
        codes = [process.exitcode for process in self.processes if process.exitcode]
        if codes:
            raise self._lost(f"signal {-codes[0]}" if codes[0] < 0 else f"exit code {codes[0]}")

    def _lost(self, reason):
        return WorkersLost(f"--workers {self.num_workers}: a worker process ended or cannot send a batch ({reason}); "
                           "expected enough memory, shared memory and open files for all workers; use fewer, or "
                           f"--workers {self.alone} for none")


def _fitting(dataset, batch_size, workers):
    """The number of workers whose batches fit into shared memory."""
    if not workers or not sys.platform.startswith("linux"):
        return workers
    free = 0
    if os.access(SHARED_MEMORY, os.W_OK):
        found = os.statvfs(SHARED_MEMORY)
        free = found.f_bavail * found.f_frsize
    batch = batch_size * _bytes_of(dataset[0])
    fitting = min(workers, max(0, int((USED * free / batch - 1) / AHEAD)))
    if fitting < workers:
        needed = batch * (1 + AHEAD * workers) / USED
        log.warning("--workers %d: %s has %.1f MB free, but this many workers with batches of %.1f MB need %.1f MB; "
                    "using %d (docker run --shm-size provides more)", workers, SHARED_MEMORY, free / 1e6,
                    batch / 1e6, needed / 1e6, fitting)
    return fitting


def _bytes_of(item):
    return sum(np.asarray(value).nbytes for value in (item.values() if isinstance(item, dict) else [item])) or 1


@contextmanager
def _without_child_handler():
    """Keep PyTorch's signal handler from raising the loss of a worker anywhere in the program, such as in an optimizer
    step; the loop over batches notices it within seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _reason(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if lines[0].startswith("Caught ") else lines[0])[:100]
