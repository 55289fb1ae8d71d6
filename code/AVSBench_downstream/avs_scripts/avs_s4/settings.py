"""Arguments of train.py and test.py: published flags, paths from code/src/configs/opts.py, and defaults of the demo.

Each setting is declared once, as a field of a dataclass; other modules receive instances of these classes.
"""

import argparse
import math
import runpy
from dataclasses import dataclass, fields
from pathlib import Path

from cmg import cli
from cmg.checkpoints.paths import path_or_name
from cmg.data.layout import DATA_PATHS
from cmg.downstream.settings import TocRatios
from cmg.presets import PRESETS as SHARED_PRESETS
from cmg.training.runtime import default_workers
from cmg.utils import settings
from cmg.utils.errors import Parser
from cmg.utils.settings import positive, setting, whole

HERE = Path(__file__).resolve().parent
LOCAL = runpy.run_path(str(HERE.parents[2] / "src" / "configs" / "opts.py"))["LOCAL"]
DIRECTIONS = {                     # --direction -> modalities of the queries in (training, testing)
    "at": ("audio", "text"), "ta": ("text", "audio"), "aa": ("audio", "audio"), "tt": ("text", "text")}
PROTOCOLS = ("default", "released")
BACKBONES = ("resnet", "small", "pvt")      # network/backbones.py has their shapes

# A preset changes defaults, which flags override.
PRESETS = {
    # Dialled Digits scenes (demo_scenes.py): a small backbone without pretraining; takes minutes on two CPU cores.
    "demo": {"session_name": "demo", "visual_backbone": "small", "tpavi_stages": [0, 1, 2, 3], "tpavi_va_flag": True,
             "channels": 32, "tpavi_norm_start": 0.3, "align_start": "whitened", "adapter_start": "resample",
             "image_size": 64, "train_batch_size": 8, "val_batch_size": 20, "test_batch_size": 20, "max_epoches": 8,
             "lr": 1e-3, "adapter_lr": 1e-5, "num_workers": 0},
}


