"""What stops a run, the warnings of one that goes wrong, and where a result comes from."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ave
import kill_resume
from cmg.checkpoints import checkpoint
from cmg.cli import parse_pretrain
from cmg.data.clips import Clips
from cmg.data.layout import DATA_PATHS
from cmg.downstream.doubts import Doubts
from cmg.models.codebook import Codebook
from cmg.presets import RECIPES
from cmg.programs import pretrain
from cmg.programs.evaluate import runs_of
from cmg.results import __main__ as results_program
from cmg.results import provenance
from cmg.results import rows as results
from cmg.systems.dcid import DCID
from cmg.systems.registry import SYSTEMS
from cmg.training import monitors, runtime
from cmg.training.run_state import Position
from cmg.training.step import TrainStep
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import refused
from tiny import checkpoints, train

pytestmark = pytest.mark.usefixtures("small_model")


# ------------------------------------------------------------------------------------------------------ not finite
def poison(monkeypatch, clip, value):
    """One clip's audio is `value` once it is in memory, past every check of the loader."""
    load = Clips.load

    def poisoned(self, modality, dtype=None):
        found = load(self, modality, dtype)
        if modality == "audio":
            found[clip] = value
        return found
    monkeypatch.setattr(Clips, "load", poisoned)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_run_that_is_not_finite_ends_with_its_bundle_and_is_resumed(demo_data, tmp_path, monkeypatch, is_late):
    """One line names the clip, the loss, the bundle and the checkpoint to resume from; without the defect, the resumed
    run ends as one that never met it. Late: the values arrive, as on a GPU, when something waits for them."""
    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        poison(patch, 17, float("nan"))
        if is_late:
            patch.setattr(monitors.StepMetrics, "arrived", lambda self, wait=False: wait)
        train(demo_data, tmp_path, "--save_every_steps", 1, "--print_freq", 3)
    opts = parse_pretrain(["--data_root", str(demo_data)], LOCAL)
    name = pretrain.open_data(opts).ids[17]
    message = str(caught.value)
    assert "audio_recon is nan" in message and f"features of {name};" in message and "\n" not in message
    step = int(message.split("step ")[1].split(":")[0])
    bundle = torch.load(tmp_path / "run" / "debug" / f"step-{step}.pt", weights_only=True)
    assert bundle["step"] == step and bundle["epoch"] == 0 and name in bundle["clips"] and len(bundle["clips"]) == 8
    assert bundle["batch"]["audio"].isnan().any() and not bundle["batch"]["video"].isnan().any()
    assert math.isnan(bundle["values"]["losses"]["audio_recon"]) and bundle["options"]["seed"] == 43
    last = max(checkpoints(tmp_path), key=lambda name: int(name.split("step")[1].split(".")[0]))
    assert f"resume from {tmp_path / 'checkpoints' / last}" in message and f"step{step - 1}.pt" in last
    checkpoint.open_file(tmp_path / "checkpoints" / last)               # refuses what is not finite
    if not is_late:
        for folder, *more in ((tmp_path, "--resume", "auto"), (tmp_path / "whole",)):
            assert train(demo_data, folder, "--print_freq", 3, *more) == 0
        found = kill_resume.compare(tmp_path / "whole", tmp_path, "DCID-model-1.pt")
        assert [entry for entry in found if not entry.startswith((".run.saved", "metrics"))] == []


def test_a_gradient_alone_is_noticed(demo_data, tmp_path, monkeypatch):
    losses, steps = TrainStep.losses, []

    def with_a_cliff(self, *args):
        report = losses(self, *args)
        steps.append(1)
        if len(steps) == 3:                       # sqrt at zero: the loss is finite, its slope is not
            weight = next(iter(self.system.objectives[0].decoders["audio"].parameters()))
            report.losses["total"] = report.losses["total"] + torch.sqrt((weight * 0).sum())
        return report
    monkeypatch.setattr(TrainStep, "losses", with_a_cliff)
    refused("step 3: gradient of Decoder_parameters is nan; .* in a batch with .* more; ", train, demo_data, tmp_path)


def test_a_step_that_explodes(demo_data, tmp_path):
    refused("expected finite numbers.*lower --lr", train, demo_data, tmp_path, "--lr", 1e30)


