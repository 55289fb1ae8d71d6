"""Results files: appending, reading, tables, the papers' table, and the choice by validation."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from cmg.report import pictures, screen, tables
from cmg.results import rows as results
from cmg.results.__main__ import main
from conftest import ROOT, refused


def row(**changes):
    """A valid result line."""
    base = {"task": "ave", "dataset": "AVE test", "direction": "video->audio", "metric": "accuracy", "value": 50.0,
            "epoch": 29, "selection": "last", "same_modality": 80.0, "chance": 10.0, "seed": 0, "protocol": "default",
            "modalities": ["audio", "video"], "checkpoint": "/a/DCID-model-5.pt", "checkpoint_sha256": "aa",
            "commit": "c0ffee", "seconds": 1.5, "control": None}
    return base | changes


PLACED = [(cell.task, cell.metric, cell.direction) for cell in tables.CELLS.values()]


def both_ways(**changes):
    """All eight cells, `value` counting up from 10, for both selections."""
    return [row(task=task, metric=metric, direction=direction, value=10.0 + n + (selection == "best"),
                selection=selection) | changes
            for n, (task, metric, direction) in enumerate(PLACED) for selection in ("last", "best")]


def test_a_row_survives_the_file(tmp_path):
    path = tmp_path / "run" / "results.jsonl"
    results.append(path, row())
    results.append(path, row(seed=1, extra="kept"))
    assert results.read(path) == [row(), row(seed=1, extra="kept")]


def test_a_rerun_replaces_and_a_new_checkpoint_does_not(tmp_path):
    path = tmp_path / "results.jsonl"
    for line in (row(value=1.0), row(seed=1, value=2.0), row(value=3.0, commit="later"), row(checkpoint_sha256="bb")):
        results.append(path, line)
    assert [r["value"] for r in results.read(path)] == [3.0, 2.0, 50.0]
    assert len(path.read_text().splitlines()) == 4                       # nothing is ever removed from the file


@pytest.mark.parametrize("change, message", [
    ({"value": float("nan")}, "value is nan"), ({"value": None}, "value is None"), ({"chance": "10"}, "chance is '10'"),
    *[({"value_at_validation": value}, "value_at_validation") for value in ("x", [1], 10 ** 400, True)],
    *[({name: "a" * 5000}, name) for name in ("provenance", "checkpoint")],
    *[({name: 10 ** 30}, name) for name in ("checkpoint_epoch", "seed")], ({"variant": {}}, "variant"),
    ({"settings": []}, "settings"),
    ({"selection": "first"}, "selection is 'first'"), ({"protocol": "mine"}, "protocol"), ({"direction": "va"}, "'va'"),
])
def test_wrong_rows_are_refused_on_both_ways(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        results.append(tmp_path / "results.jsonl", row(**change))
    assert not (tmp_path / "results.jsonl").exists()
    (tmp_path / "bad.jsonl").write_text(json.dumps(row()) + "\n" + json.dumps(row(**change)) + "\n")
    refused(f"bad.jsonl: line 2: .*{message}", results.read, tmp_path / "bad.jsonl")


def test_broken_files_are_named(tmp_path):
    refused("nothing.jsonl", results.read, tmp_path / "nothing.jsonl")
    for content, message in (("", "contains no results"), ('{"task": 1\n', "line 1 is not JSON"),
                             ("[1]\n", "line 1: a result must be"), ("{}\n", "keys missing: task, dataset")):
        (tmp_path / "x.jsonl").write_text(content)
        refused(message, results.read, tmp_path / "x.jsonl")


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(row())[:40])
    results.append(path, row(seed=7))
    line, = path.read_text().splitlines()       # no whole result: its call will be repeated
    assert json.loads(line)["seed"] == 7


def append_many(arguments):
    path, writer = arguments
    for n in range(40):
        results.append(path, row(seed=1000 * writer + n, note="x" * 3000))


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(append_many, [(path, writer) for writer in range(4)]))
    assert sorted(r["seed"] for r in results.read(path)) == sorted(1000 * w + n for w in range(4) for n in range(40))


def test_seeds_become_mean_and_deviation():
    assert results.mean_std([1.0, None, 3.0]) == (2.0, pytest.approx(2 ** 0.5))
    assert results.show([1.0, 3.0]) == "2.0 +- 1.4" and results.show([5.0]) == "5.0" and results.show([]) == "-"


def test_the_table_has_last_and_best_side_by_side_and_a_row_for_the_control():
    rows = [row(value=40.0, seed=s, selection="last") for s in (0, 1)]
    rows += [row(value=60.0 + s, seed=s, selection="best", value_at_validation=55.0) for s in (0, 1)]
    rows += [row(value=11.0, control="untrained")]
    table = results.tabulate(rows)
    assert [entry["direction"] for entry in table] == ["video->audio", "video->audio [untrained]"]
    assert (table[0]["last"], table[0]["best"], table[0]["same"], table[0]["seeds"]) == (
        "40.0 +- 0.0", "60.5 +- 0.7", "80.0 +- 0.0", "0 1")
    assert (table[1]["last"], table[1]["best"]) == ("11.0", "-")
    text = results.summary(rows)
    assert "Protocol default" in text and "Protocol released" not in text
    markdown = results.summary([entry | {"dataset": "own: cats|dogs"} for entry in rows], "markdown").splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in markdown[:4]}) == 1 and set(markdown[1]) == set("|- ")
    assert r"own: cats\|dogs" in markdown[2]


def test_protocols_stand_in_tables_of_their_own():
    text = results.summary([row(), row(protocol="released", value=70.0)])
    assert text.index("50.0") < text.index("Protocol default") < text.index("70.0") < text.index("Protocol released")


def test_the_command_prints_the_table(tmp_path, capsys):
    results.append(tmp_path / "results.jsonl", row())
    results.append(tmp_path / "copy.jsonl", row())
    main([str(tmp_path / "results.jsonl"), str(tmp_path / "copy.jsonl"), "--markdown"])
    printed = capsys.readouterr().out
    assert "| DCID-model-5.pt | audio+video" in printed and "+-" not in printed.split("Protocol")[0]
    done = subprocess.run([sys.executable, "-m", "cmg.results", "/nowhere/results.jsonl"], text=True,
                          capture_output=True, cwd=ROOT / "code" / "src")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "/nowhere" in done.stderr


def test_paper_table_has_the_eight_cells_and_their_mean():
    rows = both_ways() + both_ways(checkpoint="/b/DCID-model-5.pt", checkpoint_sha256="bb", value=20.0)
    table = {entry.name: entry for entry in tables.all_rows(rows)}
    assert table["a/DCID-model-5.pt (last)"].mean == [sum(range(10, 18)) / 8]      # two files of one name: with folder
    assert table["a/DCID-model-5.pt (best)"].mean == [sum(range(11, 19)) / 8]
    assert table["b/DCID-model-5.pt (last)"].mean == [20.0]
    assert table["published: Uni-Code, AVT 40K (Table 3)"].mean == [pytest.approx(59.575)]
    assert table["published: Uni-Code, AV 40K (Table 1)"].mean == [pytest.approx((47.7 + 52.3 + 64.0 + 65.6) / 4)]
    csv = tables.paper_table(rows, "csv").splitlines()
    assert csv[0].split(",")[:3] == ["row", "AVE V>A", "AVE A>V"] and csv[0].count(",") == csv[1].count(",")


def test_the_data_is_named_unless_it_is_the_published_one():
    """The table has a title and the papers' rows are left out; the user's own data needs no form of another."""
    form = "Dialled Digits in the form of AVE, AVVP, AVE>AVVP, UCF/VGG"
    own = row(task="custom", dataset="clips.csv test", origin="birds")
    for rows, title, data in ((both_ways(), "", "AVE test"),
                              (both_ways(origin=""), "", "AVE test"),
                              (both_ways(origin="Dialled Digits"), form, "Dialled Digits as AVE test"),
                              ([own], "birds", "birds: clips.csv test")):
        assert tables.title(rows) == title and results.tabulate(rows)[0]["tested on"] == data
        text = tables.paper_table(rows)
        assert text.startswith(f"{title}\n\nrow " if title else "row ") and ("published:" in text) == (not title)
        assert f"in the form of {title}" not in text
        header, first, *_ = tables.paper_table(rows, "csv").splitlines()
        assert header.startswith("data,row," if title else "row,") and title.split(",")[0] in first
        for shown in (rows, rows + [line | {"checkpoint_sha256": "bb", "checkpoint": "/b/2.pt"} for line in rows]):
            assert screen.table(shown, 200).splitlines()[0] == title or not title
    mixed = both_ways(origin="Dialled Digits")[:4] + both_ways()[4:]
    assert "published:" in tables.paper_table(mixed) and tables.title(mixed) == "Dialled Digits in the form of AVE"


def test_pooled_checkpoints_are_one_row():
    rows = both_ways() + both_ways(checkpoint="/b/DCID-model-5.pt", checkpoint_sha256="bb", value=20.0)
    rows += both_ways(checkpoint="/b/DCID-model-5.pt", checkpoint_sha256="bb", value=30.0, variant="TOC 196,1,0")
    table = {entry.name: entry for entry in tables.all_rows(tables.pooled(rows))}
    assert table["DCID-model-5.pt (last)"].mean == [sum(range(10, 18)) / 8, 20.0]
    assert table["DCID-model-5.pt (last)"].runs == "0 x 2 checkpoints"
    assert table["DCID-model-5.pt + TOC 196,1,0 (last)"].mean == [30.0]
    assert table["DCID-model-5.pt + TOC 196,1,0 (last)"].runs == "0"


def test_validation_chooses_and_never_sees_the_test_figure():
    rows = [row(value=90.0, validation=60.0, checkpoint_sha256="aa", checkpoint="/x/1.pt"),
            row(value=50.0, validation=70.0, checkpoint_sha256="bb", checkpoint="/x/2.pt"),
            row(value=99.0, validation=99.0, checkpoint_sha256="aa", checkpoint="/x/1.pt", control="untrained")]
    choice = tables.choose(rows)
    assert (choice.name, choice.validation, choice.cells) == ("2.pt", 70.0, {"AVE V>A": [50.0]})
    more = row(validation=99.0, direction="audio->video", checkpoint_sha256="aa", checkpoint="/x/1.pt")
    assert tables.choose([*rows, more]).name == "2.pt"              # over the directions that both have
    assert tables.choose([row()]) is None
    equal = [row(validation=60.0, checkpoint_epoch=epoch, checkpoint_sha256=f"{epoch:02}", checkpoint=f"/x/{epoch}.pt")
             for epoch in (9, 24, 4)]
    assert tables.choose(equal).name == tables.choose(equal[::-1]).name == "24.pt"          # the most trained


def test_the_loss_curves_show_the_last_run_of_a_folder(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"epoch": 0, "step": step, "losses": {"total": loss}}) + "\n"
                            for step, loss in ((10, 9.0), (20, 8.0), (10, 7.0), (20, 6.0))))
    assert [line["losses"]["total"] for line in pictures.read_log(path)] == [7.0, 6.0]


def test_what_is_printed_of_one_checkpoint_and_of_several():
    """One: a line per direction with everything to compare it with. Several: a line each, and which to take."""
    own = both_ways() + [row(task="ave", direction="text->audio"), row(value=7.0, control="untrained")]
    shown = screen.table(own, 80).splitlines()
    assert shown[0] == "DCID-model-5.pt (audio+video), heads of seed 0"
    assert shown[2].split() == ["task", "direction", "metric", "last", "best", "same", "untrained", "chance"]
    assert shown[4].split() == ["AVE", "video->audio", "accuracy", "10.0", "11.0", "80.0", "7.0", "10.0"]
    assert shown[12].split() == ["mean", "13.5", "14.5", "80.0", "-", "10.0"] and max(map(len, shown)) <= 80
    assert " ".join(shown).endswith("1 more directions: results.jsonl.")
    other = both_ways(checkpoint="/a/DCID-model-4.pt", checkpoint_sha256="bb", value=90.0, validation=60.0)
    rows = both_ways(validation=70.0) + other
    first, second = screen.table(rows, 200).splitlines()[2:4]
    assert first.split()[:2] == ["DCID-model-5.pt", "10.0"] and second.split() == ["DCID-model-4.pt", *["90.0"] * 9]
    fewer = [line for line in other if line["task"] != "avvp"]      # whose mean is one of other columns
    assert screen.table(both_ways() + fewer, 200).splitlines()[3].split()[-3:] == ["90.0", "90.0", "-"]
    assert screen.choice(rows) == ("use DCID-model-5.pt: best on validation clips of AVE (70.0 %); the papers' rule "
                                   "(best on test clips of AVE) selects DCID-model-4.pt")
    assert screen.choice([line | {"task": "avvp"} for line in rows]).startswith("no choice: no validation clips")


def test_the_readme_shows_what_the_demo_prints():
    """Its table's names and captions; the values are those of one machine."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("It ends like this")[1].split("```")[1].strip().splitlines()
    about = dict(origin="Dialled Digits", checkpoint="/x/DCID-model-11.pt", modalities=["audio", "video", "text"])
    seen = {("avvp", "video->audio"): {"seen_by_head": 0.918}, ("avvp", "audio->video"): {"seen_by_head": 0.918},
            ("ucf_vggsound", "video->audio"): {"seen_in_pretraining": 1.0}}
    rows = [line | about | seen.get((line["task"], line["direction"]), {}) for line in both_ways()]
    rows += [line | {"control": "untrained"} for line in rows]
    rows += [row(direction=f"text->{number}") | about for number in range(22)]
    shown = screen.table(rows, 100).splitlines()
    assert block[:2] == shown[:2] and shown[13].startswith("mean ")
    assert [line.split()[:3] for line in block[3:13]] == [line.split()[:3] for line in shown[3:13]]
    start = block.index("", 5) + 1
    assert [line for line in block[start:] if line != "..."][:6] == shown[shown.index("", 5) + 1:]


def test_results_on_clips_that_were_trained_on_are_marked_in_every_table():
    rows = both_ways()
    for line in rows:
        line["seen_in_pretraining"] = 1.0 if line["task"] == "ucf_vggsound" else None
        line["seen_by_head"] = 0.918 if line["task"] == "avvp" else 0.0
    told = ("* test clips were seen before in pretraining, without labels: ucf_vggsound 100 %; by the head, in "
            "another modality: avvp 91.8 %.")
    for shown in (screen.table(rows, 200), results.summary(rows), tables.paper_table(rows)):
        assert told in shown
    assert screen.table(rows, 80).count(">audio*") == screen.table(rows, 80).count(">video*") == 2
    header = tables.paper_table(rows).splitlines()[0].split("  ")
    assert [name for name in header if name.endswith("*")] == ["AVVP V>A*", "AVVP A>V*", "UCF/VGG V>A*", "UCF/VGG A>V*"]
    assert "*" not in tables.paper_table(rows, "csv") and "* tested" not in results.caption(both_ways())
    assert "seen_by_head is 'x', not a finite number" in results.find_problem(row(seen_by_head="x"))
