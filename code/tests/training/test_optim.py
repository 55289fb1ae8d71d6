"""What moves weights: an ordinary torch optimizer, with the promised rates, weights of losses, and logged values."""

import json
import math

import pytest
import torch

from cmg.cli import parse_pretrain
from cmg.models.random import StepRandom
from cmg.systems.registry import SYSTEMS
from cmg.training import optim
from cmg.training.settings import OptimConfig
from configs.opts import LOCAL
from conftest import refused
from test_dcid import TINY, batch_of
from tiny import STEPS, step_for, train

ALL = ("audio", "video", "text")
EPOCH = 3                       # both levels of H-DCID are trained
PLAIN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def step_of(name, **settings):
    """A TrainStep of a tiny system in float64, without dropout."""
    torch.manual_seed(0)
    config = SYSTEMS[name].Config.for_data(ALL, dropout=0.0, **TINY)
    return step_for(SYSTEMS[name](config).double().train(), **settings)


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return batch_of(ALL, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- the optimizer
@pytest.mark.parametrize("optimizer", PLAIN)
@pytest.mark.parametrize("name", SYSTEMS)
def test_weights_move_as_with_torch_on_plain_tensors(name, optimizer, batch):
    """Two steps; clipping by hand, a group at a time, and torch's own class on copies of the same weights."""
    settings = {"lr": 3e-3, "weight_decay": 0.02, "clip_gradient": 0.1}
    trainer = step_of(name, optimizer=optimizer, **settings)
    groups = {group: list(of.parameters.values()) for group, of in trainer.optimizers.groups.items()
              if not of.auxiliary}
    copies = {group: [p.detach().clone() for p in parameters] for group, parameters in groups.items()}
    plain = PLAIN[optimizer]([x for of in copies.values() for x in of], lr=settings["lr"],
                             weight_decay=settings["weight_decay"])
    clip, norms = trainer.optimizers.clip_gradients, []

    def noted():
        for group, of in copies.items():
            for copy, parameter in zip(of, groups[group]):
                copy.grad = None if parameter.grad is None else parameter.grad.detach().clone()
            given = [copy.grad for copy in of if copy.grad is not None]
            norms.append((group, torch.stack([x.square().sum() for x in given]).sum().sqrt() if given else None))
            if given and group not in trainer.system.UNCLIPPED:
                factor = min(1.0, settings["clip_gradient"] / (float(norms[-1][1]) + 1e-6))
                for x in given:
                    x *= factor
        return clip()
    trainer.optimizers.clip_gradients = noted
    for number in range(2):
        found = trainer.step(batch, 0 if name != "h_dcid" else EPOCH, number).grad_norms
        for group, norm in norms[-len(groups):]:
            assert (group in found) == (norm is not None)
            if norm is not None:
                torch.testing.assert_close(found[group], norm, rtol=1e-12, atol=0)
        plain.step()
    assert max(float(norm) for _, norm in norms if norm is not None) > settings["clip_gradient"]
    for group, of in copies.items():
        for copy, parameter in zip(of, groups[group]):
            torch.testing.assert_close(parameter.detach(), copy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_step_of_a_subclass_is_what_moves_the_weights(name, batch, monkeypatch):
    calls = []

    class Counting(torch.optim.Adam):
        def step(self, closure=None):
            calls.append({group["lr"] for group in self.param_groups})
            return None                         # and moves nothing
    monkeypatch.setattr(torch.optim, "Counting", Counting, raising=False)
    monkeypatch.setitem(optim.OPTIMIZERS, "adam", "Counting")
    trainer = step_of(name)
    assert type(trainer.optimizers.main) is Counting
    main = [p for group in trainer.optimizers.groups.values() if not group.auxiliary for p in group.parameters.values()]
    before = [p.detach().clone() for p in main]
    for number in range(2):
        trainer.step(batch, 0, number)
    assert calls == [{4e-4}, {4e-4}] and all(torch.equal(p, x) for p, x in zip(main, before))


def test_every_parameter_is_in_one_group():
    for name in SYSTEMS:
        optimizers = step_of(name).optimizers
        held = [p for one in (optimizers.main, optimizers.auxiliary) if one for group in one.param_groups
                for p in group["params"]]
        own = {id(p) for p in step_of(name).system.parameters()}
        assert len(held) == len({id(p) for p in held}) == len(own), name


# --------------------------------------------------------------------------------------------------------- the schedule
@pytest.mark.parametrize("settings, expected", [
    ({}, {(0, 0): 1, (9, 99): 1, (10, 100): 0.5, (19, 199): 0.5, (20, 200): 0.25, (30, 300): 0.125, (39, 399): 0.125}),
    ({"lr_drops": (1, 2)}, {(0, 0): 1, (1, 10): 0.5, (2, 20): 0.25, (9, 99): 0.25}),
    ({"schedule": "constant"}, {(0, 0): 1, (35, 350): 1}),
    ({"schedule": "constant", "warmup": 4}, {(0, 0): 0.25, (0, 1): 0.5, (0, 3): 1, (0, 4): 1, (35, 350): 1}),
    ({"schedule": "drops", "warmup": 20}, {(0, 9): 0.5, (10, 100): 0.5}),
    ({"schedule": "cosine"}, {(0, 0): 1, (0, 100): (1 + math.cos(math.pi / 4)) / 2, (0, 200): 0.5, (0, 400): 0}),
    ({"schedule": "cosine", "warmup": 100}, {(0, 49): 0.5, (0, 99): 1, (0, 250): 0.5, (0, 400): 0, (0, 500): 0})])
def test_rates_of_a_schedule(settings, expected):
    """Of a run of 400 steps; (epoch, steps taken before) -> share of the highest rate."""
    config = OptimConfig(lr=0.1, **settings)
    for (epoch, step), share in expected.items():
        assert config.learning_rate(epoch, step, 400) == pytest.approx(0.1 * share, abs=1e-15)


SCHEDULES = {"cosine": ("--schedule", "cosine", "--warmup", "3", "--optimizer", "adamw"),
             "drops": ("--lr_drops", "1", "--optimizer", "sgd")}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_has_the_same_rates_and_all_values_are_logged(schedule, demo_data, small_model, tmp_path):
    def run(folder, *more):
        assert train(demo_data, tmp_path / folder, *SCHEDULES[schedule], *more) == 0
        lines = (tmp_path / folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
    whole = run("whole", "--save_every_steps", STEPS + 3, "--keep", 9, "--keep_optimizer", "all")
    config = OptimConfig(**({"schedule": "cosine", "warmup": 3} if schedule == "cosine" else {"lr_drops": (1,)}))
    assert [line["learning_rate"] for line in whole] == pytest.approx(
        [config.learning_rate(step // STEPS, step, 2 * STEPS) for step in range(2 * STEPS)])
    rest = run("resumed", "--resume", tmp_path / "whole" / "checkpoints" / f"DCID-model-1-step{STEPS + 3}.pt")
    if schedule == "cosine":                # whose rates depend on the length of the run
        refused("belongs to another run .n_epoch 2 there, 3 here.", run, "whole", "--n_epoch", 3, "--resume", "auto")
    own = ("losses", "metrics", "likelihoods", "grad_norms", "learning_rate", "step", "epoch")
    assert [{key: line[key] for key in own} for line in rest] == [
        {key: line[key] for key in own} for line in whole[STEPS + 3:]]
    for line in whole:
        assert {"clips_per_second", "remaining_seconds"} <= line.keys() - set(own)
        assert set(line["losses"]) == {f"{m}_{kind}" for m in ALL for kind in ("recon", "commit", "club")} | {
            "cpc", "cmcm", "total"}
        assert set(line["likelihoods"]) == {f"{m}_club" for m in ALL} and {"equal_num", "code_perplexity"} <= set(
            line["metrics"])
        assert set(line["grad_norms"]) == {group.name for group in step_of("dcid").system.parameter_groups()}
    assert whole[-1]["remaining_seconds"] == 0 < whole[0]["remaining_seconds"] and all(
        line["clips_per_second"] > 0 for line in whole)


# -------------------------------------------------------------------------------------------------- weights of losses
def changed_by(name, batch, **settings):
    """(losses of a step, all tensors after it) of a system with some settings."""
    trainer = step_of(name, **settings)
    losses = trainer.step(batch, EPOCH).losses
    return {key: float(value.detach()) for key, value in losses.items()}, trainer.system.state_dict()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_kind_of_loss_has_a_weight(name, batch):
    """Each alone at 0.7 and all others at 0: the total is this loss; --weights takes every name that the log has."""
    kinds = SYSTEMS[name].TERMS
    trainer = step_of(name)
    for kind in kinds:
        trainer.system.options = type(trainer.system).Options(
            weights=tuple((other, 0.7 if other == kind else 0.0) for other in kinds))
        trainer.rng = StepRandom(torch.Generator().manual_seed(0))
        losses = trainer.evaluate(batch, EPOCH).losses
        found = [value for key, value in losses.items()
                 if key == kind or key.removesuffix(f"_{kind}") in (*ALL, "audiovisual")]
        assert found, kind
        torch.testing.assert_close(torch.as_tensor(losses["total"], dtype=torch.float64),
                                   0.7 * torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in found]).sum())
    opts = parse_pretrain(["--system", name, "--gpu", "cpu", "--weights", *(f"{kind}=0.25" for kind in kinds)], LOCAL)
    assert dict(opts.weights) == dict.fromkeys(kinds, 0.25)


@pytest.mark.parametrize("name, kind", [("dcid", "cpc"), ("dcid", "club"), ("codaar", "cpc"), ("fcid", "club")])
def test_weight_zero_is_the_same_as_without(name, kind, batch):
    ours, theirs = changed_by(name, batch, weights=((kind, 0.0),)), changed_by(name, batch, without=(kind,))
    assert ours[0] == theirs[0]
    assert all(torch.equal(value, theirs[1][key]) for key, value in ours[1].items())


def test_wrong_weights_are_one_line(capsys):
    for wrong in ("cpc", "cpc=-1", "cpc=nan", "nothing=1", "=1"):
        with pytest.raises(SystemExit) as ended:
            parse_pretrain(["--gpu", "cpu", "--weights", wrong], LOCAL)
        assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert dict(parse_pretrain(["--gpu", "cpu", "--contrast", "3"], LOCAL).weights) == {"contrast": 3.0}
