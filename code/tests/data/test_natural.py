"""Natural: sources that are refused, clips and their features, the tree in the published forms, and the whole way to a
result, on small made sources. What needs the real features is skipped where they are absent."""

import csv
import hashlib
import io
import json
import subprocess
import tarfile
import wave
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clip_retrieval
import natural as script
import prepare
from cmg.data import origins
from cmg.data.archive import read_zip
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.ave import AVE
from cmg.demos import natural, natural_clips, natural_sources
from cmg.demos.spoken_sources import RATE
from cmg.downstream.tasks import TASKS
from cmg.extract.audio import logmel_second
from cmg.extract.video import patches
from cmg.presets import PRESETS
from cmg.report import pictures
from cmg.utils.errors import InputError
from conftest import ROOT, refused

CLASSES, CLIPS = ("bell", "dog", "rain", "sea"), 60
PARTS = ("train", "val", "test")
READY = ROOT.parent / "shared" / "natural"


def tone(hertz, seconds, seed):
    """A wave file in memory: a tone and a little noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise, file = np.random.default_rng(seed).standard_normal(len(t)), io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((8000 * np.sin(2 * np.pi * hertz * t) + 300 * noise).astype(np.int16).tobytes())
    return file.getvalue()


def made_sources(folder, each=2):
    """Sounds of one pitch and pictures of one color for each class, `each` of them in each split."""
    rows = []
    for kind in natural_sources.KINDS:
        (folder / kind).mkdir(parents=True)
    for k, label in enumerate(CLASSES):
        for split in PARTS:
            for n in range(each):
                seed = 100 * k + 10 * PARTS.index(split) + n
                name = f"{label}_{split}_{n}"
                (folder / "sounds" / f"{name}.wav").write_bytes(tone(300 * (k + 1), 2 + 4 * n, seed))
                pixels = np.random.default_rng(seed).integers(0, 60, (32, 48, 3)) + 45 * k
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{name}.png")
                rows += [(f"sounds/{name}.wav", label, split), (f"photos/{name}.png", label, split)]
    with open(folder / "index.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "label", "split"), *rows])
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return made_sources(tmp_path_factory.mktemp("natural") / "sources")


@pytest.fixture(scope="module")
def features(sources, tmp_path_factory):
    """Clips of the made sources, with features by the extraction."""
    return natural_clips.make(tmp_path_factory.mktemp("made"), sources, natural_clips.Encoders(), CLIPS, progress=False)


@pytest.fixture(scope="module")
def tree(features, sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("natural_tree") / "tree"
    assert natural.build(out, DATA_PATHS, features, progress=False, sources=sources)
    return out


# ---------------------------------------------------------------------------------------------------- sources
def test_an_index_that_is_wrong_is_one_line(tmp_path):
    folder = made_sources(tmp_path / "sources")
    whole = (folder / "index.csv").read_text()
    first = "sounds/bell_train_0.wav,bell,train"
    assert first in whole and len(natural_sources.read_index(folder)) == 48
    (folder / "sounds" / "again.wav").write_bytes((folder / "sounds" / "bell_train_0.wav").read_bytes())
    lonely = "".join(line for line in whole.splitlines(True) if not line.startswith("photos/sea_val"))
    for content, reason in (
            (whole.replace("file,label,split", "file,class,split"), "no column 'label'.*file, label, split"),
            (whole.replace(first, "sounds/gone.wav,bell,train"), r"line 2: .*gone.wav does not exist"),
            (whole.replace(first, "../secret.wav,bell,train"), "line 2: the file '../secret.wav'; expected sounds"),
            (whole.replace(first, "/etc/passwd,bell,train"), "line 2: the file '/etc/passwd'"),
            (whole.replace(first, "sounds/bell_train_0.wav,bell,dev"), "line 2: split 'dev'; expected train"),
            (whole + "sounds/again.wav,bell,test\n", r"again.wav \(test\) has the content of .*_0.wav \(train\)"),
            (lonely, "no photos of 'sea' in the split val"), (whole.replace(",sea,", ",dog,"), "3 classes; expected 4"),
            (whole.replace(",sea,", ",sea&co,"), "the class 'sea&co'"), ("", "no column 'file'")):
        (folder / "index.csv").write_text(content)
        refused(reason, natural_sources.read_index, folder)
    refused(r"index.csv: not found; .*--sources", natural_sources.read_index, tmp_path)


def test_what_cannot_be_decoded_is_one_line(tmp_path):
    for name, content in (("text.wav", b"no sound at all" * 99), ("silence.wav", tone(0, 1, 0)[:44] + bytes(16000))):
        (tmp_path / name).write_bytes(content)
        refused(name, natural_clips.read_wave, tmp_path / name)
    (tmp_path / "text.jpg").write_bytes(b"no picture" * 99)
    refused("text.jpg: cannot be read as a photograph", natural_clips.read_photo, tmp_path / "text.jpg")


def published(folder):
    """A repository like ESC-50's and an archive like Caltech's: (repository, commit, archive)."""
    repository, archive = folder / "repository", folder / "caltech.zip"
    (repository / "audio").mkdir(parents=True)
    for number in (0, 1, 10, 12):                               # 12, fire, is no class of ours
        for fold in range(1, 6):
            (repository / "audio" / f"{fold}-{number}7-A-{number}.wav").write_bytes(tone(100 * number + fold, 1, fold))
    (repository / "LICENSE").write_text("attributions")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for step in ("init -q", "add .", "commit -qm sounds", "config uploadpack.allowFilter true",
                 "config uploadpack.allowAnySHA1InWant true"):
        subprocess.run([*git, *step.split()], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for kind in ("dalmatian", "rooster", "umbrella", "accordion"):
            for k in range(1, 11):
                content = f"{kind} {k}".encode()
                info = tarfile.TarInfo(f"101_ObjectCategories/{kind}/image_{k:04d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(natural_sources.INNER, inner.getvalue())
    return repository, commit, archive


def test_public_sources_are_verified_or_refused(tmp_path, monkeypatch, capsys):
    repository, commit, archive = published(tmp_path)
    monkeypatch.setattr(natural_sources, "ESC50", repository.as_uri())
    with pytest.raises(InputError, match="git fetch failed.*--sources"):         # the real commit is not in there
        natural_sources.fetch(tmp_path / "got")
    monkeypatch.setattr(natural_sources, "COMMIT", commit)
    monkeypatch.setattr(natural_sources, "CALTECH", archive.as_uri())
    refused("not the published file", natural_sources.fetch, tmp_path / "got")
    assert not (tmp_path / "got").exists() and not list(tmp_path.glob("*.tmp"))
    monkeypatch.setattr(natural_sources, "CALTECH_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    natural_sources.fetch(tmp_path / "got")
    assert "CC BY-NC 3.0" in capsys.readouterr().out and (tmp_path / "got" / "ESC-50_LICENSE").read_text()
    table = pd.read_csv(tmp_path / "got" / "index.csv")
    assert set(table["label"]) == {"dog", "rooster", "rain"} and len(table) == 3 * 5 + 3 * 10
    assert not (tmp_path / "got" / "ESC-50").exists() and not list((tmp_path / "got").glob("*.zip"))
    for _, row in table.iterrows():
        content, kind = (tmp_path / "got" / row["file"]).read_bytes(), row["file"].split("/")[0]
        fold = {"train": "123", "val": "4", "test": "5"}[row["split"]]
        assert row["file"][7] in fold if kind == "sounds" else content.startswith(
            {"dog": b"dalmatian", "rooster": b"rooster", "rain": b"umbrella"}[row["label"]])
    assert dict(table[table["file"].str.startswith("photos")]["split"].value_counts()) == {
        "train": 21, "val": 3, "test": 6}
    before = (tmp_path / "got" / "index.csv").stat().st_mtime_ns
    natural_sources.fetch(tmp_path / "got")                                     # there: nothing is asked for
    assert (tmp_path / "got" / "index.csv").stat().st_mtime_ns == before


# ---------------------------------------------------------------------------------------------------- clips
def test_a_sound_fills_the_clip_at_one_level_whatever_its_length():
    rng = np.random.default_rng(0)
    t = np.arange(natural_clips.RATE) / natural_clips.RATE
    for seconds in (0.5, 5, 20):
        wave = 2 ** 0.5 * np.tile(np.sin(2 * np.pi * 440 * t), 20)[:int(seconds * natural_clips.RATE)]
        sounds = np.stack([natural_clips.clip_sound(wave, rng) for _ in range(20)]).astype(float) / 32768
        assert sounds.shape == (20, natural_clips.SECONDS * natural_clips.RATE)
        loudest = 20 * np.log10(np.abs(sounds).max(1) / 2 ** 0.5)
        assert (np.abs(loudest - natural_clips.LEVEL) < natural_clips.GAIN + 1).all() and loudest.std() > 1
        assert (np.abs(sounds).reshape(20, -1, 800).max(2) > 0).all()           # noise in the pauses, too


def test_clips_pair_sources_of_one_class_and_split(features):
    table = pd.read_csv(features / "sources.csv")
    assert dict(table["split"].value_counts()) == {"train": CLIPS, "val": CLIPS // 15, "test": CLIPS // 9}
    for row in table.itertuples():
        assert row.sound.startswith(f"sounds/{row._3}_{row.split}")
        assert row.photo.startswith(f"photos/{row._3}_{row.split}")
    assert len(table) == len(list((features / "audio" / "zip").iterdir()))
    clips = natural.read(features)
    assert clips.features["audio"].shape == (len(table), 5, 128)
    assert clips.features["video"].shape == (len(table), 5, 7, 7, natural_clips.CHANNELS)
    assert {name: found["network"] for name, found in clips.origins.items()} == {"audio": "logmel", "video": "patches"}


def test_putting_seconds_together_is_extracting_what_is_put_together():
    rng = np.random.default_rng(0)
    sounds = [(3000 * rng.standard_normal(5 * 16000) * np.hanning(80000)).astype(np.int16) for _ in range(2)]
    pictures = rng.integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)
    cut = np.concatenate([sounds[0][:2 * 16000], sounds[1][2 * 16000:]])
    one, other = (logmel_second(sound) for sound in sounds)
    np.testing.assert_array_equal(logmel_second(cut), np.concatenate([one[:2], other[2:]]))
    mixed = logmel_second(np.sum(sounds, 0).clip(-32768, 32767).astype(np.int16))
    error = np.linalg.norm(natural.together(one, other) - mixed) / np.linalg.norm(mixed)
    assert error < 0.1 and error < np.linalg.norm(one - mixed) / np.linalg.norm(mixed)
    halves = pictures[0].copy()
    halves[:, 3 * 32:] = pictures[1][:, 3 * 32:]
    np.testing.assert_array_equal(patches(halves[None]), natural.together(*(patches(p[None]) for p in pictures)))


def test_a_composed_clip_has_its_events_and_background_elsewhere():
    keys, seconds = np.repeat(np.arange(5), 4), 5
    audio = np.repeat(keys[:, None, None], seconds, 1) + np.zeros(3) + np.arange(seconds)[:, None] / 10
    video = np.repeat(keys[:, None, None, None, None], seconds, 1) + np.zeros((4, 4, 2))
    rng = np.random.default_rng(0)
    for events in ([(1, 0, 3)], [(1, 0, 3), (2, 2, 5)], [(3, 1, 3), (2, 1, 3)], []):
        heard = natural.Composer(audio, keys, [4], rng).clip(events)
        seen = natural.Composer(video, keys, [4], rng).clip(events)
        for second in range(seconds):
            now = [key for key, onset, offset in events if onset <= second < offset] or [4]
            assert int(heard[second, 0] + 1e-9) == max(now)
            assert list(seen[second, 0, :, 0]) == [now[0]] * 2 + [now[-1]] * 2
    draws = [natural.draw_events(rng, seconds, 5) for _ in range(3000)]
    events = [event for of_clip in draws for event in of_clip]
    assert all(0 <= on < off <= seconds and 2 <= off - on < seconds and (heard or seen)
               for _, on, off, heard, seen in events)
    assert all(len({key for key, *_ in of_clip}) == len(of_clip) for of_clip in draws)
    two = [sorted((on, off) for _, on, off, *_ in of_clip) for of_clip in draws if len(of_clip) == 2]
    assert 0.36 < len(two) / 3000 < 0.44 and 0.5 < np.mean([b[0] < a[1] for a, b in two]) < 1
    assert all(0.07 < np.mean([not event[k] for event in events]) < 0.13 for k in (3, 4))


# ---------------------------------------------------------------------------------------------------- the tree
def test_every_task_can_read_the_tree(tree, features):
    for name in ["vggsound_AVT", *(name for name in TASKS if name != "custom")]:
        assert prepare.main(["check", "--dataset", name, "--data_root", str(tree), "--seconds", "5"]) == 0, name
    for name in ("vggsound.audio", "ave.video", "avvp.audio", "ucf51.video", "captions.audio"):
        modality = name.split(".")[1]
        assert origins.describe(tree / DATA_PATHS[name], modality) == natural.read(features).origins[modality]


def test_avvp_lists_what_its_features_have(tree, features):
    """A second with a single event is a second of a test clip of its class, one without of an unlisted class."""
    clips = natural.read(features)
    known = {clips.features["audio"][row, second].astype(np.float32).tobytes(): clips.table["category"][row]
             for row in np.flatnonzero(clips.table["split"] == "test") for second in range(5)}
    table = pd.read_csv(tree / DATA_PATHS["avvp.audio_csv"], sep="\t")
    names = (tree / DATA_PATHS["avvp.categories"]).read_text().split()
    assert names == ["bell", "dog", "rain"]
    found = 0
    for row in table.itertuples():
        sound = read_zip(tree / DATA_PATHS["avvp.audio"] / f"{row.filename[:11]}.zip")
        events = list(zip(row.event_labels.split(","), map(int, str(row.onset).split(",")),
                          map(int, str(row.offset).split(","))))
        for second in range(5):
            now = [label for label, onset, offset in events if onset <= second < offset]
            if len(now) < 2:
                assert known[sound[second].astype(np.float32).tobytes()] == (now or ["sea"])[0]
                found += len(now)
    assert found > 0
    with h5py.File(tree / DATA_PATHS["ave_avvp.label"]) as file, h5py.File(tree / DATA_PATHS["ave.label"]) as whole:
        labels, own = file["avadataset"][:], whole["avadataset"][:]
    assert (labels.sum(2) == 1).all() and (labels[..., :-1][..., ::-1] == own[..., :3]).all()
    assert (labels[..., -1] == own[..., 3]).all()                               # the sea is background


def test_pictures_show_the_sources_of_the_test_clips(tree, features, sources):
    paths = {name: tree / DATA_PATHS[f"ave.{name}"] for name in ("audio", "video", "label", "train", "val", "test",
                                                                 "categories")}
    clips = AVE(paths, split="test", seconds=5)
    table = pd.read_csv(features / "sources.csv")
    test = table[table["split"] == "test"].sort_values("class", kind="stable")
    assert len(clips) == len(test) == 6
    for i, (sound, photo) in enumerate(zip(test["sound"], test["photo"])):
        found, = natural_clips.originals(sources, [sound], [photo])
        np.testing.assert_array_equal(clips.original("video", i), found["video"])
        assert clips.original("video", i).shape == (112, 112, 3)
        heard = clips.original("audio", i).astype(float)
        assert np.corrcoef(heard.ravel(), found["audio"].ravel())[0, 1] > 0.999
        pitch = heard.sum(1).argmax()                               # a tone of 300 Hz times the number of its class
        assert abs(pitch - (1127 * np.log(1 + 300 * (1 + CLASSES.index(test["class"].iloc[i])) / 700) - 185) / 39.8) < 3


def test_lists_that_are_wrong_are_one_line(features, tmp_path):
    names = ("clips.csv", "sources.csv")
    good = {name: (features / name).read_text() for name in names}
    one = good["sources.csv"].splitlines()[1]
    sound = one.split(",")[3]
    clip = next(line for line in good["clips.csv"].splitlines() if line.startswith("train00000"))
    for name, content, reason in (
            ("sources.csv", good["sources.csv"].replace(one + "\n", ""), r"the clips differ from .* \(train00000\)"),
            ("sources.csv", good["sources.csv"].replace("id,split,class", "id,split,kind"), "no column 'class'"),
            ("sources.csv", good["sources.csv"].replace("sounds/bell_test_0.wav", sound).replace(
                "sounds/bell_test_1.wav", sound), r"the sound '.*' is in test and train"),
            ("sources.csv", good["sources.csv"].replace(one, one.replace(",train,", ",val,")), "line 2: train00000"),
            ("clips.csv", good["clips.csv"].replace(clip, clip.replace(",bell,", ",dog,")), "'bell' in train.*'dog'"),
            ("clips.csv", good["clips.csv"].replace("split", "part", 1), "no column 'split'"),
            ("clips.csv", good["clips.csv"].replace("val,rain,", "val,,"), "no labeled clip of 'rain' in val")):
        for other in names:
            (tmp_path / other).write_text(content if other == name else good[other])
        refused(reason, natural.read_lists, tmp_path)
    (tmp_path / "sources.csv").unlink()
    refused(r"sources.csv: not found; .*--features", natural.build, tmp_path / "tree", DATA_PATHS, tmp_path)
    for name in names:
        (tmp_path / name).write_text(good[name])
    refused(r"prompts.h5: not found", natural.read, tmp_path)
    assert not (tmp_path / "tree").exists()


def test_a_tree_is_kept_and_that_of_other_clips_is_not_overwritten(tree, features, tmp_path):
    before = json.loads((tree / natural.MARKER).read_text())
    assert not natural.build(tree, DATA_PATHS, features, progress=False, sources=features)      # not looked at again
    refused("contains something else", natural.build, tree, DATA_PATHS, features, seed=1, sources=features)
    assert json.loads((tree / natural.MARKER).read_text()) == before
    with pytest.raises(InputError, match="clips 10: expected 60 or more"):
        natural_clips.make(tmp_path, made_sources(tmp_path / "sources"), natural_clips.Encoders(), 10)


# ---------------------------------------------------------------------------------------------------- the whole way
def test_from_sources_to_a_report(sources, tmp_path, small_model, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS["natural"]["downstream"], "n_epoch", 1)         # of the heads
    monkeypatch.setattr(pictures, "_draw_file", lambda *args: [])               # most pictures: test_pictures.py
    roots = [text for name in ("data", "checkpoint", "runs") for text in (f"--{name}_root", str(tmp_path / name / "x"))]
    script.main([*roots, "--sources", str(sources), "--clips", str(CLIPS), "--figures", str(tmp_path / "figs"),
                 "--n_epoch", "1", "--n_embeddings", "24", "--gpu", "cpu", "--batch_size", "20"])
    shown = capsys.readouterr().out
    assert "Natural in the form of AVE, AVVP, AVE>AVVP, UCF/VGG" in shown and "report" in shown
    folder = tmp_path / "runs" / "x" / "dcid-seed0"
    assert (folder / "report.html").is_file() and (tmp_path / "figs" / "dcid-seed0" / "examples.png").is_file()
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == set(TASKS) - {"custom"} | {"retrieval_free"}
    clip_retrieval.main(["--preset", "natural", *roots, "--checkpoint", str(
        tmp_path / "checkpoint" / "x" / "dcid-seed0" / "DCID-model-0.pt"), "--gpu", "cpu"])
    assert "Natural as captions" in capsys.readouterr().out.replace("\n", " ")


def test_options_of_clips_are_refused_where_clips_are_ready(features, tmp_path):
    roots = ["--data_root", str(tmp_path / "data"), "--runs_root", str(tmp_path / "runs"), "--gpu", "cpu"]
    for more in (["--clips", "600"], ["--video-encoder", "patches"], ["--front-end", "audio.rate=16000"]):
        with pytest.raises(InputError, match=f"{more[0]}: only for clips created from --sources"):
            script.main(["--features", str(features), *roots, *more])
    with pytest.raises(InputError, match=r"sounds/.*wav: cannot be opened"):           # other sources than the clips'
        script.main(["--features", str(features), "--sources", str(tmp_path), *roots])
    assert not (tmp_path / "data").exists()


def test_ready_features_make_a_tree(tmp_path):
    if not READY.is_dir():
        pytest.skip(f"no ready features: {READY} is absent")
    table, classes = natural.read_lists(READY)
    assert len(table) == 3666 and len(classes) == 13 and (table["label"] != "").sum() == 1846
    small = table.groupby(["split", "category"]).head(3)                        # of each class and split
    small = small[(small["label"] != "") | (small["split"] == "train")]
    labeled = table[(table["label"] != "") & (table["split"] == "train")].groupby("category").head(2)
    chosen = table[table["id"].isin([*small["id"], *labeled["id"]])]
    features = tmp_path / "features"
    features.mkdir()
    for name in ("clips.csv", "sources.csv"):
        lines = (READY / name).read_text().splitlines()
        kept = set(chosen["id"])
        (features / name).write_text("\n".join([lines[0], *(line for line in lines[1:] if line.split(",")[0] in kept)]))
    for name in ("audio.h5", "video.h5", "prompts.h5"):
        (features / name).symlink_to(READY / name)
    assert natural.build(tmp_path / "tree", DATA_PATHS, features, progress=False)
    for name in ("vggsound_AVT", "ave", "ave_avvp"):
        assert prepare.main(["check", "--dataset", name, "--data_root", str(tmp_path / "tree"), "--seconds", "5"]) == 0
    test = chosen["id"][chosen["split"] == "test"].iloc[0]
    assert read_zip(tmp_path / "tree" / DATA_PATHS["ucf51.video"] / f"v_{test}.zip").shape[1:] == (5, 5, 64)
