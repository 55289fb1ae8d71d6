"""Tables and videos as people have them: quotation marks, contradictions, names, turned pictures, tracks, clocks."""

import csv
import os
import unicodedata

import av
import numpy as np
import pytest

import prepare
from cmg.data.csv import read_header, read_rows
from cmg.data.manifest import Manifest
from cmg.data.sets.vggsound import read_list
from cmg.data.text import read_prompts
from cmg.extract import audio, clip, encoders, run, video
from cmg.extract.media import Media, rgb
from conftest import message
from made_videos import make_video, picture

OFFLINE = ["--audio-encoder", "logmel", "--video-encoder", "patches"]


def features(folder, out, *more):
    return prepare.main(["features", str(folder), "--out", str(out), *OFFLINE, "--seconds", "2", *map(str, more)])


def report(out):
    """Lines of a report, by clip."""
    with open(out / "report.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A video of two seconds, (48, 64) pixels."""
    return make_video(tmp_path_factory.mktemp("short") / "a.mp4", seconds=2, audio_rate=16000, layout="mono")


def folder_of(short, path, *names):
    """A folder with the video under some names."""
    path.mkdir()
    for name in names:
        os.link(short, path / name)
    return path


# ----------------------------------------------------------------------------------------------------------- tables
READERS = {"manifest": (Manifest, "id,split,label,prompt"), "prompts": (read_prompts, "label,prompt,other,more"),
           "list": (read_list, "category,video_id,split,more")}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("cells", [
    ['"open,d,e,f', "g,h,i,j"],                 # never closed
    ['"open,d,e,f', 'g,h,i",j'],                # closed a row below
    ['a,b,c,"open', 'g,h,i,"j"'],               # closed before another one
    ['a,b,"open,c', 'g",h,i,j'],                # closed just before a comma
    ['a,b,c,"x" y', "g,h,i,j"]])                # closed within a cell
def test_a_quotation_mark_swallows_no_row(reader, cells, tmp_path):
    read, header = READERS[reader]
    path = tmp_path / "list.csv"
    path.write_text("\n".join([header, "a1,train,c,d", *cells, ""]))
    assert f"{path}: line 3 cannot be read as csv" in message(read, path)


def test_quoted_cells_are_read(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b'id,split,label,prompt\r\na,train,"x, y","he said ""hi"""\r\nb,train,z,5" nail\r\n')
    assert [cells for _, cells in read_rows(path, ("id", "label", "prompt"))] == [
        {"id": "a", "label": "x, y", "prompt": 'he said "hi"'}, {"id": "b", "label": "z", "prompt": '5" nail'}]


def test_vggsounds_own_lists_have_no_header(tmp_path):
    path = tmp_path / "vggsound.csv"
    path.write_text('---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"bird chirping, tweeting",train\n')
    assert read_list(path) == (["--0PQM4-hqg", "---g-f_I2yQ"], ["bird chirping, tweeting", "people marching"])
    path.write_text("glLQrEijrKg_000300.mp4,playing hammond organ\n")
    assert read_header(path) == ["file", "label"]


@pytest.mark.parametrize("table, more, finding", [
    ("file,label,split\na,x,train\na,x,test\n", (), "line 3: a is in test, but in train in line 2"),
    ("file,label\na,x\nb,x\na,y\n", (), "line 4: a has the label 'y', but 'x' in line 2"),
    ("file,label\na,x\na,x\n", (), "line 3: a is already in line 2"),
    ("file,label,begin\na,x,0\na.mp4,x,1\n", ("--start", "begin"), "line 3: a"),
    ("file,label,begin,onset,offset\na,x,0,0,1\na,y,1,1,2\n", ("--start", "begin"), "line 3: a starts at 1"),
    ("file,label,onset\na,x,1\n", (), "column 'onset' but no column 'offset'"),
    ("file,label\nA.mp4,x\nb,x\n", (), "line 2: no video 'A', but 'a'"),
    ("file,label\nz,x\n", (), "none of its 1 clips, such as 'z', matches a video, such as a.mp4"),
    ("a,b\n1,2\n", (), "columns a, b"), ("file,label\na,\n", (), "no label"),
    ("file,label,split\na,dog,dev\n", (), "split 'dev'"),
    ("file,label,begin\na,dog,soon\n", ("--start", "begin"), "line 2: the start is 'soon'"),
    ("a,x,train\n", ("--columns", "id,label,kind"), None), ("a,x\n", ("--columns", "id,name"), "columns id, name"),
    ("a,x\n", (), "use --columns for a table without a header"),
    (None, (), "check --labels")])
def test_a_table_that_contradicts_itself_is_refused(table, more, finding, short, tmp_path):
    videos = folder_of(short, tmp_path / "videos", "a.mp4", "b.mp4")
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    arguments = (videos, tmp_path / "out", "--labels", tmp_path / "labels.csv", *more)
    if finding:
        assert finding in message(features, *arguments) and not (tmp_path / "out").exists()
    else:
        assert features(*arguments) == 0 and Manifest(tmp_path / "out" / "clips.csv").ids(("train",)) == ["a"]


def test_names_are_the_same_in_both_forms_of_unicode(short, tmp_path):
    composed, decomposed = "pi\xf1ata", unicodedata.normalize("NFD", "pi\xf1ata")
    videos = folder_of(short, tmp_path / "videos", f"{decomposed}.mp4")
    (tmp_path / "labels.csv").write_text(f"file,label\n{composed}.mp4,x\n", encoding="utf-8")
    assert features(videos, tmp_path / "out", "--labels", tmp_path / "labels.csv") == 0
    assert list(Manifest(tmp_path / "out" / "clips.csv").clips) == [composed]
    assert "has the same id" in message(run.by_id, [videos / f"{name}.mp4" for name in (composed, decomposed)], "stem")


def test_a_start_that_is_no_time_of_the_video_is_the_clips_own(short, tmp_path):
    videos = folder_of(short, tmp_path / "videos", *(f"{name}.mp4" for name in "abcd"))
    (tmp_path / "starts.csv").write_text("file,label,begin\na,x,inf\nb,x,-1\nc,x,99\nd,x,0\n")
    arguments = (videos, tmp_path / "out", "--labels", tmp_path / "starts.csv", "--start", "begin")
    assert features(*arguments) == 1
    found = report(tmp_path / "out")
    assert [found[name]["status"] for name in "abcd"] == ["bad_start"] * 3 + ["ok"]
    assert "starts.csv: line 2: the start is inf" in found["a"]["warning"]
    assert "line 4: the start, 99 s, is past the end of the file, 2.0" in found["c"]["warning"]
    (tmp_path / "starts.csv").write_text("file,label,begin\na,x,0\nb,x,0\nc,x,0\nd,x,0\n")
    assert features(*arguments) == 0


def test_no_list_of_the_user_is_written_over(short, tmp_path):
    videos = folder_of(short, tmp_path / "out", "a.mp4")
    (tmp_path / "out" / "clips.csv").write_text("file,label\na,x\n")
    assert "would overwrite the file" in message(features, videos, videos, "--labels", videos / "clips.csv")
    assert (videos / "clips.csv").read_text() == "file,label\na,x\n"


@pytest.mark.parametrize("category", ["{}", "../../../up", "..", "a/b"])
def test_a_category_is_no_path(category, short, tmp_path):
    videos, outside = folder_of(short, tmp_path / "videos", "a.mp4"), tmp_path / "outside"
    (tmp_path / "s4.csv").write_text(f"name,category,split\na,{category.format(outside)},train\n")
    assert "line 2" in message(features, videos, tmp_path / "out", "--preset", "avsbench", "--labels",
                               tmp_path / "s4.csv")
    assert not outside.exists() and not list(tmp_path.glob("up*")) and not (tmp_path / "out").exists()


def test_sounds_that_this_command_wrote_are_no_videos(short, tmp_path):
    videos = folder_of(short, tmp_path / "videos", "a.mp4")
    (tmp_path / "s4.csv").write_text("name,category,split\na,x,train\n")
    for _ in range(2):
        assert prepare.main(["features", str(videos), "--out", str(videos), *OFFLINE, "--preset", "avsbench",
                             "--labels", str(tmp_path / "s4.csv")]) == 0
    assert list(report(videos)) == ["a"] and (videos / run.SOUNDS / "train" / "x" / "a.wav").exists()


def test_linked_folders_are_entered_once_and_dangling_links_named(short, tmp_path):
    videos = folder_of(short, tmp_path / "videos", "a.mp4")
    folder_of(short, tmp_path / "elsewhere", "b.mp4")
    os.symlink(tmp_path / "elsewhere", videos / "dogs")
    os.symlink(videos, tmp_path / "elsewhere" / "loop")
    os.symlink(tmp_path / "elsewhere" / "b.mp4", videos / "c.mp4")
    os.symlink(tmp_path / "nowhere.mp4", videos / "d.mp4")
    os.symlink("e.mp4", videos / "e.mp4")
    files, skipped = run.find_videos([videos])
    assert files == [videos / "a.mp4", videos / "c.mp4", videos / "dogs" / "b.mp4"]
    assert skipped == [(videos / name, "links to files that do not exist") for name in ("d.mp4", "e.mp4")]


# ----------------------------------------------------------------------------------------------------------- pictures
def set_matrix(path, a, b, c, d):
    """Write a display matrix into the first track header of an mp4, in 16.16 numbers."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    for offset, value in ((0, a), (4, b), (12, c), (16, d)):
        data[at + offset:at + offset + 4] = (round(value * 65536) & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


def first_frame(path):
    return rgb(next(Media(path).timeline())[0])


def shown(pixels, a, b, c, d):
    """Where the matrix puts each pixel: (x, y) -> (a x + c y, b x + d y), moved back to positive coordinates."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    at_x, at_y = a * x + c * y, b * x + d * y
    result = np.zeros((np.ptp(at_y) + 1, np.ptp(at_x) + 1, 3), np.uint8)
    result[at_y - at_y.min(), at_x - at_x.min()] = pixels
    return result


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                                    (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)])
@pytest.mark.parametrize("degrees, scale", [(0, 1), (3, 1), (-3, 2), (40, 1), (-44, 1)])
def test_pictures_are_turned_and_mirrored_as_their_matrix_says(matrix, degrees, scale, short, tmp_path):
    plain, path = first_frame(short), tmp_path / "a.mp4"
    path.write_bytes(short.read_bytes())
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b, c, d = matrix                                         # first the matrix, then a small turn
    set_matrix(path, scale * (a * cos - b * sin), scale * (a * sin + b * cos), c * cos - d * sin, c * sin + d * cos)
    assert np.array_equal(first_frame(path), shown(plain, *matrix))


