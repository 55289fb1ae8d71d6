"""Pretrain DCID or H-DCID: data -> encode -> quantise -> losses -> step, one checkpoint an epoch (paper Figure 2)."""

import logging

import torch
from tqdm import tqdm

from atomic_write import remove_leftovers
from configs.opts import PLACES, parse_pretrain
from dataset.ave import AVE
from dataset.ave import SPLITS as AVE_SPLITS
from dataset.vggsound import VGGSound
from engine import checkpoint, distributed, provenance
from engine.batches import Resident, Streamed, stored_dtype
from engine.malloc import keep_freed_memory
from engine.run_folder import Run, beginning, seed_everything, show_log
from engine.run_loop import FILE_NAME, Loop, RunState, find_newest, fingerprint
from engine.trainer import Pretrainer, Settings
from errors import InputError, run
from model.collectives import ALONE
from model.config import Config
from model.sampling import Draws
from systems.h_dcid import build

log = logging.getLogger(__name__)


def open_data(opts):
    """The clips of a run; those of the demo are made first where there is nothing."""
    if opts.preset == "demo" and not opts.data_root.exists():
        from demo_data import demo_tree  # here, because no other run needs what draws digits and tones
        demo_tree.build(opts.data_root, PLACES)
    if opts.source_set == "ave":
        return AVE(opts.paths("ave"), opts.modalities, AVE_SPLITS, **opts.reading)
    places = opts.paths("vggsound") | opts.paths(opts.source_set)
    return VGGSound(places, opts.modalities, opts.splits, **opts.reading)


def find_resumed(opts, is_first):
    """The file of --resume, None for a fresh start; auto takes the newest of this run and clears what kills left."""
    if opts.resume != "auto":
        return opts.resume or None
    name = FILE_NAME[opts.system].format("*")
    if is_first:
        remove_leftovers(opts.model_save_path, name)
    found = find_newest(opts.model_save_path, opts)
    if found is None and opts.evaluate:
        raise InputError(f"{opts.model_save_path / name}: no checkpoint of this run; name one with --resume FILE")
    if found is None:
        log.warning("--resume auto: %s has no checkpoint of this run; it starts from the beginning",
                    opts.model_save_path / name)
    return found


def open_model(opts, resumed, video_dim):
    """A fresh model, or the one of the file `resumed`; in the latter case with the file."""
    dtype = torch.float64 if opts.precision == "float64" else torch.float32
    if not resumed:
        widths = {"system": opts.system, "num_codes": opts.n_embeddings, "spatial_attention": opts.spatial_attention}
        if video_dim:
            widths["video_dim"] = video_dim
        return build(Config.for_data(opts.modalities, **widths)).to(opts.device, dtype), None
    loaded = checkpoint.open_file(resumed, dtype, opts.spatial_attention)
    config = loaded.model.config
    if config.modalities != opts.modalities or config.system != opts.system:
        raise InputError(f"{resumed}: a {config.system} checkpoint of {', '.join(config.modalities)}; "
                         f"--system {opts.system} --dataset_name {opts.dataset_name} was asked for")
    if video_dim and config.video_dim != video_dim:
        raise InputError(f"{resumed}: takes video of {config.video_dim} channels, the data has {video_dim}; "
                         "use the data it was pretrained on")
    if not loaded.complete and not opts.evaluate:
        raise InputError(f"{resumed}: has no {', '.join(loaded.missing)}; a file without them can be evaluated, "
                         "not resumed")
    loaded.model.to(opts.device)
    return loaded.model, loaded


def main(argv=None):
    opts = parse_pretrain(argv)
    if opts.evaluate and not opts.resume:
        raise InputError("--evaluate needs the checkpoint to evaluate: --resume FILE")
    if opts.gpu is None and torch.cuda.is_available():
        opts.gpu = distributed.local_number()
    if opts.device.type == "cpu":
        keep_freed_memory()
    with distributed.ranks(opts.device, opts.seed) as together:
        return pretrain(opts, together)


def pretrain(opts, together):
    """One process of a run, the only one or one of several (engine/distributed.py); the first logs and saves."""
    if opts.evaluate and together is not ALONE:
        raise InputError("--evaluate: one process does this; start it without torchrun")
    resumed = find_resumed(opts, together.is_first)
    generator = seed_everything(opts.seed)
    data = open_data(opts)
    model, loaded = open_model(opts, resumed, data.video_dim)
    trainer = Pretrainer(model, Draws(generator), Settings(
        lr=opts.lr, mi_lr=opts.mi_lr, clip_gradient=opts.clip_gradient, weight_decay=opts.weight_decay,
        without=tuple(opts.without), codebook_init=opts.codebook_init, code_reset=opts.code_reset, mm_ema=opts.mm_ema,
        mi_forward=opts.mi_forward, layer2_start=opts.layer2_start, detach_targets=opts.detach_targets,
        bf16=opts.precision == "bf16", recompute=opts.recompute), together)
    state = RunState.of(loaded) if loaded else None
    folder = None
    if opts.evaluate:
        show_log()
    elif together.is_first:
        records = state.records if state else beginning(opts.snapshot_pref) if opts.resume == "auto" else None
        folder = Run(opts.snapshot_pref, opts.resolved(), records)
        provenance.write(folder.folder, provenance.collect(opts, ("ave" if opts.source_set == "ave" else "vggsound",
                                                                  opts.source_set), clips=fingerprint(data)))
    log.info("%s on %s: %d clips, %s, K = %d, %.1f M parameters, %s", opts.system, opts.device, len(data),
             "+".join(opts.modalities), model.config.num_codes,
             sum(p.numel() for p in model.parameters()) / 1e6, opts.precision)
    dtype = next(model.parameters()).dtype
    if opts.in_memory:
        batches = Resident.of(data, opts.modalities, opts.device, dtype, stored_dtype(opts.precision, dtype))
    else:
        batches = Streamed(data, opts.modalities, opts.device, dtype, opts.workers)

    if opts.evaluate:
        return evaluate(opts, trainer, batches, len(data), loaded.epoch)
    return Loop(opts, trainer, data, batches, generator, folder, loaded).run()


def evaluate(opts, trainer, batches, num_clips, epoch):
    """Mean losses of a checkpoint over the data, weighted by clips; nothing is trained or written."""
    trainer.model.eval()
    totals, count = {}, 0
    with tqdm(total=num_clips, desc="evaluating", unit="clip", disable=None) as bar:
        for batch in batches(torch.arange(num_clips), opts.test_batch_size):
            clips = len(next(iter(batch.values())))
            for name, value in trainer.evaluate(batch, epoch).losses.items():
                totals[name] = totals.get(name, 0) + value * clips
            count += clips
            bar.update(clips)
    for name, value in totals.items():
        log.info("%-16s %.4f", name, float(value) / count)


if __name__ == "__main__":
    run(main)
