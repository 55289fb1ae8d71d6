"""Kill programs many times at random moments, and compare what their resumed runs leave with an unbroken one's. The
tests make a few such kills; studies/soak.md has the results.

    export PYTHONPATH=code/tests:code/src
    python code/benchmarks/soak.py --kills 20                           pretraining of the demo
    python code/benchmarks/soak.py --what all --tiny --kills 5          every kind of work, five kills each
    python code/benchmarks/soak.py --what all --tiny --kills 50 --log soak.jsonl        goes on where the log ends
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import kill_resume


def soak(names, kills, seed, is_tiny, clips, log=None):
    """`prove` for some kinds of work; returns how many failed. `log`: a file of lines {"what", "kills", "seed", ...};
    what it holds is not done again."""
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    known = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        demo_tree.build(data, DATA_PATHS, clips=clips, progress=False)
        for name in names:
            if any(line["what"] == name and line["seed"] == seed and line["kills"] >= kills for line in known):
                continue
            place, began, said = Path(folder) / name, time.monotonic(), []
            place.mkdir()

            def report(line, name=name, said=said):
                said.append(line)
                print(f"{name}: {line}", flush=True)
            found = kill_resume.prove(place, kill_resume.kinds()[name](place, data, is_tiny), kills, seed, report)
            for difference in found:
                print(f"{name}: {difference}", flush=True)
            failed += bool(found)
            if log:
                with open(log, "a") as file:
                    file.write(json.dumps({"what": name, "kills": kills, "seed": seed, "differences": found, "seconds":
                                           round(time.monotonic() - began), "last": said[-1]}) + "\n")
    return failed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("all", *kill_resume.kinds()), default=["pretrain"],
                        help="what is killed")
    parser.add_argument("--kills", type=int, default=20, help="how often, each of them")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--tiny", action="store_true", help="pretrain a model a hundredth of the demo's size")
    parser.add_argument("--clips", type=int, default=80, help="clips of the demo tree")
    parser.add_argument("--log", type=Path, default=None, help="add a line for each kind of work, and skip those there")
    options = parser.parse_args(argv)
    names = list(kill_resume.kinds()) if "all" in options.what else options.what
    return 1 if soak(names, options.kills, options.seed, options.tiny, options.clips, options.log) else 0


if __name__ == "__main__":
    sys.exit(main())
