"""What goes wrong with videos: each case ends as a status and a line of the report, and the rest goes on."""

import csv
import json
from dataclasses import replace

import av
import numpy as np
import pytest

import prepare
from cmg.data.archive import read_zip
from cmg.extract import audio, clip, encoders, media
from cmg.extract.audio import logmel_of_patches
from conftest import message, refused
from made_videos import damage, make_video, picture, rotate_header

OFFLINE = ["--audio-encoder", "logmel", "--video-encoder", "patches"]


def features(folder, out, *more):
    """Run the real command; (exit code, rows of the report by id)."""
    code = prepare.main(["features", str(folder), "--out", str(out), *OFFLINE, *map(str, more)])
    with open(out / "report.csv", newline="") as file:
        return code, {row["id"]: row for row in csv.DictReader(file)}


def one(folder, tmp_path, *more):
    """(exit code, the only row, audio, video) of a folder with one file."""
    code, rows = features(folder, tmp_path / "out", *more)
    (name, row), = rows.items()
    arrays = [read_zip(path) if path.exists() else None
              for path in (tmp_path / "out" / m / "zip" / f"{name}.zip" for m in ("audio", "video"))]
    return code, row, *arrays


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def test_no_sound(videos, tmp_path):
    make_video(videos / "a.mp4", audio=None)
    code, row, sound, pictures = one(videos, tmp_path)
    assert (code, row["status"]) == (1, "no_audio") and sound is None and pictures.shape == (10, 7, 7, 32)
    assert (tmp_path / "out" / "video_name_checked.csv").read_text() == "id\n"


def test_silence_for_missing_sound_is_asked_for_and_said(videos, tmp_path):
    make_video(videos / "a.mp4", audio=None)
    code, row, sound, _ = one(videos, tmp_path, "--silence-for-missing")
    silence = logmel_of_patches(np.full((1, 96, 64), audio.SILENCE))
    assert code == 0 and sound.shape == (10, 128) and (sound == silence).all() and "silence" in row["warning"]


def test_silent_sound_warns(videos, tmp_path):
    make_video(videos / "a.mp4", audio="silence", seconds=3)
    code, row, sound, _ = one(videos, tmp_path, "--seconds", "3")
    assert code == 0 and not sound.any() and "silence throughout" in row["warning"]


@pytest.mark.parametrize("form", ["wav", "cover"])
def test_no_pictures(videos, tmp_path, form):
    if form == "wav":
        make_video(videos / "a.wav", video=False, seconds=2, audio_codec="pcm_s16le")
    else:
        make_video(videos / "a.mp4", cover=True, video=False, codec="png", pixels="rgb24", seconds=2)
    code, row, sound, pictures = one(videos, tmp_path, "--seconds", "2")
    assert (code, row["status"]) == (1, "no_video") and pictures is None and sound.shape == (2, 128) and sound.any()


@pytest.mark.parametrize("layout, codec", [("mono", "pcm_s16le"), ("5.1", "pcm_s16le"), ("stereo", "pcm_u8"),
                                           ("stereo", "pcm_s24le"), ("stereo", "pcm_f32le")])
def test_channels_and_sample_types_give_the_same_sound(videos, layout, codec):
    make_video(videos / "plain.wav", video=False, seconds=2, audio_codec="pcm_s16le")
    make_video(videos / "other.wav", video=False, seconds=2, audio_codec=codec, layout=layout)
    plain, other = (np.concatenate(list(media.Media(videos / name).seconds_of_sound())) for name in
                    ("plain.wav", "other.wav"))
    assert other.dtype == np.int16 and other.shape == (88200, {"mono": 1, "5.1": 6}.get(layout, 2))
    tolerance = 300 / 32768 if codec == "pcm_u8" else 2 / 32768
    np.testing.assert_allclose(audio.mono(other), audio.mono(plain), atol=tolerance)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_sound_that_starts_late_is_placed_on_the_clock(videos, tmp_path, ending):
    make_video(videos / f"a.{ending}", seconds=4, audio_seconds=2.5, delay=1.5, audio_codec="aac")
    code, row, sound, _ = one(videos, tmp_path, "--seconds", "4")
    loud = np.abs(np.concatenate(list(media.Media(videos / f"a.{ending}").seconds_of_sound()))).max(1) > 1000
    assert code == 0 and "late" in row["warning"] and not sound[0].any() and sound[1:].any(1).all()
    assert abs(loud.argmax() / 44100 - 1.5) < 0.03


def test_tags_that_are_not_utf_8_are_no_defect(videos, tmp_path):
    path = make_video(videos / "a.mkv", seconds=3)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))
    assert path.read_bytes() != content
    code, row, *_ = one(videos, tmp_path, "--seconds", "3")
    assert code == 0 and row["status"] == "ok"


