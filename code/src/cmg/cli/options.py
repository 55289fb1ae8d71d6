"""Common code of all command lines: paths on this machine, parsed `Options`, argument types, settings."""

import argparse
import json
import logging
import os
import runpy
from dataclasses import dataclass, field, fields
from pathlib import Path

from cmg.checkpoints.paths import SUFFIXES
from cmg.data.layout import DATA_PATHS
from cmg.data.manifest import CUSTOM
from cmg.downstream.tasks import TASKS
from cmg.models.config import in_order
from cmg.own_data import check_own
from cmg.presets import OWN_RECIPE, OWN_SIZES, PRESETS, RECIPES
from cmg.training.runtime import default_workers, resolve
from cmg.utils import settings
from cmg.utils.errors import InputError, Parser, absolute, did_you_mean
from cmg.utils.settings import positive, setting

log = logging.getLogger(__name__)


def variable(name):
    """Environment variable for a dataset's file, given its dotted name: CMG_VGGSOUND_CSV for vggsound.csv."""
    return "CMG_" + name.replace(".", "_").upper()


VARIABLES = {"CMG_DATA", "CMG_CHECKPOINTS", "CMG_RUNS", "CMG_CACHE", *map(variable, DATA_PATHS)}


@dataclass(frozen=True)
class LocalPaths:
    """Paths on one machine, set in configs/opts.py for the scripts.

    Attributes:
        data, checkpoints, runs, figures: roots of data, checkpoints, run folders and pictures.
        scripts: folder of the shell scripts.
        pretrained: checkpoint that downstream tasks load by default, relative to `checkpoints`.
        vocabulary: word list for filtering prompts (cnt.pkl).
        data_paths: dotted name of a dataset's file -> its path, relative to `data` or absolute; defaults: DATA_PATHS.
    """

    data: Path = Path("data")
    checkpoints: Path = Path("checkpoint")
    runs: Path = Path("runs")
    figures: Path = Path("figs")
    scripts: Path = Path("code/src")
    pretrained: str = "DCID-model-5.pt"
    vocabulary: Path = Path("cnt.pkl")
    data_paths: dict = field(default_factory=dict)

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(getattr(LocalPaths, name, None), Path):       # opts.py may give them as text
                object.__setattr__(self, name, absolute(value))
        object.__setattr__(self, "data_paths", DATA_PATHS | self.data_paths)


def local_paths(script):
    """`LocalPaths` of configs/opts.py next to a script, without the module search path, for PYTHONSAFEPATH."""
    return runpy.run_path(str(Path(script).resolve().parent / "configs" / "opts.py"))["LOCAL"]


class Options(argparse.Namespace):
    """Parsed arguments of a run, and the paths and device derived from them.

    Attributes:
        local: LocalPaths of this machine.
    """

    def paths(self, dataset):
        """Files of one dataset: {"csv": Path, "audio": Path, ...}."""
        prefix = dataset + "."
        return {name[len(prefix):]: self.data_path(name) for name in DATA_PATHS if name.startswith(prefix)}

    def data_path(self, name):
        """Path of a file by its dotted name, such as "vggsound.csv".

        --path takes precedence over the environment variable (CMG_VGGSOUND_CSV), and that over configs/opts.py. The
        user's own data has the paths of --manifest and --features.
        """
        if name.startswith(f"{CUSTOM}."):
            return self.own[name.removeprefix(f"{CUSTOM}.")]
        chosen = self.path.get(name) or os.environ.get(variable(name))
        path = absolute(chosen) if chosen else Path(self.data_root) / self.local.data_paths[name]
        is_pieces = vars(self).get("pieces") and name.endswith(".text") and not chosen
        return path.with_stem(path.stem + "_pieces") if is_pieces else path

    def data_paths(self, families):
        """Dotted name -> Path of all files of some datasets."""
        return {name: self.data_path(name) for name in DATA_PATHS if name.split(".")[0] in families}

    @property
    def own(self):
        """The user's own data: {"manifest": Path, modality: Path, ...}; empty without --manifest."""
        if not vars(self).get("manifest"):          # some programs do not have this argument
            return {}
        return {"manifest": self.manifest, **{m: self.features[m] for m in in_order(self.features)}}

    @property
    def own_modalities(self):
        """Modality -> kind of the user's own data, in the fixed order; None for audio, video and text."""
        return {name: self.modality.get(name) for name in self.own if name != "manifest"}

    def entry(self, task):
        """The entry of a task in TASKS, with the directions of the user's own data for the task `custom`."""
        return TASKS[task].of(vars(self).get("manifest"), self.own_modalities)

    @property
    def reading(self):
        """How clips are read, as keyword arguments of every dataset class."""
        return {"on_bad_clip": self.on_bad_clip, "in_memory": self.in_memory}

    @property
    def device(self):
        """Device of --gpu; by default the first GPU, or the CPU if there is none."""
        return device(self.gpu)

    def check_device(self):
        """Check --gpu, and set --precision to one that its device supports. Unlike parsing, this needs PyTorch.

        Raises:
            InputError: there is no such GPU.
        """
        if self.gpu or self.precision == "bf16":
            self.precision = resolve(self.precision, self.device)

    def resolved(self):
        """All options as plain JSON values."""
        return json.loads(json.dumps({name: value for name, value in vars(self).items() if name != "local"},
                                     default=str))


