"""Whether a cheaper precision costs accuracy: pretrain the demo in each, test across modalities, compare the means.

    python code/benchmarks/precision_equal.py [--seeds 0 1 2 3 4] [--json FILE]

For every precision and seed `pretrain.py --preset demo` and then `evaluate.py --preset demo` are run as a user would,
into folders of their own; finished ones are not repeated. The figure of a run is the mean cross-modal accuracy, in
percent, last epoch: of AVE and UCF/VGG between every two of audio, video and text. One direction alone varies by three
points from seed to seed. Exit code 1 if the mean over seeds of a precision lies more than a point below float64's.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "code" / "src"))

from errors import InputError, Parser, run  # noqa: E402

TOLERANCE = 1.0         # points of accuracy
TASKS = ("ave", "ucf_vggsound")     # those that measure accuracy
REFERENCE = "float64"


def call(script, *arguments):
    """Run one of our scripts to its end; InputError with its last line if it fails."""
    done = subprocess.run([sys.executable, script, "--preset", "demo", *map(str, arguments)], cwd=ROOT / "code" / "src",
                          capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{script}: ended with {done.returncode} ({last}); run it by itself to see why")


def accuracy(folder, precision, seed, opts):
    """Mean cross-modal accuracy (percent) of one run, trained and tested in `folder` unless it was before."""
    results = folder / "results.jsonl"
    if not results.is_file():
        epochs = ["--n_epoch", opts.n_epoch] if opts.n_epoch else []
        call("pretrain.py", "--precision", precision, "--seed", seed, *epochs, "--model_save_path", folder,
             "--snapshot_pref", folder / "pretrain", "--resume", "auto")
        newest = max(folder.glob("DCID-model-*.pt"), key=lambda path: path.stat().st_mtime_ns)
        heads = ["--n_epoch", opts.head_epochs] if opts.head_epochs else []
        call("evaluate.py", newest, "--tasks", *TASKS, "--no_control", *heads, "--snapshot_pref", folder / "heads",
             "--results", results)
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    values = [row["value"] for row in rows
              if row["task"] in TASKS and row["selection"] == "last" and row["control"] is None]
    if not values:
        raise InputError(f"{results}: has no result at the last epoch; remove {folder} and start again")
    return statistics.mean(values)


def main(argv=None):
    """Train, test, print the table; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the pretraining")
    parser.add_argument("--precisions", nargs="+", default=["float64", "float32", "bf16"], help="float64 among them")
    parser.add_argument("--n_epoch", type=int, default=None, help="pretraining epochs (default: the preset's)")
    parser.add_argument("--head_epochs", type=int, default=None, help="epochs of the heads (default: as published)")
    parser.add_argument("--folder", type=Path, default=ROOT / "code" / "src" / "Exps" / "demo" / "precision_equal",
                        help="where the runs lie; finished ones in it are read, not repeated")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    opts = parser.parse_args(argv)
    if REFERENCE not in opts.precisions:
        raise InputError(f"--precisions {' '.join(opts.precisions)}: has no {REFERENCE}, which the others are "
                         "compared with; add it")
    folder = opts.folder.resolve()
    figures = {}
    for precision in opts.precisions:
        figures[precision] = []
        for seed in opts.seeds:
            figures[precision].append(accuracy(folder / f"{precision}-{seed}", precision, seed, opts))
            print(f"{precision:8} seed {seed}  {figures[precision][-1]:6.2f} %", flush=True)
    means = {precision: statistics.mean(values) for precision, values in figures.items()}
    is_as_good = True
    for precision, mean in means.items():
        difference = mean - means[REFERENCE]
        is_as_good &= difference >= -TOLERANCE
        spread = statistics.stdev(figures[precision]) if len(opts.seeds) > 1 else 0
        print(f"{precision:8} mean {mean:6.2f} %  {difference:+.2f} points, standard deviation {spread:.2f}")
    if opts.json:
        opts.json.write_text(json.dumps({"accuracy": figures, "means": means, "seeds": opts.seeds,
                                         "n_epoch": opts.n_epoch, "is_as_good": is_as_good}, indent=1) + "\n",
                             encoding="utf-8")
    return 0 if is_as_good else 1


if __name__ == "__main__":
    run(main)
