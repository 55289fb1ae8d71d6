"""AVSBench-S4 on disk: frames, masks, sounds, the list, the demo's scenes, and what is said about broken ones; training
that is killed between epochs resumes bit-exactly, and only with the same settings."""

import logging
import shutil
from collections import Counter

import demo_scenes
import network_files
import numpy as np
import pytest
import settings
import torch
import train
import train as training_script
import train_resume
from PIL import Image

from cmg.data.layout import DATA_PATHS
from cmg.data.sets.avs_s4 import S4, Row, read_list
from cmg.data.text import read_prompts
from cmg.downstream.resume import Progress
from cmg.utils.errors import InputError
from conftest import refused
from kill_resume import differences
from test_avs_run import NETWORK, train_arguments, tree  # noqa: F401


@pytest.fixture
def own_tree(tree, tmp_path):  # noqa: F811
    """A copy of the scenes that a test may break."""
    shutil.copytree(tree / "AVSBench", tmp_path / "AVSBench")
    return tmp_path


def paths(root):
    return settings.parse_train(["--checkpoint", "x", "--data_root", str(root), *NETWORK]).paths("avs")


def test_missing_frame_is_named(own_tree):
    victim = sorted((own_tree / DATA_PATHS["avs.frames"] / "val").glob("*/*/*_3.png"))[0]
    victim.unlink()
    refused(f"{victim.name}: no such file .1 files of split 'val'", S4, paths(own_tree), "val", 32)
    S4(paths(own_tree), "train", 32)


def test_broken_picture_and_sound_are_named(own_tree):
    data = S4(paths(own_tree), "val", 32)
    data.picture("frames", 0, 1).write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    with pytest.raises(InputError, match="not a valid image"):
        data[0]
    data.sound(1).write_bytes(b"PK")
    with pytest.raises(InputError, match=data.sound(1).name):
        data[1]


def test_grey_masks_are_cut_at_128_with_one_line(own_tree, tree, tmp_path, capsys):  # noqa: F811
    data = S4(paths(own_tree), "train", 64)
    for i in (0, 1):
        grey = np.full((64, 64), 127, np.uint8)
        grey[:, :10] = 128
        Image.fromarray(grey).save(data.picture("masks", i, 1))
    assert data[0]["masks"].sum() == 640 and data[0]["greys"] == 4096 and data[2]["greys"] == 0
    train.main([*train_arguments(tree, tmp_path / "runs"), "--data_root", str(own_tree)])
    assert capsys.readouterr().out.count("neither 0 nor 255") == 1


def test_masks_of_any_form_are_read_alike(own_tree):
    data = S4(paths(own_tree), "val", 64)
    truth = data[0]["masks"]
    with Image.open(data.picture("masks", 0, 1)) as image:
        one_bit, palette = image.convert("1", dither=Image.Dither.NONE), image.convert("P")
    one_bit.save(data.picture("masks", 0, 1))
    palette.save(data.picture("masks", 0, 2)), palette.save(data.picture("masks", 0, 1))
    assert np.array_equal(data[0]["masks"][0], truth[0])
    small = S4(paths(own_tree), "val", 32)[0]                      # resized: nearest, still black and white
    assert small["masks"].shape == (5, 32, 32) and set(np.unique(small["masks"])) <= {0.0, 1.0}
    assert small["frames"].shape == (5, 3, 32, 32) and small["greys"] == 0


def test_unknown_class_is_named(own_tree, tree, tmp_path):  # noqa: F811
    path = own_tree / DATA_PATHS["avs.csv"]
    path.write_text(path.read_text().replace("digit_three", "digit_eleven"))
    for kind in ("avs.frames", "avs.masks"):
        for split in ("train", "val"):
            folder = own_tree / DATA_PATHS[kind] / split
            (folder / "digit_three").rename(folder / "digit_eleven")
    for split in ("train", "val"):
        folder = own_tree / DATA_PATHS["avs.audio"] / split / "zip"
        (folder / "digit_three").rename(folder / "digit_eleven")
    with pytest.raises(InputError, match="no sentence for class 'digit_eleven'"):
        train.main([*train_arguments(tree, tmp_path / "runs"), "--data_root", str(own_tree)])


@pytest.mark.parametrize(("text", "message"), (
    ("name,start\na,0\n", "no column 'category'"), ("", "no column 'name' in the header .an empty file"),
    ("name,start,category,split\na,0,b,dev\n", "clip a has the split 'dev'"),
    ("name,start,category,split\na,0,,val\n", "line 2 has no category"),
    ("name,start,category,split\n../a,0,b,val\n", "the name .* is not a plain file name"),
    ("name,start,category,split\na,0,b,val\na,0,b,val\n", "listed 2 times")))
