"""Files with anything wrong are read, or refused in one line that names the file: lists and checkpoints here; videos,
HDF5 files, weights of other programs, exported folders and pictures in a process of its own with one GiB of room
(foreign_reader.py), where a crash, a hang or a bomb is a failed example."""

import copy
import io
import json

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.data import csv as annotation_csv
from cmg.data import text
from cmg.data.layout import DATA_PATHS
from cmg.data.sets import avs_s4, avvp, vggsound
from cmg.models.random import StepRandom
from cmg.prepare import lists
from cmg.results import rows
from cmg.training.run_state import RunState
from cmg.training.settings import OptimConfig
from cmg.training.step import TrainStep
from cmg.utils.errors import InputError
from conftest import refused
from foreign_files import (
    Files,
    damaged,
    ends,
    hdf5_files,
    header_of,
    images,
    not_zero,
    safetensors,
    saved,
    videos,
    weight_files,
    with_places,
    write_shared,
)
from foreign_reader import FAILED, READ
from test_extract_weights import small
from test_results import row
from tiny import train

FUZZ = {"deadline": None, "phases": [Phase.explicit, Phase.generate], "derandomize": True, "database": None,
        "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
WORDS = st.one_of(
    st.sampled_from(["", " ", "\t", "\n", ",", "&", '"', "nan", "NaN", "None", "-1", "0", "1e400", "1e999999", "inf",
                     "²", "٣", "\0", "\ufeff", "\r", "..", "/etc", "é", "\ud800".encode("utf-8", "replace").decode(),
                     "train", "a" * 300, "[" * 3000, "{}", "true", '{"task": 1}', "9" * 5000]),
    st.text(max_size=8))


@st.composite
def edits(draw):
    """Up to four changes of a text, each (kind, where in the text as a share, how far, inserted text)."""
    return draw(st.lists(st.tuples(st.sampled_from(["cut", "insert", "replace", "double", "keep"]), st.floats(0, 1),
                                   st.integers(0, 60), WORDS), min_size=1, max_size=4))


def changed(good, changes):
    """A text after the edits."""
    for kind, share, size, word in changes:
        at = int(share * len(good))
        if kind == "cut":
            good = good[:at] + good[at + size:]
        elif kind == "insert":
            good = good[:at] + word + good[at:]
        elif kind == "replace":
            good = good[:at] + word + good[at + size:]
        elif kind == "double":
            good = good[:at] + good[max(0, at - size):]
        else:
            good = good[:at]
    return good


@pytest.fixture(scope="module")
def readers(demo_data):
    """name -> (a good text, reader that returns something with a length)."""
    places = {name: demo_data / place for name, place in DATA_PATHS.items()}
    classes = annotation_csv.read_classes(places["avvp.categories"])
    good = {"vggsound": places["vggsound.csv"], "events": places["avvp.audio_csv"], "prompts": places["ave.prompts"],
            "classes": places["avvp.categories"]}
    good = {name: path.read_text() for name, path in good.items()}
    good["annotations"] = "Category&VideoID&Quality&StartTime&EndTime\n" + "".join(
        f"{name}&{k:011d}&good&{k}&{k + 3}\n" for k, name in enumerate(("Bark", "Truck", "Horse")))
    good["avs"] = "name,category,split\nclip_a,dog,train\nclip_b,cat,val\nclip_c,cow,test\n"
    good["results"] = json.dumps(row()) + "\n" + json.dumps(row(seed=2)) + "\n"
    read = {"vggsound": vggsound.read_list, "events": lambda path: avvp.read_events(path, classes),
            "prompts": text.read_prompts, "classes": annotation_csv.read_classes, "annotations": lists.read_annotations,
            "avs": avs_s4.read_list, "results": lambda path: rows.summary(rows.read(path))}
    return {name: (good[name], read[name]) for name in good}


@settings(max_examples=250, **FUZZ)
@given(name=st.sampled_from(["vggsound", "events", "prompts", "classes", "annotations", "avs", "results"]),
       changes=edits(), encoding=st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
def test_lists_are_read_or_refused(readers, tmp_path_factory, name, changes, encoding):
    good, read = readers[name]
    path = tmp_path_factory.getbasetemp() / f"fuzzed-{name}.csv"
    path.write_bytes(changed(good, changes).encode(encoding, "replace"))
    try:
        found = read(path)
    except InputError as error:
        assert "fuzzed-" in str(error)
        return
    assert len(found) > 0
    if name == "events":
        names, labels = found
        assert labels.shape[0] == len(names) and set(labels.ravel().tolist()) <= {0.0, 1.0}


def test_good_lists_are_read(readers, tmp_path):
    for name, (good, read) in readers.items():
        (tmp_path / name).write_text(good)
        assert len(read(tmp_path / name)) > 0


# --------------------------------------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def good_file(demo_data, small_model, tmp_path_factory):
    """A checkpoint of a tiny run."""
    folder = tmp_path_factory.mktemp("fuzz")
    train(demo_data, folder, "--max_steps", 2)
    return next((folder / "checkpoints").glob("*.pt"))


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.just(2 ** 80), st.floats(allow_nan=True), st.text(max_size=4),
    st.just([]), st.just({}), st.just({0: 1}), st.just((1, 2)),
    st.builds(torch.zeros, st.lists(st.integers(0, 5), max_size=4)), st.just(torch.tensor(float("nan"))),
    st.just(torch.full((32, 128), float("inf"))), st.just(torch.zeros(3, dtype=torch.int64)),
    st.just(torch.zeros(2, dtype=torch.complex64)), st.just(torch.zeros(24, 32).to_sparse()),
    st.just(torch.zeros(4, dtype=torch.bool)), st.just(torch.empty(7, device="meta")))
RENAMED = st.sampled_from(["audio_self_att_2.x", "", "Cross_quantizer.embedding", "run", 3, None, "video_self_att"])
ACTIONS = st.sampled_from(["replace", "replace", "remove", "rename", "add", "crop", "cast"])


def damage(contents, draw):
    """Change one entry somewhere in a nested dict or list, in place."""
    here = contents
    for _ in range(draw(st.integers(0, 4))):
        inner = [value for value in (here.values() if isinstance(here, dict) else here)
                 if isinstance(value, (dict, list)) and value]
        if not inner:
            break
        here = inner[draw(st.integers(0, len(inner) - 1))]
    keys = list(here) if isinstance(here, dict) else list(range(len(here)))
    key, action = keys[draw(st.integers(0, len(keys) - 1))], draw(ACTIONS)
    value = here[key]
    if action == "remove":
        del here[key]
    elif action == "crop" and isinstance(value, torch.Tensor) and value.ndim:
        here[key] = value.narrow(draw(st.integers(0, value.ndim - 1)), 0, 1).clone()
    elif action == "cast" and isinstance(value, torch.Tensor):
        here[key] = value.to(draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float64, torch.int32])))
    elif action in ("rename", "add") and isinstance(here, dict):
        here[draw(RENAMED)] = here.pop(key) if action == "rename" else draw(ODD)
    else:
        here[key] = draw(ODD)


