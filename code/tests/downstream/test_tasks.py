"""Every task script on a small demo tree, through its own command line, with an untrained encoder as checkpoint."""

import re
import shutil
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

import ablation
import ave
import ave_avvp
import avvp
import evaluate
import retrieval
import ucf_vggsound
from cmg.checkpoints import checkpoint
from cmg.cli import parse_downstream
from cmg.data.layout import DATA_PATHS
from cmg.demos.dialled_clips import CHANNELS
from cmg.downstream import encode
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS as TABLE
from cmg.programs import ablation as ablation_program
from cmg.programs import downstream
from cmg.report import pictures
from cmg.results import rows as results
from cmg.systems.dcid import DCID
from cmg.systems.registry import SYSTEMS
from cmg.utils import files
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import refused

TASKS = {"ave": ave, "avvp": avvp, "ave_avvp": ave_avvp, "ucf_vggsound": ucf_vggsound}


def write_checkpoint(path, modalities=("audio", "video", "text"), epoch=0, video_dim=CHANNELS, system="dcid", **more):
    """A file as pretraining writes it, weights from a fixed seed."""
    config = SYSTEMS[system].Config.for_data(modalities, video_dim=video_dim, num_codes=24, feed_forward=64, **more)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SYSTEMS[system](config)
        for codes in model.encoder.codebooks:
            codes.normal_()
    checkpoint.save(path, checkpoint.pack(model, None, {}, epoch, 0, {}))
    return path


@pytest.fixture(scope="module")
def tree(demo_data, tmp_path_factory):
    """A demo tree of the least size and a checkpoint of its widths."""
    root = tmp_path_factory.mktemp("demo")
    (root / "data").symlink_to(demo_data)
    write_checkpoint(root / "model.pt")
    return root


def arguments(tree, run, *more):
    return ["--data_root", str(tree / "data"), "--checkpoint", str(tree / "model.pt"), "--snapshot_pref", str(run),
            "--n_epoch", "2", "--workers", "0", "--gpu", "cpu", *more]


@pytest.mark.parametrize("task", TASKS)
def test_both_directions_in_one_call(task, tree, tmp_path, capsys):
    TASKS[task].main(arguments(tree, tmp_path, "--seeds", "0", "1"))
    rows = results.read(tmp_path / "results.jsonl")
    measured = {"ave": 2, "ucf_vggsound": 2}.get(task, 3)     # accuracy and macro precision; precision, recall, F1
    assert len(rows) == 2 * 2 * 2 * 2 * measured         # directions, seeds, selections, with and without control
    assert {r["direction"] for r in rows} == {"video->audio", "audio->video"}
    assert {r["control"] for r in rows} == {None, "untrained"} and {r["epoch"] for r in rows} <= {0, 1}
    assert all(0 <= r["value"] <= 100 and r["same_modality"] is not None and r["chance"] > 0 for r in rows)
    assert all(r["checkpoint_sha256"] == files.sha256(tree / "model.pt") for r in rows)
    best = {(r["direction"], r["seed"], r["control"]): r["value"] for r in rows
            if r["selection"] == "best" and r["metric"] in ("accuracy", {"ave_avvp": "f1"}.get(task, "precision"))}
    last = {(r["direction"], r["seed"], r["control"]): r["value"] for r in rows
            if r["selection"] == "last" and r["metric"] in ("accuracy", {"ave_avvp": "f1"}.get(task, "precision"))}
    assert all(best[key] >= last[key] for key in last)
    assert "Protocol default" in capsys.readouterr().out


def test_the_same_modality_figure_is_that_of_the_direction_itself(tree, tmp_path):
    shared = ["--no_control", "--precision", "float64"]     # other heads side by side: rounding must decide nothing
    ave.main(arguments(tree, tmp_path, "--dataset_name", "ave_va", *shared))
    ave.main(arguments(tree, tmp_path / "same", "--source", "audio", "--target", "audio", *shared))
    cross, same = (results.read(folder / "results.jsonl")[0] for folder in (tmp_path, tmp_path / "same"))
    assert cross["same_modality"] == same["value"] == same["same_modality"] and cross["selection"] == "last"


def test_a_direction_alone_is_the_direction_among_others(tree, tmp_path):
    for run, more in (("one", ["--dataset_name", "ave_av"]), ("two", ["--seeds", "3", "43"])):
        ave.main(arguments(tree, tmp_path / run, "--no_control", "--precision", "float64", *more))
    one, two = ({(r["direction"], r["seed"], r["selection"]): r["value"]
                 for r in results.read(tmp_path / run / "results.jsonl")} for run in ("one", "two"))
    assert one == {key: two[key] for key in one} and len(one) == 2


