"""Interface of a system, used by training, checkpoints, downstream tasks and reports.

Each system is one file in this folder. It encodes a batch, updates its codebooks and returns named losses;
cmg/training/step.py computes their weighted sum and takes the optimizer step. Downstream tasks use its encoder.
Everything from the batch to the losses is a dict keyed by modality.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cmg.models.blocks import Blocks
from cmg.models.config import MODALITIES, Config, in_order
from cmg.models.masking import Features, mean_of_clips
from cmg.models.random import StepRandom
from cmg.systems.settings import BaseConfig, Declaration
from cmg.systems.state_dicts import rules
from cmg.systems.state_dicts.rules import EXTRA_SECTION


@dataclass
class Losses:
    """Result of `System.losses`.

    Attributes:
        terms: kind of loss (a key of `System.TERMS`) -> scalar, or a dict modality -> scalar.
        metrics: name -> scalar that is only logged.
    """

    terms: dict[str, Tensor | dict[str, Tensor]]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (kind, name in the log, scalar) for every term; names look like "cpc" or "audio_recon"."""
        for kind, value in self.terms.items():
            for modality, scalar in value.items() if isinstance(value, dict) else [("", value)]:
                yield kind, f"{modality}_{kind}" if modality else kind, scalar


@dataclass
class Group:
    """Parameters whose gradients are clipped together, by their joint norm.

    Attributes:
        name: name in the log, and section in files of the parameters that have a published name.
        parameters: our name -> parameter.
        auxiliary: updated by the auxiliary optimizer, which only steps within `System.training_pass`.
        clipped: whether the gradients are clipped.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    auxiliary: bool = False
    clipped: bool = True


@dataclass
class Codes:
    """Codes of a batch of one modality, for downstream tasks."""

    vectors: Tensor     # (B, T, head_dim)
    indices: Tensor     # (B, T) int64, or (B, T, L) if each second has one code per codebook, L in all


def to_seconds(features: dict[str, Tensor], config: Config, mask: Tensor | None = None) -> Features:
    """Align tokens with the seconds of the other modalities, for losses and codebooks in training.

    Tokens have a length L of their own. Second j takes token floor(j * L / T) of the encoder's input, which has seen
    the whole sentence; with L = T, as published, it is token j. If the batch has a mask, T is the number of seconds of
    each clip. Downstream, tokens keep their length L.

    Args:
        features: modality -> (B, T, ...), or (B, L, ...) of tokens.
        config: config of the system.
        mask: mask of the seconds (cmg/models/masking.py).

    Returns:
        Features, modality -> (B, T, ...).
    """
    seconds = next(x.shape[1] for m, x in features.items() if config.kind(m) != "tokens")
    found = Features(features, mask)
    for modality in (m for m in features if config.kind(m) == "tokens"):
        x = features[modality]
        scaled = torch.arange(seconds, device=x.device) * x.shape[1]
        if mask is not None:
            tokens = (scaled // mask.sum(1, keepdim=True)).clamp_max(x.shape[1] - 1)         # (B, T)
            found[modality] = x.gather(1, tokens.unsqueeze(2).expand(-1, -1, x.shape[2]))
        elif seconds != x.shape[1]:
            found[modality] = x[:, scaled // seconds]
    return found


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Context manager that disables autocast, for everything that determines codes; `x` is a tensor on the device."""
    return torch.autocast(x.device.type, enabled=False)


