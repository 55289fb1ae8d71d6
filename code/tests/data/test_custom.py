"""A user's own data set: the manifest and its defects, forms of features, sentences, from the example to a result."""

import csv
import io
import json
import shlex
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import cmg
import custom
import evaluate
import prepare
import pretrain
from cmg import presets
from cmg.checkpoints import checkpoint
from cmg.cli import parse_downstream, parse_evaluate, parse_pretrain
from cmg.data.archive import read_npy
from cmg.data.features import open_features
from cmg.data.manifest import Manifest
from cmg.data.sets.custom import Custom
from cmg.demos import own_example
from cmg.downstream.tasks import TASKS
from cmg.extract import lists
from cmg.models.random import StepRandom
from cmg.report import __main__ as report_program
from cmg.report import pictures, tables
from cmg.results import rows as results
from cmg.training.batches import Resident, Streamed
from configs.opts import LOCAL
from conftest import message, refused
from data_trees import hashed_text, write_zips
from tiny import run_once

SRC = Path(pretrain.__file__).parent
HEAD = "id,split,label,onset,offset,prompt"


def manifest(folder, *lines, head=HEAD):
    path = Path(folder) / "clips.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The drawn clips of `prepare.py new`."""
    folder = tmp_path_factory.mktemp("own") / "example"
    own_example.write(folder, SRC)
    return folder


def data(folder, *modalities):
    """Arguments that name its clips."""
    places = {"audio": folder / "audio", "video": folder / "video", "text": folder / "prompts.h5"}
    arguments = ["--manifest", str(folder / "clips.csv")]
    for modality in modalities or places:
        arguments += ["--features", f"{modality}={places[modality]}"]
    return arguments


def pretraining(folder, out, *more):
    return ["--dataset_name", "custom", *data(folder), "--n_embeddings", "8", "--gpu", "cpu", "--b", "2", "--workers",
            "0", "--n_epoch", "2", "--model_save_path", str(out / "checkpoints"), "--snapshot_pref", str(out / "run"),
            "--log", "none", *more]


