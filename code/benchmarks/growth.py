"""Growth of a pretraining step with codes, clips per step, seconds of a clip and modalities: a Markdown table.

    python code/benchmarks/growth.py [--system dcid] [--widths demo] [--json F]

Each row is a run of pretrain_step.py in a process of its own, because the peak memory is that of a whole process. One
size differs from the base (first row), and ratios are to the base: "times the size" says what a linear growth would
give. What is not linear in a size shows as a ratio above it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pretrain_step import DTYPES, WIDTHS
from tqdm import tqdm

from cmg.models.config import MODALITIES
from cmg.systems.registry import SYSTEMS
from cmg.utils.errors import InputError, Parser, run

BASE = {"n_embeddings": 400, "batch_size": 80, "seconds": 10, "modalities": MODALITIES}
SIZES = {
    "n_embeddings": (100, 200, 800, 1600, 3200),
    "batch_size": (8, 40, 160, 320, 640),
    "seconds": (5, 20, 30, 60),
    "modalities": (("audio", "video"), ("audio", "text")),
}
TITLES = {"n_embeddings": "codes K", "batch_size": "clips B", "seconds": "seconds T", "modalities": "modalities"}


def measure(sizes, more):
    """Metrics of pretrain_step.py with these sizes."""
    with tempfile.TemporaryDirectory() as folder:
        result, command = Path(folder) / "step.json", [sys.executable, Path(__file__).with_name("pretrain_step.py")]
        for name, value in sizes.items():
            command += [f"--{name}", *(value if isinstance(value, tuple) else [value])]
        done = subprocess.run([*map(str, command), *more, "--json", str(result)], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{sizes}: pretrain_step.py ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def row(name, sizes, metrics, base):
    """A row of the table."""
    size, usual = sizes.get(name), BASE.get(name)
    times = (len(size) / len(usual) if name == "modalities" else size / usual) if name else 1
    return {
        "": f"{TITLES[name]} = {'+'.join(size) if name == 'modalities' else size}" if name else
        "base: " + ", ".join(f"{TITLES[n]} = {v if n != 'modalities' else '+'.join(v)}" for n, v in BASE.items()),
        "times the size": f"{times:.2f}",
        "seconds per step": f"{metrics['seconds_per_step']:.3f}",
        "ratio": f"{metrics['seconds_per_step'] / base['seconds_per_step']:.2f}",
        "share of ceiling": f"{metrics['share_of_ceiling']:.0%}",
        "peak memory, GB": f"{metrics['peak_memory_gb']:.2f}"}


def main(argv=None):
    """Measure all sizes and print the table."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="demo", help="sizes of the networks")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="float32", help="as of pretrain.py")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per row")
    parser.add_argument("--only", nargs="+", choices=tuple(SIZES), default=tuple(SIZES), help="which sizes vary")
    parser.add_argument("--device", default=None, help="number of the GPU, or cpu (default: GPU 0 if there is one)")
    parser.add_argument("--json", type=Path, default=None, help="write all values to this file")
    opts = parser.parse_args(argv)
    more = ["--system", opts.system, "--widths", opts.widths, "--precision", opts.precision, "--steps", str(opts.steps)]
    more += ["--device", opts.device] if opts.device is not None else []
    cells = [(None, {})] + [(name, {name: value}) for name in opts.only for value in SIZES[name]]
    rows, measured = [], []
    for name, sizes in tqdm(cells, "measuring", unit="row", disable=None):
        measured.append(measure(BASE | sizes, more))
        rows.append(row(name, sizes, measured[-1], measured[0]))
    print(f"{SYSTEMS[opts.system].label}, {opts.widths} widths, {opts.precision} on {measured[0]['device_name']}\n")
    for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
        print("|", " | ".join(cells), "|")
    if opts.json:
        opts.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
