"""Files of strangers stay harmless: no pipe or device is waited for, no other file opened, no code run, no control
character shown, no section forged; and what a Python program passes is taken or refused in one line."""

import io
import json
import os
import sys
import threading
import wave

import h5py
import numpy as np
import pytest
import torch

import cmg
import prepare
from cmg.checkpoints import checkpoint, hub
from cmg.data import origins
from cmg.data.archive import read_counts, read_npy, read_zip
from cmg.data.csv import read_classes, read_table
from cmg.data.features import open_features
from cmg.data.manifest import Manifest
from cmg.data.sets.avs_s4 import read_image
from cmg.data.text import FORMAT, TextFeatures, read_vocabulary
from cmg.data.text_backends import Bert
from cmg.extract import weights
from cmg.extract.hub import HubPictures, HubSound, HubText
from cmg.extract.media import Media, Unreadable
from cmg.extract.run import clip_id
from cmg.report import export, pictures
from cmg.results import provenance, rows
from cmg.systems.dcid import DCID
from cmg.utils import arguments, console
from cmg.utils.errors import InputError
from cmg.utils.files import open_input, read_input, require_regular
from conftest import refused
from test_atomic import ROW

SIZES = dict(num_codes=8, code_dim=8, feed_forward=8, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint of a small encoder of audio (16 numbers) and video (8 channels)."""
    path = tmp_path_factory.mktemp("strangers") / "x.pt"
    system = DCID(DCID.Config.for_data(("audio", "video"), audio_dim=16, video_dim=8, **SIZES))
    checkpoint.save(path, checkpoint.pack(system, {}, {}, 0, 0, {}))
    return path


@pytest.fixture(scope="module")
def encoder(file):
    return cmg.load(file)


def ends(call, seconds=20):
    """What a call gives or raises; the test fails where it waits for ever, as for a pipe."""
    found = []

    def work():
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001   looked at by the test
            found.append(error)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits for ever"
    return found[0]


# --------------------------------------------------------------------------------------------- pipes, devices, folders
READERS = {
    "zip": read_zip, "npy": read_npy, "word list": read_counts, "manifest": Manifest, "classes": read_classes,
    "table": lambda path: read_table(path, ("a",)), "vocabulary": read_vocabulary, "prompts": TextFeatures,
    "features": lambda path: open_features(path, "audio"), "checkpoint": checkpoint.read,
    "picture": lambda path: read_image(path, "RGB", 8), "results": rows.read, "record": provenance.read,
    "log": pictures.read_log, "predictions": pictures.read_predictions, "video": lambda path: Media(path),
    "weights": lambda path: weights.read(path, "vggish"), "pca": weights.read_pca,
    "sidecar": lambda path: origins.read_sidecar(path.parent), "exported": lambda path: hub.load_encoder(path.parent)}


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "terminal"])
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(reader, kind, tmp_path):
    path = tmp_path / {"sidecar": origins.SIDECAR, "exported": hub.WEIGHTS}.get(reader, "x")
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terminal":
        _, terminal = os.openpty()
        path.symlink_to(os.ttyname(terminal))
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe") if "link" in kind else os.rename(tmp_path / "pipe", path)
    found = ends(lambda: READERS[reader](path))
    assert isinstance(found, (InputError, Unreadable)) and "\n" not in str(found) and str(tmp_path) in str(found)


def test_a_bounded_read(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_input(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_input(tmp_path / "x", 4)
    with pytest.raises(IsADirectoryError):
        require_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_input(tmp_path / "absent")


# ---------------------------------------------------------------------------------------------------------------- HDF5
def stored_elsewhere(file, name, shape, kind, source):
    """A dataset whose values lie in another file."""
    if kind == "external":
        file.create_dataset(name, shape, "f4", external=[(str(source), 0, 4 * int(np.prod(shape)))])
    elif kind == "link":
        file[name] = h5py.ExternalLink(str(source), "/a")
    elif kind == "soft link to a link":
        file["other"] = h5py.ExternalLink(str(source), "/a")
        file[name] = h5py.SoftLink("/other")
    else:
        most = (None, *shape[1:]) if kind == "unlimited" else shape
        layout, of = h5py.VirtualLayout(shape, "f4", most), h5py.VirtualSource(str(source), "a", shape, "f4", most)
        part = slice(h5py.h5s.UNLIMITED) if kind == "unlimited" else slice(None)
        layout[part] = of[part]
        file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("kind", ["virtual", "unlimited", "external", "link", "soft link to a link"])
@pytest.mark.parametrize("reader", ["rows", "by id", "text", "pack", "keras"])
def test_no_file_outside_is_opened(reader, kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as made:
        name = {"rows": "avadataset", "text": "vectors", "pack": "features", "keras": "block1_conv1/w"}.get(reader, "a")
        if reader == "keras":
            made.create_group("block1_conv1")
        stored_elsewhere(made, name, (3, 10, 16), kind, tmp_path / "pipe")
        if reader == "text":
            made.attrs.update({"format": FORMAT, "backend": "", "model": "", "text_vocabulary": "all"})
        if reader == "pack":
            made.attrs.update({"format": "cmg-pack-1", "complete": True})
    read = {"rows": lambda: open_features(path, "audio"), "pack": lambda: open_features(path, "audio"),
            "by id": lambda: open_features(path, "audio", by_id=True).measure("a"), "text": lambda: TextFeatures(path),
            "keras": lambda: weights.read(path, "vgg19")}[reader]
    found = ends(read)
    assert isinstance(found, InputError) and "\n" not in str(found)


# ------------------------------------------------------------------------------------------------------ code of models
@pytest.fixture
def with_code(tmp_path):
    """Folder of a model that comes with Python code, which leaves a file if it is run."""
    mark = tmp_path / "was-run"
    (tmp_path / "model").mkdir()
    for name, content in {
            "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M",
                                                              "AutoTokenizer": ["own.T", None]}},
            "tokenizer_config.json": {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}},
            "preprocessor_config.json": {"image_processor_type": "X", "auto_map": {
                "AutoImageProcessor": "own.X", "AutoFeatureExtractor": "own.X"}}}.items():
        (tmp_path / "model" / name).write_text(json.dumps(content))
    (tmp_path / "model" / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nM = T = X = C\n")
    return tmp_path / "model"


@pytest.mark.parametrize("load", [
    lambda path: HubText(path, "cpu"), lambda path: HubPictures(path, "cpu"), lambda path: HubSound(path, "cpu"),
    lambda path: Bert(str(path))])
def test_code_that_comes_with_a_model_is_not_run_nor_asked_about(load, with_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    found = ends(lambda: load(with_code))
    assert isinstance(found, InputError) and "which is never run" in str(found)
    assert not (with_code.parent / "was-run").exists()


def test_a_pipe_within_a_models_folder(with_code):
    os.remove(with_code / "config.json")
    os.mkfifo(with_code / "config.json")
    assert "pipe or device" in str(ends(lambda: HubText(with_code, "cpu")))


# --------------------------------------------------------------------------------------- control characters, line ends
@pytest.mark.parametrize("text, shown", [
    ("\x1b]0;title\x07ball", " ]0;title ball"), ("\x9b2Jball", " 2Jball"), ("a\rb", "a b"), ("a\x00\x08b", "a b"),
    ("\u202ellab", " llab"), ("a\u2028b", "a b"), ("b\xe4ll \u5317", "b\xe4ll \u5317"), ("caf\udce9", "caf\\udce9"),
    ("tab\tline\nend", "tab\tline\nend")])
def test_clean_text(text, shown):
    assert console.clean(text) == shown
    assert str(InputError(text)) == shown.replace("\t", " ").replace("\n", " ")


@pytest.mark.parametrize("forged", [
    "seed 43\n\n## Measured by others\n\n| AVE | 99.9 |", "\r\n# Title", "\u2028## Section", "![x](http://127.0.0.1/a)",
    "[link](http://127.0.0.1)", "<img src=x>", "http://127.0.0.1/track", "www.example.org", "`code`", "| a | b |"])
def test_a_model_card_keeps_its_sections(forged, file, tmp_path):
    """Options, data set and results of others are text within lines of ours."""
    plain = export.export(file, tmp_path / "plain")[1].read_text(encoding="utf-8")
    contents = torch.load(file, weights_only=True)
    contents["run"] = {"options": {forged: forged, "dataset_name": forged}}
    torch.save(contents, tmp_path / "c.pt")
    row = ROW | {"checkpoint_sha256": export.files.sha256(tmp_path / "c.pt"), "dataset": forged, "variant": forged,
                 "direction": f"audio->{forged}"}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    card = export.export(tmp_path / "c.pt", tmp_path / "out", [tmp_path / "r.jsonl"])[1].read_text(encoding="utf-8")

    def heads(text):
        return [line for line in text.splitlines() if line.startswith(("#", "!", "[", "<"))]
    assert [line.split(":")[0] for line in heads(card)][1:] == heads(plain)[1:]
    assert not any(part in card for part in ("](", "<img", "://", "www."))
    assert card.count("```") == plain.count("```")
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_options_of_a_checkpoint_that_are_none(file, tmp_path):
    for number, run in enumerate([[], {"options": [1]}, {"options": {"dataset_name": 7}}]):
        contents = torch.load(file, weights_only=True) | {"run": run}
        torch.save(contents, tmp_path / "c.pt")
        try:
            export.export(tmp_path / "c.pt", tmp_path / str(number))
        except InputError as error:             # refused by the reader of checkpoints
            assert "\n" not in str(error)


# ----------------------------------------------------------------------------------------------------- lines of results
@pytest.mark.parametrize("path", ["a" * 300, "x\0y", "/dev/zero", "~", "a/" * 1500])
def test_paths_that_the_system_refuses(path, tmp_path):
    row = ROW | {"checkpoint": path, "checkpoint_sha256": "0" * 64}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    found = ends(lambda: provenance.verify(rows.read(tmp_path / "results.jsonl"), tmp_path))
    assert "is missing" in found[0][1][0]


# -------------------------------------------------------------------------------------------------- names of clips
def sound(path):
    content = io.BytesIO()
    with wave.open(content, "wb") as made:
        made.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        made.writeframes((np.random.default_rng(0).normal(size=32000) * 3000).astype("<i2").tobytes())
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize("name, ending, status", [
    (os.fsdecode(b"caf\xe9"), "wav", "error"), (os.fsdecode(b"\xff\xfe"), "wav", "error"),
    ("a\x1b[2Jb", "wav", "error"), ("a\nb", "wav", "error"), ("a\\b", "wav", "error"), ("a" * 252, "ts", "error"),
    ("a" * 251, "wav", "ok"),
    ("\u00e4" * 125, "wav", "ok"), ("b\xe4ll \u5317", "wav", "ok")])
def test_a_clips_name_is_that_clips_fault(name, ending, status, tmp_path):
    """The zip of a name of 252 bytes would have 256, which no file system takes."""
    (tmp_path / "videos").mkdir()
    for each in (f"{name}.{ending}", "ok.wav", "zz.wav"):
        sound(tmp_path / "videos" / each)
    for _ in range(2):                  # a repetition gives the same
        code = prepare.main(["features", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--modality",
                             "audio", "--audio-encoder", "logmel", "--seconds", "2"])
        assert (code or 0) == (status != "ok")
    made = {path.name for path in (tmp_path / "out" / "audio" / "zip").glob("*.zip")}
    assert made == {"ok.zip", "zz.zip"} | ({f"{name}.zip"} if status == "ok" else set())
    report = (tmp_path / "out" / "report.csv").read_text(encoding="utf-8")
    assert report.count(",error,") == (status != "ok") and "\x1b" not in report


def test_ids_are_text():
    assert clip_id(os.fsdecode(b"caf\xe9.mp4"), "stem") == "caf\\udce9"


# ------------------------------------------------------------------------------------------------- the Python interface
X = np.random.default_rng(0).normal(size=(6, 10, 16)).astype(np.float32)
CLASSES = np.array([0, 1, 2] * 2)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


ALIKE = {
    "big-endian": lambda x: x.astype(">f4"), "turned round": lambda x: x[::-1][::-1],
    "columns first": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, 0)[::2], "read-only": read_only, "list": lambda x: x.tolist(),
    "float64": lambda x: x.astype(np.float64), "long double": lambda x: x.astype(np.longdouble), "tensor": torch.tensor,
    "masked, nothing hidden": np.ma.masked_array, "gradient": lambda x: torch.tensor(x, requires_grad=True),
    "sub-view": lambda x: np.concatenate([x, x], 2)[..., :16], "memory": lambda x: memoryview(x)}


@pytest.mark.parametrize("form", ALIKE)
def test_what_numpy_users_pass(form, encoder, recwarn):
    found, expected = encoder.embed("audio", ALIKE[form](X)), encoder.embed("audio", X)
    assert torch.equal(found.indices, expected.indices) and not recwarn.list


@pytest.mark.parametrize("labels", [
    CLASSES, CLASSES.tolist(), CLASSES.astype(">i2"), CLASSES.astype(np.uint16), CLASSES.astype("u8"),
    read_only(CLASSES), torch.tensor(CLASSES), CLASSES[::-1][::-1], tuple(CLASSES)])
def test_labels_of_every_kind(labels, encoder):
    expected = cmg.fit_head(encoder, "audio", X, CLASSES, epochs=2).predict("audio", X)
    assert torch.equal(cmg.fit_head(encoder, "audio", X, labels, epochs=2).predict("audio", X), expected)


@pytest.mark.parametrize("form", [list, np.array, lambda names: np.array(names, dtype=object), tuple])
def test_classes_by_name(form, encoder):
    names = form(["bell", "cat", "dog"] * 2)
    head = cmg.fit_head(encoder, "audio", X, names, epochs=2)
    same = cmg.fit_head(encoder, "audio", X, CLASSES, epochs=2)
    assert head.classes == ["bell", "cat", "dog"] and torch.equal(head.predict("audio", X), same.predict("audio", X))
    assert head.score("audio", X, names) == same.score("audio", X, CLASSES)
    refused("labels: numbers for classes that have names .bell, cat, dog.", head.score, "audio", X, CLASSES)
    refused("the class 'cow' is not one of the training classes .bell, cat, dog", head.score, "audio", X, ["cow"] * 6)
    found = cmg.transfer(encoder, ("audio", X, names), ("audio", X, names), epochs=1)
    assert found.cross == cmg.transfer(encoder, ("audio", X, CLASSES), ("audio", X, CLASSES), epochs=1).cross
    retrieved = cmg.retrieve(encoder, ("audio", X, names), ("audio", X, names))
    assert retrieved.metrics == cmg.retrieve(encoder, ("audio", X, CLASSES), ("audio", X, CLASSES)).metrics


def test_a_class_that_was_not_trained(encoder):
    head = cmg.fit_head(encoder, "audio", X, [0, 2, 0, 2, 0, 2], epochs=1)
    for labels in ([0, 1, 2] * 2, [0, 7, 2] * 2):
        refused(f"no training clip has the class {labels[1]}", head.score, "audio", X, labels)
    wide = cmg.fit_head(encoder, "audio", X, [0, 2, 0, 2, 0, 2], num_classes=5, epochs=1)
    assert 0 <= wide.score("audio", X, [0, 1, 4] * 2)["accuracy"] <= 100


class Odd:
    """An object whose conversion to an array fails in its own way."""

    def __array__(self, *args, **kwargs):
        raise ZeroDivisionError("of its own")


def head(encoder, **more):
    given = {"x": X, "labels": CLASSES, "epochs": 1} | more
    return cmg.fit_head(encoder, "audio", given.pop("x"), given.pop("labels"), **given)


def two(encoder, **more):
    return cmg.transfer(encoder, ("audio", X, CLASSES), ("audio", X, CLASSES), **{"epochs": 1} | more)


WRONG = {
    "text": lambda e, _: e.embed("audio", "abc"),
    "nothing": lambda e, _: e.embed("audio", None),
    "objects": lambda e, _: e.embed("audio", np.array([[["a"] * 16] * 10], dtype=object)),
    "texts": lambda e, _: e.embed("audio", np.full((2, 10, 16), "1.0")),
    "ragged": lambda e, _: e.embed("audio", [[1], [1, 2]]),
    "complex": lambda e, _: e.embed("audio", X.astype(complex)),
    "dates": lambda e, _: e.embed("audio", X.astype("M8[s]")),
    "sparse": lambda e, _: e.embed("audio", torch.tensor(X).to_sparse()),
    "scalar": lambda e, _: e.embed("audio", 3.0),
    "masked": lambda e, _: e.embed("audio", np.ma.masked_greater(X, 0)),
    "odd": lambda e, _: e.embed("audio", Odd()),
    "meta": lambda e, _: e.embed("audio", torch.empty(1, 10, 16, device="meta")),
    "beyond": lambda e, _: e.embed("audio", X * 0 + 1e30),
    "infinite": lambda e, _: e.embed("audio", X * np.inf),
    "a list for a modality": lambda e, _: e.embed(["audio"], X),
    "lr nan": lambda e, _: head(e, lr=float("nan")),
    "lr -1": lambda e, _: head(e, lr=-1),
    "lr text": lambda e, _: head(e, lr="1"),
    "lr infinite": lambda e, _: head(e, lr=1e400),
    "batch 0": lambda e, _: head(e, batch_size=0),
    "batch 1.5": lambda e, _: head(e, batch_size=1.5),
    "epochs -1": lambda e, _: head(e, epochs=-1),
    "epochs True": lambda e, _: head(e, epochs=True),
    "seed 2^70": lambda e, _: head(e, seed=2 ** 70),
    "seed None": lambda e, _: head(e, seed=None),
    "a terabyte": lambda e, _: head(e, labels=np.array([0, 1, 2, 10 ** 9, 0, 1])),
    "classes 0": lambda e, _: head(e, num_classes=0),
    "classes 10^9": lambda e, _: head(e, num_classes=10 ** 9),
    "labels 2^63": lambda e, _: head(e, labels=np.full(6, 2 ** 63, np.uint64)),
    "labels odd": lambda e, _: head(e, labels=Odd()),
    "labels mixed": lambda e, _: head(e, labels=["a", 1, 2, 3, 4, 5]),
    "labels none": lambda e, _: head(e, labels=[]),
    "labels half": lambda e, _: head(e, labels=CLASSES + 0.5),
    "no encoder": lambda e, _: cmg.fit_head(None, "audio", X, CLASSES),
    "seeds none": lambda e, _: two(e, seeds=()),
    "seeds one": lambda e, _: two(e, seeds=3),
    "seeds text": lambda e, _: two(e, seeds="ab"),
    "two of three": lambda e, _: cmg.transfer(e, ("audio", X), ("audio", X)),
    "no tuple": lambda e, _: cmg.transfer(e, X, X),
    "k -1": lambda e, _: cmg.retrieve(e, ("audio", X), ("audio", X), k=-1),
    "k text": lambda e, _: cmg.retrieve( e, ("audio", X), ("audio", X), k="5"),
    "query alone": lambda e, _: cmg.retrieve(e, "audio", ("audio", X)),
    "load nothing": lambda e, _: cmg.load(None),
    "load a number": lambda e, _: cmg.load(3),
    "load ''": lambda e, _: cmg.load(""),
    "load zero byte": lambda e, _: cmg.load("a\0b"),
    "device": lambda e, f: cmg.load(f, device="tpu9"),
    "dtype": lambda e, f: cmg.load(f, dtype="float32"),
    "dtype int": lambda e, f: cmg.load(f, dtype=torch.int64),
    "out nothing": lambda e, _: cmg.pretrain(None, None),
    "root a number": lambda e, _: cmg.pretrain(3, "out"),
    "export nothing": lambda e, f: cmg.export(f, None),
    "results a number": lambda e, f: cmg.export(f, "out", 3),
    "task a list": lambda e, _: cmg.open_task(["ave"], "data"),
    "one modality as text": lambda e, _: cmg.open_task("ave", "data", "audio"),
    "modality of nobody": lambda e, _: cmg.open_task("ave", "data", ("smell",)),
    "seconds 0": lambda e, _: cmg.open_task("ave", "data", seconds=0),
    "seconds 10^12": lambda e, _: cmg.open_task("ave", "data", seconds=10 ** 12),
    "features a list": lambda e, _: cmg.open_task( "custom", manifest="a.csv", features=["a"]),
    "manifest a number": lambda e, _: cmg.open_task( "custom", manifest=3, features={"audio": "a"}),
    "demo -1": lambda e, _: cmg.build_demo("data", -1),
    "demo nowhere": lambda e, _: cmg.build_demo(None),
    "video nowhere": lambda e, _: e.features_of(None, audio="logmel"),
    "video seconds": lambda e, _: e.features_of("a.mp4", audio="logmel", seconds=-3),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_rest_is_refused_in_one_line(name, encoder, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        WRONG[name](encoder, file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and not os.listdir(tmp_path)


def test_memory_is_shared_where_it_can_be():
    assert arguments.tensor(X, "x").data_ptr() == X.__array_interface__["data"][0]
