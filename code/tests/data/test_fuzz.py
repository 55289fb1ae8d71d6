"""Whatever is in a list, a results file or a checkpoint, reading it succeeds or ends in our own error."""

import copy
import io
import json

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
