"""Files are written whole or not at all; what was there before survives every failure."""

import io
import json
import multiprocessing
import os
import time

import pytest

from cmg.results import rows
from cmg.training.run_logger import RunLogger
from cmg.utils import files
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_write, remove_leftovers
from test_results import row

ROW = row(seed=1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("ours")])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path, "w") as file:
        file.write("new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def write_for_ever(path):
    with atomic_write(path, "w") as file:
        file.write("half")
        file.flush()
        time.sleep(60)


def test_only_the_leftovers_of_the_dead_are_removed(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path / "a.pt",))
    process.start()
    while not [path for path in tmp_path.glob(f".a.pt.*-{process.pid}-*.tmp") if path.read_text()]:
        time.sleep(0.01)
    leftover, = tmp_path.glob(".a.pt.*.tmp")
    remove_leftovers(tmp_path, "*.pt")
    assert leftover.exists()                            # its writer lives
    process.kill()
    process.join()
    remove_leftovers(tmp_path, "*.txt")
    assert leftover.exists()                            # of another kind
    remove_leftovers(tmp_path, "*.pt")
    assert not leftover.exists() and not (tmp_path / "a.pt").exists()


class Short(io.FileIO):
    """A file on a disk that has room for 20 bytes."""

    def write(self, data):
        return super().write(data[:20])


def test_half_a_result_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    rows.append(path, ROW)
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(InputError, match="cannot be added .No space left on device"):
        patch.setattr(files, "open", lambda path, mode, buffering: Short(path, mode.replace("b", "")),
                      raising=False)
        rows.append(path, ROW | {"seed": 2})
    assert path.read_bytes() == before
    rows.append(path, ROW | {"seed": 2})
    assert [row["seed"] for row in rows.read(path)] == [1, 2]


def test_metrics_on_a_full_disk_do_not_end_the_run(tmp_path, monkeypatch, caplog):
    run = RunLogger(tmp_path / "run", {})
    monkeypatch.setattr(json, "dumps", lambda line: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for step in (1, 2):
        run.scalars(step, 0, {"losses": {"total": 1.0}, "metrics": {}})
    assert caplog.text.count("metrics cannot be written (No space left on device)") == 1
