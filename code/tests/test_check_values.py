"""`prepare.py check` looks at values: each kind of finding on a small tree, beside the healthy tree that has none; and
packs, which refuse what float16 would lose."""

import csv
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import prepare
from cmg.data import fingerprint
from cmg.data.features import READERS, open_features
from cmg.data.layout import DATA_PATHS
from cmg.data.text import write_text_features
from cmg.data.text_backends import hashing_sentences
from cmg.prepare import pack as packing
from cmg.prepare import values
from cmg.utils.errors import InputError
from conftest import refused
from data_trees import write_zips

CLASSES = ("ball", "cross", "square")
PER_SPLIT = {"train": 18, "val": 6, "test": 9}


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """A user's own clips of three classes, with word vectors of their labels: clips.csv, audio, video, prompts.h5."""
    folder, rng = tmp_path_factory.mktemp("healthy"), np.random.default_rng(0)
    centers = {"audio": rng.normal(size=(3, 16)), "video": rng.normal(size=(3, 5, 5, 4))}
    rows = ["id,split,label"]
    for split, count in PER_SPLIT.items():
        for k in range(count):
            for kind, of_class in centers.items():
                (folder / kind).mkdir(exist_ok=True)
                x = of_class[k % 3] + 0.3 * rng.normal(size=(10, *of_class.shape[1:]))
                np.save(folder / kind / f"{split}{k}.npy", x.astype("f4"))
            rows.append(f"{split}{k},{split},{CLASSES[k % 3]}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    prompts = {name: f"a {name} in the sun" for name in CLASSES}
    write_text_features(folder / "prompts.h5", prompts, hashing_sentences(list(prompts.values())), "hashing")
    return folder


@pytest.fixture
def own(healthy, tmp_path):
    return Path(shutil.copytree(healthy, tmp_path / "own"))


def check(folder, capsys, modalities=("audio", "video", "text"), more=()):
    """(exit code, report) of the check of a user's own clips."""
    paths = {"text": "prompts.h5"}
    arguments = [part for m in modalities for part in ("--features", f"{m}={folder / paths.get(m, m)}")]
    code = prepare.main(["check", "--dataset", "custom", "--manifest", str(folder / "clips.csv"), *arguments, *more])
    return code, capsys.readouterr().out


def warnings(report):
    return [line.strip() for line in report.splitlines() if line.strip().startswith("warning:")]


def test_an_offset_that_hides_the_differences_is_named(own, capsys):
    _, report = check(own, capsys)
    assert "times their deviation" not in report
    each(own / "audio", lambda x: x + 20)
    code, report = check(own, capsys)
    assert code == 0 and "audio: the features' mean is" in report and "--standardize channel" in report
    assert "video: the features' mean" not in report


def test_clips_of_another_length_are_one_warning(own, capsys):
    for kind in ("audio", "video"):
        each(own / kind, lambda x: x[:2])
        each(own / kind, lambda x: np.concatenate([x, x[:1]]), "train0", "val1", "test2")
    _, report = check(own, capsys)
    assert [line for line in warnings(report) if "is T right" in line] == [
        "warning: pretraining, train, val, test: audio, video with 2 to 3 seconds, T = 10: all 33 clips are padded (by "
        "repeating their last second; pretrain.py --padding mask excludes the padding); is T right? pretrain.py "
        "--seconds 3 uses complete clips"]
    code, report = check(own, capsys, more=("--seconds", "auto"))
    assert code == 0 and "length: T = 3, from the longest clip" in report and "is T right" not in report
    assert report.split("next:")[1].count("--seconds auto") == 1        # of pretraining; heads take T of the checkpoint
    (own / "clips.csv").unlink()
    code, report = check(own, capsys, more=("--seconds", "auto"))
    assert code == 1 and "manifest is missing" in report


def each(folder, change, *names):
    for path in sorted(folder.glob("*.npy")):
        if not names or path.stem in names:
            np.save(path, change(np.load(path)))


def copy(folder, one, other, kinds=("audio", "video")):
    for kind in kinds:
        shutil.copy(folder / kind / f"{one}.npy", folder / kind / f"{other}.npy")


def relabel(folder, order):
    """The labels of all clips in another order."""
    with open(folder / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [rows[k]["label"] for k in order(len(rows))]
    (folder / "clips.csv").write_text("id,split,label\n" + "".join(
        f"{row['id']},{row['split']},{label}\n" for row, label in zip(rows, labels)))


def in_text(folder, change):
    with h5py.File(folder / "prompts.h5", "r+") as file:
        change(file)


def swap_all(file):
    """Vectors and words of the prompts in another order: only hashing the sentences again tells."""
    order = {0: 1, 1: 2, 2: 0}
    sentence = file["word_sentence"][:]
    file["vectors"][...] = file["vectors"][:][[2, 0, 1]]
    file["word_sentence"][...] = np.vectorize(order.get)(sentence)


def swap_words_of_a_model(file):
    """The same of another backend, whose vectors cannot be computed here."""
    file.attrs["backend"], file.attrs["model"] = "transformers", "bert-base-uncased"
    swap_all(file)


def sorted_in_splits(number):
    """Order of rows that puts the classes of each split together."""
    return [row for first, count in ((0, 18), (18, 6), (24, 9)) for row in sorted(
        range(first, first + count), key=lambda row: (row - first) % 3)]


shuffled = np.random.default_rng(0).permutation


# kind -> (what is changed, what the only warnings say)
FOUND = {
    "all features zero": (lambda d: each(d / "audio", np.zeros_like),
                          ["audio: 33 of 33 clips are all zeros (train0"]),
    "one array in all clips": (lambda d: each(d / "audio", lambda x: np.ones((10, 16), "f4")),
                               ["audio: 33 of 33 clips are constant"]),
    "a few silent clips": (lambda d: each(d / "video", np.zeros_like, "train3", "test4"),
                           ["video: 2 of 33 clips are all zeros (train3, test4)"]),
    "one real array in all clips": (lambda d: each(d / "audio", lambda x: np.load(d / "video/train0.npy")[:, 0, :4, 0].
                                                   repeat(4, 1)),
                                    ["audio: 33 of 33 clips have the same feature (train0"]),
    "a test clip is a train clip": (lambda d: copy(d, "train0", "test3"), [
        "audio: 1 test clips are exact copies of train clips (test3 = train0)",
        "video: 1 test clips are exact copies of train clips (test3 = train0)"]),
    "the sound of two val clips is that of train clips": (
        lambda d: (copy(d, "train1", "val1", ["audio"]), copy(d, "train2", "val2", ["audio"])),
        ["audio: 2 val clips are exact copies of train clips (val1 = train1, val2 = train2)"]),
    "two train clips are the same": (lambda d: copy(d, "train0", "train3", ["video"]), [
        "video: 2 of 33 clips have exactly the features of another clip (train0 = train3)"]),
    "labels shuffled": (lambda d: relabel(d, shuffled), ["audio: the nearest other clip has the same class for",
                                                         "video: the nearest other clip has the same class for"]),
    "labels sorted, features not": (lambda d: relabel(d, sorted_in_splits), [
        "audio: the nearest other clip has the same class for", "video: the nearest"]),
    "features of another clip each": (lambda d: rename(d / "audio"), ["audio: the nearest other clip has the same"]),
    "vectors of the prompts swapped": (
        lambda d: in_text(d, lambda f: f["vectors"].write_direct(f["vectors"][:][::-1].copy())),
        ["prompts.h5: 2 of 3 prompts do not match their class (ball: its vectors do not match its words, sq"]),
    "prompts swapped with their words": (lambda d: in_text(d, swap_all), [
        "prompts.h5: 3 of 3 prompts do not match their class (ball: its words do not match its sentence"]),
    "the same of a model": (lambda d: in_text(d, swap_words_of_a_model),
                            ["3 of 3 prompts do not match their class"]),
    "one vector changed": (lambda d: in_text(d, change_vector), [
        "1 of 3 prompts do not match their class (cross: its vectors do not match its sentence"]),
    "too small for float16": (lambda d: each(d / "audio", lambda x: x * np.float32(1e-9), "test1", "val0"), [
        "audio: 2 of 33 clips have values too small for float16 (val0, test1); pack them with --dtype float32"]),
    "too large for float16": (lambda d: each(d / "video", lambda x: x * np.float32(1e6), "test1"), [
        "video: 1 of 33 clips have values too large for float16 (test1)"]),
}


def rename(folder):
    """The features of each clip under the id of another."""
    paths = sorted(folder.glob("*.npy"))
    kept = [path.read_bytes() for path in paths]
    for path, k in zip(paths, shuffled(len(paths))):
        path.write_bytes(kept[k])


def change_vector(file):
    """Of one prompt, as a whole: words, their vectors, and what the encoder gets agree."""
    mine = np.flatnonzero(file["word_sentence"][:] == 1)
    vectors = file["word_vectors"][:]
    vectors[mine] = vectors[mine][:, ::-1]
    file["word_vectors"][...] = vectors
    kept = file["word_kept"][:][mine]
    rows = file["vectors"][:]
    rows[1, :kept.sum()] = vectors[mine][kept]
    file["vectors"][...] = rows


def test_a_healthy_set_has_no_warning_and_says_what_was_not_looked_at(healthy, capsys):
    code, report = check(healthy, capsys)
    assert code == 0 and warnings(report) == []
    assert "audio: the nearest other clip has the same class for 100 % of 33 clips (chance: 31 %)" in report
    assert "not checked: whether a clip's features come from the same recording" in report
    assert "ok: a run would work\n" in report


@pytest.mark.parametrize("kind", FOUND)
def test_what_values_show_is_a_warning_with_ids(own, capsys, kind):
    change, expected = FOUND[kind]
    change(own)
    code, report = check(own, capsys)
    found = warnings(report)
    assert code == 0 and len(found) == len(expected) and "ok: a run would work" in report, report
    assert all(text in line for text, line in zip(expected, found)), report


def test_few_clips_are_said_not_to_be_compared(healthy, tmp_path, capsys):
    own = tmp_path / "few"
    shutil.copytree(healthy, own)
    rows = (own / "clips.csv").read_text().splitlines()
    (own / "clips.csv").write_text("\n".join(rows[:4] + rows[-3:]) + "\n")
    code, report = check(own, capsys)
    assert code == 0 and warnings(report) == []
    assert "whether audio depends on the class (fewer than 12 clips whose class has another clip)" in report


# --------------------------------------------------------------------------------------------- check and pretrain agree
REFUSED = {         # kind -> (modalities, what is changed, what both say)
    "one modality": (("audio",), lambda d: None, "two"),
    "small maps": (("audio", "video"), lambda d: each(d / "video", lambda x: x[:, :4, :4]), "maps of 4 x 4"),
    "no train clips": (("audio", "video"), lambda d: (d / "clips.csv").write_text("id,split,label\ntest0,test,ball\n"),
                       "no row has the split train"),
    "no such sentence": (("audio", "text"), lambda d: (d / "clips.csv").write_text(
        (d / "clips.csv").read_text().replace("ball", "bell")), "no prompt for 'bell'"),
    "not finite": (("audio", "video"), lambda d: each(d / "audio", lambda x: x * np.nan, "train5"), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_check_refuses_what_pretraining_refuses(own, tmp_path, capsys, kind):
    import pretrain
    modalities, change, text = REFUSED[kind]
    change(own)
    assert check(own, capsys, modalities)[0] == 1
    data = ["--manifest", str(own / "clips.csv"), *(part for m in modalities for part in (
        "--features", f"{m}={own / {'text': 'prompts.h5'}.get(m, m)}"))]
    with pytest.raises((SystemExit, InputError)) as refused:
        pretrain.main(["--dataset_name", "custom", *data, "--model_save_path", str(tmp_path / "ck"), "--snapshot_pref",
                       str(tmp_path / "run"), "--gpu", "cpu", "--workers", "0", "--n_embeddings", "8"])
    assert text in str(refused.value) + capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- published data sets
@pytest.fixture
def tree(demo_data, tmp_path):
    return Path(shutil.copytree(demo_data, tmp_path / "data"))


def published(name, tree, capsys):
    code = prepare.main(["check", "--dataset", name, "--data_root", str(tree)])
    return code, capsys.readouterr().out


def test_the_demo_is_healthy(demo_data, capsys):
    for name in ("ave", "vggsound_AVT", "ave_avvp"):
        code, report = published(name, demo_data, capsys)
        assert code == 0 and warnings(report) == [], report
    assert "audio: the nearest other clip has the same class" in report


def test_rows_of_two_splits_of_ave_are_named(tree, capsys):
    shutil.copy(tree / DATA_PATHS["ave.train"], tree / DATA_PATHS["ave.test"])
    _, report = published("ave", tree, capsys)
    assert "13 clips are in both train and test (" in report and len(warnings(report)) == 1


def test_clips_with_one_feature_are_not_compared_pair_by_pair(monkeypatch):
    """Each is compared with the splits of the others: for a thousand copies two thousand times, not a million."""
    compared, pair = [], values._pair
    monkeypatch.setattr(values, "_pair", lambda *splits: compared.append(splits) or pair(*splits))
    clips = {("path", f"{split}{k}"): [values.ClipValues(b"one", "", ""), {split}]
             for split in ("train", "test") for k in range(500)}
    clips |= {("path", f"other{k}"): [values.ClipValues(b"%d" % k, "", ""), {"train"}] for k in range(1500)}
    found = values.Found()
    values._copies(found, "audio", clips)
    assert len(compared) == 2000 and len(found.warnings) == 1 and found.warnings[0].startswith(
        "audio: 500 test clips are exact copies of train clips (test0 = train0, test1 = train0, ")


@pytest.mark.parametrize("changed, found", [("ave.label", ("audio", "video")), ("ave.audio", ("audio",)),
                                            ("ave.video", ("video",))])
def test_shuffled_rows_of_ave_are_seen(tree, capsys, changed, found):
    with h5py.File(tree / DATA_PATHS[changed], "r+") as file:
        file["avadataset"][...] = shuffled(file["avadataset"][:])
    _, report = published("ave", tree, capsys)
    assert [line.split(":")[1].strip() for line in warnings(report)] == list(found), report


def test_a_copied_clip_of_vggsound_is_named_by_its_splits(tree, capsys):
    with open(tree / DATA_PATHS["vggsound.csv"], newline="") as file:
        of = {row["split"]: row["video_id"] for row in csv.DictReader(file)}
    for kind in ("audio", "video"):
        folder = tree / DATA_PATHS[f"vggsound.{kind}"]
        shutil.copy(folder / f"{of['train']}.zip", folder / f"{of['test']}.zip")
    _, report = published("vggsound_AVT", tree, capsys)
    assert all(f"{kind}: 1 test clips are exact copies of train clips ({of['test']} = {of['train']})" in report
               for kind in ("audio", "video"))


def test_classes_in_another_order_and_other_sentences_are_named(tree, capsys):
    path = tree / DATA_PATHS["ucf_vggsound.ucf_categories"]
    names = path.read_text().splitlines()
    path.write_text("\n".join([names[1], names[0], *names[2:]]) + "\n")
    _, report = published("ucf_vggsound", tree, capsys)
    others = (tree / DATA_PATHS["ucf_vggsound.vggsound_categories"]).read_text().splitlines()
    assert sorted(names) != sorted(others) or "in a different order (line 1 is" in report
    assert values.class_orders([(("a.txt", ["x", "y", "z"]), ("b.txt", ["x", "z", "y"]))]) == [
        "a.txt: the classes of b.txt in a different order (line 2 is y, there z); labels are line numbers: use "
        "matching lists, or the published order"]
    assert values.class_orders([(("a", ["x", "y"]), ("b", ["x", "y"])), (("a", ["x", "y"]), ("b", ["x", "z"]))]) == []
    prompts = tree / DATA_PATHS["vggsound.prompts"]
    lines = prompts.read_text().splitlines() if prompts.exists() else ["label,prompt"]
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("\n".join([lines[0], "digit one,another sentence"]) + "\n")
    _, report = published("vggsound_AVT", tree, capsys)
    assert "the sentences of 1 labels differ from the list of prompts (digit one)" in report


# ------------------------------------------------------------------------------------------------------ float16, packs
@pytest.mark.parametrize("scale, problem", [(1, ""), (1e-2, ""), (1e-9, values.UNDERFLOW), (1e-7, values.UNDERFLOW),
                                            (1e9, values.OVERFLOW), (0, "")])
def test_float16_problems(scale, problem):
    x = np.random.default_rng(0).normal(size=(10, 16)).astype("f4") * np.float32(scale)
    assert values.float16_problem(x) == problem
    sparse = np.where(np.arange(160).reshape(10, 16) % 7, 0, x)             # most values zero, as after a ReLU
    assert values.float16_problem(sparse.astype("f4")) == problem


@pytest.mark.parametrize("scale", [1e-9, 3e-7])
def test_a_pack_refuses_what_float16_would_lose(tmp_path, scale):
    x = np.random.default_rng(0).normal(size=(10, 16)).astype("f4")
    write_zips(tmp_path / "zips", {"a": x, "b": x * np.float32(scale)})
    with pytest.raises(InputError, match="clip b: values up to .*, too small for float16.*--dtype float32"):
        packing.pack(tmp_path / "zips", tmp_path / "pack.h5", "audio")
    skipped = packing.pack(tmp_path / "zips", tmp_path / "pack.h5", "audio", on_bad_clip="skip").skipped
    assert list(skipped) == ["b"]
    packing.pack(tmp_path / "zips", tmp_path / "whole.h5", "audio", "float32")
    assert (open_features(tmp_path / "whole.h5", "audio").read("b") == x * np.float32(scale)).all()
    with h5py.File(tmp_path / "whole.h5") as file:
        assert file.attrs["content"].decode() == fingerprint.fingerprint(tmp_path / "zips").sha256


def test_clips_that_changed_while_a_pack_was_unfinished_are_packed_again(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 16)).astype("f4")
    write_zips(tmp_path / "zips", {"a": x, "b": x * np.float32(1e9)})
    refused("clip b: .*too large for float16", packing.pack, tmp_path / "zips", tmp_path / "pack.h5", "audio")
    write_zips(tmp_path / "zips", {"a": 2 * x, "b": x})
    packing.pack(tmp_path / "zips", tmp_path / "pack.h5", "audio")
    assert (open_features(tmp_path / "pack.h5", "audio").read("a") == (2 * x).astype("f2")).all()
    with h5py.File(tmp_path / "pack.h5") as file:
        assert file.attrs["content"].decode() == fingerprint.fingerprint(tmp_path / "zips").sha256


def test_fingerprints_know_every_form_of_features():
    assert set(fingerprint.FEATURES) == set(READERS) and os.path.splitext("a.zip")[1] in READERS


def test_sums_of_features_that_several_threads_read():
    part, x = values.Part(), np.ones((4, 8), np.float32)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: part("audio", key, x), range(2000)))
    finally:
        sys.setswitchinterval(interval)
    assert part.sums["audio", 8].count == 4 * 2000
