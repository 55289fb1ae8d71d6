"""Paths and arguments. Edit the constants below, or override them by environment variable or flag; nothing else
in the project knows a path. `parse_pretrain` and `parse_downstream` return resolved, checked options."""

import argparse
import json
import os
from pathlib import Path

import torch

import declare
from declare import positive
from engine.transfer.task import HeadSettings
from engine.transfer.tasks import TASKS
from engine.transfer.toc_variants import Shares, TocSettings
from errors import InputError, Parser
from model.config import MODALITIES

# ---------------------------------------------------------------------------------------------------- paths
ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "data"                        # CMG_DATA,        --data_root
CHECKPOINTS = ROOT / "checkpoint"           # CMG_CHECKPOINTS, --checkpoint_root
RUNS = ROOT / "code" / "src" / "Exps"       # CMG_RUNS,        --runs_root
PRETRAINED = "DCID-model-5.pt"              # what downstream scripts load from the checkpoint root
VOCABULARY = ROOT / "cnt.pkl"               # word list of the prompts' filter

# Every file of a dataset, below the data root, as the published package unpacks. A place is overridden by
# --path NAME=FILE or by the environment: vggsound.csv by CMG_VGGSOUND_CSV, and so on.
PLACES = {
    "vggsound.csv": "vggsound40k/data/vggsound-avel40k.csv",
    "vggsound.categories": "vggsound40k/data/VggsoundAVEL40kCategories.txt",
    "vggsound.prompts": "vggsound40k/data/vggsoundCategories2Prompts.csv",
    "vggsound.audio": "vggsound40k/feature/audio/zip",
    "vggsound.video": "vggsound40k/feature/video/zip",
    "vggsound.label": "vggsound40k/feature/label/zip",
    "vggsound.text": "vggsound40k/feature/text/prompts.h5",
    "vggsound81k.csv": "vggsound40k/data/video_name_vggsound81k_checked.csv",
    "vggsound179k.csv": "vggsound40k/data/video_name_vggsound179k_checked.csv",
    "ave.audio": "AVE/data/audio_feature.h5",
    "ave.video": "AVE/data/visual_feature.h5",
    "ave.label": "AVE/data/labels.h5",
    "ave.train": "AVE/data/train_order.h5",
    "ave.val": "AVE/data/val_order.h5",
    "ave.test": "AVE/data/test_order.h5",
    "ave.annotations": "AVE/data/Annotations.txt",
    "ave.train_list": "AVE/data/trainSet.txt",
    "ave.val_list": "AVE/data/valSet.txt",
    "ave.test_list": "AVE/data/testSet.txt",
    "ave.categories": "AVE/data/categories.txt",
    "ave.prompts": "AVE/data/AVECategories2Prompts.csv",
    "ave.text": "AVE/feature/text/prompts.h5",
    "avvp.visual_csv": "AVVP/data/AVVP_eval_visual_checked_combined.csv",
    "avvp.audio_csv": "AVVP/data/AVVP_eval_audio_checked_combined.csv",
    "avvp.official_visual": "AVVP/data/AVVP_eval_visual.csv",
    "avvp.official_audio": "AVVP/data/AVVP_eval_audio.csv",
    "avvp.categories": "AVVP/data/AVVP_Categories.txt",
    "avvp.audio": "AVVP/feature/audio/zip",
    "avvp.video": "AVVP/feature/video/zip",
    "ave_avvp.visual_csv": "AVE_AVVP/AVE_AVVP_eval_visual_checked_combined.csv",
    "ave_avvp.audio_csv": "AVE_AVVP/AVE_AVVP_eval_audio_checked_combined.csv",
    "ave_avvp.categories": "AVE_AVVP/AVE_AVVP_Categories.txt",
    "ave_avvp.label": "AVE_AVVP/ave_avvp_labels.h5",
    "ave_avvp.order": "AVE_AVVP/ave_avvp_order.h5",
    "ucf_vggsound.ucf_csv": "UCF101/data/ucf2vggsound.csv",
    "ucf_vggsound.vggsound_csv": "UCF101/data/vggsound2ucf.csv",
    "ucf_vggsound.ucf_categories": "UCF101/data/UCF101sameVGGSound.txt",
    "ucf_vggsound.vggsound_categories": "UCF101/data/VGGSoundsameUCF101.txt",
    "ucf_vggsound.video": "UCF101/feature/video/zip",
    "ucf_vggsound.audio": "vggsound40k/feature/audio/zip",
    "ucf_vggsound.prompts": "UCF101/data/UCF101Categories2Prompts.csv",
    "ucf_vggsound.text": "UCF101/feature/text/prompts.h5",
    "avs.csv": "AVSBench/Single-source/s4_meta_data.csv",
    "avs.frames": "AVSBench/Single-source/s4_data/visual_frames",
    "avs.masks": "AVSBench/Single-source/s4_data/gt_masks",
    "avs.audio": "AVSBench/feature/audio",
    "avs.prompts": "AVSBench/data/AVSBenchCategories2Prompts.csv",
    "avs.text": "AVSBench/feature/text/prompts.h5",
}

