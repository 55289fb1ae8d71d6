"""The command lines of the task scripts, evaluate.py, clip_retrieval.py and toc.py."""

import argparse
from pathlib import Path

from cmg.checkpoints.paths import path_or_name
from cmg.cli.options import Published, common_parser, parse, root
from cmg.data.manifest import CUSTOM
from cmg.downstream.settings import HeadSettings, RetrievalSettings, TocRatios, TocSettings
from cmg.downstream.tasks import TASKS
from cmg.models.config import MODALITIES
from cmg.own_data import own_arguments, require_own
from cmg.presets import PRESETS
from cmg.utils import settings
from cmg.utils.errors import Parser, did_you_mean
from cmg.utils.settings import positive, whole


def _files(parser, local=None):
    """Add the argument for the results, and with `local` the one for the checkpoint of a single encoder."""
    group = parser.add_argument_group("files")
    if local:
        group.add_argument("--checkpoint", "--resume", type=path_or_name, default=None,
                           help=f"pretrained encoder (default: {local.pretrained} in the checkpoint root)")
    group.add_argument("--results", type=Path, default=None, help="results file (default: <run folder>/results.jsonl)")


def _heads(parser, epochs):
    group = parser.add_argument_group("learning")
    settings.add_arguments(group, HeadSettings, n_epoch=epochs)
    group.add_argument("--seed", type=whole, nargs=1, dest="seeds", default=argparse.SUPPRESS, help="a single seed")
    group.add_argument("--print_freq", type=positive, default=50,
                       help="accepted for compatibility with the published scripts, but has no effect")
    settings.add_arguments(group, Published)
    settings.add_arguments(parser, TocSettings, "encoder")


def downstream_parser(task, local):
    """The parser of a downstream script."""
    entry = TASKS[task]
    parser = common_parser(f"{task}.py", f"{entry.about}: train a head on one modality's frozen codes, test it on "
                           "another's.", local)
    _heads(parser, entry.epochs)
    _files(parser, local)
    if task == CUSTOM:
        own_arguments(parser)
    group = parser.add_argument_group("direction")
    group.add_argument("--dataset_name", choices=tuple(entry.directions) or (CUSTOM,), default=None,
                       help="direction; va trains on video and tests on audio (default: all directions)")
    if entry.settings:
        settings.add_arguments(group, entry.settings)
    group.add_argument("--source", metavar="MODALITY", default=None, help="modality to train on")
    group.add_argument("--target", metavar="MODALITY", default=None, help="modality to test on")
    return parser


def clip_retrieval_parser(local):
    """The parser of clip_retrieval.py."""
    parser = common_parser("clip_retrieval.py", "Retrieve captions by clips and clips by captions, without a head.",
                           local)
    settings.add_arguments(parser, RetrievalSettings, "retrieval")
    parser.add_argument("--modalities", nargs="+", choices=("video", "audio"), default=None,
                        help="modalities of the clips (default: those whose features exist)")
    _files(parser, local)
    return parser


def evaluate_parser(local):
    """The parser of evaluate.py."""
    parser = common_parser("evaluate.py", "Evaluate one or more checkpoints on all cross-modal tasks whose data exist.",
                           local)
    parser.add_argument("checkpoints", type=path_or_name, nargs="+", metavar="CHECKPOINT",
                        help="pretrained encoders, in the order of the table's rows")
    _heads(parser, None)
    _files(parser)
    own_arguments(parser)
    group = parser.add_argument_group("tasks")
    group.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=None,
                       help=f"tasks (default: all; {CUSTOM} only with --manifest)")
    for entry in TASKS.values():
        if entry.settings:
            settings.add_arguments(group, entry.settings)
    group.add_argument("--no_text", action="store_true", help="skip directions with text")
    group.add_argument("--pool", action="store_true",
                       help="combine checkpoints with the same file name, such as seed*/DCID-model-5.pt, in one row of "
                            "the table: mean and standard deviation over pretraining runs")
    return parser


def parse_downstream(task, argv, local):
    """Options of a downstream run; `opts.directions` are the (source, target) pairs of modalities to run."""
    parser = downstream_parser(task, local)
    opts = parse(parser, task, argv, local)
    if task == CUSTOM:
        require_own(parser, opts, f"{task}.py")
    if bool(opts.source) != bool(opts.target) or (opts.source and opts.dataset_name):
        parser.error("pass --dataset_name, or both --source and --target")
    known = tuple(opts.own_modalities) or MODALITIES
    for flag, name in (("--source", opts.source), ("--target", opts.target)):
        if name and name not in known:
            parser.error(f"{flag} {name}: unknown modality{did_you_mean(name, known)} "
                         f"(known: {', '.join(known)})")
    if opts.source:
        opts.directions = [(opts.source, opts.target)]
    else:
        named = opts.entry(task).directions
        opts.directions = [named[opts.dataset_name]] if opts.dataset_name in named else list(named.values())
    return _with_checkpoint(opts)


def _with_checkpoint(opts):
    """Set the default paths of encoder and results."""
    pretrained = PRESETS.get(opts.preset, {}).get("pretrained", opts.local.pretrained)
    opts.checkpoint = opts.checkpoint or opts.checkpoint_root / pretrained
    opts.results = opts.results or opts.snapshot_pref / "results.jsonl"
    return opts


def parse_clip_retrieval(argv, local):
    """Options of clip_retrieval.py."""
    return _with_checkpoint(parse(clip_retrieval_parser(local), "clip_retrieval", argv, local))


def parse_evaluate(argv, local):
    """Options of evaluate.py."""
    parser = evaluate_parser(local)
    opts = parse(parser, "evaluate", argv, local)
    opts.tasks = opts.tasks or [name for name in TASKS if name != CUSTOM or opts.manifest]
    if CUSTOM in opts.tasks:
        require_own(parser, opts, f"--tasks {CUSTOM}")
    opts.results = opts.results or opts.snapshot_pref / "results.jsonl"
    return opts


def parse_toc(argv, local):
    """Options of toc.py."""
    parser = Parser(prog="toc.py", description="Show TOC's selection of code channels and draw its effect.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint of pretraining, published or ours")
    parser.add_argument("--choose_channel", type=int, default=128, metavar="S",
                        help="number of channels to keep in each codebook (the published figure shows 128, 1, 0)")
    settings.add_arguments(parser, TocRatios)
    parser.add_argument("--snapshot_pref", type=Path, default=root("runs", local) / "toc",
                        help="folder of the pictures")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    return parser.parse_args(argv)