class Encoder(nn.Module):
    """The part of a system that downstream tasks use.

    Args:
        config: cmg.models.config.Config of the system.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @property
    def head_dim(self) -> int:
        """Width of the code vectors, the input of heads."""
        return sum(codes.shape[1] for codes in self.codebooks)

    @property
    def codebooks(self) -> Sequence[Tensor]:
        """The code vectors (K, D) of every codebook, in the order in which heads receive them."""
        raise NotImplementedError

    def add_lstms(self) -> None:
        """Add an LSTM `<modality>_lstm` for every modality of tokens."""
        for modality in self.config.modalities:
            if self.config.kind(modality) == "tokens":
                self.add_module(f"{modality}_lstm", Blocks(self.config, modality).lstm())

    def add_standardization(self) -> None:
        """Add the buffers for --standardize channel for every modality of vectors or maps, initialized to the
        identity."""
        for modality in self.config.modalities if self.config.standardize == "channel" else ():
            if self.config.kind(modality) != "tokens":
                channels = self.config.shape(modality)[-1]
                self.register_buffer(f"{modality}_mean", torch.zeros(channels))
                self.register_buffer(f"{modality}_deviation", torch.ones(channels))

    def standardize(self, statistics: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Set the statistics of the training features, modality -> (mean (C,), standard deviation (C,)). Constant
        channels are only centered."""
        for modality, (mean, deviation) in statistics.items():
            getattr(self, f"{modality}_mean").copy_(mean)
            floor = torch.finfo(self.codebooks[0].dtype).eps * mean.abs().clamp_min(1)
            getattr(self, f"{modality}_deviation").copy_(torch.where(deviation > floor, deviation, 1.0))

    def inputs(self, modality: str, x: Tensor) -> Tensor:
        """Input of a modality's semantic encoder: features (B, T, ...), standardized if configured; for tokens
        (B, L, W), the output (B, L, 2 * text_hidden) of their LSTM if there is one."""
        mean, lstm = getattr(self, f"{modality}_mean", None), getattr(self, f"{modality}_lstm", None)
        with full_precision(x):
            if mean is not None:
                x = (x - mean) / getattr(self, f"{modality}_deviation")
            return lstm(x)[0] if lstm else x

    def embed_inputs(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Codes:
        """`Codes` of the result of `inputs`, with a straight-through gradient to it.

        `mask` is a mask of the seconds (cmg/models/masking.py), here and below; codes of padded seconds are undefined.
        """
        raise NotImplementedError

    def embed_clips(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector per clip, (B, head_dim), for retrieval without a head: the mean of the codes of its seconds."""
        return mean_of_clips(self.embed_inputs(modality, inputs, mask).vectors, mask)


class FrozenEncoder(nn.Module):
    """The encoder of a checkpoint, in evaluation mode and with frozen parameters: raw features in, codes out.

    Attributes:
        encoder: Encoder of the system.
        config: sizes and modalities of the system.
        epoch: epoch of the checkpoint, None if it was never trained.
        system: class of the system.
        zero_code0: code 0 is set to zero, as in the published evaluation of MICU.
        features: modality -> origin of the features it was pretrained on (cmg/data/origins.py); None if unknown.
        pretraining: information about the run from the checkpoint: "options" that affect results, "clips" as plain
            data, and "hashes" of their names (cmg.data.clips.name_hashes); {} if unknown.
    """

    def __init__(self, encoder: Encoder, system: type["System"], epoch: int | None = None, zero_code0: bool = False,
                 features: dict[str, Any] | None = None, pretraining: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.encoder, self.pretraining = encoder.requires_grad_(False), pretraining or {}
        self.config, self.system, self.epoch, self.zero_code0 = encoder.config, system, epoch, zero_code0
        self.features = features
        if zero_code0:
            for codes in encoder.codebooks:
                codes[0] = 0
        super().train(False)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Has no effect, so that a user's model that contains the encoder does not turn dropout on."""
        return self

    def set_dropout(self, on: bool) -> None:
        """Turn dropout on, as in protocol="released", or off."""
        self.encoder.train(on)

    @property
    def head_dim(self) -> int:
        """Width of the vectors that `embed` returns."""
        return self.encoder.head_dim

    @property
    def codebooks(self) -> Sequence[Tensor]:
        """Code vectors (K, D) of every codebook."""
        return self.encoder.codebooks

    def inputs(self, modality: str, x: Tensor) -> Tensor:
        """Input of a modality's semantic encoder, given raw features; see `Encoder.inputs`."""
        self._require(modality)
        return self.encoder.inputs(modality, x.to(self.codebooks[0]))

    def embed_inputs(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Codes:
        """`Codes` of the result of `inputs`; see `Encoder.embed_inputs`."""
        self._require(modality)
        return self.encoder.embed_inputs(modality, inputs, mask)

    def embed(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Codes:
        """`Codes` of raw features: vectors (B, T, W), maps (B, T, H, W, C), tokens (B, L, W)."""
        with torch.no_grad():
            return self.embed_inputs(modality, self.inputs(modality, x), mask)

    def embed_clips(self, modality: str, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector per clip, (B, head_dim), of raw features; see `Encoder.embed_clips`."""
        with torch.no_grad():
            return self.encoder.embed_clips(modality, self.inputs(modality, x), mask)

    def _require(self, modality: str) -> None:
        if modality not in self.config.modalities:
            raise ValueError(f"this encoder was pretrained on {', '.join(self.config.modalities)}, not on {modality}")


class System(Declaration, nn.Module):
    """The encoder and everything that only training needs.

    A subclass inherits from its declaration (cmg/systems/settings.py), sets the class attributes, builds its modules in
    `__init__(config)` and overrides the methods below.
    Every parameter is optimized, clipped and saved; those that match no prefix of GROUPS form a group of their own.

    Class attributes:
        ORDER: modalities that come first in GROUPS, AUXILIARY and the CLUB networks; others follow.
        GROUPS: prefix of our parameter names -> name of the group; the first match counts. {m} and {M} stand for every
            modality.
        AUXILIARY: groups of the auxiliary optimizer -> name of their optimizer section in files; {m}, {M} as in GROUPS.
        UNCLIPPED: groups whose gradients are not clipped.
        KEY_RULES: table of published names (cmg/systems/state_dicts/rules.py), empty if there are no published files.
        TOC_RELEASED: task -> (source, target) -> (choose_channel, toc_max_num, toc_min_num) of the published scripts,
            followed by the terms of the criterion (cmg/models/toc.py) if the scripts choose them.

    Attributes:
        options: an instance of Options.
        initialized: for each codebook, whether it has been initialized.
        autocast: context manager in which matrix products may use bf16.
    """

    GROUPS: ClassVar[dict[str, str]] = {}
    AUXILIARY: ClassVar[dict[str, str]] = {}
    UNCLIPPED: ClassVar[Sequence[str]] = ()
    KEY_RULES: ClassVar[Sequence[rules.KeyRule]] = ()
    TOC_RELEASED: ClassVar[dict[str, dict[tuple[str, str], tuple[Any, ...]]]] = {}
    ORDER: ClassVar[tuple[str, ...]] = MODALITIES
    encoder: Encoder

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config, self.options = config, self.Options()
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.initialized: list[bool] = []

    # ---------------------------------------------------------------------------------------- what a system computes
    def features(self, batch: dict[str, Tensor]) -> Features:
        """Input of `encode`, given a batch modality -> (B, T, ...); computed once per step.

        With --padding mask, the batch includes the mask of the seconds as "mask".
        """
        return Features({m: self.encoder.inputs(m, batch[m]) for m in self.config.modalities}, batch.get("mask"))

    def encode(self, features: Features, epoch: int) -> Any:
        """One pass of the encoder, without changes of state; its outputs are passed to the other methods."""
        raise NotImplementedError

    def init_codebooks(self, features: Features, epoch: int, rng: StepRandom) -> None:
        """Initialize the codebooks that are used in this epoch and have not been initialized yet."""

    def update_codebooks(self, outputs: Any, rng: StepRandom) -> None:
        """Update the codebooks after a training pass: moving averages and resets."""
        raise NotImplementedError

    def training_pass(self, features: Features, epoch: int, rng: StepRandom,
                      auxiliary: torch.optim.Optimizer | None) -> tuple[Any, dict[str, Tensor]]:
        """The encoder passes of one training step, with codebook updates and the steps of the auxiliary optimizer.

        Args:
            features: result of `features`.
            epoch: the current epoch.
            rng: cmg.models.random.StepRandom.
            auxiliary: torch optimizer of the AUXILIARY groups, None if there are none.

        Returns:
            (outputs for `losses`, name -> log-likelihood of an auxiliary network).
        """
        outputs = self.encode(features, epoch)
        self.update_codebooks(outputs, rng)
        return outputs, {}

    def losses(self, outputs: Any, rng: StepRandom) -> Losses:
        """`Losses` of a pass."""
        raise NotImplementedError

    def weights(self, epoch: int) -> dict[str, float]:
        """Kind of loss -> its weight in the total."""
        weights = {kind: term.weight for kind, term in self.TERMS.items()} | dict(self.options.weights)
        return {kind: 0.0 if self._switch(kind) in self.options.without else weight for kind, weight in weights.items()}

    # ----------------------------------------------------------------------------------------- what others ask about
    @property
    def codebooks(self) -> dict[str, Any]:
        """Suffix of names in the log -> codebook with `embedding`, `ema_count` and `unactivated_count`."""
        raise NotImplementedError

    def assigned_codes(self, outputs: Any) -> dict[str, dict[str, Tensor]]:
        """Suffix of names in the log -> modality -> codes assigned in a pass: (B, T), or (n,) under a mask."""
        raise NotImplementedError

    def level_outputs(self, outputs: Any) -> dict[str, Any]:
        """Suffix of names in the log -> output of a level with `inputs` and `semantic`, dicts keyed by modality. If
        this is empty, the monitors do not check the spread of the features."""
        return {}

    def mark_initialized(self) -> None:
        """Set `initialized` after loading a published file, which does not contain it."""
        self.initialized = [True] * len(self.codebooks)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context manager for initializing codebooks: evaluation mode, without gradients or compiled layers."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.train(was_training)

    def is_on(self, switch: str) -> bool:
        """Whether a component is used, i.e. neither disabled by --without nor set to weight 0."""
        given = dict(self.options.weights)
        zero = {kind for kind in self.TERMS if self._switch(kind) == switch and given.get(kind) == 0}
        return switch not in self.options.without and (not zero or any(
            given.get(kind, term.weight) for kind, term in self.TERMS.items() if self._switch(kind) == switch))

    @property
    def order(self) -> tuple[str, ...]:
        """The modalities, those of ORDER first."""
        return in_order(self.config.modalities, self.ORDER)

    @property
    def auxiliary(self) -> dict[str, str]:
        """AUXILIARY, expanded for this system's modalities."""
        return rules.expand(self.AUXILIARY, self.order)

    def parameter_groups(self) -> list[Group]:
        """All parameters as a list of `Group`, in the order of GROUPS.

        Within a group, parameters with a published name come first, in their published order, so that gradient norms
        are summed as in the published program.
        """
        rank = {name: number for number, name in enumerate(rules.our_names(self))}
        groups: dict[str, Group] = {}
        auxiliary = self.auxiliary
        prefixes = rules.expand(self.GROUPS, self.order)
        for name, parameter in sorted(self.named_parameters(), key=lambda item: rank.get(item[0], len(rank))):
            group = next((group for prefix, group in prefixes.items() if name.startswith(prefix)), EXTRA_SECTION)
            groups.setdefault(group, Group(group, {}, group in auxiliary, group not in self.UNCLIPPED))
            groups[group].parameters[name] = parameter
        order = [*dict.fromkeys(prefixes.values()), EXTRA_SECTION]
        return [groups[name] for name in order if name in groups]