# ------------------------------------------------------------------------------------------------------- the manifest
def test_a_manifest_is_read(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_bytes("\ufeffid, split ,label,prompt,color\r\na,train,dog,a dog|the dog,red\r\na,train,dog,one "
                     "more,red\r\n\r\nb,train,,,\r\nü b,test,cat,NaN,\r\n".encode())        # BOM, blanks, CRLF, others
    found = Manifest(path, 10)
    assert list(found.clips) == ["a", "b", "ü b"] and found.columns == ["id", "split", "label", "prompt"]
    assert found.clips["a"].prompts == ["a dog", "the dog", "one more"] and found.clips["ü b"].prompts == []
    assert found.labeled("train") == ["a"] and found.ids(("test", "train")) == ["a", "b", "ü b"]
    assert not found.has_times and [event[1] for event in found.clips["ü b"].events] == ["cat"]


DEFECTS = {
    "empty file": ("", "no column 'id' in the header (an empty file)"),
    "header alone": ("id,split\n", "no rows below the header"),
    "no id": ("split,label\ntrain,dog\n", "no column 'id'"),
    "no split": ("id,label\na,dog\n", "no column 'split'"),
    "semicolons": ("id;split;label\na;train;dog\n", "(id;split;label)"),
    "tabs": ("id\tsplit\na\ttrain\n", "separated by commas; check"),
    "a column twice": ("id,split,split\na,train,train\n", "a column name occurs twice"),
    "capital": ("id,split,Label\na,train,dog\n", "column 'Label'; expected 'label'"),
    "onset alone": ("id,split,label,onset\na,train,dog,1\n", "column 'onset' but no column 'offset'"),
    "times without label": ("id,split,onset,offset\na,train,1,2\n", "no column 'label'"),
    "not utf-8": (b"id,split,label\na,train,caf\xe9\n", "byte 26 is not UTF-8"),
    "zero bytes": (b"i\0d,split\n", "zero bytes"),
    "ragged": ("id,split,label\na,train\n", "line 2 has 2 cells; expected 3"),
    "id empty": ("id,split\n,train\n", "line 2 has no id"),
    "split empty": ("id,split\na,\n", "line 2 has no split"),
    "unknown split": ("id,split\na,train\nb,training\n", "line 3: split 'training'; expected train, val or test"),
    "path up": ("id,split\n../x,train\n", "line 2: the id '../x' contains a folder"),
    "path": ("id,split\n/etc/x,train\n", "line 2: the id '/etc/x'"),
    "windows path": ("id,split\na\\b,train\n", "line 2: the id 'a\\b'"),
    "dots": ("id,split\n..,train\n", "line 2: the id '..'"),
    "two splits": ("id,split,label\na,train,x\na,test,x\n", "line 3: a is in test, but in train in line 2"),
    "a row twice": ("id,split,label\na,train,x\na,train,x\n", "line 3: a is already in line 2"),
    "two labels": ("id,split,label\na,train,x\na,train,y\n", "line 3: a has the label 'y', but 'x' in line 2"),
    "no label of an event": (f"{HEAD}\na,train,,1,2,\n", "line 2: no label, but an event from 1 to 2"),
    "onset after offset": (f"{HEAD}\na,train,x,5,2,\n", "line 2: an event from 5 to 2; expected 0 <= onset"),
    "no length": (f"{HEAD}\na,train,x,2,2,\n", "line 2: an event from 2 to 2"),
    "before the clip": (f"{HEAD}\na,train,x,-1,2,\n", "line 2: an event from -1 to 2"),
    "beyond T": (f"{HEAD}\na,train,x,2,11,\n", "line 2: an event from 2 to 11 seconds, but clips have 10"),
    "no number": (f"{HEAD}\na,train,x,one,2,\n", "line 2: onset 'one' and offset '2'; expected two times"),
    "not finite": (f"{HEAD}\na,train,x,0,inf,\n", "line 2: onset '0' and offset 'inf'"),
    "one time": (f"{HEAD}\na,train,x,,2,\n", "line 2: onset '' and offset '2'"),
    "empty sentence": ("id,split,prompt\na,train,one||two\n", "line 2: an empty sentence in the prompt"),
    "open quote": ('id,split\n"a,train\n', "line 2"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_one_line_with_file_and_line(name, tmp_path, capsys):
    content, finding = DEFECTS[name]
    path = tmp_path / "clips.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = message(Manifest, path, 10)
    assert text.startswith(f"{path}: ") and finding in text and "expected" in text and text.count(";") >= 2
    for kind in ("audio", "video"):
        (tmp_path / kind).mkdir(exist_ok=True)
    assert prepare.main(["check", "--dataset", "custom", *data(tmp_path, "audio", "video")]) == 1
    assert finding in capsys.readouterr().out


LABEL_DEFECTS = {
    "no labels": (["a,train", "b,test"], "no column 'label'", "id,split"),
    "train without labels": (["a,train,", "b,test,x"], "no row of the split train has a label", None),
    "test without a label": (["a,train,x", "b,test,"], "line 3: no label, and the split is test", None),
    "no test": (["a,train,x", "b,val,x"], "no row has the split 'test'", None),
    "a class of test alone": (["a,train,x", "b,test,y"], "line 3: the label 'y' is in test but not in train", None),
}


@pytest.mark.parametrize("name", LABEL_DEFECTS)
def test_a_task_says_which_labels_it_lacks(name, tmp_path):
    rows, finding, head = LABEL_DEFECTS[name]
    path = manifest(tmp_path, *rows, head=head or "id,split,label")
    places = {"manifest": path, "audio": tmp_path / "audio", "video": tmp_path / "video"}
    for kind, shape in (("audio", (10, 128)), ("video", (10, 7, 7, 2))):
        write_zips(places[kind], dict.fromkeys("ab", np.ones(shape, np.float32)))
    entry = TASKS["custom"].of(path, {"audio": None, "video": None})
    text = message(entry.open, lambda dotted: places[dotted.split(".")[1]], ("audio", "video"), "default",
                   on_bad_clip="error", in_memory=False)
    assert text.startswith(f"{path}: ") and finding in text and text.count(";") >= 2


def test_labels_of_clips_and_of_seconds(tmp_path):
    write_zips(tmp_path / "audio", {name: np.ones((10, 128), np.float32) for name in "abc"})
    path = {"manifest": manifest(tmp_path, "a,train,dog,1,3,", "a,train,cat,2.5,4.2,", "a,train,dog,8,10,",
                                 "b,train,cat,0,10,", "c,train,,,,"), "audio": tmp_path / "audio"}
    clips = Custom(path, ("audio",), ("train",), True)
    assert clips.ids == ["a", "b"] and clips.classes == ["cat", "dog"] and clips.has_times
    expected = np.zeros((10, 3))
    expected[2:5, 0] = expected[1:3, 1] = expected[8:10, 1] = 1         # every second that an event touches
    expected[[0, 5, 6, 7], 2] = 1
    assert np.array_equal(clips[0]["label"], expected) and clips[0]["label"].dtype == np.float32
    path["manifest"] = manifest(tmp_path, "a,train,dog", "b,train,cat", "c,train,", head="id,split,label")
    clips = Custom(path, ("audio",), ("train",), True)
    assert np.array_equal(clips[0]["label"], np.tile([0, 1, 0], (10, 1))) and not clips.has_times
    assert len(Custom(path, ("audio",))) == 3 and "label" not in Custom(path, ("audio",))[0]


def test_the_manifest_of_an_extraction_fits_as_it_is(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,label,split,onset,offset,prompt\na.mp4,dog,train,0,2,a dog|woof\na.mp4,cat,train,2,4,a cat\n"
                     "b.mp4,dog,test,1,3,a dog\n")
    labels = lists.read_labels(table, lambda name: name.removesuffix(".mp4"))
    lists.write_lists(tmp_path / "out", labels, ["a", "b"])
    found = Manifest(tmp_path / "out" / lists.MANIFEST, 10)
    assert found.clips["a"].prompts == ["a dog", "woof", "a cat"] and found.ids(("test",)) == ["b"]
    assert [event[1:] for event in found.clips["a"].events] == [("dog", 0, 2), ("cat", 2, 4)]
    assert found.classes() == ["cat", "dog"]


# ------------------------------------------------------------------------------------------------- forms of features
def test_every_form_of_features_is_read_alike(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((k + 8, 128)).astype(np.float32) for k, name in enumerate(("a", "b c", "d.e"))}
    write_zips(tmp_path / "zips", arrays)
    (tmp_path / "npys").mkdir()
    for k, (name, x) in enumerate(arrays.items()):
        np.save(tmp_path / "npys" / f"{name}.npy", (x, x.astype(np.float64), np.asfortranarray(x))[k])
    with h5py.File(tmp_path / "by_id.h5", "w") as file:
        for name, x in arrays.items():
            file[name] = x
    prepare.main(["pack", "vggsound.audio", "--path", f"vggsound.audio={tmp_path / 'npys'}", "--dtype", "float32",
                  "--out", str(tmp_path / "pack.h5")])
    path = manifest(tmp_path, *(f"{name},train" for name in arrays), head="id,split")
    found = [Custom({"manifest": path, "audio": tmp_path / form}, ("audio",)).load("audio")
             for form in ("zips", "npys", "by_id.h5", "pack.h5")]
    assert found[0].shape == (3, 10, 128) and np.array_equal(found[0][0, 8], arrays["a"][7])
    assert all(np.array_equal(found[0], other) for other in found[1:])


def npy(array):
    """Bytes of an .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


GOOD = npy(np.ones((10, 128), np.float32))
BROKEN = {"objects": npy(np.array([{}, 1], object)), "texts": npy(np.array(["a", "b"])), "empty": b"",
          "huge": GOOD.replace(b"(10, 128)", b"(9999999999999, 128)", 1), "truncated": GOOD[:-5], "longer": GOOD + b"x",
          "garbage": b"abc" * 99, "half a header": GOOD[:40]}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_npy_is_one_line(name, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(BROKEN[name])
    text = message(read_npy, path)
    assert text.startswith(f"{path}: ") and "expected" in text


def test_two_files_of_one_clip_are_refused(tmp_path):
    write_zips(tmp_path / "audio", {"a": np.ones((10, 128), np.float32)})
    np.save(tmp_path / "audio" / "a.npy", np.zeros((10, 128)))
    assert "both a.npy and a.zip" in message(open_features, tmp_path / "audio", "audio")


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_clip_without_features_is_named(form, example, tmp_path, capsys):
    path, audio = tmp_path / "clips.csv", example / "audio"
    path.write_text((example / "clips.csv").read_text() + "absent,train,ball,a ball rolls and hums\n")
    if form == "file":
        audio = tmp_path / "audio.h5"
        with h5py.File(audio, "w") as file:
            file["other"] = np.ones((10, 128))
    text = message(Custom, {"manifest": path, "audio": audio}, ("audio",))
    assert str(audio) in text and "have no audio feature" in text
    assert ("absent" if form == "folder" else "7 of 7") in text
    code = prepare.main(["check", "--dataset", "custom", "--manifest", str(path), "--features", f"audio={audio}",
                         "--features", f"video={example / 'video'}"])
    finding = "1 clips have no feature file: absent" if form == "folder" else "audio.h5: no audio feature"
    assert code == 1 and finding in capsys.readouterr().out


@pytest.mark.parametrize("gone", ["manifest", "audio", "text"])
def test_an_absent_place_names_its_flag(gone, example, tmp_path, capsys):
    arguments = [arg.replace(str({"manifest": example / "clips.csv", "text": example / "prompts.h5"}.get(
        gone, example / gone)), str(tmp_path / "absent")) for arg in data(example)]
    assert prepare.main(["check", "--dataset", "custom", *arguments]) == 1
    out = capsys.readouterr().out
    assert f"custom.{gone} is missing: {tmp_path / 'absent'}" in out and "download from: your own files" in out
    assert {"manifest": "--manifest CSV", "audio": "--features audio=PATH",
            "text": f"prepare.py text --manifest {example / 'clips.csv'}"}[gone] in out


# ---------------------------------------------------------------------------------------------------------- sentences
def test_word_vectors_by_clip(tmp_path):
    """Text features as any others: one array (words, width) a clip; zeros follow where another clip has more."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((words, 24)).astype(np.float32) for name, words in (("a", 3), ("b", 12))}
    write_zips(tmp_path / "text", arrays)
    path = {"manifest": manifest(tmp_path, "a,train", "b,train", head="id,split"), "text": tmp_path / "text"}
    clips = Custom(path, ("text",))
    assert clips.shapes == {"text": (12, 24)} and np.array_equal(clips[0]["text"][:3], arrays["a"])
    assert not clips[0]["text"][3:].any() and np.array_equal(clips[1]["text"], arrays["b"])
    streamed, resident = batches_of(clips, None, ("text",))
    for one, other in zip(streamed, resident, strict=True):
        assert torch.equal(one["text"], other["text"])


def batches_of(clips, seed, modalities=("audio", "text"), workers=0, order=None):
    """Batches of two, streamed and from memory, each with a generator of its own from `seed`."""
    order = torch.arange(len(clips)) if order is None else order
    rng = [seed if seed is None else StepRandom(torch.Generator().manual_seed(seed)) for _ in range(2)]
    cpu = torch.device("cpu"), torch.float32
    return (list(Streamed(clips, modalities, *cpu, workers, rng[0])(order, 2)),
            list(Resident.of(clips, modalities, *cpu, torch.float32, rng[1])(order, 2)))


def test_one_sentence_is_drawn_a_step_whoever_reads(tmp_path):
    write_zips(tmp_path / "audio", {name: np.ones((10, 128), np.float32) for name in "abcde"})
    prompts = ["one", "two", "three", "four", "five"]
    hashed_text(tmp_path / "p.h5", {word: word for word in prompts})
    path = {"manifest": manifest(tmp_path, "a,train,one|two|three", "b,train,four", "c,train,two", "c,train,five",
                                 "d,train,one", "e,train,two|one", head="id,split,prompt"),
            "audio": tmp_path / "audio", "text": tmp_path / "p.h5"}
    clips = Custom(path, ("audio", "text"))
    assert clips.text[1].tolist() == [[0, 1, 2], [3, -1, -1], [1, 4, -1], [0, -1, -1], [1, 0, -1]]
    order = torch.tensor([4, 0, 2, 1, 3] * 40)
    shown = {}
    for workers in (0, 2):
        streamed, resident = batches_of(clips, 7, workers=workers, order=order)
        for one, other in zip(streamed, resident, strict=True):
            assert torch.equal(one["text"], other["text"])
        shown[workers] = torch.cat([batch["text"] for batch in streamed])
    assert torch.equal(shown[0], shown[2])
    table = torch.from_numpy(clips.text[0])
    found = [int((table == x).flatten(1).all(1).nonzero()) for x in shown[0]]
    counts = {clip: [found[k] for k in range(len(order)) if int(order[k]) == clip] for clip in range(5)}
    assert {clip: set(rows) for clip, rows in counts.items()} == {0: {0, 1, 2}, 1: {3}, 2: {1, 4}, 3: {0}, 4: {0, 1}}
    assert 4 <= counts[0].count(2) <= 24 and 8 <= counts[2].count(4) <= 32         # uniform: 13 and 20 of 40
    other, _ = batches_of(clips, 8, order=order)
    assert not torch.equal(torch.cat([batch["text"] for batch in other]), shown[0])
    first, _ = batches_of(clips, None, order=order[:5])                             # without draws: the first
    assert torch.equal(torch.cat([batch["text"] for batch in first]), table[[1, 0, 1, 3, 0]])


def test_one_sentence_a_clip_draws_nothing(example, tmp_path):
    hashed_text(tmp_path / "p.h5", {"ball": "a ball", "cross": "a cross", "square": "a square"})
    path = {"manifest": tmp_path / "clips.csv", "text": tmp_path / "p.h5", "audio": example / "audio"}
    path["manifest"].write_text("id,split,label\nball-0,train,ball\ncross-1,train,cross\n")        # by the classes
    clips = Custom(path, ("audio", "text"))
    assert clips.text[1].tolist() == [0, 1]
    rng = StepRandom(torch.Generator().manual_seed(0))
    before = rng.generator.get_state()
    for kind in (Resident.of(clips, ("audio", "text"), torch.device("cpu"), torch.float32, torch.float32, rng),
                 Streamed(clips, ("audio", "text"), torch.device("cpu"), torch.float32, 0, rng)):
        assert torch.equal(next(iter(kind(torch.arange(2), 2)))["text"], torch.from_numpy(clips.text[0][:2]))
    assert torch.equal(rng.generator.get_state(), before)


@pytest.mark.parametrize("rows, finding", [
    (["a,train,", "b,train,one"], "line 2: a has no prompt"), (["a,train,six", "b,train,one"], "no prompt for 'six'")])
def test_a_clip_without_a_sentence_is_named(rows, finding, tmp_path):
    hashed_text(tmp_path / "p.h5", {"one": "one"})
    path = {"manifest": manifest(tmp_path, *rows, head="id,split,prompt"), "text": tmp_path / "p.h5"}
    assert finding in message(Custom, path, ("text",))


def test_prepare_text_encodes_a_manifest(tmp_path, capsys):
    path = manifest(tmp_path, "a,train,dog,a dog|woof", "b,train,cat,", "c,test,cat,a cat",
                    head="id,split,label,prompt")
    assert prepare.main(["text", "--manifest", str(path), "--backend", "hashing"]) is None
    assert f"--features text={tmp_path / 'prompts.h5'}" in capsys.readouterr().out
    with h5py.File(tmp_path / "prompts.h5") as file:
        assert [label.decode() for label in file["labels"]] == ["a dog", "woof", "a cat"] and file.attrs["width"] == 768
    path = manifest(tmp_path, "a,train,dog_bark", "b,train,cat", head="id,split,label")
    prepare.main(["text", "--manifest", str(path), "--backend", "hashing", "--out", str(tmp_path / "l.h5")])
    with h5py.File(tmp_path / "l.h5") as file:
        assert [x.decode() for x in file["labels"]] == ["cat", "dog_bark"]
        assert [x.decode() for x in file["prompts"]] == ["cat", "dog bark"]
    assert "no prompts and no labels" in message(prepare.main, [
        "text", "--manifest", str(manifest(tmp_path, "a,train", head="id,split")), "--backend", "hashing"])


# ------------------------------------------------------------------------------------------------------- the programs
def test_arguments(example, capsys):
    opts = parse_pretrain(["--dataset_name", "custom", *data(example)], LOCAL)
    assert opts.modalities == ("audio", "video", "text") and opts.splits == ["train"]
    assert parse_pretrain([], LOCAL).splits == ["train", "test", "val"]
    assert parse_downstream("custom", data(example), LOCAL).directions == [
        ("video", "audio"), ("video", "text"), ("audio", "video"), ("audio", "text"), ("text", "video"),
        ("text", "audio")]
    assert parse_downstream("custom", [*data(example), "--source", "text", "--target", "audio"], LOCAL).directions == [
        ("text", "audio")]
    for more in ([], data(example)):
        assert ("custom" in parse_evaluate(["x.pt", *more], LOCAL).tasks) == bool(more)
    assert json.loads(json.dumps(opts.resolved()))["features"]["audio"] == str(example / "audio")
    own = data(example)
    for parse, arguments in (
            (parse_pretrain, ["--dataset_name", "custom"]), (parse_pretrain, own),
            (parse_pretrain, ["--dataset_name", "custom", *own[:2]]),
            (parse_pretrain, ["--dataset_name", "custom", *data(example, "audio")]),
            (parse_pretrain, ["--dataset_name", "custom", *own, "--features", "audio=x"]),
            (parse_pretrain, ["--dataset_name", "custom", *own[:2], "--features", "smell=x"]),
            (parse_pretrain, ["--dataset_name", "custom", *own[:2], "--features", "audio"]),
            (partial(parse_downstream, "custom"), [*own, "--modality", "depth=map"]),
            (parse_evaluate, ["x.pt", *own, "--features", "depth=x"]),
            (partial(parse_downstream, "custom"), []), (partial(parse_downstream, "custom"), own[:4]),
            (parse_evaluate, ["x.pt", "--tasks", "custom"]), (prepare.main, ["check", "--dataset", "custom"])):
        with pytest.raises(SystemExit) as caught:
            parse(arguments, *(() if parse is prepare.main else (LOCAL,)))
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and len(lines) == 1, lines


def test_check_ends_with_the_commands_that_follow(example, tmp_path, monkeypatch, capsys):
    """Filled in, from the train clips alone, for the folder in which they are typed; none where a run would fail."""
    monkeypatch.chdir(SRC)
    assert prepare.main(["check", "--dataset", "custom", *data(example), "--seconds", "4"]) == 0
    first, second = (shlex.split(line) for line in capsys.readouterr().out.split("next: ")[1].splitlines())
    assert (first[0], second[0]) == ("./pretrain.sh", "./custom.sh")
    opts, heads = parse_pretrain(first[1:], LOCAL), parse_downstream("custom", second[1:], LOCAL)
    assert opts.splits == ["train"] and opts.seconds == 4 and opts.own == heads.own and len(opts.own) == 4
    assert heads.checkpoint == opts.model_save_path
    bare = manifest(tmp_path, *(f"{path.stem},train" for path in (example / "audio").iterdir()), head="id,split")
    assert prepare.main(["check", "--dataset", "custom", "--manifest", str(bare), *data(example)[2:6]]) == 0
    assert len(capsys.readouterr().out.split("next: ")[1].splitlines()) == 1           # nothing to train heads on
    bare.unlink()
    assert prepare.main(["check", "--dataset", "custom", "--manifest", str(bare), *data(example)[2:6]]) == 1
    assert "next:" not in capsys.readouterr().out


@pytest.mark.usefixtures("small_model")
def test_pretraining_is_the_same_streamed_in_memory_and_resumed(example, tmp_path):
    """Two epochs of three steps, a sentence drawn in each: the same weights, bit for bit."""
    made = {}
    for name, more in (("streamed", ()), ("workers", ("--workers", "2")), ("in_memory", ("--in_memory",))):
        assert run_once(pretraining(example, tmp_path / name, *more)) == 0
        made[name] = checkpoint.open_file(tmp_path / name / "checkpoints" / "DCID-model-1.pt")
    for steps in ("2", "4"):                        # in the midst of the first epoch, then of the second
        run_once(pretraining(example, tmp_path / "resumed", "--max_steps", steps, "--resume", "auto"))
    assert run_once(pretraining(example, tmp_path / "resumed", "--resume", "auto")) == 0
    made["resumed"] = checkpoint.open_file(tmp_path / "resumed" / "checkpoints" / "DCID-model-1.pt")
    states = {name: loaded.system.state_dict() for name, loaded in made.items()}
    for name in ("workers", "in_memory", "resumed"):
        assert all(torch.equal(states["streamed"][key], x) for key, x in states[name].items()), name


@pytest.fixture(scope="module")
def pretrained(example, tmp_path_factory, small_model):
    out = tmp_path_factory.mktemp("pretrained")
    assert run_once(pretraining(example, out)) == 0
    return out / "checkpoints" / "DCID-model-1.pt"


def heads(pretrained, out, *more):
    return ["--checkpoint", str(pretrained), "--n_epoch", "2", "--workers", "0", "--gpu", "cpu", "--no_control",
            "--snapshot_pref", str(out), *more]


def test_a_result_in_every_direction(example, pretrained, tmp_path, capsys):
    custom.main(heads(pretrained, tmp_path, *data(example)))
    rows = results.read(tmp_path / "results.jsonl")
    assert {row["direction"] for row in rows} == {f"{a}->{b}" for a in ("audio", "video", "text")
                                                  for b in ("audio", "video", "text") if a != b}
    assert {(row["task"], row["metric"]) for row in rows} == {("custom", "accuracy"), ("custom", "macro_precision")}
    assert all(row["validation"] is not None and row["chance"] == pytest.approx(100 / 3) for row in rows)
    assert {row["dataset"] for row in rows} == {"clips.csv test"}
    assert tables.main_metric("custom", rows) == "accuracy" and "clips.csv test" in capsys.readouterr().out
    with np.load(tmp_path / "predictions" / "custom-video-audio.npz") as kept:
        assert kept["classes"].tolist() == ["ball", "cross", "square"] and len(kept["ids"]) == 3


def test_events_second_by_second(example, pretrained, tmp_path):
    """Onsets make it localization; text, which has no seconds, is no modality then."""
    with open(example / "clips.csv", encoding="utf-8") as file:
        rows = [f"{row['id']},{row['split']},{row['label']},{k % 3},{k % 3 + 4.5},{row['prompt']}"
                for k, row in enumerate(csv.DictReader(file))]
    path = manifest(tmp_path, *rows)
    arguments = ["--manifest", str(path), *data(example)[2:]]
    assert parse_downstream("custom", arguments, LOCAL).directions == [("video", "audio"), ("audio", "video")]
    assert prepare.main(["check", "--dataset", "custom", *arguments]) == 0
    custom.main(heads(pretrained, tmp_path / "run", *arguments))
    found = results.read(tmp_path / "run" / "results.jsonl")
    assert {row["metric"] for row in found} == {"precision", "recall", "f1"} and len(found) == 2 * 2 * 3
    assert tables.main_metric("custom", found) == "f1"


def test_from_python(example, pretrained, tmp_path):
    places = {"audio": example / "audio", "video": example / "video"}
    task = cmg.open_task("custom", manifest=example / "clips.csv", features=places)
    assert task.test["audio"].load("audio").shape == (3, 10, 128) and task.classes == ["ball", "cross", "square"]
    head = cmg.fit_head(cmg.load(pretrained), "audio", task.train["audio"].load("audio"),
                        cmg.clip_class(task.train["audio"].labels), epochs=1)
    assert 0 <= head.score("video", task.test["video"].load("video"),
                           cmg.clip_class(task.test["video"].labels))["accuracy"] <= 100
    file = cmg.pretrain(None, tmp_path / "out", dataset_name="custom", manifest=example / "clips.csv", features=places,
                        n_epoch=1, batch_size=3, n_embeddings=8, gpu="cpu", in_memory=True)
    assert cmg.load(file).modalities == ("audio", "video")
    for wrong in ({}, {"manifest": example / "clips.csv"}, {"features": places}):
        refused("pass both", cmg.open_task, "custom", **wrong)


def test_evaluate_takes_it_as_a_task(example, pretrained, tmp_path, capsys, caplog):
    """A checkpoint that is named twice is one."""
    evaluate.main([str(pretrained), str(pretrained), "--n_epoch", "1", "--workers", "0", "--gpu", "cpu", "--no_control",
                   "--snapshot_pref", str(tmp_path), "--data_root", str(tmp_path / "nothing"), *data(example)])
    found = results.read(tmp_path / "results.jsonl")
    assert "1 of the checkpoints are copies" in caplog.text
    assert sum(1 for _ in open(tmp_path / "results.jsonl")) == len(found)
    assert {row["task"] for row in found} == {"custom"} and len({row["direction"] for row in found}) == 6
    text = (tmp_path / "table.txt").read_text()
    assert "own video>audio" in text and "own text>audio" in text and "published:" not in text
    assert (tmp_path / "table.png").exists()
    assert "ave: skipped" in capsys.readouterr().out


@pytest.mark.usefixtures("small_model")
def test_any_width_any_name_any_words(example, tmp_path, capsys):
    """1024-wide audio, vectors as video, a modality of its own, captions of another model: pretraining to a table."""
    rng = np.random.default_rng(0)
    places = {"audio": tmp_path / "audio.h5", "video": tmp_path / "video", "depth": tmp_path / "depth"}
    for kind, width in (("audio", (1024,)), ("video", (40,)), ("depth", (5, 6, 3))):
        arrays = {name: rng.standard_normal((10, *width)).astype(np.float32) for name, *_ in own_example.clips()}
        if kind == "audio":
            with h5py.File(places[kind], "w") as file:
                for name, x in arrays.items():
                    file[name] = x
        else:
            places[kind].mkdir()
            for name, x in arrays.items():
                np.save(places[kind] / f"{name}.npy", x)
    model = text_model(tmp_path / "model")
    prepare.main(["text", "--manifest", str(example / "clips.csv"), "--model", str(model), "--out",
                  str(tmp_path / "p.h5")])
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["width"] == 24 and file["vectors"].shape == (6, 10, 24)
        assert [word.decode() for word in file["words"][:3]] == ["a", "ball", "rolls"] and file["vectors"][0, 0].any()
    own = ["--manifest", str(example / "clips.csv"), "--modality", "depth=map", "--features",
           f"text={tmp_path / 'p.h5'}"]
    for name, place in places.items():
        own += ["--features", f"{name}={place}"]
    assert prepare.main(["check", "--dataset", "custom", *own]) == 0, capsys.readouterr().out
    assert run_once(["--dataset_name", "custom", *own, "--n_embeddings", "8", "--gpu", "cpu", "--b", "4", "--workers",
                     "0", "--n_epoch", "1", "--model_save_path", str(tmp_path / "c"), "--snapshot_pref",
                     str(tmp_path / "run"), "--log", "none"]) == 0
    file = next((tmp_path / "c").glob("*.pt"))
    assert dict(checkpoint.open_file(file).system.config.shapes) == {
        "audio": (1024,), "video": (40,), "text": (10, 24), "depth": (5, 6, 3)}
    evaluate.main([str(file), "--tasks", "custom", "--n_epoch", "1", "--workers", "0", "--gpu", "cpu", "--no_control",
                   "--snapshot_pref", str(tmp_path / "all"), *own])
    assert len({row["direction"] for row in results.read(tmp_path / "all" / "results.jsonl")}) == 12
    assert "own depth>text" in (tmp_path / "all" / "table.txt").read_text()


def text_model(folder):
    """A random text model of another kind than BERT, 24 wide, with a tokenizer of whole words."""
    import tokenizers
    import transformers
    words = sorted({word for of_class in own_example.SENTENCES.values() for sentence in of_class
                    for word in sentence.split()})
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(["<unk>", "<pad>", *words])},
                                                            unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>").save_pretrained(
        folder)
    torch.manual_seed(0)
    transformers.DistilBertModel(transformers.DistilBertConfig(
        vocab_size=len(words) + 2, dim=24, n_heads=2, n_layers=1, hidden_dim=32)).save_pretrained(folder)
    return folder


def test_the_word_list_is_bert_s_alone(tmp_path):
    path = manifest(tmp_path, "a,train,a ball", head="id,split,prompt")
    assert "expected an uncased BERT" in message(prepare.main, [
        "text", "--manifest", str(path), "--model", str(text_model(tmp_path / "model")), "--text_vocabulary", "cnt"])


@pytest.mark.usefixtures("small_model")
def test_bad_clips_are_skipped_as_in_other_tasks(example, pretrained, tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    for path in (example / "audio").iterdir():
        (audio / path.name).write_bytes(path.read_bytes())
    (audio / "ball-3.npy").write_bytes(b"")
    arguments = [*data(example, "video"), "--features", f"audio={audio}"]
    assert prepare.main(["check", "--dataset", "custom", *arguments]) == 1
    assert "ball-3.npy: an empty file" in capsys.readouterr().out
    assert "ball-3.npy" in message(custom.main, heads(pretrained, tmp_path / "stop", *arguments))
    custom.main(heads(pretrained, tmp_path / "skip", *arguments, "--on_bad_clip", "skip"))
    assert results.read(tmp_path / "skip" / "results.jsonl")


@pytest.mark.usefixtures("small_model")
def test_from_the_example_to_a_report(tmp_path, monkeypatch, capsys):
    """The commands that `prepare.py new` writes, in their order, with small networks; a name with a blank in it."""
    monkeypatch.setattr(presets, "OWN_STEPS", (2, 2))
    monkeypatch.setattr(pictures, "_draw_file", lambda *args: [])               # most pictures: test_pictures.py
    monkeypatch.setattr(pictures, "_draw_file", lambda *args: [])               # most pictures: test_pictures.py
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my clips"
    prepare.main(["new", str(folder)])
    assert "already exists" in message(prepare.main, ["new", str(folder)])
    programs = {"prepare.py": prepare.main, "./pretrain.sh": run_once, "./custom.sh": custom.main,
                "cmg.report": report_program.main}
    data = ["--manifest", str(folder / "clips.csv"), *(part for m, name in (
        ("audio", "audio"), ("video", "video"), ("text", "prompts.h5")) for part in (
        "--features", f"{m}={folder / name}"))]
    written, called = (folder / "run.sh").read_text(), []
    assert 'DATA=(--manifest "$DIR/clips.csv" --features audio="$DIR/audio"' in written
    for line in written.split("# 1.")[1].replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$DIR", str(folder)), comments=True)
        name = next((name for name in programs if name in words[:3]), None)
        if name:
            arguments = [word for given in words[words.index(name) + 1:]
                         for word in (data if given == "${DATA[@]}" else [given])]
            assert not programs[name](arguments), line
            called.append(name)
    assert called == list(programs)
    output = capsys.readouterr().out
    assert "ok: a run would work" in output and "text->video" in output
    assert len(results.read(folder / "heads" / "results.jsonl")) == 6 * 2 * 2 * 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "clips.csv test" in page and "custom" in page
    for command in ("prepare.py check", "./pretrain.sh --dataset_name custom", "./custom.sh", "cmg.report"):
        assert command in (folder / "README.md").read_text()
