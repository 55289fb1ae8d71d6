"""Amount of code executed by a training step and an evaluation: files, functions and lines, counted by a tracer.

    python code/benchmarks/trace_step.py [--source DIR] [--json FILE]

Two programs run on the demo's data at small sizes: DCID's `./pretrain.sh`, of which the last training step is counted,
and `./ave.sh` on its checkpoint. Each has two counts. The call stack is the path of a reader: the files from the shell
script to the call that updates the weights, or to the call that opens results.jsonl to append a line. The executed code
is all of our code that runs, except imports. `--source` is the code/src of another checkout, so that two versions of
the project can be compared; it need not be installed there.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from code_tracer import RESULTS
from local_paths import SOURCE, separate

from cmg.data.layout import DATA_PATHS
from cmg.demos import dialled
from cmg.utils.errors import InputError, Parser, run

CLIPS = 200                                                     # pretraining clips of the demo's data
# Print the arguments of a script's exec and, on file descriptor 3, the file and number of every line that bash
# executes.
SHELL = r"""exec() { printf '%s\0' "$@"; }; BASH_XTRACEFD=3; PS4='+${BASH_SOURCE}:${LINENO}:'; set -x; . "$0" "$@" """


def run_shell(source, script, arguments):
    """(command that a shell script executes, file -> number of lines for all shell scripts that ran)."""
    with tempfile.TemporaryFile("w+") as log:
        ran = subprocess.run(["bash", "-c", f"exec 3>&{log.fileno()}; {SHELL}", script, *map(str, arguments)],
                             cwd=source, pass_fds=[log.fileno()], stdout=subprocess.PIPE, text=True, check=True)
        log.seek(0)
        executed = {tuple(line.lstrip("+").split(":")[:2]) for line in log if line.startswith("+")}
    lines = defaultdict(int)
    for file, _ in executed:
        if file.endswith(".sh"):
            lines[os.path.normpath(file)] += 1
    return ran.stdout.split("\0")[1:-1], dict(lines)


def traced(source, shell_script, arguments, event):
    """Result of `trace` for a shell script and the program it executes, including the shell files."""
    (script, *words), lines = run_shell(source, shell_script, arguments)
    shell = {file: {"functions": 0, "lines": number} for file, number in lines.items()}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trace.json"
        done = subprocess.run([*separate("code_tracer.py"), out, source, script, *words], cwd=source, text=True,
                              capture_output=True, env=os.environ | {"PYTHONPATH": str(source)})
        if done.returncode or not out.exists():
            raise InputError(f"{source / shell_script}: failed with exit code {done.returncode} "
                             f"({done.stderr.strip()[-300:]})")
        found = json.loads(out.read_text(encoding="utf-8"))
    name = os.path.normpath(shell_script)
    return {"stack": [(name, "exec"), *map(tuple, found["stacks"][event])], "step": found["step"],
            "whole": shell | found["whole"]}


def measure(source):
    """program -> result of `traced`, on data and a checkpoint in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        dialled.build(folder / "data", DATA_PATHS, clips=CLIPS, progress=False)
        common = ["--preset", "demo", "--data_root", folder / "data", "--gpu", "cpu", "--precision", "float32"]
        step = traced(source, "./pretrain.sh", [*common, "--b", 8, "--max_steps", 2, "--snapshot_pref", folder / "run",
                                                "--model_save_path", folder / "saved"], "step")
        [checkpoint] = (folder / "saved").glob("*.pt")
        evaluation = traced(source, "./ave.sh", [*common, "--checkpoint", checkpoint, "--n_epoch", 1, "--snapshot_pref",
                                                 folder / "heads"], "append")
        return {"step": step, "evaluation": evaluation}


def table(stack, *executed):
    """Markdown: a row per file, with those of the call stack first and in its order, and columns from (title, executed
    code)."""
    functions = defaultdict(list)
    for file, function in stack:
        functions[file].append(function)
    files = [*functions, *sorted({file for _, code in executed for file in code} - set(functions))]
    rows = [["file", "call stack", *(f"{title}: functions, lines" for title, _ in executed)]]
    rows.append([f"{len(files)} files", f"{len(functions)} files", *(
        f"{len(code)} files: {sum(c['functions'] for c in code.values())}, {sum(c['lines'] for c in code.values())}"
        for _, code in executed)])
    for file in files:
        rows.append([file, " > ".join(functions.get(file, "")), *(
            f"{code[file]['functions']}, {code[file]['lines']}" if file in code else "" for _, code in executed)])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv=None):
    """Trace both programs and print a table of each."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="code/src of the checkout to trace")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    source = opts.source.resolve()
    for name in ("pretrain.sh", "ave.sh"):
        if not (source / name).is_file():
            raise InputError(f"{source / name}: no such script; --source expects the code/src of a checkout")
    found = measure(source)
    step, evaluation = found["step"], found["evaluation"]
    stacks = [{file for file, _ in found[name]["stack"]} for name in found]
    print(f"./pretrain.sh, DCID: {len(stacks[0])} files on the call stack at optimizer.step(), {len(step['step'])} in "
          f"which a step runs, {len(stacks[0] | set(step['step']))} together\n\n"
          f"{table(step['stack'], ('one step', step['step']), ('from start to end', step['whole']))}\n\n"
          f"./ave.sh: {len(stacks[1])} files on the call stack at a line of {RESULTS}\n\n"
          f"{table(evaluation['stack'], ('from start to end', evaluation['whole']))}")
    if opts.json:
        opts.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
