"""bf16 only where there are units for it, and no more reading processes than cores."""

import logging
import os
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from cmg.training import runtime

CPU = torch.device("cpu")
ZEN3 = {"avx2": True, "fma3": True, "avx512_bf16": False, "architecture": "x86_64", "l2_cache_size": 1 << 20}


def fake(monkeypatch, **features):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ZEN3 | features, raising=False)


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16", "bf16"])
def test_bf16_stays_where_there_are_units(unit, monkeypatch, caplog):
    fake(monkeypatch, **{unit: True})
    assert runtime.resolve("bf16", CPU) == "bf16" and not caplog.records


def test_bf16_becomes_float32_elsewhere_and_one_line_says_so(monkeypatch, caplog):
    fake(monkeypatch)
    assert runtime.resolve("bf16", CPU) == "float32"
    record, = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert record.getMessage().startswith("--precision bf16: this CPU has no bf16 units")
    assert record.getMessage().endswith("computing in float32")


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_other_precisions_are_as_asked(name, monkeypatch, caplog):
    fake(monkeypatch)
    assert runtime.resolve(name, CPU) == name and not caplog.records


@pytest.mark.parametrize("flags, expected", [("fma avx2 avx512f avx512_bf16", "bf16"), ("fma avx2", "float32"),
                                             (None, "float32")])
def test_an_older_pytorch_asks_the_system(flags, expected, monkeypatch, tmp_path):
    """Before `torch.cpu.get_capabilities`; on systems without /proc no units are assumed."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(runtime, "Path", lambda _: tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    assert runtime.resolve("bf16", CPU) == expected


def test_this_pytorch_and_linux_agree(monkeypatch):
    if not hasattr(torch.cpu, "get_capabilities") or not os.path.exists("/proc/cpuinfo"):
        pytest.skip("only one of them tells")
    ours = runtime.has_bf16_units(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert runtime.has_bf16_units(CPU) == ours


@pytest.mark.parametrize("cores, workers", [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_default_workers(cores, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert runtime.default_workers() == workers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataLoader([1], num_workers=workers)                # starts none; PyTorch's own count of the cores


def test_default_workers_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert runtime.default_workers() == 1
