"""On another device than the CPU: a step computes what it computes there, and the commands run through."""

import json

import numpy as np
import pytest
import torch

import evaluate
from cmg import cli
from cmg.checkpoints import checkpoint
from cmg.models.random import StepRandom
from cmg.systems.registry import SYSTEMS
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
    monkeypatch.setattr(cli, "device", lambda gpu: device)
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
