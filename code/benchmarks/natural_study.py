"""Study of systems, losses and options on natural sounds and photographs: pretraining runs with one option changed at a
time.

    python natural_study.py --data DIR --out studies/natural.jsonl --arms dcid h_dcid --modalities av avt --seeds 0 1
    python natural_study.py --data DIR --out studies/natural.jsonl --reference
    python natural_tables.py studies/natural.jsonl --write studies

DIR holds clips.csv, audio.h5, video.h5 and prompts.h5, as expected by `natural.sh --features`. A run is a run of
pretrain.py with the flags of an arm (`ARMS`) and a checkpoint every --every steps, each of which is a point of its
learning curve: heads as in custom.sh (30 epochs, the last counts), evaluated on val and test in every direction. A run
is one line of --out. Completed runs are skipped, and an interrupted run resumes from its last checkpoint.
"""

import argparse
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from defaults import read, steps_of
from local_paths import LOCAL
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmg.cli import parse_pretrain
from cmg.downstream import encode, fit_heads, metrics
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS
from cmg.models import toc
from cmg.models.toc import Selection
from cmg.programs.entry import pretrain
from cmg.results import provenance
from cmg.systems.base import FrozenEncoder
from cmg.systems.registry import SYSTEMS
from cmg.utils.errors import Parser, run

PAIRS = [(s, t) for s in ("audio", "video") for t in ("audio", "video")]
HEAD_EPOCHS, HEAD_SEED = 30, 43
CHANNELS = (64, 96, 128, 160, 196, 224)                     # for TOC, selected on val
FRACTIONS = (5, 10, 25, 50, 100)                            # percent of the labeled clips of each class
NOISE = (0.5, 1.0)                                          # in standard deviations of a channel
CENTERED = ["--recipe", "published", "--standardize", "channel"]
SHARED = ["--recipe", "shared", "--standardize", "channel", "--n_embeddings", "400", "--batch_size", "80"]
RAW = ["--standardize", "none"]
ARMS = {name: [*CENTERED, "--system", name] for name in ("dcid", "h_dcid", "fcid", "micu", "codaar")} | {
    "dcid_raw": [*CENTERED, *RAW],
    "h_dcid_raw": [*CENTERED, "--system", "h_dcid", *RAW],
    "dcid_shared": SHARED,
    "dcid_shared_raw": [*SHARED, *RAW],
    "dcid_shared_club01": [*SHARED, "--weights", "club=0.1"],
    "h_dcid_shared": [*SHARED, "--system", "h_dcid"],
    "h_dcid_shared_club01": [*SHARED, "--system", "h_dcid", "--weights", "club=0.1"],
    "no_cpc": [*CENTERED, "--without", "cpc"],
    "no_club": [*CENTERED, "--without", "club"],
    "club01": [*CENTERED, "--weights", "club=0.1"],
    "h_dcid_club01": [*CENTERED, "--system", "h_dcid", "--weights", "club=0.1"],
    "h_dcid_no_club": [*CENTERED, "--system", "h_dcid", "--without", "club"],
    "no_cmcm": [*CENTERED, "--without", "cmcm"],
    "own_ema": [*CENTERED, "--without", "mm_ema"],
    "no_reset": [*CENTERED, "--without", "reset"],
    "k100": [*CENTERED, "--n_embeddings", "100"],
    "k200": [*CENTERED, "--n_embeddings", "200"],
    "k800": [*CENTERED, "--n_embeddings", "800"],
    "attention": [*CENTERED, "--mm_ema", "attention"],
    "joint": [*CENTERED, "--code_choice", "joint"],
    "contrast": [*CENTERED, "--weights", "contrast=3"],
    "shared_no_contrast": [*SHARED, "--weights", "contrast=0"],
}


# ---------------------------------------------------------------------------------------------------------- measuring
def features(data, modalities):
    """Arguments of pretrain.py for the data; `modalities` is "av" or "avt"."""
    files = {"audio": "audio.h5", "video": "video.h5"} | ({"text": "prompts.h5"} if modalities == "avt" else {})
    return ["--manifest", str(data / "clips.csv"),
            *(part for m, name in files.items() for part in ("--features", f"{m}={data / name}"))]


class Data:
    """The task of custom.sh, and its labeled clips: role -> Clips of both modalities."""

    def __init__(self, folder):
        files = {"custom.manifest": folder / "clips.csv", "custom.audio": folder / "audio.h5",
                 "custom.video": folder / "video.h5"}
        self.task = TASKS["custom"].of(files["custom.manifest"], dict.fromkeys(("audio", "video"))).open(
            files.get, ("audio", "video"), "default", in_memory=True, seconds=5)
        self.clips = {"train": self.task.train["audio"], "val": self.task.val["audio"],
                      "test": self.task.test["audio"]}


