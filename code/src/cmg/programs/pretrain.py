"""Pretrain a system and save a checkpoint per epoch (NeurIPS 2023, Figure 2)."""

import logging
from contextlib import contextmanager, suppress

import torch
from tqdm import tqdm

from cmg.checkpoints import checkpoint, hub
from cmg.cli import affects_results, own_data_sizes
from cmg.data import fingerprint, origins
from cmg.data.manifest import CUSTOM
from cmg.data.sets import pretraining
from cmg.models.config import MIN_SECONDS, describe_shape
from cmg.models.random import StepRandom
from cmg.presets import OWN_STEPS
from cmg.results import provenance
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts.rules import own_names
from cmg.training import runtime
from cmg.training.batches import Resident, Streamed, stored_dtype
from cmg.training.run_logger import RunLogger, beginning, earlier_options, seed_everything, setup_logging
from cmg.training.run_state import RunState, differences, find_newest, identify
from cmg.training.settings import OptimConfig, RunSettings, StepConfig
from cmg.training.standardize import cached_statistics
from cmg.training.step import TrainStep
from cmg.training.trainer import Trainer, total_steps
from cmg.utils import dist, settings
from cmg.utils.errors import InputError
from cmg.utils.files import file_lock, remove_leftovers

log = logging.getLogger(__name__)


def open_data(opts):
    """Open the clips of a run; those of the demo are created if they do not exist."""
    if opts.preset == "demo" and not opts.data_root.exists():
        from cmg.demos import dialled as demo_tree  # here, because no other run needs its imports
        demo_tree.build(opts.data_root, opts.local.data_paths)
    if opts.seconds == "auto":
        opts.seconds = _open(opts, in_memory=False, seconds=None).longest()
    if opts.seconds < MIN_SECONDS and "cpc" not in opts.without and "cpc" in SYSTEMS[opts.system].switches():
        opts.without = [*opts.without, "cpc"]               # logged by `_log_run_summary`
    return _open(opts, seconds=opts.seconds, padding=opts.padding)


def _open(opts, **reading):
    return pretraining.open_clips(opts.dataset_name, opts.data_path, opts.splits, opts.own_modalities,
                                  **opts.reading | reading)


def find_resumed(opts, is_first):
    """The checkpoint of --resume, None for a new run. `auto` uses the newest one of this run, and removes temporary
    files of killed processes."""
    if opts.resume != "auto":
        return hub.locate(opts.resume) if opts.resume else None
    name = SYSTEMS[opts.system].file(opts.modalities, "*")
    if is_first:
        remove_leftovers(opts.model_save_path, name)
    own = {name: value for name, value in affects_results(opts).items() if name not in opts.by_rule}
    found = find_newest(opts.model_save_path, name, own)
    if found is None and opts.evaluate:
        raise InputError(f"{opts.model_save_path / name}: no checkpoint of this run; pass one with --resume FILE")
    if found is None:
        log.warning("--resume auto: %s has no checkpoint of this run; starting from the beginning",
                    opts.model_save_path / name)
    return found


def open_system(opts, resumed, shapes):
    """Build a new system, or load one from a checkpoint.

    Args:
        opts: Options.
        resumed: path of the checkpoint, or None.
        shapes: modality -> shape of the features.

    Returns:
        (system, checkpoint.Loaded or None).
    """
    dtype = torch.float64 if opts.precision == "float64" else torch.float32
    kind, loaded = SYSTEMS[opts.system], None
    if resumed:
        loaded = checkpoint.open_file(resumed, dtype)
        require_fit(opts, loaded, shapes)
        system = loaded.system
    else:
        sizes = {"num_codes": opts.n_embeddings}
        sizes |= {name: getattr(opts, name) for name in settings.settings(kind.Config)}
        system = kind(kind.Config.for_data(shapes, **sizes)).to(dtype=dtype)
    system.options = settings.read(kind.Options, opts)
    return system.to(opts.device), loaded


def require_fit(opts, loaded, shapes):
    """Raise InputError unless training can resume from a checkpoint with these options and data."""
    config, name = loaded.system.config, loaded.system.name
    if config.modalities != tuple(shapes) or name != opts.system:
        raise InputError(f"{loaded.path}: a {name} checkpoint of {', '.join(config.modalities)}; expected --system "
                         f"{opts.system} --dataset_name {opts.dataset_name}, with {', '.join(shapes)}")
    for modality, shape in shapes.items():
        if not config.fits(modality, shape):
            raise InputError(f"{loaded.path}: expects {config.describe(modality)}, but the data has "
                             f"{describe_shape(modality, shape)}; use the data it was pretrained on")
    if "n_embeddings" in opts.by_rule:
        opts.n_embeddings = config.num_codes
    if config.num_codes != opts.n_embeddings:
        raise InputError(f"{loaded.path}: pretrained with --n_embeddings {config.num_codes}, not {opts.n_embeddings}; "
                         "pass the same value")
    stored = (loaded.contents.get("run") or {}).get("options", {})
    for name in settings.settings(type(config)):
        if name == "standardize" and (name not in stored or name in opts.by_rule):    # before it was an option
            opts.standardize = config.standardize
        if getattr(config, name) != getattr(opts, name):
            raise InputError(f"{loaded.path}: pretrained with --{name} {getattr(config, name)}, not "
                             f"{getattr(opts, name)}; pass the same value")
    if not loaded.complete and not opts.evaluate:
        raise InputError(f"{loaded.path}: lacks {', '.join(loaded.missing)}; it can be evaluated, but not resumed")


