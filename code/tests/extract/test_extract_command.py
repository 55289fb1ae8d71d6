"""The real command end to end: golden features in zips, resume, shards, AVE's and AVSBench's forms, the whole way to a
head that was trained on one modality and tested on another."""

import csv
import json
import os
import pickle
import shlex
import shutil
import wave
import zipfile

import h5py
import numpy as np
import pytest
import torch

import prepare
from cmg.data.archive import read_zip
from cmg.data.features import open_features
from cmg.extract import media, run, video
from cmg.utils.errors import InputError
from conftest import message, refused
from made_videos import make_video
from parity_features import vgg19, vggish

OFFLINE = ["--audio-encoder", "logmel", "--video-encoder", "patches"]


def features(folder, out, *more):
    return prepare.main(["features", str(folder), "--out", str(out), *map(str, more)])


def contents(folder):
    """Bytes of every file that is not hidden, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".h5"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Five clips of two to three seconds, one of them without sound."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(5):
        make_video(folder / f"clip{k}.mp4", seconds=2 + k / 4, audio=None if k == 3 else "tone", size=(64 + 2 * k, 48))
    return folder


def test_golden_clip_through_the_command_to_the_loaders(golden, tmp_path):
    arrays = np.load(golden / "features_clip.npz")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").write_bytes(arrays["mp4"].tobytes())
    for network, make in (("vggish8", vggish), ("vgg19_8", vgg19)):
        torch.save(make(network).state_dict(), tmp_path / f"{network}.pth")
    files = ["--vggish", tmp_path / "vggish8.pth", "--vgg19", tmp_path / "vgg19_8.pth"]
    kinds = ["--vggish-kind", "audioset", "--vgg19-kind", "caffe"]
    refused("unknown vggish weights", features, tmp_path / "videos", tmp_path / "out", *files)
    assert features(tmp_path / "videos", tmp_path / "out", *files, *kinds) == 0
    for modality, name in (("audio", "audio_feature_8_r022"), ("video", "video_feature_8")):
        ours, theirs = read_zip(tmp_path / "out" / modality / "zip" / "clip.zip"), arrays[name]
        assert ours.dtype == np.float32 and np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()
    assert open_features(tmp_path / "out" / "video" / "zip", "video").read("clip").shape == (10, 7, 7, 64)
    record = json.loads((tmp_path / "out" / "features.json").read_text())["settings"]
    assert record["video"]["kind"] == "caffe" and len(record["video"]["sha256"]) == 64
    assert record["video"]["recognised_by"] == "name given" and not record["audio"]["pre_relu"]
    with pytest.raises(InputError, match="kind 'caffe', not 'torchvision'"):
        features(tmp_path / "videos", tmp_path / "out", *files, *kinds[:2], "--vgg19-kind", "torchvision")


def test_torchvision_warns_and_fewer_frames_are_an_approximation(videos, tmp_path, capsys):
    torch.save(vgg19("vgg19_8").state_dict(), tmp_path / "x.pth")
    features(videos / "clip0.mp4", tmp_path / "out", "--modality", "video", "--vgg19", tmp_path / "x.pth",
             "--vgg19-kind", "torchvision", "--seconds", 2, "--frames-per-second", 1)
    notes = json.loads((tmp_path / "out" / "features.json").read_text())["notes"]
    assert "published" in notes[0] and "approximation" in notes[1]
    assert capsys.readouterr().err.count("warning: ") == 2


def test_zip_is_one_pickle_that_both_numpys_read(videos, tmp_path):
    assert features(videos / "clip0.mp4", tmp_path / "out", *OFFLINE, "--seconds", 2) == 0
    with zipfile.ZipFile(tmp_path / "out" / "audio" / "zip" / "clip0.zip") as archive:
        (name,) = archive.namelist()
        data = archive.read(name)
    assert name == "clip0.pkl" and b"numpy.core.multiarray" in data and b"numpy._core" not in data
    assert data[:2] == b"\x80\x03" and pickle.loads(data).shape == (2, 128)


def test_two_shards_and_an_interrupted_run_equal_one_run(videos, tmp_path, monkeypatch):
    more = [*OFFLINE, "--seconds", "2", "--workers", 1]
    assert features(videos, tmp_path / "one", *more) == 1           # clip3 has no sound
    for part in ("2/2", "1/2"):
        features(videos, tmp_path / "two", *more, "--shard", part)
    mask, made = run.extract, []

    def interrupted(path, name, *rest):
        if name == "clip2" and "clip2" not in made:
            made.append(name)
            raise KeyboardInterrupt
        made.append(name)
        return mask(path, name, *rest)

    monkeypatch.setattr(run, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features(videos, tmp_path / "three", *more)
    assert not (tmp_path / "three" / "report.csv").exists()
    journal, = (tmp_path / "three").glob(".report*")
    with open(journal, "a") as file:
        file.write('clip2,ok,2.5,"25')                              # a line that was cut off
    features(videos, tmp_path / "three", *more)
    assert made.count("clip0") == made.count("clip1") == 1 and made.count("clip2") == 2
    wanted = contents(tmp_path / "one")
    assert len(wanted) == 4 + 5 + 4 and wanted == contents(tmp_path / "two") == contents(tmp_path / "three")
    assert not list(tmp_path.glob("*/.report*"))


def test_a_good_clip_is_left_and_a_broken_zip_made_again(videos, tmp_path):
    more = [*OFFLINE, "--seconds", "2"]
    features(videos, tmp_path / "out", *more)
    before = contents(tmp_path / "out")
    zips = tmp_path / "out" / "audio" / "zip"
    (zips / "clip1.zip").write_bytes(b"PK broken")
    kept = (zips / "clip0.zip").stat().st_mtime_ns
    features(videos, tmp_path / "out", *more)
    assert contents(tmp_path / "out") == before and (zips / "clip0.zip").stat().st_mtime_ns == kept
    features(videos, tmp_path / "out", *more, "--overwrite")
    assert contents(tmp_path / "out") == before and (zips / "clip0.zip").stat().st_mtime_ns > kept


def test_workers_change_neither_a_byte_nor_a_line(videos, tmp_path, capsys):
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    whole = (videos / "clip4.mp4").read_bytes()
    (folder / "clip1a.mp4").write_bytes(whole[:len(whole) // 2])            # unreadable
    at = len(whole) // 2
    (folder / "clip2a.mp4").write_bytes(whole[:at] + bytes(2000) + whole[at + 2000:])       # damaged packets
    labels = tmp_path / "labels.csv"
    labels.write_text("name,category\n" + "".join(f"{path.name},{path.name[-5]}\n" for path in folder.iterdir()))
    said = []
    for workers in (1, 2, 5):
        out = tmp_path / str(workers)
        assert features(folder, out, *OFFLINE, "--text-encoder", "hashing", "--seconds", "2", "--workers", workers,
                        "--labels", labels) == 1
        printed = capsys.readouterr()
        said.append((printed.out.replace(str(out), ""), [line for line in printed.err.splitlines() if ": " in line]))
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")
    assert said[0] == said[1] == said[2] and "clip1a: unreadable" in "".join(said[0][1])


def test_a_worker_that_is_killed_is_one_line_and_the_next_run_goes_on(videos, tmp_path, monkeypatch):
    more, plain = [*OFFLINE, "--seconds", "2", "--workers", 2], run.extract
    features(videos, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        patch.setattr(run, "extract", lambda path, name, *rest: os._exit(9) if name == "clip3" else plain(
            path, name, *rest))
        refused("--workers 2: a worker .* or --workers 1 for none", features, videos, tmp_path / "out", *more)
    features(videos, tmp_path / "out", *more)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_modalities_may_come_one_after_the_other(videos, tmp_path):
    features(videos, tmp_path / "one", *OFFLINE, "--seconds", "2")
    features(videos, tmp_path / "two", *OFFLINE, "--seconds", "2", "--modality", "audio")
    features(videos, tmp_path / "two", *OFFLINE, "--seconds", "2", "--modality", "video")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {k: v for k, v in one.items() if k.endswith(".zip")} == {k: v for k, v in two.items() if k.endswith(".zip")}
    assert one["video_name_checked.csv"] == two["video_name_checked.csv"]


def test_features_of_unknown_origin_are_not_added_to(videos, tmp_path):
    (tmp_path / "audio" / "zip").mkdir(parents=True)
    (tmp_path / "audio" / "zip" / "foreign.zip").write_bytes(b"")
    refused("unknown origin", features, videos, tmp_path, *OFFLINE)


def test_auto_takes_whole_seconds_and_continuous_and_nearest_run(videos, tmp_path):
    features(videos / "clip4.mp4", tmp_path / "a", *OFFLINE, "--seconds", "auto")
    features(videos / "clip4.mp4", tmp_path / "b", *OFFLINE, "--seconds", "auto", "--framing", "continuous",
             "--audio-route", "nearest", "--resampler", "r043", "--clock", "time")
    a, b = (read_zip(tmp_path / name / "audio" / "zip" / "clip4.zip") for name in "ab")
    assert len(a) == len(b) == 3 and not np.allclose(a, b)


def test_ave_form_has_the_rows_of_the_annotations(videos, tmp_path):
    order = tmp_path / "Annotations.txt"
    order.write_text("Category&VideoID&Quality&StartTime&EndTime\n" + "".join(
        f"Bark&{name}&good&0&2\n" for name in ("clip1", "clip0", "clip1", "absent")))
    features(videos, tmp_path / "out", *OFFLINE, "--seconds", "2", "--format", "ave", "--order", order, "--ave-dtype",
             "float64")
    for modality, name in (("audio", "audio_feature.h5"), ("video", "visual_feature.h5")):
        with h5py.File(tmp_path / "out" / name) as file:
            rows = file["avadataset"][:]
        zips = tmp_path / "out" / modality / "zip"
        assert rows.dtype == np.float64 and (rows[0] == read_zip(zips / "clip1.zip")).all()
        assert (rows[1] == read_zip(zips / "clip0.zip")).all() and (rows[2] == rows[0]).all()
        assert np.isnan(rows[3]).all()                  # no features: readers refuse them, zeros would pass
        assert (tmp_path / "out" / "AVE" / "data" / name).resolve() == (tmp_path / "out" / name).resolve()


def test_avsbench_is_laid_out_as_its_loader_reads(videos, tmp_path):
    from cmg.data.sets.avs_s4 import read_list
    table = tmp_path / "s4.csv"
    table.write_text("name,start,category,split\nclip0,0,dog,train\nclip4,0,cat,test\n")
    features(videos, tmp_path / "out", "--preset", "avsbench", "--audio-encoder", "logmel", "--labels", table)
    root = tmp_path / "out" / "AVSBench"
    assert len(read_list(root / "Single-source" / "s4_meta_data.csv")) == 2
    assert read_zip(root / "feature" / "audio" / "train" / "zip" / "dog" / "clip0.zip").shape == (5, 128)
    frames = [media.rgb(frame) for frame, *_ in media.Media(videos / "clip4.mp4").timeline()]
    from PIL import Image
    data = root / "Single-source" / "s4_data"
    for k, number in enumerate((23, 48, 73, 73, 73), 1):            # the 16th of 16 frames of each second
        with Image.open(data / "visual_frames" / "test" / "cat" / "clip4" / f"clip4_{k}.png") as image:
            assert (np.asarray(image) == video.resize(frames[number])).all()
    with wave.open(str(data / "audio_wav" / "test" / "cat" / "clip4.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 2, 2)
        assert abs(file.getnframes() - 48000) < 800


@pytest.mark.parametrize("arguments, found", [
    ([], "--vggish: no file"), (["--audio-encoder", "logmel"], "--vgg19: no file"),
    ([*OFFLINE, "--uint8"], "--pca"), ([*OFFLINE, "--pre-relu"], "only for vggish"),
    ([*OFFLINE, "--video-form", "vector"], "gives maps"), ([*OFFLINE, "--start", "column"], "--labels"),
    ([*OFFLINE, "--text-encoder", "hashing"], "--labels"), ([*OFFLINE, "--format", "ave"], "--order"),
    ([*OFFLINE, "--preset", "avsbench"], "--labels"), ([*OFFLINE, "--device", "cuda:9"], "GPUs"),
    ([*OFFLINE, "--device", "abacus"], "no such device"), ([*OFFLINE, "--patch-channels", "500"], "at most 192"),
])
def test_contradictions_are_one_line(videos, tmp_path, arguments, found):
    refused(found, features, videos, tmp_path / "out", *arguments)


def test_counts_of_clips_add_up_and_the_next_commands_are_complete(videos, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("file,label\nclip0.mp4,dog\nother.mp4,dog\n")
    features(videos, tmp_path / "out", *OFFLINE, "--seconds", "2", "--labels", tmp_path / "labels.csv")
    output = capsys.readouterr().out
    assert "1 clips without a video: other" in output
    assert f"{tmp_path / 'out'}: 5 of 6 clips done: 1 no_audio, 4 ok, 1 without a video" in output
    commands = [shlex.split(line) for line in output.split("next: ")[1].splitlines()]
    assert len(commands) == 3
    assert commands[0][-2:] == commands[1][-4:-2] == ["--seconds", "2"]


@pytest.mark.parametrize("modality, name, meant", [
    ("audio", "logmle", "logmel"), ("audio", "vgish", "vggish"), ("video", "vgg-19", "vgg19"),
    ("text", "hash", "hashing")])
def test_a_misspelled_encoder_ends_before_any_work(tmp_path, modality, name, meant, capsys):
    with pytest.raises(SystemExit):
        features(tmp_path / "absent", tmp_path / "out", f"--{modality}-encoder", name)
    told = capsys.readouterr().err
    assert f"'{name}' is not an encoder, did you mean {meant}?" in told and told.count("\n") == 1


def test_a_model_that_the_hub_does_not_have_is_asked_for_once(videos, tmp_path, monkeypatch):
    asked = []

    def refuse(self, name, **_):
        asked.append(name)
        raise ConnectionError("no network\nand more")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("transformers.AutoFeatureExtractor.from_pretrained", None)
    for name in ("somebody/hears", "bert-of-sounds"):
        found = message(features, videos, tmp_path / "out", *OFFLINE, "--audio-encoder", name)
        assert found.startswith(f"{name}: no audio model found") and "no network" in found
    assert asked == ["somebody/hears", "bert-of-sounds"]


def test_start_may_come_from_a_column(tmp_path):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", seconds=8)
    (tmp_path / "labels.csv").write_text("file,label,begin\na.mp4,dog,4\n")
    features(tmp_path / "videos", tmp_path / "out", *OFFLINE, "--seconds", "2", "--labels", tmp_path / "labels.csv",
             "--start", "begin")
    features(tmp_path / "videos", tmp_path / "four", *OFFLINE, "--seconds", "2", "--start", "4")
    features(tmp_path / "videos", tmp_path / "zero", *OFFLINE, "--seconds", "2")
    column, four, zero = (contents(tmp_path / name)["audio/zip/a.zip"] for name in ("out", "four", "zero"))
    assert column == four != zero


def test_from_videos_to_a_head_on_the_other_modality(tmp_path, small_model, capsys):
    import pretrain
    import ucf_vggsound
    (tmp_path / "videos").mkdir()
    rows = ["file,label,prompt"]
    for k in range(10):
        label = ("a dog", "the sea")[k % 2]
        make_video(tmp_path / "videos" / f"own clip {k}.mp4", seconds=2, audio_rate=16000, layout="mono",
                   size=(64, 48 + 8 * (k % 2)))
        rows.append(f"own clip {k}.mp4,{label},{label} in clip {k}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "data"
    assert features(tmp_path / "videos", out, *OFFLINE, "--labels", tmp_path / "labels.csv",
                    "--text-encoder", "hashing", "--patch-filters", "pca", "--patch-channels", "8") == 0
    check, pretraining, heads = (shlex.split(line)[1:] for line in capsys.readouterr().out.split(
        "next: ")[1].splitlines())
    assert prepare.main(check[1:]) == 0                  # the commands that were printed, by the train clips alone
    following = [shlex.split(line)[1:] for line in capsys.readouterr().out.split("next: ")[1].splitlines()]
    assert following == [pretraining, heads] and heads[-2:] == ["--checkpoint", str(out / "checkpoint")]
    assert pretraining[:2] == ["--dataset_name", "custom"] and f"text={out / 'text' / 'prompts.h5'}" in pretraining
    assert prepare.main(["check", "--dataset", "vggsound_AVT", "--data_root", str(out)]) == 0
    assert prepare.main(["check", "--dataset", "ucf_vggsound", "--data_root", str(out)]) == 0
    with open(out / "clips.csv", newline="") as file:
        manifest = list(csv.DictReader(file))
    assert [row["id"] for row in manifest] == [f"own clip {k}" for k in range(10)]
    assert {row["split"] for row in manifest} == {"train", "val", "test"}
    assert manifest[3]["prompt"] == "the sea in clip 3" and manifest[3]["label"] == "the sea"
    assert read_zip(out / "text" / "zip" / "own clip 3.zip").shape == (5, 768)
    places = ["--data_root", str(out), "--runs_root", str(tmp_path / "runs"), "--gpu", "cpu", "--workers", "0"]
    pretrain.main([*places, "--model_save_path", str(tmp_path), "--n_epoch", "1", "-b", "5", "--n_embeddings", "8"])
    ucf_vggsound.main([*places, "--checkpoint", str(tmp_path / "DCID-model-0.pt"), "--n_epoch", "1", "--no_control"])
    results = [json.loads(line) for line in open(tmp_path / "runs" / "ucf_vggsound" / "results.jsonl")]
    assert {row["direction"] for row in results} == {"video->audio", "audio->video"}
    assert all(np.isfinite(row["value"]) for row in results)