def fit(data, train_on, epochs=HEAD_EPOCHS):
    """Trained HeadRun of each key of `train_on` (key -> EncodedSplit)."""
    runs = {key: fit_heads.HeadRun(part, part.clip_classes, HEAD_SEED, {}) for key, part in train_on.items()}
    fit_heads.fit(list(runs.values()), data.task.make, data.task.measure, epochs=epochs)
    return runs


def score(head_run, part):
    """Accuracy of a trained head, in percent."""
    return float(metrics.accuracy(fit_heads.predict([head_run.head], part), part.clip_classes)[0])


def encoded(data, encoder, noise=0.0):
    """(role, modality) -> EncodedSplit of every labeled clip; `noise`, in standard deviations, is added to features."""
    found = {}
    for role, clips in data.clips.items():
        clips = Noisy(clips, noise) if noise else clips
        for (_, modality), part in encode.codes({None: encoder}, clips, ("audio", "video")).items():
            found[role, modality] = part
    return found


class Noisy(torch.utils.data.Dataset):
    """Clips with Gaussian noise on their features, relative to the standard deviation of each channel over the set."""

    def __init__(self, clips, noise):
        whole = torch.utils.data.default_collate([clips[i] for i in range(len(clips))])
        rng = torch.Generator().manual_seed(0)
        for m in ("audio", "video"):
            x = whole[m]
            deviation = x.flatten(0, -2).std(0)
            whole[m] = x + noise * deviation * torch.randn(x.shape, generator=rng)
        self.whole, self.name = whole, clips.name

    def __len__(self):
        return len(self.whole["label"])

    def __getitem__(self, index):
        return {name: x[index].numpy() for name, x in self.whole.items()}


def measure(path, data):
    """One point of a curve: role -> accuracy of each direction, in percent, and use of codes."""
    parts = encoded(data, Pretrained.load(path, "cpu", "float32").encoder)
    use = {role: code_use(parts[role, "audio"], parts[role, "video"]) for role in ("val", "test")}
    return {role: found | use[role] for role, found in accuracies(data, parts).items()}


def accuracies(data, parts):
    """role -> accuracy of each direction, in percent, for heads after their last epoch."""
    runs = fit(data, {s: parts["train", s] for s in ("audio", "video")})
    return {role: {f"{s}->{t}": score(runs[s], parts[role, t]) for s, t in PAIRS} for role in ("val", "test")}


def code_use(audio, video):
    """Use of the codes of every level: `used`, `common` seconds in percent, `perplexity` of each modality."""
    found = {}
    levels = 1 if audio.indices.dim() == 2 else audio.indices.shape[-1]
    for level in range(levels):
        suffix = f"_{level + 1}" if level else ""
        chosen = [part.indices.reshape(-1, levels)[:, level].numpy() for part in (audio, video)]
        size = 1 + max(int(codes.max()) for codes in chosen)
        use = np.stack([np.bincount(codes, minlength=size) / len(codes) for codes in chosen])
        both = (use > 0).all(0)
        found[f"used{suffix}"] = int((use > 0).any(0).sum())
        found[f"common{suffix}"] = round(50 * float(use[:, both].sum()), 2)
        for name, p in zip(("audio", "video"), use):
            found[f"perplexity_{name}{suffix}"] = round(float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())), 2)
    return found


