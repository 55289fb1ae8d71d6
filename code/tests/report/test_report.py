"""The page of a run: whole, sortable, without a request or a console error; and what damaged or hostile files do."""

import io
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import browser
import evaluate
from cmg.models.config import MODALITIES
from cmg.report import __main__, page, run_files
from cmg.report import pictures as figures
from cmg.results import rows as results
from cmg.training.run_logger import RunLogger, kept_warnings, setup_logging
from cmg.utils import errors
from conftest import refused
from test_results import row
from tiny import STEPS, checkpoints, train

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">&$\\frac{'


@pytest.fixture(scope="module")
def run(demo_data, small_model, tmp_path_factory):
    """A tiny pretraining run and its results on three tasks."""
    folder = tmp_path_factory.mktemp("tiny") / "run of a test"
    assert train(demo_data, folder, "--log", "tensorboard") == 0
    file = folder / "checkpoints" / checkpoints(folder)[-1]
    evaluate.main(["--data_root", str(demo_data), "--snapshot_pref", str(folder), "--n_epoch", "2", "--seeds", "0", "1",
                   "--gpu", "cpu", "--tasks", "ave", "avvp", "retrieval", "--", str(file)])
    for name in ("avvp-audio-video", "ave-text-audio", "ave-text-video"):       # drawn as those of the others
        (folder / "predictions" / f"{name}.npz").unlink()
    return folder


@pytest.fixture(scope="module")
def pictures(run, tmp_path_factory):
    return figures.draw_run(run, tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def written(run, pictures):
    return page.write([run], run / "report.html", drawn=pictures)


def call(*arguments):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: __main__.main([str(x) for x in arguments]))
    return ended.value.code


@pytest.fixture
def tab():
    if not browser.find():
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with browser.browser() as opened:
        yield opened


# ----------------------------------------------------------------------------------------------------------- the page
def test_the_page_holds_every_section_and_what_was_measured(written, pictures, run):
    assert all(path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000 for path in pictures)
    text = written.read_text()
    assert len(text.encode()) < page.LARGEST_PAGE
    assert "http" not in re.sub('base64,[^"]*', "", text.split("<body>")[1])         # pictures may spell anything
    for name in set(page.SECTIONS) - {"open", "other"}:
        assert f'<section id="{name}">' in text and f'href="#{name}"' in text
    for kind in ("losses", "sharing", "codes", "heads", "classes", "confusion", "timelines", "clips", "retrieval",
                 "examples"):
        assert f'alt="{kind}-' in text or f'alt="{kind}"' in text, kind
    rows = results.read(run / "results.jsonl")
    assert f"{len(rows)} of {len(rows)} result lines match their files." in text
    assert "DCID" in text and "20 steps of 8 clips" in text and rows[0]["checkpoint_sha256"] in text


def test_in_a_browser(written, tab):
    """Every section is there, a click sorts the table, nothing is complained of, no picture is wider than its column,
    the page no wider than a phone; a click on a picture shows it in its own size."""
    tab.open(written)
    assert tab.evaluate("[...document.querySelectorAll('section')].map(s => s.id)") == [
        name for name in page.SECTIONS if name not in ("open", "other")]
    assert tab.evaluate("Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))"
                        ".then(() => document.images.length)") > 15
    assert tab.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    column = """(() => {{ const table = document.querySelector('table.figures');
        const head = [...table.tHead.rows[0].cells].find(c => c.textContent == '{0}');
        {1};
        return [...table.tBodies[0].rows].map(r => r.cells[head.cellIndex]).map(
            c => c.dataset.value === undefined ? c.textContent : +c.dataset.value) }})()"""
    click = "head.querySelector('button').click()"
    before = tab.evaluate(column.format("last", ""))
    assert before != sorted(before)
    assert tab.evaluate(column.format("last", click)) == sorted(before, reverse=True)
    assert tab.evaluate(column.format("last", click)) == sorted(before)
    names = tab.evaluate(column.format("direction", click))
    assert names == sorted(names) and len(set(names)) > 2
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    cut = """(document.querySelectorAll('details').forEach(d => d.open = true), [...document.querySelectorAll(
        'figure')].filter(f => f.scrollWidth > f.clientWidth).map(f => f.firstChild.alt))"""
    for width in (1300, 800, 400):
        tab.open(written, width)
        assert tab.evaluate(cut) == []
    tab.evaluate("document.querySelector('figure.broad img').click()")
    assert len(tab.evaluate(cut)) == 1
    tab.open(written, 390, 844, "dark", is_phone=True)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.errors == []


