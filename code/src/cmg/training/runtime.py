"""Capabilities of the machine (precision, memory, workers), and the length of a run."""

import ctypes
import logging
import math
from pathlib import Path

from cmg.utils.cores import usable_cores

MMAP_MAX, TRIM_THRESHOLD = -4, -1                                           # parameters of mallopt(3)
BF16_UNITS = {"amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16"}     # of x86 and ARM, as named by PyTorch
MOST_WORKERS = 4
PUBLISHED_STEPS = 3066, "the published run, in which codes settle and modalities come to share them"
FAR_BELOW = 1 / 3               # of the usual steps

log = logging.getLogger(__name__)


def keep_freed_memory():
    """Make the C library keep freed memory for the next step instead of returning it to the operating system.

    A step frees and reallocates gigabytes of gradients and bf16 weights. The operating system clears and maps every
    page that it returns, which takes a quarter of a step at published widths. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2 ** 31 - 1)


def cpu_features():
    """Names of this CPU's instruction sets; empty if neither PyTorch (since 2.12) nor Linux reports them."""
    import torch  # here and below, because --help does not need it
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()


def has_bf16_units(device):
    """Whether `device` has hardware for bf16 products; CPUs without it emulate them, 60 times slower than float32."""
    if device.type == "cuda":
        import torch
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BF16_UNITS.isdisjoint(cpu_features())


def resolve(precision, device):
    """The precision of a run: `precision`, or float32, with a warning, for bf16 on a device without bf16 units."""
    if precision != "bf16" or has_bf16_units(device):
        return precision
    log.warning("--precision bf16: %s has no bf16 units (a CPU needs AMX or AVX512-BF16, an NVIDIA GPU compute "
                "capability 8.0), where bf16 is far slower than float32; computing in float32",
                "this CPU" if device.type == "cpu" else f"GPU {device.index or 0}")
    return "float32"


def default_workers():
    """Default number of processes that read clips: 4, or the number of available cores if that is smaller."""
    return min(MOST_WORKERS, usable_cores())


def run_length(num_clips, batch_size, n_epoch, num_codes, max_steps=None, usual=PUBLISHED_STEPS):
    """Steps in all and clips a code, and what is worth knowing about them: steps far below the usual ones, a last step
    of one clip.

    Args:
        num_clips, batch_size, n_epoch: of the run.
        num_codes: K.
        max_steps: at which it stops, if any.
        usual: (number of steps, of what), or None.

    Returns:
        list of lines, the first with the numbers.
    """
    an_epoch = math.ceil(num_clips / batch_size)
    steps = min(an_epoch * n_epoch, max_steps or an_epoch * n_epoch)
    found = [f"{steps:,} steps in all ({an_epoch:,} an epoch, {n_epoch} epochs, {batch_size} clips a step), "
             f"{num_clips / num_codes:.1f} clips a code"]
    if usual and steps < FAR_BELOW * usual[0]:
        remedy = f"--n_epoch {math.ceil(usual[0] / an_epoch)} or a smaller --batch_size brings it there"
        if steps < an_epoch * n_epoch:
            remedy = "--max_steps ends it there"
        found.append(f"{steps:,} steps are far below the {usual[0]:,} of {usual[1]}; {remedy}")
    if num_clips % batch_size == 1 < batch_size:
        found.append(f"the last step of an epoch has one clip ({num_clips:,} clips, {batch_size} a step; so has the "
                     "published run): losses that compare clips are zero in it")
    return found
