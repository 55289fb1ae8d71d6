"""A run survives its surroundings: the console, signals, lost processes, file systems, other machines, environment."""

import ast
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cmg.data import loader
from cmg.data.loader import ClipLoader, WorkersLost
from cmg.models.random import StepRandom
from cmg.results import rows
from cmg.systems.dcid import DCID
from cmg.training.batches import Streamed
from cmg.training.run_logger import restored_log, setup_logging
from cmg.training.undo import undo_of
from cmg.utils import console, errors, locks, signals
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_write, file_lock, remove_leftovers, temporary_name
from conftest import ROOT, refused
from test_atomic import ROW
from tiny import step_for

SRC = ROOT / "code" / "src"
FULL = "/dev/full"


def program(body, *more, **options):
    """A process of `errors.run` around the lines of a function `main`."""
    lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    code = f"import os, signal, sys, time\nsys.path.insert(0, {str(SRC)!r})\nfrom cmg.utils.errors import run\n" \
           f"def main():\n{lines}\nrun(main, survives={'survives' in more})\n"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", code], **options)


# ------------------------------------------------------------------------------------------------------------ console
@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full, which stands for a full disk")
@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_a_full_disk(where, survives, tmp_path):
    body = f"print('a', file=sys.{where}); print('b', file=sys.{where}); open({str(tmp_path / 'end')!r}, 'w')"
    with open(FULL, "w") as full:
        process = program(body, *["survives"] * survives, **{where: full})
        out, err = process.communicate()
    ends = survives or where == "stderr"            # what is lost there is not what the program is for
    assert process.returncode == (0 if ends else 2) and (tmp_path / "end").exists() == ends
    assert (err or "") == ("" if ends else "error: standard output: cannot be written (No space left on device); free "
                           "some space, or redirect it elsewhere\n") and not out