PRETRAINING_SETS = {                        # --dataset_name -> (list, modalities); the published names, and VT
    "vggsound_AVT": ("vggsound", ("audio", "video", "text")),
    "vggsound": ("vggsound", ("audio", "video")),
    "vggsound_AT": ("vggsound", ("audio", "text")),
    "vggsound_VT": ("vggsound", ("video", "text")),
    "vggsound81k": ("vggsound81k", ("audio", "video")),
    "vggsound179k": ("vggsound179k", ("audio", "video")),
    "ave": ("ave", ("audio", "video")),
}
PRETRAINING_EPOCHS = {"dcid": 6, "h_dcid": 5}                   # of --system
COMPONENTS = ("club", "cpc", "mm_ema", "reset", "cmcm")         # what an ablation can leave out (paper Tables 2, 3)

# A preset changes defaults; flags still win over it. `folder` is where it lives below each of the three roots, `run`
# below that where pretraining saves, `pretrained` what downstream scripts load.
PRESETS = {
    # Dialled Digits: 32 video channels instead of 512, ten classes, 30 steps an epoch; minutes on two CPU cores. Ends
    # at step 300: codes unused until then are reset at 301, next to those in use, and for hundreds of steps
    # modalities go apart on the pairs, which a run of minutes does not outlive.
    "demo": {"folder": "demo", "run": "{system}-seed{seed}", "pretrained": "dcid-seed0/DCID-model-9.pt",
             "in_memory": True,
             "pretrain": {"n_embeddings": 100, "n_epoch": 10, "seed": 0, "print_freq": 15, "keep": 2},
             "downstream": {"seeds": [0]}},
}


class Options(argparse.Namespace):
    """Resolved arguments of one run; `paths` and `device` give the modules what they may not know by themselves."""

    def paths(self, dataset):
        """Places of one dataset: {"csv": Path, "audio": Path, ...}."""
        prefix = dataset + "."
        return {name[len(prefix):]: self.place(name) for name in PLACES if name.startswith(prefix)}

    def place(self, name):
        """One path by its dotted name, e.g. "vggsound.csv"; --path wins over the environment, that over PLACES."""
        chosen = self.path.get(name) or os.environ.get("CMG_" + name.replace(".", "_").upper())
        return Path(chosen) if chosen else Path(self.data_root) / PLACES[name]

    def places(self, families):
        """Dotted name -> Path of every place of some datasets."""
        return {name: self.place(name) for name in PLACES if name.split(".")[0] in families}

    @property
    def reading(self):
        """How clips are read: keyword arguments of every dataset class."""
        return {"on_bad_clip": self.on_bad_clip, "in_memory": self.in_memory}

    @property
    def device(self):
        """Device of --gpu: the first GPU if there is one, unless a number or "cpu" is asked for."""
        return device(self.gpu)

    def resolved(self):
        """All options as plain JSON values."""
        return json.loads(json.dumps(vars(self), default=str))


