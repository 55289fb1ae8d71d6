"""The command line of pretrain.py."""

from dataclasses import dataclass, is_dataclass
from pathlib import Path

from cmg.cli.options import Machine, Published, auto_or_path, common_parser, parse
from cmg.data.manifest import CUSTOM
from cmg.data.sets import pretraining
from cmg.data.sets.pretraining import SETS as PRETRAINING_SETS
from cmg.models.config import Config
from cmg.own_data import OwnModalities, own_arguments, require_own
from cmg.presets import OWN_RECIPE, OWN_SIZES, PRESETS, RECIPES, own_sizes
from cmg.systems.settings import DECLARED, weight_argument
from cmg.training.settings import OptimConfig, RunSettings, StepConfig, default_decay
from cmg.utils import settings
from cmg.utils.settings import positive, setting


@dataclass(frozen=True)
class PretrainData:
    """Data for pretraining."""

    dataset_name: str = setting("vggsound_AVT", "clips and modalities. The letters A, V and T stand for audio, video "
                                "and text (default: audio and video); 90k, 81k and 179k for other lists of VGGSound "
                                "(default: 40k); custom: the clips of --manifest",
                                choices=(*PRETRAINING_SETS, CUSTOM))
    splits: tuple[str, ...] | None = setting(
        None, "splits of the list (default: all three, the paper's 40K clips, while train has 24K; with --manifest: "
        "train)", nargs="+", choices=("train", "test", "val"))


@dataclass(frozen=True)
class SystemChoice:
    """The system and its size."""

    system: str = setting("dcid", "system to pretrain: " + ", ".join(
        f"{name} ({system.label})" for name, system in DECLARED.items()), choices=tuple(DECLARED))
    n_embeddings: int | None = setting(None, "number of codes per codebook (K; default: as published; for your own "
                                      "data: by its length)", type=positive)


@dataclass(frozen=True)
class Pretraining:
    """Arguments of pretrain.py only."""

    recipe: str | None = setting(
        None, "set of training defaults; other flags override it. shared: modalities share their codes after half of "
        "the steps (DCID, H-DCID; docs/decisions.md). published: the papers' values, also for your own data "
        "(--dataset_name custom), whose default is shared with values by its amount (docs/your-data.md)",
        choices=tuple(RECIPES), affects_results=False)
    model_save_path: Path | None = setting(
        None, "folder of the checkpoints (default: the checkpoint root, or a separate folder for the runs of a preset)",
        type=Path, affects_results=False)
    resume: str = setting("", "resume from a checkpoint, ours or published; auto: from the newest one of this run, if "
                          "any", type=auto_or_path, metavar="auto|FILE", affects_results=False)
    evaluate: bool = setting(False, "print the losses of --resume on the data, without training", affects_results=False)
    test_batch_size: int = setting(64, "clips per step with --evaluate", type=positive, affects_results=False)
    loss_weights: float | None = setting(
        None, "accepted for compatibility with the published scripts, but has no effect, as there", type=float,
        affects_results=False)


# Classes with settings of a pretraining run, and their titles in --help, followed by the Options of each system.
PRETRAIN = {Machine: "machine", PretrainData: "data", OwnModalities: "modalities", RunSettings: "run",
            OptimConfig: "learning", StepConfig: "memory", SystemChoice: "system"}


def pretrain_parser(local):
    """The parser of pretrain.py."""
    titles = ", ".join(system.label for system in DECLARED.values())
    parser = common_parser("pretrain.py", f"Pretrain encoders of audio, video and text with discrete codes ({titles}).",
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


def parse_pretrain(argv, local):
    """Options of a pretraining run."""
    parser = pretrain_parser(local)
    opts = parse(parser, "pretrain", argv, local)
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
        parser.error(f"--manifest: --dataset_name is {opts.dataset_name}; pass --dataset_name {CUSTOM} to use your own "
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
        parser.error(f"--batch_size 1: {', '.join(comparing)} compare the clips of a step and are zero for a single "
                     "clip; use two clips or more, or disable them with --without")
    return opts


def own_data_recipe(opts, system):
    """Set the recipe of a run on the user's data, and `opts.by_rule`: the settings that no flag or preset sets.

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
    """Set the remaining settings of a run on the user's data: those of the checkpoint that it resumes, else by the rule
    of cmg/presets.py from the number of clips and seconds.

    Args:
        stored: options of the resumed run, as plain values; empty for a new run.
    """
    vars(opts).update({name: stored[name] for name in opts.by_rule if name in stored})
    system = DECLARED[opts.system]
    vars(opts).update(own_sizes(clips, seconds, system.EPOCHS, system.Config().num_codes, vars(opts)))


def affects_results(opts):
    """Name -> plain value of the options that affect the results of a pretraining run."""
    return settings.affects_results(opts, *PRETRAIN, DECLARED[opts.system].Options, DECLARED[opts.system].Config)
