"""Command-line parsers of all scripts: `parse_pretrain`, `parse_downstream` and so on return checked `Options`.

Every setting is declared once (cmg/utils/settings.py), next to the code that uses it; those declared here are used by
the scripts. Paths come from configs/opts.py, as `LocalPaths`.
"""

import argparse
import json
import os
import runpy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

from cmg.checkpoints.paths import SUFFIXES, path_or_name
from cmg.data.layout import DATA_PATHS
from cmg.data.manifest import CUSTOM
from cmg.data.sets import pretraining
from cmg.data.sets.pretraining import SETS as PRETRAINING_SETS
from cmg.downstream.settings import HeadSettings, RetrievalSettings, TocRatios, TocSettings
from cmg.downstream.tasks import TASKS
from cmg.models.config import MODALITIES, Config, in_order
from cmg.own_data import OwnModalities, check_own, own_arguments, require_own
from cmg.presets import OWN_RECIPE, OWN_SIZES, PRESETS, RECIPES, own_sizes
from cmg.systems.settings import DECLARED, weight_argument
from cmg.training.runtime import default_workers, resolve
from cmg.training.settings import OptimConfig, RunSettings, StepConfig, default_decay
from cmg.utils import settings
from cmg.utils.errors import InputError, Parser, absolute, did_you_mean
from cmg.utils.settings import positive, setting, whole


@dataclass(frozen=True)
class LocalPaths:
    """Paths on one machine, set in configs/opts.py for the scripts.

    Attributes:
        data, checkpoints, runs, figures: roots of data, checkpoints, run folders and pictures.
        scripts: folder of the shell scripts.
        pretrained: checkpoint that downstream tasks load by default, relative to `checkpoints`.
        vocabulary: word list for filtering prompts (cnt.pkl).
        data_paths: dotted name of a file of a data set -> its path, relative to `data` or absolute.
    """

    data: Path = Path("data")
    checkpoints: Path = Path("checkpoint")
    runs: Path = Path("runs")
    figures: Path = Path("figs")
    scripts: Path = Path("code/src")
    pretrained: str = "DCID-model-5.pt"
    vocabulary: Path = Path("cnt.pkl")
    data_paths: dict = field(default_factory=lambda: dict(DATA_PATHS))


def local_paths(script):
    """`LocalPaths` of configs/opts.py beside a script; the module search path is not asked (PYTHONSAFEPATH)."""
    return runpy.run_path(str(Path(script).resolve().parent / "configs" / "opts.py"))["LOCAL"]