def device(gpu):
    """torch device for `--gpu` (None, "cpu" or a number as text); InputError where there is no such GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu in (None, ""):
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal() or int(gpu) >= count:
        have = f"{count} GPU(s), numbered from 0" if count else "no GPU"
        raise InputError(f"--gpu {gpu}: this machine has {have}; leave --gpu out or pass --gpu cpu")
    return torch.device("cuda", int(gpu))


def place_argument(text):
    """Argument type of --path: NAME=FILE with NAME one of PLACES."""
    name, _, value = text.partition("=")
    if name not in PLACES or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE with NAME one of {', '.join(PLACES)}")
    return name, value


def _parser(program, description):
    parser = Parser(prog=program, description=description)
    group = parser.add_argument_group("paths")
    group.add_argument("--data_root", type=Path, default=Path(os.environ.get("CMG_DATA", DATA)),
                       help="root of all data (environment: CMG_DATA)")
    group.add_argument("--checkpoint_root", type=Path, default=Path(os.environ.get("CMG_CHECKPOINTS", CHECKPOINTS)),
                       help="where pretrained checkpoints lie (CMG_CHECKPOINTS)")
    group.add_argument("--runs_root", type=Path, default=Path(os.environ.get("CMG_RUNS", RUNS)),
                       help="where run folders are made (CMG_RUNS)")
    group.add_argument("--path", type=place_argument, action="append", default=[], metavar="NAME=FILE",
                       help="override one place of configs/opts.py, e.g. vggsound.csv=/data/my.csv (repeatable)")
    group.add_argument("--snapshot_pref", type=Path, default=None,
                       help="the run's folder: log, options, results, TensorBoard (default: RUNS/<program>)")
    group = parser.add_argument_group("machine")
    group.add_argument("--gpu", default=None, help="number of the GPU, or cpu (default: GPU 0 if there is one)")
    group.add_argument("--precision", choices=("float64", "float32", "bf16"), default="float32",
                       help="bf16: autocast around encoders and decoders; codebook and losses stay float32")
    group.add_argument("--workers", type=int, default=4, help="processes that read clips from disk")
    group.add_argument("--in_memory", action="store_true", help="read all features once and keep them in memory")
    group.add_argument("--on_bad_clip", choices=("error", "skip"), default="error",
                       help="a clip whose file is missing or broken: stop, or leave it out and name it")
    parser.add_argument("--preset", choices=tuple(PRESETS), default=None, help="a set of defaults; flags win over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    return parser


def _learning(parser, epochs, test_batch_size):
    group = parser.add_argument_group("learning")
    group.add_argument("--n_epoch", type=positive, default=epochs, help="epochs to train (default: as published)")
    group.add_argument("-b", "--b", "--batch_size", dest="batch_size", type=positive, default=80, help="clips a step")
    group.add_argument("--test_batch_size", type=positive, default=test_batch_size, help="clips a step when evaluating")
    group.add_argument("--lr", type=float, default=4e-4, help="Adam's learning rate; halved at epochs 10, 20, 30")
    group.add_argument("--clip_gradient", type=float, default=0.5, help="largest gradient norm of a module")
    group.add_argument("--weight_decay", "--wd", type=float, default=0.0, help="Adam's weight decay")
    group.add_argument("--print_freq", type=positive, default=50, help="steps between two lines of the log")
    group.add_argument("--eval_freq", type=positive, default=1, help="epochs between two evaluations")
    return group


def pretrain_parser():
    """Arguments of pretrain.py."""
    parser = _parser("pretrain.py", "Pretrain encoders of audio, video and text into one discrete codebook "
                     "(DCID, NeurIPS 2023; H-DCID, arXiv 2403.05168).")
    group = _learning(parser, epochs=None, test_batch_size=64)
    group.add_argument("--dataset_name", choices=tuple(PRETRAINING_SETS), default="vggsound_AVT",
                       help="which clips and modalities: AVT all three; vggsound, 81k, 179k and ave audio and video")
    group.add_argument("--splits", nargs="+", choices=("train", "test", "val"), default=["train", "test", "val"],
                       help="parts of the list; all three are the paper's 40K, train alone its 24K")
    group.add_argument("--mi_lr", type=float, default=1e-3, help="learning rate of the CLUB networks")
    group.add_argument("--start_epoch", type=int, default=0, help="number of the first epoch")
    group.add_argument("--max_steps", type=positive, default=None, help="stop after this many steps in all")
    group.add_argument("--seed", type=int, default=43, help="seed of weights, order and draws (released: 43)")
    group.add_argument("--loss_weights", type=float, default=None,
                       help="accepted because the published scripts know it; it has no effect there or here")
    group.add_argument("--recompute", action="store_true",
                       help="less memory: compute the video convolutions again in the backward pass")
    group = parser.add_argument_group("system")
    group.add_argument("--system", choices=("dcid", "h_dcid"), default="dcid", help="one level or two")
    group.add_argument("--n_embeddings", type=positive, default=400, help="codes in a codebook (K)")
    group.add_argument("--without", nargs="+", choices=COMPONENTS, default=[],
                       help="leave components out (ablation, paper Tables 2 and 3)")
    group.add_argument("--codebook_init", choices=("data", "released"), default="data",
                       help="start codes from the first batch's features, or as published (dcid.md 3)")
    group.add_argument("--code_reset", choices=("full", "released"), default="full",
                       help="reset count and weight with the code, or the code alone as published")
    group.add_argument("--mm_ema", choices=("mean", "attention"), default="mean",
                       help="teachers of the EMA: the same second of the other modalities, or attention (eq. 7)")
    group.add_argument("--spatial_attention", choices=("sum", "softmax"), default="sum",
                       help="video pooling: the published sum, or the attention that was meant")
    group.add_argument("--mi_forward", choices=("once", "released"), default="once",
                       help="encoder passes a step: one, or six as in the published checkpoints")
    group.add_argument("--layer2_start", choices=("data", "released"), default="data",
                       help="H-DCID: start the second codebook when its losses start, or adapt it from epoch 0")
    group.add_argument("--detach_targets", action="store_true",
                       help="H-DCID: no gradient into the targets of the second level's reconstruction")
    group = parser.add_argument_group("checkpoints")
    group.add_argument("--model_save_path", type=Path, default=None,
                       help="folder (default: the checkpoint root; a preset's runs have folders of their own)")
    group.add_argument("--save_freq", type=positive, default=1, help="epochs between two checkpoints")
    group.add_argument("--save_every_steps", type=positive, default=None,
                       help="also save within an epoch, after so many steps (default: off)")
    group.add_argument("--keep", type=positive, default=None,
                       help="newest checkpoints of this run to keep (default: one an epoch, the last two within it)")
    group.add_argument("--on_save_error", choices=("stop", "continue"), default="stop",
                       help="a checkpoint cannot be written, say on a full disk: stop, or go on and try at the next")
    group.add_argument("--save_dtype", choices=("float32", "float64"), default="float32",
                       help="float64 as the published files; never less than --precision computes in")
    group.add_argument("--resume", default="", metavar="auto|FILE",
                       help="continue a run from its checkpoint, ours or published; auto: from the newest of this run, "
                            "else from the beginning")
    group.add_argument("--evaluate", action="store_true",
                       help="no training: print the losses of --resume over the data")
    return parser


def _heads(parser, epochs):
    group = parser.add_argument_group("learning")
    declare.add_arguments(group, HeadSettings, n_epoch=epochs)
    group.add_argument("--seed", type=int, nargs=1, dest="seeds", default=argparse.SUPPRESS, help="one seed")
    for flag, default in (("--print_freq", 50), ("--eval_freq", 1)):
        group.add_argument(flag, type=positive, default=default,
                           help="accepted because the published scripts know it; heads are measured after every epoch")
    group.add_argument("--results", type=Path, default=None, help="results file (default: <run folder>/results.jsonl)")
    group = parser.add_argument_group("encoder")
    declare.add_arguments(group, TocSettings)
    return group


def toc_arguments(group):
    """TOC's numbers but for the first, for toc.py and segmentation."""
    declare.add_arguments(group, Shares)


