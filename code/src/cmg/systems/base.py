"""The contract of a system: all that training, checkpoints, downstream tasks and reports know of it.

A system is one file of this folder. It encodes a batch, updates its codebooks, and gives named loss terms;
cmg/training/step.py adds them up with their weights and takes the optimizer step. Its encoder is what downstream tasks
use. Everything from the batch to the losses is a dict over modalities.
"""

import argparse
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cmg.models.blocks import Blocks
from cmg.models.config import MODALITIES, Config, in_order, short
from cmg.models.masking import Features, mean_of_clips
from cmg.systems.state_dicts import rules
from cmg.systems.state_dicts.rules import EXTRA_SECTION
from cmg.utils.settings import not_negative, setting

COMPARE_CLIPS = ("club", "cpc", "cmcm", "contrast", "infonce", "fcmi_coarse")     # losses; zero for a single clip


@dataclass(frozen=True)
class Term:
    """A kind of loss.

    Attributes:
        weight: in the total, unless --weights gives another; a term of weight 0 is computed for the log alone, or not at
            all.
        switch: its name for --without; default: its key in `System.TERMS`.
        label: in tables and pictures.
    """

    weight: float = 1.0
    switch: str = ""
    label: str = ""


@dataclass
class Losses:
    """What `System.losses` gives.

    Attributes:
        terms: kind of loss (a key of `System.TERMS`) -> scalar, or a dict modality -> scalar.
        metrics: name -> scalar that is only reported.
    """

    terms: dict
    metrics: dict = field(default_factory=dict)

    def named(self):
        """(kind, name in the log, scalar) of every term: "cpc", "audio_recon"."""
        for kind, value in self.terms.items():
            for modality, scalar in value.items() if isinstance(value, dict) else [("", value)]:
                yield kind, f"{modality}_{kind}" if modality else kind, scalar


@dataclass
class Group:
    """Parameters that are clipped together, to one norm.

    Attributes:
        name: in the log, and the section of the file for those with a published name.
        parameters: our name -> parameter.
        auxiliary: the auxiliary optimizer updates them, which steps only within `System.training_pass`.
        clipped: False: its gradient counts whatever its norm is.
    """

    name: str
    parameters: dict
    auxiliary: bool = False
    clipped: bool = True


@dataclass
class Codes:
    """Codes of a batch of one modality, as downstream tasks get them."""

    vectors: Tensor     # (B, T, head_dim)
    indices: Tensor     # (B, T) int64; (B, T, number of codebooks) where a second has a code of each


