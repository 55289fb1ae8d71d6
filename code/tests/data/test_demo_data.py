"""Dialled Digits: the synthesis against Q.23 and transformers, and the tree read back without our own loaders."""

import hashlib
import json
import pickle
import shutil
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from transformers.audio_utils import mel_filter_bank, spectrogram

from cmg.data import origins
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.ave import AVE
from cmg.demos import dialled, dialled_clips
from conftest import refused

CLIPS = 240


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "tree"
    assert dialled.build(out, DATA_PATHS, seed=3, clips=CLIPS, progress=False)
    return out


def place(tree, name):
    return tree / DATA_PATHS[name]


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.namelist()
        assert member == path.stem + ".pkl"
        return pickle.loads(archive.read(member))


def read_h5(path, name="avadataset"):
    with h5py.File(path) as file:
        assert list(file) == [name]
        return file[name][:]


def digest(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------------- synthesis
def test_keys_have_the_tones_of_q23():
    low = {1: 697, 2: 697, 3: 697, 4: 770, 5: 770, 6: 770, 7: 852, 8: 852, 9: 852, 0: 941}
    high = {1: 1209, 4: 1209, 7: 1209, 2: 1336, 5: 1336, 8: 1336, 0: 1336, 3: 1477, 6: 1477, 9: 1477}
    rng = np.random.default_rng(0)
    for key in range(10):
        waves = dialled_clips.tones(np.full(40, key), rng)
        assert waves.shape == (40, 8000) and waves.dtype == np.float32
        power = np.abs(np.fft.rfft(waves)) ** 2                     # 1 Hz a bin
        for found, nominal in ((500 + power[:, 500:1060].argmax(1), low[key]),
                               (1100 + power[:, 1100:1700].argmax(1), high[key])):
            assert np.all(np.abs(found - nominal) <= 0.018 * nominal)    # the tolerance of Q.23


def test_a_tone_lies_within_its_second_and_nothing_is_dialled_in_an_empty_one():
    rng = np.random.default_rng(1)
    waves = dialled_clips.tones([5] * 60 + [dialled_clips.EMPTY] * 60, rng, seconds=2)
    assert waves.shape == (120, 16000)
    mel = dialled_clips.log_mel(waves.reshape(-1, 8000)).reshape(120, 2, 128)
    peak = mel.max(-1) - np.median(mel, -1)
    assert peak[:60, 0].min() > 1.0         # a tone stands out of the heaviest noise
    assert peak[:60, 1].max() < 1.0 and peak[60:].max() < 1.0
    assert dialled_clips.tones([5], np.random.default_rng(1)).shape == (1, 8000)


def test_log_mel_agrees_with_transformers():
    waves = dialled_clips.tones([1, 8, dialled_clips.EMPTY], np.random.default_rng(2))
    bank = mel_filter_bank(501, 128, 125.0, 4000.0, 8000, mel_scale="htk")
    assert (bank.sum(0) > 0).all()          # no band between two bins
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1000) / 1000)
    for wave, ours in zip(waves, dialled_clips.log_mel(waves)):
        power = spectrogram(wave, window, frame_length=1000, hop_length=500, power=2.0, center=False,
                            mel_filters=bank, mel_floor=0.0)        # (128, 15)
        assert power.shape == (128, 15)
        np.testing.assert_allclose(ours, 0.5 * np.log1p(power.mean(1)), rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="one second"):
        dialled_clips.log_mel(waves[:, :4000])


def test_writers_are_split():
    pools = {split: dialled_clips.digit_pools(split) for split in ("train", "val", "test")}
    assert sum(len(labels) for _, labels in pools.values()) == 1797
    rows = {split: {image.tobytes() for image in images} for split, (images, _) in pools.items()}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"] and not rows["val"] & rows["test"]
    for images, labels in pools.values():
        assert images.shape[1:] == (8, 8) and images.min() == 0 and images.max() == 1
        assert list(labels[:30]) == 3 * list(range(10))             # each pool starts with a new writer's first digits


def test_pick_gives_the_key_and_blank_for_empty():
    images, labels = dialled_clips.digit_pools("val")
    named = {image.tobytes(): label for image, label in zip(images, labels)}
    keys = np.array([3, dialled_clips.EMPTY, 9, 0, 3] * 20)
    picked = dialled_clips.pick(keys, "val", np.random.default_rng(3))
    assert (picked[1::5] == 0).all()
    assert [named[image.tobytes()] for image in picked[keys >= 0]] == list(keys[keys >= 0])
    assert len({image.tobytes() for image in picked[::5]}) > 5      # different samples of one key


