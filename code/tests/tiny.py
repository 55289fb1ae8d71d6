"""Pretraining runs small enough for tests: the 80 clips of `demo_data`, the model of `small_model` (conftest.py)."""

import logging
import traceback
from dataclasses import fields
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.models.random import StepRandom
from cmg.training.settings import OptimConfig, StepConfig
from cmg.training.step import TrainStep
from cmg.utils.signals import Stopped

STEPS = 10                      # of an epoch: 80 clips by 8


def command(root, folder, *more):
    """Arguments of a tiny pretraining run that keeps everything in `folder`."""
    return ["--data_root", str(root), "--model_save_path", str(Path(folder) / "checkpoints"), "--snapshot_pref",
            str(Path(folder) / "run"), "--in_memory", "--gpu", "cpu", "--batch_size", "8", "--n_embeddings", "24",
            "--print_freq", "1", "--n_epoch", "2", "--log", "none", *map(str, more)]


def train(root, folder, *more):
    """Run it; returns the exit code."""
    return run_once(command(root, folder, *more))


def run_once(arguments):
    """pretrain.py with these arguments; returns the exit code. The log handlers of the run are taken off again."""
    try:
        return pretrain.main(arguments) or 0
    except Stopped as stopped:
        return stopped.code
    finally:
        logger = logging.getLogger()
        for handler in [h for h in logger.handlers if getattr(h, "of_run", False)]:
            logger.removeHandler(handler)
            handler.close()


def checkpoints(folder):
    """Names in a run's checkpoint folder, hidden ones too."""
    return sorted(path.name for path in (Path(folder) / "checkpoints").iterdir())


def step_for(system, rng=None, seed=0, **settings):
    """A TrainStep of a system; `settings` are fields of OptimConfig, of StepConfig or of the system's Options.

    Args:
        rng: default: `StepRandom` from `seed`.
    """
    def of(kind):
        return {field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings}
    optim, step = OptimConfig(**of(OptimConfig)), StepConfig(**of(StepConfig))
    system.options = type(system).Options(**settings)
    return TrainStep(system, rng or StepRandom(torch.Generator().manual_seed(seed)), optim, step)


def assert_goes_on_bit_exactly(trainer, loaded, batch, epoch=0):
    """The next step of a TrainStep and of one made from its file, checkpoint.Loaded, end in equal systems."""
    again = step_for(loaded.system.train(), rng=trainer.rng)
    load_optimizers(loaded, again.optimizers)
    again.system.initialized = [True] * len(again.system.codebooks)
    state = trainer.rng.generator.get_state()
    for one in (trainer, again):
        trainer.rng.generator.set_state(state)
        torch.manual_seed(7)
        one.step(batch, epoch)
    ours, theirs = trainer.system.state_dict(), again.system.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Waiting(TorchDispatchMode):
    """Notes the source line of everything that would make the host wait for a GPU: a value read back (also to find a
    shape by it), a tensor made of Python numbers, a copy to another device that is waited for."""

    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "aten.equal")

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_copy = "_to_copy" in str(function) and not kwargs.get("non_blocking") and torch.device(
            kwargs.get("device") or args[0].device).type != args[0].device.type
        if is_copy or any(name in str(function) for name in self.OPS):
            ours = [frame.line for frame in traceback.extract_stack() if "/code/src/" in frame.filename]
            self.lines += ours[-1:] or ["not ours"]
        return function(*args, **kwargs)