def main(opts):
    """Run pretrain.py; returns the Path of the run's last checkpoint, or None with --evaluate and in processes that do
    not save."""
    with dist.process_group():
        if opts.gpu is None and torch.cuda.is_available():
            opts.gpu = dist.local_rank()
        if opts.device.type == "cpu":
            runtime.keep_freed_memory()
        dist.use(opts.device, opts.seed)
        with _lock_outputs(opts):
            return pretrain(opts)


@contextmanager
def _lock_outputs(opts):
    """Lock the folders of the log and the checkpoints against other runs."""
    if opts.evaluate or not dist.is_main():
        yield
        return
    name = SYSTEMS[opts.system].file(opts.modalities, "run")
    with file_lock(opts.snapshot_pref / ".lock", "choose another --snapshot_pref"), file_lock(
            opts.model_save_path / f".{name}.lock", "choose another --model_save_path"):
        yield


def pretrain(opts):
    """Run one process of a pretraining run, which may have several (cmg/utils/dist.py); the first one logs, saves, and
    returns the last checkpoint."""
    if opts.evaluate and dist.world_size() > 1:
        raise InputError("--evaluate: expected a single process; run it without torchrun")
    generator = seed_everything(opts.seed)
    data = open_data(opts)                                  # first, because it resolves --seconds auto
    resumed = find_resumed(opts, dist.is_main())
    if opts.by_rule:
        run = checkpoint.read(resumed, mmap=True).get("run") if resumed else None
        own_data_sizes(opts, len(data), opts.seconds, (run or {}).get("options", {}))
    system, loaded = open_system(opts, resumed, data.shapes)
    rng = StepRandom(generator)
    train_step = TrainStep(system, rng, settings.read(OptimConfig, opts),
                           settings.read(StepConfig, opts, bf16=opts.precision == "bf16"))
    state = RunState.of(loaded) if loaded else None
    names = pretraining.path_names(opts.dataset_name, opts.own_modalities)
    folder, paths = None, {name: opts.data_path(name) for name in names}
    contents = {} if opts.evaluate else fingerprint.of_clips(data, paths, opts.cache_root, not dist.is_main())
    if opts.evaluate:
        setup_logging(verbose=opts.verbose)
    elif dist.is_main():
        earlier = None if loaded else earlier_run(opts)
        records = state.records if state else beginning(opts.snapshot_pref) if opts.resume == "auto" else None
        folder = RunLogger(opts.snapshot_pref, opts.resolved(), records, opts.log)
        provenance.write(folder.folder, provenance.collect(
            opts.resolved(), opts.device, paths, fingerprints=contents, clips=identify(data, contents)))
    log.info("%s on %s: %d clips, %s, T = %d, K = %d, %.1f M parameters, %s", system.label, opts.device, len(data),
             "+".join(opts.modalities), system.config.seconds, system.config.num_codes,
             sum(p.numel() for p in system.parameters()) / 1e6, opts.precision)
    if dist.is_main():
        _log_run_summary(opts, data, system)
        if folder and earlier:
            log.warning("warning: %s", earlier)
    own = own_names(system) if system.KEY_RULES else []
    if own:
        log.debug("saved under our names, because they have no published ones: %s", ", ".join(own))
    features = origins.feature_paths(opts.modalities, names, opts.data_path)
    if loaded and dist.is_main():
        for line in origins.other_features(loaded.path, loaded.feature_origins, features):
            log.warning(line)
    dtype = next(system.parameters()).dtype
    if opts.in_memory:
        batches = Resident.of(data, opts.modalities, opts.device, dtype, stored_dtype(opts.precision, dtype),
                              rng)
    else:
        batches = Streamed(data, opts.modalities, opts.device, dtype, opts.workers, rng)

    if not loaded and system.config.standardize == "channel":
        before = generator.get_state()          # the pass draws sentences, which must not affect the run
        system.encoder.standardize(cached_statistics(batches, identify(data, contents), system.config, opts.cache_root))
        generator.set_state(before)
    if opts.evaluate:
        evaluate(train_step, batches, len(data), loaded.epoch, opts.test_batch_size)
        return None
    from cmg.report import plots  # here, because --help needs no Matplotlib
    trainer = Trainer(settings.read(RunSettings, opts), affects_results(opts), train_step, data, batches, generator,
                      opts.model_save_path, folder, loaded, {m: origins.describe(path, m) for m, path in features},
                      contents, None if opts.log == "none" else plots.codebook_figure)
    if dist.world_size() > 1:
        dist.require_equal({"version of the program": provenance.program_version()} | trainer.notes())
    last = trainer.run()
    if folder:
        log.info("log and metrics: %s (python -m cmg.report DIR creates a report page)", folder.folder)
    return last


