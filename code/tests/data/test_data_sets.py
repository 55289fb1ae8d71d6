"""Whole data packages in the published layout: read, checked, broken in one place at a time, and run."""

import os
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

import ave as ave_script
import data_trees
import prepare
from cmg.data.csv import read_table
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.ave import AVE
from cmg.data.sets.ave_avvp import AVEShared, AVVPShared
from cmg.data.sets.avs_s4 import S4
from cmg.data.sets.avvp import AVVP
from cmg.data.sets.ucf_vggsound import UCFVGGSound
from cmg.data.sets.vggsound import VGGSound
from cmg.data.text import TextFeatures
from conftest import message, refused
from data_trees import CLASSES, PROMPTS, V, features, hashed_text, paths, zip_bytes
from tiny import run_once


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """VGGSound-AVEL of 128 clips."""
    root = tmp_path_factory.mktemp("package")
    data_trees.vggsound(root, DATA_PATHS, clips=128)
    return root


@pytest.fixture(scope="module")
def ave(tmp_path_factory, annotations):
    root = tmp_path_factory.mktemp("ave")
    data_trees.ave(root, DATA_PATHS, annotations)
    return root


def check(root, dataset, capsys, *flags):
    """(exit code, what prepare.py check prints)."""
    code = prepare.main(["check", "--dataset", dataset, "--data_root", str(root), *flags])
    return code, capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- VGGSound
@pytest.mark.parametrize("modalities", [("audio", "video", "text"), ("audio", "video"), ("audio", "text"),
                                        ("video", "text")])
def test_vggsound_in_every_combination(package, modalities):
    data = VGGSound(paths(package, DATA_PATHS, "vggsound"), modalities)
    shapes = {"audio": (10, 128), "video": (10, 7, 7, V), "text": (10, 768)}
    assert len(data) == 128 and tuple(data[5]) == modalities == data.modalities and data.classes == []
    assert all(x.shape == shapes[m] and x.dtype == np.float32 for m, x in data[5].items())
    assert data.shapes == {m: shapes[m] if m == "text" else shapes[m][1:] for m in modalities}


def test_vggsound_splits_and_prompts(package):
    place = paths(package, DATA_PATHS, "vggsound")
    table = read_table(place["csv"], ("category", "video_id", "split"))
    parts = {split: [i for i, s in zip(table["video_id"], table["split"]) if s == split] for split in table["split"]}
    data = VGGSound(place, ("audio", "text"))
    assert data.ids == parts["train"] + parts["test"] + parts["val"]
    assert VGGSound(place, ("audio",), ("train",)).ids == parts["train"]
    text, category = TextFeatures(place["text"]), dict(zip(table["video_id"], table["category"]))
    for i in (0, 70, 127):
        assert data.categories[i] == category[data.ids[i]]
        assert np.array_equal(data[i]["text"], text[PROMPTS[data.categories[i]]])


def test_vggsound_segment_labels(package):
    """The released AV mode: the class in the seconds of the stored mask, background in the others."""
    place = paths(package, DATA_PATHS, "vggsound")
    data = VGGSound(place, ("audio", "video"), with_labels=True)
    label, mask = data[7]["label"], data.stores["label"].read(data.ids[7])
    assert data.classes == list(CLASSES) and label.shape == (10, 5) and set(mask) == {0, 1}
    assert np.array_equal(label[:, CLASSES.index(data.categories[7])], mask) and np.array_equal(label[:, -1], 1 - mask)
    assert label.sum() == 10


def test_vggsound_lists_of_file_names(package, tmp_path):
    place = paths(package, DATA_PATHS, "vggsound")
    ids = read_table(place["csv"], ("video_id",))["video_id"]
    (tmp_path / "81k.csv").write_text("id\n" + "".join(f"{name}.mp4\n" for name in ids[::-1]))
    data = VGGSound(place | {"csv": tmp_path / "81k.csv"}, ("audio", "video"), ("train",))
    assert data.ids == ids[::-1] and data.categories == []
    assert "no column 'category'" in message(VGGSound, place | {"csv": tmp_path / "81k.csv"})


