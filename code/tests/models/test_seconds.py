"""T is a setting: from the flag to loaders, labels, losses, checkpoint, tasks; and how long a run is, in words."""

import re

import numpy as np
import pytest
import torch

import clip_retrieval
import evaluate
import prepare
from cmg.checkpoints import checkpoint
from cmg.cli import parse_pretrain
from cmg.data.clips import Clips
from cmg.data.features import open_features
from cmg.data.labels import single_event
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.avvp import read_events
from cmg.demos import dialled
from cmg.models.config import Config
from cmg.prepare.pack import pack
from cmg.systems.base import to_seconds
from cmg.systems.registry import SYSTEMS
from cmg.training import runtime
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from data_trees import features, write_zips
from test_dcid import TINY
from tiny import train

ALL = ("audio", "video", "text")


@pytest.fixture(scope="module")
def short_data(tmp_path_factory):
    """Root of a demo tree of clips of five seconds."""
    root = tmp_path_factory.mktemp("short") / "data"
    dialled.build(root, DATA_PATHS, clips=80, progress=False, seconds=5)
    return root


# ------------------------------------------------------------------------------------------------------ the data
def zips(folder, lengths, width=(128,)):
    """<k>.zip of as many seconds as `lengths` says; returns the features."""
    rng = np.random.default_rng(0)
    made = {str(k): features(rng, own, width) for k, own in enumerate(lengths)}
    write_zips(folder, made)
    return made


@pytest.mark.parametrize("seconds", [1, 4, 10, 30])
def test_clips_and_labels_are_fitted_to_t(tmp_path, seconds):
    made = zips(tmp_path / "zip", [4, 10, 1])
    labels = single_event(np.array([0, 1, 0]), np.eye(3, 10), 2)
    data = Clips("x", ("audio",), list("012"), {"audio": tmp_path / "zip"}, labels=labels, seconds=seconds)
    for i, own in enumerate((4, 10, 1)):
        item, at = data[i], np.minimum(np.arange(seconds), own - 1)
        assert np.array_equal(item["audio"], made[str(i)][at])
        assert np.array_equal(item["label"], labels[i][np.minimum(np.arange(seconds), 9)])


def test_the_longest_clip_of_the_list_counts_in_any_modality(tmp_path):
    zips(tmp_path / "audio", [4, 12, 40])
    zips(tmp_path / "video", [4, 13, 2], (7, 7, 2))
    data = Clips("x", ("audio", "video"), ["0", "1"], {m: tmp_path / m for m in ("audio", "video")}, seconds=None)
    assert data.longest() == 13                                     # clip 2 is not on the list
    pack(tmp_path / "audio", tmp_path / "a.h5", "audio", seconds=20)
    data = Clips("x", ("audio",), ["0", "1"], {"audio": tmp_path / "a.h5"}, seconds=None)
    assert data.longest() == 20                                     # what a pack keeps


def test_a_pack_is_cut_and_padded_and_never_pads_what_it_has_cut(tmp_path):
    zips(tmp_path / "zip", [4, 12, 1])
    pack(tmp_path / "zip", tmp_path / "long.h5", "audio", "float32", seconds=12)
    for seconds in (3, 12, 20):
        source, packed = (open_features(tmp_path / name, "audio", seconds) for name in ("zip", "long.h5"))
        for clip in "012":
            (x, own), (y, same) = source.measure(clip), packed.measure(clip)
            assert np.array_equal(x, y) and own == same
    pack(tmp_path / "zip", tmp_path / "cut.h5", "audio", seconds=10)
    with pytest.raises(InputError, match="pack of 10 seconds per clip, but T = 20.*--seconds 20"):
        open_features(tmp_path / "cut.h5", "audio", 20)