def test_directions_with_text(tree, tmp_path):
    ave.main(arguments(tree, tmp_path, "--source", "text", "--target", "video", "--no_control"))
    ucf_vggsound.main(arguments(tree, tmp_path, "--source", "audio", "--target", "text", "--no_control"))
    assert {(r["task"], r["direction"]) for r in results.read(tmp_path / "results.jsonl")} == {
        ("ave", "text->video"), ("ucf_vggsound", "audio->text")}
    with pytest.raises(InputError, match="avvp: text->audio needs labeled clips with text"):
        avvp.main(arguments(tree, tmp_path, "--source", "text", "--target", "audio"))


def test_released_ave_is_tested_on_its_training_clips(tree, tmp_path):
    options = ["--protocol", "released", "--no_control", "--seed", "0"]
    ave.main(arguments(tree, tmp_path, *options))
    rows = results.read(tmp_path / "results.jsonl")
    assert {r["dataset"] for r in rows} == {"AVE train"} and {r["protocol"] for r in rows} == {"released"}
    assert {r["epoch"] for r in rows} == {1}               # from the checkpoint's epoch (0) + 1 up to n_epoch
    assert all(r["value_at_validation"] is None for r in rows)


def test_released_heads_see_dropout_and_the_encoder_does_not_change(tree):
    options = parse_downstream("ave", arguments(tree, tree / "x", "--protocol", "released", "--seed", "0"), LOCAL)
    pretrained, seen = Pretrained.load(options.checkpoint, "cpu", "float32"), []
    before = {name: value.clone() for name, value in pretrained.encoder.state_dict().items()}
    original = encode.codes

    def spy(*args, **kwargs):
        seen.append(kwargs["training"])
        return original(*args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "codes", spy)
        variants = downstream.toc_choices(options, TABLE["ave"], options.directions, pretrained)
        task = downstream.open_task(options, TABLE["ave"], options.directions, pretrained.encoder.config)
        downstream.measure(options, TABLE["ave"], task, pretrained, variants)
    assert seen == [False, True, True]                     # once quietly, then audio and video anew in the one epoch
    assert all(torch.equal(before[name], value) for name, value in pretrained.encoder.state_dict().items())
    assert not pretrained.encoder.training


def test_released_epochs_count_from_the_checkpoint(tree, tmp_path):
    write_checkpoint(tmp_path / "late.pt", epoch=2)
    late = ["--checkpoint", str(tmp_path / "late.pt"), "--protocol", "released", "--no_control"]
    ave.main(arguments(tree, tmp_path, *late, "--n_epoch", "5"))
    assert max(r["epoch"] for r in results.read(tmp_path / "results.jsonl")) == 4
    with pytest.raises(InputError, match="no epoch is left because the released protocol starts at 3"):
        ave.main(arguments(tree, tmp_path, *late, "--n_epoch", "3"))


def test_the_same_call_gives_the_same_figures(tree, tmp_path):
    for run in ("a", "b"):
        avvp.main(arguments(tree, tmp_path / run, "--seed", "4"))
    values = [[r["value"] for r in results.read(tmp_path / run / "results.jsonl")] for run in ("a", "b")]
    assert values[0] == values[1]


def test_two_levels_of_codes(tree, tmp_path):
    write_checkpoint(tmp_path / "h.pt", system="h_dcid")
    ave.main(arguments(tree, tmp_path, "--checkpoint", str(tmp_path / "h.pt"), "--no_control"))
    assert len(results.read(tmp_path / "results.jsonl")) == 8         # directions, selections, two metrics


@pytest.mark.parametrize("change, message", [
    (["--checkpoint", "/nowhere/x.pt"], "/nowhere/x.pt: no such file"),
    (["--data_root", "/nowhere"], "/nowhere/AVE/data"),
])
def test_wrong_use_is_one_line(tree, tmp_path, change, message):
    refused(message, ave.main, arguments(tree, tmp_path, *change))
    assert not (tmp_path / "results.jsonl").exists()


