"""Spoken Digits: archives that are not the published ones, parts that share nothing, features as from video files, and
the whole way to a result. What needs the real recordings is skipped where they are absent."""

import gzip
import hashlib
import io
import tarfile
import wave
from dataclasses import replace
from fractions import Fraction
from urllib.error import URLError

import av
import h5py
import numpy as np
import other_cut
import pandas as pd

import prepare
import spoken
from cmg.data.archive import read_zip
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.vggsound import VGGSound
from cmg.demos import spoken as spoken_tree
from cmg.demos import spoken_clips, spoken_sources
from cmg.extract.video import patches, random_filters
from cmg.presets import PRESETS
from cmg.report import pictures
from cmg.utils.limits import LIMITS
from conftest import refused

CLIPS = 80


def place(root, name):
    return root / DATA_PATHS[name]


# ---------------------------------------------------------------------------------------------------- archives
def word(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, spoken_sources.RATE, 0, "NONE", ""))
        out.writeframes(np.asarray(samples, np.int16).tobytes())
    return file.getvalue()


def archive(folder, members):
    """Write the speech archive; `members`: name -> bytes, or ["type of a link"]."""
    with tarfile.open(folder / spoken_sources.SPEECH, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content[0], "/etc/passwd"
                out.addfile(info)


def accept(monkeypatch, files):
    lines = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    monkeypatch.setitem(spoken_sources.SHA256, spoken_sources.SPEECH, hashlib.sha256(lines.encode()).hexdigest())


def test_an_archive_is_read_in_memory_whatever_its_names(tmp_path, monkeypatch):
    files = {"3_ann_7.wav": word([1, 2, 3]), "0_bob_12.wav": word([4, 5])}
    (tmp_path / "deep" / "er").mkdir(parents=True)
    folder = tmp_path / "deep" / "er"
    archive(folder, {"../../evil/recordings/3_ann_7.wav": files["3_ann_7.wav"],
                     "/tmp/x/recordings/0_bob_12.wav": files["0_bob_12.wav"],
                     "recordings/1_eve_0.wav": [tarfile.SYMTYPE], "recordings/2_eve_0.wav": [tarfile.LNKTYPE],
                     "recordings/README.md": b"text", "../../evil.py": b"import os"})
    accept(monkeypatch, files)
    before = sorted(tmp_path.rglob("*"))
    speech = spoken_sources.read_speech(folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert [list(x) for x in speech.waves] == [[4, 5], [1, 2, 3]]
    assert list(speech.digit) == [0, 3] and list(speech.index) == [12, 7] and list(speech.speaker) == ["bob", "ann"]


def test_what_is_not_the_published_archive_is_refused_in_one_line(tmp_path, monkeypatch):
    refused(r"recordings.tar.gz: not found; .*--recordings", spoken_sources.read_speech, tmp_path)
    archive(tmp_path, {"recordings/0_ann_0.wav": word([0] * 4000)})
    refused("1 recordings: its SHA-256 differs", spoken_sources.read_speech, tmp_path)
    path = tmp_path / spoken_sources.SPEECH
    whole = path.read_bytes()
    for content, reason in ((whole[:len(whole) // 2], "not the published file"), (b"<html>404</html>", "Not a gzipped"),
                            (gzip.compress(b"no tar at all" * 100), "not a tar"), (b"", "not the published file")):
        path.write_bytes(content)
        refused(reason, spoken_sources.read_speech, tmp_path)
    monkeypatch.setattr(spoken_sources, "LIMITS", replace(LIMITS, unpacked_bytes=1 << 16))
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    refused("MiB unpacked", spoken_sources.read_speech, tmp_path)
    (tmp_path / spoken_sources.IMAGES).write_bytes(gzip.compress(b"\0" * 99))
    refused("t10k-images.*other content", spoken_sources.read_images, tmp_path)


def test_a_download_is_whole_or_one_line(tmp_path, monkeypatch):
    def unreachable(address, timeout):
        raise URLError("no route")
    monkeypatch.setattr(spoken_sources, "urlopen", unreachable)
    refused("cannot be downloaded.*no route.*--recordings", spoken_sources.fetch, tmp_path)
    monkeypatch.setattr(spoken_sources, "urlopen", lambda address, timeout: io.BytesIO(b"x" * 300))
    monkeypatch.setattr(spoken_sources, "LIMITS", replace(LIMITS, download_bytes=200))
    refused("more than 0 MiB", spoken_sources.fetch, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(spoken_sources, "LIMITS", replace(LIMITS, download_bytes=1000))
    spoken_sources.fetch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(spoken_sources.SHA256)
    monkeypatch.setattr(spoken_sources, "urlopen", unreachable)
    spoken_sources.fetch(tmp_path)                     # all there: nothing is asked for


# ---------------------------------------------------------------------------------------------------- clips
def made_pool():
    rng = np.random.default_rng(0)
    waves = [rng.integers(-9000, 9000, length).astype(np.int16) for length in (3000, 9000, 2000, 5000)]
    return spoken_clips.Pool(waves, np.array([3, 3, 4, 4]), rng.integers(0, 256, (3, 28, 28)).astype(np.uint8),
                      np.array([3, 4, 4]))


def test_a_clip_says_and_shows_its_digits_and_nothing_else():
    pool, none = made_pool(), spoken_clips.NONE
    heard = np.array([none, 3, 3, 3, 3, none, 4, 4, 4, none])
    clip = spoken_clips.Casting(pool, np.random.default_rng(1)).clip(heard, heard)
    for chosen, digit in ((clip.heard, pool.said), (clip.seen, pool.shown)):
        assert (np.where(chosen == none, none, digit[chosen]) == heard).all()
        assert len(set(chosen[1:4])) == 1 and len(set(chosen[6:9])) == 1       # what began stays for three seconds
    assert clip.heard[4] != clip.heard[3]                                       # then another recording
    wave = spoken_clips.waveform(clip, pool).reshape(10, spoken_sources.RATE)
    assert (wave[heard == none] == 0).all()
    for second in np.flatnonzero(heard != none):
        said = pool.waves[clip.heard[second]][:spoken_sources.RATE]
        where = np.flatnonzero(wave[second])
        assert len(where) and where[-1] - where[0] < len(said)
        assert np.abs(wave[second].astype(int)).sum() == np.abs(said.astype(int)).sum()
    for second in (0, 1, 6):
        picture = spoken_clips.frame(clip, pool, second)
        assert picture.shape == (196, 196, 3)
        cells = picture[..., 0].reshape(7, 28, 7, 28).transpose(0, 2, 1, 3).reshape(49, 28, 28)
        filled = np.flatnonzero((cells != spoken_clips.GRAY).any((1, 2)))
        assert list(filled) == ([] if heard[second] == none else [clip.cell[second]])
        if len(filled):
            assert (cells[filled[0]] == pool.pixels[clip.seen[second]]).all()


def test_originals_show_the_digit_and_sound_when_the_word_does():
    """Spectrograms of all frames: loud in the seconds of the event alone."""
    rng = np.random.default_rng(0)
    pool = spoken_clips.Pool([(3000 * np.sin(np.arange(4000))).astype(np.int16)], np.array([7]),
                             rng.integers(0, 255, (1, 28, 28), np.uint8), np.array([7]))
    heard = np.array([-1, -1, 0, 0, -1])
    found = spoken_clips.originals(spoken_clips.Clip(heard, np.zeros(5), heard, np.zeros(5, int)), pool)
    loud = found["audio"].reshape(128, 5, -1).max((0, 2))
    assert found["audio"].dtype == np.uint8 and (loud > 100).tolist() == (heard >= 0).tolist()
    np.testing.assert_array_equal(found["video"], pool.pixels[0])


def test_every_recording_comes_once_before_any_comes_again():
    casting = spoken_clips.Casting(made_pool(), np.random.default_rng(2))
    drawn = [casting.next("heard", 3) for _ in range(6)]
    assert all(set(drawn[k:k + 2]) == {0, 1} for k in (0, 2, 4))


def write_video(path, wave, frames, rate=8):
    """An mp4 of an (N,) int16 sound at 8 kHz and one picture a second."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=rate)
        pictures.height, pictures.width, pictures.pix_fmt = *frames[0].shape[:2], "yuv420p"
        pictures.options = {"crf": "10", "preset": "ultrafast"}
        sound = out.add_stream("aac", rate=spoken_sources.RATE, layout="mono")
        sound.bit_rate = 64000
        for k in range(rate * len(frames)):
            frame = av.VideoFrame.from_ndarray(frames[k // rate], format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        for k in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray((wave[None, k:k + 1024] / 32768).astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = spoken_sources.RATE, Fraction(1, spoken_sources.RATE), k
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))


def test_features_agree_with_those_of_video_files(recordings, tmp_path):
    speech, images = spoken_sources.read_speech(recordings), spoken_sources.read_images(recordings)
    pool = spoken_clips.pool("test", speech, images)
    casting = spoken_clips.Casting(pool, np.random.default_rng(0))
    heard = np.array([spoken_clips.NONE, 7, 7, 7, 7, 7, spoken_clips.NONE, 2, 2, 2])
    made = {f"clip{k}": casting.clip((heard + k) % 10 if k else heard, heard) for k in range(3)}
    (tmp_path / "videos").mkdir()
    for name, clip in made.items():
        write_video(tmp_path / "videos" / f"{name}.mp4", spoken_clips.waveform(clip, pool),
                    [spoken_clips.frame(clip, pool, second) for second in range(10)])
    assert prepare.main(["features", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--audio-encoder",
                         "logmel", "--video-encoder", "patches", "--patch-channels", "16"]) == 0
    for name, clip in made.items():
        sound = spoken_clips.audio_features(clip, pool)
        pictures = spoken_clips.video_features(clip, pool, random_filters(16))
        frames = [spoken_clips.frame(clip, pool, second) for second in range(10)]
        np.testing.assert_array_equal(pictures, patches(frames, random_filters(16)))
        for ours, modality, tolerance in ((sound, "audio", 0.1), (pictures, "video", 0.05)):
            coded = read_zip(tmp_path / "out" / modality / "zip" / f"{name}.zip")
            assert coded.shape == ours.shape
            error = np.linalg.norm(coded - ours) / np.linalg.norm(ours)
            print(name, modality, round(float(error), 4))
            assert error < tolerance


# ---------------------------------------------------------------------------------------------------- the tree
def test_parts_share_no_recording_and_no_image(recordings):
    speech, images = spoken_sources.read_speech(recordings), spoken_sources.read_images(recordings)
    assert len(speech.waves) == 3000 and len(set(speech.speaker)) == 6 and len(images.digit) == 10_000
    pools = {part: spoken_clips.pool(part, speech, images) for part in ("train", "val", "test")}
    assert {part: (len(pool.waves), len(pool.pixels)) for part, pool in pools.items()} == {
        "train": (2400, 7000), "val": (300, 1000), "test": (300, 2000)}
    official = {speech.waves[k].tobytes() for k in np.flatnonzero(speech.index < 5)}
    said = {part: {wave.tobytes() for wave in pool.waves} for part, pool in pools.items()}
    shown = {part: {image.tobytes() for image in pool.pixels} for part, pool in pools.items()}
    assert said["test"] == official
    for content in (said, shown):
        assert not content["train"] & content["test"] and not content["val"] & (content["train"] | content["test"])
    for pool in pools.values():
        assert (np.bincount(pool.said) == len(pool.said) // 10).all() and np.bincount(pool.shown).min() > 60


def test_the_tree_has_the_published_layout(spoken_data):
    table = pd.read_csv(place(spoken_data, "vggsound.csv"))
    assert dict(table["split"].value_counts()) == {"train": CLIPS, "val": CLIPS // 8, "test": CLIPS // 8}
    paths = {name: place(spoken_data, f"vggsound.{name}")
             for name in ("csv", "audio", "video", "text", "label", "categories")}
    item = VGGSound(paths, with_labels=True)[0]
    assert item["audio"].shape == (10, 128) and item["video"].shape == (10, 7, 7, 16)
    assert item["text"].shape == (10, 768)
    with h5py.File(place(spoken_data, "ave.label")) as file:
        label = file["avadataset"][:]
    with h5py.File(place(spoken_data, "ave.audio")) as file:
        loud = file["avadataset"][:].max(-1)
    event = label[..., -1] == 0
    assert event.sum(1).min() >= 4 and (loud[event] > 1).all() and (loud[~event] == 0).all()
    assert prepare.main(["check", "--dataset", "vggsound_AVT", "--data_root", str(spoken_data)]) == 0
    for name in ("ave", "avvp", "ave_avvp", "ucf_vggsound", "retrieval"):
        assert prepare.main(["check", "--dataset", name, "--data_root", str(spoken_data)]) == 0


def test_another_cut_has_other_features_and_other_parts(spoken_data, tmp_path, recordings):
    other_cut.main(["--recordings", str(recordings), "--out", str(tmp_path / "other"), "--clips", str(CLIPS)])
    item = VGGSound({name: place(tmp_path / "other", f"vggsound.{name}") for name in (
        "csv", "audio", "video", "text", "label", "categories")}, with_labels=True)[0]
    loud, lit = item["audio"].max(-1), item["video"].max((1, 2, 3))
    assert item["audio"].shape == (10, 128) and item["video"].shape == (10, 7, 7, 16)
    assert ((loud > 0) == (lit > 0)).all() and 4 <= (loud > 0).sum() <= 10
    cuts = other_cut.OtherCut.cut, spoken_clips.OFFICIAL
    assert all(not set(range(50)[cut.takes["train"]]) & set(range(50)[cut.takes["test"]]) for cut in cuts)
    refused("contains something else", spoken_tree.build, tmp_path / "other", DATA_PATHS, recordings, clips=CLIPS)


def test_a_tree_is_kept_and_nothing_else_is_overwritten(spoken_data, tmp_path, recordings):
    assert not spoken_tree.build(spoken_data, DATA_PATHS, tmp_path / "nowhere", clips=CLIPS, progress=False)
    refused("contains something else", spoken_tree.build, spoken_data, DATA_PATHS, recordings, clips=CLIPS + 10)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    refused("contains something else", spoken_tree.build, tmp_path / "mine", DATA_PATHS, recordings, clips=CLIPS)
    refused("--clips 10", spoken_tree.build, tmp_path / "new", DATA_PATHS, recordings, clips=10)
    refused("not found", spoken_tree.build, tmp_path / "new", DATA_PATHS, tmp_path / "nowhere", clips=CLIPS)
    assert not (tmp_path / "new").exists()


def test_from_recordings_to_a_report(recordings, spoken_data, tmp_path, small_model, capsys, monkeypatch):
    (tmp_path / "data").symlink_to(spoken_data)                     # which is kept, as it is complete
    monkeypatch.setitem(PRESETS["spoken"]["downstream"], "n_epoch", 1)          # of the heads
    monkeypatch.setattr(pictures, "_draw_file", lambda *args: [])               # most pictures: test_pictures.py
    roots = [text for name in ("data", "checkpoint", "runs") for text in (f"--{name}_root", str(tmp_path / name))]
    spoken.main([*roots, "--recordings", str(recordings), "--clips", str(CLIPS), "--figures", str(tmp_path / "figs"),
                 "--n_epoch", "1", "--n_embeddings", "24", "--gpu", "cpu", "--dataset_name", "vggsound"])
    shown = capsys.readouterr().out
    assert "Spoken Digits in the form of AVE, AVVP, AVE>AVVP, UCF/VGG\nDCID-model-0.pt (audio+video)" in shown
    assert "report" in shown
    folder = tmp_path / "runs" / "dcid-seed0"
    assert 'alt="examples"' in (folder / "report.html").read_text(encoding="utf-8")
    tasks = {line.split('"task": "')[1].split('"')[0] for line in (folder / "results.jsonl").read_text().splitlines()}
    assert {"ave", "avvp", "ave_avvp", "ucf_vggsound"} <= tasks