def test_a_gif_is_a_video(tmp_path):
    with av.open(str(tmp_path / "a.gif"), "w") as out:
        stream = out.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for k in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), "rgb24").reformat(format="rgb8")))
        out.mux(stream.encode(None))
    made = clip.extract(run.find_videos([tmp_path])[0][0], "a", clip.Timing(None), None,
                        encoders.PatchPictures(video.random_filters()))
    assert made.video.shape == (3, 7, 7, 32) and made.row.frames == "30"
    assert first_frame(tmp_path / "a.gif")[2].mean() > 230                          # the bright bar at the top


# ----------------------------------------------------------------------------------------------------------- tracks
def many_tracks(path, sizes, tones, default):
    """A Matroska file with a video track for each size and a sound for each (hertz, channels); `default`: numbers of
    the tracks marked as default, videos first."""
    with av.open(str(path), "w") as out:
        videos = [out.add_stream("mpeg4", rate=25, width=w, height=h, pix_fmt="yuv420p") for w, h in sizes]
        sounds = [out.add_stream("pcm_s16le", rate=16000, layout="stereo" if n == 2 else "mono") for _, n in tones]
        for k, stream in enumerate([*videos, *sounds]):
            stream.disposition = av.stream.Disposition.default if k in default else av.stream.Disposition(0)
        for stream in videos:
            for k in range(25):
                frame = av.VideoFrame.from_ndarray(picture(k, stream.width, stream.height), "rgb24")
                out.mux(stream.encode(frame.reformat(format="yuv420p")))
            out.mux(stream.encode(None))
        for stream, (hertz, channels) in zip(sounds, tones):
            wave = (9000 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], "s16",
                                               "stereo" if channels == 2 else "mono")
            frame.sample_rate = 16000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                out.mux(packet)
    return path


