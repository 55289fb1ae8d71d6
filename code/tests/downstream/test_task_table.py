"""The table of tasks is whole, absent tasks empty nothing, and pictures are drawn of whatever checkpoints there are."""

import inspect
import json
import shlex
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
import prepare
from cmg.cli import parse_downstream, parse_pretrain
from cmg.data.clips import name_hashes
from cmg.data.layout import DATA_PATHS
from cmg.data.manifest import CUSTOM
from cmg.data.sets.pretraining import open_clips
from cmg.downstream import fit_heads
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.run import seen
from cmg.downstream.tasks import TASKS
from cmg.models.config import MODALITIES, modalities_of
from cmg.report import pictures, screen, tables
from cmg.results import rows as results
from configs.opts import LOCAL
from test_results import row

SRC = Path(evaluate.__file__).parent
PUBLISHED = [name for name in TASKS if name != CUSTOM]      # tasks of published data; the user's own: test_custom.py
READING = {"on_bad_clip": "error", "in_memory": False}


def place_in(root):
    """Dotted name -> Path below a data root."""
    return lambda name: root / DATA_PATHS[name]


# ------------------------------------------------------------------------------------------------------- the entries
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_is_whole(name):
    entry = TASKS[name]
    assert entry.name == name and entry.label and entry.about and entry.source and entry.epochs > 0
    assert (SRC / f"{name}.py").is_file() and (SRC / f"{name}.sh").is_file()
    assert set(entry.all_names()) <= set(DATA_PATHS) and entry.required
    assert ("text" in entry.modalities) == (entry.prompts is not None) and set(entry.modalities) <= set(MODALITIES)
    assert entry.directions and all(set(pair) <= set(entry.modalities) for pair in entry.directions.values())
    assert parse_downstream(name, [], LOCAL).directions == list(entry.directions.values())
    assert all(len(figures) == len(entry.directions) for figures in entry.published.values())
    assert not entry.published or entry.column
    assert list(inspect.signature(entry.method.evaluate).parameters) == ["task", "pretrained", "variants", "settings",
                                                                  "output", "cache"]


