"""Parameter groups, optimizer and schedule of a pretraining run.

A system's parameters are in groups (`System.parameter_groups`). The main optimizer has a torch parameter group for each
of them; the CLUB networks have an optimizer of their own, which steps within the training pass. Published: Adam at
4e-4, halved at epochs 10, 20 and 30, each group clipped to a norm of 0.5, and Adam at 1e-3 for CLUB.
"""

import math
from dataclasses import dataclass
from inspect import signature

import torch
from torch.nn.utils import get_total_norm

from cmg.utils.settings import not_negative, setting

LEARNING_RATE_DROPS = (10, 20, 30)      # epochs, as published
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated."""

    optimizer: str = setting("adam", "of all parameters but the CLUB networks', which keep Adam",
                             choices=tuple(OPTIMIZERS))
    lr: float = setting(4e-4, "its learning rate")
    schedule: str = setting("drops", "of the learning rate: halved at the epochs of --lr_drops, a cosine to 0 at the end "
                            "of the run, or constant", choices=("drops", "cosine", "constant"))
    lr_drops: tuple = setting(LEARNING_RATE_DROPS, "epochs at which --schedule drops halves it", type=int)
    warmup: int = setting(0, "steps in which it first rises linearly from 0", type=int, metavar="STEPS")
    weight_decay: float = setting(None, "weight decay (default: 0, adamw 0.01)", flags=("--weight_decay", "--wd"),
                                  type=not_negative)
    clip_gradient: float = setting(0.5, "largest gradient norm of a group of parameters")
    mi_lr: float = setting(1e-3, "learning rate of the auxiliary networks (CLUB)", type=not_negative)

    def learning_rate(self, epoch, step, total_steps):
        """Learning rate of a step, a function of where the run is: a resumed run continues with the same.

        Args:
            epoch: the running one.
            step: steps taken before this one.
            total_steps: of the whole run; only the cosine needs them.
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "drops":
            return warm * self.lr * 0.5 ** sum(epoch >= drop for drop in self.lr_drops)
        if self.schedule == "cosine":
            done = max(step - self.warmup, 0) / max(total_steps - self.warmup, 1)
            return warm * self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return warm * self.lr


def default_decay(optimizer):
    """Weight decay of an optimizer, by its name in OPTIMIZERS: that of torch for AdamW, which is Adam without it."""
    return 0.01 if optimizer == "adamw" else 0.0


class Optimizers:
    """The optimizers of a system.

    Attributes:
        groups: name -> systems.base.Group.
        main: torch optimizer of all groups that are not auxiliary.
        auxiliary: torch optimizer of the others, None where there are none.
    """

    def __init__(self, system, config):
        self.config, self.groups = config, {group.name: group for group in system.parameter_groups()}
        decay = default_decay(config.optimizer) if config.weight_decay is None else config.weight_decay
        auxiliary = [name for name, group in self.groups.items() if group.auxiliary]
        self.main = self._build(OPTIMIZERS[config.optimizer], [name for name in self.groups if name not in auxiliary],
                                lr=config.lr, weight_decay=decay)
        self.auxiliary = self._build(torch.optim.Adam, auxiliary, lr=config.mi_lr) if auxiliary else None

    def _build(self, kind, names, **options):
        if "fused" in signature(kind).parameters:
            options["fused"] = True
        return kind([{"params": list(self.groups[name].parameters.values()), "name": name} for name in names], **options)

    def zero_grad(self):
        """Drop the gradients of the main groups; those of auxiliary networks join what their own steps left."""
        self.main.zero_grad(set_to_none=True)

    @torch.no_grad()
    def clip_gradients(self):
        """Scale the gradients of every main group to a norm of `clip_gradient` at most.

        Returns:
            name of a group -> norm of its gradients before clipping, a scalar tensor; auxiliary groups, which are not
            clipped, and frozen ones are among them if they have a gradient.
        """
        norms = {}
        for name, group in self.groups.items():
            gradients = [parameter.grad for parameter in group.parameters.values() if parameter.grad is not None]
            if not gradients:
                continue
            norms[name] = get_total_norm(gradients)
            if group.clipped and not group.auxiliary:
                # torch's clip_grads_with_norm_ multiplies; dividing by the inverse gives, bit by bit, the float32 runs of
                # versions whose fused kernel took it as the scale of the gradients
                scale = 1 / (self.config.clip_gradient / (norms[name] + 1e-6)).clamp(max=1.0)
                torch._foreach_div_(gradients, scale)
        return norms

    def step(self, learning_rate):
        """Update the main groups."""
        for group in self.main.param_groups:
            group["lr"] = learning_rate
        self.main.step()
