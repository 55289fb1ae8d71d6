"""One training step of any system: encode, losses, gradients, clipping, Adam. Nothing changes in a step that is not
finite."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from cmg.models.decoders import LinearDecoder
from cmg.models.encoders import LinearSpecificEncoder, TemporalEncoder
from cmg.training.adam import adam_step, start_state, total_norm
from cmg.training.rollback import Rollback
from cmg.utils.collectives import ALONE
from cmg.utils.settings import not_negative, setting

LEARNING_RATE_DROPS = (10, 20, 30)      # epochs, as published
# Many small operations each. The convolutions (cmg/models/map_conv.py) are few large products, slow to compile.
COMPILED = (TemporalEncoder, LinearSpecificEncoder, LinearDecoder)
EAGER = partial(torch.compiler.set_stance, "force_eager")       # evaluation: compiled layers mix dtypes under autocast


@dataclass(frozen=True)
class Settings:
    """How a step is taken."""

    lr: float = setting(4e-4, "Adam's learning rate")
    lr_drops: tuple = setting(LEARNING_RATE_DROPS, "epochs at which it is halved", type=int)
    mi_lr: float = setting(1e-3, "learning rate of the auxiliary networks (CLUB)", type=not_negative)
    clip_gradient: float = setting(0.5, "largest gradient norm of a group of parameters")
    weight_decay: float = setting(0.0, "Adam's weight decay", flags=("--weight_decay", "--wd"))
    recompute: bool = setting(False, "less memory: compute the video convolutions again in the backward pass",
                              decisive=False)
    bf16: bool = False
    compile: bool = False               # torch.compile `COMPILED`


@dataclass
class Report:
    """Figures of one step as tensors on the device: reading one waits for the device."""

    losses: dict                                        # name -> every term, and "total"
    metrics: dict                                       # accuracies, perplexities, equal_num
    inner: dict = field(default_factory=dict)           # figures of the inner steps
    grad_norms: dict = field(default_factory=dict)      # group -> norm before clipping
    outputs: object = None                              # of the system's last pass


class Trainer:
    """A system, its optimisers, and the gate that keeps a step that is not finite out of all of them.

    Args:
        system: cmg.systems.base.System; trained in place.
        draws: cmg.models.random.Draws.
        settings: Settings.
        together: the processes that share a batch (cmg/utils/dist.py).

    Attributes:
        groups: name -> cmg.systems.base.Group.
        optimizers: name -> Adam: "main", and one for each auxiliary group, by the group's name.
        before_update: called with the report of a step before it changes the main weights (monitors.Finite.look).
    """

    before_update = None

    def __init__(self, system, draws, settings, together=ALONE):
        system.to(memory_format=torch.channels_last)        # kernels as the matrices of cmg/models/map_conv.py
        self.system, self.draws, self.settings, self.together = system, draws, settings, together
        device = next(system.parameters()).device.type
        system.autocast = partial(torch.autocast, device, torch.bfloat16) if settings.bf16 else nullcontext
        for module in system.modules():
            if hasattr(module, "together"):
                module.together = together
            if hasattr(module, "recompute"):
                module.recompute = settings.recompute
            if settings.compile and isinstance(module, COMPILED):
                module.compile()
        together.add_gradients(system.parameters())
        self.groups = {group.name: group for group in system.parameter_groups()}
        members = {}
        for group in self.groups.values():
            members.setdefault("main" if group.optimizer == "main" else group.name, []).extend(
                group.parameters.values())
        self.optimizers = {
            name: torch.optim.Adam(parameters, settings.mi_lr, fused=True) if name != "main" else
            torch.optim.Adam(parameters, settings.lr, weight_decay=settings.weight_decay, fused=True)
            for name, parameters in members.items()}
        auxiliary = [(self.optimizers[name], members[name]) for name in members if name != "main"]
        for optimizer, parameters in auxiliary:
            start_state(optimizer, parameters)
        self.rollback = Rollback(system, auxiliary, getattr(draws, "generator", None))

    def learning_rate(self, epoch):
        return self.settings.lr * 0.5 ** sum(epoch >= drop for drop in self.settings.lr_drops)

    def step(self, batch, epoch):
        """One optimiser step on `batch`, modality -> tensor on the system's device."""
        self.rollback.keep()
        features = self.system.features(batch)
        self.system.start_codebooks(features, epoch, self.draws)
        outputs, inner = self.system.training_pass(features, epoch, self.draws, self._step_auxiliary)
        report = self._losses(outputs, epoch)
        report.inner = inner
        self._backward(report.losses["total"])
        self._update(report, epoch)
        return report

    def evaluate(self, batch, epoch):
        """The losses of `batch` without any change of state."""
        with torch.no_grad(), EAGER():
            return self._losses(self.system.encode(self.system.features(batch), epoch), epoch)

    def _losses(self, outputs, epoch):
        """Every term, and the total: terms of one weight are added up before they are multiplied with it."""
        found, weights, sums = self.system.losses(outputs, self.draws), self.system.weights(epoch), {}
        losses = {}
        for kind, name, value in found.named():
            losses[name] = value
            if weights[kind]:
                sums[weights[kind]] = sums.get(weights[kind], 0) + value
        losses["total"] = sum(weight * value for weight, value in sums.items())
        return Report(losses, found.metrics, outputs=outputs)

    def _backward(self, total):
        """Gradients of the total; those of auxiliary networks join what their inner steps left."""
        self.optimizers["main"].zero_grad(set_to_none=True)
        total.backward()
        self.together.finish_gradients()

    def _update(self, report, epoch):
        """Clip every group to its norm and step, unless the step is not finite. The gradients of auxiliary networks
        have done their work; of them only the norm is reported."""
        norms = {name: total_norm(group.parameters.values()) for name, group in self.groups.items()}
        report.grad_norms = {name: norm for name, norm in norms.items() if norm is not None}
        is_refused = self.rollback.judge([*report.losses.values(), *report.grad_norms.values()])
        if self.before_update:
            self.before_update(report)
        if is_refused:
            return
        main = self.optimizers["main"]
        main.param_groups[0]["lr"] = self.learning_rate(epoch)
        for name, norm in report.grad_norms.items():
            group = self.groups[name]
            if group.optimizer == "main":
                factor = (self.settings.clip_gradient / (norm + 1e-6)).clamp(max=1.0) if group.clipped else None
                adam_step([(main, list(group.parameters.values()))], factor, self.rollback.found_inf)

    def _step_auxiliary(self, names):
        """A step of these groups' own Adams with the gradients that are there."""
        adam_step([(self.optimizers[name], list(self.groups[name].parameters.values())) for name in names])