@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_a_reader_that_leaves(where, survives, tmp_path):
    """As `| head -1`: a training goes on, everything else ends as `cat` does, without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    body = f"print('a', file=sys.{where}); open({str(tmp_path / 'end')!r}, 'w')"
    process = program(body, *["survives"] * survives, **{where: writer})
    os.close(writer)
    out, err = process.communicate()
    assert process.returncode == (0 if survives else 128 + signal.SIGPIPE) and not out and not err
    assert (tmp_path / "end").exists() == survives


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_closed_streams(closed, tmp_path):
    """No file takes the descriptor of a closed stream, into which a C library may write."""
    process = program(f"os.write(2, b'from C'); file = open({str(tmp_path / 'f')!r}, 'w'); print('a'); "
                      "print('b', file=sys.stderr); file.write('x'); assert file.fileno() > 2",
                      preexec_fn=lambda: [os.close(int(n)) for n in closed.split()])
    process.communicate()
    assert process.returncode == 0 and (tmp_path / "f").read_text() == "x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_locale_cannot_print(encoding):
    """Names in other letters, non-UTF-8 file names and control characters come out as text in any encoding."""
    process = program(r"print('b\xe4ll \u2192 \udcff \x1b]0;T\x07\x9b2J \u202etxt \tend')", text=False,
                      env={**os.environ, "PYTHONIOENCODING": encoding})
    out = process.communicate()[0].decode(encoding)
    assert process.returncode == 0 and out == {
        "ascii": "b\\xe4ll \\u2192 \\udcff  ]0;T 2J  txt \tend\n",
        "latin-1": "b\xe4ll \\u2192 \\udcff  ]0;T 2J  txt \tend\n",
        "utf-8": "b\xe4ll \u2192 \\udcff  ]0;T 2J  txt \tend\n"}[encoding]


def test_progress_bars_still_begin_their_line_again():
    process = program("sys.stderr.write('\\r 10 %'); sys.stderr.write('\\rx\\ry'); print('\\rx', end='')", text=False)
    assert process.communicate() == (b" x", b"\r 10 %\rx y") and process.returncode == 0


@pytest.mark.parametrize("stream", [None, "closed", "full"])
def test_the_log_outlives_a_callers_console(stream, tmp_path, monkeypatch):
    """`cmg.pretrain` within another program, whose own standard output is gone: the file of the log has all lines."""
    if stream == "full" and not os.path.exists(FULL):
        pytest.skip("no /dev/full, which stands for a full disk")
    made = stream and open(FULL if stream == "full" else os.devnull, "w", buffering=1)
    if stream == "closed":
        made.close()
    monkeypatch.setattr(sys, "stdout", made)
    with restored_log():
        setup_logging(tmp_path / "log.txt")
        logging.getLogger().info("one\x1b[31m\ntwo")
        logging.getLogger().warning("three")
    monkeypatch.undo()
    if stream == "full":
        with pytest.raises(OSError):
            made.close()
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines[::2]] == ["one [31m", "three"] and lines[1] == "  two"


# ------------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGPWR"])
def test_every_ending_signal_is_taken(name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} on this system")
    number, saved = getattr(signal, name), []
    with signals.stop_on_signals() as stop:
        for _ in range(3):                      # some repeat by themselves: the system sends SIGXCPU every second
            os.kill(os.getpid(), number)
        with pytest.raises(signals.Stopped, match=f"{name} after step 3; resume") as caught:
            stop.save_and_exit(lambda: saved.append(1), "after step 3", "resume")
    assert caught.value.code == 128 + number and saved == [1] and signal.getsignal(number) == signal.SIG_DFL


def test_signals_of_others_are_left_to_them():
    """What nohup ignores stays ignored; the handler of a surrounding program, say of a timer, stays."""
    own, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    timer = signal.signal(signal.SIGALRM, lambda *_: own.append(1))
    try:
        with signals.stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGALRM)
        assert stop.signal is None and own == [1]
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGALRM, timer)


def test_a_second_kind_of_signal_does_not_kill():
    """torchrun and systemd send SIGTERM after Ctrl-C or SIGHUP: the step is still finished and saved."""
    with signals.stop_on_signals() as stop:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert stop.signal == signal.SIGHUP


# --------------------------------------------------------------------------------------------------- worker processes
class Clips:
    """80 clips of 400 kB; `mistake`: what goes wrong in a worker at the third."""

    def __init__(self, mistake=None):
        self.mistake, self.text = mistake, None

    def __len__(self):
        return 80

    def __getitem__(self, i):
        if self.mistake and i == 3:
            self.mistake()
        return {"audio": np.full(100_000, i, np.float32)}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def too_many_files():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_shared_memory():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.parametrize("mistake, words", [
    (killed, "signal 9|exited unexpectedly|Connection|EOF"), (too_many_files, "Too many open files"),
    (no_shared_memory, "No space left"), (lambda: os._exit(3), "exit code 3|exited unexpectedly|Connection|EOF")])
def test_a_lost_worker_is_one_line(mistake, words):
    began = time.monotonic()
    with pytest.raises(WorkersLost, match=words) as caught:
        list(ClipLoader(Clips(mistake), 2, 2))
    assert "--workers 2" in str(caught.value) and "\n" not in str(caught.value) and time.monotonic() - began < 30


def test_a_mistake_of_ours_keeps_its_traceback():
    def mistake():
        raise RuntimeError("size mismatch")
    with pytest.raises(RuntimeError, match="size mismatch"):
        list(ClipLoader(Clips(mistake), 2, 2))


def test_a_worker_that_was_killed_after_its_work_ends_the_next_epoch():
    batches = Streamed(Clips(), ("audio",), torch.device("cpu"), torch.float32, 1)
    order = torch.arange(4)
    for batch in batches(order, 2):
        last = batch
    assert last["audio"][:, 0].tolist() == [2, 3]
    batches.loader.processes = [type("Killed", (), {"exitcode": -signal.SIGKILL})]      # the real one ended well
    with pytest.raises(WorkersLost, match="signal 9"):
        next(batches(order, 2))


@pytest.mark.parametrize("free, workers", [(0, 0), (2.6e6, 0), (2.8e6, 1), (4.5e6, 2), (8.1e6, 4), (1e9, 4)])
def test_workers_fit_into_shared_memory(free, workers, monkeypatch, caplog):
    """Batches of 0.8 MB: two for each worker and one in use. Docker gives 64 MB unless it is asked for more."""
    monkeypatch.setattr(loader.os, "statvfs", lambda path: os.statvfs_result((1, 1, 1, 1, int(free), 0, 0, 0, 0, 0)))
    monkeypatch.setattr(loader.os, "access", lambda *_: True)
    monkeypatch.setattr(loader.sys, "platform", "linux")
    assert ClipLoader(Clips(), 2, 4).num_workers == workers
    assert caplog.text.count("docker run --shm-size") == (workers < 4)


def test_no_shared_memory_at_all(monkeypatch, caplog):
    monkeypatch.setattr(loader.sys, "platform", "linux")
    monkeypatch.setattr(loader, "SHARED_MEMORY", "/nowhere/shm")
    found = ClipLoader(Clips(), 2, 3, persistent_workers=True)
    assert found.num_workers == 0 and len(list(found)) == 40 and "using 0" in caplog.text


def test_a_step_that_broke_off_is_undone():
    """A process that waits in vain for another saves what there was before the step, bit by bit."""
    generator = torch.Generator().manual_seed(3)
    system = DCID(DCID.Config.for_data(("audio", "video"), audio_dim=8, video_dim=8, num_codes=8, code_dim=8,
                                       feed_forward=8, num_layers=1, num_heads=2)).train()
    step = step_for(system, rng=StepRandom(generator))
    batch = {"audio": torch.randn(4, 10, 8), "video": torch.randn(4, 10, 7, 7, 8)}

    def state():
        return {**system.state_dict(), "draws": generator.get_state(), "fitted": torch.tensor(system.initialized),
                **{f"{n} {key}": value for n, of in step.optimizers.auxiliary.state_dict()["state"].items()
                   for key, value in of.items()}}
    step.step(batch, 0, 0)
    before, undo = {name: value.clone() for name, value in state().items()}, undo_of(step)
    step.before_update = lambda output: (_ for _ in ()).throw(RuntimeError("gloo: connection closed by peer"))
    with pytest.raises(RuntimeError):
        step.step(batch, 0, 1)
    changed = [name for name, value in state().items() if not torch.equal(value, before[name])]
    assert {"draws"} < set(changed) and any("codebook" in name for name in changed)
    undo()
    assert [name for name, value in state().items() if not torch.equal(value, before[name])] == []


# ------------------------------------------------------------------------------------------- file systems and machines
@pytest.fixture
def without_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())


def holder(**changes):
    """Content of a lock file of another process."""
    return json.dumps(locks._this_process() | {"time": "2026-01-01"} | changes)


def test_writing_without_locks(tmp_path, without_flock, caplog):
    with file_lock(tmp_path / ".lock", "choose another folder"):
        assert sorted(os.listdir(tmp_path)) == [".lock", ".lock.held"]
        with pytest.raises(InputError, match=f"process {os.getpid()} on .*choose another folder.*delete the file"):
            with file_lock(tmp_path / ".lock", "choose another folder"):
                pass
        with atomic_write(tmp_path / "file", "w") as file:
            file.write("whole")
        rows.append(tmp_path / "results.jsonl", ROW)
    assert sorted(os.listdir(tmp_path)) == ["file", "results.jsonl"]
    assert caplog.text.count("this file system has no locks") == 1


@pytest.mark.parametrize("owner, is_stale", [
    (dict(pid=2 ** 22 + 5), True),                                  # gone: no process has such a number
    (dict(started=1), True),                                        # its number is another process's now
    (dict(pid=2 ** 22 + 5, machine="0" * 8), False),                # of another machine, container or start of this one
    (dict(pid=None), False), (dict(pid="1"), False)])
def test_only_what_is_certainly_dead_is_removed(owner, is_stale, tmp_path, without_flock):
    if not locks._boot() or locks._started(os.getpid()) is None:
        pytest.skip("this system does not say when it and its processes began")
    (tmp_path / ".lock.held").write_text(holder(**owner))
    if is_stale:
        with file_lock(tmp_path / ".lock"):
            pass
    else:
        with pytest.raises(InputError, match="another process is writing"), file_lock(tmp_path / ".lock"):
            pass
    assert (tmp_path / ".lock.held").exists() != is_stale and not (tmp_path / ".lock.held.stale").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_lock_that_says_nothing_is_respected(content, tmp_path, without_flock):
    (tmp_path / ".lock.held").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="another process is writing"), file_lock(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("kind", ["flock", "by name"])
def test_who_waited_for_a_removed_lock_takes_the_new_one(kind, tmp_path, request):
    """The holder removes its file; who opened that one before must not hold it beside the next one's."""
    if kind == "by name":
        request.getfixturevalue("without_flock")
    inside, path = [], tmp_path / ".lock"
    reader, writer = os.pipe()

    def child(delay):
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            with file_lock(path, wait=True):
                os.write(writer, b"(")
                time.sleep(delay)
                os.write(writer, b")")
            os._exit(0)
        return pid
    pids = [child(0.3) for _ in range(4)]
    os.close(writer)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(reader, "rb") as file:
        inside = file.read()
    assert inside == b"()" * 4 and not os.listdir(tmp_path)


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """Worker processes live on for seconds after a run was killed; it may be resumed at once."""
    reader, writer = os.pipe()
    with file_lock(tmp_path / ".lock"):
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    with file_lock(tmp_path / ".lock"):
        os.close(writer)
    os.close(reader)
    assert os.waitpid(pid, 0)[1] == 0