def test_skipping_keeps_clips_and_classes_together(package, tmp_path):
    root = shutil.copytree(package, tmp_path / "copy")
    place = paths(root, DATA_PATHS, "vggsound")
    whole = VGGSound(place, with_labels=True)
    (place["video"] / f"{whole.ids[10]}.zip").write_bytes(b"")
    (place["audio"] / f"{whole.ids[20]}.zip").unlink()
    (place["label"] / f"{whole.ids[30]}.zip").write_bytes(zip_bytes(np.ones((10, 2))))
    left = VGGSound(place, with_labels=True, on_bad_clip="skip")
    keep = [i for i in range(128) if i not in (10, 20, 30)]
    assert set(left.skipped) == {whole.ids[i] for i in (10, 20, 30)} and left.missing == [whole.ids[20]]
    assert left.ids == [whole.ids[i] for i in keep] and left.categories == [whole.categories[i] for i in keep]
    for i in (9, 10, 100):
        assert all(np.array_equal(x, whole[keep[i]][m]) for m, x in left[i].items())


# ------------------------------------------------------------------------------------------ prepare check, VGGSound
@pytest.mark.parametrize("dataset", ["vggsound_AVT", "vggsound", "vggsound_AT", "vggsound_VT"])
def test_check_passes(package, capsys, dataset):
    code, out = check(package, dataset, capsys)
    assert code == 0 and "ok: a run would work" in out and "PROBLEM" not in out
    assert "128 rows (test 32, train 64, val 32)" in out and "4 classes, 32 clips each:" in out


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