def earlier_run(opts):
    """A warning about an earlier run with other options in the same folders; None if there is none."""
    own, name = affects_results(opts), SYSTEMS[opts.system].file(opts.modalities, "*")
    stored, unknown = [earlier_options(opts.snapshot_pref)], []
    where = [f"its metrics stay before those of this run in {opts.snapshot_pref}"] * bool(stored[0])
    for path in opts.model_save_path.glob(name):
        with suppress(InputError, KeyError, TypeError):
            run = checkpoint.read(path, mmap=True).get("run")
            stored += [run["options"]] if run else []
            unknown += [] if run else [f"{path.name} has no options"]          # a published file
            where.append(f"checkpoints with the same name in {opts.model_save_path} are replaced")
    other = dict.fromkeys(unknown + [text for of_run in stored if isinstance(of_run, dict)
                                     for text in differences(of_run, own)])
    if not other:
        return None
    return (f"an earlier run with other options ({', '.join(other)}) is in the same folders: "
            f"{' and '.join(dict.fromkeys(where))}; give each run its own --snapshot_pref and --model_save_path")


def _log_run_summary(opts, data, system):
    """Log the lengths of clips and run, with warnings about unusual ones, except in the demo."""
    if system.config.seconds < MIN_SECONDS:
        log.warning("clips of %d seconds: Cross-CPC, which needs %d, is off (--without cpc)", system.config.seconds,
                    MIN_SECONDS)
    if "test" in opts.splits:
        has_parts = opts.dataset_name == CUSTOM or pretraining.SETS[opts.dataset_name][0] in ("vggsound", "vggsound90k")
        log.info("the pretraining clips include test clips, without labels, as published%s; tables mark results on "
                 "them", " (--splits train excludes them)" if has_parts else "")
    config, own = system.config, [data.first_lengths[m] for m in data.timed]
    if config.padding == "repeat" and all(seconds is not None and seconds < config.seconds for seconds in own):
        log.warning("clips of %s seconds, T = %d: the last second is repeated as published (use --seconds auto or N to "
                    "keep their length)", max(own), config.seconds)
    if any(seconds is not None and seconds > config.seconds for seconds in own):
        log.warning("the first clip has %s, T = %d: longer clips are truncated (use --seconds N to keep their length; "
                    "arrays are (seconds, width) or (seconds, height, width, channels))",
                    ", ".join(f"{seconds} seconds of {m}" for m, seconds in zip(data.timed, own)), config.seconds)
    if not opts.evaluate and opts.preset != "demo":
        run = settings.read(RunSettings, opts)
        usual = (OWN_STEPS[0], "the rule for own data") if opts.by_rule else None
        if opts.recipe in (None, "published") and not opts.by_rule:         # other recipes need fewer steps
            usual = runtime.PUBLISHED_STEPS
        told, *doubt = runtime.run_length(len(data), run.batch_size, run.n_epoch, config.num_codes, run.max_steps,
                                          usual)
        if opts.by_rule:
            recipe = f"recipe {opts.recipe}" if opts.recipe else "published losses"
            told = (f"{len(data):,} clips: {total_steps(len(data), run):,} steps of {run.batch_size}, K = "
                    f"{config.num_codes}, {recipe}; use --recipe published for the papers' values")
        log.info(told)
        for line in doubt:                      # also shown in the report
            log.warning("warning: %s", line)


def evaluate(train_step, batches, num_clips, epoch, batch_size):
    """Log the mean losses of a checkpoint over the data, weighted by clips; nothing is trained or written."""
    train_step.system.eval()
    totals, count = {}, 0
    with tqdm(total=num_clips, desc="evaluating", unit="clip", disable=None) as bar:
        for batch in batches(torch.arange(num_clips), batch_size):
            clips = len(next(iter(batch.values())))
            for name, value in train_step.evaluate(batch, epoch).losses.items():
                totals[name] = totals.get(name, 0) + value * clips
            count += clips
            bar.update(clips)
    for name, value in totals.items():
        log.info("%-16s %.4f", name, float(value) / count)