def test_two_runs_stand_side_by_side(tmp_path):
    """Seeds are mean ± deviation, the second run's difference to the first is there; --pool makes them one."""
    for number, values in enumerate(([60.0, 62.0], [70.0, 74.0])):
        for seed, value in enumerate(values):
            results.append(tmp_path / f"run{number}" / "of_one_name" / "results.jsonl", row(
                value=value, seed=seed, selection="last", task="ave", checkpoint=f"/nowhere/{number}/DCID-model-5.pt",
                checkpoint_sha256=f"{number}" * 64))
    folders = [str(tmp_path / f"run{number}" / "of_one_name") for number in (0, 1)]
    __main__.main([*folders, "--out", str(tmp_path / "both.html")])
    text = (tmp_path / "both.html").read_text()
    assert "61.0 ± 1.4" in text and "72.0 ± 2.8" in text and "+11.0" in text and "diff." in text
    assert "0 of 4 result lines match" in text and "is missing" in text
    assert "Runs run0/of_one_name, run1/of_one_name" in text
    __main__.main([*folders, "--pool", "--out", str(tmp_path / "pooled.html")])
    text = (tmp_path / "pooled.html").read_text()
    assert "66.5 ± 6.6" in text and "diff." not in text.split("</header>")[1]
    rows = page.rows_of(run_files.read_runs(folders), True)
    assert {r["run"] for r in rows} == {"run0/of_one_name and 1 more"}


def test_no_picture_is_wider_than_its_column_and_most_are_folded(written):
    """The geometry of the page's own code, without a browser."""
    text = written.read_text()
    assert "figure img { display: block; max-width: 100%;" in text
    figure = re.compile(r'<figure class="(\w+(?: broad)?)"><img width="(\d+)"')
    found = [(kind, int(width)) for kind, width in figure.findall(text)]
    assert len(found) == text.count("<img ") > 15
    assert all(width <= (page.PAGE if "broad" in kind else page.COLUMN) for kind, width in found)
    for section in re.split("<section ", text)[1:]:
        shown = re.sub(r"(?s)<details>.*?</details>", "", section)
        assert 2 * shown.count(' broad"><img') + shown.count('drawn"><img') <= page.OPEN


def test_the_time_is_that_of_the_last_run_and_of_the_ones_it_resumed(tmp_path):
    begin = "2026-01-0{} 10:00:00 DCID on cpu: 80 clips, audio, T = 10\n"
    step, resumed = "2026-01-0{} 11:00:00 epoch 0 step 5\n", "2026-01-0{} 10:00:01 a.pt: resuming in epoch 1 after 2\n"
    (tmp_path / "metrics.jsonl").write_text("")
    for runs, days in (([begin, step], (1, 2)), ([begin, step, begin, step], (3, 4)),
                       ([begin, step, begin, step, begin, resumed, step], (3, 7)), ([step], (1, 1))):
        (tmp_path / "log.txt").write_text("".join(line.format(day) for day, line in enumerate(runs, 1)))
        found, = run_files.read_run(tmp_path).pretrainings
        assert (int(found.began[9]), int(found.ended[9])) == days


