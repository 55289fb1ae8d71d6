"""Faults while a program works: a full disk, a read that fails, permission that is lost, a clock that goes
back, two runs in one place, a line that was cut off. One line, nothing lost, nothing doubled: the same call, repeated
when the fault is gone, ends as if nothing had been."""

import builtins
import errno
import json
import os
import re
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from builders import RunFolders

import faults
import kill_resume
from cmg.results import rows
from cmg.training.trainer import find_newest
from kill_resume import Run
from test_atomic import ROW
from tiny import train

WORKS = ("pretrain", "heads", "avs", "extract", "pack")


# ----------------------------------------------------------------------------------------------- in the new process
def faulty(target, fault, *arguments):
    """Work of kill_resume under a fault of this process."""
    kind, value = fault
    if kind == "full":                      # files cannot grow beyond so many bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (value, resource.RLIM_INFINITY))
    elif kind == "permission":              # all folders of the run are read-only from a moment on
        keep = faults.permission_bits_count()
        keep.__enter__()
        folder, seconds = value
        threading.Timer(seconds, _lock, [folder]).start()
    else:                                   # reading a file whose name ends so fails from the second time on
        _fail_to_read(value)
    target(*arguments)


def _lock(folder):
    for place in (folder, *folder.rglob("*")):
        if place.is_dir():
            place.chmod(0o555)


def _fail_to_read(ending):
    plain, times = builtins.open, []

    def opened(path, mode="r", *args, **kwargs):
        if str(path).endswith(ending) and "r" in mode:
            times.append(path)
            if len(times) > 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain(path, mode, *args, **kwargs)
    builtins.open = opened


@pytest.fixture(scope="module", params=WORKS)
def work(request, demo_data, tmp_path_factory):
    """(name, work, folder of an unbroken run)."""
    folder = tmp_path_factory.mktemp(request.param)
    made = kill_resume.kinds()[request.param](folder, demo_data, True)
    context = kill_resume.started()
    run = Run(made, folder / "whole", context)
    run.wait()
    assert run.processes[0].exitcode == 0, run.output.read_text()
    return request.param, made, folder / "whole", context


def under(work, fault, folder, context):
    """(exit code, lines of output) of a run with a fault; the output goes through a pipe, which no disk limits."""
    folder.mkdir(exist_ok=True)
    pipe, lines = folder.parent / f"{folder.name}.pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_text().splitlines()), daemon=True)
    reader.start()
    line, _, *more = work.arguments(folder)
    process = context.Process(target=faulty, args=(work.target, fault, line, pipe, *more))
    process.start()
    process.join(120)
    reader.join(5)
    return process.exitcode, lines


def goes_on(work, whole, folder, context):
    """What differs from the unbroken run after the call was repeated."""
    again = Run(work, folder, context)
    again.wait()
    assert again.processes[0].exitcode == 0, again.output.read_text()[-2000:]
    return work.compare(whole, folder) + [f"left behind: {path.name}" for path in folder.rglob(".*.tmp")]


def assert_one_line(code, lines, allowed):
    said = [line for line in lines if line.startswith("error: ")]
    assert not [line for line in lines if "Traceback" in line], "\n".join(lines[-30:])
    assert (code, len(said)) in allowed, (code, "\n".join(lines[-30:]))


LIMITS = {"pretrain": 20_000, "heads": 2_000, "avs": 3_000, "extract": 300, "pack": 20_000}


def test_a_full_disk(work, tmp_path):
    """A limit of the system on the size of files, which libraries in C meet too. Every write: test_full_disk.py."""
    name, made, whole, context = work
    code, lines = under(made, ("full", LIMITS[name]), tmp_path / name, context)
    assert_one_line(code, lines, {(2, 1)})
    assert goes_on(made, whole, tmp_path / name, context) == []


def test_permission_that_is_lost_during_the_run(work, tmp_path):
    name, made, whole, context = work
    folder = tmp_path / name
    code, lines = under(made, ("permission", (folder, 0.3)), folder, context)
    for place in (folder, *folder.rglob("*")):
        if place.is_dir():
            place.chmod(0o755)
    assert_one_line(code, lines, {(2, 1), (0, 0)})              # it may have been done before
    different = goes_on(made, whole, folder, context)
    if name == "avs" and code:      # the repeated call has a folder of its own; what could not be removed here stays
        different = [line for line in different if not line.startswith("left behind")]
    assert different == []


