"""Time of a pretraining step: seconds, clips and TFLOP per second, memory, and a breakdown of the time.

    python code/benchmarks/pretrain_step.py [--widths published|demo] [--precision bf16] [--compare_baseline] [--json F]

Random features with the data set's shapes are kept in memory, as with --in_memory, and cmg/training/step.py takes steps
on batches of them. FLOP are counted for the layers of the method (dense convolutions, forward and backward, without
optimizer, distances and losses), so that a faster formulation has the same count as a plain one. The ceiling is the
fastest matrix product of the device in the same precision, measured between steps. With --compare_baseline, steps
alternate with plain float64 steps (baseline_step.py).
"""

import argparse
import copy
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch
from baseline_step import PlainStep
from timing import Ceiling, Stopwatch, add_device, now, peak_memory
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from cmg.cli import device as device_of
from cmg.models.config import MODALITIES
from cmg.models.random import StepRandom
from cmg.systems.dcid import CLUB_ITERATIONS
from cmg.systems.registry import SYSTEMS
from cmg.training.batches import Resident, Text, epoch_order, stored_dtype
from cmg.training.runtime import has_bf16_units, keep_freed_memory
from cmg.training.settings import OptimConfig, StepConfig
from cmg.training.step import TrainStep
from cmg.utils.errors import Parser, run
from cmg.utils.settings import positive

LATE_EPOCH = 3                                                      # from here on, every loss is used
CHUNK = 256                                                         # clips generated at a time
WIDTHS = {"published": {}, "demo": {"video_dim": 32, "num_codes": 100}}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}
POSITIONS = {                                                       # positions per second of each kernel
    "specific.video.conv1": 25, "specific.video.conv2": 9, "specific.video.conv3": 9,
    "specific.video.residual.conv3x3": 9, "specific.video.residual.conv1x1": 9, "decoders.video.deconv1": 9,
    "decoders.video.residual.conv3x3": 25, "decoders.video.residual.conv1x1": 25, "decoders.video.deconv2": 25,
    "decoders.video.deconv3": 49}
UNUSED = ("average_attention", "place_attention", "semantic.video.attention")
UNDER_AUTOCAST, OUTSIDE = ("specific.", "decoders."), "coarse_decoders."
FROM_DATA = ("specific.video.conv1", "semantic.audio.affine", "specific.audio.linear", "text_lstm.weight_ih_l0")


def flops_per_second(model):
    """FLOP of a training step per second of a clip: {"autocast": those computed in bf16 by --precision bf16, "rest"}.

    The forward pass has 2 per weight and position; the gradient of the weight has the same number, and so has that of
    the input unless the input is data.
    """
    total = {"autocast": 0, "rest": 0}
    for name, weight in model.named_parameters():
        name = name.replace("of_code.", "")                         # CoDAAR: the decoder within one of a row
        if weight.ndim < 2 or any(part in name for part in UNUSED):
            continue
        positions = next(n for layer, n in POSITIONS.items() if f"{layer}." in name) if weight.ndim == 4 else 1
        passes = 2 if any(part in name for part in FROM_DATA) else 3
        if ".club." in name:
            passes += CLUB_ITERATIONS * (2 if ".0.weight" in name else 3)
        under_autocast = any(part in name for part in UNDER_AUTOCAST) and OUTSIDE not in name
        total["autocast" if under_autocast else "rest"] += 2 * weight.numel() * positions * passes
    return total


