"""Growth of time and memory with each size of the workload, as a Markdown table and a picture.

    python code/benchmarks/growth.py [--parts step evaluation ...] [--figure FILE] [--json FILE]

Each row is measured in a separate process, because peak memory is that of a whole process. In each row, one size
differs from the base of its part, and ratios are relative to the base: growth is at most linear if the ratio of times
does not exceed that of sizes. Times are processor seconds on a CPU, which are less affected by other programs, and
seconds on a GPU.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from matplotlib.ticker import LogLocator
from pretrain_step import DTYPES, LATE_EPOCH, WIDTHS, Endless, random_data
from timing import add_device, now, peak_memory
from tqdm import tqdm

from cmg.cli import LocalPaths
from cmg.cli import device as device_of
from cmg.data.fingerprint import fingerprint
from cmg.downstream import encode, fit_heads
from cmg.downstream.task import Task
from cmg.models.config import MODALITIES
from cmg.models.heads import ClipHead, SegmentHead
from cmg.models.random import StepRandom
from cmg.programs import prepare
from cmg.report import style
from cmg.systems.base import FrozenEncoder
from cmg.systems.registry import SYSTEMS
from cmg.training.batches import stored_dtype
from cmg.training.runtime import keep_freed_memory
from cmg.training.settings import OptimConfig, StepConfig
from cmg.training.step import TrainStep
from cmg.utils.errors import InputError, Parser, run

STEPS = 3                       # timed steps of pretraining; the fastest counts
EPOCHS = 2                      # for the heads
SPLITS = ("train", "train", "train", "val", "test")


class Clock:
    """Seconds of a block: processor time, or time until a GPU has finished."""

    def __init__(self, device):
        self.device = device

    def read(self):
        return time.process_time() if self.device.type == "cpu" else now(self.device)

    def __enter__(self):
        self.begun = self.read()
        return self

    def __exit__(self, *error):
        self.seconds = self.read() - self.begun


# ----------------------------------------------------------------------------------------------------- what is measured
def step(opts, device, n_embeddings, batch_size, seconds, modalities):
    """Seconds of a pretraining step (cmg/training/step.py) on random features."""
    keep_freed_memory()
    torch.manual_seed(0)
    kind, stored = SYSTEMS[opts.system], torch.float64 if opts.precision == "float64" else torch.float32
    config = kind.Config.for_data(modalities, **WIDTHS[opts.widths] | {"num_codes": n_embeddings})
    resident = random_data(config, 2 * batch_size, seconds, device, stored, stored_dtype(opts.precision, stored))
    batches = Endless(resident, 2 * batch_size, batch_size)
    trainer = TrainStep(kind(config).to(device, stored).train(), StepRandom(torch.Generator().manual_seed(0)),
                        OptimConfig(), StepConfig(bf16=opts.precision == "bf16"))
    times = []
    for _ in range(1 + STEPS):
        with Clock(device) as clock:
            trainer.step(batches(), LATE_EPOCH)
        times.append(clock.seconds)
    return min(times[1:])


class RandomClips(torch.utils.data.Dataset):
    """Audio of random clips, with one class per clip."""

    name, classes = "random clips", ()

    def __init__(self, clips, classes, width):
        generator = np.random.default_rng(0)
        self.audio = generator.standard_normal((clips, 10, width), np.float32)
        self.label = np.zeros((clips, 10, classes + 1), np.float32)
        self.label[np.arange(clips), :, generator.integers(0, classes, clips)] = 1

    def __len__(self):
        return len(self.audio)

    def __getitem__(self, i):
        return {"audio": self.audio[i], "label": self.label[i]}


def evaluation(opts, device, clips, classes):
    """Seconds to encode clips, to train a head for clips and one for seconds, and to evaluate both."""
    torch.manual_seed(0)
    kind = SYSTEMS[opts.system]
    encoder = kind(kind.Config.for_data(MODALITIES, **WIDTHS[opts.widths])).encoder
    for codes in encoder.codebooks:
        codes.normal_()
    encoder = FrozenEncoder(encoder, kind).to(device)
    dataset = RandomClips(clips, classes, encoder.config.feature_dim("audio"))
    with Clock(device) as clock:
        part = encode.codes({None: encoder}, dataset, ["audio"])[None, "audio"]
        for head in (ClipHead, SegmentHead):
            task = Task("growth", head, "accuracy", {}, {})
            head_run = fit_heads.HeadRun(part, task.targets(part), 0, {"test": part})
            fit_heads.fit([head_run], lambda width, head=head: head(width, classes), task.measure, epochs=EPOCHS)
    return clock.seconds


def make_clips(folder, clips):
    """A manifest of small clips, all different, and their features: (manifest, folder of features)."""
    features, rows, header = folder / "features", ["id,split,label"], io.BytesIO()
    features.mkdir()
    np.save(header, np.zeros((2, 8), np.float32))
    header = header.getvalue()[:-64]
    values = np.random.default_rng(0).standard_normal((clips, 2, 8), np.float32)
    for k in range(clips):
        path = features / f"clip{k:06}.npy"
        path.write_bytes(header + values[k].tobytes())
        os.utime(path, (0, 0))          # the fingerprint cache skips files that have just changed
        rows.append(f"clip{k:06},{SPLITS[k % len(SPLITS)]},class{k % 28}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "clips.csv", features


def check(opts, device, clips):
    """Processor seconds of `prepare.py check` on custom clips."""
    with tempfile.TemporaryDirectory() as folder:
        manifest, features = make_clips(Path(folder), clips)
        command = ["check", "--dataset", "custom", "--manifest", str(manifest), "--features", f"audio={features}",
                   "--seconds", "2"]
        with Clock(device) as clock, contextlib.redirect_stdout(io.StringIO()):
            prepare.main(command, LocalPaths())
        return clock.seconds


def fingerprints(opts, device, clips):
    """Processor seconds of fingerprinting a folder twice: the first time reads all files, the second only checks
    them."""
    with tempfile.TemporaryDirectory() as folder:
        _, features = make_clips(Path(folder), clips)
        with Clock(device) as clock:
            for _ in range(2):
                fingerprint(features, cache=Path(folder) / "cache", quiet=True)
        return clock.seconds


def make_video(path, minutes):
    """A video of noise, with a 64 x 48 picture and 16,000 audio samples per second."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("mpeg4", rate=1), container.add_stream("aac", rate=16000)
        pictures.width, pictures.height, sound.layout = 64, 48, "mono"
        for _ in range(60 * minutes):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8), format="rgb24")
            samples = av.AudioFrame.from_ndarray(rng.normal(0, 0.1, (1, 16000)).astype("f4"), "fltp", "mono")
            samples.sample_rate = 16000
            for stream, one in ((pictures, frame), (sound, samples)):
                container.mux(stream.encode(one))
        for stream in (pictures, sound):
            container.mux(stream.encode(None))


