"""Machine capabilities (precision, memory, workers), and the length of a run."""

import ctypes
import logging
import math
from pathlib import Path

from cmg.utils.cores import usable_cores

MMAP_MAX, TRIM_THRESHOLD = -4, -1                                           # parameters of mallopt(3)
BF16_UNITS = {"amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16"}     # of x86 and ARM, as named by PyTorch
MOST_WORKERS = 4
PUBLISHED_STEPS = 3066, "the published run, in which codes stabilize and modalities come to share them"
FAR_BELOW = 1 / 3               # of the usual steps

log = logging.getLogger(__name__)


def keep_freed_memory():
    """Make the C library keep freed memory for the next step instead of returning it to the operating system.

    A step frees and reallocates gigabytes of gradients and bf16 weights. The operating system zeroes and maps every
    page again, which takes a quarter of a step at published widths. Without glibc, this function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2 ** 31 - 1)


def cpu_features():
    """Names of this CPU's instruction sets; empty if neither PyTorch (since 2.12) nor Linux reports them."""
    import torch  # imported here and below because --help does not need it
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
    """The precision of a run: `precision`, or float32 with a warning if bf16 is requested on a device without bf16
    units."""
    if precision != "bf16" or has_bf16_units(device):
        return precision
    log.warning("--precision bf16: %s has no bf16 units (a CPU needs AMX or AVX512-BF16, an NVIDIA GPU compute "
                "capability 8.0), so bf16 would be far slower than float32; using float32",
                "this CPU" if device.type == "cpu" else f"GPU {device.index or 0}")
    return "float32"


def default_workers():
    """Default number of processes that read clips: 4, or the number of available cores if that is smaller."""
    return min(MOST_WORKERS, usable_cores())


def run_length(num_clips, batch_size, n_epoch, num_codes, max_steps=None, usual=PUBLISHED_STEPS):
    """Describe the length of a run: total steps and clips per code, with notes if there are far fewer steps than usual
    or if the last step of an epoch has only one clip.

    Args:
        num_clips, batch_size, n_epoch: of the run.
        num_codes: K.
        max_steps: number of steps after which it stops, if any.
        usual: (number of steps, of what), or None.

    Returns:
        list of lines, of which the first gives the numbers.
    """
    an_epoch = math.ceil(num_clips / batch_size)
    steps = min(an_epoch * n_epoch, max_steps or an_epoch * n_epoch)
    found = [f"{steps:,} steps in total ({an_epoch:,} per epoch, {n_epoch} epochs, {batch_size} clips per step), "
             f"{num_clips / num_codes:.1f} clips per code"]
    if usual and steps < FAR_BELOW * usual[0]:
        remedy = f"--n_epoch {math.ceil(usual[0] / an_epoch)} or a smaller --batch_size reaches that number"
        if steps < an_epoch * n_epoch:
            remedy = "raise --max_steps"
        found.append(f"{steps:,} steps are far fewer than the {usual[0]:,} of {usual[1]}; {remedy}")
    if num_clips % batch_size == 1 < batch_size:
        found.append(f"the last step of an epoch has one clip ({num_clips:,} clips, {batch_size} per step), as in the "
                     "published run; losses that compare clips are zero in it")
    return found