def test_undisturbed_drawing_is_the_sample_itself():
    images, _ = dialled_clips.digit_pools("val")
    plain = dialled_clips.Style(turn=0, zoom=(1, 1), shift=0, ink=(1, 1), noise=(0, 0))
    drawn = dialled_clips.draw(images[:5], np.random.default_rng(0), plain, canvas=10, digit=8)
    np.testing.assert_allclose(drawn[:, 1:-1, 1:-1], images[:5], atol=1e-6)
    assert np.abs(drawn[:, 0]).max() < 1e-6
    doubled = dialled_clips.Style(turn=0, zoom=(2, 2), shift=0, ink=(0.5, 0.5), noise=(0, 0))
    assert dialled_clips.draw(images[:5], np.random.default_rng(0), doubled).max() <= 0.5


def test_video_features_are_rectified_projections_of_patches():
    picture = np.random.default_rng(4).random((2, 13, 13)).astype(np.float32)
    features = dialled_clips.video_features(picture)
    assert features.shape == (2, 7, 7, dialled_clips.CHANNELS) and features.dtype == np.float32
    for row, column in ((0, 0), (2, 5), (6, 6)):
        patch = picture[1, row:row + 7, column:column + 7].ravel()
        expected = np.maximum(patch @ dialled_clips.projections() - dialled_clips.THRESHOLD, 0)
        np.testing.assert_allclose(features[1, row, column], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="expected"):
        dialled_clips.video_features(picture[:, :12])


def test_classes_can_be_learned_and_are_not_trivial():
    """A linear classifier of single seconds, other writers and other presses in the test."""
    rng = np.random.default_rng(5)
    train, test = rng.integers(0, 10, (100, 10)), rng.integers(0, 10, (80, 10))
    audio = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    audio.fit(dialled_clips.audio_clips(train, rng).reshape(-1, 128), train.ravel())
    assert audio.score(dialled_clips.audio_clips(test, rng).reshape(-1, 128), test.ravel()) > 0.99
    video = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    video.fit(dialled_clips.video_clips(train, "train", rng).reshape(train.size, -1), train.ravel())
    score = video.score(dialled_clips.video_clips(test, "test", rng).reshape(test.size, -1), test.ravel())
    assert 0.88 < score < 0.99


def test_prompts_name_their_key_and_share_the_rest():
    words = [dialled_clips.PROMPTS[name].lower().split() for name in dialled_clips.CLASSES]
    assert all(len(w) == 10 for w in words)
    assert len(set(map(tuple, words))) == 10
    for name, w in zip(dialled_clips.CLASSES, words):
        assert set(w) - set.intersection(*map(set, words)) == {name.split()[1]}


# ---------------------------------------------------------------------------------------------------- the tree
def test_pretraining_files(tree):
    table = pd.read_csv(place(tree, "vggsound.csv"))
    assert list(table) == ["category", "video_id", "split"] and len(table) == CLIPS
    assert table.video_id.is_unique and (table.video_id.str.len() == 11).all()
    assert set(table.split) == {"train", "val", "test"}
    assert table.groupby(["split", "category"]).size().min() > 0
    prompts = pd.read_csv(place(tree, "vggsound.prompts"))
    assert list(prompts) == ["label", "prompt"]
    assert set(prompts.label) == set(table.category) == set(dialled_clips.CLASSES)
    categories = place(tree, "vggsound.csv").with_name("VggsoundAVEL40kCategories.txt").read_text().splitlines()
    assert categories == list(dialled_clips.CLASSES)
    for kind in ("audio", "video", "label"):
        assert {path.stem for path in place(tree, f"vggsound.{kind}").iterdir()} == set(table.video_id)
    lengths, whole = [], []
    for name in table.video_id:
        audio, video, label = (read_zip(place(tree, f"vggsound.{kind}") / f"{name}.zip")
                               for kind in ("audio", "video", "label"))
        assert audio.shape[1:] == (128,) and audio.dtype == np.float32 and 0 <= audio.min() and audio.max() < 8
        assert video.shape == (10, 7, 7, dialled_clips.CHANNELS) and video.dtype == np.float32 and video.min() == 0
        assert label.shape == (10,) and np.isin(label, (0, 1)).all() and label.sum() >= 2
        assert np.abs(np.diff(label)).sum() <= 2                        # one event without a gap
        lengths.append(len(audio))
        whole.append(label.all())
    assert 0.25 < np.mean(whole) < 0.6                                  # the others have seconds of background
    assert lengths.count(10) > 0.9 * CLIPS and set(lengths) <= {8, 9, 10} and min(lengths) < 10


