"""Study of the defaults: pretraining runs on digits, with one option changed at a time.

    python defaults.py --data_root ../../data/spoken --out study.jsonl --only default init_released --seeds 0 1
    python defaults.py --out study.jsonl --table test
    python defaults.py --data_root ../../data/spoken --out study.jsonl --measure CHECKPOINT...

A run is a run of pretrain.py with the flags of an arm (`ARMS`) and --save_every_steps. Each of its checkpoints is
evaluated and becomes a point of its learning curve. A run is one line of --out; completed runs are skipped, and an
interrupted run resumes from its last checkpoint. Select on "val", report "test" (studies/defaults.md).
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from local_paths import LOCAL
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from cmg.checkpoints import checkpoint
from cmg.cli import parse_pretrain
from cmg.data.layout import DATA_PATHS
from cmg.downstream import encode, fit_heads
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS
from cmg.programs.entry import pretrain
from cmg.results import provenance
from cmg.utils.errors import InputError, Parser, run

ARMS = {
    "default": [],
    "init_released": ["--codebook_init", "released"],
    "reset_released": ["--code_reset", "released"],
    "both_released": ["--codebook_init", "released", "--code_reset", "released"],
    "no_reset": ["--without", "reset"],
    "no_club": ["--without", "club"],
    "no_cmcm": ["--without", "cmcm"],
    "own_ema": ["--without", "mm_ema"],
    "joint": ["--code_choice", "joint"],
    "joint_second": ["--code_choice", "joint", "--reset_to", "second"],
    "age60": ["--reset_after", "60"],
    "age60_joint": ["--reset_after", "60", "--code_choice", "joint"],
    "age60_second": ["--reset_after", "60", "--reset_to", "second"],
    "age30": ["--reset_after", "30"],
    "contrast": ["--weights", "contrast=1"],
    "contrast_slow": ["--weights", "contrast=1", "--lr", "2e-4"],
    "shared": ["--recipe", "shared"],
    "contrast_1": ["--recipe", "shared", "--weights", "contrast=1"],
    "contrast_1_slow": ["--recipe", "shared", "--weights", "contrast=1", "--reset_after", "30", "--lr", "2e-4"],
    "contrast_10": ["--recipe", "shared", "--weights", "contrast=10"],
    "centered": ["--standardize", "channel"],
    "club01": ["--weights", "club=0.1"],
    "shared_club01": ["--recipe", "shared", "--weights", "club=0.1"],
    "h_dcid_club01": ["--system", "h_dcid", "--weights", "club=0.1"],
    "shared_centered": ["--recipe", "shared", "--standardize", "channel"],
    "h_dcid_centered": ["--system", "h_dcid", "--standardize", "channel"],
    "no_contrast": ["--recipe", "shared", "--weights", "contrast=0"],
    "no_contrast_slow": ["--recipe", "shared", "--weights", "contrast=0", "--reset_after", "30", "--lr", "2e-4"],
    "no_contrast_quick": ["--recipe", "shared", "--weights", "contrast=0", "--lr", "1e-3"],
    "quick": ["--lr", "8e-4"],
    "mi_forward_released": ["--mi_forward", "released"],
    "h_dcid": ["--system", "h_dcid"],
    "h_dcid_shared": ["--system", "h_dcid", "--recipe", "shared"],
    "fcid": ["--system", "fcid"],
    "micu": ["--system", "micu"],
    "codaar": ["--system", "codaar"],
}
PAIRS = [(s, t) for s in ("audio", "video") for t in ("audio", "video")]
HEAD_EPOCHS, HEAD_SEED = 30, 0                  # of the AVE task's heads


# ---------------------------------------------------------------------------------------------------------- measuring
def measure(path, data_root):
    """Metrics of a checkpoint: "val" and "test" -> transfer in percent for each pair, and `code_use`."""
    pretrained = Pretrained.load(path, torch.device("cpu"), "float32")
    task = TASKS["ave"].open(lambda name: data_root / DATA_PATHS[name], ("audio", "video"), "default", in_memory=True)
    sets = {role: encode.codes({None: pretrained.encoder}, clips["audio"], ("audio", "video"))
            for role, clips in (("train", task.train), ("val", task.val), ("test", task.test))}
    runs = {}
    for source in ("audio", "video"):
        part = sets["train"][None, source]
        measured = {(role, target): sets[role][None, target]
                    for role in ("val", "test") for target in ("audio", "video")}
        runs[source] = fit_heads.HeadRun(part, task.targets(part), HEAD_SEED, measured)
    fit_heads.fit(list(runs.values()), task.make, task.measure, epochs=HEAD_EPOCHS)
    found = {}
    for role in ("val", "test"):
        found[role] = {f"{s}->{t}": runs[s].curves[role, t]["accuracy"][-1] for s, t in PAIRS}
        found[role] |= code_use(*(sets[role][None, m] for m in ("audio", "video")))
    return found | {"test_distances": distances(pretrained.encoder, task.test["audio"])}


def code_use(audio, video):
    """How modalities share codes in the event seconds of clips, given two EncodedSplits of the same clips.

    `common_codes`: codes used by both modalities, in percent of those used by any; `common_seconds`: event seconds, of
    both modalities, on such codes; `overlap`: sum over codes of the smaller of the modalities' shares of use;
    `same_code`: seconds in which both choose the same code; `codes_used`; `perplexity` of each modality.
    """
    event = (audio.labels[..., -1] == 0).numpy()
    size = int(max(audio.numbers.max(), video.numbers.max())) + 1
    chosen = {"audio": _first(audio)[event], "video": _first(video)[event]}
    use = {m: np.bincount(codes, minlength=size) / len(codes) for m, codes in chosen.items()}
    both = (use["audio"] > 0) & (use["video"] > 0)
    any_ = (use["audio"] > 0) | (use["video"] > 0)
    found = {"common_codes": 100 * both.sum() / any_.sum(),
             "common_seconds": 50 * (use["audio"][both].sum() + use["video"][both].sum()),
             "overlap": 100 * np.minimum(use["audio"], use["video"]).sum(),
             "same_code": 100 * (chosen["audio"] == chosen["video"]).mean(), "codes_used": int(any_.sum())}
    for m, p in use.items():
        found[f"perplexity_{m}"] = np.exp(-(p[p > 0] * np.log(p[p > 0])).sum())
    return {name: round(float(value), 2) for name, value in found.items()}


def _first(part):
    """(N, T) codes of the first codebook."""
    return (part.indices if part.indices.dim() == 2 else part.indices[..., 0]).numpy()


@torch.no_grad()
def distances(encoder, clips):
    """Medians over event seconds of distances of the semantic vectors; None for encoders without levels.

    `aligned`, `unaligned`: between modalities at the same second, and at random seconds; `audio_to_code`,
    `video_to_code`: to the assigned code; `code_to_next`: from a used code to its nearest neighbor. For the midpoint
    between the modalities, consider the plane that separates its two nearest codes: `margin` is the distance of the
    midpoint from this plane, and `half_gap` is the distance of either modality from the midpoint across it. If it
    exceeds the margin, the modalities choose different codes.
    """
    if not hasattr(encoder.encoder, "levels"):
        return None
    level = encoder.encoder.levels[0]
    batch = torch.utils.data.default_collate([clips[i] for i in range(len(clips))])
    event = batch["label"][..., -1] == 0
    z = {m: level.encode_semantic(m, encoder.inputs(m, batch[m]))[event] for m in ("audio", "video")}
    codes, found = level.codebook.embedding, {}
    chosen = {m: torch.cdist(x, codes).min(1) for m, x in z.items()}
    used = codes[torch.cat([c.indices for c in chosen.values()]).unique()]
    between = torch.cdist(used, used)
    between.fill_diagonal_(torch.inf)
    found["aligned"] = (z["audio"] - z["video"]).norm(dim=1).median()
    found |= {f"{m}_to_code": c.values.median() for m, c in chosen.items()}
    found["code_to_next"] = between.min(1).values.median()
    midway = (z["audio"] + z["video"]) / 2
    near = torch.cdist(midway, codes).topk(2, largest=False)
    across = F.normalize(codes[near.indices[:, 0]] - codes[near.indices[:, 1]], dim=1)
    between_two = (codes[near.indices[:, 0]] + codes[near.indices[:, 1]]) / 2
    found["margin"] = ((midway - between_two) * across).sum(1).abs().median()
    found["half_gap"] = (((z["audio"] - z["video"]) / 2) * across).sum(1).abs().median()
    shuffled = z["video"][torch.randperm(len(z["video"]), generator=torch.Generator().manual_seed(0))]
    found["unaligned"] = (z["audio"] - shuffled).norm(dim=1).median()
    return {name: round(float(value), 4) for name, value in found.items()}


def probe(data_root):
    """Accuracy in percent of logistic regression on the raw features of single event seconds, AVE training to test."""
    task = TASKS["ave"].open(lambda name: data_root / DATA_PATHS[name], ("audio", "video"), "default", in_memory=True)
    parts = [torch.utils.data.default_collate([clips[i] for i in range(len(clips))])
             for clips in (task.train["audio"], task.test["audio"])]
    found = {}
    for name, of in (("audio", lambda part: part["audio"]),
                     ("video, summed over positions", lambda part: part["video"].sum((2, 3))),
                     ("video, all positions", lambda part: part["video"].flatten(2))):
        x, y = zip(*((of(part)[event].numpy(), part["label"].argmax(-1)[event].numpy()) for part in parts
                     for event in (part["label"][..., -1] == 0,)))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(x[0], y[0])
        found[name] = round(100 * model.score(x[1], y[1]), 1)
    return found


# ---------------------------------------------------------------------------------------------------------- running
def train_and_measure(name, flags, seed, options):
    """One run; returns its line."""
    folder = options.work / f"{options.dataset_name}-{name}-batch{options.batch_size}-seed{seed}"
    arguments = ["--preset", options.preset, "--dataset_name", options.dataset_name,
                 "--data_root", str(options.data_root), "--model_save_path", str(folder / "checkpoints"),
                 "--snapshot_pref", str(folder / "run"), "--seed", str(seed),
                 "--batch_size", str(options.batch_size), "--max_steps", str(options.steps),
                 "--n_epoch", "1000", "--save_every_steps", str(options.every), "--keep", "1000",
                 "--print_freq", str(options.every), "--resume", "auto", "--gpu", "cpu", *flags]
    clock, wall = time.process_time(), time.time()
    pretrain(arguments, LOCAL)
    seconds, wall = time.process_time() - clock, time.time() - wall
    opts = parse_pretrain(arguments, LOCAL)
    files = steps_of(folder / "checkpoints")
    curve = {step: measure(path, options.data_root) for step, path in files.items()
             if step % options.every == 0 or step == options.steps}
    last = files[max(files)]
    last.rename(folder / last.name)
    shutil.rmtree(folder / "checkpoints")
    return {"arm": name, "seed": seed, "steps": options.steps, "batch_size": options.batch_size, "flags": flags,
            "dataset_name": options.dataset_name, "system": opts.system, "cpu_seconds": round(seconds),
            "wall_seconds": round(wall), "commit": provenance.source_commit(), "curve": dict(sorted(curve.items()))}


def steps_of(folder):
    """Step -> path of the checkpoints in a folder."""
    return {checkpoint.read(path, mmap=True)["total_step"]: path for path in folder.glob("*.pt")}


def key(line):
    return line["arm"], line["seed"], line["steps"], line["batch_size"], line["dataset_name"]


def read(path):
    """Lines of a study; empty if the file does not exist."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path}: {error}; expected a line of JSON for each run; delete the line, and the run is "
                         "repeated") from None


