"""Processor time of `--help` and until the first line of output for every program, and the modules that import large
libraries for `--help`.

    python code/benchmarks/start_time.py [--runs 3] [--only pretrain.py ave.py] [--json FILE]

Times are user plus system time, the minimum over several processes; a process is killed as soon as it has printed a
line. The first row, for comparison, is `import torch` alone, which programs need only later.
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

from cmg.data.manifest import CUSTOM
from cmg.downstream.tasks import TASKS
from cmg.utils.errors import InputError, Parser, run
from cmg.utils.settings import positive

CHECKPOINT = "model.pt"         # an empty file, which programs read after their first line
CODE = ROOT / "code"
AVS = CODE / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
SCRIPTS = {path.name if path.parent == SOURCE else str(path.relative_to(CODE)): path
           for path in (*sorted(SOURCE.glob("*.py")), AVS / "train.py", AVS / "test.py",
                        *sorted((SOURCE / "cmg").glob("*/__main__.py")))}


def first_words(name):
    """Arguments that make a program start its work in a folder with CHECKPOINT; None if it prints nothing but its
    result, such as a table."""
    own = ["--manifest", "clips.csv", "--features", "audio=audio", "--features", "video=video"]
    task = name.removesuffix(".py")
    if name.endswith("__main__.py"):
        return None
    if task == CUSTOM:
        return ["--checkpoint", CHECKPOINT, *own]
    if task in TASKS or task == "clip_retrieval":
        return ["--checkpoint", CHECKPOINT]
    more = {"evaluate.py": [CHECKPOINT], "toc.py": [CHECKPOINT], "prepare.py": ["check"]}
    more |= {str(AVS.relative_to(CODE) / "train.py"): ["--checkpoint", CHECKPOINT, "--backbone_weights", "none"],
             str(AVS.relative_to(CODE) / "test.py"): ["--checkpoint", CHECKPOINT]}
    return more.get(name, [])


def call(words, folder, **environment):
    """Run a command to its end, without its output."""
    done = subprocess.run(list(map(str, words)), cwd=folder, env=os.environ | environment, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise InputError(f"{words}: failed with exit code {done.returncode} ({done.stderr.strip()[-300:]})")


def print_a_line(words, folder, **environment):
    """Run a command until it has printed a line, and return the line."""
    roots = {f"CMG_{name}": str(Path(folder) / name.lower()) for name in ("DATA", "CHECKPOINTS", "RUNS", "CACHE")}
    with subprocess.Popen(list(map(str, words)), cwd=folder, env=os.environ | roots | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        line = process.stdout.readline()
        process.kill()
    if not line:
        raise InputError(f"{words}: printed nothing")
    return line


def processor_seconds(started, words, folder, runs):
    """Minimum processor time of a command, run by `call` or `print_a_line`."""
    def total():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    times = []
    for _ in range(runs):
        before = total()
        started(words, folder, PYTHONPATH=str(SOURCE))
        times.append(total() - before)
    return min(times)


def until_first_line(name, runs):
    """Processor seconds until a program's first line; None for programs without one."""
    words = first_words(name)
    if words is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CHECKPOINT).touch()
        return processor_seconds(print_a_line, [sys.executable, SCRIPTS[name], *words], folder, runs)


def imported(path):
    """Library -> our file that first imports it, for a program's --help."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "imports.json"
        call([*separate("import_log.py"), out, CODE, path], path.parent,
             PYTHONPATH=os.pathsep.join((str(path.parent), str(SOURCE))))
        return json.loads(out.read_text(encoding="utf-8"))


def main(argv=None):
    """Measure all programs and print the table."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--runs", type=positive, default=3, help="number of processes per program; the fastest counts")
    parser.add_argument("--only", nargs="+", choices=tuple(SCRIPTS), default=tuple(SCRIPTS), help="programs to measure")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    found = {"import torch": {"help": processor_seconds(call, [sys.executable, "-c", "import torch"], CODE, opts.runs),
                              "first_line": None, "imports": {}}}
    for name in tqdm(opts.only, "programs", disable=None):
        path = SCRIPTS[name]
        found[name] = {"help": processor_seconds(call, [sys.executable, path, "--help"], path.parent, opts.runs),
                       "first_line": until_first_line(name, opts.runs), "imports": imported(path)}
    print(f"| program | --help, s | first line, s | {' | '.join(LIBRARIES)} |\n|{' --- |' * (len(LIBRARIES) + 3)}")
    for name, one in found.items():
        files = (one["imports"].get(library, "").removeprefix("src/cmg/") for library in LIBRARIES)
        first = "" if one["first_line"] is None else f"{one['first_line']:.2f}"
        print(f"| {name} | {one['help']:.2f} | {first} | {' | '.join(files)} |")
    if opts.json:
        opts.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
