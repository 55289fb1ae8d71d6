"""One training step of DCID and H-DCID (dcid.md 3-7, h_dcid_toc.md A4)."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from engine.adam import adam_step, total_norm
from model.collectives import ALONE
from model.decoders import LinearDecoder
from model.encoders import LinearSpecificEncoder, TemporalEncoder
from systems import published
from systems.dcid import LEVEL_SUFFIX

LEARNING_RATE_DROPS = (10, 20, 30)      # epochs at which the learning rate is halved
MI_ITERATIONS = 5                       # Adam steps of the CLUB networks in each training step
# Many small operations each. The convolutions (model/conv_matmul.py) are few large products, slow to compile.
COMPILED = (TemporalEncoder, LinearSpecificEncoder, LinearDecoder)
EAGER = partial(torch.compiler.set_stance, "force_eager")       # evaluation: compiled layers mix dtypes under autocast
SECOND_LEVEL_FROM = 3                   # epoch at which the losses of H-DCID's second level start


@dataclass(frozen=True)
class Settings:
    """How a step is taken; names and choices as in configs/opts.py."""

    lr: float = 4e-4
    mi_lr: float = 1e-3
    clip_gradient: float = 0.5
    weight_decay: float = 0.0
    without: tuple = ()
    codebook_init: str = "data"
    code_reset: str = "full"
    mm_ema: str = "mean"
    mi_forward: str = "once"
    layer2_start: str = "data"
    detach_targets: bool = False
    bf16: bool = False
    compile: bool = False               # torch.compile `COMPILED`
    recompute: bool = False             # video activations in the backward pass: less memory, a third more work
    level_weights: tuple = (1.0, 0.3)


@dataclass
class Report:
    """Figures of one step as tensors on the device: reading one waits for the device."""

    losses: dict                                        # every term and "total"; second level with suffix _2
    metrics: dict                                       # accuracies, perplexities, equal_num
    likelihoods: dict = field(default_factory=dict)     # MI section -> log-likelihood before the last inner update
    grad_norms: dict = field(default_factory=dict)      # section -> norm before clipping
    outputs: list = field(default_factory=list)         # LevelOutput of the main pass


class Pretrainer:
    """A model, its optimisers and the state of its codebooks.

    Attributes:
        optimizers: "main" and one for every CLUB network, by section.
        together: the processes that share a batch (engine/distributed.py).
        started: for each level whether its codebook has left its initial state.
        before_update: called with the report of a step before it changes the main weights (monitors.Finite.look).
    """

    before_update = None

    def __init__(self, model, draws, settings, together=ALONE):
        model.to(memory_format=torch.channels_last)         # kernels as the matrices of model/conv_matmul.py
        self.model, self.draws, self.settings, self.together = model, draws, settings, together
        for module in model.modules():
            if hasattr(module, "together"):
                module.together = together
            if hasattr(module, "recompute"):
                module.recompute = settings.recompute
        if settings.compile:
            for part in model.modules():
                if isinstance(part, COMPILED):
                    part.compile()
        together.add_gradients(model.parameters())
        parameters = dict(model.named_parameters())
        grouped = published.sections(model.config, {n: v.shape for n, v in model.state_dict().items()})
        self.sections = {section: [parameters[name] for name in ours] for section, ours in grouped.items() if ours}
        main = [p for section in published.MAIN_OPTIMIZER for p in self.sections.get(section, [])]
        self.optimizers = {
            "main": torch.optim.Adam(main, settings.lr, weight_decay=settings.weight_decay, fused=True)}
        for section in self.sections:
            if section in published.MI_OPTIMIZERS:
                self.optimizers[section] = torch.optim.Adam(self.sections[section], settings.mi_lr, fused=True)
        self.started = [settings.codebook_init == "released"] * model.config.num_levels

    def learning_rate(self, epoch):
        return self.settings.lr * 0.5 ** sum(epoch >= drop for drop in LEARNING_RATE_DROPS)

    def depth(self, epoch):
        """How many levels are computed: the second rests until its losses start, except in the released form."""
        is_warm = epoch < SECOND_LEVEL_FROM and self.settings.layer2_start == "data"
        return 1 if is_warm else self.model.config.num_levels

    def step(self, batch, epoch):
        """One optimiser step on `batch`, modality -> tensor on the model's device."""
        settings, model = self.settings, self.model
        depth, with_club = self.depth(epoch), "club" not in settings.without
        trained = [number for number in range(depth) if number == 0 or epoch >= SECOND_LEVEL_FROM]
        features = model.encoder.features(batch)
        self._start_codebooks(features, depth)

        clubs, likelihoods = self.clubs(trained) if with_club else {}, {}
        if settings.mi_forward == "released":
            for _ in range(MI_ITERATIONS if with_club else 0):
                likelihoods = self._mi_steps(self._encode(features, depth), clubs, 1)
            outputs = self._encode(features, depth)
        else:
            outputs = self._encode(features, depth)
            likelihoods = self._mi_steps(outputs, clubs, MI_ITERATIONS)

        report = self.losses(outputs, trained, clubs)
        self._backward(report.losses["total"], clubs)
        report.likelihoods = likelihoods
        self._update(report, epoch)
        return report

    def evaluate(self, batch, epoch):
        """The losses of `batch` without any change of state."""
        with torch.no_grad(), EAGER():
            depth, features = self.depth(epoch), self.model.encoder.features(batch)
            with self._autocast():
                outputs = self.model.encoder(features, depth, self._with_cmcm)
            return self.losses(outputs, range(depth))

    def clubs(self, levels):
        """The CLUB networks of these levels side by side, by level; gradients there are gradients of the networks."""
        clubs = {number: self.model.objectives[number].clubs() for number in levels}
        for side_by_side in clubs.values():
            side_by_side.collect_gradients()
            self.together.add_gradients(side_by_side.tensors)
        return clubs

    def losses(self, outputs, trained, clubs=None):
        """Every term of the computed levels, and the total over the `trained` ones. Of the CLUB networks only those in
        `clubs` (as `clubs` gives them) get gradients."""
        losses, metrics, total, clubs = {}, {}, 0, clubs or {}
        for number, output in enumerate(outputs):
            objective, suffix = self.model.objectives[number], LEVEL_SUFFIX[number]
            with self._autocast():
                reconstructed = objective.reconstruct(output)
            level = objective(output, reconstructed, self.draws, self.settings.without,
                              self.settings.detach_targets and number > 0, clubs.get(number))
            losses |= {name + suffix: value for name, value in level.terms.items()}
            metrics |= {name + suffix: value for name, value in level.metrics.items()}
            if number in trained:
                total = total + self.settings.level_weights[number] * sum(level.terms.values())
        losses["total"] = total
        return Report(losses, metrics, outputs=outputs)

    @property
    def _with_cmcm(self):
        return self.model.config.system == "dcid" and "cmcm" not in self.settings.without

    def _autocast(self):
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.settings.bf16 else nullcontext()

    def _encode(self, features, depth):
        """A pass of the encoder in training: forward, then the codebooks move on."""
        with self._autocast():
            outputs = self.model.encoder(features, depth, self._with_cmcm)
        teacher = "own" if "mm_ema" in self.settings.without else self.settings.mm_ema
        reset = "off" if "reset" in self.settings.without else self.settings.code_reset
        for level, output in zip(self.model.encoder.levels, outputs):
            level.codebook.ema_step(output.semantic, output.quantized.indices, teacher)
            level.codebook.count_and_reset(output.quantized.indices, self.draws, reset)
        return outputs

    def _start_codebooks(self, features, depth):
        for number in range(depth):
            if not self.started[number]:
                was_training = self.model.training
                self.model.eval()
                with torch.no_grad(), self._autocast(), EAGER():
                    outputs = self.model.encoder(features, number + 1, False)
                self.model.train(was_training)
                self.model.encoder.levels[number].codebook.start_from(outputs[number].semantic, self.draws)
                self.started[number] = True

    def _backward(self, total, clubs):
        """Gradients of the total. Those of the MI networks join what the inner loop left, which counts once."""
        self.optimizers["main"].zero_grad(set_to_none=True)
        if not self.together.is_first:
            for side_by_side in clubs.values():
                side_by_side.zero_gradients()
        total.backward()
        self.together.finish_gradients()

    def _update(self, report, epoch):
        """Clip every section and step, unless `before_update` raises. The gradients of the MI networks have done their
        work; of them only the norm is reported."""
        norms = {section: total_norm(parameters) for section, parameters in self.sections.items()}
        report.grad_norms = {section: norm for section, norm in norms.items() if norm is not None}
        if self.before_update:
            self.before_update(report)
        main = self.optimizers["main"]
        main.param_groups[0]["lr"] = self.learning_rate(epoch)
        for section, norm in report.grad_norms.items():
            if section in published.MAIN_OPTIMIZER:
                factor = (self.settings.clip_gradient / (norm + 1e-6)).clamp(max=1.0)
                adam_step([(main, self.sections[section])], factor)

    def _mi_steps(self, outputs, clubs, iterations):
        """Adam steps of every CLUB network in `clubs` on detached features.

        The last iteration's gradients stay and join those of the bound, so that the norms before clipping are the
        published ones; the next iteration clears them (dcid.md 5).
        """
        objectives = self.model.objectives
        evidence = {number: objectives[number].evidence(outputs[number]) for number in clubs}
        sections = {number: [_mi_section(m, number) for m in objectives[number].club_order] for number in clubs}
        likelihoods = {}
        for _ in range(iterations if clubs else 0):
            for number, side_by_side in clubs.items():
                side_by_side.zero_gradients()
                likelihoods[number] = side_by_side.log_likelihoods(evidence[number])
            (-sum(values.sum() for values in likelihoods.values())).backward()
            self.together.finish_gradients()
            adam_step([(self.optimizers[section], self.sections[section])
                       for number in clubs for section in sections[number]])
            for side_by_side in clubs.values():
                side_by_side.refresh()
        return {section: value for number, values in likelihoods.items()
                for section, value in zip(sections[number], values.detach())}


def _mi_section(modality, level):
    return f"{modality.capitalize()}_mi_net{'_2' if level else ''}_parameters"
