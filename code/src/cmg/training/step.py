"""One training step of any system, in the order in which it is executed."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from cmg.models.decoders import LinearDecoder
from cmg.models.encoders import LinearSpecificEncoder, TemporalEncoder
from cmg.training.optim import Optimizers
from cmg.training.settings import StepConfig
from cmg.utils import dist

# Modules with many small operations. The convolutions (cmg/models/map_conv.py) are a few large products and slow to
# compile.
COMPILED = (TemporalEncoder, LinearSpecificEncoder, LinearDecoder)
DEFAULT = StepConfig()
EAGER = partial(torch.compiler.set_stance, "force_eager")   # for evaluation: compiled layers mix dtypes under autocast


@dataclass
class StepOutput:
    """Values of one step as tensors on the device; reading one synchronizes with the device."""

    losses: dict                                        # name -> loss, including "total"
    metrics: dict                                       # accuracies, perplexities, equal_num
    likelihoods: dict = field(default_factory=dict)     # log-likelihoods of the CLUB networks in their last own step
    grad_norms: dict = field(default_factory=dict)      # group -> gradient norm before clipping
    learning_rate: float = None
    outputs: object = None                              # of the system's last pass


class TrainStep:
    """A system and its optimizers.

    Args:
        system: cmg.systems.base.System; trained in place.
        rng: cmg.models.random.StepRandom.
        optim_config, step_config: OptimConfig, StepConfig.
        total_steps: steps of the whole run, for --schedule cosine.

    Attributes:
        optimizers: cmg.training.optim.Optimizers.
        before_update: called with the StepOutput before the main weights change (monitors.FiniteCheck.check).
    """

    before_update = None

    def __init__(self, system, rng, optim_config, step_config=DEFAULT, total_steps=None):
        system.to(memory_format=torch.channels_last)        # store kernels as the matrices of cmg/models/map_conv.py
        self.system, self.rng, self.config, self.total_steps = system, rng, optim_config, total_steps
        device = next(system.parameters()).device.type
        system.autocast = partial(torch.autocast, device, torch.bfloat16) if step_config.bf16 else nullcontext
        for module in system.modules():
            if hasattr(module, "recompute"):
                module.recompute = step_config.recompute
            if step_config.compile and isinstance(module, COMPILED):
                module.compile()
        dist.sum_gradients(system.parameters())
        self.optimizers = Optimizers(system, optim_config)

    def step(self, batch, epoch, step=0):
        """Take one step.

        Args:
            batch: modality -> tensor (B, T, ...) on the system's device.
            epoch: the current epoch.
            step: number of steps taken before this one.

        Returns:
            StepOutput.
        """
        system, optimizers = self.system, self.optimizers
        features = system.features(batch)
        system.init_codebooks(features, epoch, self.rng)                    # only on the first batch
        # forward pass, codebook update, and the CLUB networks' own steps; see the file of the system
        outputs, likelihoods = system.training_pass(features, epoch, self.rng, optimizers.auxiliary)
        output = self.losses(outputs, epoch)
        output.likelihoods = likelihoods
        optimizers.zero_grad()
        output.losses["total"].backward()
        dist.wait_gradients()
        output.grad_norms = optimizers.clip_gradients()
        output.learning_rate = self.config.learning_rate(epoch, step, self.total_steps)
        if self.before_update:
            self.before_update(output)                                      # raises if a value is not finite
        optimizers.step(output.learning_rate)
        return output

    def losses(self, outputs, epoch):
        """StepOutput with all losses of a pass and their total. Losses with the same weight are summed before
        multiplication, because the rounding of published results depends on it."""
        found, weights, sums = self.system.losses(outputs, self.rng), self.system.weights(epoch), {}
        losses = {}
        for kind, name, value in found.named():
            losses[name] = value
            if weights[kind]:
                sums[weights[kind]] = sums.get(weights[kind], 0) + value
        losses["total"] = sum(weight * value for weight, value in sums.items())
        return StepOutput(losses, found.metrics, outputs=outputs)

    def evaluate(self, batch, epoch):
        """StepOutput with the losses of `batch`, without changing any state."""
        with torch.no_grad(), EAGER():
            return self.losses(self.system.encode(self.system.features(batch), epoch), epoch)
