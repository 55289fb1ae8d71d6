"""Codes that are kept beside the checkpoint: the same rows without an encoder, and nothing that does not fit."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import clip_retrieval
import evaluate
from cmg.checkpoints import checkpoint
from cmg.data.clips import Clips
from cmg.downstream.code_cache import CodeCache
from cmg.downstream.settings import CODE_CACHE as FOLDER
from cmg.results import rows as results
from cmg.systems.base import FrozenEncoder
from test_tasks import tree, write_checkpoint  # noqa: F401  (tree is a fixture)

KEY = "a key"


@pytest.fixture
def cache(tmp_path):
    """A cache of 10 KB and the lines that it has for the user."""
    lines = []
    cache = CodeCache(tmp_path / "model.pt", 1e-5, {}, lines.extend)
    cache.lines = lines
    return cache


def entry(number=0, size=20):
    return {"table": torch.full((size, 5), float(number)), "rows": torch.arange(6).view(2, 3)}


def is_entry(found, number=0):
    expected = entry(number)
    return found is not None and set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in found)


def entries(folder):
    return sorted((folder / FOLDER).glob("*"), key=lambda path: path.stat().st_mtime_ns)


# ------------------------------------------------------------------------------------------------ the same results
def measured(folder):
    """Result lines without their times and records."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "provenance", "data_checked")}
            for row in results.read(folder / "results.jsonl")]


def no_pass(self, *args, **more):
    raise AssertionError("an encoder pass")


@pytest.mark.parametrize("system, padding, program, options", [
    ("dcid", "repeat", evaluate, ["--tasks", "ave", "avvp", "ucf_oscmg", "retrieval", "--n_epoch", "2"]),
    ("dcid", "mask", evaluate, ["--tasks", "avvp", "retrieval", "--n_epoch", "2"]),
    ("h_dcid", "repeat", evaluate, ["--tasks", "ave", "--n_epoch", "2", "--zero_code0"]),
    ("fcid", "repeat", clip_retrieval, [])])
def test_the_second_call_gives_the_same_rows_without_an_encoder_pass(
        system, padding, program, options, tree, tmp_path, monkeypatch):        # noqa: F811
    model = write_checkpoint(tmp_path / "model.pt", system=system, padding=padding)
    named = [str(model)] if program is evaluate else ["--checkpoint", str(model)]

    def call(run, *more):
        program.main([*named, "--data_root", str(tree / "data"), "--snapshot_pref", str(tmp_path / run), "--workers",
                      "0", "--gpu", "cpu", *options, *more])
        return measured(tmp_path / run)
    without = call("without", "--cache_gb", "0")
    assert without and not (tmp_path / FOLDER).exists()
    assert call("first") == without
    kept = entries(tmp_path)
    assert kept
    monkeypatch.setattr(FrozenEncoder, "embed", no_pass)
    monkeypatch.setattr(FrozenEncoder, "embed_clips", no_pass)
    assert call("second") == without and entries(tmp_path) == kept
    if program is evaluate:                     # other heads, TOC and thresholds are measured on the same codes
        call("others", "--seeds", "1", "2", "--lr", "1e-3", "--toc_preset", "off", "fixed", "--no_control")


# ------------------------------------------------------------------------------------------------ what is another entry
class Made(Clips):
    """Clips of a folder that need not be read."""

    def __init__(self, path, **changed):
        self.keys, self.seconds, self.padding, self.modalities = ["a", "b"], 10, "repeat", ("audio", "video", "text")
        self.stores = {m: type("Store", (), {"path": path / m, "tail": (4,), "leading": (10,)}) for m in
                       ("audio", "video")}
        self.text = np.ones((2, 3, 4), np.float32), np.array([0, 1])
        self.__dict__.update(changed)


