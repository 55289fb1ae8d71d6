"""Shared utilities of the benchmarks: clocks that synchronize with the device, a matrix-product ceiling, peak
memory."""

import resource
import time
from collections import defaultdict
from contextlib import contextmanager

import torch

from cmg.cli import gpu_argument

CEILING_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}      # square products; the fastest counts


def add_device(parser):
    """Add --device, as used by `cmg.cli.device`."""
    parser.add_argument("--device", type=gpu_argument, default=None,
                        help="index of the GPU, or cpu (default: GPU 0 if there is one)")


def now(device):
    """Seconds on a clock after `device` has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(function, device):
    """Time of one call."""
    start = now(device)
    function()
    return now(device) - start


class Ceiling:
    """Fastest plain matrix product of a device and dtype; call `measure` repeatedly between other measurements."""

    def __init__(self, device, dtype):
        self.device, self.best = device, 0.0
        sizes = [n for n in CEILING_SIZES[device.type] if device.type == "cuda" or dtype == torch.bfloat16 or n < 4096]
        self.pairs = [tuple(torch.randn(n, n, device=device).to(dtype) for _ in range(2)) for n in sizes]

    def measure(self):
        """Best FLOP/s so far."""
        for a, b in self.pairs:
            time_ = seconds(lambda a=a, b=b: a @ b, self.device)
            self.best = max(self.best, 2 * len(a) ** 3 / time_)
        return self.best


class Stopwatch:
    """Self time of wrapped functions by name: while one runs inside another, only the inner clock runs."""

    def __init__(self, device):
        self.device, self.times, self.running = device, defaultdict(float), []

    def wrap(self, owner, function, name):
        """Replace `owner.function` on this object with a timed version."""
        inner = getattr(owner, function)

        def timed(*args, **kwargs):
            with self.on(name):
                return inner(*args, **kwargs)
        setattr(owner, function, timed)

    @contextmanager
    def on(self, name):
        """Time a block under `name`."""
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def _switch(self):
        moment = now(self.device)
        if self.running:
            self.times[self.running[-1]] += moment - self.since
        self.since = moment


def peak_memory(device):
    """Peak memory so far in GB: of the device's allocator or, on a CPU, the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
