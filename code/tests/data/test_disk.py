"""Every program on a disk that fails: full, unreadable in the middle of a file, read-only from a moment on, or with
another run at work in the same folder. One line, exit code 2, nothing lost and nothing left behind; the same call,
repeated when the disk is whole, leaves what an unbroken one leaves.

The programs are the calls of programs.py, the faults those of disk.py: of each function of our sources that writes or
reads, one operation. Each fault meets the folder that the one before left, so a call also goes on from what it finds.
"""

import ast
import contextlib
import io
import json
import os
import re
import resource
import signal
import time
import traceback
from functools import partial

import h5py
import pytest
import torch
from builders import RunFolders

import kill_resume
import programs
from bad_files import permission_bits_count
from cmg.results import rows
from cmg.training.run_state import find_newest
from cmg.utils import errors
from disk import CODE, PRIMITIVES, Disk, broken, module
from programs import BEFORE, CALLS, LONG, PARTLY, Tools
from test_atomic import ROW
from tiny import train


@pytest.fixture(scope="module")
def tools(demo_data, tmp_path_factory):
    tools = Tools(tmp_path_factory.mktemp("tools"), demo_data)
    assert all(getattr(tools, name).exists() for name in ("model", "words", "videos", "measured", "scenes", "trained"))
    return tools


# ------------------------------------------------------------------------------------------------------------ one call
def run(call, tools, folder, fault=None, action=None):
    """(exit code, error lines or a traceback, Disk) of a call in a folder."""
    disk, output = Disk([folder, tools.folder, tools.data], fault, action), io.StringIO()
    before = dict(os.environ)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with broken(disk):
                errors.run(lambda: call(tools, folder))
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            return 1, traceback.format_exc(), disk
        finally:
            os.environ.clear()
            os.environ.update(before)
    return code, "\n".join(line for line in output.getvalue().splitlines() if line.startswith("error: ")), disk


def prepared(call, tools, folder):
    folder.mkdir(parents=True)
    if call in BEFORE:
        BEFORE[call](tools, folder)
    return folder


def is_sound(call, code, said):
    """Has a call that met a fault ended as it should? With one line, or well because it could do without that file."""
    lines = said.count("\n") + bool(said)
    return (code, lines) in {(2, 1), (0, 0)} or (code, lines) == (1, 0) and call in PARTLY


# ------------------------------------------------------------------------------------------------------ what it leaves
TIMES = rb'"(seconds|time|provenance|message|clips_per_second|remaining_seconds|data_checked)": ("[^"]*"|[\d.]+)'
UNCOMPARED = ("options.json", "log.txt", "warnings.jsonl", "discarded.jsonl")       # with lines of the broken calls


def left(folder):
    """Relative path -> content of what a call has left, without times, the folder's own name and repeated lines."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\d{8}-\d{6}(-\d+)?", "#", str(path.relative_to(folder)))
        is_hidden = path.name.startswith((".", "events.out")) and path.suffix != ".tmp"
        if path.is_symlink() or not path.is_file() or "provenance" in name or path.suffix == ".pdf" or (
                is_hidden or path.name in UNCOMPARED):
            continue
        if path.suffix in (".pt", ".pth"):
            found[name] = torch.load(path, weights_only=True)
            if isinstance(found[name], dict) and "run" in found[name]:
                found[name]["run"] = {key: value for key, value in found[name]["run"].items()
                                      if key not in ("records", "saved", "clips")}
        elif path.suffix == ".h5":
            found[name] = arrays(path)
        else:
            data = re.sub(TIMES, b"", path.read_bytes().replace(str(folder).encode(), b"@" * 8))
            found[name] = b"".join(dict.fromkeys(data.splitlines()))
    return found


def arrays(path):
    """Content of an HDF5 file; what lies between its arrays is not the same in two files."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: (
            repr(item[()].tolist()).encode() if item.dtype == object else item[()].tobytes())
            if isinstance(item, h5py.Dataset) else b""}))
    return found


def differing(call, unbroken, folder, is_hit=False):
    """Names of what a finished call has left otherwise than the unbroken one; `is_hit`: it met a fault and could do
    without that file, which costs lines of metrics.jsonl, or a part of a report's page."""
    found = left(folder)
    if is_hit:
        found, unbroken = ({name: value for name, value in of.items() if not name.endswith((
            "metrics.jsonl", "report.html"))} for of in (found, unbroken))
    if call is programs.avs_train:          # a run that ended before its first state has a folder of its own
        done = {name.split("/")[0] for name in found if name.endswith("last.pth")}
        found = {name: value for name, value in found.items() if name.split("/")[0] in done}
    if call is programs.pretraining:        # a run that was stopped by a fault keeps the same files, but for older ones
        found, unbroken = ({name: value for name, value in of.items() if "-step" not in name}
                           for of in (found, unbroken))
    return kill_resume.differences(unbroken, found)[:5]


