"""On another device than the CPU: a step computes what it computes there, and the commands run through; bf16 only where
there are units for it, and no more reading processes than cores."""

import json
import logging
import os
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import evaluate
from cmg.checkpoints import checkpoint
from cmg.cli import options
from cmg.models.random import StepRandom
from cmg.systems.registry import SYSTEMS
from cmg.training import runtime
from other_device import DEVICE, DEVICES, GPU, needs_gpu
from test_speed_equal import SMALL, batches
from tiny import checkpoints, step_for, train

on_devices = pytest.mark.parametrize("device", DEVICES, ids=str)


class SameNoise(StepRandom):
    """Normal numbers too are drawn on the CPU, so that all devices have the same."""

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)


def config_of(name):
    """Small widths, no dropout: its masks are the device's own."""
    return SYSTEMS[name].Config.for_data(("audio", "video", "text"), **SMALL)


def trained(name, device, steps, dtype=torch.float64, rng=SameNoise, **settings):
    """(trainer, its last report) after these batches."""
    torch.manual_seed(3)
    config = config_of(name)
    trainer = step_for(SYSTEMS[name](config).to(device, dtype).train(), rng(torch.Generator().manual_seed(0)),
                          **settings)
    for batch in steps:
        report = trainer.step({m: x.to(device, dtype) for m, x in batch.items()}, 3)
    return trainer, report


@on_devices
@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_are_those_of_a_cpu(name, device):
    steps = batches(config_of(name), 4, 3)
    on_cpu, there = (trained(name, where, steps)[0].system.state_dict() for where in ("cpu", device))
    for key, ours in there.items():
        torch.testing.assert_close(ours.cpu(), on_cpu[key], rtol=1e-6, atol=1e-8,
                                   msg=lambda text, key=key: f"{key}: {text}")


@needs_gpu
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_waits_for_nothing(name):
    first, second = batches(config_of(name), 4, 2)
    batch, totals = {m: x.to(GPU, torch.float32) for m, x in second.items()}, []
    for bf16 in (False, True):
        trainer, _ = trained(name, GPU, [first], torch.float32, StepRandom, bf16=bf16)       # the codebooks start here
        torch.cuda.set_sync_debug_mode("error")
        try:
            report = trainer.step(batch, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        totals.append(float(report.losses["total"].detach()))
    assert totals[1] == pytest.approx(totals[0], rel=5e-2)


@on_devices
def test_pretraining_resumes_and_heads_are_trained(device, demo_data, small_model, tmp_path, monkeypatch):
    """The commands, with the data on the device; the second run continues the first."""
    monkeypatch.setattr(options, "device", lambda gpu: device)
    assert train(demo_data, tmp_path, "--max_steps", 2) == 0
    assert train(demo_data, tmp_path, "--resume", "auto", "--max_steps", 4) == 0
    last = tmp_path / "checkpoints" / checkpoints(tmp_path)[-1]
    evaluate.main([str(last), "--data_root", str(demo_data), "--snapshot_pref", str(tmp_path), "--n_epoch", "1",
                   "--workers", "0", "--no_control", "--tasks", "ave", "avvp"])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"ave", "avvp"}                 # heads of clips and of seconds
    assert all(np.isfinite(row["value"]) for row in rows)


def test_files_are_read_without_the_device(tmp_path):
    there = torch.ones(3, device=DEVICE)
    checkpoint.save(tmp_path / "a.pt", {"network": {"w": there}, "shapes": [3, (4,)]})
    read = torch.load(tmp_path / "a.pt", weights_only=True)
    assert read["network"]["w"].tolist() == [1, 1, 1] and read["shapes"] == [3, (4,)]


def test_mixed_devices_are_seen():
    there = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="different devices: other \\(3,\\), cpu \\(3,\\)"):
        there + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + 1).cpu().numpy().sum() == 6


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
    assert record.getMessage().endswith("using float32")


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