class Options(argparse.Namespace):
    """Parsed arguments of one run, and the paths and the device that follow from them.

    Attributes:
        local: LocalPaths of this machine.
    """

    def paths(self, dataset):
        """Files of one data set: {"csv": Path, "audio": Path, ...}."""
        prefix = dataset + "."
        return {name[len(prefix):]: self.data_path(name) for name in DATA_PATHS if name.startswith(prefix)}

    def data_path(self, name):
        """Path of a file by its dotted name, such as "vggsound.csv".

        --path takes precedence over the environment variable (CMG_VGGSOUND_CSV), and that over configs/opts.py. Paths
        of the user's own data are those of --manifest and --features.
        """
        if name.startswith(f"{CUSTOM}."):
            return self.own[name.removeprefix(f"{CUSTOM}.")]
        chosen = self.path.get(name) or os.environ.get("CMG_" + name.replace(".", "_").upper())
        path = absolute(chosen) if chosen else Path(self.data_root) / self.local.data_paths[name]
        is_pieces = vars(self).get("pieces") and name.endswith(".text") and not chosen
        return path.with_stem(path.stem + "_pieces") if is_pieces else path

    def data_paths(self, families):
        """Dotted name -> Path of all files of some data sets."""
        return {name: self.data_path(name) for name in DATA_PATHS if name.split(".")[0] in families}

    @property
    def own(self):
        """The user's own data: {"manifest": Path, modality: Path, ...}; empty without --manifest."""
        if not vars(self).get("manifest"):          # some programs know no such argument
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
        """Check --gpu, and set --precision to what its device can do. Unlike parsing, this needs PyTorch.

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
    """torch device of `--gpu`, as `gpu_argument` gives it; InputError if there is no such GPU."""
    import torch  # here, because --help and wrong arguments do not need it
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
    """Hardware, and how features are read."""

    gpu: str | None = setting(None, "index of the GPU, or cpu (default: GPU 0 if there is one)", type=gpu_argument,
                              affects_results=False)
    precision: str = setting("float32", "bf16: autocast in encoders and decoders, while semantic features, codebook "
                             "and losses stay in float32", choices=("float64", "float32", "bf16"))
    workers: int = setting(default_workers(), "processes that read clips from disk", affects_results=False)
    in_memory: bool = setting(False, "read all features once and keep them in memory (with --precision bf16 in 16 "
                              "bits)", affects_results=lambda opts: opts.precision == "bf16")
    pieces: bool = setting(False, "read prompts as word pieces instead of words, as CoDAAR does (prepare.py text "
                           "--pieces)")
    on_bad_clip: str = setting("error", "for clips whose file is missing or damaged: stop, or skip them with a warning",
                               choices=("error", "skip"), affects_results=False)


@dataclass(frozen=True)
class Program:
    """Arguments of every script."""

    preset: str | None = setting(
        None, "set of defaults; other flags override it", choices=tuple(PRESETS), affects_results=False)
    verbose: bool = setting(False, "print everything that goes into the log and the tables", affects_results=False)
    debug: bool = setting(False, "show the traceback of an input error", affects_results=False)


@dataclass(frozen=True)
class Published:
    """Arguments of the published scripts that have no effect."""

    eval_freq: int = setting(1, "accepted for compatibility with the published scripts, without effect: checkpoints "
                             "are saved and heads are measured after every epoch", type=positive, affects_results=False)


@dataclass(frozen=True)
class PretrainData:
    """Data for pretraining."""

    dataset_name: str = setting("vggsound_AVT", "clips and modalities. The letters A, V and T stand for audio, video "
                                "and text (none: audio and video); 90k, 81k and 179k for other lists of VGGSound "
                                "(40k: the same as none); custom: the clips of --manifest",
                                choices=(*PRETRAINING_SETS, CUSTOM))
    splits: tuple[str, ...] | None = setting(
        None, "splits of the list (default: all three, the 40K clips of the paper, of which train has 24K; with "
        "--manifest: train)", nargs="+", choices=("train", "test", "val"))


@dataclass(frozen=True)
class SystemChoice:
    """The system and its size."""

    system: str = setting("dcid", "system to pretrain: " + ", ".join(
        f"{name} ({system.label})" for name, system in DECLARED.items()), choices=tuple(DECLARED))
    n_embeddings: int | None = setting(None, "number of codes per codebook (K; default: as published; own data: by its "
                                      "length)", type=positive)


@dataclass(frozen=True)
class Pretraining:
    """Arguments of pretrain.py only."""

    recipe: str | None = setting(
        None, "set of training defaults; other flags override it. shared: modalities share their codes, after half the "
        "steps (DCID, H-DCID; docs/decisions.md). published: the papers' values for own data (--dataset_name custom), "
        "too, which otherwise has shared and values by its amount (docs/your-data.md)",
        choices=tuple(RECIPES), affects_results=False)
    model_save_path: Path | None = setting(
        None, "folder of the checkpoints (default: the checkpoint root, or a folder of their own for the runs of a "
        "preset)", type=Path, affects_results=False)
    resume: str = setting("", "resume from a checkpoint, ours or published; auto: from the newest one of this run, if "
                          "there is one", type=auto_or_path, metavar="auto|FILE", affects_results=False)
    evaluate: bool = setting(False, "do not train, but print the losses of --resume on the data", affects_results=False)
    test_batch_size: int = setting(64, "clips per step with --evaluate", type=positive, affects_results=False)
    loss_weights: float | None = setting(
        None, "accepted for compatibility with the published scripts, where it has no effect, either", type=float,
        affects_results=False)


def root(name, local):
    """Default of --data_root, --checkpoint_root or --runs_root ("data", "checkpoints" or "runs"): the environment
    variable CMG_DATA, CMG_CHECKPOINTS or CMG_RUNS, else that of configs/opts.py."""
    return absolute(os.environ.get(f"CMG_{name.upper()}") or getattr(local, name))


def add_shared(parser, names):
    """Add options that a script passes on to several programs, with the help texts of these."""
    declared = {of.name: of.metadata["help"] for cls in (Paths, Machine, Program) for of in fields(cls)}
    for name in names:
        parser.add_argument(f"--{name}", default=None, help=declared[name])


def _parser(program, description, local):
    parser = Parser(prog=program, description=description)
    settings.add_arguments(parser, Paths, "paths", data_root=root("data", local),
                           checkpoint_root=root("checkpoints", local), runs_root=root("runs", local))
    settings.add_arguments(parser, Machine, "machine")
    settings.add_arguments(parser, Program)
    return parser


# Classes with settings of a pretraining run, and their titles in --help; the Options of each system follow.
PRETRAIN = {Machine: "machine", PretrainData: "data", OwnModalities: "modalities", RunSettings: "run",
            OptimConfig: "learning", StepConfig: "memory", SystemChoice: "system"}


def pretrain_parser(local):
    """The parser of pretrain.py."""
    titles = ", ".join(system.label for system in DECLARED.values())
    parser = _parser("pretrain.py", f"Pretrain encoders of audio, video and text with discrete codes ({titles}).",
                     local)
    for cls, title in PRETRAIN.items():
        settings.add_arguments(parser, cls, title)
    settings.add_arguments(parser, Config, "clips", standardize=None)
    own_arguments(parser)
    switches = {name: None for system in DECLARED.values() for name in system.switches()}
    for system in DECLARED.values():
        for cls in filter(is_dataclass, reversed(system.Options.__mro__)):
            users = ", ".join(other.label for other in DECLARED.values() if issubclass(other.Options, cls))
            settings.add_arguments(parser, cls, f"settings of {users}")
        settings.add_arguments(parser, system.Config, f"sizes of {system.label}")
    without = next(action for action in parser._actions if action.dest == "without")
    without.choices = tuple(switches)
    parser.add_argument("--contrast", type=lambda weight: weight_argument(f"contrast={weight}"), action="append",
                        dest="weights", metavar="W", help="same as --weights contrast=W")
    settings.add_arguments(parser, Pretraining, "recipe, checkpoints")
    settings.add_arguments(parser, Published, "published")
    return parser


def _heads(parser, epochs):
    group = parser.add_argument_group("learning")
    settings.add_arguments(group, HeadSettings, n_epoch=epochs)
    group.add_argument("--seed", type=whole, nargs=1, dest="seeds", default=argparse.SUPPRESS, help="a single seed")
    group.add_argument("--print_freq", type=positive, default=50,
                       help="accepted for compatibility with the published scripts, without effect")
    settings.add_arguments(group, Published)
    group.add_argument("--results", type=Path, default=None, help="results file (default: <run folder>/results.jsonl)")
    group = parser.add_argument_group("encoder")
    settings.add_arguments(group, TocSettings)
    return group


def downstream_parser(task, local):
    """The parser of a downstream script."""
    entry = TASKS[task]
    parser = _parser(f"{task}.py", f"{entry.about}: train a head on one modality's frozen codes, test it on another's.",
                     local)
    group = _heads(parser, entry.epochs)
    group.add_argument("--checkpoint", "--resume", type=path_or_name, default=None,
                       help=f"pretrained encoder (default: {local.pretrained} below the checkpoint root)")
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
    parser = _parser("clip_retrieval.py", "Retrieval between clips and captions, without a head.", local)
    settings.add_arguments(parser, RetrievalSettings, "retrieval")
    parser.add_argument("--modalities", nargs="+", choices=("video", "audio"), default=None,
                        help="modalities of the clips (default: those whose features exist)")
    parser.add_argument("--checkpoint", "--resume", type=path_or_name, default=None,
                        help=f"pretrained encoder (default: {local.pretrained} below the checkpoint root)")
    parser.add_argument("--results", type=Path, default=None, help="results file (default: <run folder>/results.jsonl)")
    return parser


def evaluate_parser(local):
    """The parser of evaluate.py."""
    parser = _parser("evaluate.py", "Evaluate one or more checkpoints on all cross-modal tasks whose data exist.",
                     local)
    _heads(parser, None).add_argument("checkpoints", type=path_or_name, nargs="+", metavar="CHECKPOINT",
                                      help="pretrained encoders, in the order of the table's rows")
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


def _parse(parser, program, argv, local):
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
                     + "; --checkpoint takes one, evaluate.sh takes several" * is_several)
    opts.by_task = {task: {name: value for name, value in of_task.items() if not _is_given(parser, argv, name)}
                    for task, of_task in preset.get("tasks", {}).items()} if program != "pretrain" else {}
    opts.path = dict(opts.path)
    if "manifest" in opts:
        check_own(parser, opts)
    opts.snapshot_pref = opts.snapshot_pref or opts.runs_root / program
    if "lr" in opts and (not opts.lr > 0 or not opts.clip_gradient > 0):
        parser.error("--lr and --clip_gradient must be positive")
    if opts.__dict__.get("warmup", 0) < 0:
        parser.error(f"--warmup {opts.warmup}: expected a number of steps, 0 or more")
    return opts


def _is_given(parser, argv, name):
    """Whether the command line contains this argument."""
    unset = object()
    return getattr(parser.parse_args(argv, argparse.Namespace(**{name: unset})), name) is not unset


def parse_pretrain(argv, local):
    """Options of a pretraining run."""
    parser = pretrain_parser(local)
    opts = _parse(parser, "pretrain", argv, local)
    system = DECLARED[opts.system]
    folder = PRESETS.get(opts.preset, {}).get("run", "").format(**vars(opts))
    folder += f"-{opts.recipe}" if folder and opts.recipe else ""
    opts.model_save_path = opts.model_save_path or opts.checkpoint_root / folder
    opts.by_rule = []
    if opts.dataset_name == CUSTOM and opts.recipe != "published":
        own_data_recipe(opts, system)
    else:
        opts.n_epoch = opts.n_epoch or system.EPOCHS
        opts.n_embeddings = opts.n_embeddings or system.Config().num_codes
    if opts.dataset_name == CUSTOM:
        require_own(parser, opts, f"--dataset_name {CUSTOM}")
    elif opts.manifest:
        parser.error(f"--manifest: --dataset_name is {opts.dataset_name}; pass --dataset_name {CUSTOM} for your own "
                     "data")
    if opts.evaluate and not opts.resume:
        parser.error("--evaluate needs the checkpoint to evaluate: --resume FILE")
    opts.standardize = opts.standardize or ("channel" if opts.dataset_name == CUSTOM else "none")
    opts.weight_decay = default_decay(opts.optimizer) if opts.weight_decay is None else opts.weight_decay
    opts.splits = opts.splits or pretraining.splits_of(opts.dataset_name)
    opts.modalities = pretraining.modalities_of(opts.dataset_name, opts.own_modalities)
    own = {name for cls in (system.Options, system.Config) for name in settings.settings(cls)}
    for other in DECLARED.values():
        for cls in (other.Options, other.Config):
            for name, default in settings.settings(cls).items():
                if name not in own and getattr(opts, name) not in (default, None):
                    by = f"--recipe {opts.recipe}: " if name in RECIPES.get(opts.recipe, {}) else ""
                    parser.error(f"{by}--{name} is a setting of {other.label}; --system is {opts.system}")
    for kind, _ in opts.weights:
        if kind not in system.TERMS:
            by = f"--recipe {opts.recipe}: " if kind in dict(RECIPES.get(opts.recipe, {}).get("weights", ())) else ""
            parser.error(f"{by}--weights {kind}: {system.label} has no such loss; it has {', '.join(system.TERMS)}")
    for switch in opts.without:
        if switch not in system.switches():
            parser.error(f"--without {switch}: {system.label} has no such part; it has {', '.join(system.switches())}")
    comparing = system.comparing(opts.without, opts.weights)
    if opts.batch_size == 1 and comparing:
        parser.error(f"--batch_size 1: {', '.join(comparing)} compare the clips of a step, and are zero for a single "
                     "one; give two clips or more, or leave them out with --without")
    return opts


def own_data_recipe(opts, system):
    """Set the recipe of a run on own data, and `opts.by_rule`: the settings that neither a flag nor a preset sets.

    Those of OWN_SIZES stay None until `own_data_sizes`.
    """
    defaults, recipe = settings.settings(system.Options), RECIPES[OWN_RECIPE]
    has_it = recipe.keys() <= defaults.keys() and dict(recipe["weights"]).keys() <= system.TERMS.keys()
    opts.recipe = opts.recipe or (OWN_RECIPE if has_it else None)
    opts.by_rule = [name for name in (*OWN_SIZES, "standardize", *recipe) if getattr(opts, name) is None]
    values = {name: value for name, value in defaults.items() if name in recipe} | RECIPES.get(opts.recipe, {})
    weights = list((dict(values["weights"]) | dict(opts.weights or [])).items())         # a flag sets one of them
    vars(opts).update({name: value for name, value in values.items() if name in opts.by_rule} | {"weights": weights})


def own_data_sizes(opts, clips, seconds, stored):
    """Set what a run on own data leaves to the rule (cmg/presets.py): as in the checkpoint that it resumes, else by the
    number of clips and seconds.

    Args:
        stored: options of the resumed run, as plain values; empty for a new run.
    """
    vars(opts).update({name: stored[name] for name in opts.by_rule if name in stored})
    system = DECLARED[opts.system]
    vars(opts).update(own_sizes(clips, seconds, system.EPOCHS, system.Config().num_codes, vars(opts)))


def affects_results(opts):
    """Name -> plain value of the options that affect the results of a pretraining run."""
    return settings.affects_results(opts, *PRETRAIN, DECLARED[opts.system].Options, DECLARED[opts.system].Config)


def parse_downstream(task, argv, local):
    """Options of a downstream run; `opts.directions` are the (source, target) pairs of modalities to run."""
    parser = downstream_parser(task, local)
    opts = _parse(parser, task, argv, local)
    if task == CUSTOM:
        require_own(parser, opts, f"{task}.py")
    if bool(opts.source) != bool(opts.target) or (opts.source and opts.dataset_name):
        parser.error("pass --dataset_name, or both --source and --target")
    known = (*MODALITIES, *opts.own_modalities)
    for flag, name in (("--source", opts.source), ("--target", opts.target)):
        if name and name not in known:
            parser.error(f"{flag} {name}: no such modality{did_you_mean(name, known)} "
                         f"({', '.join(dict.fromkeys(known))} are known)")
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
    return _with_checkpoint(_parse(clip_retrieval_parser(local), "clip_retrieval", argv, local))


def parse_evaluate(argv, local):
    """Options of evaluate.py."""
    parser = evaluate_parser(local)
    opts = _parse(parser, "evaluate", argv, local)
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
                        help="number of channels to keep of each codebook (the published figure shows 128, 1, 0)")
    settings.add_arguments(parser, TocRatios)
    parser.add_argument("--snapshot_pref", type=Path, default=root("runs", local) / "toc",
                        help="folder of the pictures")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    return parser.parse_args(argv)
