"""What this machine can compute in, and with how many processes it may read."""

import logging
import os
from pathlib import Path

import torch

BF16_UNITS = {"amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16"}     # of x86 and of ARM, as PyTorch names them
MOST_WORKERS = 4

log = logging.getLogger(__name__)


def cpu_features():
    """Names of the instruction sets of this CPU; empty where neither PyTorch (before 2.12) nor Linux tells."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()


def has_bf16_units(device):
    """Does `device` multiply in bf16 faster than in float32? CPUs without such units emulate it, 60 times slower."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BF16_UNITS.isdisjoint(cpu_features())


def resolve(precision, device):
    """The precision that a run computes in: `precision`, but float32 for bf16 on a device without bf16 units; one line
    of the log says so."""
    if precision != "bf16" or has_bf16_units(device):
        return precision
    log.warning("--precision bf16: %s has no bf16 units (a CPU needs AMX or AVX512-BF16, an NVIDIA GPU compute "
                "capability 8.0), where bf16 is far slower than float32; computing in float32",
                "this CPU" if device.type == "cpu" else f"GPU {device.index or 0}")
    return "float32"


def default_workers():
    """Processes that read clips: 4, but not more than the cores that this process may use, so that PyTorch does not
    warn of too many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)
