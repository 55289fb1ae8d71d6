"""A disk that is full from any write of a run on: it ends with one line, and the same call, repeated with space, ends
as the unbroken run.

    python code/tests/full_disk.py --what pretrain --each 8         eight operations of every place

A place is a kind of operation, a file's name and the function that asked for it (broken_disk.py). A test goes through
all of them in a chain (tests/test_full_disk.py); this script breaks a run of its own for each, and for `--each` of the
operations of a place, the first and the last among them; `--each 0`: for every single one.
"""

import argparse
import atexit
import gc
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import broken_disk
import kill_resume
from broken_disk import Disk, Place

FILES = "files"                 # the calls of file_cases.py
WORKS = ("pretrain", "heads", "avs", "extract", "pack")
DEADLINE = 300                  # seconds for one run on a busy machine


# ----------------------------------------------------------------------------------------------- in the new process
def faulty(target, folder, fault, record, *arguments):
    """Work of kill_resume on a disk that breaks; what was seen goes to the file `record`."""
    import av  # noqa: F401     so that its reads count

    disk = Disk([folder], fault and (Place(*fault[0]), fault[1]))
    try:
        with broken_disk.broken(disk):
            try:
                target(*arguments)
            finally:
                atexit._run_exitfuncs()         # as a process of its own ends: logs are flushed, files closed
                gc.collect()
    finally:
        record.write_text(json.dumps({"cpu": time.process_time(), "broken": disk.broken, "seen": [
            [place.kind, place.name, place.site, number] for place, number in disk.seen.items()]}))


# ------------------------------------------------------------------------------------------------------------ a run
def under(work, folder, context, fault=None):
    """Run the work in `folder` on a disk with a fault.

    Returns:
        exit code, lines of output (through a pipe, which no disk limits), {"broken", "seen"}.
    """
    folder.mkdir(exist_ok=True)
    pipe, record = (folder.parent / f"{folder.name}.{ending}" for ending in ("pipe", "json"))
    os.mkfifo(pipe)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_text().splitlines()), daemon=True)
    reader.start()
    line, _, *more = work.arguments(folder)
    process = context.Process(target=faulty, args=(work.target, folder, fault and (
        (fault[0].kind, fault[0].name, fault[0].site), fault[1]), record, line, pipe, *more))
    process.start()
    process.join(DEADLINE)
    reader.join(5)
    pipe.unlink()
    return process.exitcode, lines, json.loads(record.read_text())


def places(work, folder, context):
    """Place -> number of operations of an unbroken run in `folder`."""
    code, lines, found = under(work, folder, context)
    if code:
        raise RuntimeError(f"the unbroken run ends with exit code {code}: {lines[-5:]}")
    return {Place(*place): number for *place, number in found["seen"] if place[0] in broken_disk.WRITING}


def wrong(code, lines):
    """What is wrong with how a run ended on a full disk; None if nothing is. 0: it could do without that file."""
    said = [line for line in lines if line.startswith("error: ")]
    strange = [line for line in lines if "Traceback" in line or "Exception ignored" in line]
    if strange or (code, len(said)) not in {(2, 1), (0, 0)}:
        return f"exit code {code}: " + "\n".join(lines[-25:])
    return None


def left_behind(folder):
    """Temporary files that nobody will remove."""
    return [f"left behind: {path.relative_to(folder)}" for path in folder.rglob("*.tmp")]


def differs(work, whole, folder, context, code):
    """What differs from the unbroken run after the call was repeated with space; after a run that ended well, even
    before."""
    if code == 0:
        found = work.compare(whole, folder)
        if found:
            return ["it ends well, but differs:", *found]
    code, lines, _ = under(work, folder, context)
    if code:
        return [f"the repeated call ends with exit code {code}", *lines[-25:]]
    return work.compare(whole, folder) + left_behind(folder)


def spread(number, each):
    """Numbers of at most `each` of so many operations, evenly, the first and the last among them; 0: all."""
    if not each or number <= each:
        return list(range(number))
    return sorted({round(k * (number - 1) / max(each - 1, 1)) for k in range(each)})


