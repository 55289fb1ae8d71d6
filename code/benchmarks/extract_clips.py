"""Time and memory of `prepare.py features` with the published networks, and on an hour-long video.

    python code/benchmarks/extract_clips.py [--clips 2] [--side-by-side 8] [--device cuda] [--hour] [--json FILE]

Clips of ten seconds (640x360, 25 frames a second, stereo sound) are generated here, and weights are random numbers with
the published shapes; neither affects the computation. The time per clip, in total and by part, is compared with a plain
matrix product on the same machine, measured in between; on a CPU, processor time is also reported, which is less
affected by other programs. `--side-by-side` runs the real command with `logmel` and `patches` on one core and on two.
`--hour` runs it on an hour-long video, on the first ten seconds with the published networks and on all of it with
`logmel` and `patches`, and reports the peak memory of each.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from local_paths import SOURCE
from timing import Ceiling, Stopwatch, now

from cmg.cli import LocalPaths
from cmg.extract import audio, networks, output
from cmg.extract.clip import Timing, extract
from cmg.extract.encoders import BATCH, CPU_BATCH, VGG19Pictures, VGGishSound
from cmg.extract.media import Media
from cmg.extract.weights import Weights
from cmg.programs import prepare
from cmg.utils.cores import usable_cores
from cmg.utils.errors import InputError, Parser, run

RATE, SIZE, SOUND = 25, (640, 360), 44100
VGG19_FLOP = 39e9               # per frame, up to the fifth pooling: 2 x 19.5 G multiplications
FRAMES = 160                    # per clip
PERIOD = Fraction(101, 10)      # seconds between copies of a clip, because a codec's first packets are before 0


def make_clip(path, seed=0, seconds=10):
    """An mp4 with moving noise and a noisy sound."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8 + RATE * seconds, 3)).astype(np.uint8)
    base = np.repeat(np.repeat(base, 8, 0), 8, 1)
    with av.open(str(path), "w") as out:
        pictures, heard = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=SOUND, layout="stereo")
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        pictures.options = {"preset": "ultrafast"}
        for k in range(RATE * seconds):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(base[:, 4 * k:4 * k + SIZE[0]]), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, RATE)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        wave = (0.1 * rng.standard_normal((2, SOUND * seconds))).astype(np.float32)
        for k in range(0, wave.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, k:k + 1024]), "fltp", "stereo")
            frame.sample_rate, frame.time_base, frame.pts = SOUND, Fraction(1, SOUND), k
            out.mux(heard.encode(frame))
        out.mux(heard.encode(None))