def test_a_run_is_called_by_its_folder_and_its_data_by_what_it_read(tmp_path):
    """Tables, pictures and columns; several checkpoints of a run add their file names."""
    folder = tmp_path / "birds-seed0"
    for epoch in range(2):
        results.append(folder / "results.jsonl", row(checkpoint=f"/x/DCID-model-{epoch}.pt",
                                                     checkpoint_sha256=str(epoch)))
    assert [r["run"] for r in page.rows_of(run_files.read_runs([folder]), False)] == [
        "birds-seed0: DCID-model-0.pt", "birds-seed0: DCID-model-1.pt"]
    results.append(tmp_path / "b" / "results.jsonl", row())
    runs = run_files.read_runs([tmp_path / "b"])
    assert page.measure(page.rows_of(runs, False))[0].run == "b"
    files = {name: {"path": f"/data/birds/{name}"} for name in ("clips.csv", "audio/zip")}
    for name, data in (("custom", "birds"), ("vggsound_AVT", "birds as vggsound_AVT")):
        facts = page._facts(run_files.Pretraining(
            folder, {"dataset_name": name, "data_root": "/unused"}, [{"step": 1, "epoch": 0}],
            {"data": files, "versions": {}, "clips": {"number": 192, "origin": "birds"}}))
        assert facts["data"] == f"{data}, 192 clips, /data/birds"


def test_pictures_beyond_the_limit_are_named(run, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "LARGEST_PAGE", 250_000)
    text = page.write([run], tmp_path / "small.html", drawn=pictures).read_text()
    assert len(text.encode()) <= 250_000 and "Omitted to keep the page small" in text
    monkeypatch.setattr(page, "LARGEST_PAGE", 10_000)
    refused("pass fewer runs", page.write, [run], tmp_path / "small.html", drawn=pictures)


def test_warnings_reach_the_file_of_their_run(tmp_path):
    """Those of a pretraining run its folder's, those of a task the file beside its results; figures go on elsewhere."""
    folder = RunLogger(tmp_path / "run", {})
    logging.warning("codes %d", 3)
    logging.info("no warning")
    folder.close()
    with kept_warnings(tmp_path):
        logging.error("at chance")
    logging.warning("after the block")
    setup_logging()
    for file, message in ((tmp_path / "run" / "warnings.jsonl", "codes 3"), (tmp_path / "warnings.jsonl", "at chance")):
        assert json.loads(file.read_text().splitlines()[0])["message"] == message
    assert len((tmp_path / "warnings.jsonl").read_text().splitlines()) == 1


def test_tested_clips_that_were_trained_on_are_said(tmp_path):
    results.append(tmp_path / "results.jsonl", row(seen_by_head=0.5))
    text = page.write([tmp_path], tmp_path / "report.html", drawn=[]).read_text()
    assert "* test clips were seen before by the head, in another modality: ave 50 %." in text
    assert ">video → audio*</td>" in text