@pytest.mark.parametrize("sizes, tones, default, width, hertz", [
    ([(64, 48)], [(440, 1)], (), 64, 440), ([(64, 48), (96, 64)], [(440, 1), (880, 1)], (), 96, 440),
    ([(64, 48), (96, 64)], [(440, 1), (880, 1)], (0, 3), 64, 880), ([(64, 48)], [(440, 1), (880, 2)], (), 64, 880),
    ([(64, 48)], [(440, 1), (880, 2)], (1,), 64, 440)])
def test_tracks_are_chosen_as_by_ffmpeg(sizes, tones, default, width, hertz, tmp_path):
    media = Media(many_tracks(tmp_path / "a.mkv", sizes, tones, default))
    assert rgb(next(media.timeline())[0]).shape[1] == width
    assert np.abs(np.fft.rfft(next(media.seconds_of_sound(1))[:, 0])).argmax() == hertz
    assert len(media.warnings) == (len(sizes) > 1) + (len(tones) > 1)


# ------------------------------------------------------------------------------------------------------------- clocks
def tones_of(path, start=0.0):
    """(frames, loudest hertz of each second) of a file."""
    media = Media(path, start)
    end = max((end for _, _, end in media.timeline()), default=0)
    return end, [int(np.abs(np.fft.rfft(second[:, 0])).argmax()) for second in media.seconds_of_sound()
                 if len(second) == media.facts.audio_rate], media.warnings