def random_data(config, clips, seconds, device, dtype, stored):
    """Resident features of the published kind, as in pretrain.py; three quarters of the video values are zero."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device=device)
    features = {m: torch.empty(clips, seconds, *config.shape(m), device=device, dtype=stored)
                for m in config.modalities if m != "text"}
    for m, x in features.items():
        for part in x.split(CHUNK):                                 # generating 40,000 clips at once would take 41 GB
            part.copy_(normal(*part.shape) if m == "audio" else (normal(*part.shape) - 0.67).relu())
    if "text" not in config.modalities:
        return Resident(features, None, dtype)
    table = normal(50, seconds, config.feature_dim("text")).to(dtype)
    rows = torch.randint(50, (clips,), generator=generator, device=device)
    return Resident(features, Text((table, rows), None, device, dtype), dtype)


def whole_run(train_step, resident, clips, batch_size, epochs):
    """Seconds of a run over all epochs, with steps as in pretrain.py but without log and checkpoints."""
    device = next(train_step.system.parameters()).device
    start = now(device)
    for epoch in range(epochs):
        batches = resident(epoch_order(clips, 0, epoch), batch_size)
        for batch in tqdm(batches, f"epoch {epoch}", math.ceil(clips / batch_size), unit="step", disable=None):
            train_step.step(batch, epoch)
    return now(device) - start


class Endless:
    """Endless batches of a Resident, in one order after another."""

    def __init__(self, resident, clips, batch_size):
        self.resident, self.clips, self.batch_size = resident, clips, batch_size
        self.iterator = iter(())

    def __call__(self):
        batch = next(self.iterator, None)
        if batch is None:
            self.iterator = self.resident(torch.randperm(self.clips), self.batch_size)
            batch = next(self.iterator)
        return batch


def breakdown(train_step, batches, device, steps):
    """Seconds per step by phase; the clocks synchronize with the device at each change, which adds a small overhead."""
    watch = Stopwatch(device)
    for owner, function, name in (
            (train_step.system, "features", "encode"), (train_step.system, "encode", "encode"),
            (train_step.system, "init_codebooks", "codebooks"), (train_step.system, "update_codebooks", "codebooks"),
            (train_step.system, "training_pass", "auxiliary networks"), (train_step, "losses", "decode, losses"),
            (train_step.optimizers, "clip_gradients", "clipping"), (train_step.optimizers, "step", "optimizer")):
        watch.wrap(owner, function, name)
    for _ in range(steps):
        with watch.on("data"):
            batch = batches()
        with watch.on("backward"):                  # everything without its own clock
            train_step.step(batch, LATE_EPOCH)
    return {name: time / steps for name, time in sorted(watch.times.items(), key=lambda item: -item[1])}


def trace(train_step, batches, device, path):
    """Profile three steps with torch.profiler: write a Chrome trace to `path`, and print a table of the slowest
    operations."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(3):
            train_step.step(batches(), LATE_EPOCH)
        now(device)
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=20))