def device(gpu):
    """The torch device for `--gpu`, a value of `gpu_argument`; InputError if there is no such GPU."""
    import torch  # here, because --help and argument errors do not need it
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu in (None, ""):
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if gpu == "cpu":
        return torch.device("cpu")
    if int(gpu) >= count:
        have = f"{count} GPU(s), numbered from 0" if count else "no GPU"
        raise InputError(f"--gpu {gpu}: this machine has {have}; omit --gpu or pass --gpu cpu")
    return torch.device("cuda", int(gpu))


def gpu_argument(text):
    """Argument type of --gpu: "cpu", the index of a GPU, or empty for the default."""
    if text not in ("", "cpu") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither cpu nor the index of a GPU")
    return text


def path_argument(text):
    """Argument type of --path: NAME=FILE with NAME one of DATA_PATHS."""
    name, _, value = text.partition("=")
    if name not in DATA_PATHS or not value:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FILE with NAME one of {', '.join(DATA_PATHS)}")
    return name, absolute(value)


def auto_or_path(text):
    """Argument type of --resume: "auto", or the path of a file or folder."""
    return text if text in ("", "auto") else str(absolute(text))


@dataclass(frozen=True)
class Paths:
    """Paths."""

    data_root: Path | None = setting(
        None, "root of all data (environment variable: CMG_DATA)", type=Path, affects_results=False)
    checkpoint_root: Path | None = setting(
        None, "root of pretrained checkpoints (CMG_CHECKPOINTS)", type=Path, affects_results=False)
    runs_root: Path | None = setting(None, "root of run folders (CMG_RUNS)", type=Path, affects_results=False)
    cache_root: Path | None = setting(
        None, "folder of cached fingerprints of the data (CMG_CACHE; default: ~/.cache/cmg)", type=Path,
        affects_results=False)
    path: tuple[tuple[str, str], ...] = setting(
        (), "override a path of cmg/data/layout.py, e.g. vggsound.csv=/data/my.csv (repeatable)", type=path_argument,
        nargs=None, action="append", metavar="NAME=FILE", affects_results=False)
    snapshot_pref: Path | None = setting(
        None, "folder of the run, for log, options, results and TensorBoard (default: RUNS/<program>)", type=Path,
        affects_results=False)


@dataclass(frozen=True)
class Machine:
    """Hardware, and reading of features."""

    gpu: str | None = setting(None, "index of the GPU, or cpu (default: GPU 0 if there is one)", type=gpu_argument,
                              affects_results=False)
    precision: str = setting("float32", "bf16: autocast in encoders and decoders, while semantic features, codebook "
                             "and losses stay in float32", choices=("float64", "float32", "bf16"))
    workers: int = setting(default_workers(), "processes that read clips from disk", affects_results=False)
    in_memory: bool = setting(False, "read all features once and keep them in memory (in 16 bits with --precision "
                              "bf16)", affects_results=lambda opts: opts.precision == "bf16")
    pieces: bool = setting(False, "read prompts as word pieces instead of words, like CoDAAR (prepare.py text "
                           "--pieces)")
    on_bad_clip: str = setting("error", "for clips with a missing or damaged file: stop, or skip them with a warning",
                               choices=("error", "skip"), affects_results=False)


@dataclass(frozen=True)
class Program:
    """Arguments of every script."""

    preset: str | None = setting(
        None, "set of defaults; other flags override it", choices=tuple(PRESETS), affects_results=False)
    verbose: bool = setting(False, "print the complete log and tables", affects_results=False)
    debug: bool = setting(False, "show the traceback of an input error", affects_results=False)