def test_temporary_names_differ_between_machines(tmp_path, monkeypatch):
    """Two containers in which the program has the same number write one file: neither tears the other's."""
    names = {temporary_name(tmp_path / "a.pt") for _ in range(9)}
    monkeypatch.setattr(locks, "_machine", lambda: "0" * 8)
    assert len(names | {temporary_name(tmp_path / "a.pt")}) == 10
    with atomic_write(tmp_path / "a.pt") as one, atomic_write(tmp_path / "a.pt") as other:
        one.write(b"1" * 9)
        other.write(b"2")
    assert (tmp_path / "a.pt").read_bytes() in (b"1" * 9, b"2") and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("letter", ["a", "\u00e4", "\u2192"])
def test_the_longest_name_of_a_file_can_be_written(letter, tmp_path):
    path = tmp_path / (letter * (255 // len(letter.encode())))
    with atomic_write(path, "w") as file:
        file.write("x")
    assert path.read_text() == "x" and os.listdir(tmp_path) == [path.name]


def test_leftovers_of_the_dead_without_flock(tmp_path, without_flock):
    dead = tmp_path / f".a.pt.{locks._machine()}-{2 ** 22 + 5}-{'0' * 8}.tmp"
    alive, foreign = dead.with_name(temporary_name("a.pt").name), dead.with_name(f".a.pt.{'0' * 8}-1-{'0' * 8}.tmp")
    for path in (dead, alive, foreign):
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert not dead.exists() and alive.exists() and foreign.exists()


# --------------------------------------------------------------------------------------------------------- environment
@pytest.mark.parametrize("environment, found", [
    ({}, 1), ({"WORLD_SIZE": ""}, 1), ({"WORLD_SIZE": "1", "RANK": "x"}, 1), ({"WORLD_SIZE": "two"}, "='two'"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"), ({"WORLD_SIZE": "2.0"}, "'2.0'"), ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT"),
    ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2"),
    ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK='-1'"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, 2)])
def test_what_torchrun_says(environment, found, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", *errors.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(found, int):
        assert errors.launched_processes() == found
    else:
        refused(found, errors.launched_processes)


@pytest.mark.parametrize("name, variables", [
    ("src/ave.sh", {}), ("src/pretrain.sh", {"PYTHONSAFEPATH": "1"}),
    ("AVSBench_downstream/avs_scripts/avs_s4/train.sh", {"PYTHONSAFEPATH": "1"})])
def test_scripts_do_not_depend_on_the_callers_shell(name, variables, tmp_path):
    """CDPATH names a folder that holds the same path with another python.sh."""
    (tmp_path / "code" / name).parent.mkdir(parents=True)
    other = tmp_path / "code" / "src"
    other.mkdir(exist_ok=True)
    (other / "python.sh").write_text("echo of another; exit 9\n")
    found = subprocess.run(["bash", f"code/{name}", "--help"], cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, "CDPATH": str(tmp_path)} | variables)
    assert found.returncode == 0 and "usage:" in found.stdout and "of another" not in found.stdout, found.stderr[-500:]


def test_every_script_changes_its_folder_alike():
    scripts = [*SRC.glob("*.sh"), *(ROOT / "code" / "AVSBench_downstream").rglob("*.sh")]
    wrong = [path.name for path in scripts if path.name != "python.sh"
             and 'CDPATH= cd -- "$(dirname -- "$0")"' not in path.read_text(encoding="utf-8")]
    assert len(scripts) > 20 and not wrong


def test_a_script_without_its_folder_on_the_search_path():
    found = subprocess.run([sys.executable, str(SRC / "toc.py"), "--help"], capture_output=True, text=True,
                           env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(SRC)})
    assert found.returncode == 0, found.stderr[-500:]


@pytest.mark.parametrize("seed, works", [("5", True), ("-5", True), ("9" * 12, True), ("9" * 13, False),
                                         ("9" * 23, False), ("9" * 5000, False), ("1e3", False), ("", False)])
def test_seeds(seed, works, capsys):
    from cmg.cli import LocalPaths, parse_pretrain
    from cmg.training.batches import epoch_order
    if works:
        assert len(epoch_order(3, parse_pretrain(["--seed", seed], LocalPaths()).seed, 9)) == 3
    else:
        with pytest.raises(SystemExit):
            parse_pretrain(["--seed", seed], LocalPaths())
        assert len(capsys.readouterr().err) < 400


def test_texts_are_read_and_written_as_utf8():
    """No call leaves the encoding of a text file to the locale."""
    wrong = []
    for path in [*(SRC / "cmg").rglob("*.py"), *SRC.glob("*.py"), *(ROOT / "code/AVSBench_downstream").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            mode = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "r")
            is_text = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute) and not (
                isinstance(node.func.value, ast.Name) and node.func.value.id in ("self", "csv")) or (
                name == "open" and isinstance(node.func, ast.Name) and "b" not in str(mode))
            if is_text and not any(k.arg in ("encoding", None) for k in node.keywords):
                wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong


def test_console_is_left_alone_in_a_notebook(monkeypatch):
    stream = type("Cell", (), {"write": lambda self, text: None, "flush": lambda self: None})()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    console.open_console(survives=True)
    assert sys.stdout is stream and sys.stderr is stream
