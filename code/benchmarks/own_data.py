"""Study of the defaults for own data: pretraining runs on data sets of several sizes, compared with the published
defaults.

    python own_data.py --recordings DIR --natural DIR --out studies/own-data.jsonl --runs spoken:200:AVT:published:0:300
    python own_data.py --out studies/own-data.jsonl --table

A run is DATA:CLIPS:MODALITIES:ARM:SEED:STEPS: a run of pretrain.py with --dataset_name custom, on the first train clips
of a data set, with the flags of an arm (`ARMS`). It is one line of --out; completed runs are skipped. Its checkpoints
are the points of its learning curve, each evaluated on the test clips with heads as in custom.sh (studies/own-data.md).
"""

import argparse
import json
import math
import shutil
import time
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from defaults import read, steps_of
from local_paths import LOCAL

from cmg.data.text import write_text_features
from cmg.data.text_backends import hashing_sentences
from cmg.demos import dialled_clips, spoken, spoken_clips, spoken_sources
from cmg.downstream import encode, fit_heads
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS
from cmg.programs.entry import pretrain
from cmg.results import provenance
from cmg.utils.errors import Parser, run

SECONDS = {"dialled": 3, "spoken": 3, "natural": 5}
CLIPS = {"train": 2400, "test": 300}
BLOCK = 100                                                     # clips generated at a time
MODALITIES = {"A": "audio", "V": "video", "T": "text", "L": "look"}     # look: vectors of another image of the class
PUBLISHED = ["--recipe", "published"]
CENTERED = [*PUBLISHED, "--standardize", "channel"]
SHARED = ["--recipe", "shared", "--standardize", "channel", "--schedule", "constant"]
ARMS = {
    "published": PUBLISHED,
    "centered": [*CENTERED, "--schedule", "constant"],
    **{f"shared_{b}_k{k}": [*SHARED, "--batch_size", str(b), "--n_embeddings", str(k)]
       for b in (48, 80) for k in (32, 64, 128, 256, 400)},
}
POINTS = 75                                                     # approximate steps between points of a curve


# ---------------------------------------------------------------------------------------------------------- data
def dialled(folder, _):
    """The seconds of the demo."""
    rng = np.random.default_rng(0)
    write(folder, lambda keys, split: (dialled_clips.audio_clips(keys, rng),
                                       dialled_clips.video_clips(keys, split, rng)),
          dialled_clips.PROMPTS, SECONDS["dialled"])


def spoken_digits(folder, options):
    """Recorded digits."""
    rng, speech = np.random.default_rng(0), spoken_sources.read_speech(options.recordings)
    images = spoken_sources.read_images(options.recordings)
    pools = {part: spoken_clips.pool(part, speech, images) for part in CLIPS}
    filters = spoken_clips.filters(pools["train"])

    def features(keys, split):
        casting = spoken_clips.Casting(pools[split], rng)
        clips = [casting.clip(one, one) for one in keys]
        return ([spoken_clips.audio_features(clip, pools[split]) for clip in clips],
                [spoken_clips.video_features(clip, pools[split], filters) for clip in clips])
    write(folder, features, spoken.PROMPTS, SECONDS["spoken"])


def write(folder, features, prompts, seconds):
    """Manifest, features and word vectors of ten classes; `features`: digits (N, T), split -> audio, video."""
    folder.mkdir(parents=True)
    rows, classes = [], list(prompts)
    with h5py.File(folder / "audio.h5", "w") as audio, h5py.File(folder / "video.h5", "w") as video:
        for split, start in ((split, start) for split, count in CLIPS.items() for start in range(0, count, BLOCK)):
            digits = np.arange(start, start + BLOCK) % len(classes)
            found = features(np.repeat(digits[:, None], seconds, 1), split)
            for number, digit in enumerate(digits):
                name = f"{split}{start + number:04}"
                audio[name], video[name] = (of[number].astype("f2") for of in found)
                rows.append((name, split, classes[digit], prompts[classes[digit]]))
    pd.DataFrame(rows, columns=["id", "split", "label", "prompt"]).to_csv(folder / "clips.csv", index=False)
    sentences = list(prompts.values())
    write_text_features(folder / "prompts.h5", {sentence: sentence for sentence in sentences},
                        hashing_sentences(sentences), "hashing", prompts_file=folder / "clips.csv")