def extraction(opts, device, minutes):
    """Processor seconds of `prepare.py features` for all seconds of one video, without networks."""
    with tempfile.TemporaryDirectory() as folder:
        make_video(Path(folder) / "video.mkv", minutes)
        with Clock(device) as clock, contextlib.redirect_stdout(io.StringIO()):
            code = prepare.main(["features", str(Path(folder) / "video.mkv"), "--out", str(Path(folder) / "out"),
                                 "--seconds", "auto", "--frames-per-second", "1", "--audio-encoder", opts.audio_encoder,
                                 "--video-encoder", opts.video_encoder, "--device", "cpu"], LocalPaths())
        if code:
            raise InputError(f"a video of {minutes} minutes: the extraction failed with exit code {code}")
        return clock.seconds


# Part -> (function to measure, base, sizes that differ from it).
PARTS = {
    "step": (step, {"n_embeddings": 400, "batch_size": 40, "seconds": 10, "modalities": MODALITIES}, {
        "n_embeddings": (100, 3200), "batch_size": (10, 160), "seconds": (5, 40),
        "modalities": (("audio", "video"),)}),
    "evaluation": (evaluation, {"clips": 1000, "classes": 28}, {"clips": (4000, 16000), "classes": (112, 448)}),
    "check": (check, {"clips": 3125}, {"clips": (25000, 200000)}),
    "fingerprint": (fingerprints, {"clips": 3125}, {"clips": (25000, 200000)}),
    "extraction": (extraction, {"minutes": 5}, {"minutes": (20, 60)})}
ON_CPU = ("check", "fingerprint", "extraction")
TITLES = {"n_embeddings": "codes K", "batch_size": "clips B", "seconds": "seconds T"}