@pytest.mark.parametrize("ending, codec", [("ts", "libx264"), ("mpg", "mpeg1video")])
def test_files_joined_by_cat_go_on(ending, codec, tmp_path):
    parts = [make_video(tmp_path / f"{n}.{ending}", seconds=n, codec=codec, audio_codec="mp2", audio_rate=48000)
             for n in (3, 2)]
    for order in (parts, parts[::-1]):
        (tmp_path / f"all.{ending}").write_bytes(b"".join(part.read_bytes() for part in order))
        frames, tones, warnings = tones_of(tmp_path / f"all.{ending}")
        assert abs(frames - 125) <= 1 and tones[:3] == ([200, 400, 600] if order is parts else [200, 400, 200])
        assert not warnings
    frames, tones, _ = tones_of(tmp_path / f"all.{ending}", start=2.0)             # within the second part
    assert abs(frames - 75) <= 1 and tones[:2] == [200, 400]


def moving_clock(path, seconds, offset=0, gap=range(0)):
    """A transport stream whose clock starts at `offset`; in `gap` there is no sound. Interleaved as broadcast
    is: the sound of a time comes after its pictures."""
    with av.open(str(path), "w", options={"output_ts_offset": str(offset)}) as out:
        videos = out.add_stream("mpeg2video", rate=25, width=64, height=48, pix_fmt="yuv420p")
        sounds = out.add_stream("mp2", rate=48000, layout="mono")
        for second in range(seconds):
            for k in range(25 * second, 25 * second + 25):
                out.mux(videos.encode(av.VideoFrame.from_ndarray(picture(k), "rgb24").reformat(format="yuv420p")))
            wave = 9000 * np.sin(2 * np.pi * 200 * (1 + second) * np.arange(48000) / 48000)
            frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
            frame.sample_rate, frame.pts = 48000, 48000 * second
            for packet in () if second in gap else sounds.encode(frame):
                out.mux(packet)
        out.mux(videos.encode(None))
        out.mux(sounds.encode(None))
    return path


def test_a_clock_that_jumps_by_far_goes_on_and_a_gap_stays_one(tmp_path):
    parts = [moving_clock(tmp_path / "0.ts", 3), moving_clock(tmp_path / "1.ts", 2, 1000)]
    for order, tones in (((0, 1), [200, 400, 600, 200]), ((1, 0), [200, 400, 200, 400])):
        (tmp_path / "all.ts").write_bytes(b"".join(parts[k].read_bytes() for k in order))
        frames, heard, warnings = tones_of(tmp_path / "all.ts")
        assert abs(frames - 125) <= 1 and heard[:4] == tones and not warnings
        assert rows_of(tmp_path / "all.ts", None).row.frames == str(frames)
    frames, heard, warnings = tones_of(moving_clock(tmp_path / "gap.ts", 16, gap=range(2, 14)))
    assert frames == 400 and "is missing for 12" in warnings[0] and heard[4:13] == [0] * 9 and len(heard) >= 15


def test_a_clock_that_may_not_start_again_ends_both_tracks(tmp_path):
    part = make_video(tmp_path / "a.mkv", seconds=2, audio_codec="pcm_s16le", audio_rate=16000).read_bytes()
    (tmp_path / "all.mkv").write_bytes(part + part)
    frames, tones, warnings = tones_of(tmp_path / "all.mkv")
    assert frames == 50 and tones == [200, 400] and "the time stamps restart after" in warnings[0]