def test_whatever_the_values_depend_on_is_in_the_key(tmp_path):
    model = write_checkpoint(tmp_path / "model.pt")
    contents = {tmp_path / m: m * 3 for m in ("audio", "video")}

    def key(modality="audio", file=model, seed=None, zero=False, dtype=torch.float32, other=(), how=None, **changed):
        encoder = checkpoint.load_encoder(file, dtype=dtype, zero_code0=zero)
        encoder = encoder if seed is None else checkpoint.untrained_like(encoder, seed)
        with_contents = contents | {tmp_path / m: "other" for m in other}
        return CodeCache(file, 1, with_contents, print).key(
            encoder, Made(tmp_path, **changed), modality, **{"batch_size": 80, "precision": "float32"} | (how or {}))
    index = np.array([0, 1])
    text = np.zeros((2, 3, 4), np.float32), index
    differing = [
        key(), key("video"), key("text"), key("text", text=text), key("text", text=(text[0] + 1, index[::-1])),
        key(file=write_checkpoint(tmp_path / "h.pt", system="h_dcid")), key(seed=0), key(seed=1), key(zero=True),
        key(dtype=torch.float64), key(other=["audio"]), key(how={"batch_size": 8}), key(how={"precision": "bf16"}),
        key(keys=["a", "c"]), key(keys=["b", "a"]), key(seconds=5), key(padding="mask"),
        key(padding="mask", other=["video"])]
    assert len(set(differing)) == len(differing)
    (tmp_path / "elsewhere").mkdir()
    same = [key(), key(other=["video"]), key(text=text), key(file=write_checkpoint(tmp_path / "elsewhere/other.pt"))]
    assert len(set(same)) == 1                  # neither the path of the checkpoint nor other modalities count


# ------------------------------------------------------------------------------------------------ what does not fit
def test_a_damaged_entry_counts_as_none_and_is_replaced(cache):
    cache.write(KEY, entry())
    assert is_entry(cache.read(KEY)) and cache.read("another key") is None
    path, = entries(cache.folder.parent)
    whole = path.read_bytes()
    cache.write("another key", entry(1))
    foreign = next(other for other in entries(cache.folder.parent) if other != path).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    positions = (*range(header), *range(header, len(whole), 7))
    flipped = [whole[:k] + bytes([whole[k] ^ bit]) + whole[k + 1:] for k in positions for bit in (1, 64)]
    for bad in (*flipped, b"", whole[:-1], whole[:header], whole[:5], whole + b"x", foreign, b"\x80\x04]q\x00."):
        path.write_bytes(bad)
        assert cache.read(KEY) is None
    path.unlink()
    os.mkfifo(path)                             # a pipe must not block
    assert cache.read(KEY) is None
    path.unlink()
    cache.write(KEY, entry())
    assert is_entry(cache.read(KEY)) and not cache.lines


def test_the_oldest_entries_leave_first(cache):
    for number in range(40):
        cache.write(str(number), entry(number))
        os.utime(cache._path(str(number)), (number, number))
        assert sum(path.stat().st_size for path in entries(cache.folder.parent)) <= cache.limit
    left = [number for number in range(40) if cache.read(str(number))]
    assert left == list(range(left[0], 40)) and 5 < len(left) < 20
    cache.write("large", entry(size=1000))
    assert cache.read("large") is None and left == [number for number in range(40) if cache.read(str(number))]
    assert len(cache.lines) == 1 and cache.lines[0].startswith("--cache_gb 1e-05: codes of 2.03e-05 GB do not fit")


def test_a_folder_that_cannot_be_written_is_one_line(cache):
    cache.folder.write_text("a file in place of the folder")
    cache.write(KEY, entry())
    assert cache.read(KEY) is None and cache.folder.read_text() == "a file in place of the folder"
    assert len(cache.lines) == 1 and cache.lines[0].startswith(f"{cache.folder}: cannot be written (")


def test_readers_and_writers_side_by_side(cache):
    """Four threads with caches of their own; an entry is whole or absent at any time, and no temporary file stays."""
    def work(number):
        own = copy.copy(cache)
        for turn in range(40):
            which = (number + turn) % 12        # more than there is room for
            own.write(str(which), entry(which))
            found = own.read(str(which))
            assert found is None or is_entry(found, which)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not cache.lines and all(path.suffix == ".safetensors" for path in entries(cache.folder.parent))
