"""Data sets of `datasets`, saved in a folder, as the input of an extraction; without the package these tests skip."""

import sys

import numpy as np
import pytest
from PIL import Image

import prepare
from cmg.data.archive import read_zip
from cmg.extract.video import patches
from cmg.utils.errors import InputError
from conftest import message
from made_videos import make_video, picture


def wav_bytes(path, seconds=2.0, rate=16000):
    make_video(path, seconds=seconds, video=False, audio_rate=rate, layout="mono", audio_codec="pcm_s16le")
    return path.read_bytes()


def png_bytes(path, k):
    Image.fromarray(picture(k)).save(path)
    return path.read_bytes()


@pytest.fixture
def data_set(tmp_path):
    """A function that saves a data set as `datasets` does: columns and their features -> folder."""
    datasets = pytest.importorskip("datasets")

    def save_splits(**splits):
        kinds = {name: getattr(datasets, kind)() if isinstance(kind, str) else datasets.ClassLabel(names=kind)
                 for name, kind in splits.pop("features").items()}
        text = datasets.Value("string")
        stored = {"bytes": datasets.Value("binary"), "path": text}         # cast afterwards: encoding needs torchcodec
        made = {}
        for split, rows in splits.items():
            features = {name: kinds.get(name, text) if not isinstance(value, dict) else stored
                        for name, value in rows[0].items()}
            made[split] = datasets.Dataset.from_list(rows, features=datasets.Features(features)).cast(
                datasets.Features({name: kinds.get(name, text) for name in features}))
        folder = tmp_path / "saved"
        (datasets.DatasetDict(made) if list(made) != ["all"] else made["all"]).save_to_disk(folder)
        return folder
    return save_splits


def sounds(tmp_path, names, **more):
    data = wav_bytes(tmp_path / "sound.wav")
    return [{"clip": name, "sound": {"bytes": data, "path": f"{name}.wav"}, **{
        key: values[k % len(values)] for key, values in more.items()}} for k, name in enumerate(names)]


def test_a_data_set_of_sounds(data_set, tmp_path, capsys):
    """Two splits, numbered classes, one row without a sound: the same features, lists and report as those of files."""
    rows = sounds(tmp_path, "abcd", kind=[0, 1])
    rows[3]["sound"] = None
    folder = data_set(features={"sound": "Audio", "kind": ["dog", "sea"]}, train=rows,
                      validation=sounds(tmp_path, "xy", kind=[1]))
    command = ["features", f"hf:{folder}", "--seconds", "2", "--modality", "audio", "--audio-encoder", "logmel",
               "--hf-columns", "id=clip,label=kind", "--device", "cpu", "--out"]
    assert prepare.main([*command, str(tmp_path / "out")]) == 0
    assert "1 rows without sound and picture" in capsys.readouterr().out
    assert (tmp_path / "out" / "clips.csv").read_text().splitlines() == [
        "id,split,label,prompt", "a,train,dog,dog", "b,train,sea,sea", "c,train,dog,dog", "x,val,sea,sea",
        "y,val,sea,sea"]
    report = (tmp_path / "out" / "report.csv").read_text()
    assert [line.split(",")[:2] for line in report.splitlines()[1:]] == [[name, "ok"] for name in "abcxy"]
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.wav").write_bytes(rows[0]["sound"]["bytes"])
    assert prepare.main(["features", str(files), *command[2:-5], "--out", str(tmp_path / "own")]) == 0
    of_files, of_rows = (read_zip(tmp_path / name / "audio" / "zip" / "a.zip") for name in ("own", "out"))
    np.testing.assert_array_equal(of_files, of_rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "hub").glob("*.wav")}
    assert prepare.main([*command, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.csv").read_text() == report
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 5
    assert prepare.main([command[0], f"hf:{folder}/validation", *command[2:], str(tmp_path / "part")]) == 0
    assert len((tmp_path / "part" / "report.csv").read_text().splitlines()) == 3


def test_a_photograph_is_a_still_video_with_the_sound_of_its_row(data_set, tmp_path):
    rows = [{**row, "photo": {"bytes": png_bytes(tmp_path / "p.png", k), "path": None}}
            for k, row in enumerate(sounds(tmp_path, "ab"))]
    rows.append({"clip": "c", "sound": None, "photo": {"bytes": b"no image", "path": "c.png"}})
    folder = data_set(features={"sound": "Audio", "photo": "Image"}, all=rows)
    code = prepare.main(["features", f"hf:{folder}", "--seconds", "2", "--audio-encoder", "logmel", "--video-encoder",
                         "patches", "--hf-columns", "id=clip", "--device", "cpu", "--out", str(tmp_path / "out")])
    lines = [line.split(",") for line in (tmp_path / "out" / "report.csv").read_text().splitlines()[1:]]
    assert code == 1 and [line[:2] for line in lines] == [["a", "ok"], ["b", "ok"], ["c", "unreadable"]]
    assert lines[0][7] == "2"                                               # rows
    made = read_zip(tmp_path / "out" / "video" / "zip" / "b.zip")
    np.testing.assert_allclose(made, np.repeat(patches(picture(1)[None]), 2, 0), atol=1e-6)
    assert (read_zip(tmp_path / "out" / "audio" / "zip" / "a.zip")[:, 64:] > 1).any()


@pytest.mark.parametrize("columns, name, finding", [
    ("id=clips", "", "no column 'clips'"), ("audio=clip", "", "one of the kind Audio"), ("ids=clip", "", "'ids'"),
    ("id", "", "id=clip,label=class is an example"), ("id=same", "", "is that of a row before"),
    ("id=clip", "/test", "no split 'test'"), ("id=clip", "_not_there", "no data set"),
    ("id=clip,label=same,split=clip", "", "the split 'a'")])
def test_a_data_set_that_cannot_serve_is_one_line(data_set, tmp_path, columns, name, finding):
    folder = data_set(features={"sound": "Audio"}, train=sounds(tmp_path, "ab", same=["s"]))
    assert finding in message(prepare.main, ["features", f"hf:{folder}{name}", "--modality", "audio", "--audio-encoder",
                                             "logmel", "--hf-columns", columns, "--out", str(tmp_path / "out")])


def test_columns_of_a_data_set_need_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="the package datasets is expected"):
        prepare.main(["features", "hf:somebody/sounds", "--audio-encoder", "logmel", "--out", str(tmp_path / "out")])
    make_video(tmp_path / "a.mp4", seconds=1)
    with pytest.raises(InputError, match="--hf-columns: names columns of a data set"):
        prepare.main(["features", str(tmp_path), "--audio-encoder", "logmel", "--hf-columns", "id=clip", "--out",
                      str(tmp_path / "out")])
