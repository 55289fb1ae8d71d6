"""Settings for downstream tasks. This module does not import PyTorch, so `--help` appears immediately."""

from dataclasses import dataclass

from cmg.models.config import TOC_TERMS
from cmg.utils.settings import not_negative, positive, setting, whole

CODE_CACHE = "code_cache"       # folder next to a checkpoint
OWN_SECONDS_BY = "f1"           # chooses the epoch if the user's own data has labels per second


@dataclass(frozen=True)
class CacheSettings:
    """Size of the cache of codes (cmg/downstream/code_cache.py)."""

    cache_gb: float = setting(1.0, f"gigabytes of codes to cache in the folder {CODE_CACHE} next to each checkpoint, "
                              "so that another call on the same data need not run the encoder; the oldest are removed "
                              "first; 0: none", type=not_negative, affects_results=False)


@dataclass(frozen=True)
class HeadSettings(CacheSettings):
    """How heads are trained and evaluated; the same for all tasks of a call."""

    n_epoch: int | None = setting(None, "epochs of a head (default: as published)", type=positive)
    batch_size: int = setting(80, "clips a step", flags=("-b", "--b", "--batch_size"), type=positive)
    test_batch_size: int = setting(80, "clips per step during evaluation", type=positive, affects_results=False)
    lr: float = setting(4e-4, "Adam's learning rate; halved at epochs 10, 20, 30")
    clip_gradient: float = setting(0.5, "maximum gradient norm of a head", type=float)
    segment_layers: int = setting(2, "number of linear layers in heads that classify seconds; 4 in CoDAAR's AVVP",
                                  choices=(2, 4))
    weight_decay: float = setting(0.0, "Adam's weight decay", flags=("--weight_decay", "--wd"))
    seeds: tuple[int, ...] = setting((43,), "seeds of the heads, which are trained in parallel", type=whole)
    protocol: str = setting("default", "released: evaluate as the published scripts do: dropout on in the frozen "
                            "encoder, AVE on its training clips, precision and recall averaged over batches",
                            choices=("default", "released"))
    zero_code0: bool = setting(False, "set code 0 of every codebook to zero, as in the published evaluation of MICU")
    no_control: bool = setting(False, "skip the untrained-encoder control")
    precision: str = "float32"          # these three are arguments of every script (configs/opts.py)
    workers: int = 4
    in_memory: bool = False

    @property
    def readers(self) -> int:
        """Number of useful worker processes."""
        return 0 if self.in_memory else self.workers


@dataclass(frozen=True)
class TocRatios:
    """Settings of TOC, except for the number of channels."""

    toc_max_num: int = setting(1, "TOC: share of best channels among those kept, relative to --toc_min_num")
    toc_min_num: int = setting(0, "TOC: share of worst channels; with 128 channels, shares of 3 and 1 keep the best 96 "
                               "and the worst 32")
    toc_terms: str = setting("both", "TOC: terms of the criterion; a single one is an ablation", choices=TOC_TERMS)


@dataclass(frozen=True)
class TocSettings(TocRatios):
    """Settings of TOC in downstream tasks."""

    choose_channel: tuple[int, ...] | None = setting(
        None, "TOC: number of channels to keep in each codebook (default: TOC is off); several numbers run a sweep",
        type=int, nargs="+", metavar="S")
    toc_preset: tuple[str, ...] | None = setting(
        None, "TOC: off; fixed: 196 of 256 channels; released: the published settings of each task and direction (the "
        "published scripts also set --n_epoch 50 for ave and 100 for the others, which this flag does not; directions "
        "without a setting are skipped); several values produce one row each (default: off)", nargs="+",
        choices=("off", "fixed", "released"))


@dataclass(frozen=True)
class OpenSetSettings:
    """Number of classes that a head knows; `protocol` as in HeadSettings."""

    source_class_num: int | None = setting(None, "number of known classes, the first of the class list (default: half; "
                                    "published: 14 or 21 of AVE's 28, 17 or 34 of UCF's 51, 8 or 12 of 16)",
                                    type=positive)
    protocol: str = "default"


@dataclass(frozen=True)
class RetrievalSettings(CacheSettings):
    """Settings of the measurement."""

    seeds: tuple[int, ...] = setting((43,), "seed of the untrained control", flags=("--seed",), type=whole, nargs=1)
    test_batch_size: int = setting(80, "clips and captions per batch", type=positive)
    no_control: bool = setting(False, "skip the untrained control")
    zero_code0: bool = setting(False, "set code 0 of every codebook to zero, as in the published evaluation of MICU")
    protocol: str = "default"
