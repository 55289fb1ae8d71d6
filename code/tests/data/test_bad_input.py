"""Every entry script against every kind of fault: exit code 2, one line, nothing half-written, nothing old touched."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bad_files
from avs_test import test as avs_test_script
from bad_files import permission_bits_count
from cmg.cli import LocalPaths, parse_downstream, parse_pretrain
from cmg.data.layout import DATA_PATHS
from cmg.utils import errors
from configs.opts import LOCAL
from conftest import ROOT
from tiny import train

SOURCE = ROOT / "code" / "src"

FILE = "missing empty garbage folder_instead no_permission"
TABLE = f"{FILE} only_header without_column ragged repeated_row"
EVENTS = "missing empty only_header bad_times two_times_one_label"
FEATURES = f"{FILE} truncated narrow flat texts not_finite no_dataset"
CLIPS = ("clip_missing clip_empty clip_truncated clip_of_other_shape clip_of_other_width clip_of_no_seconds "
         "clip_of_text clip_not_finite clip_hostile missing")
ENCODER = (f"{FILE} truncated ckpt_no_section ckpt_no_lstm ckpt_no_tensor ckpt_more ckpt_list ckpt_shape ckpt_integers "
           "ckpt_not_finite ckpt_text_inside ckpt_epoch ckpt_hostile")
OUTPUT = "read_only file_in_the_way"

# script, what is faulty (a place of configs/opts.py, "checkpoint" or "output"), kinds of faults
TABLES = [
    ("pretrain", "vggsound.csv", f"{TABLE} unknown_split unknown_class"),
    ("pretrain", "vggsound.audio", CLIPS),
    ("pretrain", "vggsound.video", "clip_of_other_width clip_not_finite clip_hostile missing"),
    ("pretrain", "vggsound.text", f"{FILE} truncated no_dataset"),
    ("pretrain", "checkpoint", f"{ENCODER} ckpt_no_optimizer ckpt_optimizer_shape ckpt_run"),
    ("pretrain", "output", OUTPUT),
    ("ave", "checkpoint", "missing truncated ckpt_no_section ckpt_hostile"),
    ("ave", "ave.audio", FEATURES),
    ("ave", "ave.video", "missing narrow not_finite"),
    ("ave", "ave.label", f"{FILE} truncated narrow flat texts no_dataset fewer_rows"),
    ("ave", "ave.test", f"{FILE} rows_beyond negative_rows texts no_dataset"),
    ("ave", "output", OUTPUT),
    ("avvp", "checkpoint", "missing truncated ckpt_no_section"),
    ("avvp", "avvp.audio_csv", EVENTS),
    ("avvp", "avvp.categories", "missing empty last_class_less garbage"),
    ("avvp", "avvp.video", "clip_of_other_shape clip_not_finite clip_hostile missing"),
    ("ave_avvp", "ave_avvp.label", "missing narrow no_dataset"),
    ("ave_avvp", "ave_avvp.order", "missing rows_beyond texts"),
    ("ave_avvp", "ave_avvp.categories", "missing one_class_less"),
    ("ucf_vggsound", "ucf_vggsound.ucf_csv", "missing empty garbage without_column unknown_class"),
    ("ucf_vggsound", "ucf_vggsound.ucf_categories", "missing empty one_class_less"),
    ("ucf_vggsound", "ucf_vggsound.video", "clip_missing clip_of_other_width clip_hostile"),
    ("retrieval", "vggsound.csv", "missing empty unknown_split"),
    ("retrieval", "vggsound.text", "missing truncated"),
    ("retrieval", "checkpoint", "missing ckpt_not_finite"),
    ("evaluate", "checkpoint", "missing truncated ckpt_hostile"),
    ("evaluate", "ave.label", "empty narrow"),
    ("evaluate", "output", OUTPUT),
    ("toc", "checkpoint", "missing truncated ckpt_no_section ckpt_hostile"),
    ("toc", "output", OUTPUT),
    ("prepare pack", "vggsound.audio", "missing empty_folder clip_truncated clip_not_finite clip_hostile"),
    ("prepare pack", "output", OUTPUT),
    ("prepare text", "vggsound.prompts", "empty without_column garbage no_permission"),
    ("prepare text", "output", OUTPUT),
    ("cmg.checkpoints", "checkpoint", "missing folder_instead ckpt_list"),
    ("cmg.results", "results", f"{FILE} not_json other_keys"),
    ("avs_s4.train", "checkpoint", "missing truncated ckpt_hostile ckpt_no_section"),
    ("avs_s4.test", "checkpoint", "missing truncated"),
]
# Two files that do not belong together: either may be the wrong one, and the message names the other.
OTHER_FILE = {("vggsound.csv", "unknown_class"): "'no such class'",
              ("ave.label", "fewer_rows"): "train_order.h5", ("avvp.categories", "last_class_less"): "the 9 classes"}
CASES = [(script, what, kind) for script, what, kinds in TABLES for kind in kinds.split()]


def empty_folder(good, bad):
    bad.mkdir()


def not_json(good, bad):
    bad.write_text('{"task": "ave"\n')


def other_keys(good, bad):
    bad.write_text('{"task": "ave"}\n')


OWN = {"empty_folder": empty_folder, "not_json": not_json, "other_keys": other_keys}


@pytest.fixture(scope="module")
def encoder_file(demo_data, small_model, tmp_path_factory):
    """A checkpoint of a tiny pretraining run."""
    folder = tmp_path_factory.mktemp("pretrained")
    train(demo_data, folder, "--max_steps", 1)
    return next((folder / "checkpoints").glob("*.pt"))


def command(script, what, bad, data, encoder, out):
    """Arguments of a script of which one input, `what`, is `bad` and everything else is good."""
    flags = ["--path", f"{what}={bad}"] if what in DATA_PATHS else []
    encoder = bad if what == "checkpoint" else encoder
    shared = ["--data_root", data, "--gpu", "cpu", "--in_memory", "--snapshot_pref", out / "run", *flags]
    if script == "pretrain":
        resume = ["--resume", encoder] if what == "checkpoint" else []
        line = [*shared, "--model_save_path", out / "checkpoints", "--batch_size", 8, "--n_embeddings", 24,
                "--max_steps", 2, *resume]
    elif script in ("ave", "avvp", "ave_avvp", "ucf_vggsound", "retrieval"):
        line = [*shared, "--checkpoint", encoder, "--n_epoch", 1, "--no_control"]
    elif script == "evaluate":
        line = [*shared, encoder, "--tasks", "ave", "--n_epoch", 1, "--no_control", "--no_text"]
    elif script == "toc":
        line = [encoder, "--choose_channel", 8, "--snapshot_pref", out / "run"]
    elif script == "prepare pack":
        line = ["pack", "vggsound.audio", "--data_root", data, "--out", out / "run" / "pack.h5", *flags]
    elif script == "prepare text":
        line = ["text", "--backend", "hashing", "--dataset", "vggsound", "--data_root", data, "--out",
                out / "run" / "prompts.h5", *flags]
    elif script == "cmg.checkpoints":
        line = [encoder]
    elif script == "cmg.results":
        line = [bad]
    else:
        line = ["--checkpoint", encoder, "--data_root", data, "--gpu", "cpu", "--log_dir", out / "run"]
        line += ["--direction", "at", "--visual_backbone", "small"] if script == "avs_s4.train" else [
            "--weights", encoder]
    return [str(x) for x in line]


def end_of(script, line, capsys, monkeypatch):
    """(exit code, standard error) of a script in this process."""
    name = script.split()[0]
    names = {"cmg.results": "cmg.results.__main__", "cmg.checkpoints": "cmg.checkpoints.__main__",
             "cmg.report": "cmg.report.__main__",
             "avs_s4.train": "train"}
    module = avs_test_script if name == "avs_s4.test" else importlib.import_module(names.get(name, name))
    monkeypatch.setattr(sys, "argv", [script, *line])
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            errors.run(lambda: module.main(line))
    finally:
        for handler in [h for h in logging.getLogger().handlers if getattr(h, "of_run", False)]:
            logging.getLogger().removeHandler(handler)
            handler.close()
    return ended.value.code, capsys.readouterr().err


def snapshot(folder):
    """File -> bytes of everything in a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("script, what, kind", CASES, ids=[f"{s.replace(' ', '_')}-{w}-{k}" for s, w, k in CASES])
