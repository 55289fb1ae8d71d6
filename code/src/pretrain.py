"""Pretrain DCID or H-DCID: data -> encode -> quantise -> losses -> step, one checkpoint an epoch (paper Figure 2)."""

import logging
import time

import torch
from tqdm import tqdm

from configs.opts import parse_pretrain
from dataset.ave import AVE
from dataset.ave import SPLITS as AVE_SPLITS
from dataset.vggsound import VGGSound
from engine import checkpoint
from engine.batches import Resident, Streamed, epoch_order
from engine.pretraining import Pretrainer, Settings
from engine.runs import Run, seed_everything
from errors import InputError, run
from model.config import Config
from model.draws import Draws
from model.h_dcid import build

log = logging.getLogger(__name__)
FILE_NAME = {"dcid": "DCID-model-{}.pt", "h_dcid": "H-DCID-model-{}.pt"}


def open_data(opts):
    """The clips of a run."""
    if opts.source_set == "ave":
        return AVE(opts.paths("ave"), opts.modalities, AVE_SPLITS, **opts.reading)
    places = opts.paths("vggsound") | opts.paths(opts.source_set)
    return VGGSound(places, opts.modalities, opts.splits, **opts.reading)


def open_model(opts, video_dim):
    """A fresh model, or the one of --resume; in the latter case with the file."""
    dtype = torch.float64 if opts.precision == "float64" else torch.float32
    if not opts.resume:
        widths = {"system": opts.system, "num_codes": opts.n_embeddings, "spatial_attention": opts.spatial_attention}
        if video_dim:
            widths["video_dim"] = video_dim
        return build(Config.for_data(opts.modalities, **widths)).to(opts.device, dtype), None
    loaded = checkpoint.open_file(opts.resume, dtype, opts.spatial_attention)
    config = loaded.model.config
    if config.modalities != opts.modalities or config.system != opts.system:
        raise InputError(f"{opts.resume}: a {config.system} checkpoint of {', '.join(config.modalities)}; "
                         f"--system {opts.system} --dataset_name {opts.dataset_name} was asked for")
    if video_dim and config.video_dim != video_dim:
        raise InputError(f"{opts.resume}: takes video of {config.video_dim} channels, the data has {video_dim}; "
                         "use the data it was pretrained on")
    if not loaded.complete and not opts.evaluate:
        raise InputError(f"{opts.resume}: has no {', '.join(loaded.missing)}; a file without them can be evaluated, "
                         "not resumed")
    loaded.model.to(opts.device)
    return loaded.model, loaded


def main(argv=None):
    opts = parse_pretrain(argv)
    if opts.evaluate and not opts.resume:
        raise InputError("--evaluate needs the checkpoint to evaluate: --resume FILE")
    generator = seed_everything(opts.seed)
    data = open_data(opts)
    model, loaded = open_model(opts, data.video_dim)
    trainer = Pretrainer(model, Draws(generator), Settings(
        lr=opts.lr, mi_lr=opts.mi_lr, clip_gradient=opts.clip_gradient, weight_decay=opts.weight_decay,
        without=tuple(opts.without), codebook_init=opts.codebook_init, code_reset=opts.code_reset, mm_ema=opts.mm_ema,
        mi_forward=opts.mi_forward, layer2_start=opts.layer2_start, detach_targets=opts.detach_targets,
        bf16=opts.precision == "bf16"))
    epoch, step = opts.start_epoch, 0
    if loaded:
        epoch, step = loaded.epoch + 1, loaded.total_step
        trainer.started = [level == 0 or loaded.epoch >= 3 for level in range(model.config.num_levels)]
        if not opts.evaluate:
            checkpoint.load_optimizers(loaded, trainer.optimizers)
    folder = Run(opts.snapshot_pref, opts.resolved())
    log.info("%s on %s: %d clips, %s, K = %d, %.1f M parameters, %s", opts.system, opts.device, len(data),
             "+".join(opts.modalities), model.config.num_codes,
             sum(p.numel() for p in model.parameters()) / 1e6, opts.precision)
    dtype = next(model.parameters()).dtype
    if opts.in_memory:
        batches = Resident.of(data, opts.modalities, opts.device, dtype)
    else:
        batches = Streamed(data, opts.modalities, opts.device, dtype, opts.workers)

    if opts.evaluate:
        return evaluate(opts, trainer, batches, len(data), loaded.epoch)
    while epoch < opts.n_epoch:
        step = train_epoch(opts, trainer, batches, epoch_order(len(data), opts.seed, epoch), epoch, step, folder)
        is_last = epoch + 1 == opts.n_epoch or step == opts.max_steps
        if (epoch + 1) % opts.save_freq == 0 or is_last:
            path = opts.model_save_path / FILE_NAME[opts.system].format(epoch)
            checkpoint.save(path, checkpoint.pack(model, trainer.optimizers, loaded.unused if loaded else {}, epoch,
                                                  step, {}, getattr(torch, opts.save_dtype)))
            log.info("epoch %d done, saved %s", epoch, path)
        epoch += 1
        if is_last:
            break
    folder.close()


def train_epoch(opts, trainer, batches, order, epoch, step, folder):
    """All steps of one epoch; returns the number of steps in all. Losses are read from the device only to be shown."""
    trainer.model.train()
    shown, since = step, time.monotonic()
    with tqdm(total=len(order), desc=f"epoch {epoch}", unit="clip", disable=None) as bar:
        for batch in batches(order, opts.batch_size):
            report = trainer.step(batch, epoch)
            step += 1
            clips = len(next(iter(batch.values())))
            bar.update(clips)
            if step % opts.print_freq == 0 or step == opts.max_steps:
                losses = {name: float(value) for name, value in report.losses.items()}
                metrics = {name: float(value) for name, value in report.metrics.items()}
                speed = (step - shown) * opts.batch_size / (time.monotonic() - since)
                shown, since = step, time.monotonic()
                bar.set_postfix(loss=f"{losses['total']:.3f}")
                log.info("epoch %d step %d  %s  %.0f clips/s", epoch, step,
                         " ".join(f"{name} {value:.4f}" for name, value in losses.items()), speed)
                folder.scalars(step, epoch, losses, metrics, speed)
            if step == opts.max_steps:
                break
    return step


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