def natural(folder, options):
    """Natural sounds and photographs. The list of clips alternates between classes, labeled clips first."""
    folder.mkdir(parents=True)
    for name in ("audio.h5", "video.h5", "prompts.h5"):
        shutil.copyfile(options.natural / name, folder / name)
    table = pd.read_csv(options.natural / "clips.csv")
    table["class"] = table["id"].map(pd.read_csv(options.natural / "sources.csv").set_index("id")["class"])
    table = table[table["split"].isin(CLIPS)].sort_values("label", key=pd.isna, kind="stable")
    table["number"] = table.groupby(["split", "class"]).cumcount()
    table.sort_values(["split", "number", "class"], ascending=[False, True, True]).to_csv(folder / "clips.csv",
                                                                                       index=False)


DATA = {"dialled": dialled, "spoken": spoken_digits, "natural": natural}


def look(folder):
    """Write the fourth modality: the mean over positions of another clip's video, of the same class and split."""
    table, rng = pd.read_csv(folder / "clips.csv"), np.random.default_rng(1)
    of_class = table["class"] if "class" in table else table["label"]
    with h5py.File(folder / "video.h5") as video, h5py.File(folder / "look.h5", "w") as file:
        for _, ids in table["id"].groupby([table["split"], of_class]):
            for name, other in zip(ids, rng.permutation(ids)):
                file[name] = video[other][:].astype("f4").mean((1, 2))


def manifest(folder, clips):
    """The list of the first `clips` train clips and all test clips."""
    path, table = folder / f"clips-{clips}.csv", pd.read_csv(folder / "clips.csv")
    pd.concat([table[table["split"] == "train"][:clips], table[table["split"] == "test"]]).to_csv(path, index=False)
    return path


# ---------------------------------------------------------------------------------------------------------- running
def measure(path, files, kinds, seconds):
    """Metrics of a checkpoint on test: "audio->video" -> accuracy in percent, for all pairs of modalities except text,
    including each with itself; `codes_audio`: codes in use; `common`: percent of audio's and video's codes that both
    use."""
    encoder = {None: Pretrained.load(path, "cpu", "float32").encoder}
    timed = [m for m in kinds if m != "text"]
    task = TASKS["custom"].of(files["custom.manifest"], {m: kinds[m] for m in timed}).open(
        files.get, timed, "default", in_memory=True, seconds=seconds)
    train, test = (encode.codes(encoder, next(iter(part.values())), timed) for part in (task.train, task.test))
    runs = {s: fit_heads.HeadRun(train[None, s], task.targets(train[None, s]), 0, {t: test[None, t] for t in timed})
            for s in timed}
    fit_heads.fit(list(runs.values()), task.make, task.measure, epochs=TASKS["custom"].epochs)
    found = {f"{s}->{t}": round(runs[s].curves[t]["accuracy"][-1], 1) for s, t in product(timed, timed)}
    used = {m: set(test[None, m].numbers.tolist()) for m in timed}
    a, v = used["audio"], used["video"]
    return found | {f"codes_{m}": len(codes) for m, codes in used.items()} | {
        "common": round(100 * len(a & v) / len(a | v), 1)}