def test_ave_files(tree):
    rows = pd.read_csv(place(tree, "ave.label").with_name("Annotations.txt"), sep="&", header=None,
                       names=["category", "video_id", "quality", "start", "end"])
    audio, video, label = (read_h5(place(tree, f"ave.{kind}")) for kind in ("audio", "video", "label"))
    assert audio.shape == (len(rows), 10, 128) and audio.dtype == np.float64
    assert video.shape == (len(rows), 10, 7, 7, dialled_clips.CHANNELS) and video.dtype == np.float64
    assert label.shape == (len(rows), 10, 11) and label.dtype == np.float32 and (label.sum(-1) == 1).all()
    orders = [read_h5(place(tree, f"ave.{split}"), "order") for split in ("train", "val", "test")]
    assert [len(order) for order in orders] == [CLIPS // 6, CLIPS // 24, CLIPS // 12]
    assert sorted(np.concatenate(orders)) == list(range(len(rows))) and orders[0].dtype == np.int64
    categories = place(tree, "ave.categories").read_text().splitlines()
    assert list(dict.fromkeys(rows.category)) == categories       # label order = order of first appearance
    for i, row in rows.iterrows():
        assert 0 <= row.start < row.end <= 10
        assert (label[i, row.start:row.end, categories.index(row.category)] == 1).all()
        assert label[i, :, -1].sum() == 10 - (row.end - row.start)
    background = label[..., -1] == 1
    assert 0.1 < background.mean() < 0.7
    peak = audio.max(-1) - np.median(audio, -1)
    assert peak[background].max() < peak[~background].min()         # silent: no tone at all
    total = video.sum((2, 3, 4))
    assert np.median(total[background]) < 0.1 * np.median(total[~background])     # empty but for pixel noise


@pytest.fixture(scope="module")
def avvp_lists(tree):
    lists = {}
    for modality in ("audio", "visual"):
        path = place(tree, f"avvp.{modality}_csv")
        assert path.read_text().splitlines()[0] == "filename\tonset\toffset\tevent_labels"
        lists[modality] = pd.read_csv(path, sep="\t", dtype=str).set_index("filename")
    return lists


def events_of(row):
    events = list(zip(row.event_labels.split(","), map(int, row.onset.split(",")), map(int, row.offset.split(","))))
    assert row.onset.count(",") == row.offset.count(",") == len(events) - 1
    return events


def test_avvp_files(tree, avvp_lists):
    categories = place(tree, "avvp.categories").read_text().splitlines()
    assert categories == [f"digit_{word}" for word in dialled_clips.WORDS]
    silent, tonal = [], []
    for modality, table in avvp_lists.items():
        assert table.index.is_unique and table.index.str.fullmatch(r"[a-z0-9]{11}_\d+_\d+").all()
        for name, row in table.iterrows():
            happening = np.zeros(10, bool)
            for label, onset, offset in events_of(row):
                assert label in categories and 0 <= onset < offset <= 10
                assert not happening[onset:offset].any()
                happening[onset:offset] = True
            if modality == "audio":
                audio = read_zip(place(tree, "avvp.audio") / f"{name[:11]}.zip")
                assert audio.shape in ((10, 128), (11, 128)) and audio.dtype == np.float32
                peak = (audio.max(-1) - np.median(audio, -1))[:10]
                silent += list(peak[~happening])
                tonal += list(peak[happening])
            else:
                assert read_zip(place(tree, "avvp.video") / f"{name[:11]}.zip").shape == (
                    10, 7, 7, dialled_clips.CHANNELS)
    assert max(silent) < min(tonal)
    audio, visual = (table["event_labels"] for table in avvp_lists.values())
    both = audio.index.intersection(visual.index)
    assert len(both) > 0.7 * CLIPS / dialled.AVVP_SHARE
    assert (audio[both] != visual[both]).any()                                      # some events in one modality only
    assert 0.03 < audio.str.contains(",").mean() < 0.3                                   # several events a clip


def test_ave_avvp_files(tree, avvp_lists):
    shared = place(tree, "ave_avvp.categories").read_text().splitlines()
    assert 1 < len(shared) < 10 and shared != sorted(shared, key=[f"digit_{w}" for w in dialled_clips.WORDS].index)
    labels, order = read_h5(place(tree, "ave_avvp.label")), read_h5(place(tree, "ave_avvp.order"), "order")
    ave = read_h5(place(tree, "ave.label"))
    assert labels.shape == (len(ave), 10, len(shared) + 1) and labels.dtype == np.float32
    categories = place(tree, "ave.categories").read_text().splitlines()
    for column, name in enumerate(shared):
        assert (labels[..., column] == ave[..., categories.index(name.replace("_", " "))]).all()
    assert (labels[..., -1] == ave[..., -1]).all()
    assert set(order) == set(np.flatnonzero(labels[..., :-1].any((1, 2))))
    for modality, whole in avvp_lists.items():
        part = pd.read_csv(place(tree, f"ave_avvp.{modality}_csv"), sep="\t", dtype=str).set_index("filename")
        kept = {name: [event for event in events_of(row) if event[0] in shared] for name, row in whole.iterrows()}
        assert {name: events_of(row) for name, row in part.iterrows()} == {n: e for n, e in kept.items() if e}


def test_ucf_vggsound_files(tree):
    ucf_names = place(tree, "ucf_vggsound.ucf_categories").read_text().splitlines()
    vggsound_names = place(tree, "ucf_vggsound.vggsound_categories").read_text().splitlines()
    assert [f"digit {name.removeprefix('Digit').lower()}" for name in ucf_names] == vggsound_names
    assert vggsound_names != list(dialled_clips.CLASSES) and set(vggsound_names) == set(dialled_clips.CLASSES)
    assert set(pd.read_csv(place(tree, "ucf_vggsound.prompts")).label) == set(vggsound_names)
    ucf = pd.read_csv(place(tree, "ucf_vggsound.ucf_csv"))
    assert list(ucf) == ["category", "video_id"] and ucf.video_id.is_unique
    assert list(dict.fromkeys(ucf.category)) == ucf_names              # grouped by class
    lengths = set()
    for name, category in zip(ucf.video_id, ucf.category):
        assert name.startswith(f"v_{category}_g")
        video = read_zip(place(tree, "ucf_vggsound.video") / f"{name}.zip")
        assert video.shape[1:] == (7, 7, dialled_clips.CHANNELS) and video.dtype == np.float32
        lengths.add(len(video))
    assert min(lengths) >= 6 and max(lengths) <= 12 and len(lengths) > 3
    audio = pd.read_csv(place(tree, "ucf_vggsound.vggsound_csv"))
    assert list(dict.fromkeys(audio.category)) == vggsound_names
    rows = pd.read_csv(place(tree, "vggsound.csv")).set_index("video_id")
    assert (rows.loc[audio.video_id, ["category", "split"]].to_numpy() == audio[["category", "split"]].to_numpy()).all()


def test_text_features(tree):
    for name in ("vggsound", "ave", "ucf_vggsound"):
        prompts = pd.read_csv(place(tree, f"{name}.prompts"))
        with h5py.File(place(tree, f"{name}.text")) as file:
            labels = [label.decode() for label in file["labels"]]
            sentences = [sentence.decode() for sentence in file["prompts"]]
            vectors = file["vectors"][:]
            assert file.attrs["backend"] == "hashing" and str(tree.parent) not in str(dict(file.attrs))
        assert labels == list(prompts.label) and sentences == list(prompts.prompt)
        assert vectors.shape == (10, 10, 768) and vectors.dtype == np.float32
        differs = (vectors != vectors[0]).any(-1)               # (labels, words): only the key's word
        assert differs[1:].sum() == 9 and differs[1:, 5].all()
        word = vectors[:, 5]                                    # unit vectors of the ten words
        assert (word @ word.T - np.eye(10)).max() < 0.5


def test_one_seed_gives_the_same_bytes_whatever_the_threads(tree, tmp_path):
    with threadpool_limits(2):
        dialled.build(tmp_path / "again", DATA_PATHS, seed=3, clips=CLIPS, progress=False)
    again = digest(tmp_path / "again")
    assert again == digest(tree)
    dialled.build(tmp_path / "other", DATA_PATHS, seed=4, clips=CLIPS, progress=False)
    other = digest(tmp_path / "other")
    for name in ("ave.audio", "ave.video"):
        assert other[DATA_PATHS[name]] != again[DATA_PATHS[name]]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_whole_tree_is_left_alone(tree, capsys):
    before = digest(tree)
    dialled.main(["--out", str(tree), "--seed", "3", "--clips", str(CLIPS)])
    assert "already complete" in capsys.readouterr().out
    assert digest(tree) == before


def test_originals_are_what_the_features_were_made_from(tree):
    """The spectrogram's mean over a second is the audio feature, the picture gives the video feature of its second."""
    names = ("audio", "video", "label", "train", "test", "categories", "text")
    paths = {name: tree / DATA_PATHS[f"ave.{name}"] for name in names}
    clips = AVE(paths, ("audio", "video", "text"), "test")
    for i in (0, len(clips) - 1):
        item, second = clips[i], clips.labels[i, :, :-1].any(1).argmax()
        bands = clips.original("audio", i).astype(float)
        power = np.expm1(bands / bands.max() * 2 * item["audio"].max()).reshape(128, 10, -1).mean(-1).T
        assert np.corrcoef(0.5 * np.log1p(power).ravel(), item["audio"].ravel())[0, 1] > 0.97
        picture = clips.original("video", i)[None] / np.float32(255)
        np.testing.assert_allclose(dialled_clips.video_features(picture)[0], item["video"][second], atol=0.03)
        assert clips.original("text", i) == dialled_clips.PROMPTS[clips.classes[clips.labels[i, second].argmax()]]
    assert AVE(paths, ("audio", "video"), "train").original("video", 0) is None
    assert clips.original("depth", 0) is None


def test_the_data_set_is_named_by_the_record_in_its_root(tree, tmp_path):
    paths = [tree / DATA_PATHS[name] for name in ("vggsound.audio", "ave.video", "avs.frames")]
    (tmp_path / "link").symlink_to(paths[0])
    for path in (*paths, tmp_path / "link"):
        assert origins.data_set([path]) == "Dialled Digits"
    assert origins.data_set([paths[0], tmp_path / DATA_PATHS["ave.audio"]]) == "Dialled Digits"
    assert AVE({name: tree / DATA_PATHS[f"ave.{name}"] for name in ("audio", "video", "label", "test", "categories")},
               split="test").origin == "Dialled Digits"
    for record in (None, "{", "[]", '{"name": 3}', '{"name": null}', json.dumps({"name": "x" * 1000}), "{}"):
        if record:
            (tmp_path / "spoken.json").write_text(record)
        assert origins.data_set([tmp_path / DATA_PATHS["vggsound.audio"]]) == ""
    (tmp_path / "spoken.json").write_text('{"name": "Spoken Digits"}')
    assert origins.data_set([paths[0], tmp_path / DATA_PATHS["ave.audio"]]) == "Dialled Digits and Spoken Digits"


def test_nothing_foreign_is_overwritten(tree, tmp_path):
    refused("seed 3, not 0", dialled.build, tree, DATA_PATHS, seed=0, clips=CLIPS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused("not a demo tree", dialled.build, tmp_path / "mine", DATA_PATHS)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "mine" / dialled.MARKER).write_text("{")
    refused("not the JSON object", dialled.build, tmp_path / "mine", DATA_PATHS)
    refused("cannot be written", dialled.build, tmp_path / "mine" / "notes.txt" / "tree", DATA_PATHS)
    refused("--clips 5", dialled.build, tmp_path / "new", DATA_PATHS, clips=5)


def test_a_part_added_later_is_built_into_an_older_tree(tree, tmp_path, monkeypatch):
    """The other files keep their bytes, and parts that are no longer known do no harm."""
    old = shutil.copytree(tree, tmp_path / "old")
    marker = json.loads((old / dialled.MARKER).read_text())
    (old / dialled.MARKER).write_text(json.dumps(marker | {"parts": [*marker["parts"], "text"]}))
    assert not dialled.build(old, DATA_PATHS, seed=3, clips=CLIPS, progress=False)        # as trees before this version

    def later(tree):
        (tree.root / "later.txt").write_text("here")
        tree.bar.update(1)
    monkeypatch.setitem(dialled.PARTS, "later", later)
    assert dialled.build(old, DATA_PATHS, seed=3, clips=CLIPS, progress=False)
    assert (old / "later.txt").read_text() == "here"
    assert json.loads((old / dialled.MARKER).read_text())["parts"] == [*marker["parts"], "later"]
    before, after = digest(tree), digest(old)
    assert {name for name in after if after[name] != before.get(name)} == {"later.txt", dialled.MARKER}
    assert not dialled.build(old, DATA_PATHS, seed=3, clips=CLIPS, progress=False)


def test_a_part_that_fails_leaves_the_older_tree_whole(tree, tmp_path, monkeypatch):
    old = shutil.copytree(tree, tmp_path / "old")

    def fail(tree):
        raise OSError("no space left")
    monkeypatch.setitem(dialled.PARTS, "later", fail)
    refused("no space", dialled.build, old, DATA_PATHS, seed=3, clips=CLIPS, progress=False)
    assert digest(old) == digest(tree)
