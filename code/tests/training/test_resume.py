"""A run that ends in any way and is resumed is the same run: weights, optimizers, random states, figures."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import kill_resume
import pretrain
import tiny
from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import is_optimizer
from cmg.demos import dialled
from cmg.training import run_state
from cmg.training.step import TrainStep
from cmg.utils.errors import InputError
from conftest import refused
from tiny import checkpoints, run_once

pytestmark = pytest.mark.usefixtures("small_model")

LAST = "DCID-model-1.pt"
ALL = "--keep_optimizer", "all"
STEPS = 5                               # of an epoch: 80 clips by 16


def train(root, folder, *more):
    return tiny.train(root, folder, "--batch_size", 16, *more)


def command(root, folder, *more):
    """Arguments of a run that streams its clips."""
    line = tiny.command(root, folder, "--batch_size", 16, *more)
    return [x for x in line if x != "--in_memory"]


@pytest.fixture(scope="module")
def whole(demo_data, small_model, tmp_path_factory):
    """Folder of a run that was never stopped, for each extra option (as a function)."""
    folders = {}

    def run(*more):
        if more not in folders:
            folder = tmp_path_factory.mktemp("whole")
            assert train(demo_data, folder, *more) == 0
            folders[more] = folder
        return folders[more]
    return run


def signal_after(monkeypatch, steps, signal_number=None, error=None):
    """Send this process a signal, or raise an error, within the step after `steps` steps."""
    taken, step = [0], TrainStep.step

    def counted(self, batch, epoch, number):
        taken[0] += 1
        if taken[0] == steps + 1:
            if error:
                raise error
            os.kill(os.getpid(), signal_number)
        return step(self, batch, epoch, number)
    monkeypatch.setattr(TrainStep, "step", counted)


def test_killed_runs_end_as_the_unbroken_one(demo_data, tmp_path):
    work = kill_resume.pretraining(demo_data, {"--n_epoch": 2}, is_tiny=True)
    assert kill_resume.prove(tmp_path, work, kills=2) == []


@pytest.mark.parametrize("options", [
    (), ("--dataset_name", "vggsound_AT", "--mi_forward", "released", "--precision", "float64"),
    ("--system", "h_dcid", "--start_epoch", "3", "--n_epoch", "5", "--save_dtype", "float64")])
def test_a_stop_in_the_middle_changes_nothing(demo_data, tmp_path, whole, monkeypatch, options):
    reference, system, first = whole(*options), "H-" if "h_dcid" in options else "", 3 if "h_dcid" in options else 0
    with monkeypatch.context() as patch:
        signal_after(patch, STEPS + 3, signal.SIGTERM)
        assert train(demo_data, tmp_path, *options) == 128 + signal.SIGTERM
    assert checkpoints(tmp_path) == [f"{system}DCID-model-{first}.pt",
                                     f"{system}DCID-model-{first + 1}-step{STEPS + 4}.pt"]
    assert train(demo_data, tmp_path, *options, "--resume", "auto") == 0
    found = kill_resume.compare(reference, tmp_path, f"{system}DCID-model-{first + 1}.pt")
    assert [place for place in found if not place.startswith(".run.saved")] == []


def test_the_same_through_workers(demo_data, tmp_path, whole):
    """Streamed clips, stopped and resumed, give what clips in memory give: the loader draws from no generator."""
    def streamed(*more):
        assert not pretrain.main(command(demo_data, tmp_path, "--workers", 1, *more))
    streamed("--max_steps", STEPS + 3)
    streamed("--resume", "auto")
    found = kill_resume.compare(whole(), tmp_path, LAST)
    assert [place for place in found if not place.startswith((".run.saved", ".run.health", "metrics"))] == []


def test_sigint_says_what_to_do(demo_data, tmp_path, monkeypatch, caplog):
    signal_after(monkeypatch, 2, signal.SIGINT)
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    assert train(demo_data, tmp_path) == 128 + signal.SIGINT
    assert "stopped by SIGINT after step 3; resume with --resume auto" in caplog.text
    assert checkpoints(tmp_path) == ["DCID-model-0-step3.pt"]
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_real_sigterm_to_a_run_with_workers(demo_data, tmp_path):
    """As a scheduler sends it: to the process and to the workers that read its clips."""
    line = command(demo_data, tmp_path, "--workers", 2, "--n_epoch", 500)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=kill_resume.train, args=(line, tmp_path / "output.txt", True))
    process.start()
    figures = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (figures.exists() and len(figures.read_text().splitlines()) > STEPS) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [*map(int, workers), process.pid]:
        os.kill(pid, signal.SIGTERM)
    process.join(60)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, output[-2000:]
    assert "stopped by SIGTERM after step" in output and "Traceback" not in output
    saved = [name for name in checkpoints(tmp_path) if f"step{len(kill_resume.figures(tmp_path))}" in name]
    assert saved or len(kill_resume.figures(tmp_path)) % STEPS == 0


def test_lines_of_lost_steps_are_set_aside(demo_data, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        signal_after(patch, 9, error=RuntimeError("power failure"))
        train(demo_data, tmp_path, "--save_every_steps", 4)
    assert len(kill_resume.figures(tmp_path)) == 9
    train(demo_data, tmp_path, "--save_every_steps", 4, "--resume", "auto")
    assert kill_resume.figures(tmp_path) == kill_resume.figures(whole())
    discarded = (tmp_path / "run" / "discarded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in discarded] == [9]


@pytest.mark.parametrize("keep, left", [
    (None, ["DCID-model-0.pt", "DCID-model-1-step6.pt", "DCID-model-1-step9.pt", "DCID-model-1.pt"]),
    (1, ["DCID-model-1.pt"]), (2, ["DCID-model-1-step9.pt", "DCID-model-1.pt"])])
def test_keep(demo_data, tmp_path, keep, left):
    (tmp_path / "checkpoints").mkdir()
    other = tmp_path / "checkpoints" / "DCID-model-7.pt"        # of somebody else
    other.write_bytes(b"not ours")
    train(demo_data, tmp_path, "--save_every_steps", 3, *(["--keep", keep] if keep else []))
    assert checkpoints(tmp_path) == [*left, other.name]


def test_a_step_that_ends_an_epoch_is_saved_too(demo_data, tmp_path):
    train(demo_data, tmp_path, "--save_every_steps", STEPS, "--save_freq", 5)
    assert checkpoints(tmp_path) == ["DCID-model-0.pt", "DCID-model-1.pt"]


def test_files_of_another_folder_are_not_ours_to_remove(demo_data, tmp_path):
    train(demo_data, tmp_path, "--save_every_steps", 2, "--max_steps", 4)
    other = tmp_path / "other" / "checkpoints" / "DCID-model-0-step2.pt"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of somebody else")
    train(demo_data, tmp_path / "other", "--resume", tmp_path / "checkpoints" / "DCID-model-0-step4.pt", "--keep", 1,
          "--max_steps", 5)
    assert checkpoints(tmp_path / "other") == [other.name, "DCID-model-0.pt"]


def test_auto_takes_the_newest_whole_file_of_this_run(demo_data, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    train(demo_data, tmp_path, "--save_every_steps", 1, "--max_steps", 4, *ALL)
    newest = folder / "DCID-model-0-step4.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])             # truncated, as by a disk that lied
    (folder / ".DCID-model-0-step3.pt.4711.tmp").write_bytes(b"half a file of a killed writer")
    train(demo_data, tmp_path / "other", "--seed", 7, "--max_steps", STEPS)
    os.rename(tmp_path / "other" / "checkpoints" / "DCID-model-0.pt", folder / "DCID-model-0.pt")
    caplog.clear()
    train(demo_data, tmp_path, "--resume", "auto", "--max_steps", 4)
    assert "DCID-model-0-step3.pt: resuming in epoch 0 after 48 of its 80 clips, 3 steps in total" in caplog.text
    assert "DCID-model-0-step4.pt: truncated" in caplog.text
    assert "DCID-model-0.pt: belongs to another run (seed 7 there, 43 here)" in caplog.text
    assert not list(folder.glob(".*.tmp"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused("to another run .lr 0.0004 there, 0.0001 here.; .* --resume FILE", train, demo_data, tmp_path, "--resume",
            "auto", "--lr", 1e-4)       # a new run would replace them
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_demo_preset_makes_its_data(tmp_path, monkeypatch):
    """Data where there is nothing, a folder of its own for the run; whoever names a folder with data keeps it."""
    build = dialled.build
    monkeypatch.setattr(dialled, "build", lambda *args: build(*args, clips=80, progress=False))
    roots = [part for name in ("data", "checkpoint", "runs") for part in (f"--{name}_root", str(tmp_path / name))]
    for _ in range(2):
        assert run_once(["--preset", "demo", "--batch_size", "8", "--max_steps", "1", "--seed", "5", *roots]) == 0
    assert (tmp_path / "data" / dialled.MARKER).is_file()
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["dcid-seed5"]


def test_lines_before_the_first_checkpoint_are_set_aside_too(demo_data, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        signal_after(patch, 2, error=RuntimeError("power failure"))
        train(demo_data, tmp_path)
    assert len(kill_resume.figures(tmp_path)) == 2
    assert train(demo_data, tmp_path, "--resume", "auto") == 0
    assert kill_resume.figures(tmp_path) == kill_resume.figures(whole())
    assert len((tmp_path / "run" / "discarded.jsonl").read_text().splitlines()) == 2


def test_evaluate_leaves_the_run_as_it_is(demo_data, tmp_path, capsys):
    train(demo_data, tmp_path, "--save_every_steps", 3, "--max_steps", 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    train(demo_data, tmp_path, "--resume", tmp_path / "checkpoints" / "DCID-model-0-step3.pt", "--evaluate")
    assert "total" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_auto_without_a_checkpoint_starts(demo_data, tmp_path, caplog):
    assert train(demo_data, tmp_path, "--resume", "auto", "--max_steps", 1) == 0
    assert "has no checkpoint of this run; starting from the beginning" in caplog.text
    with pytest.raises(InputError, match="no checkpoint of this run; pass one"):
        train(demo_data, tmp_path / "empty", "--resume", "auto", "--evaluate")


def test_a_published_file_is_resumed_at_its_epoch(demo_data, tmp_path, whole, caplog):
    contents = checkpoint.read(whole(*ALL) / "checkpoints" / "DCID-model-0.pt")
    del contents["run"]
    checkpoint.save(tmp_path / "published.pt", contents)
    assert train(demo_data, tmp_path, "--resume", tmp_path / "published.pt") == 0
    assert "contains no run state; epoch 1 starts with new random numbers" in caplog.text
    assert checkpoint.read(tmp_path / "checkpoints" / LAST)["total_step"] == 2 * STEPS


def test_optimizer_state_is_in_the_newest_checkpoint_alone(demo_data, tmp_path, whole, caplog, monkeypatch):
    """The older ones are as before otherwise; a run that is killed between writing and shrinking resumes; a newest file
    that is gone is named."""
    all_kept, folder = whole(*ALL) / "checkpoints", tmp_path / "checkpoints"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(checkpoint, "drop_optimizers", lambda path: (_ for _ in ()).throw(RuntimeError("power")))
        train(demo_data, tmp_path)
    assert train(demo_data, tmp_path, "--resume", "auto") == 0              # both are written; nothing is left to train
    assert train(demo_data, tmp_path, "--resume", "auto", "--n_epoch", 3) == 0
    kept = {name: checkpoint.read(folder / name) for name in checkpoints(tmp_path)}
    assert {name: any(map(is_optimizer, contents)) for name, contents in kept.items()} == {
        "DCID-model-0.pt": False, LAST: False, "DCID-model-2.pt": True}
    full = checkpoint.read(all_kept / LAST)
    weights = {name: value for name, value in full.items() if not is_optimizer(name)}
    assert kill_resume.differences(weights, kept[LAST]) == []
    assert (folder / LAST).stat().st_size < 0.45 * (all_kept / LAST).stat().st_size
    with pytest.raises(InputError, match=f"{LAST}: contains no optimizer state; expected .* --resume auto finds"):
        train(demo_data, tmp_path / "other", "--resume", folder / LAST)
    (folder / "DCID-model-2.pt").unlink()
    caplog.clear()
    refused("DCID-model-[01].pt: contains no optimizer state; expected checkpoints", run_state.find_newest, folder,
            "DCID-model-*.pt", full["run"]["options"])


def test_other_settings_are_said_and_other_orders_refused(demo_data, tmp_path, caplog):
    train(demo_data, tmp_path, "--max_steps", 3)
    file = tmp_path / "checkpoints" / "DCID-model-0-step3.pt"
    with pytest.raises(InputError, match="remaining clips are different here: seed 43 there, 7 here; pass the same"):
        train(demo_data, tmp_path, "--seed", 7, "--resume", file)
    train(demo_data, tmp_path, "--lr", 1e-4, "--resume", file, "--max_steps", 4)
    assert "this run resumes with different options (lr 0.0004 there, 0.0001 here)" in caplog.text


@pytest.mark.parametrize("damage", [
    lambda run: run["random"].pop("numpy"), lambda run: run["position"].update(step=-1),
    lambda run: run["position"].update(epoch="1"), lambda run: run.update(started=[1, 0, 1]),
    lambda run: run["random"].update(torch=torch.zeros(3, dtype=torch.uint8)), lambda run: run.update(extra=1),
    lambda run: run["random"]["python"].__setitem__(1, [1, 2]), lambda run: run.update(health={"warned": 1, "x": 2})])
def test_a_damaged_state_is_one_line(demo_data, tmp_path, whole, damage):
    contents = checkpoint.read(whole(*ALL) / "checkpoints" / "DCID-model-0.pt")
    damage(contents["run"])
    checkpoint.save(tmp_path / "damaged.pt", contents)
    refused("its entry 'run' is not a valid run state", train, demo_data, tmp_path, "--resume", tmp_path / "damaged.pt")


# ------------------------------------------------------------------------------------------- writing and full disks
@pytest.fixture
def full_disk(monkeypatch):
    """Flushing a checkpoint fails with "no space left" from a call on, until a call; others work."""
    def after(first, last=10 ** 9):
        calls, save = [0], torch.save

        def failing(contents, file):
            calls[0] += 1
            save(contents, file)
            if first <= calls[0] <= last:
                raise OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(torch, "save", failing)
    return after


def test_full_disk_may_be_survived(demo_data, tmp_path, full_disk, caplog):
    full_disk(2, 3)
    assert train(demo_data, tmp_path, "--save_every_steps", 4, "--keep", 1, "--on_save_error", "continue") == 0
    assert caplog.text.count("training continues (--on_save_error continue)") == 2
    assert checkpoints(tmp_path) == [LAST]


def test_a_last_save_that_failed_is_an_error(demo_data, tmp_path, full_disk):
    full_disk(2)
    refused("could not be written", train, demo_data, tmp_path, "--on_save_error", "continue")
    assert checkpoints(tmp_path) == ["DCID-model-0.pt"]