def final(path, data):
    """Measurements on the last checkpoint: predictions, TOC, fractions of labels, noise, both modalities, gap."""
    pretrained = Pretrained.load(path, "cpu", "float32")
    encoder, found = pretrained.encoder, {}
    parts = encoded(data, encoder)
    train = {s: parts["train", s] for s in ("audio", "video")}
    runs = fit(data, train)
    found["predictions"] = {f"{s}->{t}": letters(fit_heads.predict([runs[s].head], parts["test", t])[0].argmax(-1))
                            for s, t in PAIRS}

    choices = {f"{n},1,0": Selection(n, 1, 0) for n in CHANNELS}
    choices |= {f"released {s}->{t}": Selection(*numbers[:3], *numbers[3:])
                for (s, t), numbers in encoder.system.TOC_RELEASED.get("ave", {}).items()}
    kept = {name: toc.head_channels(encoder.codebooks, choice) for name, choice in choices.items()}
    heads = fit(data, {(name, s): train[s].select(kept[name]) for name in choices for s in train})
    found["toc"] = {name: {role: {f"{s}->{t}": score(heads[name, s], parts[role, t].select(kept[name]))
                                  for s, t in PAIRS} for role in ("val", "test")} for name in choices}

    # use as many steps as with all labels, so that the result does not reflect shorter training
    labels, found["fractions"] = train["audio"].clip_classes, {}
    for count in FRACTIONS[:-1]:
        few = torch.cat([torch.nonzero(labels == c).flatten()[:count] for c in labels.unique()])
        heads = fit(data, {s: part.of_clips(few) for s, part in train.items()},
                    epochs=HEAD_EPOCHS * FRACTIONS[-1] // count)
        found["fractions"][str(count)] = {f"{s}->{t}": score(heads[s], parts["test", t]) for s, t in PAIRS}

    found["noise"] = {}
    for noise in NOISE:
        noisy = encoded(data, encoder, noise)
        found["noise"][str(noise)] = {f"{s}->{t}": score(runs[s], noisy["test", t]) for s, t in PAIRS}
    found["missing"] = missing(data, parts)
    found["gap"] = gap(data, encoder)
    return found


def letters(classes):
    """Classes (N,) as text, one letter each."""
    return "".join(chr(ord("a") + number) for number in classes.tolist())


def missing(data, parts):
    """Accuracy of a head trained on both modalities of every clip, tested with both (mean of the outputs) or one."""
    train = {m: parts["train", m] for m in ("audio", "video")}
    both = joined(*train.values())
    head = fit(data, {"both": both})["both"].head
    outputs = {m: fit_heads.predict([head], parts["test", m])[0].softmax(-1) for m in train}
    targets = parts["test", "audio"].clip_classes
    found = {"both": outputs["audio"] + outputs["video"], **outputs}
    return {name: float(metrics.accuracy(out[None], targets)[0]) for name, out in found.items()}


def joined(first, second):
    """Concatenation of two EncodedSplits."""
    return encode.EncodedSplit(
        torch.cat([first.table, second.table]), torch.cat([first.numbers, second.numbers]),
        torch.cat([first.rows, second.rows + len(first.table)]), torch.cat([first.labels, second.labels]))


def gap(data, encoder):
    """Distance between modalities, for normalized mean vectors of test clips: `gap`, the distance between the
    modalities' means; `same_class` and `other_class`, mean cosines between modalities."""
    batch = torch.utils.data.default_collate([data.clips["test"][i] for i in range(len(data.clips["test"]))])
    z = {m: torch.nn.functional.normalize(encoder.embed(m, batch[m]).vectors.mean(1), dim=1)
         for m in ("audio", "video")}
    classes = batch["label"].amax(1).argmax(-1)
    cosine, same = z["audio"] @ z["video"].T, classes[:, None] == classes
    return {"gap": round(float((z["audio"].mean(0) - z["video"].mean(0)).norm()), 4),
            "same_class": round(float(cosine[same].mean()), 4), "other_class": round(float(cosine[~same].mean()), 4)}


# ---------------------------------------------------------------------------------------------------------- running
def train_and_measure(name, modalities, seed, options, data):
    """One run; returns its line."""
    folder = options.work / f"{name}-{modalities}-seed{seed}-{options.steps}-{options.clips or 'all'}"
    source = options.data if not options.clips else subset(options.data, options.clips, folder)
    arguments = ["--dataset_name", "custom", *features(options.data, modalities), "--seconds", "5", "--in_memory",
                 "--gpu", "cpu", "--n_epoch", "1000", "--max_steps", str(options.steps), "--seed", str(seed),
                 "--model_save_path", str(folder / "checkpoints"), "--snapshot_pref", str(folder / "run"),
                 "--save_every_steps", str(options.every), "--keep", "1000", "--print_freq", str(options.every),
                 "--resume", "auto", "--recipe", "published", "--standardize", "channel", *ARMS[name]]
    if source != options.data:
        arguments[arguments.index("--manifest") + 1] = str(source)
    done, clock = max(steps_of(folder / "checkpoints"), default=0), time.process_time()
    pretrain(arguments, LOCAL)
    seconds = time.process_time() - clock
    opts, files = parse_pretrain(arguments, LOCAL), steps_of(folder / "checkpoints")
    curve = {step: measure(path, data) for step, path in sorted(files.items())
             if step % options.every == 0 or step == options.steps}
    last = files[max(files)]
    line = {"arm": name, "modalities": modalities, "seed": seed, "steps": options.steps, "clips": options.clips,
            "flags": ARMS[name], "system": opts.system, "standardize": opts.standardize,
            "cpu_seconds": round(seconds * options.steps / (options.steps - done)) if done < options.steps else None,
            "commit": provenance.source_commit(),
            "curve": curve, "final": final(last, data)}
    last.rename(options.work / f"{folder.name}.pt")
    shutil.rmtree(folder)
    return line


def subset(folder, clips, work):
    """A manifest with the first `clips` train clips, and all others."""
    lines = (folder / "clips.csv").read_text().splitlines(keepends=True)
    train = [line for line in lines[1:] if line.split(",")[1] == "train"]
    # labeled and unlabeled clips in their usual proportion
    kept = set(train[::max(1, len(train) // clips)][:clips])
    work.mkdir(parents=True, exist_ok=True)
    path = work / "clips.csv"
    path.write_text("".join([lines[0], *(x for x in lines[1:] if x.split(",")[1] != "train" or x in kept)]))
    return path


def rounded(value):
    """Plain data with numbers rounded to two digits."""
    if isinstance(value, dict):
        return {name: rounded(of) for name, of in value.items()}
    if isinstance(value, list):
        return [rounded(of) for of in value]
    return round(value, 2) if isinstance(value, float) else value


def reference(options):
    """Lines that need no pretraining: the test clips, linear probes, chance, and untrained encoders."""
    data, rows = Data(options.data), read_sources(options.data)
    batches = {role: torch.utils.data.default_collate([clips[i] for i in range(len(clips))])
               for role, clips in data.clips.items()}
    classes = {role: batch["label"].amax(1).argmax(-1).numpy() for role, batch in batches.items()}
    number = {name: {source: k for k, source in enumerate(dict.fromkeys(row[name] for row in rows.values()))}
              for name in ("sound", "photo")}
    lines = [{"kind": "clips", "classes": classes["test"].tolist()} | {
        modality: [number[name][rows[i][name]] for i in data.clips["test"].ids]
        for modality, name in (("audio", "sound"), ("video", "photo"))}]
    probes = {}
    for modality in ("audio", "video"):
        x = {role: batch[modality].flatten(2).mean(1).numpy() for role, batch in batches.items()}
        found = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(
            x["train"], classes["train"]) for c in (1e-4, 1e-3, 1e-2, 1e-1, 1)]
        best = max(found, key=lambda probe: probe.score(x["val"], classes["val"]))
        probes[f"{modality}->{modality}"] = 100 * best.score(x["test"], classes["test"])
    lines += [{"kind": "reference", "arm": "probe", "modalities": None, "values": [probes]},
              {"kind": "reference", "arm": "chance", "modalities": None,
               "values": [{f"{s}->{t}": 100 / len(data.task.classes) for s, t in PAIRS}]}]
    untrained = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        system = SYSTEMS["dcid"]
        shapes = {m: batches["test"][m].shape[2:] for m in ("audio", "video")}
        encoder = FrozenEncoder(system(system.Config.for_data(shapes, seconds=5)).encoder, system)
        untrained.append(accuracies(data, encoded(data, encoder))["test"])
    lines.append({"kind": "reference", "arm": "untrained", "modalities": None, "values": untrained})
    kept = [line for line in read(options.out) if "curve" in line]
    options.out.write_text("".join(json.dumps(rounded(line)) + "\n" for line in (*lines, *kept)))


def read_sources(folder):
    """id -> row of sources.csv: the recording and the photograph of each clip."""
    with (folder / "sources.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def key(line):
    return line["arm"], line["modalities"], line["seed"], line["steps"], line["clips"]


def run_all(options):
    """Run everything that is missing in --out."""
    options.work = options.work or options.out.with_suffix("")
    data = Data(options.data)
    for seed in options.seeds:
        for modalities in options.modalities:
            for name in options.arms:
                wanted = {"arm": name, "modalities": modalities, "seed": seed, **{
                    k: v for k, v in vars(options).items() if k in ("steps", "clips")}}
                if key(wanted) in map(key, read(options.out)):
                    continue
                line = rounded(train_and_measure(name, modalities, seed, options, data))
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                last = line["curve"][max(line["curve"])]["test"]
                print(name, modalities, seed, last, flush=True)


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file for results, one JSON line per run")
    parser.add_argument("--work", type=Path, default=None, help="working folder of the runs (default: next to --out)")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="arms to run, in this order")
    parser.add_argument("--modalities", nargs="+", choices=("av", "avt"), default=["av", "avt"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=390)
    parser.add_argument("--every", type=int, default=78, help="steps between points of the curve")
    parser.add_argument("--clips", type=int, default=None, help="number of train clips for pretraining (default: all)")
    parser.add_argument("--reference", action="store_true", help="only write probes, chance, and untrained encoders")
    options = parser.parse_args(argv)
    reference(options) if options.reference else run_all(options)


if __name__ == "__main__":
    run(main)