def test_finite_steps_pass_and_late_ones_are_awaited():
    """As on a GPU: figures that have not arrived are looked at later, and at the latest before anything is saved."""
    class Event:
        there = False

        def query(self):
            return self.there

        def synchronize(self):
            self.there = True
    finite = monitors.FiniteCheck(["a", "b", "c"])

    def figures(value, step):
        return monitors.StepMetrics([("losses", "total")], torch.tensor([value]), torch.tensor([0, 2]),
                                    {"audio": torch.ones(2, 3)}, Position(step=step - 1), Event())
    finite.pending = [figures(1.0, 1), figures(float("inf"), 2), figures(2.0, 3)]
    finite._check_finite(wait=False)
    assert len(finite.pending) == 3
    with pytest.raises(monitors.NonFiniteError, match="step 2: total is inf; .* in a batch with a, c; "):
        finite.flush()


# -------------------------------------------------------------------------------------------------------- collapse
def book(codes=50, used=50):
    """A codebook of which `used` codes are in use, and one batch's indices."""
    codebook = Codebook(codes, 4)
    codebook.ema_count[:used] = 1
    indices = torch.arange(60).remainder(used).view(6, 10)
    return codebook, {"audio": indices, "video": indices.clone()}


@pytest.mark.parametrize("used, apart, expected", [(50, False, None), (3, False, "the batch uses 3 of 50 codes"),
                                                   (50, True, "no code of this batch is used by all modalities")])
def test_collapse_is_said_once_with_advice(caplog, used, apart, expected):
    codebook, indices = book(used=used)
    if apart:
        indices["audio"].clamp_(max=48)
        indices["video"] = torch.full((6, 10), 49)
    health, found = monitors.CodebookMonitor(), monitors.code_usage(codebook, indices)
    assert found.codes_used == used and found.perplexity == pytest.approx(used, rel=1e-4)
    for _ in range(3):
        health._check_codebook(found, 50, "")
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (expected is not None)
    if expected:
        assert expected in warnings[0] and "--" in warnings[0].split("; ")[1]
        caplog.clear()
        monitors.CodebookMonitor(**health.state())._check_codebook(found, 50, "")       # not again after a resume
        assert not caplog.records


@pytest.mark.parametrize("accuracy, says", [(0.12, True), (0.5, False)])
def test_contrastive_learning_at_chance_is_said(caplog, accuracy, says):
    health = monitors.CodebookMonitor()
    for step in (300, 400, 500, 600):
        health._check_cpc({"cpc_accuracy_a_to_v": accuracy, "equal_num": 3.0}, step, batch_size=8)
    assert caplog.text.count("Cross-CPC is at chance after 500 steps") == says


def rows(value):
    row = {"task": "ave", "direction": "audio->video", "metric": "accuracy", "selection": "best", "control": None,
           "chance": 10.0, "variant": ""}
    return [row | {"value": value}, row | {"value": 90.0, "control": "untrained"},
            row | {"value": 90.0, "metric": "other"}]


@pytest.mark.parametrize("value, says", [(10.0, True), (14.0, True), (40.0, False)])
def test_heads_at_chance_are_said(value, says):
    found = Doubts()
    found.add(rows(value), "accuracy", {"video": 100, "audio": 5})
    lines = found.lines(SimpleNamespace(system=DCID, pretraining={}))
    told = f"1 of 1 directions stay at chance: ave audio->video (accuracy {value}, chance 10.0 +- 3.0); check that the "
    assert len(lines) == says and "".join(lines).startswith(told * says)


@pytest.mark.parametrize("system, options, says", [
    (DCID, {}, True), (DCID, RECIPES["shared"], False), (DCID, RECIPES["shared"] | {"reset_after": 9}, True),
    (DCID, {name: list(map(list, value)) if name == "weights" else value        # as a checkpoint keeps them
            for name, value in RECIPES["shared"].items()}, False), (SYSTEMS["micu"], {}, False)])
def test_directions_without_common_codes_are_one_line_that_fits_the_run(system, options, says):
    found = Doubts(directions=dict.fromkeys(f"ave {k}" for k in range(12)),
                   apart={f"ave {k}": "codebook 2" if k == 1 else "" for k in range(8)})
    line, = found.lines(SimpleNamespace(system=system, pretraining={"options": options}))
    assert line.startswith("in 8 of 12 directions, the tested modality shares no code with the labeled one")
    assert "close their codes are: ave 0, ave 1 (codebook 2), ave 2, ave 3, ave 4, ave 5 and 2 more; pretrain" in line
    assert ("--recipe shared" in line) == says