@dataclass(frozen=True)
class Published:
    """Arguments of the published scripts that have no effect."""

    eval_freq: int = setting(1, "accepted for compatibility with the published scripts, but has no effect: checkpoints "
                             "are saved and heads are measured after every epoch", type=positive, affects_results=False)


def root(name, local):
    """Default of --data_root, --checkpoint_root or --runs_root ("data", "checkpoints" or "runs"): the environment
    variable CMG_DATA, CMG_CHECKPOINTS or CMG_RUNS, else the value in configs/opts.py."""
    return absolute(os.environ.get(f"CMG_{name.upper()}") or getattr(local, name))


def add_shared(parser, names):
    """Add options that a script passes on to several programs, with the same help texts."""
    declared = {of.name: of.metadata["help"] for cls in (Paths, Machine, Program) for of in fields(cls)}
    for name in names:
        parser.add_argument(f"--{name}", default=None, help=declared[name])


def common_parser(program, description, local):
    """A parser with the arguments of every script."""
    parser = Parser(prog=program, description=description)
    settings.add_arguments(parser, Paths, "paths", data_root=root("data", local),
                           checkpoint_root=root("checkpoints", local), runs_root=root("runs", local))
    settings.add_arguments(parser, Machine, "machine")
    settings.add_arguments(parser, Program)
    return parser


def parse(parser, program, argv, local):
    """Parse a command line to `Options`, with the defaults of its preset and recipe, and check the common arguments.

    Args:
        parser: `common_parser` with the script's own arguments.
        program: name of the script without its suffix.
        argv: command line, None for that of the process.
        local: LocalPaths of this machine.
    """
    early = Parser(add_help=False)
    early.add_argument("--preset", choices=tuple(PRESETS))
    early.add_argument("--recipe", choices=tuple(RECIPES))
    early.add_argument("--dataset_name")
    named, _ = early.parse_known_args(argv)
    preset = PRESETS.get(named.preset, {})
    preset = preset | preset.get("pretrain" if program == "pretrain" else "downstream", {})
    preset = preset | RECIPES.get(named.recipe, {})
    actions = {action.dest for action in parser._actions}
    if program == "pretrain" and named.dataset_name == CUSTOM and named.recipe != "published":
        parser.set_defaults(**dict.fromkeys([*OWN_SIZES, *RECIPES[OWN_RECIPE]]))        # None: for `own_data_recipe`
    parser.set_defaults(**{name: value for name, value in preset.items() if name in actions})
    for name in ("data_root", "checkpoint_root", "runs_root") if "folder" in preset else ():
        parser.set_defaults(**{name: parser.get_default(name) / preset["folder"]})
    opts, unknown = parser.parse_known_args(argv, Options(local=local))
    if unknown:
        is_several = "checkpoint" in opts and any(Path(word).suffix in SUFFIXES for word in unknown)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}"
                     + "; --checkpoint takes one file, evaluate.sh takes several" * is_several)
    opts.by_task = {task: {name: value for name, value in of_task.items() if not _is_given(parser, argv, name)}
                    for task, of_task in preset.get("tasks", {}).items()} if program != "pretrain" else {}
    for name in local.data_paths.keys() - DATA_PATHS.keys():
        parser.error(f"DATA_PATHS of configs/opts.py: unknown file name {name}{did_you_mean(name, DATA_PATHS)}")
    for name in {name for name in os.environ if name.startswith("CMG_")} - VARIABLES:
        log.warning("%s in the environment: unknown variable%s; it has no effect", name, did_you_mean(name, VARIABLES))
    opts.path = dict(opts.path)
    if "manifest" in opts:
        check_own(parser, opts)
    opts.snapshot_pref = opts.snapshot_pref or opts.runs_root / program
    if "lr" in opts and (not opts.lr > 0 or not opts.clip_gradient > 0):
        parser.error("--lr and --clip_gradient must be positive")
    if getattr(opts, "results", None) and opts.results.is_dir():
        parser.error(f"--results {opts.results}: a folder; expected a file, such as {opts.results / 'results.jsonl'}")
    if "seeds" in opts:
        opts.seeds = list(dict.fromkeys(opts.seeds))            # a repeated seed is measured once
    return opts


def _is_given(parser, argv, name):
    """Whether the command line contains this argument."""
    unset = object()
    return getattr(parser.parse_args(argv, argparse.Namespace(**{name: unset})), name) is not unset