def test_warnings_of_tasks_are_printed_at_the_end(tmp_path, monkeypatch, capsys):
    """Each once, after what the block printed, also when it fails, no wider than the terminal."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])        # pytest's own show them
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(errors.InputError), kept_warnings(tmp_path):
        for _ in range(2):
            logging.warning("%s directions stay at chance: %s", 8, "ave video->audio, " * 6)
        assert not capsys.readouterr().err
        raise errors.InputError("no")
    found = capsys.readouterr().err.splitlines()
    assert found[0].startswith("8 directions stay at chance") and max(map(len, found)) <= 50 and len(found) < 5
    assert all(line.startswith("  ") for line in found[1:])


def test_warnings_are_shown_once(run, tmp_path):
    folder = shutil.copytree(run / "run", tmp_path / "warned")
    line = json.dumps({"time": "2024-01-01 00:00:00", "level": "warning", "message": "codebook has collapsed"})
    (folder / "warnings.jsonl").write_text(f"{line}\n{line}\n")
    __main__.main([str(folder)])
    text = (folder / "report.html").read_text()
    assert text.count("codebook has collapsed") == 1 and "(2 times)" in text


# ------------------------------------------------------------------------------------------------------ hostile and bad
def hostile_run(folder):
    """A run whose every text is a script."""
    for seed in (0, 1):
        results.append(folder / "results.jsonl", row(
            dataset=HOSTILE, metric=HOSTILE, task=HOSTILE, seed=seed, direction=f"audio->{HOSTILE}", control=None,
            checkpoint=f"/{HOSTILE}.pt", commit=HOSTILE))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": step, "epoch": 0, "losses": {HOSTILE: 1.0, "total": float("inf")}, "metrics": {HOSTILE: 1e308}}) + "\n"
        for step in range(3)))
    (folder / "options.json").write_text(json.dumps({HOSTILE: HOSTILE, "system": HOSTILE, "seed": HOSTILE}))
    (folder / "warnings.jsonl").write_text(json.dumps({"message": HOSTILE, "time": HOSTILE}) + "\n")
    (folder / "log.txt").write_text(HOSTILE)


def test_hostile_text_is_text(tmp_path, tab):
    folder = tmp_path / HOSTILE.replace("/", "")
    hostile_run(folder)
    __main__.main([str(folder), "--out", str(tmp_path / "page.html")])
    assert "<script>window" not in (tmp_path / "page.html").read_text()
    tab.open(tmp_path / "page.html")
    assert tab.evaluate("window.hacked === undefined && document.querySelectorAll('script').length == 1")
    assert tab.evaluate("[...document.images].every(i => i.src.startsWith('data:image/webp'))")
    assert tab.errors == []


def arrays(**named):
    """Bytes of an .npz file."""
    content = io.BytesIO()
    np.savez(content, **named)
    return content.getvalue()


LOSSES = {f"loss{number}": 1.0 for number in range(5000)}
HUGE = object()                 # a file of a terabyte
DAMAGED = {                     # what is wrong -> file -> its content
    "a line that was cut": {"results.jsonl": json.dumps(row())[:-40]}, "depth": {"results.jsonl": "[" * 100_000},
    "a row": {"results.jsonl": json.dumps(row(variant=["a"])) + "\n"},
    "a number": {"results.jsonl": json.dumps(row(value=10 ** 400)) + "\n"},
    "the log": {"metrics.jsonl": '{"step": 1, "losses": {"total": "x"}}\n{}\n'},
    "too many panels": {"metrics.jsonl": json.dumps({"step": 1, "losses": LOSSES}) + "\n"},
    "options": {"metrics.jsonl": "", "options.json": "[1, 2]"}, "warnings": {"warnings.jsonl": b"\xff\xfe\x00"},
    "predictions": {"predictions/ave-audio-video.npz": b"PK\x03\x04 cut"},
    "arrays": {"predictions/ave-audio-video.npz": arrays(target="video", source="audio", clipwise=True,
                                                         labels=np.zeros(3))},
    "objects": {"predictions/ave.npz": arrays(target=np.array([{}], dtype=object))}, "size": {"metrics.jsonl": HUGE}}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_one_line(what, tmp_path, capsys):
    results.append(tmp_path / "results.jsonl", row())
    for name, content in DAMAGED[what].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            if content is HUGE:
                file.truncate(1 << 40)
            else:
                file.write(content if isinstance(content, bytes) else content.encode())
    assert call(tmp_path, "--out", tmp_path / "page.html") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(tmp_path) in said
    assert not (tmp_path / "page.html").exists()


def test_nothing_to_report(tmp_path, capsys):
    assert call(tmp_path / "absent") == 2 and "no such folder" in capsys.readouterr().err
    assert call(tmp_path) == 2 and "neither metrics.jsonl nor results.jsonl" in capsys.readouterr().err
    results.append(tmp_path / "results.jsonl", row())
    (tmp_path / "file").write_text("")
    assert call(tmp_path, "--out", tmp_path / "file" / "page.html") == 2
    assert call(Path(tmp_path), "--unknown") == 2


# --------------------------------------------------------------------------------------------------------- TensorBoard
def test_tensorboard_has_the_use_of_the_codes(run):
    """A histogram of codes at every line of the log, a picture of them for every epoch, beside the scalars."""
    events = EventAccumulator(str(run / "run"), size_guidance={"histograms": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["histograms"] == [f"codes/{m}" for m in MODALITIES] and tags["images"] == ["codes/by modality"]
    assert "loss/total" in tags["scalars"]
    assert [event.step for event in events.Images("codes/by modality")] == [STEPS, 2 * STEPS]
    histogram = [event for event in events.Histograms("codes/audio") if event.step == 2 * STEPS][-1].histogram_value
    assert histogram.num == 8 * 10 and sum(histogram.bucket) == 8 * 10              # clips times seconds