def test_fault_is_one_line(script, what, kind, demo_data, encoder_file, tmp_path, capsys, monkeypatch):
    out, bad = tmp_path / "out", tmp_path / f"bad{Path(DATA_PATHS.get(what, 'x.pt')).suffix}"
    monkeypatch.setenv(bad_files.MARKER, str(tmp_path / "hostile"))
    old = {"run/results.jsonl": b"earlier results\n", "checkpoints/DCID-model-0.pt": b"an earlier checkpoint",
           "run/pack.h5": b"an earlier pack", "run/prompts.h5": b"earlier prompts", "run/metrics.jsonl": b"earlier\n"}
    if what == "output":
        out.mkdir()
        if kind == "file_in_the_way":
            (out / "run").write_bytes(b"a file")
            (out / "checkpoints").write_bytes(b"a file")
        else:
            (out / "run").mkdir()
            (out / "run").chmod(0o555)
    else:
        for name, content in old.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        good = demo_data / DATA_PATHS[what] if what in DATA_PATHS else encoder_file
        (OWN.get(kind) or getattr(bad_files, kind))(good, bad)
    before = snapshot(out)
    monkeypatch.chdir(tmp_path)             # a missing file is named with its absolute path, however it was given
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"missing": bad.name, "folder": f"~/{bad.name}"}.get(kind, bad)
    line = command(script, what, given, demo_data, encoder_file, out)
    if script == "prepare pack":
        line += ["--overwrite"]
    with permission_bits_count():
        code, text = end_of(script, line, capsys, monkeypatch)
    message = text.splitlines()
    assert code == 2 and len(message) == 1, text
    assert message[0].startswith("error: ") and ";" in message[0], text        # what was found; what to do
    assert OTHER_FILE.get((what, kind), str(out) if what == "output" else str(bad)) in message[0], text
    after = snapshot(out)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if str(name).endswith((".tmp", ".pt", ".partial")) and name not in before]
    assert not (tmp_path / "hostile").exists()


