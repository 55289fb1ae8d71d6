"""Files of others: bombs and crafted files are refused in one line and in little memory; thousands of fuzzed ones are
read or refused."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmg.checkpoints import checkpoint, hub
from cmg.data import csv as annotation_csv
from cmg.data import origins
from cmg.data.archive import read_counts, read_zip, unpickle_array
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS
from conftest import refused
from foreign_files import exported_folder
from test_fuzz import FUZZ, changed, edits


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folder of a small checkpoint and its exported encoder."""
    folder = tmp_path_factory.mktemp("good")
    exported_folder(folder)
    return folder


def refused_checkpoint(path, contents, words):
    torch.save(contents, path)
    refused(f"{path}.*{words}", checkpoint.load_encoder, path)


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"Encoder_parameters": {"x": torch.zeros(1 << 22)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(
            tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    refused("compressed to", checkpoint.read, tmp_path / "bomb.pt")


@pytest.mark.parametrize("name, value, words", [
    ("num_codes", 1 << 40, "is 1,099,511,627,776"), ("num_layers", 10 ** 6, "num_layers 1,000,000"),
    ("feed_forward", 1 << 21, "is 2,097,152"), ("num_codes", 1 << 19, "parameters; at most"), ("num_codes", -1, "-1")])
def test_a_config_that_claims_too_much(good, tmp_path, name, value, words):
    contents = checkpoint.read(good / "x.pt")
    contents["config"] |= {name: value} | ({"code_dim": 8192} if "parameters" in words else {})
    refused_checkpoint(tmp_path / "x.pt", contents, words)


def test_a_tensor_that_is_one_number(good, tmp_path):
    contents = checkpoint.read(good / "x.pt")
    section = contents["Encoder_parameters"]
    name = next(iter(section))
    section[name] = torch.zeros(1).expand(1 << 20, 1 << 20)
    refused_checkpoint(tmp_path / "x.pt", contents, "stores fewer elements")


@pytest.mark.parametrize("content", [b"{" + b'"a":' * 100_000, b"[" * 100_000, b" " * (LIMITS.record_bytes + 1), b"{}",
                                     b"\xff", b'{"format": 1, "config": {}, "epoch": 1e99, "weights_sha256": 1}'])
def test_an_exported_config(good, tmp_path, content):
    for name in (hub.WEIGHTS, hub.CONFIG):
        (tmp_path / name).write_bytes((good / "shared" / name).read_bytes())
    (tmp_path / hub.CONFIG).write_bytes(content)
    refused("config.json", hub.load_encoder, tmp_path)


def test_a_list_beyond_the_limit(tmp_path):
    with open(tmp_path / "list.csv", "wb") as file:
        file.truncate(LIMITS.list_bytes + 1)
    refused("more than", annotation_csv.read_table, tmp_path / "list.csv", ("a",))


# -------------------------------------------------------------------------------------------------------------- fuzzed
PICKLED = [pickle.dumps(np.arange(12, dtype=kind).reshape(3, 4), protocol) for kind in ("f4", "i8")
           for protocol in (2, 3, 4)]
COUNTED = pickle.dumps({k: k + 1 for k in range(20)}, 2)


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pkl", data)
    return buffer.getvalue()


@st.composite
def damaged(draw, good):
    """Bytes of one of some good files after up to three changes."""
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        at, noise = draw(st.integers(0, len(data))), draw(st.binary(max_size=8))
        data[at:at + draw(st.integers(0, 12))] = noise
    return bytes(data)


def read_or_refused(read, *args):
    try:
        return read(*args)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=400, **FUZZ)
@given(data=st.one_of(damaged(PICKLED), st.binary(max_size=60)))
def test_pickles(data):
    found = read_or_refused(unpickle_array, data, "x")
    assert found is None or found.dtype.kind in "biuf"


@settings(max_examples=225, **FUZZ)
@given(data=damaged([zipped(PICKLED[0]), zipped(COUNTED)]))
def test_zips(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    path.write_bytes(data)
    read_or_refused(read_zip, path)


@settings(max_examples=125, **FUZZ)
@given(data=damaged([COUNTED]))
def test_word_lists(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pkl"
    path.write_bytes(data)
    found = read_or_refused(read_counts, path)
    assert found is None or all(type(n) is int for pair in found.items() for n in pair)


@settings(max_examples=175, **FUZZ)
@given(changes=edits())
def test_sidecars(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "sidecar"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"settings": {"audio": {"network": "logmel"}, "clips": {"preset": None}}, "notes": ["a"]})
    (folder / origins.SIDECAR).write_text(changed(text, changes))
    read_or_refused(origins.describe, folder / "audio" / "zip", "audio")
    read_or_refused(origins.notes, folder / "audio" / "zip", "audio")


@settings(max_examples=400, **FUZZ)
@given(changes=edits(), which=st.sampled_from([hub.WEIGHTS, hub.CONFIG]))
def test_exported_encoders(good, tmp_path_factory, changes, which):
    folder = tmp_path_factory.getbasetemp() / "exported"
    folder.mkdir(exist_ok=True)
    for name in (hub.WEIGHTS, hub.CONFIG):
        (folder / name).write_bytes((good / "shared" / name).read_bytes())
    (folder / which).write_bytes(changed((folder / which).read_bytes().decode("latin1"), changes).encode(
        "latin1", "replace"))
    read_or_refused(hub.load_encoder, folder)