READ = {"pretrain": ".zip", "extract": None, "heads": None, "avs": ".png", "pack": ".zip"}


def test_a_read_that_fails_in_the_middle(work, tmp_path):
    name, made, whole, context = work
    if READ[name] is None:
        pytest.skip("its files are read by HDF5 or FFmpeg: test_every_file")
    code, lines = under(made, ("read", READ[name]), tmp_path / name, context)
    assert_one_line(code, lines, {(2, 1)})
    assert [line for line in lines if "Input/output error" in line]
    assert goes_on(made, whole, tmp_path / name, context) == []


# ------------------------------------------------------------------------------------------------ two runs in one place
def is_held(folder):
    """Does a process hold the lock of a run in `folder`? A lock file that is there may not be locked yet."""
    files = [file for pattern in (".*lock", "*.partial", ".report*") for file in folder.rglob(pattern)]
    locked = Path("/proc/locks").read_text()
    return any(re.search(rf":{file.stat().st_ino} ", locked) for file in files if file.exists())


def test_a_second_run_is_refused_while_the_first_works(work, demo_data, tmp_path):
    name, made, whole, context = work
    first = Run(made, tmp_path / name, context)
    deadline = time.monotonic() + 60
    while first.processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
        if is_held(tmp_path / name):
            os.kill(first.processes[0].pid, signal.SIGSTOP)
            if is_held(tmp_path / name):        # not given up in the last moment
                break
            os.kill(first.processes[0].pid, signal.SIGCONT)
    try:
        if first.processes[0].is_alive() and name != "avs":         # segmentation names a new run apart
            is_done = (tmp_path / name / "report.csv").exists()             # an extraction may be, before it is stopped
            code, lines = under(made, ("read", ".none"), tmp_path / name, context)
            assert_one_line(code, lines, {(2, 1), (0, 0)} if is_done else {(2, 1)})
    finally:
        with suppress(ProcessLookupError):                                      # it had ended before it was seen
            os.kill(first.processes[0].pid, signal.SIGCONT)
    first.wait()
    assert first.processes[0].exitcode == 0, first.output.read_text()[-1000:]
    assert made.compare(whole, tmp_path / name) == []


# ------------------------------------------------------------------------------------------------------- the clock
def test_a_clock_that_goes_back(demo_data, small_model, tmp_path, monkeypatch):
    """The newest run and the newest checkpoint are told by their names and steps."""
    folders = RunFolders(tmp_path / "logs", "S4", "at")
    first = folders.create()
    monkeypatch.setattr(time, "strftime", lambda form, *when, plain=time.strftime: plain(
        form, *(when or (time.localtime(86_400 * 365),))))
    second = folders.create()
    for folder in (first, second):
        (folder / "x").touch()
    assert second.name > first.name and folders.newest("x") == second
    train(demo_data, tmp_path, "--save_every_steps", 3, "--max_steps", 6)
    for path in (tmp_path / "checkpoints").glob("*step6.pt"):
        os.utime(path, (0, 0))
    assert find_newest(tmp_path / "checkpoints", "*.pt", {}).name == "DCID-model-0-step6.pt"


# ------------------------------------------------------------------------------------------------- a line that was cut
@pytest.mark.parametrize("cut", [1, 2, *range(9, 400, 57)])
def test_a_line_that_was_cut_off(tmp_path, caplog, cut):
    path = tmp_path / "results.jsonl"
    for seed in (1, 2):
        rows.append(path, ROW | {"seed": seed})
    path.write_bytes(path.read_bytes()[:-min(cut, len(json.dumps(ROW)))])
    assert [row["seed"] for row in rows.read(path)] == ([1, 2] if cut == 1 else [1])     # 1: but for its line end
    assert caplog.text.count("its last line was cut off") == (cut > 1)
    rows.append(path, ROW | {"seed": 2})
    rows.append(path, ROW | {"seed": 3})
    assert [row["seed"] for row in rows.read(path)] == [1, 2, 3] and (
        len(path.read_text().splitlines()) == 3 + (cut == 1))
