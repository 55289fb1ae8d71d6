"""What was made faster computes the same: the fast step against the plain one, in float64 at small widths."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from baseline_step import PlainStep
from torch.utils._python_dispatch import TorchDispatchMode

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.losses.club import CLUB, BatchedCLUB, SufficientStats
from cmg.models import map_conv
from cmg.models.config import Config
from cmg.models.random import StepRandom
from cmg.systems import base, dcid, fcid, micu
from cmg.systems.dcid import DCID
from cmg.systems.registry import SYSTEMS
from tiny import Waiting, step_for

SMALL = dict(video_dim=8, num_codes=11, audio_dim=6, text_dim=9, text_hidden=8, code_dim=16, feed_forward=24,
             num_heads=2, club_hidden=12, dropout=0.0)


def batches(config, clips, steps):
    """Random features of `steps` steps, modality -> (B, ...)."""
    generator = torch.Generator().manual_seed(5)
    shapes = {m: shape if config.kind(m) == "tokens" else (10, *shape) for m, shape in config.shapes}
    return [{m: torch.rand(clips, *shapes[m], generator=generator, dtype=torch.float64) for m in config.modalities}
            for _ in range(steps)]


@pytest.mark.parametrize("modalities", [("audio", "video", "text"), ("audio", "video"), ("audio", "text")])
def test_step_equals_the_plain_form(modalities):
    torch.manual_seed(3)
    config = Config.for_data(modalities, **SMALL)
    model = DCID(config).double()
    plain_model = copy.deepcopy(model)
    for system in (model, plain_model):
        codebook = system.encoder.levels[0].codebook
        codebook.embedding.copy_(torch.randn(11, 16, generator=torch.Generator().manual_seed(1)))
        codebook.ema_weight.copy_(codebook.embedding)
        codebook.ema_count.fill_(1)
        codebook.unactivated_count.copy_(torch.arange(11) * 60)             # some are due at once
    trainer = step_for(model, codebook_init="released")
    plain = PlainStep(plain_model, StepRandom(torch.Generator().manual_seed(0)))
    for batch in batches(config, 4, 3):
        fast, slow = trainer.step(batch, 0).losses, plain.step(batch)
        assert fast.keys() == slow.keys()
        for name in slow:
            torch.testing.assert_close(fast[name], slow[name], rtol=1e-9, atol=1e-10)
    for (name, ours), theirs in zip(model.state_dict().items(), plain_model.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_optimizer_state_in_another_memory_layout_continues_the_run(tmp_path):
    """Kernels are stored channels last, published Adam states are not: a step after loading must not mix them up."""
    config = Config.for_data(("audio", "video", "text"), **(SMALL | {"num_heads": 4}))     # heads are in no file
    first, second, third = batches(config, 4, 3)
    torch.manual_seed(3)
    trainer = step_for(DCID(config).double(), codebook_init="released")
    for batch in (first, second):
        trainer.step(batch, 0)
    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 2, {}, torch.float64)
    for state in contents["optimizer"]["state"].values():
        state |= {name: state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")}
    torch.save(contents, tmp_path / "two_steps.pt")
    loaded = checkpoint.open_file(tmp_path / "two_steps.pt", torch.float64)
    resumed = step_for(loaded.system, StepRandom(trainer.rng.generator.clone_state()), codebook_init="released")
    load_optimizers(loaded, resumed.optimizers)
    for one in (trainer, resumed):
        one.system.eval()                                    # no dropout: the loaded config has the default
        one.step(third, 0)
    for (name, ours), theirs in zip(resumed.system.state_dict().items(), trainer.system.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_likelihood_of_codes_equals_that_of_seconds():
    """Grouped by code, the evidence gives the same likelihood and gradients as second by second."""
    torch.manual_seed(0)
    clubs = BatchedCLUB([CLUB(16, 5, 12).double(), CLUB(16, 5, 12).double()])
    codes, indices = torch.randn(7, 16).double(), torch.randint(6, (2, 4, 10))          # code 6 is never chosen
    specific = torch.randn(2, 4, 10, 5).double()
    grouped = SufficientStats.of(codes, indices, specific)
    single = SufficientStats.each(codes[indices].flatten(1, 2), specific.flatten(1, 2))
    assert grouped.mean.shape == (2, 7, 5) and single.mean.shape == (2, 40, 5)
    results = []
    for evidence in (grouped, single):
        values = clubs.log_likelihoods(evidence)
        results.append((values, *torch.autograd.grad(values.sum(), clubs.tensors)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_recomputed_activations_change_nothing():
    config = Config.for_data(("audio", "video", "text"), **SMALL)
    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        trainer = step_for(DCID(config).double(), recompute=recompute)
        losses = [trainer.step(batch, 0).losses for batch in batches(config, 4, 2)]
        results.append((losses, trainer.system.state_dict()))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_layers_change_nothing(bf16, monkeypatch):
    """Forward and backward as torch.compile traces them; kernels of its own take a compiler, and half a minute."""
    traced = Mock(wraps=partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch, "compile", traced)
    config, results = Config.for_data(("audio", "text"), **SMALL), []
    for compiled in (False, True):
        torch.manual_seed(3)
        trainer = step_for(DCID(config).train(), compile=compiled, bf16=bf16)
        results.append([{name: x.detach().float() for name, x in trainer.step(batch, 0).losses.items()}
                        for batch in ({m: x.float() for m, x in b.items()} for b in batches(config, 4, 2))])
    assert traced.called
    torch.testing.assert_close(*results, rtol=1e-2 if bf16 else 1e-4, atol=1e-2 if bf16 else 1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("system, epoch", [("dcid", 0), ("h_dcid", 3), ("fcid", 0), ("micu", 0), ("codaar", 0)])
def test_a_step_never_waits_for_the_device(system, epoch, masked):
    config = SYSTEMS[system].Config.for_data(("audio", "video", "text"), **SMALL)
    trainer = step_for(SYSTEMS[system](config).train())
    batch = {"audio": torch.randn(4, 10, 6), "video": torch.randn(4, 10, 7, 7, 8), "text": torch.randn(4, 10, 9)}
    if masked:
        batch["mask"] = torch.arange(10) < torch.tensor([[1], [10], [4], [7]])
    trainer.step(batch, epoch)              # the codebooks start here
    with Waiting() as waiting:
        trainer.step(batch, epoch)
    # one_hot and the judgement of a step look at their input on a CPU only; the run's sampling generator is on it
    assert not [line for line in waiting.lines if not any(
        known in line for known in ("F.one_hot(", "generator=self.generator", 'device.type == "cpu" and'))]
    with Waiting() as waiting:
        assert (torch.ones(2) > 0).all() and torch.tensor(1.0) > 0
    assert waiting.lines == ["not ours"] * 3                # the watch sees values that are read and tensors made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("system, epoch", [("dcid", 0), ("h_dcid", 3), ("fcid", 0), ("micu", 0)])
def test_draws_are_copied_without_waiting(system, epoch, masked, monkeypatch):
    """Recipe and all, on the device "meta", where a copy from the host is seen and nothing is computed."""
    for module in (base, dcid, fcid, micu):
        monkeypatch.setattr(module, "full_precision", lambda x: nullcontext())        # autocast knows no such device
    monkeypatch.setattr(map_conv, "compute_dtype", lambda weight: weight.dtype)
    config = SYSTEMS[system].Config.for_data(("audio", "video", "text"), **SMALL)
    trainer = step_for(SYSTEMS[system](config).train(), code_choice="joint", reset_to="second", reset_after=60,
                          **({"weights": (("contrast", 3.0),)} if "dcid" in system else {}))
    model = trainer.system.to("meta")
    model.initialized = [True] * len(model.initialized)
    batch = {"audio": torch.empty(4, 10, 6, device="meta"), "video": torch.empty(4, 10, 7, 7, 8, device="meta"),
             "text": torch.empty(4, 10, 9, device="meta")}
    if masked:
        batch["mask"] = torch.ones(4, 10, dtype=torch.bool, device="meta")
    with Waiting() as waiting:
        outputs, _ = model.training_pass(model.features(batch), epoch, trainer.rng, Mock())
        trainer.losses(outputs, epoch)
    assert not [line for line in waiting.lines if "generator=self.generator" not in line]
    with Waiting() as waiting:
        torch.ones(2).to("meta")
        torch.ones(2).to("meta", non_blocking=True)
    assert waiting.lines == ["not ours"]                    # the watch sees a copy that waits


class Operations(TorchDispatchMode):
    """Counts the operations that a device would be given; views are none."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("system, epoch, most", [("dcid", 0, 1700), ("h_dcid", 3, 2800)])
def test_a_step_is_as_many_operations_at_every_size(system, epoch, most):
    """No loop over clips, seconds or codes; and few enough that a GPU is not left waiting for its host."""
    numbers = []
    for clips, seconds, codes in ((3, 10, 11), (6, 14, 29)):
        config = replace(Config.for_data(("audio", "video", "text"), **SMALL), num_codes=codes)
        trainer = step_for(SYSTEMS[system](config).train())
        batch = {"audio": torch.randn(clips, seconds, 6), "video": torch.randn(clips, seconds, 7, 7, 8),
                 "text": torch.randn(clips, seconds, 9)}
        for _ in range(2):                  # codebooks and optimizers start here
            trainer.step(batch, epoch)
        with Operations() as operations:
            trainer.step(batch, epoch)
        numbers.append(operations.number)
    assert numbers[0] == numbers[1] < most, numbers