FIRST, OTHER = "v-000000000", "v-000000009"
PLANTED = {             # name -> (what is done to the package, what check must say)
    "truncated zip": (lambda p: (p["video"] / f"{FIRST}.zip").write_bytes(zip_bytes(features(np.random, 1))[:200]),
                      f"{FIRST}.zip: a truncated or damaged zip"),
    "empty zip": (lambda p: (p["audio"] / f"{FIRST}.zip").write_bytes(zip_bytes()), f"{FIRST}.zip: 0 pickles in the"),
    "two pickles": (lambda p: (p["audio"] / f"{OTHER}.zip").write_bytes(zip_bytes(1, 2)), f"{OTHER}.zip: 2 pickles"),
    "wrong rank": (lambda p: (p["video"] / f"{OTHER}.zip").write_bytes(zip_bytes(np.ones((10, 49, V)))),
                   f"{OTHER}.zip: shape (10, 49, {V})"),
    "other width": (lambda p: (p["video"] / f"{OTHER}.zip").write_bytes(zip_bytes(np.ones((10, 7, 7, V + 1)))),
                    f"{OTHER}.zip: shape (10, 7, 7, {V + 1})"),
    "0 seconds": (lambda p: (p["audio"] / f"{OTHER}.zip").write_bytes(zip_bytes(np.ones((0, 128)))),
                  f"{OTHER}.zip: 0 seconds"),
    "NaN": (lambda p: (p["audio"] / f"{OTHER}.zip").write_bytes(zip_bytes(np.full((10, 128), np.nan))),
            f"{OTHER}.zip: 1280 of 1280 values are NaN"),
    "object array": (lambda p: (p["audio"] / f"{OTHER}.zip").write_bytes(zip_bytes(np.array([None, 1]))),
                     f"{OTHER}.zip: an array of Python objects"),
    "missing clips": (lambda p: [(p["audio"] / f"v-00000000{k}.zip").unlink() for k in range(7)],
                      "7 clips have no feature file: v-000000000, v-000000001, v-000000002, v-000000003, v-0000000"),
    "missing folder": (lambda p: p["audio"].rename(p["audio"].with_name("other")), "vggsound.audio is missing: "),
    "missing column": (lambda p: rewrite(p["csv"], "video_id", "id_of_video"), "no column 'video_id'"),
    "missing cell": (lambda p: rewrite(p["csv"], FIRST, ""), "line 2 has no video_id"),
    "unknown split": (lambda p: rewrite(p["csv"], ",train", ",tran"), "split 'tran'"),
    "unknown class": (lambda p: rewrite(p["csv"], "race car", "race cat"), "no prompt for 'race cat'"),
    "repeated id": (lambda p: rewrite(p["csv"], OTHER, FIRST), f"1 repeated ids, first {FIRST}"),
    "no list": (lambda p: p["csv"].unlink(), "vggsound.csv is missing: "),
    "no text": (lambda p: p["text"].unlink(), "create it with `python prepare.py text --dataset vggsound`, or set"),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_check_names_each_planted_defect(package, tmp_path, capsys, name):
    root = shutil.copytree(package, tmp_path / "copy")
    plant, finding = PLANTED[name]
    plant(paths(root, DATA_PATHS, "vggsound"))
    code, out = check(root, "vggsound_AVT", capsys)
    problems = [line for line in out.splitlines() if "PROBLEM" in line]
    assert code == 1 and [finding in line for line in problems] == [True], out         # said once, and nothing else is
    assert "not ready" in out and "download from: the CMG data package" in out


def test_an_unknown_class_is_named_without_text_too(package, tmp_path, capsys):
    root = shutil.copytree(package, tmp_path / "copy")
    rewrite(paths(root, DATA_PATHS, "vggsound")["csv"], "race car", "race cat")
    code, out = check(root, "vggsound", capsys)
    assert code == 0 and "warning" in out and "unknown class 'race cat'; expected the 4 classes of" in out
    assert "unknown class 'race cat'" in message(VGGSound, paths(root, DATA_PATHS, "vggsound"), with_labels=True)


def test_everything_that_is_absent_is_listed(tmp_path, capsys):
    code, out = check(tmp_path, "all", capsys)
    absent = {name for name, place in DATA_PATHS.items() if f"PROBLEM: {name} is missing: {tmp_path / place}; " in out}
    assert code == 1 and out.count("not ready") == 7 == out.count("download from: ")
    problems = [line for line in out.splitlines() if "PROBLEM" in line]
    assert all("is missing: " in line and " --path " in line for line in problems)
    for report in out.split("download from: "):
        said = [line.split("is missing: ")[1] for line in report.splitlines() if "is missing: " in line]
        assert len(said) == len(set(said))
    assert {"vggsound.csv", "vggsound.audio", "vggsound.video", "vggsound.text", "ave.audio", "ave.video", "ave.label",
            "ave.test", "avvp.audio_csv", "avvp.video", "ave_avvp.order", "ucf_vggsound.ucf_csv", "avs.masks"} <= absent
    assert not {"vggsound.label", "vggsound.prompts", "ave.annotations", "avvp.official_audio"} & absent


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_bom_and_crlf_are_no_defects(package, tmp_path, capsys, change):
    root = shutil.copytree(package, tmp_path / "copy")
    for key in ("csv", "categories"):
        path = paths(root, DATA_PATHS, "vggsound")[key]
        path.write_bytes(change(path.read_text()).encode())
    assert check(root, "vggsound_AVT", capsys)[0] == 0
    assert VGGSound(paths(root, DATA_PATHS, "vggsound"), ("audio",), with_labels=True).classes == list(CLASSES)


def test_the_list_that_was_cut_is_recognised(annotations, tmp_path, capsys):
    place = paths(tmp_path, DATA_PATHS, "vggsound")
    place["csv"].parent.mkdir(parents=True)
    lines = (annotations / "released" / "vggsound40k" / "vggsound-avel40k.csv").read_text().splitlines()
    place["csv"].write_text("\n".join(lines[:20_001]) + "\n")
    assert "a part of the published 40k list: 20,000 of its 40,801 clips; an early upload" in check(
        tmp_path, "vggsound_AVT", capsys)[1]
    place["csv"].write_text("\n".join(lines) + "\n")
    out = check(tmp_path, "vggsound_AVT", capsys)[1]
    assert "40,801 rows (test 8,115, train 24,515, val 8,171)" in out and "early upload" not in out


def test_paths_by_flag_and_environment(package, tmp_path, capsys, monkeypatch):
    """The pack in place of the zips, pointed at in both ways."""
    root = shutil.copytree(package, tmp_path / "copy")
    prepare.main(["pack", "vggsound.audio", "vggsound.video", "--data_root", str(root), "--dtype", "float32"])
    out = capsys.readouterr().out
    packs = {m: root / "vggsound40k" / "feature" / m / "pack.h5" for m in ("audio", "video")}
    assert f"--path vggsound.audio={packs['audio']}" in out and f"export CMG_VGGSOUND_VIDEO={packs['video']}" in out
    zips = VGGSound(paths(root, DATA_PATHS, "vggsound"))
    for m in ("audio", "video"):
        shutil.rmtree(root / DATA_PATHS[f"vggsound.{m}"])
    monkeypatch.setenv("CMG_VGGSOUND_VIDEO", str(packs["video"]))
    assert check(root, "vggsound_AVT", capsys)[0] == 1
    assert check(root, "vggsound_AVT", capsys, "--path", f"vggsound.audio={packs['audio']}")[0] == 0
    packed = VGGSound(paths(package, DATA_PATHS, "vggsound") | packs)
    for i in range(0, 128, 17):
        item = packed[i]
        assert all(np.array_equal(x, item[m]) for m, x in VGGSound(paths(package, DATA_PATHS, "vggsound"))[i].items())
    assert zips.ids == packed.ids


# ---------------------------------------------------------------------------------------------------------- AVE
def test_ave_on_the_real_annotations(ave, annotations, capsys):
    place = paths(ave, DATA_PATHS, "ave")
    sets = {split: AVE(place, ("audio", "video"), split) for split in ("train", "val", "test")}
    assert [len(data) for data in sets.values()] == [3339, 402, 402]
    assert sorted(int(row) for data in sets.values() for row in data.ids) == list(range(4143))
    item, row = sets["test"][17], int(sets["test"].ids[17])
    with h5py.File(place["audio"]) as audio, h5py.File(place["label"]) as label:
        assert np.array_equal(item["audio"], audio["avadataset"][row].astype(np.float32))
        assert np.array_equal(item["label"], label["avadataset"][row])
    lines = (annotations / "ave" / "testSet.txt").read_text().splitlines()
    category, _, _, start, end = lines[17].split("&")
    assert np.flatnonzero(item["label"][:, sets["test"].classes.index(category)]).tolist() == list(
        range(int(start), int(end)))
    code, out = check(ave, "ave", capsys)
    assert code == 0 and "train: 3,339 clips, 3,339 with valid audio, video" in out
    assert "1 clips have no foreground second" in out


def test_ave_with_text(ave, tmp_path):
    place = paths(ave, DATA_PATHS, "ave") | {"text": tmp_path / "t.h5"}
    prompts = {name: f"the sound of {name}" for name in AVE(place, ("audio",)).classes}
    hashed_text(place["text"], prompts)
    data = AVE(place, ("audio", "text"), "val")
    name = data.classes[data[5]["label"][:, :-1].sum(0).argmax()]
    assert np.array_equal(data[5]["text"], TextFeatures(place["text"])[name])


def write(path, name, array):
    with h5py.File(path, "w") as file:
        file[name] = array


AVE_DEFECTS = {
    "order beyond the rows": (lambda p: write(p["train"], "order", np.array([0, 4143])), "2 row numbers from 0 to"),
    "repeated rows": (lambda p: write(p["train"], "order", np.array([5, 5])), "distinct numbers below 4143"),
    "order of floats": (lambda p: write(p["train"], "order", np.array([5.0])), "'order' is float64"),
    "other class count": (lambda p: write(p["label"], "avadataset", np.zeros((4143, 10, 13))), "13 columns; expected"),
    "labels that are none": (lambda p: write(p["label"], "avadataset", np.full((4143, 10, 29), .5)), "other than 0"),
    "no video": (lambda p: p["video"].unlink(), "ave.video is missing: "),
    "features of fewer samples": (lambda p: write(p["audio"], "avadataset", np.zeros((99, 10, 128))), "have no feat"),
    "features of another kind": (lambda p: write(p["audio"], "avadataset", np.zeros((4143, 64))), "rank 3 or 5"),
}


@pytest.fixture
def few_of_ave(ave, tmp_path):
    """A copy whose splits list every fortieth row."""
    root = shutil.copytree(ave, tmp_path / "copy", copy_function=os.link)        # video is large; links, replaced below
    for k, split in enumerate(("train", "val", "test")):
        (root / DATA_PATHS[f"ave.{split}"]).unlink()
        write(root / DATA_PATHS[f"ave.{split}"], "order", np.arange(k, 4143, 40))
    return root


@pytest.mark.parametrize("name", list(AVE_DEFECTS))
def test_check_names_defects_of_ave(few_of_ave, capsys, name):
    root, place = few_of_ave, paths(few_of_ave, DATA_PATHS, "ave")
    for key in ("label", "audio"):
        content = place[key].read_bytes() if key != "audio" or "features" in name else None
        if content is not None:
            place[key].unlink()
            place[key].write_bytes(content)
    plant, finding = AVE_DEFECTS[name]
    plant(place)
    code, out = check(root, "ave", capsys)
    problems = [line for line in out.splitlines() if "PROBLEM" in line]
    assert code == 1 and any(finding in line for line in problems), out
    assert len({line.split(": ", 2)[2] for line in problems}) == len(problems), out                 # each said once


# --------------------------------------------------------------------------------------------------- other sets
def test_avvp_on_the_released_lists(tmp_path, annotations, capsys):
    data_trees.avvp(tmp_path, DATA_PATHS, annotations)
    place = paths(tmp_path, DATA_PATHS, "avvp")
    audio, video = AVVP(place, "audio"), AVVP(place, "video")
    assert (len(audio), len(video), len(audio.classes)) == (1846, 1661, 25)
    assert audio[0]["audio"].shape == (10, 128) and video[0]["label"].shape == (10, 26)
    i = video.ids.index("KSRjje7GH44_60_70")                                            # Blender, seconds 0 to 10
    assert video[i]["label"].sum() == 10 and video[i]["label"][:, audio.classes.index("Blender")].all()
    i = audio.ids.index("KSRjje7GH44_60_70")                                            # Blender 8-10, Speech 0-8
    assert audio[i]["label"].argmax(1).tolist() == [audio.classes.index("Speech")] * 8 + [
        audio.classes.index("Blender")] * 2
    code, out = check(tmp_path, "avvp", capsys)
    assert code == 0 and "1,846 clips, 1,846 with valid audio" in out
    rewrite(place["audio_csv"], "Blender", "Mixer")
    code, out = check(tmp_path, "avvp", capsys)
    assert code == 1 and "unknown class 'Mixer'; expected the 25 classes" in out


def test_ave_avvp_on_the_released_lists(tmp_path, ave, annotations, capsys):
    root = shutil.copytree(ave, tmp_path / "copy", copy_function=os.link)
    data_trees.avvp(root, DATA_PATHS, annotations, "ave_avvp", "AVE_AVVP")
    place = paths(root, DATA_PATHS, "ave_avvp")
    for name in ("ave_avvp_labels.h5", "ave_avvp_order.h5"):
        shutil.copy(annotations / "released" / "AVE_AVVP" / name, place["label"].parent)
    place |= {f"{part}_{m}": root / DATA_PATHS[f"{part}.{m}"] for part in ("ave", "avvp") for m in ("audio", "video")}
    train, test = AVEShared(place, "audio"), AVVPShared(place, "video")
    assert (len(train), len(test), train.classes) == (1831, 1032, test.classes) and len(test.classes) == 12
    assert train[3]["label"].shape == test[3]["label"].shape == (10, 13)
    assert train.classes[train[0]["label"][:, :-1].sum(0).argmax()] == "Dog"            # AVE's Bark
    code, out = check(root, "ave_avvp", capsys)
    assert code == 0 and "AVVP audio: 1,085 clips" in out


def test_ucf_vggsound_on_the_released_lists(tmp_path, annotations, capsys):
    data_trees.ucf_vggsound(tmp_path, DATA_PATHS, annotations)
    place = paths(tmp_path, DATA_PATHS, "ucf_vggsound")
    audio, video = UCFVGGSound(place, "audio"), UCFVGGSound(place, ("video",))
    assert (len(audio), len(video), len(audio.classes)) == (4813, 2003, 16) and audio.classes == video.classes
    assert video.ids[0] == "v_PlayingGuitar_g02_c03" and video[0]["label"][:, 0].all()
    assert video[0]["video"].shape == (10, 7, 7, V) and audio[0]["label"].sum() == 10   # 7 seconds, the last repeated
    assert not audio.labels[..., -1].any()
    hashed_text(place["text"], {name: name for name in audio.classes})
    assert tuple(UCFVGGSound(place, ("video", "text"))[0]) == ("video", "text", "label")
    assert "different clips" in message(UCFVGGSound, place, ("audio", "video"))
    code, out = check(tmp_path, "ucf_vggsound", capsys)
    assert code == 0 and "line 11 has a tab; using 'Bowling' as the class name" in out
    assert "16 classes (1 without clips)" in out
    rewrite(place["ucf_categories"], "Skiing\n", "")
    assert "expected aligned lists" in message(UCFVGGSound, place, "video")


def test_avs_is_checked(tmp_path, capsys):
    place = paths(tmp_path, DATA_PATHS, "avs")
    place["csv"].parent.mkdir(parents=True)
    place["csv"].write_text("name,start,category,split\na,0,helicopter,train\nb,5,helicopter,test\nc,5,dog,val\n")
    for split, category, name, masks in (("train", "helicopter", "a", 1), ("test", "helicopter", "b", 5),
                                         ("val", "dog", "c", 5)):
        for kind, count in (("frames", 5), ("masks", masks)):
            folder = place[kind] / split / category / name
            folder.mkdir(parents=True)
            for k in range(1, count + 1):
                Image.new("RGB", (8, 8)).save(folder / f"{name}_{k}.png")
        data_trees.write_zips(place["audio"] / split / "zip" / category, {name: np.ones((5, 128), np.float32)})
    code, out = check(tmp_path, "avs", capsys)
    assert code == 1 and out.count("PROBLEM") == 2 and out.count(f"avs.text is missing: {place['text']}") == 1
    place["prompts"].parent.mkdir(parents=True)
    place["prompts"].write_text("label,prompt\nhelicopter,a helicopter\ndog,a dog\n")
    hashed_text(place["text"], {"helicopter": "a helicopter", "dog": "a dog"})
    code, out = check(tmp_path, "avs", capsys)
    assert code == 0 and "train: 1 clips" in out and "val: 1 classes, 1 clips each" in out
    (place["masks"] / "test" / "helicopter" / "b" / "b_4.png").unlink()
    (place["audio"] / "train" / "zip" / "helicopter" / "a.zip").write_bytes(b"")
    (place["frames"] / "val" / "dog" / "c" / "c_2.png").write_bytes(b"no picture")
    code, out = check(tmp_path, "avs", capsys)
    assert code == 1 and out.count("PROBLEM") == 3 and "b_4.png: no such file (1 files of split 'test'" in out
    assert "a.zip: an empty file" in out and "c_2.png: not a valid image" in out
    refused("b_4.png: no such file", S4, place, "test")      # training says the very same
    place["csv"].write_text("name,start,category,split\na,0,helicopter,train\na,0,helicopter,train\n")
    code, out = check(tmp_path, "avs", capsys)
    assert code == 1 and out.count("PROBLEM") == 1 and "clip a is listed 2 times" in out


# --------------------------------------------------------------------------------------------------------- runs
def arguments(root, *flags):
    return ["--data_root", str(root), "--checkpoint_root", str(root / "checkpoint"), "--runs_root", str(root / "runs"),
            "--gpu", "cpu", "--workers", "0", *map(str, flags)]


def test_pretraining_and_ave_run_on_published_trees(few_of_ave, small_model):
    root = few_of_ave
    data_trees.vggsound(root, DATA_PATHS, clips=40)
    pretraining = arguments(root, "--n_epoch", 1, "-b", 20, "--n_embeddings", 16)
    assert run_once(pretraining) == 0
    checkpoint = next((root / "checkpoint").glob("DCID-model-*.pt"))
    ave_script.main(arguments(root, "--n_epoch", 2, "--checkpoint", checkpoint))
    assert list((root / "runs").glob("**/results.jsonl"))
    (root / DATA_PATHS["vggsound.video"] / f"{FIRST}.zip").write_bytes(b"")
    refused(f"{FIRST}.zip: an empty file", run_once, pretraining)