def measure(part, sizes, argv):
    """{"seconds", "memory_gb"} of one row, measured in a separate process."""
    command = [sys.executable, __file__, *argv, "--row", json.dumps([part, sizes])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{part} {sizes}: failed with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def shown(value):
    return "+".join(value) if isinstance(value, tuple) else f"{value:,}"


def amount(value):
    return len(value) if isinstance(value, tuple) else value


def table(rows):
    """Rows as a Markdown table."""
    lines = [["", "times the size", "seconds", "ratio", "peak memory, GB", "ratio"], ["---"] * 6]
    for row in rows:
        lines.append([f"{row['part']}: {row['title']}", f"{row['times']:.2f}", f"{row['seconds']:.3g}",
                      f"{row['seconds_ratio']:.2f}", f"{row['memory_gb']:.2f}", f"{row['memory_ratio']:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@style.styled
def draw(rows, path):
    """A panel per part: ratio of times against ratio of sizes, with a line for linear growth."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure, (axes,) = style.new_figure(1, len(parts), size=(3.2 * len(parts), 3.2))
    for axis, part in zip(axes, parts):
        of_part = [row for row in rows if row["part"] == part]
        lines = {}
        for row in of_part:
            for size in [row["size"]] if row["size"] else {row["size"] for row in of_part if row["size"]}:
                lines.setdefault(size, []).append((row["times"], row["seconds_ratio"], row["memory_ratio"]))
        for color, (size, points) in zip((*style.COLOR.values(), style.WRONG), sorted(lines.items())):
            times, seconds, memory = zip(*sorted(points))
            axis.plot(times, seconds, "o-", color=color, markersize=3, label=TITLES.get(size, size))
            axis.plot(times, memory, "--", color=color, linewidth=0.8)
        ends = [min(row["times"] for row in of_part), max(row["times"] for row in of_part)]
        axis.plot(ends, ends, color=style.GRAY, linewidth=0.8, zorder=0)
        axis.set(xscale="log", yscale="log", title=part, xlabel="times the size")
        for along in (axis.xaxis, axis.yaxis):
            along.set_major_locator(LogLocator(subs=(1, 3)))
            along.set_major_formatter("{x:g}")
            along.set_minor_formatter("")
        axis.legend(frameon=False)
    axes[0].set_ylabel("times the seconds; dashed: the memory")
    style.save(figure, path)


def main(argv=None):
    """Measure all sizes, print the table and draw the picture."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="what to measure")
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="demo", help="sizes of the networks")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="float32", help="precision of pretraining steps")
    add_device(parser)
    for modality, encoder in (("audio", "logmel"), ("video", "patches")):
        parser.add_argument(f"--{modality}-encoder", default=encoder, help="encoder for the extraction")
    parser.add_argument("--figure", type=Path, default=None, help="write the picture to this PNG file")
    parser.add_argument("--json", type=Path, default=None, help="write all values to this file")
    parser.add_argument("--row", type=json.loads, default=None, help=argparse.SUPPRESS)
    opts = parser.parse_args(argv)
    device = device_of(opts.device)
    if opts.row:
        part, sizes = opts.row
        taken = PARTS[part][0](opts, torch.device("cpu") if part in ON_CPU else device, **sizes)
        print(json.dumps({"seconds": taken, "memory_gb": peak_memory(device)}))
        return
    cells = [(part, name, value) for part in opts.parts for name, values in {None: (None,), **PARTS[part][2]}.items()
             for value in values]
    rows, bases = [], {}
    for part, name, value in tqdm(cells, "measuring", unit="row", disable=None):
        base = PARTS[part][1]
        found = measure(part, base | ({name: value} if name else {}), argv)
        bases.setdefault(part, found)
        title = f"{TITLES.get(name, name)} = {shown(value)}" if name else "base: " + ", ".join(
            f"{TITLES.get(n, n)} = {shown(v)}" for n, v in base.items())
        rows.append(found | {"part": part, "size": name, "title": title,
                             "times": amount(value) / amount(base[name]) if name else 1,
                             "seconds_ratio": found["seconds"] / bases[part]["seconds"],
                             "memory_ratio": found["memory_gb"] / bases[part]["memory_gb"]})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{SYSTEMS[opts.system].label}, {opts.widths} widths, {opts.precision} on {name}\n\n{table(rows)}")
    if opts.json:
        opts.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if opts.figure:
        draw(rows, opts.figure)


if __name__ == "__main__":
    run(main)