def downstream_parser(task):
    """Arguments of one downstream script."""
    entry = TASKS[task]
    parser = _parser(f"{task}.py", f"{entry.about}: train a head on one modality's frozen codes, test it on another's.")
    group = _heads(parser, entry.epochs)
    group.add_argument("--checkpoint", "--resume", type=Path, default=None,
                       help=f"pretrained encoder (default: {PRETRAINED} below the checkpoint root)")
    group = parser.add_argument_group("direction")
    group.add_argument("--dataset_name", choices=tuple(entry.directions), default=None,
                       help="va trains on video and tests on audio; default: all directions")
    group.add_argument("--source", choices=MODALITIES, default=None, help="labelled modality")
    group.add_argument("--target", choices=MODALITIES, default=None, help="tested modality")
    return parser


def evaluate_parser():
    """Arguments of evaluate.py."""
    parser = _parser("evaluate.py", "Every cross-modal task that the data allows, for one or more checkpoints.")
    _heads(parser, None).add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
                                      help="pretrained encoders; rows of the table, in this order")
    group = parser.add_argument_group("tasks")
    group.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="which tasks")
    group.add_argument("--no_text", action="store_true", help="skip directions with text")
    group.add_argument("--pool", action="store_true",
                       help="checkpoints of one file name, such as seed*/DCID-model-5.pt, make one row of the table: "
                            "mean and standard deviation over pretraining runs")
    return parser