def to_seconds(features, config, mask=None):
    """`Features`: what the encoders read of all modalities, side by side in time, as losses and codebooks compare it in
    training.

    Text has its own length L, that of its words, and no seconds: second j takes token floor(j * L / T) of what the text
    encoder reads, which has seen the whole sentence; with L = T, as published, it is the token of the same number. T
    is the clip's own number of seconds where the batch has a mask. Downstream, text keeps its L tokens. So do other
    tokens.

    Args:
        features: modality -> (B, T, ...), of tokens (B, L, ...).
        config: of the system.
        real: mask of the seconds (cmg/models/masking.py).
    """
    seconds = next(x.shape[1] for m, x in features.items() if config.kind(m) != "tokens")
    found = Features(features, mask)
    for modality in (m for m in features if config.kind(m) == "tokens"):
        x = features[modality]
        places = torch.arange(seconds, device=x.device) * x.shape[1]
        if mask is not None:
            tokens = (places // mask.sum(1, keepdim=True)).clamp_max(x.shape[1] - 1)         # (B, T)
            found[modality] = x.gather(1, tokens.unsqueeze(2).expand(-1, -1, x.shape[2]))
        elif seconds != x.shape[1]:
            found[modality] = x[:, places // seconds]
    return found


def full_precision(x):
    """A context in which what becomes codes keeps the precision of its weights, under autocast too."""
    return torch.autocast(x.device.type, enabled=False)


class Encoder(nn.Module):
    """The part of a system that downstream tasks use.

    Attributes:
        config: sizes and modalities.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def head_dim(self):
        """Width of the vectors that heads see."""
        return sum(codes.shape[1] for codes in self.codebooks)

    @property
    def codebooks(self):
        """The code vectors (K, D) of every codebook, in the order in which a head's vector holds them."""
        raise NotImplementedError

    def add_lstms(self):
        """Give every modality of tokens the LSTM that reads them: `<modality>_lstm`."""
        for modality in self.config.modalities:
            if self.config.kind(modality) == "tokens":
                self.add_module(f"{modality}_lstm", Blocks(self.config, modality).lstm())

    def add_standardization(self):
        """Give every modality of vectors or maps the buffers of --standardize channel: the identity until `standardize`."""
        for modality in self.config.modalities if self.config.standardize == "channel" else ():
            if self.config.kind(modality) != "tokens":
                channels = self.config.shape(modality)[-1]
                self.register_buffer(f"{modality}_mean", torch.zeros(channels))
                self.register_buffer(f"{modality}_deviation", torch.ones(channels))

    def standardize(self, statistics):
        """Take over modality -> (mean (C,), deviation (C,)) of the training features; a constant channel is only
        centered."""
        for modality, (mean, deviation) in statistics.items():
            getattr(self, f"{modality}_mean").copy_(mean)
            floor = torch.finfo(self.codebooks[0].dtype).eps * mean.abs().clamp_min(1)
            getattr(self, f"{modality}_deviation").copy_(torch.where(deviation > floor, deviation, 1.0))

    def inputs(self, modality, x):
        """What the semantic encoder of a modality reads: features (B, T, ...), standardized if the config says so, or
        tokens (B, L, W) through their LSTM where there is one, (B, L, 2 * text_hidden)."""
        mean, lstm = getattr(self, f"{modality}_mean", None), getattr(self, f"{modality}_lstm", None)
        with full_precision(x):
            if mean is not None:
                x = (x - mean) / getattr(self, f"{modality}_deviation")
            return lstm(x)[0] if lstm else x

    def embed_inputs(self, modality, inputs, mask=None):
        """`Codes` of what `inputs` gives; their gradient passes straight through to `inputs`.

        `mask`: mask of the seconds (cmg/models/masking.py), here and below; codes of padded ones mean nothing.
        """
        raise NotImplementedError

    def embed_clips(self, modality, inputs, mask=None):
        """One vector per clip, (B, head_dim), for retrieval without a head: the mean of its seconds' codes."""
        return mean_of_clips(self.embed_inputs(modality, inputs, mask).vectors, mask)


class FrozenEncoder(nn.Module):
    """The encoder of a checkpoint in evaluation mode and without gradients of its own: raw features in, codes out.

    Attributes:
        config: sizes and modalities of the system.
        epoch: epoch of the checkpoint, None if it was never trained.
        system: class of the system.
        zero_code0: code 0 is the zero vector, as in the published evaluation of MICU.
        features: modality -> what it was pretrained on (cmg/data/origins.py); None where the file does not say it.
    """

    def __init__(self, encoder, system, epoch=None, zero_code0=False, features=None):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.config, self.system, self.epoch, self.zero_code0 = encoder.config, system, epoch, zero_code0
        self.features = features
        if zero_code0:
            for codes in encoder.codebooks:
                codes[0] = 0
        self.eval()

    @property
    def head_dim(self):
        """Width of the vectors that `embed` gives."""
        return self.encoder.head_dim

    @property
    def codebooks(self):
        """Code vectors of every codebook, (K, D) each."""
        return self.encoder.codebooks

    def inputs(self, modality, x):
        """What the semantic encoder of a modality reads, of raw features; see `Encoder.inputs`."""
        self._require(modality)
        return self.encoder.inputs(modality, x.to(self.codebooks[0]))

    def embed_inputs(self, modality, inputs, mask=None):
        """`Codes` of what `inputs` gives, with a straight-through gradient to it; see `Encoder.embed_inputs`."""
        self._require(modality)
        return self.encoder.embed_inputs(modality, inputs, mask)

    def embed(self, modality, x, mask=None):
        """`Codes` of raw features: vectors (B, T, W), maps (B, T, H, W, C), tokens (B, L, W)."""
        with torch.no_grad():
            return self.embed_inputs(modality, self.inputs(modality, x), mask)

    def embed_clips(self, modality, x, mask=None):
        """One vector per clip, (B, head_dim), of raw features; see `Encoder.embed_clips`."""
        with torch.no_grad():
            return self.encoder.embed_clips(modality, self.inputs(modality, x), mask)

    def _require(self, modality):
        if modality not in self.config.modalities:
            raise ValueError(f"this encoder was pretrained on {', '.join(self.config.modalities)}; no {modality}")


def weight_argument(text):
    """Argument type of --weights: KIND=W."""
    kind, _, weight = text.partition("=")
    if not kind:
        raise argparse.ArgumentTypeError(f"'{text}' is not KIND=W, such as cpc=0.5")
    return kind, not_negative(weight)


@dataclass(frozen=True)
class Options:
    """Settings of every system; a system adds its own in a subclass. Each is an argument of pretrain.py."""

    without: tuple = setting((), "leave components out (ablation, NeurIPS 2023, Tables 2 and 3): losses, as with weight "
                             "0, and parts that are no loss; a wrong name lists those of the system")
    weights: tuple = setting((), "weights of losses in the total, by their names in the log without the modality: "
                             "cpc=0.5 contrast=3; a wrong name lists those of the system", type=weight_argument,
                             nargs="+", action="extend", metavar="KIND=W")


@dataclass(frozen=True)
class CodebookOptions(Options):
    """How a codebook with moving averages is initialized and reset."""

    codebook_init: str = setting("data", "start codes from the first batch's features, or as published",
                                 choices=("data", "released"))
    code_reset: str = setting("full", "reset count and weight with the code, or the code alone as published",
                              choices=("full", "released"))


class System(nn.Module):
    """Encoder and everything that only training needs.

    A subclass sets the class attributes, builds its parts in `__init__(config)` and overrides the methods below.
    Every parameter is optimised, clipped and saved: those that match no prefix of GROUPS are a group of their own.

    Class attributes:
        name: for --system and in files.
        label: for people.
        FILE: name of its checkpoints, {} standing for the epoch, {modalities} for their initials; see `file`.
        EPOCHS: of pretraining, as published.
        Config, Options: dataclasses of its sizes and of its settings.
        TERMS: kind of loss -> Term, in the order in which they are added up.
        SWITCHES: further names for --without -> label, of what is no loss.
        ORDER: modalities that come first wherever GROUPS, AUXILIARY and CLUB networks go through them; others follow.
        GROUPS: prefix of our parameter names -> name of the group; the first that fits counts. {m}, {M} in it stand for
            every modality.
        AUXILIARY: groups of the auxiliary optimizer -> name of their optimizer section in files; {m}, {M} as in GROUPS.
        UNCLIPPED: groups whose gradients are not clipped.
        PARTS: table of published names (cmg/systems/state_dicts/rules.py); empty: no published file exists.
        TOC_RELEASED: task -> (source, target) -> (choose_channel, toc_max_num, toc_min_num) of the published scripts,
            and the criterion's terms (cmg/models/toc.py) where they say which.

    Attributes:
        options: an instance of Options.
        initialized: for each codebook whether it has left its initial state.
        autocast: makes the context in which matrix products may run in 16 bits.
    """

    Config, Options = Config, Options
    name = label = FILE = ""
    EPOCHS = 6
    TERMS, SWITCHES, GROUPS, AUXILIARY, UNCLIPPED, KEY_RULES, TOC_RELEASED = {}, {}, {}, {}, (), (), {}
    ORDER = MODALITIES

    def __init__(self, config):
        super().__init__()
        self.config, self.options = config, self.Options()
        self.autocast = nullcontext
        self.initialized = []

    # ---------------------------------------------------------------------------------------- what a system computes
    def features(self, batch):
        """What `encode` takes, of a batch modality -> (B, T, ...); computed once per step.

        Under --padding mask the batch has "mask" as well, the mask of the seconds.
        """
        return Features({m: self.encoder.inputs(m, batch[m]) for m in self.config.modalities}, batch.get("mask"))

    def encode(self, features, epoch):
        """One pass of the encoder: outputs in whatever form the other methods of the system take. No state changes."""
        raise NotImplementedError

    def init_codebooks(self, features, epoch, rng):
        """Initialize from data those codebooks that are used at this epoch and have not been."""

    def update_codebooks(self, outputs, rng):
        """Update the codebooks after one training pass: moving averages, resets."""
        raise NotImplementedError

    def training_pass(self, features, epoch, rng, auxiliary):
        """The passes of one training step, with the codebook updates and the steps of the auxiliary optimizer.

        Args:
            auxiliary: torch optimizer of the AUXILIARY groups, None where there are none.

        Returns:
            outputs for `losses`; name -> log-likelihood of the auxiliary networks.
        """
        outputs = self.encode(features, epoch)
        self.update_codebooks(outputs, rng)
        return outputs, {}

    def losses(self, outputs, rng):
        """`Losses` of a pass."""
        raise NotImplementedError

    def weights(self, epoch):
        """Kind of loss -> weight in the total; 0 leaves it out."""
        weights = {kind: term.weight for kind, term in self.TERMS.items()} | dict(self.options.weights)
        return {kind: 0.0 if self._switch(kind) in self.options.without else weight for kind, weight in weights.items()}

    # ----------------------------------------------------------------------------------------- what others ask about
    @property
    def codebooks(self):
        """Suffix of names in the log -> codebook with `embedding`, `ema_count` and `unactivated_count`."""
        raise NotImplementedError

    def assigned_codes(self, outputs):
        """Suffix of names in the log -> modality -> (B, T) codes that a pass assigned, (n,) under a mask."""
        raise NotImplementedError

    def level_outputs(self, outputs):
        """Suffix of names in the log -> what a pass gives at a level: `inputs` and `semantic`, dicts over modalities.
        Without it the monitors do not see the spread of the features."""
        return {}

    def mark_initialized(self, epoch):
        """Set `initialized` for a published file of this epoch, which does not say it."""
        self.initialized = [True] * len(self.codebooks)

    @contextmanager
    def evaluating(self):
        """Evaluation mode, no gradients and no compiled layers within the block: how a codebook's start is computed."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.train(was_training)

    @classmethod
    def _switch(cls, kind):
        return cls.TERMS[kind].switch or kind

    def is_on(self, switch):
        """Is a component in, that is, neither left out by --without nor given the weight 0?"""
        given = dict(self.options.weights)
        zero = {kind for kind in self.TERMS if self._switch(kind) == switch and given.get(kind) == 0}
        return switch not in self.options.without and (not zero or any(
            given.get(kind, term.weight) for kind, term in self.TERMS.items() if self._switch(kind) == switch))

    @classmethod
    def comparing(cls, without, weights):
        """Names for --without of the losses that are on and compare the clips of a step."""
        given = {kind: term.weight for kind, term in cls.TERMS.items()} | dict(weights)
        found = [cls._switch(kind) for kind, weight in given.items() if weight]
        return [name for name in dict.fromkeys(found) if name in COMPARE_CLIPS and name not in without]

    @classmethod
    def file(cls, modalities, epoch):
        """Name of a checkpoint: "DCID-model-5.pt", "CoDAAR-model-AVT-5.pt", "CoDAAR-model-AVTDepth-5.pt"; epoch "*"
        makes a pattern."""
        return cls.FILE.format(epoch, modalities="".join(short(m).capitalize() for m in modalities))

    @classmethod
    def switches(cls):
        """Name for --without -> label, of every component that can be left out."""
        labels = {}
        for kind, term in cls.TERMS.items():
            labels.setdefault(cls._switch(kind), term.label or kind)        # the first of several levels names it
        return labels | cls.SWITCHES

    @property
    def order(self):
        """The modalities in the order of ORDER."""
        return in_order(self.config.modalities, self.ORDER)

    @property
    def auxiliary(self):
        """AUXILIARY of this system's modalities."""
        return rules.expand(self.AUXILIARY, self.order)

    def parameter_groups(self):
        """All parameters in `Group`s, in the order of GROUPS.

        Within a group the parameters with a published name come first, in their published order: norms are then added
        up as in the published program.
        """
        rank = {name: number for number, name in enumerate(rules.our_names(self))}
        groups, auxiliary = {}, self.auxiliary
        prefixes = rules.expand(self.GROUPS, self.order)
        for name, parameter in sorted(self.named_parameters(), key=lambda item: rank.get(item[0], len(rank))):
            group = next((group for prefix, group in prefixes.items() if name.startswith(prefix)), EXTRA_SECTION)
            groups.setdefault(group, Group(group, {}, group in auxiliary, group not in self.UNCLIPPED))
            groups[group].parameters[name] = parameter
        order = [*dict.fromkeys(prefixes.values()), EXTRA_SECTION]
        return [groups[name] for name in order if name in groups]
