"""Parameter groups, optimizers and learning rate schedule for pretraining.

The main optimizer has a torch parameter group for each of the system's groups (`System.parameter_groups`). The CLUB
networks have their own optimizer, which steps within the training pass. Published settings: Adam with learning rate
4e-4, halved at epochs 10, 20 and 30, gradient norm of each group clipped to 0.5, and Adam with 1e-3 for CLUB.
"""

from inspect import signature

import torch
from torch.nn.utils import get_total_norm

from cmg.training.settings import OPTIMIZERS, default_decay


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
        self.main = self._build(getattr(torch.optim, OPTIMIZERS[config.optimizer]),
                                [name for name in self.groups if name not in auxiliary],
                                lr=config.lr, weight_decay=decay)
        self.auxiliary = self._build(torch.optim.Adam, auxiliary, lr=config.mi_lr) if auxiliary else None

    def _build(self, kind, names, **options):
        if "fused" in signature(kind).parameters:
            options["fused"] = True
        groups = [{"params": list(self.groups[name].parameters.values()), "name": name} for name in names]
        return kind(groups, **options)

    def zero_grad(self):
        """Clear the gradients of the main groups. The auxiliary networks keep the gradients of their own steps."""
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
                # Unlike torch's clip_grads_with_norm_, divide by the inverse. Earlier versions passed it to the fused
                # optimizer as the gradient scale, and float32 runs must stay bit-identical.
                scale = 1 / (self.config.clip_gradient / (norms[name] + 1e-6)).clamp(max=1.0)
                torch._foreach_div_(gradients, scale)
        return norms

    def step(self, learning_rate):
        """Update the main groups."""
        for group in self.main.param_groups:
            group["lr"] = learning_rate
        self.main.step()
