"""Compare the time of a pretraining step in this checkout and another one; two processes take alternate steps.

    python code/benchmarks/compare_steps.py OTHER/code/src [--threads 1] [--pairs 10] [--json FILE]

Both build a system at the published widths from one seed and take the same float32 steps on a CPU, so that other load
on the machine slows both. The output is the ratio of this checkout to the other, for the median of the pairs and for
the fastest steps, in seconds and in processor time, and whether all losses are exactly equal (exit code 1 if not).
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from local_paths import SOURCE, separate
from tqdm import tqdm

from cmg.systems.registry import SYSTEMS
from cmg.utils.errors import InputError, Parser, run
from cmg.utils.settings import positive

WARM = 2                # warm-up steps of each


class Checkout:
    """A process that takes steps with the code of a folder code/src; it is terminated at the end of the block."""

    def __init__(self, source, opts):
        words = [source, opts.system, opts.batch_size, opts.threads]
        self.source, self.process = source, subprocess.Popen(
            [*separate("step_server.py"), *map(str, words)], cwd=source, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(opts.threads)})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def step(self):
        """Times and losses of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise InputError(f"{self.source}: its step failed, see above; expected the code/src of a checkout")
        return json.loads(answer)


def main(argv=None):
    """Take the steps, print the ratios; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("other", type=Path, help="code/src of the other checkout")
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("-b", "--batch_size", type=positive, default=8, help="clips per step")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    parser.add_argument("--pairs", type=positive, default=10, help="timed steps of each")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    if not opts.other.is_dir():
        raise InputError(f"{opts.other}: no such folder; expected the code/src of another checkout")
    steps = {"this": [], "other": []}
    with Checkout(SOURCE, opts) as this, Checkout(opts.other.resolve(), opts) as other:
        for number in tqdm(range(WARM + opts.pairs), "pairs", disable=None):
            order = [("this", this), ("other", other)]
            for name, checkout in order if number % 2 else order[::-1]:
                steps[name].append(checkout.step())
    is_equal = all(a["losses"] == b["losses"] for a, b in zip(*steps.values()))
    found = {"pairs": opts.pairs, "threads": opts.threads, "batch_size": opts.batch_size, "equal_losses": is_equal}
    for clock in ("seconds", "processor"):
        this, other = ([step[clock] for step in of[WARM:]] for of in steps.values())
        found[clock] = {"this": min(this), "other": min(other), "ratio_of_fastest": min(this) / min(other),
                        "median_ratio": statistics.median(a / b for a, b in zip(this, other))}
        print("{clock:10} fastest {this:.3f} against {other:.3f}: ratio {ratio_of_fastest:.3f}; of all pairs, median "
              "{median_ratio:.3f}".format(clock=clock, **found[clock]))
    print(f"losses of all steps: {'equal' if is_equal else 'different'}")
    if opts.json:
        opts.json.write_text(json.dumps(found | {"steps": steps}, indent=1) + "\n", encoding="utf-8")
    return 0 if is_equal else 1


if __name__ == "__main__":
    run(main)
