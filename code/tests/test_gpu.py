"""On a GPU: a step computes what it computes on a CPU, waits for nothing, and the commands run through."""

import json

import pytest
import torch

import ave
from model.sampling import Draws
from systems.registry import SYSTEMS
from test_speed_equal import SMALL, batches
from tiny import checkpoints, train, trainer_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = "cuda:0"


class SameNoise(Draws):
    """Normal numbers too are drawn on the CPU, so that all devices have the same."""

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)


def config_of(name):
    """Small widths, no dropout: its masks are the device's own."""
    return SYSTEMS[name].Config.for_data(("audio", "video", "text"), **SMALL)


def trained(name, device, steps, dtype=torch.float64, draws=SameNoise, **settings):
    """(trainer, its last report) after these batches."""
    torch.manual_seed(3)
    config = config_of(name)
    trainer = trainer_for(SYSTEMS[name](config).to(device, dtype).train(), draws(torch.Generator().manual_seed(0)),
                          **settings)
    for batch in steps:
        report = trainer.step({m: x.to(device, dtype) for m, x in batch.items()}, 3)
    return trainer, report


@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_are_those_of_a_cpu(name):
    steps = batches(config_of(name), 4, 3)
    on_cpu, on_gpu = (trained(name, device, steps)[0].system.state_dict() for device in ("cpu", GPU))
    for key, ours in on_gpu.items():
        torch.testing.assert_close(ours.cpu(), on_cpu[key], rtol=1e-6, atol=1e-8,
                                   msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_waits_for_nothing(name, precision):
    steps = batches(config_of(name), 4, 2)
    bf16 = precision == "bf16"
    trainer, _ = trained(name, GPU, steps[:1], torch.float32, Draws, bf16=bf16)         # the codebooks start here
    _, expected = trained(name, "cpu", steps, torch.float32, Draws)
    batch = {m: x.to(GPU, torch.float32) for m, x in steps[1].items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        report = trainer.step(batch, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(report.losses["total"].detach()) == pytest.approx(
        float(expected.losses["total"].detach()), rel=5e-2 if bf16 else 1e-2)


def test_pretraining_resumes_and_a_head_is_trained(demo_data, small_model, tmp_path):
    """The commands, in bf16 with the data on the GPU; the second run continues the first."""
    run = ["--gpu", "0", "--precision", "bf16"]
    assert train(demo_data, tmp_path, *run, "--max_steps", 12) == 0
    assert train(demo_data, tmp_path, *run, "--resume", "auto") == 0
    last = tmp_path / "checkpoints" / checkpoints(tmp_path)[-1]
    ave.main(["--data_root", str(demo_data), "--checkpoint", str(last), "--snapshot_pref", str(tmp_path), *run,
              "--n_epoch", "2", "--workers", "0"])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["direction"] for row in rows} == {"video->audio", "audio->video"}
