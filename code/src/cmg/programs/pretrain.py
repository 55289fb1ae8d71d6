"""Pretrain a system: data -> encode -> quantise -> losses -> step, a checkpoint per epoch (NeurIPS 2023, Figure 2)."""

import logging
from contextlib import contextmanager

import torch
from tqdm import tqdm

from cmg.checkpoints import checkpoint
from cmg.cli import decisive, parse_pretrain
from cmg.data import doubts, origins
from cmg.data.sets import pretraining
from cmg.models.config import describe_shape
from cmg.models.random import LEAST_SECONDS, Draws
from cmg.results import provenance
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts.rules import own_names
from cmg.training import run_length
from cmg.training.batches import Resident, Streamed, stored_dtype
from cmg.training.malloc import keep_freed_memory
from cmg.training.run_logger import Run, beginning, seed_everything, show_log
from cmg.training.step import Settings, Trainer
from cmg.training.trainer import Loop, RunSettings, RunState, find_newest, fingerprint
from cmg.utils import dist, settings
from cmg.utils.collectives import ALONE
from cmg.utils.errors import InputError
from cmg.utils.files import alone, remove_leftovers

log = logging.getLogger(__name__)


def open_data(opts):
    """The clips of a run; those of the demo are made first where there is nothing."""
    if opts.preset == "demo" and not opts.data_root.exists():
        from cmg.demos import dialled as demo_tree  # here, because no other run needs what draws digits and tones
        demo_tree.build(opts.data_root, opts.local.data_paths)
    if opts.seconds == "auto":
        opts.seconds = _open(opts, in_memory=False, seconds=None).longest()
        if opts.seconds < LEAST_SECONDS and "cpc" not in opts.without:
            raise InputError(f"--seconds auto: the longest clip has {opts.seconds} seconds; Cross-CPC needs at least "
                             f"{LEAST_SECONDS}; leave it out with --without cpc")
    return _open(opts, seconds=opts.seconds, padding=opts.padding)


def _open(opts, **reading):
    return pretraining.open_clips(opts.dataset_name, opts.data_path, opts.splits, opts.own_modalities,
                                  **opts.reading | reading)


def find_resumed(opts, is_first):
    """The file of --resume, None for a fresh start; auto takes the newest of this run and clears what kills left."""
    if opts.resume != "auto":
        return opts.resume or None
    name = SYSTEMS[opts.system].file(opts.modalities, "*")
    if is_first:
        remove_leftovers(opts.model_save_path, name)
    found = find_newest(opts.model_save_path, name, decisive(opts))
    if found is None and opts.evaluate:
        raise InputError(f"{opts.model_save_path / name}: no checkpoint of this run; name one with --resume FILE")
    if found is None:
        log.warning("--resume auto: %s has no checkpoint of this run; it starts from the beginning",
                    opts.model_save_path / name)
    return found


def open_system(opts, resumed, shapes):
    """(system, Loaded): a fresh system and None, or those of the file `resumed`.

    Args:
        shapes: modality -> shape of the data's features.
    """
    dtype = torch.float64 if opts.precision == "float64" else torch.float32
    kind, loaded = SYSTEMS[opts.system], None
    if resumed:
        loaded = checkpoint.open_file(resumed, dtype)
        require_fit(opts, loaded, shapes)
        system = loaded.system
    else:
        sizes = {"num_codes": opts.n_embeddings, "spatial_attention": opts.spatial_attention}
        sizes |= {name: getattr(opts, name) for name in settings.settings(kind.Config)}
        system = kind(kind.Config.for_data(shapes, **sizes)).to(dtype=dtype)
    system.options = settings.read(kind.Options, opts)
    return system.to(opts.device), loaded


def require_fit(opts, loaded, shapes):
    """InputError unless training can resume from a checkpoint with these options and this data."""
    config, name = loaded.system.config, loaded.system.name
    if config.modalities != tuple(shapes) or name != opts.system:
        raise InputError(f"{loaded.path}: a {name} checkpoint of {', '.join(config.modalities)}; --system "
                         f"{opts.system} --dataset_name {opts.dataset_name} was asked for, with {', '.join(shapes)}")
    for modality, shape in shapes.items():
        if not config.fits(modality, shape):
            raise InputError(f"{loaded.path}: takes {config.describe(modality)}, the data has "
                             f"{describe_shape(modality, shape)}; use the data it was pretrained on")
    if config.spatial_attention != opts.spatial_attention:
        raise InputError(f"{loaded.path}: pretrained with --spatial_attention {config.spatial_attention}, not "
                         f"{opts.spatial_attention}; pass the same")
    if config.num_codes != opts.n_embeddings:
        raise InputError(f"{loaded.path}: pretrained with --n_embeddings {config.num_codes}, not {opts.n_embeddings}; "
                         "pass the same")
    for name in settings.settings(type(config)):
        if getattr(config, name) != getattr(opts, name):
            raise InputError(f"{loaded.path}: pretrained with --{name} {getattr(config, name)}, not "
                             f"{getattr(opts, name)}; pass the same")
    if not loaded.complete and not opts.evaluate:
        raise InputError(f"{loaded.path}: has no {', '.join(loaded.missing)}; a file without them can be evaluated, "
                         "not resumed")