def structure(x):
    """A copy of nested dicts and lists that shares the tensors."""
    if isinstance(x, dict):
        return type(x)((key, structure(value)) for key, value in x.items())
    return [structure(value) for value in x] if isinstance(x, list) else x


def resume(path):
    """All that resuming reads of a file."""
    loaded = checkpoint.open_file(path)
    if loaded.complete:
        trainer = TrainStep(loaded.system, StepRandom(torch.Generator()), OptimConfig())
        load_optimizers(loaded, trainer.optimizers)
        RunState.of(loaded)
    return loaded


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_checkpoint_dicts_are_read_or_refused(good_file, monkeypatch, data):
    contents = structure(checkpoint.read(good_file))
    for _ in range(data.draw(st.integers(1, 3))):
        if contents:
            damage(contents, data.draw)
    monkeypatch.setattr(checkpoint, "read", lambda path, mmap=False: contents)
    try:
        with torch.random.fork_rng():
            loaded = resume(good_file)
    except InputError as error:
        assert str(good_file) in str(error)
        return
    finally:
        monkeypatch.undo()
    assert all(value.isfinite().all() for value in loaded.system.state_dict().values())


@settings(max_examples=60, **FUZZ)
@given(share=st.floats(0, 1), size=st.integers(0, 2000), noise=st.binary(max_size=60))
def test_checkpoint_bytes_are_read_or_refused(good_file, tmp_path_factory, share, size, noise):
    good = good_file.read_bytes()
    at = int(share * len(good))
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(good[:at] + noise + good[at + size:])
    try:
        with torch.random.fork_rng():
            resume(path)
    except InputError as error:
        assert "fuzzed.pt" in str(error)


@settings(max_examples=30, **FUZZ)
@given(value=st.recursive(ODD, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
    st.one_of(st.text(max_size=3), RENAMED), inner, max_size=3)), max_leaves=6))