def test_channels_that_cancel_each_other_are_silence(tmp_path):
    import wave
    wave_form = (9000 * np.sin(np.arange(32000))).astype("<i2")
    for name, other in (("opposite", -wave_form), ("apart", wave_form[::-1])):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((2, 2, 16000, 0, "NONE", ""))
            file.writeframes(np.stack([wave_form, other], 1).tobytes())
        made = clip.extract(tmp_path / f"{name}.wav", name, clip.Timing(2), encoders.LogMelSound(audio.FrontEnd()))
        assert ("opposite phases" in made.row.warning) == (name == "opposite")


@pytest.fixture(scope="module")
def six_seconds(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("six") / "a.mp4", seconds=6, audio_rate=16000, layout="mono")


def rows_of(path, seconds, rate=1.0, hop=None):
    made = clip.extract(path, "a", clip.Timing(seconds, 4, rows_per_second=rate, hop=hop),
                        encoders.LogMelSound(audio.FrontEnd()), encoders.PatchPictures(video.random_filters()))
    assert made.row.status == "ok" and len(made.audio) == len(made.video)
    return made


@pytest.fixture(scope="module")
def by_second(six_seconds):
    """Its features with a row a second."""
    return rows_of(six_seconds, 6)


@pytest.mark.parametrize("seconds, rate, hop, rows", [
    (6, 0.5, None, 3), (6, 2, None, 12), (None, 10, None, 60), (6, 1, 0.5, 11), (None, 0.5, 1, 5), (6, 1, 2, 3),
    (6, 0.7, None, 4), (None, 3, 0.2, 29)])
def test_rows_of_other_clocks(seconds, rate, hop, rows, six_seconds, by_second):
    made = rows_of(six_seconds, seconds, rate, hop)
    assert len(made.audio) == rows and made.row.warning == ""
    for modality in ("audio", "video"):
        ours, plain = getattr(made, modality), getattr(by_second, modality)
        if rate == 0.5:                                         # a row of two seconds is the mean of both
            first = np.arange(rows) * (2 if hop is None else 1)
            assert np.allclose(ours, (plain[first] + plain[first + 1]) / 2, atol=1e-5)
        if rate == 1:                                           # rows that start where the plain ones do are these
            assert np.array_equal(ours[::2], plain) if hop == 0.5 else np.array_equal(ours, plain[::2])


def test_a_short_row_hears_the_second_around_it(six_seconds):
    made = rows_of(six_seconds, 6, 2)
    heard = np.concatenate(list(Media(six_seconds).seconds_of_sound()))[:, 0]
    own = audio.logmel_second(heard[round(3.25 * 16000):round(4.25 * 16000)].astype(np.int16))      # of row 3.5 to 4
    assert np.allclose(made.audio[7], own[0], atol=1e-5)


def test_a_clock_is_recorded_and_not_the_published_one(six_seconds, tmp_path, capsys):
    from cmg.data import origins
    (tmp_path / "labels.csv").write_text("file,label,onset,offset\na,x,1,2.5\n")
    arguments = ["features", str(six_seconds), "--out", str(tmp_path / "out"), *OFFLINE]
    more = ["--rows-per-second", "2", "--hop", "0.25", "--labels", str(tmp_path / "labels.csv")]
    assert prepare.main([*arguments, *more]) == 0
    found = origins.describe(tmp_path / "out" / "audio" / "zip", "audio")
    assert (found["rows_per_second"], found["hop"]) == (2, 0.25) and not origins.is_published(found)
    assert clip.Timing.of(37, found).seconds == 9.5 and clip.Timing.of(37, found).rows == 37
    assert clip.Timing.of(10, {"network": "logmel"}) == clip.Timing(10)
    assert origins.difference(found, {name: found[name] for name in ("network", "width")})
    assert (tmp_path / "out" / "clips.csv").read_text().splitlines()[1] == "a,train,x,4,10,x"       # rows, not seconds
    assert "expected the same settings" in message(prepare.main, [*arguments, *more[:2]])
    assert "--framing" in message(prepare.main, [*arguments, *more[:2], "--framing", "continuous"])
    for wrong in (["--rows-per-second", "0"], ["--hop", "inf"], ["--rows-per-second", "20"]):
        with pytest.raises(SystemExit):
            prepare.main([*arguments, *wrong])


def test_resizing_is_opencvs_where_it_is_installed():
    cv2 = pytest.importorskip("cv2")
    assert video._opencv() is cv2.resize
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (48, 64), (720, 1280), *rng.integers(1, 500, (20, 2))]:
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert np.array_equal(cv2.resize(frame, (224, 224)), video.bilinear(frame, 224))