@pytest.mark.parametrize("name, protocol", list(product(PUBLISHED, ("default", "released"))))
def test_a_task_opens_measures_what_it_says_and_cannot_fail_after_training(name, protocol, demo_data):
    """Every name that is looked up once heads are trained: the metric of the best epoch, the table's, chance's."""
    entry = TASKS[name]
    modalities = modalities_of(entry.directions.values())
    task = entry.open(place_in(demo_data), modalities, protocol, **READING)
    for source, target in entry.directions.values():
        clips = task.test[target]
        labels = torch.from_numpy(np.stack([clips[i][task.label_key] for i in range(len(clips))]))
        indices = torch.arange(10 * len(clips)).view(-1, 10)
        part = EncodedSplit.of(torch.randn(len(clips), 10, 6), indices, labels)
        head = fit_heads.build_head(partial(task.make, 6), 0, part.table)
        assert torch.isfinite(head.loss(task.targets(part), part.table, part.rows)) and source in task.train
        for averaged in (None, 3):
            measured, chance = task.measure([head], part, averaged), task.chance(part, averaged)
            assert tuple(measured) == task.metrics == tuple(chance) and task.best_by in task.metrics
            assert all(value.shape == (1,) for value in measured.values())
        assert entry.column is None or entry.column in task.metrics
        drawn = task.pictured([head, head], part, clips)
        assert {"shown", "classes"} <= set(drawn) and len(drawn["shown"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_and_its_check_open_the_same_files_by_the_same_calls(name, demo_data, capsys, monkeypatch):
    entry, place = TASKS[name], place_in(demo_data)
    modalities = modalities_of([entry.usable(place)])
    opened, calls = [], []
    reads = {dotted: opened.append for dotted in DATA_PATHS}
    entry.paths(lambda dotted: reads[dotted](dotted))
    assert set(opened) == set(entry.all_names())

    def spied(part):
        def load(**reading):
            calls.append((part.title, part.load.func, part.load.args))
            return part.load(**reading)
        return replace(part, load=load)
    monkeypatch.setitem(TASKS, name, replace(entry, parts=lambda *args: [spied(part) for part in entry.parts(*args)]))
    TASKS[name].open(place, modalities, "default", **READING)
    run = list(calls)
    assert prepare.main(["check", "--dataset", name, "--data_root", str(demo_data)]) == 0
    assert calls == run + run and len(run) > 1
    shown = capsys.readouterr().out
    assert "ok: a run would work" in shown
    pretraining, task = (shlex.split(line) for line in shown.split("next: ")[1].splitlines())     # to be typed next
    assert Path(pretraining[0]).name == "pretrain.sh" and Path(task[0]).name == f"{name}.sh"
    assert Path(pretraining[0]).is_file() and Path(task[0]).is_file()
    assert parse_pretrain(pretraining[1:], LOCAL).data_root == demo_data
    opts = parse_downstream(name, task[1:], LOCAL)
    assert (opts.data_root, opts.checkpoint) == (demo_data, LOCAL.checkpoints / LOCAL.pretrained)


@pytest.mark.parametrize("name, protocol, direction, pretraining, head", [
    ("ave", "default", ("video", "audio"), 0, 0), ("ave", "released", ("video", "audio"), 0, 1),
    ("avvp", "default", ("audio", "video"), 0, (0.5, 1)), ("ave_avvp", "default", ("video", "audio"), 0, 0),
    ("ucf_vggsound", "default", ("video", "audio"), 1, 0), ("ucf_vggsound", "default", ("audio", "video"), 0, 0),
    ("ucf_vggsound", "default", ("text", "video"), 0, 1), ("ucf_oscmg", "default", ("video", "audio"), 0, 1),
    ("retrieval", "default", ("video", "text"), 1, 0)])
def test_which_tested_clips_were_trained_on(name, protocol, direction, pretraining, head, demo_data):
    """In pretraining on all splits, as published, and by the head; what a checkpoint does not say is not known."""
    place = place_in(demo_data)
    clips = open_clips("vggsound", place, ("train", "test", "val"), **READING)
    task = TASKS[name].open(place, direction, protocol, **READING)
    encoder = SimpleNamespace(encoder=SimpleNamespace(pretraining={"hashes": name_hashes(clips)}))
    found = seen(task, encoder, direction)
    assert found["seen_in_pretraining"] == pretraining
    least, most = head if isinstance(head, tuple) else (head, head)
    assert least <= found["seen_by_head"] <= most
    encoder.encoder.pretraining = {}
    assert seen(task, encoder, direction)["seen_in_pretraining"] is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_absent_place_is_named_with_source_and_remedy_once(name, demo_data, tmp_path, capsys):
    for dotted in TASKS[name].needed():
        code = prepare.main(["check", "--dataset", name, "--data_root", str(demo_data), "--path",
                             f"{dotted}={tmp_path / 'absent'}"])
        out = capsys.readouterr().out
        problems = [line for line in out.splitlines() if "PROBLEM" in line]
        assert code == 1 and len(problems) == 1, out
        assert f"{dotted} is missing: {tmp_path / 'absent'}; " in problems[0] and f"--path {dotted}=FILE" in problems[0]
        assert f"download from: {TASKS[name].source}" in out


def test_absent_prompts_skip_directions_with_text_and_are_said(demo_data, tmp_path, capsys):
    gone = ["--path", f"ave.text={tmp_path / 'absent.h5'}"]
    assert prepare.main(["check", "--dataset", "ave", "--data_root", str(demo_data), *gone]) == 0
    assert "directions with text are skipped until" in capsys.readouterr().out
    assert TASKS["ave"].usable(lambda name: tmp_path / "absent.h5") == ("video", "audio")


# --------------------------------------------------------------------------------------------------- the main table
def lines(column, value, **changes):
    """Result lines of a column, last and best."""
    cell = tables.CELLS[column]
    about = {"task": cell.task, "metric": cell.metric, "direction": cell.direction, "value": value} | changes
    return [row(**about, selection=selection) for selection in ("last", "best")]


def table_of(rows):
    return {entry.name: entry for entry in tables.all_rows(rows)}


def test_the_mean_is_of_the_measured_columns_and_says_how_many():
    rows = lines("AVE V>A", 50.0) + lines("AVE A>V", 60.0) + lines("AVVP V>A", 40.0)
    entry = table_of(rows)["DCID-model-5.pt (last)"]
    assert entry.mean == [50.0] and len(entry.values) == 3
    text = tables.paper_table(rows).splitlines()
    header, first = text[0].split(), text[2].split()
    assert header[-3:] == ["mean", "columns", "seeds"] and first[-3:] == ["50.0", "3", "0"]
    csv = [line.split(",") for line in tables.paper_table(rows, "csv").splitlines()]
    assert csv[1][csv[0].index("mean")] == "50.00" and csv[1][csv[0].index("columns")] == "3"


def test_absent_data_of_one_task_leaves_the_means_of_the_others():
    whole = [line for column in tables.CELLS for line in lines(column, 70.0)]
    part = [line | {"checkpoint": "/a/other.pt", "checkpoint_sha256": "bb"} for line in whole if line["task"] != "avvp"]
    table = table_of(whole + part)
    assert table["DCID-model-5.pt (last)"].mean == table["other.pt (last)"].mean == [70.0]
    assert (len(table["DCID-model-5.pt (last)"].values), len(table["other.pt (last)"].values)) == (8, 6)
    assert len(table["chance"].mean) == 1


def test_a_seed_that_a_column_lacks_takes_no_part_in_the_mean():
    rows = [line for seed, value in ((0, 10.0), (1, 20.0)) for line in lines("AVE V>A", value, seed=seed)]
    rows += lines("AVVP V>A", 30.0, seed=1)
    assert table_of(rows)["DCID-model-5.pt (last)"].mean == [25.0]                 # seed 1 has both
    rows = lines("AVE V>A", 10.0, seed=0) + lines("AVVP V>A", 30.0, seed=1)
    assert table_of(rows)["DCID-model-5.pt (last)"].mean == [20.0]                 # none has both: the columns' means


def test_checkpoints_are_told_apart_by_folders_and_by_content():
    made = [("/x/s0/m.pt", "aaaaaaa"), ("/y/s0/m.pt", "bbbbbbb"), ("/y/s1/m.pt", "ccccccc"), ("/y/s1/m.pt", "ddddddd")]
    rows = [line for path, sha in made for line in lines("AVE V>A", 1.0, checkpoint=path, checkpoint_sha256=sha)]
    short = tables.names(rows)
    assert len(set(short.values())) == 4
    assert short["aaaaaaa", "", ""] == "x/s0/m.pt" and short["bbbbbbb", "", ""] == "y/s0/m.pt"
    assert short["ccccccc", "", ""] == "s1/m.pt (cccccc)"


# ------------------------------------------------------------------------------------------------------ the pictures
SYSTEMS = {"DCID-model-{}.pt": ["audio", "video", "text"], "H-DCID-model-{}.pt": ["audio", "video"]}


def results_of(names, epochs, variants, columns=tuple(tables.CELLS), folders=("a",), **changes):
    """Result lines as evaluate.py leaves them, untrained control and validation included."""
    found = []
    for folder, name, epoch, variant in product(folders, names, epochs, variants):
        path = f"/{folder}/{name.format(epoch)}"
        about = {"checkpoint": path, "checkpoint_sha256": f"{abs(hash(path)):x}", "checkpoint_epoch": epoch,
                 "variant": variant, "modalities": SYSTEMS.get(name, ["audio", "video"])} | changes
        for column in columns:
            for control in (None, "untrained"):
                found += lines(column, 40.0 + (epoch or 0), control=control, validation=50.0, **about)
    return found


SCENES = {
    "one": results_of(["DCID-model-{}.pt"], [5], [""]),
    "epochs": results_of(["DCID-model-{}.pt"], [0, 1, 2], [""]),
    "epochs with variants": results_of(["DCID-model-{}.pt"], [0, 1], ["", "TOC 196,1,0"]),
    "variants alone": results_of(["DCID-model-{}.pt"], [0, 1], ["TOC 196,1,0", "TOC released"]),
    "systems": results_of(SYSTEMS, [0, 1], ["", "TOC released"]),
    "folders of one name": results_of(["DCID-model-{}.pt"], [5], ["", "TOC released"], folders=("a/s", "b/s", "b/t")),
    "no epoch known": results_of(["x.pt"], [None], [""]) + results_of(["DCID-model-{}.pt"], [1, 2], [""]),
    "one column": results_of(SYSTEMS, [0, 1], [""], columns=["AVVP A>V"]),
    "other columns": results_of(["DCID-model-{}.pt"], [0], [""], columns=["AVE V>A", "AVE A>V"])
    + results_of(["DCID-model-{}.pt"], [1], ["", "TOC 4,1,0"], columns=["AVVP A>V"]),
    "released for one direction": results_of(["DCID-model-{}.pt"], [0, 1], [""])
    + results_of(["DCID-model-{}.pt"], [0], ["TOC released"], columns=["UCF/VGG A>V"]),
    "only last": [line for line in results_of(SYSTEMS, [0, 1], [""]) if line["selection"] == "last"],
    "only best": [line for line in results_of(SYSTEMS, [0, 1], [""]) if line["selection"] == "best"],
    "no control, same or chance": [line | {"same_modality": None, "chance": None, "validation": None}
                                   for line in results_of(SYSTEMS, [0, 1], [""]) if not line["control"]],
    "no column": [row(task="retrieval", metric="r@5", direction="video->text")],
    "both protocols": results_of(SYSTEMS, [0, 1], [""]) + results_of(SYSTEMS, [0, 1], [""], protocol="released"),
    "written over": results_of(["DCID-model-{}.pt"], [0, 1], [""])
    + results_of(["DCID-model-{}.pt"], [0, 1], [""], checkpoint_sha256="later"),
}


@pytest.mark.parametrize("scene", SCENES)
def test_any_checkpoints_make_a_table_and_pictures(scene, tmp_path):
    for rows in (SCENES[scene], tables.pooled(SCENES[scene])):
        for form in ("text", "markdown", "csv"):
            assert tables.paper_table(rows, form) and results.summary(rows, form)
        choice = tables.choose(rows)
        assert choice is None or choice.cells
        for width in (70, 100, 160):
            shown = f"{screen.table(rows, width)}\n{results.summary(rows, width=width)}".splitlines()
            assert max(map(len, shown)) <= width
        assert "\n" not in screen.choice(rows)
    written = {path.name for path in pictures.draw_tables(SCENES[scene], tmp_path)}
    assert ("table.png" in written) == (scene not in ("no column", "only best"))
    if scene.startswith("epochs"):
        assert "epochs.png" in written
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in written)


def test_runs_in_several_folders_keep_their_pictures_apart(tmp_path):
    for run, levels in (("a", 1), ("b", 2)):
        folder = tmp_path / "runs" / run / "predictions"
        folder.mkdir(parents=True)
        codes = np.random.default_rng(0).integers(0, 9, (6, 10, levels))
        np.savez(folder / "codes-ave.npz", num_codes=9, checkpoint=f"{run}.pt", audio=codes, video=codes)
        curves = np.full((1, 3 + levels), 50.0)
        labels = np.zeros((6, 10, 4), np.uint8)
        labels[np.arange(6), :, np.arange(6) % 3] = 1
        scores = np.random.default_rng(1).standard_normal((6, 3))
        np.savez(folder / "ave-video-audio.npz", task="ave", source="video", target="audio", dataset="AVE test",
                 ids=np.arange(6).astype(str), best_by="accuracy", seed=0, checkpoint=f"{run}.pt", protocol="default",
                 features=np.ones((2, 10, 128)), classes=np.array(["x", "y", "z"]), labels=labels, clipwise=True,
                 cross=scores, same=scores, shown=np.array([0, 1]), cross_curves=curves, same_curves=curves)
        (tmp_path / "runs" / run / "results.jsonl").write_text(
            "\n".join(map(json.dumps, results_of([f"{run}-{{}}.pt"], [levels], [""]))) + "\n")
    names = {path.name for path in pictures.draw_run(tmp_path / "runs", tmp_path / "figs")}
    assert names == {"table.png", "codes-ave-a.png", "codes-ave-b-level1.png", "codes-ave-b-level2.png", "heads-a.png",
                     "heads-b.png", *(f"{kind}-ave-video-audio-{run}.png" for kind in ("classes", "clips", "confusion")
                                      for run in "ab")}
