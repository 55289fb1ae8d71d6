"""Arguments of train.py and test.py: the published flags, places from configs/opts.py, the demo's defaults."""

import argparse
import math
import os
from pathlib import Path

from avs_s4.network.backbones import NAMES
from configs import opts as places
from engine.precision import default_workers
from errors import InputError, Parser

DIRECTIONS = {                     # --direction -> (modality of the queries in training, modality tested)
    "at": ("audio", "text"), "ta": ("text", "audio"), "aa": ("audio", "audio"), "tt": ("text", "text")}
ADAPTER_STARTS = ("tied", "torch", "resample")

# A preset changes defaults; flags still win over it.
PRESETS = {
    # Dialled Digits scenes (demo_scenes.py): a small backbone from random weights; minutes on two CPU cores.
    "demo": {"session_name": "demo", "visual_backbone": "small", "tpavi_stages": [0, 1, 2, 3], "tpavi_va_flag": True,
             "channels": 32, "tpavi_norm_start": 0.3, "align_start": "whitened", "adapter_start": "resample",
             "image_size": 64, "train_batch_size": 8, "val_batch_size": 20, "test_batch_size": 20, "max_epoches": 8,
             "lr": 1e-3, "adapter_lr": 1e-5, "num_workers": 0},
}


def _stage(text):
    if text not in ("0", "1", "2", "3"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a stage: 0, 1, 2 or 3")
    return int(text)


def _parser(program, description):
    parser = Parser(prog=program, description=description)
    group = parser.add_argument_group("what")
    group.add_argument("--checkpoint", type=Path, default=None,
                       help="pretrained encoder with audio and text (required; --preset demo knows its own)")
    group.add_argument("--session_name", default="S4", help="prefix of the run folder")
    group.add_argument("--protocol", choices=("default", "released"), default="default",
                       help="released: adapter never trained, dropout on in the frozen encoder, figures as means over "
                            "batches, masks numbered from 0 (spec: the published program)")
    group.add_argument("--preset", choices=tuple(PRESETS), default=None, help="a set of defaults; flags win over it")
    group = parser.add_argument_group("paths")
    group.add_argument("--data_root", type=Path, default=Path(os.environ.get("CMG_DATA", places.DATA)),
                       help="root of all data (environment: CMG_DATA)")
    group.add_argument("--path", type=_place, action="append", default=[], metavar="NAME=FILE",
                       help="override one place below the data root: " + ", ".join(_names()))
    group.add_argument("--figure_dir", type=Path, default=places.ROOT / "figs", help="where overlays go")
    group.add_argument("--results", type=Path, default=None, help="results file (default: <run folder>/results.jsonl)")
    group = parser.add_argument_group("machine")
    group.add_argument("--gpu", default=None, help="number of the GPU, or cpu (default: GPU 0 if there is one)")
    group.add_argument("--num_workers", type=int, default=default_workers(), help="processes that read pictures")
    group.add_argument("--seed", type=int, default=123, help="seed of weights, order and shuffled queries")
    group.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    return parser


def _network(parser, test):
    """Flags of the network. In testing they are read from the trained file, and only checked against it."""
    group = parser.add_argument_group("network (default: as in the trained file, which it must not contradict)" if test
                                      else "network")
    off = None if test else False
    group.add_argument("--direction", choices=tuple(DIRECTIONS), default=None if test else "at",
                       help="queries in training and in testing: a audio, t text")
    group.add_argument("--visual_backbone", choices=NAMES, default=None if test else "resnet", help="small: demo only")
    group.add_argument("--tpavi_stages", type=_stage, nargs="*", default=None if test else [],
                       help="stages 0 to 3 at which the query acts")
    group.add_argument("--tpavi_vv_flag", action="store_true", default=off, help="maps attend to themselves there")
    group.add_argument("--tpavi_va_flag", action="store_true", default=off, help="maps attend to the query there")
    group.add_argument("--image_size", type=places.positive, default=None if test else 224,
                       help="side of frames and masks, a multiple of 32; others are resized")


def train_parser():
    """Arguments of train.py."""
    parser = _parser("train.py", "Train a segmentation network on AVSBench-S4, driven by the codes of one modality.")
    _network(parser, test=False)
    parser.add_argument("--channels", type=places.positive, default=256, help="width of the decoder")
    parser.add_argument("--tpavi_norm_start", type=float, default=0.0,
                        help="start weight of TPAVI's BatchNorm; 0 as published: the query starts without influence")
    parser.add_argument("--align_start", choices=("torch", "whitened"), default="torch",
                        help="start of TPAVI's align_channel: PyTorch's as published, or a projection of whitened "
                             "codes, with which the query is used after far fewer steps")
    parser.add_argument("--backbone_weights", default=None, metavar="FILE|HUB|none",
                        help="official PVT-v2-b5 or torchvision ResNet-50 file, a model of the hub, or none; required "
                             "for pvt and resnet unless --weights is given")
    parser.add_argument("--weights", default="", metavar="FILE", help="start from a trained network (all tensors)")
    parser.add_argument("--adapter_start", choices=ADAPTER_STARTS, default="tied",
                        help="tied: random with both halves equal; torch: random; resample: the mean of both halves")
    group = parser.add_argument_group("code channels; testing takes them from the trained file")
    group.add_argument("--choose_channel", type=int, default=None, metavar="S",
                       help="TOC: code channels kept of each codebook (off if absent)")
    places.toc_arguments(group)
    group = parser.add_argument_group("learning")
    group.add_argument("--train_batch_size", type=places.positive, default=4, help="clips a step")
    group.add_argument("--val_batch_size", type=places.positive, default=1, help="clips a step in validation")
    group.add_argument("--max_epoches", type=places.positive, default=1, help="epochs")
    group.add_argument("--lr", type=float, default=1e-4, help="Adam's learning rate, constant")
    group.add_argument("--adapter_lr", type=float, default=None,
                       help="learning rate of the adapter (default: --lr); what it learns on sounds acts on sentences "
                            "too, whose features are smaller")
    group.add_argument("--wt_dec", type=float, default=0.0, help="Adam's weight decay (published 5e-4 had no effect)")
    group.add_argument("--sa_loss_flag", action="store_true", help="add the audio-masked-visual matching loss")
    group.add_argument("--lambda_1", type=float, default=0.0, help="its weight")
    group.add_argument("--sa_loss_stages", type=_stage, nargs="*", default=[], help="its stages")
    group.add_argument("--mask_pooling_type", choices=("avg", "max"), default="avg", help="its pooling of the masks")
    parser.add_argument("--log_dir", type=Path, default=Path("train_logs"), help="where run folders are made")
    parser.add_argument("--resume", default="", metavar="auto|RUN",
                        help="go on with a run that was killed, after its last whole epoch; auto: the newest of "
                             "--session_name and --direction, else a new run")
    return parser


def test_parser():
    """Arguments of test.py."""
    parser = _parser("test.py", "Test a segmentation network: queries of the other modality, its own, zero, shuffled.")
    _network(parser, test=True)
    parser.add_argument("--weights", type=Path, default=None, metavar="FILE|RUN",
                        help="trained file, or a run folder, whose last, best and source-chosen networks are tested "
                             "(default: the newest run of --session_name and --direction below --train_log_dir)")
    parser.add_argument("--train_log_dir", type=Path, default=Path("train_logs"), help="where train.py made its runs")
    parser.add_argument("--test_batch_size", type=places.positive, default=1, help="clips a step")
    parser.add_argument("--save_pred_mask", action="store_true", help="write predicted masks as PNG")
    parser.add_argument("--overlays", type=int, default=8, help="clips shown in the figure; 0 for none")
    parser.add_argument("--log_dir", type=Path, default=Path("test_logs"), help="where run folders are made")
    for flag in ("--max_epoches", "--lr", "--wt_dec"):
        parser.add_argument(flag, type=float, default=argparse.SUPPRESS, help="accepted as published; no effect here")
    return parser


def _names():
    return [name for name in places.PLACES if name.startswith("avs.")]


def _place(text):
    name, _, value = text.partition("=")
    if name not in _names() or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE with NAME one of {', '.join(_names())}")
    return name, value


def _parse(parser, argv, presets):
    early = Parser(add_help=False)
    early.add_argument("--preset", choices=tuple(PRESETS))
    name = early.parse_known_args(argv)[0].preset
    preset = PRESETS.get(name, {})
    actions = {action.dest for action in parser._actions}
    parser.set_defaults(**{key: value for key, value in preset.items() if key in actions and key in presets})
    if preset:
        shared = places.PRESETS[name]       # where the pretraining of this preset leaves data and checkpoint
        roots = Path(os.environ.get("CMG_CHECKPOINTS", places.CHECKPOINTS))
        parser.set_defaults(data_root=parser.get_default("data_root") / shared["folder"],
                            checkpoint=roots / shared["folder"] / shared["pretrained"])
    opts = parser.parse_args(argv, places.Options())
    opts.path = dict(opts.path)
    if opts.checkpoint is None:
        parser.error("--checkpoint is required: the pretrained encoder whose codes are the queries")
    places.device(opts.gpu)         # a wrong --gpu ends here, before any work
    if opts.num_workers < 0:
        parser.error(f"--num_workers {opts.num_workers}: expected 0 or more")
    if opts.image_size is not None and opts.image_size % 32:
        parser.error(f"--image_size {opts.image_size}: expected a multiple of 32")
    return opts


def parse_train(argv=None):
    """Options of a training run, checked against each other before any work."""
    parser = train_parser()
    opts = _parse(parser, argv, set(PRESETS["demo"]))
    if len(set(opts.tpavi_stages)) < len(opts.tpavi_stages):
        parser.error("--tpavi_stages names a stage twice")
    if opts.tpavi_stages and not (opts.tpavi_vv_flag or opts.tpavi_va_flag):
        parser.error("--tpavi_stages without --tpavi_va_flag or --tpavi_vv_flag: nothing would act there")
    if (opts.tpavi_vv_flag or opts.tpavi_va_flag) and not opts.tpavi_stages:
        parser.error("--tpavi_va_flag and --tpavi_vv_flag need --tpavi_stages")
    if opts.sa_loss_flag:
        lacking = sorted(set(opts.sa_loss_stages) - set(opts.tpavi_stages if opts.tpavi_va_flag else []))
        if not opts.sa_loss_stages or lacking:
            parser.error(f"--sa_loss_flag needs --sa_loss_stages, each with a query (--tpavi_va_flag, --tpavi_stages)"
                         f"{f'; stage {lacking[0]} has none' if lacking else ''}")
        if not opts.lambda_1 > 0 or not math.isfinite(opts.lambda_1):
            parser.error(f"--lambda_1 {opts.lambda_1}: with --sa_loss_flag a positive weight is expected")
    elif opts.sa_loss_stages or opts.lambda_1:
        parser.error("--sa_loss_stages and --lambda_1 have no effect without --sa_loss_flag")
    opts.adapter_lr = opts.lr if opts.adapter_lr is None else opts.adapter_lr
    if not (opts.adapter_lr > 0 and math.isfinite(opts.adapter_lr)):
        parser.error("--adapter_lr must be positive")
    if not (opts.lr > 0 and math.isfinite(opts.lr)) or not (opts.wt_dec >= 0 and math.isfinite(opts.wt_dec)):
        parser.error("--lr must be positive, --wt_dec not negative")
    if opts.visual_backbone == "small":
        opts.backbone_weights = opts.backbone_weights or "none"
    if opts.backbone_weights is None and not opts.weights:
        parser.error(f"--backbone_weights is required for {opts.visual_backbone}: a file, a model of the hub, or none")
    opts.backbone_weights = opts.backbone_weights or "none"
    opts.source, opts.target = DIRECTIONS[opts.direction]
    return opts


def parse_test(argv=None):
    """Options of a test run; what describes the network is None unless it was given."""
    opts = _parse(test_parser(), argv, {"session_name", "test_batch_size", "num_workers"})
    if opts.weights is None:
        opts.weights = newest_run(opts)
    return opts


def newest_run(opts):
    """The latest run folder of a session and direction; InputError where there is none."""
    form = f"{opts.session_name}_{opts.direction or '??'}_????????-??????"
    runs = sorted((run for run in opts.train_log_dir.glob(form) if (run / "checkpoints" / "last.pth").is_file()),
                  key=lambda run: run.name[-15:])
    if not runs:
        raise InputError(f"{opts.train_log_dir / form}: no finished run; train first, or pass --weights")
    return runs[-1]