def _stage(text):
    if text not in ("0", "1", "2", "3"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a stage: 0, 1, 2 or 3")
    return int(text)


@dataclass(frozen=True)
class Common:
    """Settings of both programs that are used by their modules."""

    protocol: str = setting("default", "released: as in the published program, the adapter is not trained, dropout of "
                            "the encoder stays on, metrics are means over batches, and masks are numbered from 0",
                            choices=PROTOCOLS)
    seed: int = setting(123, "seed of weights, order and shuffled queries", type=whole)
    num_workers: int = setting(default_workers(), "processes that read images", affects_results=False)

    @property
    def released(self):
        return self.protocol == "released"


@dataclass(frozen=True)
class Session(Common):
    """Settings of every run."""

    checkpoint: Path = setting(None, "pretrained encoder of audio and text (required, except with --preset demo)",
                               type=path_or_name, affects_results=False)    # its SHA-256 is compared, not its path
    session_name: str = setting("S4", "prefix of the run folder", affects_results=False)
    gpu: str = setting(None, "index of the GPU, or cpu (default: GPU 0 if there is one)", type=cli.gpu_argument,
                       affects_results=False)


@dataclass(frozen=True)
class Conditions:
    """Network and inputs. In testing they default to None and are read from the trained file; other values must agree
    with it."""

    direction: str = setting("at", "modality of the queries in training and in testing: a for audio, t for text",
                             choices=tuple(DIRECTIONS))
    visual_backbone: str = setting("resnet", "small: demo only", choices=BACKBONES)
    tpavi_stages: tuple = setting((), "stages, 0 to 3, with a TPAVI block", nargs="*", type=_stage)
    tpavi_vv_flag: bool = setting(False, "let maps attend to themselves in these stages")
    tpavi_va_flag: bool = setting(False, "let maps attend to the query in these stages")
    image_size: int = setting(224, "side to which frames and masks are resized, a multiple of 32", type=positive)


@dataclass(frozen=True)
class Start:
    """Width of the decoder, and initial weights."""

    channels: int = setting(256, "width of the decoder", type=positive)
    tpavi_norm_start: float = setting(0.0, "initial weight of TPAVI's BatchNorm; with 0, as published, the query has "
                                      "no influence at first")
    align_start: str = setting("torch", "initialization of TPAVI's align_channel: that of PyTorch, as published, or a "
                               "projection of whitened codes, with which training uses the query far earlier",
                               choices=("torch", "whitened"))
    backbone_weights: str = setting(None, "official PVT-v2-b5 or torchvision ResNet-50 file, a model on the hub, or "
                                    "none; required for pvt and resnet unless --weights is given",
                                    metavar="FILE|HUB|none")
    weights: str = setting("", "initialize all tensors from a trained network", metavar="FILE")
    adapter_start: str = setting("tied", "initialization of the adapter: tied, random with two equal halves; torch, "
                                 "random; resample, the mean of both halves", choices=("tied", "torch", "resample"))


@dataclass(frozen=True)
class Toc(TocRatios):
    """Selection of code channels; testing reads it from the trained file."""

    choose_channel: int = setting(None, "TOC: number of channels to keep in each codebook (default: TOC is off)",
                                  type=int, metavar="S")


@dataclass(frozen=True)
class Learning(Common):
    """Training of the network."""

    train_batch_size: int = setting(4, "clips per step", type=positive)
    val_batch_size: int = setting(1, "clips per step in validation", type=positive,
                                  affects_results=lambda opts: opts.protocol == "released")        # means over batches
    max_epoches: int = setting(1, "number of epochs", type=positive, affects_results=False)
    lr: float = setting(1e-4, "Adam's learning rate, constant")
    adapter_lr: float = setting(None, "learning rate of the adapter (default: --lr); training on audio also affects "
                                "text, whose features are smaller", type=float)
    wt_dec: float = setting(0.0, "Adam's weight decay (the published 5e-4 had no effect)")
    sa_loss_flag: bool = setting(False, "add the audio-masked-visual matching loss")
    lambda_1: float = setting(0.0, "weight of the matching loss")
    sa_loss_stages: tuple = setting((), "stages of the matching loss", nargs="*", type=_stage)
    mask_pooling_type: str = setting("avg", "pooling of the masks in the matching loss", choices=("avg", "max"))


@dataclass(frozen=True)
class Testing(Common):
    """Settings of testing."""

    test_batch_size: int = setting(1, "clips per step", type=positive)
    save_pred_mask: bool = setting(False, "write predicted masks as PNG files")
    overlays: int = setting(8, "number of clips in the figure, 0 for no figure")


def _parser(program, description):
    parser = Parser(prog=program, description=description)
    settings.add_arguments(parser, Session, "run")
    parser.add_argument("--preset", choices=tuple(PRESETS), default=None,
                        help="set of defaults; other flags override it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    group = parser.add_argument_group("paths")
    group.add_argument("--data_root", type=Path, default=cli.root("data", LOCAL),
                       help="root of all data (environment variable: CMG_DATA)")
    group.add_argument("--path", type=_path, action="append", default=[], metavar="NAME=FILE",
                       help="override a path: " + ", ".join(_names()))
    group.add_argument("--figure_dir", type=Path, default=LOCAL.figures, help="folder of the figures of test.py")
    group.add_argument("--results", type=Path, default=None,
                       help="results file of test.py (default: <run folder>/results.jsonl)")
    return parser


def train_parser():
    """The parser of train.py."""
    parser = _parser("train.py", "Train a segmentation network on AVSBench-S4, queried by the codes of one modality.")
    settings.add_arguments(parser, Conditions, "network")
    settings.add_arguments(parser, Start, "start")
    settings.add_arguments(parser, Toc, "code channels; testing reads them from the trained file")
    settings.add_arguments(parser, Learning, "learning")
    parser.add_argument("--log_dir", type=Path, default=HERE / "train_logs", help="root of run folders")
    parser.add_argument("--resume", type=cli.auto_or_path, default="", metavar="auto|RUN",
                        help="resume a stopped or killed run from its last saved state; auto: the newest run of "
                             "--session_name and --direction, if any")
    return parser


def test_parser():
    """The parser of test.py."""
    parser = _parser("test.py", "Test a segmentation network with queries of the other modality, its own, zero and "
                     "shuffled ones.")
    settings.add_arguments(parser, Conditions, "network (read from the trained file; other values must agree with it)")
    settings.add_arguments(parser, Testing, "test")
    parser.add_argument("--weights", type=Path, default=None, metavar="FILE|RUN",
                        help="trained file, or run folder, whose last, best and source-chosen networks are tested "
                             "(default: the newest run of --session_name and --direction in --train_log_dir)")
    parser.add_argument("--train_log_dir", type=Path, default=HERE / "train_logs", help="root of train.py's runs")
    parser.add_argument("--log_dir", type=Path, default=HERE / "test_logs", help="root of run folders")
    for flag in ("--max_epoches", "--lr", "--wt_dec"):
        parser.add_argument(flag, type=float, default=argparse.SUPPRESS,
                            help="accepted for compatibility with the published script, but has no effect")
    return parser


def _names():
    return [name for name in DATA_PATHS if name.startswith("avs.")]


def _path(text):
    if text.partition("=")[0] not in _names():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE with NAME one of {', '.join(_names())}")
    return cli.path_argument(text)


def _parse(parser, argv, unset=()):
    """Parsed options; those in `unset` are None by default, whatever the preset."""
    early = Parser(add_help=False)
    early.add_argument("--preset", choices=tuple(PRESETS))
    name = early.parse_known_args(argv)[0].preset
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{key: value for key, value in PRESETS.get(name, {}).items() if key in known})
    parser.set_defaults(**dict.fromkeys(unset))
    if name:
        shared = SHARED_PRESETS[name]       # folders of data and checkpoint of this preset in pretraining
        roots = cli.root("checkpoints", LOCAL)
        parser.set_defaults(data_root=parser.get_default("data_root") / shared["folder"],
                            checkpoint=roots / shared["folder"] / shared["pretrained"])
    opts = parser.parse_args(argv, cli.Options(local=LOCAL))
    opts.path = dict(opts.path)
    if opts.checkpoint is None:
        parser.error("--checkpoint is required: a pretrained encoder, whose codes are the queries")
    if opts.num_workers < 0:
        parser.error(f"--num_workers {opts.num_workers}: expected 0 or more")
    if opts.image_size is not None and opts.image_size % 32:
        parser.error(f"--image_size {opts.image_size}: expected a multiple of 32")
    return opts


def parse_train(argv=None):
    """Options of a training run, checked for consistency."""
    parser = train_parser()
    opts = _parse(parser, argv)
    if len(set(opts.tpavi_stages)) < len(opts.tpavi_stages):
        parser.error("--tpavi_stages names a stage twice")
    if opts.tpavi_stages and not (opts.tpavi_vv_flag or opts.tpavi_va_flag):
        parser.error("--tpavi_stages has no effect without --tpavi_va_flag or --tpavi_vv_flag")
    if (opts.tpavi_vv_flag or opts.tpavi_va_flag) and not opts.tpavi_stages:
        parser.error("--tpavi_va_flag and --tpavi_vv_flag need --tpavi_stages")
    if opts.sa_loss_flag:
        lacking = sorted(set(opts.sa_loss_stages) - set(opts.tpavi_stages if opts.tpavi_va_flag else []))
        if not opts.sa_loss_stages or lacking:
            parser.error(f"--sa_loss_flag needs --sa_loss_stages, each with a query (--tpavi_va_flag, --tpavi_stages)"
                         f"{f'; stage {lacking[0]} has none' if lacking else ''}")
        if not opts.lambda_1 > 0 or not math.isfinite(opts.lambda_1):
            parser.error(f"--lambda_1 {opts.lambda_1}: expected a positive weight with --sa_loss_flag")
    elif opts.sa_loss_stages or opts.lambda_1:
        parser.error("--sa_loss_stages and --lambda_1 have no effect without --sa_loss_flag")
    opts.adapter_lr = opts.lr if opts.adapter_lr is None else opts.adapter_lr
    if not (opts.adapter_lr > 0 and math.isfinite(opts.adapter_lr)):
        parser.error("--adapter_lr must be positive")
    if not (opts.lr > 0 and math.isfinite(opts.lr)) or not (opts.wt_dec >= 0 and math.isfinite(opts.wt_dec)):
        parser.error("--lr must be positive, and --wt_dec must not be negative")
    if opts.visual_backbone == "small":
        opts.backbone_weights = opts.backbone_weights or "none"
    if opts.backbone_weights is None and not opts.weights:
        parser.error(f"--backbone_weights is required for {opts.visual_backbone}: a file, a model of the hub, or none")
    opts.backbone_weights = opts.backbone_weights or "none"
    return opts


def parse_test(argv=None):
    """Options of a test run; those of the network are None by default."""
    return _parse(test_parser(), argv, unset=[condition.name for condition in fields(Conditions)])


def affects_results(opts, encoder_sha256):
    """Name -> plain value of the options that affect the results of a training run."""
    return settings.affects_results(opts, Conditions, Start, Toc, Learning) | {"encoder_sha256": encoder_sha256}