def test_events_end_with_the_timeline(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("filename\tonset\toffset\tevent_labels\nabcdefghijk_0_10\t0,3,8\t2,10,9\tdog,cat,dog\n")
    for seconds in (4, 10, 12):
        _, labels = read_events(path, ["dog", "cat"], seconds)
        cat = (np.arange(seconds) >= 3) & (np.arange(seconds) < 10)
        dog = (np.arange(seconds) < 2) | (np.arange(seconds) == 8)
        assert labels.shape == (1, seconds, 3)
        assert np.array_equal(labels[0], np.stack([dog, cat, ~(dog | cat)], 1))


# --------------------------------------------------------------------------------------------------------- training
def test_a_second_takes_the_token_at_its_place():
    text = torch.arange(10.0).view(1, 10, 1)
    for seconds, tokens in ((4, [0, 2, 5, 7]), (10, list(range(10))), (30, [k // 3 for k in range(30)])):
        found = to_seconds({"audio": torch.zeros(1, seconds, 2), "text": text}, Config())
        assert found["text"].flatten().tolist() == tokens and found["audio"].shape == (1, seconds, 2)


def test_a_file_without_the_setting_has_ten_seconds(tmp_path):
    contents = checkpoint.pack(SYSTEMS["dcid"](Config.for_data(ALL, **TINY)), None, {}, 0, 1, {})
    del contents["config"]["seconds"]
    checkpoint.save(tmp_path / "old.pt", contents)
    assert checkpoint.open_file(tmp_path / "old.pt").system.config.seconds == 10


def test_cross_cpc_is_off_where_the_longest_clip_is_too_short(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Clips, "longest", lambda self: 2)
    assert train(demo_data, tmp_path, "--seconds", "auto", "--n_epoch", "1", "--max_steps", "2") == 0
    told = (tmp_path / "run" / "log.txt").read_text()
    assert "clips of 2 seconds: Cross-CPC, which needs 3, is off (--without cpc)" in told and "cpc_accuracy" not in told


def test_a_step_of_one_clip_has_nothing_to_compare(capsys):
    for arguments in (["--b", "1"], ["--b", "1", "--without", "club", "cpc", "--system", "h_dcid"]):
        with pytest.raises(SystemExit):
            parse_pretrain(["--gpu", "cpu", *arguments], LOCAL)
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "--batch_size 1: club, cpc, cmcm compare the clips of a step" in first
    assert "--batch_size 1: cmcm compare the clips of a step" in second
    assert parse_pretrain(["--gpu", "cpu", "--b", "1", "--without", "club", "cpc", "cmcm"], LOCAL).batch_size == 1
    assert len(runtime.run_length(40_800, 80, 6, 400)) == 1 and len(runtime.run_length(3066, 1, 1, 400)) == 1


# ----------------------------------------------------------------------------------------- from the flag to results
@pytest.fixture(scope="module")
def trained(short_data, small_model, tmp_path_factory):
    """Folder of a run on the short clips with --seconds auto, stopped in its second epoch and resumed."""
    folder = tmp_path_factory.mktemp("auto")
    assert train(short_data, folder, "--seconds", "auto", "--max_steps", 13) == 0
    assert train(short_data, folder, "--seconds", "auto", "--resume", "auto") == 0
    return folder


def test_auto_is_the_longest_clip_and_stays_in_the_file(trained):
    loaded = checkpoint.open_file(trained / "checkpoints" / "DCID-model-1.pt")
    assert loaded.system.config.seconds == 5 and loaded.total_step == 20
    assert loaded.contents["run"]["options"]["seconds"] == 5
    assert "epoch 1 after 24 of its 80 clips" in (trained / "run" / "log.txt").read_text()


def test_a_run_resumes_with_its_own_t_only(trained, short_data, tmp_path):
    with pytest.raises(InputError, match="pretrained with --seconds 5, not 10; pass the same"):
        train(short_data, tmp_path, "--resume", trained / "checkpoints" / "DCID-model-1.pt")


def test_padding_five_seconds_to_ten_is_said(short_data, small_model, tmp_path):
    train(short_data, tmp_path, "--max_steps", 1)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "clips of 5 seconds, T = 10: the last second is repeated as published" in text
    train(short_data, tmp_path / "cut", "--max_steps", 1, "--seconds", 3)
    assert "the first clip has 5 seconds of audio, 5 seconds of video, T = 3: longer" in (
        tmp_path / "cut" / "run" / "log.txt").read_text()
    assert "1 steps in total" in text and "1 steps are far fewer than the 3,066" in text and "raise --max_steps" in text


def test_every_task_takes_t_from_the_checkpoint(trained, short_data, small_model, tmp_path):
    path = trained / "checkpoints" / "DCID-model-1.pt"
    common = ["--data_root", str(short_data), "--gpu", "cpu", "--workers", "0", "--no_control",
              "--snapshot_pref", str(tmp_path / "results")]
    evaluate.main([*common, "--n_epoch", "1", str(path)])
    found = np.load(tmp_path / "results" / "predictions" / "avvp-video-audio.npz")
    assert found["labels"].shape[1] == found["features"].shape[1] == 5
    clip_retrieval.main([*common, "--checkpoint", str(path)])


def test_check_says_that_it_pads(short_data, capsys):
    arguments = ["check", "--data_root", str(short_data), "--dataset"]
    assert prepare.main([*arguments, "vggsound_AVT"]) == 0
    told = capsys.readouterr().out
    (warning,) = (line for line in told.splitlines() if "is T right" in line)
    assert "audio, video with 3 to 5 seconds, T = 10: all 80 clips are padded" in warning and "--seconds 5" in warning
    assert prepare.main([*arguments, "avvp"]) == 0
    assert re.search(r"audio, video with \d+ to \d+ seconds, T = 10: all \d+ clips are padded",
                     capsys.readouterr().out)
    assert prepare.main([*arguments, "vggsound_AVT", "--seconds", "5"]) == 0
    told = capsys.readouterr().out
    assert "is T right" not in told and "audio has 3 to 5 seconds, T = 5: 4 of 80 clips are padded" in told
    assert prepare.main([*arguments, "vggsound_AVT", "--seconds", "auto"]) == 0
    again = capsys.readouterr().out
    assert "length: T = 5, from the longest clip" in again
    assert "audio has 3 to 5 seconds, T = 5: 4 of 80 clips are padded" in again
    for name in ("avvp", "ave", "all"):
        with pytest.raises(SystemExit):
            prepare.main([*arguments, name, "--seconds", "auto"])


# ---------------------------------------------------------------------------------------------------- the steps hint
def test_the_published_run_is_long_enough():
    assert runtime.run_length(40_801, 80, 6, 400) == [
        "3,066 steps in total (511 per epoch, 6 epochs, 80 clips per step), 102.0 clips per code",
        "the last step of an epoch has one clip (40,801 clips, 80 per step), as in the published run; losses that "
        "compare clips are zero in it"]


@pytest.mark.parametrize("clips, batch, epochs, limit, words", [
    (1000, 80, 6, None, "78 steps are far fewer than the 3,066 .* --n_epoch 236 or a smaller --batch_size"),
    (40_800, 80, 6, 100, "100 steps .* raise --max_steps"), (2, 80, 1, None, "--n_epoch 3066")])
def test_a_short_run_names_the_flag(clips, batch, epochs, limit, words):
    import re
    lines = runtime.run_length(clips, batch, epochs, 400, limit)
    assert len(lines) == 2 and re.search(words, lines[1])