# -------------------------------------------------------------------------------------------- wrong use of a script
WRONG_USE = [
    ("pretrain", "--no_such_flag", "1"), ("pretrain", "--lr", "-1"), ("pretrain", "--batch_size", "0"),
    ("pretrain", "--gpu", "99"), ("pretrain", "--path", "nothing=here"), ("pretrain", "--keep", "0"),
    ("pretrain", "--evaluate"), ("pretrain", "--dataset_name", "imagenet"), ("pretrain", "--lr", "nan"),
    ("pretrain", "--n_epoch", "many"), ("pretrain", "--workers", "-1"), ("ave", "--weight_decay", "-1"),
    ("cmg.report", ".", "--out", "report.pdf"), ("ave", "--results", "."),
    ("custom", "--manifest", "x.csv", "--features", "audio=x", "--features", "video=y", "--source", "text", "--target",
     "audio"),
    ("ave", "--source", "audio"), ("ave", "--gpu", "tpu"),
    ("avvp", "--seeds", "x"), ("retrieval", "--dataset_name", "ave_av"), ("prepare",), ("prepare", "pack"),
    ("prepare", "pack", "nowhere.audio"), ("evaluate",), ("toc",), ("cmg.results",), ("cmg.checkpoints",),
    ("demo", "--seed", "x"), ("cmg.demos.dialled", "--out", "/tmp/never", "--clips", "3"),
    ("avs_s4.train", "--direction", "xy"), ("avs_s4.test", "--overlays", "many")]


@pytest.mark.parametrize("script, line", [(case[0], list(case[1:])) for case in WRONG_USE],
                         ids=["_".join(case) for case in WRONG_USE])
def test_wrong_use_is_one_line(script, line, capsys, monkeypatch):
    code, text = end_of(script, line, capsys, monkeypatch)
    assert code == 2 and len(text.splitlines()) == 1 and "error: " in text, text


def test_a_repeated_flag_adds_to_itself():
    """But replaces the default, also that of a preset; a seed that is given twice is one measurement."""
    line = "--without club --without cpc cmcm --preset spoken --splits val --splits test"
    opts = parse_pretrain(line.split(), LOCAL)
    assert (opts.without, opts.splits) == (["club", "cpc", "cmcm"], ["val", "test"])
    assert parse_downstream("ave", "--seeds 1 --seeds 0 1".split(), LOCAL).seeds == [1, 0]


def test_misspelled_paths_are_named(capsys, caplog, monkeypatch):
    """Of configs/opts.py, which may hold texts, and of the environment."""
    local = LocalPaths("~/data", figures="~/figures", data_paths={"ave.lable": "x.h5"})
    assert local.figures == Path.home() / "figures" and local.data_paths["ave.label"] == DATA_PATHS["ave.label"]
    with pytest.raises(SystemExit):
        parse_downstream("ave", [], local)
    assert "unknown file name ave.lable, did you mean ave.label?" in capsys.readouterr().err
    monkeypatch.setenv("CMG_CHECKPOINT", "x")
    assert parse_downstream("ave", [], LOCAL).checkpoint.parent == LOCAL.checkpoints
    assert "CMG_CHECKPOINT in the environment: unknown variable, did you mean CMG_CHECKPOINTS?" in caplog.text


# ------------------------------------------------------------------------------------------------ real processes
def process(*line, folder=SOURCE):
    return subprocess.run([sys.executable, *map(str, line)], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_process_ends_with_one_line_and_debug_shows_more(tmp_path):
    line = "-m", "cmg.checkpoints", tmp_path / "nothing.pt"
    plain, debug = process(*line), process(*line, "--debug")
    assert plain.returncode == 2 and plain.stderr.count("\n") == 1 and plain.stderr.startswith("error: ")
    assert debug.returncode != 0 and "Traceback" in debug.stderr and "InputError" in debug.stderr


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        errors.run(lambda: 1 / 0)


def test_a_clip_that_breaks_while_workers_read_is_one_line(demo_data, small_model, tmp_path, capsys, monkeypatch):
    bad_files.clip_not_finite(demo_data / DATA_PATHS["vggsound.audio"], tmp_path / "bad")
    line = ["--data_root", str(demo_data), "--path", f"vggsound.audio={tmp_path / 'bad'}", "--gpu", "cpu", "--workers",
            "1", "--batch_size", "8", "--snapshot_pref", str(tmp_path / "run"), "--model_save_path", str(tmp_path)]
    code, text = end_of("pretrain", line, capsys, monkeypatch)
    assert code == 2 and "values are NaN or infinite" in text and "Traceback" not in text
