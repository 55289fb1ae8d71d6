"""Parameter groups, optimizers and learning rate schedule of pretraining.

The main optimizer has a torch parameter group for each of the system's groups (`System.parameter_groups`). The CLUB
networks have an optimizer of their own, which steps within the training pass. Published settings: Adam with learning
rate 4e-4, halved at epochs 10, 20 and 30, gradient norm of each group clipped to 0.5, and Adam with 1e-3 for CLUB.
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

    optimizer: str = setting("adam", "optimizer of all parameters except the CLUB networks, which always use Adam",
                             choices=tuple(OPTIMIZERS))
    lr: float = setting(4e-4, "learning rate")
    schedule: str = setting("drops", "learning rate schedule: halved at the epochs --lr_drops, cosine decay to 0 at "
                            "the end of the run, or constant", choices=("drops", "cosine", "constant"))
    lr_drops: tuple[int, ...] = setting(
        LEARNING_RATE_DROPS, "epochs at which --schedule drops halves the rate", type=int)
    warmup: int = setting(0, "steps of linear learning rate warmup", type=int, metavar="STEPS")
    weight_decay: float | None = setting(
        None, "weight decay (default: 0; adamw: 0.01)", flags=("--weight_decay", "--wd"), type=not_negative)
    clip_gradient: float = setting(0.5, "maximum gradient norm of each parameter group")
    mi_lr: float = setting(1e-3, "learning rate of the auxiliary networks (CLUB)", type=not_negative)

    def learning_rate(self, epoch, step, total_steps):
        """Learning rate of a step. It depends on the position in the run only, so that a resumed run continues it.

        Args:
            epoch: the current epoch.
            step: number of steps taken before this one.
            total_steps: steps of the whole run; only used by the cosine schedule.
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "drops":
            return warm * self.lr * 0.5 ** sum(epoch >= drop for drop in self.lr_drops)
        if self.schedule == "cosine":
            done = max(step - self.warmup, 0) / max(total_steps - self.warmup, 1)
            return warm * self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return warm * self.lr


def default_decay(optimizer):
    """Default weight decay of an optimizer in OPTIMIZERS: torch's default for AdamW, else 0."""
    return 0.01 if optimizer == "adamw" else 0.0


class Optimizers:
    """The optimizers of a system.

    Args:
        system: cmg.systems.base.System.
        config: OptimConfig.

    Attributes:
        groups: name -> cmg.systems.base.Group.
        main: torch optimizer of all groups that are not auxiliary.
        auxiliary: torch optimizer of the auxiliary groups, None if there are none.
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
        groups = [{"params": list(self.groups[name].parameters.values()), "name": name} for name in names]
        return kind(groups, **options)

    def zero_grad(self):
        """Clear the gradients of the main groups. Those of the auxiliary networks are kept from their own steps."""
        self.main.zero_grad(set_to_none=True)

    @torch.no_grad()
    def clip_gradients(self):
        """Clip the gradients of every main group to a norm of `clip_gradient`.

        Returns:
            name of a group -> norm of its gradients before clipping, a scalar tensor. Auxiliary groups, which are not
            clipped, are included; groups without gradients are not.
        """
        norms = {}
        for name, group in self.groups.items():
            gradients = [parameter.grad for parameter in group.parameters.values() if parameter.grad is not None]
            if not gradients:
                continue
            norms[name] = get_total_norm(gradients)
            if group.clipped and not group.auxiliary:
                # Unlike torch's clip_grads_with_norm_, divide by the inverse: earlier versions passed it to the fused
                # optimizer as gradient scale, and float32 runs must stay bit-identical.
                scale = 1 / (self.config.clip_gradient / (norms[name] + 1e-6)).clamp(max=1.0)
                torch._foreach_div_(gradients, scale)
        return norms

    def step(self, learning_rate):
        """Update the main groups."""
        for group in self.main.param_groups:
            group["lr"] = learning_rate
        self.main.step()