def test_another_run_in_the_same_folders_is_one_warning(demo_data, tmp_path, caplog):
    def told(*more):
        caplog.clear()
        assert train(demo_data, tmp_path, "--max_steps", 1, *more) == 0
        return [record.message for record in caplog.records if "an earlier run" in record.message]
    assert told() == told() == []               # nothing there; the same run again
    line, = told("--n_embeddings", 20)
    assert "an earlier run with other options (n_embeddings 24 there, 20 here) is in the same folders: its" in line
    assert f"{tmp_path / 'run'} and checkpoints with the same name in {tmp_path / 'checkpoints'} are replaced" in line
    assert told("--n_embeddings", 20, "--max_steps", 2) == []
    (tmp_path / "run" / "options.json").unlink()
    path, = (tmp_path / "checkpoints").glob("*step1.pt")
    contents = checkpoint.read(path)
    del contents["run"]                         # as in a published file
    checkpoint.save(path, contents)
    assert f"({path.name} has no options) is in the same folders: checkpoints" in told("--n_embeddings", 20)[0]


def test_checkpoints_of_several_runs_are_told_apart():
    def encoder(path, codes, ids="a"):
        clips = {"number": 3, "ids_sha256": ids}
        return SimpleNamespace(path=Path(path), encoder=SimpleNamespace(pretraining={
            "options": {"n_embeddings": codes, "lr": 1e-4}, "clips": clips}))
    one = [encoder("/x/0.pt", 24), encoder("/x/1.pt", 24)]
    assert runs_of([*one, encoder("/y/0.pt", 64)]) == []
    assert runs_of([*one, encoder("/x/2.pt", 64)]) == [
        "/x: checkpoints of 2 runs, not epochs of one run: 0.pt, 1.pt (n_embeddings 24); 2.pt (n_embeddings 64)"]
    assert "0.pt (other clips); 3.pt (other clips)" in runs_of([one[0], encoder("/x/3.pt", 24, "b")])[0]


def test_a_run_with_the_recipe_is_not_measured_by_the_published_length():
    assert "far fewer than the 3,066" in " ".join(runtime.run_length(800, 80, 6, 400))
    assert len(runtime.run_length(800, 80, 6, 400, usual=None)) == 1


# ------------------------------------------------------------------------------------------------------ provenance
@pytest.fixture(scope="module")
def measured(demo_data, small_model, tmp_path_factory):
    """Folder of a pretraining run and of AVE's heads over its checkpoint; the class list is a copy."""
    folder = tmp_path_factory.mktemp("measured")
    train(demo_data, folder, "--max_steps", 2)
    categories = folder / "categories.txt"
    categories.write_text((demo_data / DATA_PATHS["ave.categories"]).read_text())
    ave.main(["--data_root", str(demo_data), "--checkpoint", str(next((folder / "checkpoints").glob("*.pt"))), "--gpu",
              "cpu", "--in_memory", "--n_epoch", "1", "--no_control", "--snapshot_pref", str(folder / "ave"),
              "--path", f"ave.categories={categories}"])
    return folder


def verify(folder, capsys):
    """(exit code, text) of results --verify."""
    capsys.readouterr()
    code = results_program.main(["--verify", str(folder / "ave" / "results.jsonl")])
    return code, capsys.readouterr().out


def test_a_run_says_what_it_was_made_with(demo_data, measured):
    record = json.loads(next((measured / "run" / "provenance").glob("*.json")).read_text())
    assert record["options"]["batch_size"] == 8 and record["versions"]["torch"] == torch.__version__
    assert record["data"]["vggsound.csv"]["rows"] == 81 and len(record["data"]["vggsound.csv"]["sha256"]) == 64
    assert record["data"]["vggsound.audio"]["entries"] == 80 and record["clips"]["number"] == 80
    assert isinstance(record["changed_since_commit"], bool) and record["commit"] and record["device"].startswith("cpu")


def test_results_match_their_files_until_these_change(measured, capsys):
    rows_there = len(results.read(measured / "ave" / "results.jsonl"))
    assert verify(measured, capsys) == (0, f"{rows_there} of {rows_there} rows match their files\n")
    for path, words in ((next((measured / "checkpoints").glob("*.pt")), "is now a different file"),
                        (measured / "categories.txt", "ave.categories"),
                        (next((measured / "ave" / "provenance").glob("*.json")), "has been changed")):
        good = path.read_bytes()
        path.write_bytes(good.replace(b"z", b"y", 1) if b"z" in good else good + b" ")
        code, text = verify(measured, capsys)
        assert code == 1 and words in text and f"0 of {rows_there} rows match" in text, text
        path.unlink()
        code, text = verify(measured, capsys)
        assert code == 1 and "is missing" in text, text
        path.write_bytes(good)
    assert verify(measured, capsys)[0] == 0


def test_records_of_equal_runs_are_one_file(tmp_path):
    name = provenance.write(tmp_path, {"a": 1})
    assert provenance.write(tmp_path, {"a": 1}) == name != provenance.write(tmp_path, {"a": 2})
    assert len(list((tmp_path / "provenance").iterdir())) == 2
