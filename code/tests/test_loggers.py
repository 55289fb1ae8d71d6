"""`--log`: what TensorBoard, trackio and wandb are told of a run, of a resumed one as well, and what happens without
them. The trackers themselves run where they are installed, offline; else a module of their name notes its calls."""

import json
import sqlite3
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmg.training.loggers import WANDB_ID
from cmg.training.run_logger import RunLogger, restored_log
from conftest import refused
from tiny import train

OPTIONS = {"system": "dcid", "dataset_name": "vggsound_AVT", "seed": 43, "without": ["club"]}
NAME = "dcid-vggsound_AVT-43"
TRACKERS = ("trackio", "wandb")


class Recorder(ModuleType):
    """Stands in for a tracker: the interface that trackio and wandb share."""

    def __init__(self, name):
        super().__init__(name)
        self.started, self.logged, self.finished = [], [], 0
        self.Histogram = lambda np_histogram: ("histogram", *np_histogram)
        self.Image = lambda pixels: ("image", pixels)

    def init(self, **about):
        self.started.append(about)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=self._finish)

    def _finish(self):
        self.finished += 1


@pytest.fixture
def tracker(request, monkeypatch):
    recorder = Recorder(request.param)
    monkeypatch.setitem(sys.modules, request.param, recorder)
    return recorder


def log(folder, backend, steps, position=None):
    """A run of a few steps; returns its position after the first of them."""
    with restored_log():
        run, after = RunLogger(folder, OPTIONS, position, backend), None
        for step in steps:
            run.scalars(step, 0, {"losses": {"total": 2.0 ** step}, "learning_rate": 0.5})
            run.code_use(step, {"": {"audio": np.arange(600)}})
            after = after or run.position(step)
        figure = Figure(figsize=(2, 1))
        figure.subplots()
        run.code_use(step, {}, {"": figure})
        run.close()
    return after


@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_a_tracker_gets_name_config_and_values(tracker, tmp_path):
    log(tmp_path, tracker.__name__, (1, 2))
    about, = tracker.started
    assert (about["project"], about["name"], about["config"]) == ("cmg", NAME, OPTIONS)
    scalars = [(step, values) for step, values in tracker.logged if "loss/total" in values]
    assert scalars == [(1, {"loss/total": 2, "learning_rate": 0.5}), (2, {"loss/total": 4, "learning_rate": 0.5})]
    of_codes = [values["codes/audio"] for _, values in tracker.logged if "codes/audio" in values]
    for kind, counts, edges in of_codes:                # 600 codes in the 512 bins that trackers take
        assert kind == "histogram" and len(counts) == len(edges) - 1 == 512 and counts.sum() == np.arange(600).sum()
    kind, pixels = tracker.logged[-1][1]["codes/by modality"]
    assert kind == "image" and pixels.dtype == np.uint8 and pixels.shape[2] == 4 and tracker.finished == 1
    assert not list(tmp_path.glob("events.*"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_continues_its_curves(tmp_path, monkeypatch):
    """wandb by the id that the folder keeps, trackio by the name; a fresh start in the same folder is a run of its
    own."""
    wandb, trackio = Recorder("wandb"), Recorder("trackio")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for backend in TRACKERS:
        after = log(tmp_path / backend, backend, (1, 2))
        log(tmp_path / backend, backend, (2, 3), after)
        log(tmp_path / backend, backend, (1,))
    ids = [about["id"] for about in wandb.started]
    assert ids[0] == ids[1] != ids[2] == (tmp_path / "wandb" / WANDB_ID).read_text().strip()
    assert {about["resume"] for about in wandb.started} == {"allow"}
    assert [about["resume"] for about in trackio.started] == ["never", "allow", "never"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "wandb" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 1]


def test_tensorboard_hides_the_steps_that_are_taken_again(tmp_path):
    after = log(tmp_path, "tensorboard", (1, 2))
    log(tmp_path, "tensorboard", (2, 3), after)
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(1, 2), (2, 4), (3, 8)]
    assert events.Histograms("codes/audio")[-1].histogram_value.num == np.arange(600).sum()
    assert events.Tags()["images"] == ["codes/by modality"]


def test_none_shows_nothing(tmp_path):
    log(tmp_path, "none", (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl", "options.json"]


@pytest.mark.parametrize("backend", TRACKERS)
def test_an_absent_tracker_is_a_line(backend, tmp_path, monkeypatch):
    import threading
    hook = threading.excepthook
    monkeypatch.setitem(sys.modules, backend, None)             # as if it were not installed
    refused(f"--log {backend}: .*pip install {backend}", log, tmp_path, backend, (1,))
    assert threading.excepthook is hook


@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_a_tracker_that_does_not_start_is_a_line(tracker, tmp_path):
    def failing(**about):
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login()")
    tracker.init = failing
    refused(f"--log {tracker.__name__}: failed to start .RuntimeError: api_key", log, tmp_path, tracker.__name__, (1,))


@pytest.mark.parametrize("tracker", ["wandb"], indirect=True)
def test_pretraining_hands_its_values_to_the_tracker(tracker, demo_data, small_model, tmp_path):
    assert train(demo_data, tmp_path, "--log", "wandb", "--max_steps", "2") == 0
    about, = tracker.started
    assert about["name"] == f"dcid-{about['config']['dataset_name']}-43" and about["config"]["n_embeddings"] == 24
    assert {step for step, _ in tracker.logged} == {1, 2} and tracker.finished == 1
    names = {name for _, values in tracker.logged for name in values}
    assert {"loss/total", "learning_rate", "codes/audio"} <= names
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["losses"]["total"] for line in lines] == [
        values["loss/total"] for _, values in tracker.logged if "loss/total" in values]


# ------------------------------------------------------------------------------------------ the trackers themselves
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed; it is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    after = log(tmp_path, "wandb", (1, 2))
    log(tmp_path, "wandb", (2, 3), after)
    known = (tmp_path / WANDB_ID).read_text().strip()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all((run / f"run-{known}.wandb").stat().st_size > 1000 for run in runs)
    stored = b"".join((run / f"run-{known}.wandb").read_bytes() for run in runs)
    assert all(text.encode() in stored for text in (NAME, "loss/total", "codes/audio", "vggsound_AVT"))


def test_trackio_keeps_the_values_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))        # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed; it is optional")
    after = log(tmp_path / "run", "trackio", (1, 2))
    log(tmp_path / "run", "trackio", (3,), after)
    base = sqlite3.connect(tmp_path / "trackio" / "cmg.db")
    rows = [(step, json.loads(text)) for step, text in base.execute("select step, metrics from metrics order by step")]
    assert [(step, row["loss/total"]) for step, row in rows if "loss/total" in row] == [(1, 2), (2, 4), (3, 8)]
    name, config = base.execute("select run_name, config from configs").fetchone()
    assert name == NAME and json.loads(config)["seed"] == 43