def test_wrong_checkpoints_are_refused_before_work(tree, tmp_path):
    write_checkpoint(tmp_path / "av.pt", modalities=("audio", "video"))
    refused("pretrained on audio, video, but text was requested", ave.main,
            arguments(tree, tmp_path, "--checkpoint", str(tmp_path / "av.pt"), "--source", "text", "--target", "video"))
    write_checkpoint(tmp_path / "wide.pt", video_dim=CHANNELS // 2)
    with pytest.raises(InputError, match=f"expects video as maps of 7 x 7 x {CHANNELS // 2}, but AVE train .* has "
                       f"video as maps of 7 x 7 x {CHANNELS};"):
        ave.main(arguments(tree, tmp_path, "--checkpoint", str(tmp_path / "wide.pt")))


@pytest.mark.parametrize("flags", [["--dataset_name", "ave_xx"], ["--source", "audio"], ["--gpu", "7"], ["--gpu", "x"]])
def test_wrong_flags_exit_with_2(flags, capsys):
    with pytest.raises((SystemExit, InputError)) as stopped:
        parse_downstream("ave", flags, LOCAL).check_device()
    if isinstance(stopped.value, SystemExit):
        assert stopped.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("flags, hint", [
    (["--source", "audo", "--target", "video"], "--source audo: unknown modality, did you mean audio? (known: audio, "
     "video, text)"),
    (["--source", "audio", "--target", "smell"], "--target smell: unknown modality (known: audio, video, text)"),
    (["--checkpoint", "a.pt", "b.pt", "c.pt"], "arguments: b.pt c.pt; --checkpoint takes one file, evaluate.sh takes "
     "several"),
    (["--chekpoint", "a"], "unrecognized arguments: --chekpoint a (see")])
def test_wrong_flags_say_what_is_meant(flags, hint, capsys):
    with pytest.raises(SystemExit):
        parse_downstream("ave", flags, LOCAL)
    assert hint in capsys.readouterr().err


def test_retrieval_both_kinds(tree, tmp_path):
    retrieval.main(arguments(tree, tmp_path, "--no_control"))
    rows = results.read(tmp_path / "results.jsonl")
    assert {(r["task"], r["direction"]) for r in rows} == (
        {("retrieval", d) for d in ("video->text", "text->video")}
        | {("retrieval_free", f"{a}->{b}") for a, b in permutations(("audio", "video", "text"), 2)})
    assert {r["metric"] for r in rows if r["task"] == "retrieval"} == {"r@1", "r@5", "r@10", "median_rank"}
    assert {r["metric"] for r in rows if r["task"] == "retrieval_free"} == {
        "map", "ndcg@10", "r@1", "r@5", "r@10", "median_rank"}
    clips = (pd.read_csv(tree / "data" / DATA_PATHS["vggsound.csv"])["split"] == "test").sum()
    assert {r["chance"] for r in rows if r["metric"] == "r@5"} == {100 * 5 / clips}


def test_evaluate_makes_the_table(tree, tmp_path, capsys):
    for epoch in (0, 1):
        write_checkpoint(tmp_path / f"model-{epoch}.pt", epoch=epoch)
    common = arguments(tree, tmp_path / "run", "--n_epoch", "1", "--tasks", "ave", "avvp", "--no_control")
    position = common.index("--checkpoint")
    evaluate.main([str(tmp_path / "model-0.pt"), str(tmp_path / "model-1.pt"), *common[:position],
                   *common[position + 2:]])
    said, printed = capsys.readouterr().out.split("1/2  AVE", 1)
    printed, run = f"1/2  AVE{printed}".splitlines(), tmp_path / "run"
    assert said.startswith("evaluate.py:") and "model-0.pt and 1 more on tasks" in " ".join(said.split())
    assert printed[0] == "1/2  AVE: 6 directions" and printed[1].startswith("2/2  AVVP: 2 directions, about 0")
    assert len(printed) < 30 and max(map(len, printed[:-1])) <= 100 and printed[-1].startswith("written: ")
    table = (run / "table.txt").read_text()
    choice = table.strip().splitlines()[-1]
    assert choice.startswith("use model-") and choice in " ".join(printed)
    assert "validation clips of Dialled Digits as AVE (" in choice
    assert "published: " not in table and "AVVP V>A*" in table
    assert table.splitlines()[0] == "Dialled Digits in the form of AVE, AVVP" and table.splitlines()[0] in printed
    header, *lines = (run / "table.csv").read_text().splitlines()
    assert header.startswith("data,row,AVE V>A,AVE A>V,AVVP V>A") and "model-0.pt (last)," in lines[0]
    assert "| model-0.pt (last)" in (run / "table.md").read_text()
    assert "epochs" in {path.stem for path in pictures.draw_tables(results.read(run / "results.jsonl"), tmp_path)}


def test_evaluate_leaves_out_what_is_not_there(tree, tmp_path, capsys):
    shutil.copytree(tree / "data" / "AVE", tmp_path / "data" / "AVE")
    evaluate.main([str(tree / "model.pt"), "--data_root", str(tmp_path / "data"), "--snapshot_pref",
                   str(tmp_path / "run"), "--n_epoch", "1", "--no_control", "--no_text", "--workers", "0"])
    assert "avvp: skipped, " in capsys.readouterr().out
    assert {r["task"] for r in results.read(tmp_path / "run" / "results.jsonl")} == {"ave", "ave_oscmg"}
    with pytest.raises(InputError, match="no data for any of the tasks"):
        evaluate.main([str(tree / "model.pt"), "--data_root", "/nowhere", "--snapshot_pref", str(tmp_path / "run")])


def test_predictions_are_those_of_the_figures(tree, tmp_path):
    ave.main(arguments(tree, tmp_path, "--seed", "0"))
    kept = np.load(tmp_path / "predictions" / "ave-video-audio.npz")
    targets = kept["labels"][..., :-1].argmax(-1).max(-1)
    row = next(r for r in results.read(tmp_path / "results.jsonl")
               if r["direction"] == "video->audio" and r["selection"] == "last" and not r["control"])
    assert row["value"] == pytest.approx(100 * (kept["cross"].argmax(-1) == targets).mean())
    assert row["same_modality"] == pytest.approx(100 * (kept["same"].argmax(-1) == targets).mean())
    assert kept["cross_curves"][0, -1] == pytest.approx(row["value"])


def test_ablation_trains_and_measures_each_row_in_the_papers_order(tree, tmp_path, monkeypatch, capsys):
    for name, entry in TABLE.items():
        monkeypatch.setitem(TABLE, name, replace(entry, epochs=2))
    monkeypatch.setattr(ablation_program, "rows_of", lambda study, system: [["--without", "mm_ema", "reset"], []])
    ablation.main(["--data_root", str(tree / "data"), "--checkpoint_root", str(tmp_path / "ck"), "--gpu", "cpu",
                   "--workers", "0", "--snapshot_pref", str(tmp_path / "run"), "--n_epoch", "1", "--max_steps",
                   "2", "--batch_size", "4", "--n_embeddings", "24"])
    table = (tmp_path / "run" / "ablation.txt").read_text().splitlines()
    assert table[0] == "Dialled Digits in the form of AVE, AVVP, AVE>AVVP, UCF/VGG"
    assert table[2].split()[:6] == ["CLUB", "CPC", "MM-EMA", "reset", "CMCM", "AVE"]
    assert table[4].split()[:5] == ["x", "x", "-", "-", "x"] and table[5].split()[:5] == ["x"] * 5
    rows = results.read(tmp_path / "run" / "results.jsonl")
    assert len({row["checkpoint_sha256"] for row in rows}) == 2 and {row["control"] for row in rows} == {None}
    assert "1/2  without-mm_ema-reset" in capsys.readouterr().out
    earlier = [row | {"checkpoint_sha256": "of an earlier call", "value": 0.0} for row in rows]
    assert ablation_program.show(earlier + rows, "3", DCID) == ablation_program.show(rows, "3", DCID)


def test_two_systems_with_variants_make_one_table_and_every_picture(tree, tmp_path):
    paths = [write_checkpoint(tmp_path / f"{system}-{epoch}.pt", modalities, epoch, system=system)
             for system, epoch, modalities in (("dcid", 5, ("audio", "video")), ("h_dcid", 3, ("audio", "video")))]
    evaluate.main([*map(str, paths), "--data_root", str(tree / "data"), "--snapshot_pref", str(tmp_path / "run"),
                   "--n_epoch", "1", "--workers", "0", "--gpu", "cpu", "--tasks", "ave", "--toc_preset", "off",
                   "released"])
    table = pd.read_csv(tmp_path / "run" / "table.csv").set_index("row")
    measured = [name for name in table.index if "published" not in name and name != "chance"]
    names = [f"{name}{variant}" for name in ("dcid-5.pt", "h_dcid-3.pt") for variant in ("", " + TOC released")]
    assert measured[:4] == [f"{name} (last)" for name in names]
    assert len(measured) == 16 and (table.loc[measured, "columns"] == 2).all()
    drawn = pictures.draw_run(tmp_path / "run", tmp_path / "figs")      # of both systems: digits tell their names apart
    assert {re.sub("-[0-9a-f]{12}", "", path.name) for path in drawn} >= {
        "table.png", "heads.png", "codes-ave-level1.png", "codes-ave-level2.png", "confusion-ave-video-audio.png"}