def test_short_clip_has_its_whole_seconds(videos, tmp_path):
    make_video(videos / "a.mp4", seconds=6.4)
    code, row, sound, pictures = one(videos, tmp_path)
    assert code == 0 and len(sound) == len(pictures) == 6 and row["rows"] == "6"
    assert "6 of 10 rows" in row["warning"]


def test_half_a_second_is_a_row_of_pictures_and_not_of_sound(videos, tmp_path):
    make_video(videos / "a.mp4", seconds=6.6)
    _, row, sound, pictures = one(videos, tmp_path)
    assert len(sound) == 6 and len(pictures) == 7 and row["rows"] == "audio 6, video 7"


def test_under_a_second_is_too_short(videos, tmp_path):
    make_video(videos / "a.mp4", seconds=0.8)
    code, row, sound, pictures = one(videos, tmp_path)
    assert (code, row["status"]) == (1, "too_short") and sound is None and pictures is None


def test_long_clip_gives_its_first_seconds_and_is_not_decoded_further(videos, tmp_path):
    make_video(videos / "long.mp4", seconds=20)
    make_video(videos / "cut.mp4", seconds=10)
    code, rows = features(videos, tmp_path / "out", "--clock", "time")
    assert code == 0 and int(rows["long"]["frames"]) <= 265
    for modality in ("audio", "video"):
        long, cut = (read_zip(tmp_path / "out" / modality / "zip" / f"{name}.zip") for name in ("long", "cut"))
        np.testing.assert_allclose(long, cut, atol=0.05)


def test_start_is_sought(videos, tmp_path):
    make_video(videos / "a.mp4", seconds=12)
    _, row, sound, pictures = one(videos, tmp_path, "--start", "7", "--seconds", "3", "--clock", "time")
    whole = media.Media(videos / "a.mp4")
    frames = [media.rgb(frame) for frame, first, end in whole.timeline() for _ in range(first, end)]
    encoder = encoders.PatchPictures(clip.video.random_filters())
    table = clip.video.at_rate(25, 3) + 7 * 25
    wanted = np.stack([encoder.encode([encoder.prepare(frames[k]) for k in row]).mean(0, dtype=float) for row in table])
    np.testing.assert_allclose(pictures, wanted, atol=1e-6)
    seconds = list(whole.seconds_of_sound())[7:10]
    np.testing.assert_allclose(sound, encoders.LogMelSound(audio.FrontEnd()).encode(seconds, 44100), atol=0.02)