def test_broken_lists_are_named(tmp_path, text, message):
    (tmp_path / "s4.csv").write_text(text)
    refused(message, read_list, tmp_path / "s4.csv")


def test_other_headers_fall_back_to_positions(tmp_path):
    (tmp_path / "s4.csv").write_text("video,begin,class,split\nv1,3,dog,test\n")
    assert read_list(tmp_path / "s4.csv") == [Row("v1", "dog", "test")]
    (tmp_path / "s4.csv").write_text("category,begin,class,split\nv1,3,dog,test\n")
    refused("no column 'name'", read_list, tmp_path / "s4.csv")           # never one column for both


def test_real_list_has_the_published_sizes(annotations):
    rows = read_list(annotations / "avsbench_s4" / "s4_meta_data.reconstructed.csv")
    assert Counter(row.split for row in rows) == {"train": 3452, "val": 740, "test": 740}
    prompts = read_prompts(annotations / "released" / "AVSBench" / "AVSBenchCategories2Prompts.csv")
    classes = {row.category for row in rows}
    assert len(classes) == 23 and classes == set(prompts)


def test_short_sounds_repeat_their_last_second(tree):  # noqa: F811
    data = S4(paths(tree), "train", 32)
    sound = data.read_sound(7)                                     # the demo cuts every twentieth, from number 7
    assert sound.shape == (5, 128) and np.array_equal(sound[3], sound[4]) and not np.array_equal(sound[2], sound[3])
    assert data[7]["masks"].shape == (1, 32, 32) and data.queries()["audio"].shape == (12, 5, 128)


# ---------------------------------------------------------------------------------------------------- demo scenes
def test_scenes_are_repeatable_and_their_masks_follow_the_digit():
    one, two = (demo_scenes.scenes(10, "test", np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    frames, masks, keys = one
    assert keys.tolist() == list(range(10)) and set(np.unique(masks)) == {0, 255}
    share = (masks > 0).mean((1, 2, 3))
    assert share.min() > 0.02 and share.max() < 0.25              # one digit of three
    inside = np.array([f[m > 0].mean() for f, m in zip(frames, masks, strict=True)])
    assert (inside > frames.mean((1, 2, 3, 4))).all()             # strokes are brighter than the picture


def test_whole_scenes_are_left_alone_and_others_refused(tree, tmp_path):  # noqa: F811
    assert demo_scenes.build(tree, DATA_PATHS, clips={"train": 12, "val": 4, "test": 7}) is False
    refused("other scenes", demo_scenes.build, tree, DATA_PATHS, seed=5)
    (tmp_path / "AVSBench").mkdir()
    refused("is not a demo", demo_scenes.build, tmp_path, DATA_PATHS)
    (tmp_path / "AVSBench").rmdir()
    refused("demo.sh", demo_scenes.build, tmp_path, DATA_PATHS)


def run(root, out, *more):
    """Train two epochs below `out`; returns the run folder."""
    training_script.main(train_arguments(root, out, "at", "--max_epoches", "2", "--lr", "1e-3", *more))
    folder, = out.glob("S4_at_*")
    return folder


def test_training_resumes_after_its_last_epoch(tree, tmp_path, monkeypatch, caplog):  # noqa: F811
    whole, keep = run(tree, tmp_path / "whole"), Progress.keep
    assert not (whole / train_resume.FILE).exists()

    def killed_after(self, state, epoch):
        keep(self, state, epoch)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "keep", killed_after)
        run(tree, tmp_path / "broken")
    with pytest.raises(InputError, match="trained with other settings .lr 0.001 there, 0.0002 here"):
        run(tree, tmp_path / "broken", "--resume", "auto", "--lr", "2e-4")
    caplog.set_level(logging.INFO)
    broken = run(tree, tmp_path / "broken", "--resume", "auto")
    assert "resuming an interrupted call after epoch 1" in caplog.text and not (broken / train_resume.FILE).exists()
    for name in network_files.FILES.values():
        one, other = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (whole, broken))
        assert differences(one, other) == []
    lines = [[line.split('"clips_per_second"')[0] for line in open(folder / "log" / "metrics.jsonl")]
             for folder in (whole, broken)]
    assert lines[0] == lines[1] and len(lines[0]) == 2


def test_auto_without_a_run_starts_and_a_folder_needs_one(tree, tmp_path):  # noqa: F811
    folder = run(tree, tmp_path / "new", "--resume", "auto")
    refused("no checkpoints/resume.pt", run, tree, tmp_path / "new", "--resume", str(folder))
    (folder / train_resume.FILE).write_bytes(b"not a checkpoint")
    refused("resume.pt: ", run, tree, tmp_path / "new", "--resume", "auto")
