"""Processor time of `--help` for every program, and which of our modules imports the large libraries by then.

    python code/benchmarks/start_time.py [--runs 3] [--only pretrain.py ave.py] [--json FILE]

The time is the least of several processes, user and system. The first row, for comparison, is `import torch` alone,
which programs need only after their arguments have been checked.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from import_log import LIBRARIES
from local_paths import ROOT, SOURCE, separate
from tqdm import tqdm

from cmg.utils.errors import InputError, Parser, run
from cmg.utils.settings import positive

CODE = ROOT / "code"
AVS = CODE / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
SCRIPTS = {path.name if path.parent == SOURCE else str(path.relative_to(CODE)): path
           for path in (*sorted(SOURCE.glob("*.py")), AVS / "train.py", AVS / "test.py",
                        *sorted((SOURCE / "cmg").glob("*/__main__.py")))}


def call(words, folder, **environment):
    """Run a command to its end, without its output."""
    done = subprocess.run(list(map(str, words)), cwd=folder, env=os.environ | environment, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise InputError(f"{words}: ended with {done.returncode} ({done.stderr.strip()[-300:]})")


def processor_seconds(words, folder, runs):
    """The least of the processor times of a command."""
    def total():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    times = []
    for _ in range(runs):
        before = total()
        call(words, folder, PYTHONPATH=str(SOURCE))
        times.append(total() - before)
    return min(times)


def imported(path):
    """Library -> our file that imports it first, of a program's --help."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "imports.json"
        call([*separate("import_log.py"), out, CODE, path], path.parent,
             PYTHONPATH=os.pathsep.join((str(path.parent), str(SOURCE))))
        return json.loads(out.read_text(encoding="utf-8"))


def main(argv=None):
    """Measure all programs and print the table."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--runs", type=positive, default=3, help="processes per program; the fastest counts")
    parser.add_argument("--only", nargs="+", choices=tuple(SCRIPTS), default=tuple(SCRIPTS), help="which programs")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    found = {"import torch": {"seconds": processor_seconds([sys.executable, "-c", "import torch"], CODE, opts.runs),
                              "imports": {}}}
    for name in tqdm(opts.only, "programs", disable=None):
        path = SCRIPTS[name]
        found[name] = {"seconds": processor_seconds([sys.executable, path, "--help"], path.parent, opts.runs),
                       "imports": imported(path)}
    print(f"| program | processor s | {' | '.join(LIBRARIES)} |\n|{' --- |' * (len(LIBRARIES) + 2)}")
    for name, one in found.items():
        files = (one["imports"].get(library, "").removeprefix("src/cmg/") for library in LIBRARIES)
        print(f"| {name} | {one['seconds']:.2f} | {' | '.join(files)} |")
    if opts.json:
        opts.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
