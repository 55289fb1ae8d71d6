"""Settings of downstream tasks. This module does not import PyTorch, so that `--help` is printed at once."""

from dataclasses import dataclass

from cmg.models.config import TOC_TERMS
from cmg.utils.settings import not_negative, positive, setting, whole

CODE_CACHE = "code_cache"       # folder beside a checkpoint
OWN_SECONDS_BY = "f1"           # chooses the epoch where the user's own data has labels by second


@dataclass(frozen=True)
class CacheSettings:
    """Size of the cache of codes (cmg/downstream/code_cache.py)."""

    cache_gb: float = setting(1.0, f"gigabytes of codes to keep in the folder {CODE_CACHE} beside each checkpoint, so "
                              "that another call on the same data needs no encoder; the oldest are removed first; 0: "
                              "none", type=not_negative, affects_results=False)


@dataclass(frozen=True)
class HeadSettings(CacheSettings):
    """How heads are trained and measured; the same for all tasks of a call."""

    n_epoch: int | None = setting(None, "epochs of a head (default: as published)", type=positive)
    batch_size: int = setting(80, "clips a step", flags=("-b", "--b", "--batch_size"), type=positive)
    test_batch_size: int = setting(80, "clips a step when evaluating", type=positive, affects_results=False)
    lr: float = setting(4e-4, "Adam's learning rate; halved at epochs 10, 20, 30")
    clip_gradient: float = setting(0.5, "largest gradient norm of a head")
    segment_layers: int = setting(2, "linear layers of the heads that classify seconds; 4 in CoDAAR's AVVP",
                                  choices=(2, 4))
    weight_decay: float = setting(0.0, "Adam's weight decay", flags=("--weight_decay", "--wd"))
    seeds: tuple[int, ...] = setting((43,), "seeds of the heads, which train together", type=whole)
    protocol: str = setting("default", "released: evaluate as the published scripts do: dropout on in the frozen "
                            "encoder, AVE on its training clips, precision and recall averaged over batches",
                            choices=("default", "released"))
    zero_code0: bool = setting(False, "code 0 of every codebook is the zero vector, as in the published evaluation of "
                               "MICU")
    no_control: bool = setting(False, "skip the untrained-encoder control")
    precision: str = "float32"          # these three are arguments of every script (configs/opts.py)
    workers: int = 4
    in_memory: bool = False

    @property
    def readers(self) -> int:
        """Worker processes that are of use."""
        return 0 if self.in_memory else self.workers


@dataclass(frozen=True)
class TocRatios:
    """Settings of TOC, except for the number of channels."""

    toc_max_num: int = setting(1, "TOC: share of the best channels among those kept, relative to --toc_min_num")
    toc_min_num: int = setting(0, "TOC: share of the worst channels; 3 and 1 keep, of 128 channels, the best 96 and "
                               "the worst 32")
    toc_terms: str = setting("both", "TOC: terms of the criterion; a single one is an ablation", choices=TOC_TERMS)


@dataclass(frozen=True)
class TocSettings(TocRatios):
    """Settings of TOC in downstream tasks."""

    choose_channel: tuple[int, ...] | None = setting(
        None, "TOC: number of channels to keep of each codebook (default: TOC is off); several numbers are a sweep",
        type=int, nargs="+", metavar="S")
    toc_preset: tuple[str, ...] | None = setting(
        None, "TOC: off; fixed: 196 of 256 channels; released: the published settings of each task and direction "
        "(the published scripts also set --n_epoch 50 for ave and 100 for the others, which this flag does not; "
        "directions without a setting are skipped); several values give one row each (default: off)", nargs="+",
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