def train_and_measure(name, options):
    """One run; returns its line."""
    data, clips, letters, arm, seed, steps = name.split(":")
    folder = options.work / data
    if not folder.exists():
        DATA[data](folder, options)
        look(folder)
    kinds = {MODALITIES[letter]: {"L": "vector"}.get(letter) for letter in letters}
    files = {"custom.manifest": manifest(folder, int(clips))}
    files |= {f"custom.{m}": folder / ("prompts.h5" if m == "text" else f"{m}.h5") for m in kinds}
    out = options.work / name.replace(":", "-")
    shutil.rmtree(out, ignore_errors=True)
    batch = int(dict(zip(ARMS[arm][::2], ARMS[arm][1::2])).get("--batch_size", 80))
    an_epoch = math.ceil(int(clips) / batch)
    arguments = ["--dataset_name", "custom", "--manifest", str(files["custom.manifest"]),
                 *(x for m in kinds for x in ("--features", f"{m}={files[f'custom.{m}']}")),
                 *(x for m, kind in kinds.items() if kind for x in ("--modality", f"{m}={kind}")),
                 "--seconds", str(SECONDS[data]), "--in_memory", "--seed", seed, "--n_epoch", "1000",
                 "--max_steps", steps, "--save_freq", str(max(round(POINTS / an_epoch), 1)), "--gpu", "cpu",
                 "--model_save_path", str(out / "checkpoints"), "--snapshot_pref", str(out / "run"), *ARMS[arm]]
    clock = time.process_time()
    pretrain(arguments, LOCAL)
    seconds = time.process_time() - clock
    curve = {step: measure(path, files, kinds, SECONDS[data])
             for step, path in sorted(steps_of(out / "checkpoints").items())}
    shutil.rmtree(out)
    return {"run": name, "cpu_seconds": round(seconds), "commit": provenance.source_commit(), "curve": curve}


# ---------------------------------------------------------------------------------------------------------- table
def table(lines):
    """Markdown: every point of the runs' curves, as mean over seeds; `share`: the worse direction of audio and video,
    in percent of the best same-modality value at any point on the same data."""
    points = {}
    for line in lines:
        *what, seed, _ = line["run"].split(":")
        for step, found in line["curve"].items():
            points.setdefault((*what, int(step)), []).append((seed, found))
    means = {key: {name: np.mean([found[name] for _, found in runs]) for name in runs[0][1]}
             for key, runs in points.items()}
    best = {key[:3]: {m: max(of[f"{m}->{m}"] for other, of in means.items() if other[:3] == key[:3])
                      for m in ("audio", "video")} for key in means}
    rows = ["| data | clips | modalities | arm | steps | seeds | A→V | V→A | A→A | V→V | share | codes A / V | "
            f"common |\n|{' --- |' * 13}"]
    for key in sorted(means, key=lambda key: (list(DATA).index(key[0]), int(key[1]), *key[2:])):
        of = means[key]
        values = [of[f"{s}->{t}"] for s, t in (("audio", "video"), ("video", "audio"), ("audio", "audio"),
                                               ("video", "video"))]
        share = 100 * min(values[0] / best[key[:3]]["video"], values[1] / best[key[:3]]["audio"])
        cells = [*key, " ".join(sorted(seed for seed, _ in points[key])), *(f"{value:.1f}" for value in values),
                 f"{share:.0f}", f"{of['codes_audio']:.0f} / {of['codes_video']:.0f}", f"{of['common']:.0f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, help="folder of the recordings of Spoken Digits")
    parser.add_argument("--natural", type=Path, help="folder of natural sounds and photographs")
    parser.add_argument("--out", type=Path, required=True, help="file for results, one JSON line per run")
    parser.add_argument("--work", type=Path, default=Path("own-data"), help="folder for the data and the current run")
    parser.add_argument("--runs", nargs="+", default=[], metavar="DATA:CLIPS:MODALITIES:ARM:SEED:STEPS")
    parser.add_argument("--table", action="store_true", help="print a table of existing results and exit")
    options = parser.parse_args(argv)
    if options.table:
        print(table(read(options.out)))
        return
    for name in options.runs:
        if name not in [line["run"] for line in read(options.out)]:
            line = train_and_measure(name, options)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run(main)