def main(argv=None):
    """Measure, print a table and, if asked, write JSON."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="published", help="sizes of the networks")
    parser.add_argument("--modalities", nargs="+", choices=MODALITIES, default=MODALITIES, help="modalities to use")
    parser.add_argument("--n_embeddings", type=positive, default=argparse.SUPPRESS,
                        help="codes in a codebook (default: that of the widths)")
    parser.add_argument("--seconds", type=positive, default=10, help="of a clip")
    parser.add_argument("-b", "--batch_size", type=int, default=80, help="clips per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two warm-up steps")
    parser.add_argument("--clips", type=int, default=None, help="clips in memory (default: enough for two steps)")
    parser.add_argument("--epochs", type=int, default=0, help="also time a run of this many epochs over all clips")
    parser.add_argument("--precision", choices=tuple(DTYPES), default=argparse.SUPPRESS,
                        help="as in pretrain.py (default: bf16 if the device has units for it, else float32)")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--recompute", action="store_true", help="recompute video activations to save memory")
    parser.add_argument("--compare_baseline", action="store_true", help="also time the plain float64 step")
    parser.add_argument("--baseline_steps", type=int, default=2, help="timed plain steps, after one warm-up step")
    parser.add_argument("--trace", type=Path, default=None, help="write a Chrome trace (.json.gz) of three steps and "
                        "print the slowest operations")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    torch.set_num_threads(opts.threads)
    keep_freed_memory()
    device = device_of(opts.device)
    if "precision" not in opts:
        opts.precision = "bf16" if has_bf16_units(device) else "float32"
    stored = torch.float64 if opts.precision == "float64" else torch.float32
    torch.manual_seed(0)
    kind = SYSTEMS[opts.system]
    sizes = WIDTHS[opts.widths] | ({"num_codes": opts.n_embeddings} if "n_embeddings" in opts else {})
    config = kind.Config.for_data([m for m in MODALITIES if m in opts.modalities], **sizes)
    model = kind(config).to(device, stored)
    plain_model = copy.deepcopy(model).double() if opts.compare_baseline else None
    clips = opts.clips or 2 * opts.batch_size
    resident = random_data(config, clips, opts.seconds, device, stored, stored_dtype(opts.precision, stored))
    data = Endless(resident, clips, opts.batch_size)
    train_step = TrainStep(model, StepRandom(torch.Generator().manual_seed(0)), OptimConfig(), StepConfig(
        bf16=opts.precision == "bf16", compile=opts.compile, recompute=opts.recompute))
    model.train()
    for _ in range(2):
        train_step.step(data(), LATE_EPOCH)
    ceilings = {precision: Ceiling(device, DTYPES[precision])
                for precision in (opts.precision, *(["float32"] if opts.precision == "bf16" else []))}
    for ceiling in ceilings.values():
        ceiling.measure()
    plain, plain_batch = None, None
    if opts.compare_baseline:
        for ours, theirs in zip(plain_model.encoder.levels, model.encoder.levels):
            ours.codebook.load_state_dict(theirs.codebook.state_dict())
        plain = PlainStep(plain_model.train(), StepRandom(torch.Generator().manual_seed(0)))
        plain_batch = {m: x.double() for m, x in data().items()}
        plain.step(plain_batch)

    times, waits, host_times, plain_times = [], [], [], []
    plain_at = {(i + 1) * opts.steps // opts.baseline_steps - 1 for i in range(opts.baseline_steps)} if plain else ()
    for number in range(opts.steps):
        for ceiling in ceilings.values():
            ceiling.measure()
        start = now(device)
        batch = data()
        drawn = now(device)
        train_step.step(batch, LATE_EPOCH)
        host_times.append(time.perf_counter() - drawn)
        end = now(device)
        waits.append(drawn - start)
        times.append(end - start)
        if number in plain_at:
            start = now(device)
            plain.step(plain_batch)
            plain_times.append(now(device) - start)
    run_seconds = whole_run(train_step, resident, clips, opts.batch_size, opts.epochs) if opts.epochs else None
    memory = peak_memory(device)
    parts = breakdown(train_step, data, device, max(2, opts.steps // 2))

    step = statistics.median(times)
    parts_of_work = {part: flops * opts.seconds * opts.batch_size for part, flops in flops_per_second(model).items()}
    work = sum(parts_of_work.values())
    ceiling = ceilings[opts.precision]
    shortest = (parts_of_work["autocast"] / ceiling.best
                + parts_of_work["rest"] / ceilings.get("float32", ceiling).best)
    metrics = {
        "system": opts.system, "widths": opts.widths, "batch_size": opts.batch_size, "seconds": opts.seconds,
        "num_codes": config.num_codes, "modalities": config.modalities,
        "precision": opts.precision, "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {opts.threads} threads",
        "compile": opts.compile, "recompute": opts.recompute,
        "torch": torch.__version__, "load_average": os.getloadavg()[0],
        "seconds_per_step": step, "fastest_step": min(times), "clips_per_second": opts.batch_size / step,
        "tflop_per_step": work / 1e12, "tflops": work / step / 1e12, "ceiling_tflops": ceiling.best / 1e12,
        "share_of_ceiling": work / step / ceiling.best, "float32_tflop_per_step": parts_of_work["rest"] / 1e12,
        "shortest_step": shortest, "host_seconds_per_step": statistics.median(host_times), "peak_memory_gb": memory,
        "data_share": statistics.median(waits) / step,
        "baseline_seconds_per_step": statistics.median(plain_times) if plain_times else None,
        "clips": clips, "epochs": opts.epochs, "seconds_of_run": run_seconds,
        "times": times, "baseline_times": plain_times, "breakdown": parts}
    report(metrics)
    if opts.trace:
        trace(train_step, data, device, opts.trace)
    if opts.json:
        opts.json.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def report(metrics):
    """Print the metrics."""
    print("{system}, {widths} widths, {batch_size} clips per step, {precision} on {device_name}".format(**metrics))
    print("step        {seconds_per_step:.4f} s (fastest {fastest_step:.4f}), {clips_per_second:.1f} clips/s"
          .format(**metrics))
    print("work        {tflop_per_step:.3f} TFLOP, {tflops:.3f} TFLOP/s = {share_of_ceiling:.1%} of the measured "
          "{ceiling_tflops:.3f} TFLOP/s of matrix products".format(**metrics))
    if metrics["precision"] == "bf16":
        print("            {float32_tflop_per_step:.3f} TFLOP of it in float32: at the ceilings of both precisions "
              "{shortest_step:.4f} s = {share:.1%} of the step".format(
                  share=metrics["shortest_step"] / metrics["seconds_per_step"], **metrics))
    if "cuda" in metrics["device"]:
        print("host        {host_seconds_per_step:.4f} s until all work of a step is submitted to the device"
              .format(**metrics))
    if metrics["baseline_seconds_per_step"]:
        ratio = metrics["baseline_seconds_per_step"] / metrics["seconds_per_step"]
        print(f"baseline    {metrics['baseline_seconds_per_step']:.3f} s in plain float64: {ratio:.1f} times as long")
    if metrics["epochs"]:
        print("run         {epochs} epochs of {clips:,} clips in {seconds_of_run:.1f} s".format(**metrics))
    print("memory      {peak_memory_gb:.2f} GB at the peak; data {data_share:.1%} of a step".format(**metrics))
    whole = sum(metrics["breakdown"].values())
    for name, part in metrics["breakdown"].items():
        print(f"  {name:20} {1e3 * part:9.2f} ms {part / whole:6.1%}")


if __name__ == "__main__":
    run(main)
