"""Batches of a dataset, read by worker processes that the system may take away."""

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
SHARED_MEMORY = "/dev/shm"      # through which workers send batches on Linux; 64 MB in a container by default
AHEAD = 2                       # batches that a worker makes in advance, as DataLoader has it
OF_SYSTEM = re.compile("shared memory|</torch_|No space left|Too many open files|Cannot allocate memory")
USED = 0.9                      # share of that memory that may be filled


class WorkersLost(InputError):
    """A worker process ended from outside, or cannot hand over what it has read."""


class ClipLoader(DataLoader):
    """A DataLoader whose worker processes fit into shared memory; fewer than asked for are logged in one line.

    Iterating raises `WorkersLost` where a worker was killed or the system refuses what workers need, `InputError` where
    a clip cannot be read.

    Args:
        dataset: items are dicts of arrays of equal shapes, or such arrays; without a batch size, anything small.
        batch_size, num_workers, persistent_workers, options: as of DataLoader.
        alone: value of --workers that takes no worker processes, for messages.
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
                process.kill()                  # they ignore other signals, and may wait for a lock of a dead one
            if str(error).startswith("Caught RuntimeError") and not OF_SYSTEM.search(str(error)):
                raise                           # a mistake of ours within a worker
            raise self._lost(_reason(error)) from error

    def require_workers(self):
        """Raise `WorkersLost` if a worker of the last pass was killed, even if it had nothing left to do: what took it
        away, say a lack of memory, takes others."""
        codes = [process.exitcode for process in self.processes if process.exitcode]
        if codes:
            raise self._lost(f"signal {-codes[0]}" if codes[0] < 0 else f"exit code {codes[0]}")

    def _lost(self, reason):
        return WorkersLost(f"--workers {self.num_workers}: a process that reads clips has ended or cannot hand over a "
                           f"batch ({reason}); memory, shared memory and open files for all of them are expected; take "
                           f"fewer, --workers {self.alone} for none")


def _fitting(dataset, batch_size, workers):
    """How many workers have room for their batches in shared memory."""
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
        log.warning("--workers %d: %s has %.1f MB of free space, so many processes with batches of %.1f MB need %.1f; "
                    "reading with %d (docker run --shm-size gives more)", workers, SHARED_MEMORY, free / 1e6,
                    batch / 1e6, needed / 1e6, fitting)
    return fitting


def _bytes_of(item):
    return sum(np.asarray(value).nbytes for value in (item.values() if isinstance(item, dict) else [item])) or 1


@contextmanager
def _without_child_handler():
    """Keep PyTorch from raising the loss of a worker anywhere in the program, say within an optimizer's step: the loop
    over the batches finds it within seconds."""
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