def _parse(parser, program, argv):
    early = Parser(add_help=False)
    early.add_argument("--preset", choices=tuple(PRESETS))
    preset = PRESETS.get(early.parse_known_args(argv)[0].preset, {})
    preset = preset | preset.get("pretrain" if program == "pretrain" else "downstream", {})
    actions = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in preset.items() if name in actions})
    for root in ("data_root", "checkpoint_root", "runs_root") if preset else ():
        parser.set_defaults(**{root: parser.get_default(root) / preset["folder"]})
    opts = parser.parse_args(argv, Options())
    opts.path = dict(opts.path)
    opts.snapshot_pref = opts.snapshot_pref or opts.runs_root / program
    device(opts.gpu)        # a wrong --gpu ends here, before any work
    if not opts.lr > 0 or not opts.clip_gradient > 0 or opts.weight_decay < 0:
        parser.error("--lr and --clip_gradient must be positive, --weight_decay not negative")
    return opts


def parse_pretrain(argv=None):
    """Options of a pretraining run."""
    opts = _parse(pretrain_parser(), "pretrain", argv)
    folder = PRESETS.get(opts.preset, {}).get("run", "").format(**vars(opts))
    opts.model_save_path = opts.model_save_path or opts.checkpoint_root / folder
    opts.n_epoch = opts.n_epoch or PRETRAINING_EPOCHS[opts.system]
    opts.source_set, opts.modalities = PRETRAINING_SETS[opts.dataset_name]
    return opts


def parse_downstream(task, argv=None):
    """Options of a downstream run; `opts.directions` lists the (labelled, tested) pairs to run."""
    parser = downstream_parser(task)
    opts = _parse(parser, task, argv)
    if bool(opts.source) != bool(opts.target) or (opts.source and opts.dataset_name):
        parser.error("give --dataset_name, or --source and --target together")
    if opts.source:
        opts.directions = [(opts.source, opts.target)]
    else:
        named = TASKS[task].directions
        opts.directions = [named[opts.dataset_name]] if opts.dataset_name else list(named.values())
    pretrained = PRESETS.get(opts.preset, {}).get("pretrained", PRETRAINED)
    opts.checkpoint = opts.checkpoint or opts.checkpoint_root / pretrained
    opts.results = opts.results or opts.snapshot_pref / "results.jsonl"
    return opts


def parse_evaluate(argv=None):
    """Options of evaluate.py."""
    opts = _parse(evaluate_parser(), "evaluate", argv)
    opts.results = opts.results or opts.snapshot_pref / "results.jsonl"
    return opts
