"""Declarations of the systems for the command line: names, losses with their weights, sizes, and settings.

This module does not import PyTorch, so `--help` and argument errors appear immediately. The networks are in the file of
each system, whose class inherits from the one with the same name here.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from cmg.models import config as sizes
from cmg.models.config import RESET_AFTER, in_order, short
from cmg.utils.errors import InputError
from cmg.utils.settings import not_negative, positive, setting

COMPARE_CLIPS = ("club", "cpc", "cmcm", "contrast", "infonce", "fcmi_coarse")     # losses; zero for a single clip
SECOND_LEVEL_WEIGHT = 0.3               # of the losses of H-DCID's second level
FCID_ORDER = ("video", "audio", "text")     # of the EMA in the published program; other modalities follow
PAIR = "audiovisual"                    # FCID's clip encoder and CLUB network that all modalities with seconds share
SEGMENTS = ("video", "audio", "text")   # their order in a row of CoDAAR; other modalities follow


@dataclass(frozen=True)
class Term:
    """A kind of loss.

    Attributes:
        weight: weight in the total, unless overridden by --weights. A term of weight 0 is computed only for the log, or
            not at all.
        switch: its name for --without, by default its key in `Declaration.TERMS`.
        label: its name in tables and figures.
    """

    weight: float = 1.0
    switch: str = ""
    label: str = ""


def weight_argument(text: str) -> tuple[str, float]:
    """Argument type for --weights: KIND=W."""
    kind, _, weight = text.partition("=")
    if not kind or not weight:
        raise argparse.ArgumentTypeError(f"'{text}' is not KIND=W, such as cpc=0.5")
    return kind, not_negative(weight)


@dataclass(frozen=True)
class Options:
    """Settings that all systems have. A system adds its own in a subclass; each is an argument of pretrain.py."""

    without: tuple[str, ...] = setting(
        (), "components to disable (ablation, NeurIPS 2023, Tables 2 and 3): losses, as with weight 0, and other "
        "parts; an unknown name lists the system's components")
    weights: tuple[tuple[str, float], ...] = setting(
        (), "weights of losses in the total, by their names in the log without the modality, such as cpc=0.5 "
        "contrast=3; an unknown name lists the system's losses", type=weight_argument, nargs="+", action="extend",
        metavar="KIND=W")


@dataclass(frozen=True)
class CodebookOptions(Options):
    """How a codebook with moving averages is initialized and reset."""

    codebook_init: str = setting("data", "initialize the codes from the features of the first batch, or as published",
                                 choices=("data", "released"))
    code_reset: str = setting("full", "reset EMA count and weight along with a code, or only the code as published",
                              choices=("full", "released"))


BaseConfig: TypeAlias = sizes.Config    # inside a declaration, `Config` and `Options` are attributes
BaseOptions: TypeAlias = Options


class Declaration:
    """Everything known about a system before PyTorch is imported.

    Class attributes:
        name: identifier for --system and in files.
        label: name for display.
        FILE: file name of its checkpoints; {} stands for the epoch, {modalities} for their initials (see `file`).
        EPOCHS: number of pretraining epochs, as published.
        Config, Options: dataclasses of its sizes and settings.
        TERMS: kind of loss -> Term, in the order in which they are summed.
        SWITCHES: other names for --without (parts that are not losses) -> label.
    """

    Config: ClassVar[type[BaseConfig]] = sizes.Config
    Options: ClassVar[type[BaseOptions]] = Options
    name = label = FILE = ""
    EPOCHS = 6
    TERMS: ClassVar[dict[str, Term]] = {}
    SWITCHES: ClassVar[dict[str, str]] = {}

    @classmethod
    def comparing(cls, without: Sequence[str], weights: Sequence[tuple[str, float]]) -> list[str]:
        """Names, as used by --without, of the enabled losses that compare the clips of a step."""
        given = {kind: term.weight for kind, term in cls.TERMS.items()} | dict(weights)
        found = [cls._switch(kind) for kind, weight in given.items() if weight]
        return [name for name in dict.fromkeys(found) if name in COMPARE_CLIPS and name not in without]

    @classmethod
    def file(cls, modalities: Sequence[str], epoch: int | str) -> str:
        """File name of a checkpoint, such as "DCID-model-5.pt" or "CoDAAR-model-AVTDepth-5.pt"; epoch "*" gives a glob
        pattern."""
        return cls.FILE.format(epoch, modalities="".join(short(m).capitalize() for m in modalities))

    @classmethod
    def switches(cls) -> dict[str, str]:
        """Name for --without -> label of every component that can be disabled."""
        labels: dict[str, str] = {}
        for kind, term in cls.TERMS.items():
            labels.setdefault(cls._switch(kind), term.label or kind)      # with several levels, the label of the first
        return labels | cls.SWITCHES

    @classmethod
    def _switch(cls, kind: str) -> str:
        return cls.TERMS[kind].switch or kind


# ------------------------------------------------------------------------------------------------- settings and sizes
def timed_modalities(config):
    """Modalities with features per second, that is, all except tokens."""
    return tuple(m for m in config.modalities if config.kind(m) != "tokens")


@dataclass(frozen=True)
class SharedCodebookOptions(CodebookOptions):
    """How a codebook with MM-EMA is initialized and updated."""

    mm_ema: str = setting("mean", "targets of the EMA from other modalities: their mean at the same second, or "
                          "attention over the seconds of the clip (NeurIPS 2023, eq. 7)", choices=("mean", "attention"))
    code_choice: str = setting("own", "codes in training: nearest to each modality, or one joint code per second for "
                               "all modalities except tokens", choices=("own", "joint"))
    reset_after: int = setting(RESET_AFTER, "passes without use before a code is reset", type=positive)
    reset_to: str = setting("code", "reset an unused code to a code in use, or to the mean of the modalities at a "
                            "random second of the batch", choices=("code", "second"))

    def joint_modalities(self, config):
        """Modalities that share one code per second in training."""
        return timed_modalities(config) if self.code_choice == "joint" else ()


@dataclass(frozen=True)
class DCIDOptions(SharedCodebookOptions):
    """How DCID is trained."""

    mi_forward: str = setting("once", "encoder passes per step: one, or six, as for the published checkpoints",
                              choices=("once", "released"))


@dataclass(frozen=True)
class FCIDConfig(sizes.Config):
    """Sizes of FCID: one Transformer layer, and no LSTM over word vectors."""

    num_layers: int = 1

    @property
    def fine(self):
        """Modalities that are aligned by second: vectors and maps. Tokens are aligned by clip."""
        return [m for m in in_order(self.modalities, FCID_ORDER) if self.kind(m) != "tokens"]

    def clip_encoder(self, modality):
        """Name of the clip encoder that a modality uses."""
        return PAIR if modality in self.fine else modality

    @property
    def clip_encoders(self):
        """Names of all clip encoders: the shared one, then those of tokens."""
        return [PAIR, *(m for m in in_order(self.modalities, FCID_ORDER) if m not in self.fine)]

    def input_dim(self, modality):
        return self.feature_dim(modality)


@dataclass(frozen=True)
class FCIDOptions(SharedCodebookOptions):
    """How FCID is trained."""

    club_coarse: str = setting("intended", "FCID: CLUB bound of clips: treat a clip as one second, or its channels as "
                               "seconds, as published", choices=("intended", "released"))


@dataclass(frozen=True)
class MICUConfig(sizes.Config):
    """Sizes of MICU: those of DCID and those of the jigsaw."""

    jigsaw_blocks: int = setting(2, "MICU: blocks of channels in the jigsaw (ICCV 2025, S)", type=positive)
    jigsaw_permutations: int = setting(2, "MICU: permutations to classify (P)", type=positive)
    jigsaw_hidden: int = setting(512, "MICU: width of the jigsaw's classifier", type=positive)


@dataclass(frozen=True)
class MICUOptions(SharedCodebookOptions):
    """How MICU is trained."""

    encoder_passes: str = setting("once", "MICU: encoder passes per step: one, or two as published, one for the "
                                  "contrast and one for the reconstruction", choices=("once", "released"))
    reset_counter: str = setting("all", "MICU: whether codes assigned only to text count as used (all) or as unused, "
                                 "as published", choices=("all", "released"))


@dataclass(frozen=True)
class CoDAARConfig(sizes.Config):
    """Sizes of CoDAAR: `num_codes` rows with a segment of width `code_dim` per modality."""

    num_codes: int = 800

    @property
    def segments(self):
        """The modalities in the order of their segments."""
        return in_order(self.modalities, SEGMENTS)

    @property
    def row_dim(self):
        """Width of a row."""
        return len(self.modalities) * self.code_dim


@dataclass(frozen=True)
class CoDAAROptions(CodebookOptions):
    """How CoDAAR is trained."""

    cascade_order: tuple[str, ...] = setting(
        ("text", "audio", "video"), "CoDAAR: order in which the segments of a row are replaced with the mean of all; "
        "the first becomes the plain mean, the last changes least", choices=SEGMENTS)

    def __post_init__(self):
        if sorted(self.cascade_order) != sorted(SEGMENTS):
            raise InputError(f"--cascade_order {' '.join(self.cascade_order)}: expected each of {', '.join(SEGMENTS)} "
                             "once; modalities that are not trained are ignored, additional ones come last")


# ---------------------------------------------------------------------------------------------------------- the systems
class DCID(Declaration):
    name, label, FILE = "dcid", "DCID", "DCID-model-{}.pt"
    Options: ClassVar[type[BaseOptions]] = DCIDOptions
    TERMS = {"recon": Term(label="reconstruction"), "commit": Term(label="commitment"), "club": Term(label="CLUB"),
             "cpc": Term(label="CPC"), "cmcm": Term(label="CMCM"),
             "contrast": Term(0.0, label="contrast of clips")}      # not published; 3 in --recipe shared
    SWITCHES = {"mm_ema": "MM-EMA", "reset": "reset"}


class HDCID(DCID):
    name, label, FILE, EPOCHS = "h_dcid", "H-DCID", "H-DCID-model-{}.pt", 5
    TERMS = DCID.TERMS | {
        f"{kind}_2": Term(SECOND_LEVEL_WEIGHT, kind, f"{term.label}, level 2")
        for kind, term in DCID.TERMS.items() if term.weight}


class FCID(Declaration):
    name, label, FILE, EPOCHS = "fcid", "FCID", "FCID-model-{}.pt", 4
    Config, Options = FCIDConfig, FCIDOptions
    TERMS = {"fine_recon": Term(label="reconstruction of seconds"), "coarse_recon": Term(label="of clips"),
             "commit": Term(label="commitment"), "club": Term(label="CLUB"), "cpc": Term(label="CPC"),
             "cmcm": Term(label="CMCM"), "infonce": Term(label="InfoNCE")}
    SWITCHES = {"mm_ema": "MM-EMA", "reset": "reset"}


class MICU(DCID):
    name, label, FILE, EPOCHS = "micu", "MICU", "MICU-model-{}.pt", 5
    Config, Options = MICUConfig, MICUOptions
    TERMS = {kind: Term(term.weight if kind in ("recon", "commit") else 0.0, label=term.label)
             for kind, term in DCID.TERMS.items() if kind != "contrast"} | {
        "fcmi_fine": Term(label="FCMI, seconds"), "fcmi_coarse": Term(label="FCMI, clips"), "cujp": Term(label="CUJP")}


class CoDAAR(Declaration):
    name, label, FILE = "codaar", "CoDAAR", "CoDAAR-model-{modalities}-{}.pt"
    Config, Options = CoDAARConfig, CoDAAROptions
    TERMS = {"recon": Term(label="reconstruction"), "commit": Term(label="commitment"), "cpc": Term(label="CPC"),
             "cmcm": Term(label="CMCM")}
    SWITCHES = {"dta": "DTA", "csa": "CSA", "reset": "reset"}


DECLARED = {system.name: system for system in (DCID, HDCID, FCID, MICU, CoDAAR)}