def test_any_plain_value_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "plain.pt"
    buffer = io.BytesIO()
    torch.save(copy.copy(value), buffer)
    path.write_bytes(buffer.getvalue())
    refused("plain.pt", checkpoint.load_encoder, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`Files`, and the folder "here" for damaged ones."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "videos").mkdir()
    return Files(here=folder, videos=with_places(videos(folder / "videos"), ends),
                 hdf5=with_places(hdf5_files(folder / "hdf5"), not_zero),
                 weights=with_places(weight_files(folder / "weights"), ends),
                 images=with_places(images(folder / "images"), ends))


def check(reader, what, path):
    outcome, text = reader.read(what, path)
    assert outcome != FAILED, f"{what}: {text}"
    return outcome


def check_bytes(files, reader, what, name, content):
    """`check` of a file with these bytes."""
    path = files["here"] / name
    path.write_bytes(content)
    check(reader, what, path)


def test_good_files_are_read(files, reader):
    here = files["here"]
    for name in files["videos"]:
        assert check(reader, "video", here / "videos" / name) == READ
        assert check(reader, "video, all", here / "videos" / name) == READ
    for name in files["hdf5"]:
        assert check(reader, name, here / "hdf5" / name) == READ
    for name in files["weights"]:
        assert check(reader, name.partition(",")[0].partition(".")[0], here / "weights" / name) == READ
    for name in files["images"]:
        assert check(reader, "image", here / "images" / name) == READ


@settings(max_examples=60, **FUZZ)
@given(data=st.data(), what=st.sampled_from(["video", "video", "video, all", "video, silence"]))
def test_videos(files, reader, data, what):
    name, content = data.draw(damaged(files["videos"]))
    check_bytes(files, reader, what, f"fuzzed-{name}", content)


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_hdf5(files, reader, data):
    name, content = data.draw(damaged(files["hdf5"]))
    check_bytes(files, reader, name, "fuzzed.h5", content)


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_bytes_of_weights(files, reader, data):
    name, content = data.draw(damaged(files["weights"]))
    what, _, ending = name.partition(".")
    check_bytes(files, reader, what.partition(",")[0], f"fuzzed.{ending or 'bin'}", content)


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_pictures(files, reader, data):
    name, content = data.draw(damaged(files["images"]))
    check_bytes(files, reader, "image", f"fuzzed-{name}", content)


TENSORS = st.one_of(ODD, st.builds(
    lambda shape, kind: torch.ones(shape, dtype=kind),
    st.lists(st.sampled_from([0, 1, 2, 3, 8]), max_size=5),
    st.sampled_from([torch.float16, torch.float64, torch.int8, torch.complex64, torch.float8_e5m2, torch.bool])),
    st.builds(lambda n: torch.zeros(1, dtype=torch.float16).expand(n, n, 3, 3), st.sampled_from([1, 3, 1 << 20])))


@settings(max_examples=50, **FUZZ)
@given(data=st.data(), network=st.sampled_from(["vgg19", "vggish", "pca"]))
def test_tensors_of_weights(files, reader, data, network):
    state = ({"pca_eigen_vectors": torch.eye(4), "pca_means": torch.zeros(4)} if network == "pca" else
             dict(small(network).state_dict()))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(state)))
        state[key] = data.draw(TENSORS)
    path = files["here"] / "fuzzed.pth"
    torch.save(state, path)
    check(reader, network, path)


HUGE = st.sampled_from([0, 1, 2, 7, 8, 1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, 1 << 64, -1])
KINDS = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X", ""])


@settings(max_examples=60, **FUZZ)
@given(data=st.data())
def test_headers_of_exported_weights(files, reader, exported, data):
    weights, about = exported["weights"], exported["about"]
    header, content = header_of(weights)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        entry = header[name] = dict(header[name])
        change = data.draw(st.sampled_from(["shape", "size", "kind", "offset", "name", "copy", "odd"]))
        if change == "shape":
            entry["shape"] = data.draw(st.lists(HUGE, max_size=4))
        elif change == "size" and entry["shape"]:
            entry["shape"] = [data.draw(HUGE), *entry["shape"][1:]]
        elif change == "kind":
            entry["dtype"] = data.draw(KINDS)
        elif change == "offset":
            entry["data_offsets"] = [data.draw(HUGE), data.draw(HUGE)]
        elif change == "copy":
            entry["data_offsets"] = header[data.draw(st.sampled_from(sorted(header)))]["data_offsets"]
        elif change == "odd":
            odd = data.draw(st.sampled_from([None, "x", [], {}, -1, [[1]]]))
            entry[data.draw(st.sampled_from(sorted(entry)))] = odd
        else:
            header[data.draw(st.text(max_size=4))] = header.pop(name)
    length = data.draw(st.one_of(st.none(), st.none(), HUGE.filter(lambda n: 0 <= n < 1 << 64)))
    check(reader, "shared", write_shared(files["here"] / "folder", safetensors(header, content, length), about))


@settings(max_examples=40, **FUZZ)
@given(data=st.data())
def test_exported_tensors_and_configs(files, reader, exported, data):
    about = {**exported["about"], "config": dict(exported["about"]["config"])}
    state = load(exported["weights"])
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(state)))
        state[key] = data.draw(TENSORS.filter(lambda x: isinstance(x, torch.Tensor) and x.numel() < 1 << 16
                                              and x.layout == torch.strided and not x.is_meta))
    else:
        place = about if data.draw(st.booleans()) else about["config"]
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(st.one_of(
            HUGE, st.none(), st.text(max_size=3), st.lists(HUGE, max_size=3), st.floats(allow_nan=False),
            st.dictionaries(st.text(max_size=2), HUGE, max_size=2)))
    check(reader, "shared", write_shared(files["here"] / "folder", saved(state), about))