def fps_filter(path, rate):
    """Frames through FFmpeg's own fps filter."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source, fps, sink = graph.add_buffer(template=stream), graph.add("fps", str(rate)), graph.add("buffersink")
        source.link_to(fps)
        fps.link_to(sink)
        graph.configure()
        frames = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    frames.append(graph.pull().to_ndarray(format="rgb24"))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return frames


def test_variable_frame_rate_is_as_ffmpegs_fps_filter(videos):
    times = [0, 40, 80, 90, 100, 400, 440, 1000, 1010, 1020, 1500, 1540, 2960]
    path = make_video(videos / "a.mkv", times=times, audio=None)
    opened = media.Media(path)
    ours = [media.rgb(frame) for frame, first, end in opened.timeline() for _ in range(first, end)]
    theirs = fps_filter(path, opened.facts.frame_rate)
    assert abs(len(ours) - len(theirs)) <= 1                # the last frame's length is the container's guess
    assert all((a == b).all() for a, b in zip(ours, theirs))


def test_repeated_frames_are_encoded_once(videos):
    path = make_video(videos / "a.mkv", times=[0, 1000, 2000, 3000], audio=None)
    seen = []

    class Counting(encoders.PatchPictures):
        def encode(self, frames):
            seen.extend(frames)
            return super().encode(frames)

    made = clip.extract(path, "a", clip.Timing(3, clock="time"), pictures=Counting(clip.video.random_filters()))
    assert made.row.status == "ok" and len(made.video) == 3 and 3 <= len(seen) <= 4


@pytest.mark.parametrize("degrees", [90, 180])
def test_rotated_phone_video_is_upright(videos, degrees):
    path = make_video(videos / "a.mp4", seconds=1, audio=None)
    plain = [media.rgb(frame) for frame, *_ in media.Media(path).timeline()][0]
    rotate_header(path, degrees)
    turned = [media.rgb(frame) for frame, *_ in media.Media(path).timeline()][0]
    assert (turned == np.rot90(plain, -degrees // 90)).all()        # the matrix turns clockwise


def test_file_cut_before_its_index_is_unreadable_and_the_rest_goes_on(videos, tmp_path):
    data = make_video(videos / "whole.mp4", seconds=2).read_bytes()
    (videos / "cut.mp4").write_bytes(data[:len(data) // 2])
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("no video " * 1000)
    code, rows = features(videos, tmp_path / "out", "--seconds", "2")
    assert code == 1 and {name: row["status"] for name, row in rows.items()} == {
        "whole": "ok", "cut": "unreadable", "empty": "unreadable", "text": "unreadable"}
    assert "cut.mp4" in rows["cut"]["warning"]


def test_few_damaged_packets_are_skipped_many_refused(videos, tmp_path):
    for name in ("few", "many"):
        make_video(videos / f"{name}.ts", size=(320, 240), seconds=10)
    damage(videos / "few.ts", 0.001, seed=3)
    damage(videos / "many.ts", 0.5)
    code, rows = features(videos, tmp_path / "out")
    assert code == 1 and rows["many"]["status"] in ("damaged", "unreadable") and rows["few"]["status"] == "ok"
    assert "damaged" in rows["few"]["warning"]
    assert not (tmp_path / "out" / "video" / "zip" / "many.zip").exists()


@pytest.mark.parametrize("codec, pixels, size, ending", [
    ("libx264", "yuv420p10le", (64, 48), "mkv"), ("ffv1", "yuv444p", (61, 37), "mkv"),
    ("png", "rgba", (64, 48), "mov")])
def test_ten_bits_odd_sizes_and_alpha(videos, codec, pixels, size, ending):
    path = make_video(videos / f"a.{ending}", seconds=1, codec=codec, pixels=pixels, size=size, audio=None)
    frames = [media.rgb(frame) for frame, *_ in media.Media(path).timeline()]
    assert len(frames) == 25 and frames[3].shape == (size[1], size[0], 3)
    assert np.abs(frames[3].astype(int) - picture(3, *size)).mean() < 20


def test_other_files_are_skipped_and_spaces_are_names(videos, tmp_path, capsys):
    make_video(videos / "two words.mp4", seconds=1)
    (videos / "notes.txt").write_text("x")
    code, rows = features(videos, tmp_path / "out", "--seconds", "1")
    assert code == 0 and list(rows) == ["two words"] and "notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize("names, more", [(("a.mp4", "a.webm"), ()), (("abcdefghijk_1.mp4", "abcdefghijk_2.mp4"),
                                                                      ("--id", "youtube"))])
def test_two_files_of_one_id_are_refused_by_name(videos, tmp_path, names, more):
    for name in names:
        (videos / name).write_bytes(b"")
    text = message(features, videos, tmp_path / "out", *more)
    assert all(name in text for name in names)


def test_folder_without_videos(videos, tmp_path):
    (videos / "notes.txt").write_text("x")
    for place in (videos, videos / "absent"):
        refused("videos?[ ;]", features, place, tmp_path / "out")


def test_a_crash_in_one_clip_is_its_own(videos, tmp_path, monkeypatch):
    for name in "abc":
        make_video(videos / f"{name}.mp4", seconds=1)
    mask = media.Media.timeline

    def broken(self, limit=None):
        if self.path.stem == "b":
            raise RuntimeError("decoder fell over")
        return mask(self, limit)

    monkeypatch.setattr(media.Media, "timeline", broken)
    code, rows = features(videos, tmp_path / "out", "--seconds", "1")
    assert code == 1 and [rows[name]["status"] for name in "abc"] == ["ok", "error", "ok"]
    assert "decoder fell over" in rows["b"]["warning"]
    monkeypatch.undo()
    code, rows = features(videos, tmp_path / "out", "--seconds", "1")           # tried again
    assert code == 0 and rows["b"]["status"] == "ok"


def test_what_readers_would_refuse_is_not_written(videos, tmp_path, monkeypatch):
    make_video(videos / "a.mp4", seconds=3)
    monkeypatch.setattr(clip, "LIMITS", replace(clip.LIMITS, array_bytes=10_000))
    code, row, _, pictures = one(videos, tmp_path, "--seconds", "auto")
    assert (code, row["status"]) == (1, "too_long") and pictures is None


def test_settings_are_recorded_and_not_mixed(videos, tmp_path):
    make_video(videos / "a.mp4", seconds=1)
    features(videos, tmp_path / "out", "--seconds", "1")
    record = json.loads((tmp_path / "out" / "features.json").read_text())
    assert record["settings"]["audio"]["resampler"] == "r022" and record["versions"]["av"] == av.__version__
    refused("resampler", features, videos, tmp_path / "out", "--seconds", "1", "--resampler", "r043")