def table(lines, part, step=None, columns=("audio->video", "video->audio", "audio->audio", "video->video",
                                           "common_codes", "common_seconds", "overlap", "same_code", "codes_used")):
    """Markdown: mean and standard deviation over seeds at a step, for runs whose curve includes it; None selects the
    last step of each run."""
    points = []
    for line in lines:
        at = str(step or line["steps"])
        if at in map(str, line["curve"]):
            kind = (line["arm"], line["dataset_name"], line["batch_size"], at)
            points.append((kind, line["seed"], {str(s): p for s, p in line["curve"].items()}[at][part],
                           100 * line["cpu_seconds"] / line["steps"]))
    rows = [f"| arm | data | batch | steps | seeds | {' | '.join(columns)} | CPU s / 100 steps |",
            f"|{' --- |' * (len(columns) + 6)}"]
    for kind in dict.fromkeys(kind for kind, *_ in points):
        _, seeds, metrics, seconds = zip(*(point for point in points if point[0] == kind))
        cells = []
        for column in columns:
            values = [found[column] for found in metrics]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        rows.append(f"| {' | '.join(map(str, kind))} | {' '.join(map(str, seeds))} | {' | '.join(cells)} | "
                    f"{np.mean(seconds):.0f} |")
    return "\n".join(rows)


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("spoken", "demo"), default="spoken")
    parser.add_argument("--data_root", type=Path, help="data folder (from cmg.demos.spoken or cmg.demos.dialled)")
    parser.add_argument("--out", type=Path, required=True, help="file for results, one JSON line per run")
    parser.add_argument("--work", type=Path, default=None, help="working folder of the runs (default: next to --out)")
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), default=list(ARMS), help="arms to run, in this order")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="steps between points of the curve")
    parser.add_argument("--batch_size", type=int, default=80)
    parser.add_argument("--dataset_name", choices=("vggsound", "vggsound_AVT"), default="vggsound",
                        help="audio and video, or also text")
    parser.add_argument("--table", choices=("val", "test"), help="print a table of existing results and exit")
    parser.add_argument("--at", type=int, default=None, help="step of --table (default: the last of each run)")
    parser.add_argument("--probe", action="store_true", help="only run a linear classifier on the raw features")
    parser.add_argument("--measure", type=Path, nargs="+", default=[], metavar="CHECKPOINT",
                        help="only print the metrics of these files")
    options = parser.parse_args(argv)
    if options.probe:
        print(json.dumps(probe(options.data_root)))
        return
    for path in options.measure:
        print(json.dumps({"checkpoint": str(path)} | measure(path, options.data_root)), flush=True)
    if options.measure:
        return
    if options.table:
        print(table(read(options.out), options.table, options.at))
        return
    options.work = options.work or options.out.with_suffix("")
    for seed in options.seeds:
        for name in options.only:
            wanted = {"arm": name, "seed": seed, **vars(options)}
            if key(wanted) in map(key, read(options.out)):
                continue
            line = train_and_measure(name, ARMS[name], seed, options)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(table([line], "test"), flush=True)


if __name__ == "__main__":
    run(main)