# ----------------------------------------------------------------------------------------------- full, or unreadable
SITES = {}                      # call -> functions that touched files
MET = set()                     # (does it read, function) of the faults of earlier calls


def faults(seen):
    """(Place, n): of each function that no earlier call has tried, one operation that writes, the first or the last,
    and one that reads."""
    chosen = {}
    for place in sorted(seen, key=lambda place: place.kind != "write"):
        if (place.kind == "read", place.site) not in MET:
            chosen.setdefault((place.kind == "read", place.site), place)
    MET.update(chosen)
    return [(place, seen[place] - 1 if k % 2 and place.kind == "write" else 0)
            for k, place in enumerate(chosen.values())]


def problems(call, tools, folder):
    """One fault after another, and at last none; yields what is wrong, as text."""
    code, said, disk = run(call, tools, prepared(call, tools, folder / "whole" / "run"))
    if code:
        yield f"the unbroken call: exit code {code}: {said}"
        return
    SITES[call] = {place.site for place in disk.seen}
    unbroken, number = left(folder / "whole" / "run"), 0
    here = prepared(call, tools, folder / f"{number}" / "run")
    for place, n in faults(disk.seen):
        for is_fresh in (False, True):          # a call that goes on may not come there: then one from the beginning
            code, said, met = run(call, tools, here, (place, n))
            if met.broken or is_fresh:
                break
            number += 1
            here = prepared(call, tools, folder / f"{number}" / "run")
        if not met.broken:
            yield f"{place}, operation {n}: the fault did not happen"
        elif not is_sound(call, code, said):
            yield f"{place}, operation {n}: exit code {code}: {said[-1500:]}"
        elif code == 0 and differing(call, unbroken, here, is_hit=True):
            yield f"{place}, operation {n}: it ends well and leaves other {differing(call, unbroken, here, True)}"
        if code == 0:
            number += 1
            here = prepared(call, tools, folder / f"{number}" / "run")
    code, said, _ = run(call, tools, here)
    if code:
        yield f"the repeated call: exit code {code}: {said[-1500:]}"
    elif differing(call, unbroken, here):
        yield f"the repeated call leaves other {differing(call, unbroken, here)}"
    yield from (f"left behind: {path}" for path in here.rglob("*.tmp"))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_disk_that_is_full_or_unreadable(call, tools, tmp_path):
    assert list(problems(call, tools, tmp_path)) == []