def make_long(source, path, times):
    """Repeat the packets of `source` with advancing timestamps, which writes an hour in a second."""
    with av.open(str(path), "w") as out, av.open(str(source)) as first:
        targets = {stream.index: out.add_stream_from_template(stream) for stream in first.streams}
        for k in range(times):
            with av.open(str(source)) as again:
                for packet in again.demux():
                    if packet.dts is not None:
                        shift = int(PERIOD * k / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = targets[packet.stream.index]
                        out.mux(packet)


def peak_memory(command):
    """Largest resident memory of a command in GB; its own output is passed on if it fails."""
    code = ("import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
            "print(r.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    answer = subprocess.run([sys.executable, "-c", code, *map(str, command)], stdout=subprocess.PIPE, text=True)
    returned, size = map(int, answer.stdout.split())
    if returned:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {returned}")
    return size * 1024 / 1e9


def time_clips(folder, count, device):
    """Seconds per clip, in total and by part, and the fraction of the machine's matrix-product ceiling."""
    torch.manual_seed(0)
    encoders = {}
    for network, make, kind in (("vggish", networks.VGGish, VGGishSound), ("vgg19", networks.VGG19, VGG19Pictures)):
        weights = Weights(network, "random", "", "", make().state_dict())
        more = {"front": audio.FrontEnd()} if network == "vggish" else {}
        encoders[network] = kind(weights, device=device, **more)
    clip = folder / "clip.mp4"
    watch, ceiling = Stopwatch(device), Ceiling(device, torch.float32)
    watch.wrap(encoders["vggish"], "encode", "sound: decoding, log-mel and VGGish")
    watch.wrap(encoders["vgg19"], "encode", "VGG-19")
    watch.wrap(encoders["vgg19"], "prepare", "resizing")
    sound, pictures = encoders["vggish"], encoders["vgg19"]
    extract(clip, "warm", Timing(1), sound, pictures)
    watch.times.clear()
    ceiling.measure()
    start, measuring, zips, processor, product = now(device), 0.0, 0.0, 0.0, float("inf")
    for _ in range(count):
        begun = time.process_time()
        made = extract(clip, "clip", Timing(), sound, pictures,
                       batch=BATCH if device.type == "cuda" else CPU_BATCH)
        processor += (time.process_time() - begun) / count
        begun = now(device)
        output.zip_bytes("clip", made.video)
        zips += now(device) - begun
        begun = now(device)
        ceiling.measure()
        product = min(product, processor_seconds(ceiling))
        measuring += now(device) - begun
    whole = (now(device) - start - measuring) / count
    parts = {name: seconds / count for name, seconds in watch.times.items()} | {"zip": zips / count}
    parts["decoding pictures and the rest"] = whole - sum(parts.values())
    flops = VGG19_FLOP * FRAMES
    return {"seconds_per_clip": whole, "parts": parts, "ceiling_tflops": ceiling.best / 1e12,
            "share_vgg19": flops / parts["VGG-19"] / ceiling.best, "share_whole": flops / whole / ceiling.best,
            "processor_seconds": processor, "share_processor": flops / processor * product,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads()}


def time_cores(folder, count, turns=3):
    """Clips per second of the whole command with the offline encoders, on one core and on two, and their ratio. The
    best of several alternating runs counts, because other programs may use the cores."""
    if usable_cores() < 2:
        raise InputError("--side-by-side: only one CPU core is available; expected two; pass 0")
    cores, best = sorted(os.sched_getaffinity(0)), {1: 0.0, 2: 0.0}
    (folder / "videos").mkdir()
    for k in range(count):
        make_clip(folder / "videos" / f"{k}.mp4", k)
    command = ["features", str(folder / "videos"), "--audio-encoder", "logmel", "--video-encoder", "patches",
               "--device", "cpu", "--overwrite", "--out", str(folder / "features")]
    try:
        for _ in range(turns):
            for used in best:
                os.sched_setaffinity(0, cores[:used])       # applies to threads created from now on
                begun = time.perf_counter()
                prepare.main(command, LocalPaths())
                best[used] = max(best[used], count / (time.perf_counter() - begun))
    finally:
        os.sched_setaffinity(0, cores)
    return {"clips_per_second_1_core": best[1], "clips_per_second_2_cores": best[2], "ratio": best[2] / best[1],
            "load": os.getloadavg()[0]}


def processor_seconds(ceiling):
    """Processor seconds per FLOP in the largest product of the ceiling."""
    a, b = ceiling.pairs[-1]
    begun = time.process_time()
    a @ b
    return (time.process_time() - begun) / (2 * len(a) ** 3)


def hour_memory(folder):
    """Peak memory in GB of the real command on a video of an hour."""
    make_long(folder / "clip.mp4", folder / "hour.mp4", int(3600 / PERIOD) + 1)
    torch.manual_seed(0)
    torch.save(networks.VGGish().state_dict(), folder / "vggish.pth")
    torch.save(networks.VGG19().state_dict(), folder / "vgg19.pth")
    command = [sys.executable, SOURCE / "prepare.py", "features", folder / "hour.mp4", "--device", "cpu"]
    published = ["--vggish", folder / "vggish.pth", "--vggish-kind", "audioset", "--vgg19", folder / "vgg19.pth",
                 "--vgg19-kind", "caffe", "--out", folder / "published"]
    offline = ["--audio-encoder", "logmel", "--video-encoder", "patches", "--seconds", "auto",
               "--frames-per-second", "2", "--out", folder / "offline"]
    return {"seconds": float(Media(folder / "hour.mp4").facts.duration),
            "first_10_s_published_networks": peak_memory([*command, *published]),
            "whole_hour_logmel_patches": peak_memory([*command, *offline])}


def main(argv=None):
    """Measure; print a table and, if asked, JSON."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2, help="number of clips to time; 0 for none")
    parser.add_argument("--side-by-side", type=int, default=0, metavar="N",
                        help="N clips with the offline encoders, on one core and on two; 0 for none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--hour", action="store_true", help="also measure the memory for an hour-long video")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    metrics = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clip(folder / "clip.mp4")
        if opts.clips:
            torch.backends.cudnn.allow_tf32 = False
            metrics |= time_clips(folder, opts.clips, torch.device(opts.device))
            print(f"{metrics['device']}, {metrics['threads']} threads: {metrics['seconds_per_clip']:.2f} s a clip "
                  f"({1 / metrics['seconds_per_clip']:.2f} clips a second), {metrics['processor_seconds']:.1f} "
                  "processor seconds")
            for name, seconds in metrics["parts"].items():
                print(f"  {name:36}{seconds:9.3f} s")
            print(f"  ceiling {metrics['ceiling_tflops']:.3f} TFLOP/s: VGG-19 reaches {metrics['share_vgg19']:.1%} of "
                  f"it, the whole {metrics['share_whole']:.1%}; in processor time {metrics['share_processor']:.1%}")
        if opts.side_by_side:
            found = metrics["cores"] = time_cores(folder, opts.side_by_side)
            print(f"offline encoders: {found['clips_per_second_1_core']:.2f} clips per second on one core, "
                  f"{found['clips_per_second_2_cores']:.2f} on two, {found['ratio']:.2f} times as many (load average "
                  f"{found['load']:.1f}, of this program too)")
        if opts.hour:
            metrics["hour"] = hour_memory(folder)
            for name, value in metrics["hour"].items():
                print(f"  hour-long video, {name}: {value:.2f}{'' if name == 'seconds' else ' GB'}")
    if opts.json:
        opts.json.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
