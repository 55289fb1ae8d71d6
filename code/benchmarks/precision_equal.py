"""Test whether lower precision reduces accuracy: pretrain the demo in each precision, test across modalities, and
compare means.

    python code/benchmarks/precision_equal.py [--seeds 0 1 2 3 4] [--json FILE]

For every precision and seed, `pretrain.py --preset demo` and then `evaluate.py --preset demo` are run in separate
folders; completed runs are not repeated. The result of a run is the mean cross-modal accuracy in percent at the last
epoch, over AVE and UCF/VGG and all pairs of audio, video and text, because a single direction varies by three points
between seeds. The exit code is 1 if the mean over seeds of a precision is more than a point below that of float64.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from local_paths import LOCAL, SOURCE

from cmg.checkpoints import checkpoint
from cmg.results import rows as results
from cmg.utils.errors import InputError, Parser, run

TOLERANCE = 1.0         # points of accuracy
TASKS = ("ave", "ucf_vggsound")     # tasks with accuracy as metric
REFERENCE = "float64"


def call(script, *arguments):
    """Run one of our scripts to its end; InputError with its last line if it fails."""
    done = subprocess.run([sys.executable, script, "--preset", "demo", *map(str, arguments)], cwd=SOURCE,
                          capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{script}: failed with exit code {done.returncode} ({last}); run it separately to see why")


def last_rows(folder, pretraining, evaluation):
    """Result lines at the last epoch, without control, of the run in `folder`, which is executed unless already done.

    Args:
        pretraining, evaluation: additional arguments of pretrain.py and evaluate.py.
    """
    found = folder / "results.jsonl"
    if not found.is_file():
        call("pretrain.py", *pretraining, "--model_save_path", folder, "--snapshot_pref", folder / "pretrain",
             "--resume", "auto")
        newest = checkpoint.newest(folder)
        call("evaluate.py", newest, "--no_control", *evaluation, "--snapshot_pref", folder / "heads",
             "--results", folder / "unfinished.jsonl")
        os.replace(folder / "unfinished.jsonl", found)      # an interrupted evaluation is repeated
    return [row for row in results.read(found) if row["selection"] == "last" and row["control"] is None]


def accuracy(folder, precision, seed, opts):
    """Mean cross-modal accuracy (percent) of one run, trained and tested in `folder` unless already done."""
    epochs = ["--n_epoch", opts.n_epoch] if opts.n_epoch else []
    heads = ["--n_epoch", opts.head_epochs] if opts.head_epochs else []
    rows = last_rows(folder, ["--precision", precision, "--seed", seed, *epochs], ["--tasks", *TASKS, *heads])
    values = [row["value"] for row in rows if row["task"] in TASKS]
    if not values:
        raise InputError(f"{folder / 'results.jsonl'}: contains no result at the last epoch; remove {folder} and start "
                         "again")
    return statistics.mean(values)


def main(argv=None):
    """Train, test, and print the table; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the pretraining")
    parser.add_argument("--precisions", nargs="+", default=["float64", "float32", "bf16"], help="must include float64")
    parser.add_argument("--n_epoch", type=int, default=None, help="pretraining epochs (default: the preset's)")
    parser.add_argument("--head_epochs", type=int, default=None, help="epochs of the heads (default: as published)")
    parser.add_argument("--folder", type=Path, default=LOCAL.runs / "demo" / "precision_equal",
                        help="folder for the runs; completed runs are reused")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    if REFERENCE not in opts.precisions:
        raise InputError(f"--precisions {' '.join(opts.precisions)}: {REFERENCE} is missing, which the others are "
                         "compared with; add it")
    folder = opts.folder.resolve()
    metrics = {}
    for precision in opts.precisions:
        metrics[precision] = []
        for seed in opts.seeds:
            metrics[precision].append(accuracy(folder / f"{precision}-{seed}", precision, seed, opts))
            print(f"{precision:8} seed {seed}  {metrics[precision][-1]:6.2f} %", flush=True)
    means = {precision: statistics.mean(values) for precision, values in metrics.items()}
    is_as_good = True
    for precision, mean in means.items():
        difference = mean - means[REFERENCE]
        is_as_good &= difference >= -TOLERANCE
        spread = statistics.stdev(metrics[precision]) if len(opts.seeds) > 1 else 0
        print(f"{precision:8} mean {mean:6.2f} %  {difference:+.2f} points, standard deviation {spread:.2f}")
    if opts.json:
        opts.json.write_text(json.dumps({"accuracy": metrics, "means": means, "seeds": opts.seeds,
                                         "n_epoch": opts.n_epoch, "is_as_good": is_as_good}, indent=1) + "\n",
                             encoding="utf-8")
    return 0 if is_as_good else 1


if __name__ == "__main__":
    run(main)