def main(argv, local):
    """What pretrain.py does; returns the last checkpoint of the run, a Path. None: of --evaluate, and in a process
    that does not save."""
    opts = parse_pretrain(argv, local)
    if opts.evaluate and not opts.resume:
        raise InputError("--evaluate needs the checkpoint to evaluate: --resume FILE")
    if opts.gpu is None and torch.cuda.is_available():
        opts.gpu = dist.local_number()
    if opts.device.type == "cpu":
        keep_freed_memory()
    with dist.ranks(opts.device, opts.seed) as together, _alone(opts, together):
        return pretrain(opts, together)


@contextmanager
def _alone(opts, together):
    """No other run may write the same log or checkpoints meanwhile."""
    if opts.evaluate or not together.is_first:
        yield
        return
    name = SYSTEMS[opts.system].file(opts.modalities, "run")
    with alone(opts.snapshot_pref / ".lock", "choose another --snapshot_pref"), alone(
            opts.model_save_path / f".{name}.lock", "choose another --model_save_path"):
        yield


def pretrain(opts, together):
    """One process of a run, the only one or one of several (cmg/utils/dist.py); the first logs and saves, and
    returns the last checkpoint."""
    if opts.evaluate and together is not ALONE:
        raise InputError("--evaluate: one process does this; start it without torchrun")
    generator = seed_everything(opts.seed)
    data = open_data(opts)                                  # before anything compares --seconds auto
    resumed = find_resumed(opts, together.is_first)
    system, loaded = open_system(opts, resumed, data.shapes)
    trainer = Trainer(system, Draws(generator), settings.read(Settings, opts, bf16=opts.precision == "bf16"), together)
    state = RunState.of(loaded) if loaded else None
    names = pretraining.places(opts.dataset_name, opts.own_modalities)
    folder = None
    if opts.evaluate:
        show_log()
    elif together.is_first:
        records = state.records if state else beginning(opts.snapshot_pref) if opts.resume == "auto" else None
        folder = Run(opts.snapshot_pref, opts.resolved(), records)
        provenance.write(folder.folder, provenance.collect(
            opts.resolved(), opts.device, {name: opts.data_path(name) for name in names}, clips=fingerprint(data)))
    log.info("%s on %s: %d clips, %s, T = %d, K = %d, %.1f M parameters, %s", system.title, opts.device, len(data),
             "+".join(opts.modalities), system.config.seconds, system.config.num_codes,
             sum(p.numel() for p in system.parameters()) / 1e6, opts.precision)
    if together.is_first:
        _tell(opts, data, system)
    own = own_names(system) if system.PARTS else []
    if own:
        log.info("without a published name, saved under ours: %s", ", ".join(own))
    places = doubts.places_of(opts.modalities, names, opts.data_path)
    if loaded and together.is_first:
        for line in doubts.other_features(loaded.path, loaded.features, places):
            log.warning(line)
    dtype = next(system.parameters()).dtype
    if opts.in_memory:
        batches = Resident.of(data, opts.modalities, opts.device, dtype, stored_dtype(opts.precision, dtype),
                              trainer.draws)
    else:
        batches = Streamed(data, opts.modalities, opts.device, dtype, opts.workers, trainer.draws)

    if opts.evaluate:
        evaluate(trainer, batches, len(data), loaded.epoch, opts.test_batch_size)
        return None
    return Loop(settings.read(RunSettings, opts), decisive(opts), trainer, data, batches, generator,
                opts.model_save_path, folder, loaded, {m: origins.describe(path, m) for m, path in places}).run()


def _tell(opts, data, system):
    """What the log says of the clips and the length of a run. The demo is meant to be short."""
    config, own = system.config, [data.first_lengths[m] for m in data.timed]
    if config.padding == "repeat" and all(seconds is not None and seconds < config.seconds for seconds in own):
        log.warning("clips of %s seconds, T = %d: the last second is repeated as published (--seconds auto or N takes "
                    "them as they are)", max(own), config.seconds)
    if not opts.evaluate and opts.preset != "demo":
        told, *doubt = run_length.lines(len(data), opts.batch_size, opts.n_epoch, config.num_codes, opts.max_steps)
        log.info(told)
        for line in doubt:                      # into the report as well
            log.warning("warning: %s", line)


def evaluate(trainer, batches, num_clips, epoch, batch_size):
    """Mean losses of a checkpoint over the data, weighted by clips; nothing is trained or written."""
    trainer.system.eval()
    totals, count = {}, 0
    with tqdm(total=num_clips, desc="evaluating", unit="clip", disable=None) as bar:
        for batch in batches(torch.arange(num_clips), batch_size):
            clips = len(next(iter(batch.values())))
            for name, value in trainer.evaluate(batch, epoch).losses.items():
                totals[name] = totals.get(name, 0) + value * clips
            count += clips
            bar.update(clips)
    for name, value in totals.items():
        log.info("%-16s %.4f", name, float(value) / count)