def one_of_each_function(seen):
    """(place, operation) of a chain: of each function that asks for something, a write where there is one."""
    of_site = {}
    for place in sorted(seen, key=lambda place: place.kind != "write"):
        of_site.setdefault(place.site, place)
    return [(place, seen[place] // 2 if k % 2 else 0) for k, place in enumerate(seen)
            if of_site[place.site] == place]


def chain(work, folder, context):
    """One fault after another in one folder, each in the call that goes on from the one before; the last call, with
    space, ends as the unbroken run. Yields lines of what is wrong."""
    whole = folder / "whole"
    faults = one_of_each_function(places(work, whole, context))
    broken, count = folder / "broken-0", 0
    for k, (place, n) in enumerate(faults):
        code, lines, state = under(work, broken, context, (place, n))
        count += state["broken"]
        problem = wrong(code, lines)
        if problem:
            yield f"{place}, operation {n}: {problem}"
        if code != 2:                           # it came through
            yield from (f"{place}, operation {n}: {found}" for found in work.compare(whole, broken))
            broken = folder / f"broken-{k + 1}"
    yield from differs(work, whole, broken, context, 2)
    if count < len(faults) / 2:
        yield f"only {count} of {len(faults)} faults happened"


def sweep(work, folder, context, each, report=print):
    """A run of its own for each fault. Returns (faults that happened, what was wrong with them)."""
    whole, count, found = folder / "whole", 0, []
    seen = places(work, whole, context)
    faults = [(place, n) for place, number in seen.items() for n in spread(number, each)]
    report(f"{sum(seen.values()):,} operations at {len(seen)} places; {len(faults):,} of them fail, one a run")
    for k, (place, n) in enumerate(faults):
        broken = folder / f"broken-{k}"
        code, lines, state = under(work, broken, context, (place, n))
        count += state["broken"]
        problem = wrong(code, lines) or differs(work, whole, broken, context, code)
        if problem:
            found.append(f"{place}, operation {n} of {seen[place]}: {problem}")
            report(found[-1])
    report(f"{count:,} of {len(faults):,} faults happened; {len(found)} ended otherwise than with one line and, "
           "repeated, as the unbroken run")
    return count, found


def sweep_files(data, folder):
    """Every function that writes or reads in each call of file_cases.py; returns how many faults ended wrongly."""
    from file_cases import CASES, Tools
    from test_every_file import problems
    (folder / "tools").mkdir()
    count, wrong = 0, []
    for case in CASES:
        number, found = problems(case, Tools(folder / "tools", data), folder / case)
        count += number
        wrong += [f"{case}: {problem}" for problem in found]
    print("\n".join([*wrong, f"{FILES}: {count} faults in {len(CASES)} calls, {len(wrong)} ended otherwise"]))
    return len(wrong)


def main(argv=None):
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=(*WORKS, FILES), default=(*WORKS, FILES),
                        help="which work; files: every function that writes or reads, in the calls of file_cases.py")
    parser.add_argument("--each", type=int, default=3, help="operations of a place, 0 for all of them")
    options = parser.parse_args(argv)
    context, failed = kill_resume.started(), 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        demo_tree.build(data, DATA_PATHS, clips=80, progress=False)
        for name in options.what:
            place, began = Path(folder) / name, time.monotonic()
            place.mkdir()
            if name == FILES:
                failed += sweep_files(data, place)
                continue
            work = short(name, place, data)
            failed += bool(sweep(work, place, context, options.each,
                                 lambda line, name=name: print(f"{name}: {line}", flush=True))[1])
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


def short(name, folder, data):
    """A kind of work of kill_resume, as short as its places allow."""
    if name == "pretrain":
        return kill_resume.pretraining(data, {"--n_epoch": 1, "--save_every_steps": 4}, True)
    work = kill_resume.kinds()[name](folder, data, True)
    if name == "extract":
        for k in range(2, 12):
            (folder / "videos" / f"clip{k}.mp4").unlink()
    more = {"heads": ["--n_epoch", "2", "--seeds", "0"], "avs": ["--max_epoches", "1"]}.get(name, [])
    given = work.arguments                  # the last flag holds
    return replace(work, arguments=lambda place: ([*given(place)[0], *more], *given(place)[1:]))


if __name__ == "__main__":
    sys.exit(main())