# ------------------------------------------------------------------------------------------ runs that take their time
def middle(disk, kinds):
    """(Place, n) in the middle of the operations of some kinds."""
    seen = [(place, n) for place, number in disk.seen.items() if place.kind in kinds for n in range(number)]
    return seen[len(seen) // 2]


@pytest.fixture(scope="module", params=LONG, ids=lambda call: call.__name__)
def long(request, tools, tmp_path_factory):
    """(call, what an unbroken one leaves, its Disk, makes a folder for another)."""
    folder, call = tmp_path_factory.mktemp(request.param.__name__), request.param
    code, said, disk = run(call, tools, prepared(call, tools, folder / "run"))
    assert code == 0, said
    return call, left(folder / "run"), disk


@contextlib.contextmanager
def small_files(limit):
    """Files cannot grow beyond so many bytes: a limit of the system, which libraries in C meet, too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


LIMITS = dict(zip(LONG, (20_000, 2_000, 3_000, 20_000, 300)))


def test_a_full_disk_of_the_system(long, tools, tmp_path):
    call, unbroken, _ = long
    folder = prepared(call, tools, tmp_path / "run")
    with small_files(LIMITS[call]):
        code, said, _ = run(call, tools, folder)
    assert (code, said.count("\n")) == (2, 0), said
    assert run(call, tools, folder)[0] == 0 and differing(call, unbroken, folder) == []


def test_permission_that_is_lost_during_the_run(long, tools, tmp_path):
    call, unbroken, disk = long
    folder = prepared(call, tools, tmp_path / "run")

    def set_modes(mode):
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(mode)
    with permission_bits_count():
        code, said, met = run(call, tools, folder, middle(disk, ("create", "folder")), partial(set_modes, 0o555))
    set_modes(0o755)
    assert met.broken and is_sound(call, code, said), said
    assert run(call, tools, folder)[0] == 0 and differing(call, unbroken, folder) == []


def test_a_second_run_is_refused_while_the_first_works(long, tools, tmp_path):
    call, unbroken, disk = long
    if call in (programs.pack, programs.avs_train):
        pytest.skip("HDF5 locks a pack (test_data_packing.py); segmentation names a new run apart")
    folder, second = prepared(call, tools, tmp_path / "run"), []

    def other():
        if not second:
            second.append(None)
            second[0] = run(call, tools, folder)[:2]
    code, said, met = run(call, tools, folder, middle(disk, ("write",)), other)
    assert code == 0 and met.broken, said
    assert differing(call, unbroken, folder) == []
    assert second[0][0] == 2 and second[0][1].count("\n") == 0 and "another process" in second[0][1], second


# ------------------------------------------------------------------------------------------- are these all programs?
# By the last part of a call's name.
NAMES = set("""atomic_write atomic_output file_lock append_lines savefig savez savez_compressed savetxt tofile touch
write_text write_bytes save_file symlink hardlink_to symlink_to to_csv copyfile copytree mkdtemp SummaryWriter
FileHandler imsave imwrite read_text read_bytes read_csv fromfile memmap load_file safe_open loadtxt genfromtxt loadmat
from_file open_input read_input read_text_input File ZipFile GzipFile FileIO""".split())
OF_MODULES = {"open": ("", "os", "io", "Image", "gzip", "av", "tarfile"), "save": ("torch", "np"),
              "load": ("torch", "np")}
EXEMPT = {
    "cmg/checkpoints/hub.py": "read by a library in Rust; truncated files: test_sharing.py",
    "cmg/extract/tf_checkpoint.py": "a memory map; truncated files: test_extract_weights.py",
    "cmg/demos/spoken.py": "below atomic_folder, as dialled.py; needs the recordings",
    **dict.fromkeys(("cmg/demos/natural.py", "cmg/demos/natural_clips.py", "cmg/demos/natural_sources.py"),
                    "below atomic_folder, as dialled.py; damaged input: test_natural.py"),
    **dict.fromkeys(("cmg/extract/front_ends.py", "cmg/extract/functions.py", "cmg/extract/hub_data.py",
                     "cmg/extract/onnx.py"), "encoders of the user: test_any_encoder.py"),
    "cmg/report/run_files.py": "files of a run, of which a report can do without any; damaged ones: test_report.py",
    "cmg/data/features.py": "forms of the user's files: test_feature_forms.py",
    "cmg/training/loggers.py": "TensorBoard writes in a thread of its own, whose place has no function of ours",
    "cmg/data/sets/known_lists.py": "a file of the package",
    "cmg/report/architecture.py": "the picture of a page, drawn by hand",
    "cmg/training/standardize.py": "a cache outside of these folders: test_standardize.py",
    "cmg/training/runtime.py": "files of the system", "cmg/utils/console.py": "the terminal",
}


def modules_that_touch_files():
    """Modules of our sources with a call that reads or writes files, but for those that the others call."""
    found = set()
    for path in sorted(p for folder in ("src", "AVSBench_downstream") for p in (CODE / folder).rglob("*.py")):
        for called in (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                       if isinstance(node, ast.Call)):
            name, owner = getattr(called, "attr", getattr(called, "id", "")), getattr(called, "value", None)
            if name in NAMES or ("" if owner is None else getattr(owner, "id", None)) in OF_MODULES.get(name, ()):
                found.add(module(path))
    return found - set(PRIMITIVES)


def test_every_module_that_touches_files_is_reached():
    if SITES.keys() != set(CALLS):
        pytest.skip("needs all tests above, in one process")
    reached = {site.split(":")[0] for of_call in SITES.values() for site in of_call}
    assert sorted(modules_that_touch_files() - reached - EXEMPT.keys()) == []


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
    assert caplog.text.count("its last line is incomplete") == (cut > 1)
    rows.append(path, ROW | {"seed": 2})
    rows.append(path, ROW | {"seed": 3})
    assert [row["seed"] for row in rows.read(path)] == [1, 2, 3] and (
        len(path.read_text().splitlines()) == 3 + (cut == 1))
