"""Packs: equal to their source, resumed after a kill, verified, and read by the same datasets."""

import os
import pickle
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from cmg.data.clips import Clips
from cmg.data.features import open_features
from cmg.prepare.pack import pack
from conftest import ROOT, message, refused
from data_trees import features, write_zips, zip_bytes

IDS = [f"clip{k:03d}" for k in range(150)]


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("zips") / "zip", np.random.default_rng(0)
    write_zips(folder, {name: features(rng, 8 + k % 4) for k, name in enumerate(IDS)})
    return folder


@pytest.fixture
def broken(tmp_path, zips):
    """A copy of ten clips, the fourth of them an empty file."""
    folder = tmp_path / "broken" / "zip"
    folder.mkdir(parents=True)
    for name in IDS[:10]:
        (folder / f"{name}.zip").write_bytes((zips / f"{name}.zip").read_bytes())
    (folder / f"{IDS[3]}.zip").write_bytes(b"")
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pack_equals_its_source(zips, tmp_path, dtype):
    done = pack(zips, tmp_path / "p.h5", "audio", dtype)
    assert (done.clips, done.resumed, done.skipped) == (150, 0, {}) and not list(tmp_path.glob("*.partial"))
    source, packed = open_features(zips, "audio"), open_features(tmp_path / "p.h5", "audio")
    for name in IDS:
        x = packed.read(name)
        assert x.dtype == np.float32 and np.array_equal(x, source.read(name).astype(dtype))
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["features"].chunks == (1, 10, 128) and file["features"].dtype == dtype
        assert [name.decode() for name in file["ids"]] == IDS
        assert np.array_equal(file["features"][7], packed.read_stored(IDS[7]))          # h5py sees the same numbers


def test_datasets_read_packs_zips_and_memory_alike(zips, tmp_path):
    pack(zips, tmp_path / "p.h5", "audio", "float32")
    order = IDS[::-7]
    sets = [Clips("set", ("audio",), order, {"audio": place}, in_memory=memory)
            for place in (zips, tmp_path / "p.h5") for memory in (False, True)]
    for data in sets:
        for i in range(len(order)):
            assert np.array_equal(data[i]["audio"], sets[0][i]["audio"])
        assert np.array_equal(data.load("audio"), np.stack([item["audio"] for item in sets[0]]))
        batches = [batch["audio"].numpy() for batch in DataLoader(data, 8, num_workers=2)]
        assert np.array_equal(np.concatenate(batches), data.load("audio"))
    assert sets[3].memory["audio"].dtype == np.float32 and sets[2].load("audio", np.float16).dtype == np.float16
    assert np.array_equal(pickle.loads(pickle.dumps(sets[2]))[3]["audio"], sets[0][3]["audio"])


def test_video_and_rows_are_packed_too(tmp_path):
    rng = np.random.default_rng(1)
    write_zips(tmp_path / "zip", {"a": features(rng, 12, (7, 7, 5)), "b": features(rng, 3, (7, 7, 5))})
    pack(tmp_path / "zip", tmp_path / "v.h5", "video", "float32")
    store = open_features(tmp_path / "v.h5", "video")
    assert np.array_equal(store.read("b"), open_features(tmp_path / "zip", "video").read("b"))
    with h5py.File(tmp_path / "ave.h5", "w") as file:
        file["avadataset"] = rng.random((12, 10, 128))
    pack(tmp_path / "ave.h5", tmp_path / "p.h5", "audio", "float32")
    rows, packed = open_features(tmp_path / "ave.h5", "audio"), open_features(tmp_path / "p.h5", "audio")
    assert all(np.array_equal(packed.read(str(n)), rows.read(str(n))) for n in range(12))
    assert "rank 2" in message(open_features, tmp_path / "p.h5", "label")
    assert np.array_equal(open_features(tmp_path / "p.h5", "audio", 4).read("0"), packed.read("0")[:4])


def test_a_bad_clip_stops_or_is_skipped(broken, tmp_path):
    out = tmp_path / "p.h5"
    assert "0 bytes" in message(pack, broken, out, "audio") and not out.exists()
    done = pack(broken, out, "audio", on_bad_clip="skip")               # resumes where the first stopped
    assert done.clips == 9 and done.resumed > 0 and list(done.skipped) == [IDS[3]]
    assert "1 of 10 clips of set have no audio feature" in message(Clips, "set", ("audio",), IDS[:10], {"audio": out})
    assert len(Clips("set", ("audio",), IDS[:10], {"audio": out}, on_bad_clip="skip")) == 9


def test_what_cannot_be_packed(zips, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "contains no <id>.zip" in message(pack, tmp_path / "empty", tmp_path / "p.h5", "audio")
    pack(zips, tmp_path / "p.h5", "audio")
    assert "already a pack" in message(pack, tmp_path / "p.h5", tmp_path / "q.h5", "audio")
    os.rename(tmp_path / "p.h5", tmp_path / "r.h5.partial")
    assert "an unfinished pack with other clips" in message(pack, zips, tmp_path / "r.h5", "audio", "float32")
    (tmp_path / "s.h5.partial").write_bytes(b"nothing")
    assert "delete" in message(pack, zips, tmp_path / "s.h5", "audio")
    assert "cannot be written" in message(pack, zips, tmp_path / "s.h5.partial" / "below" / "t.h5", "audio")


def test_packs_that_are_not_whole(zips, tmp_path):
    out = tmp_path / "p.h5"
    pack(zips, out, "audio")
    good = out.read_bytes()
    for change, finding in ((lambda f: f.attrs.__setitem__("complete", False), "an unfinished pack"),
                            (lambda f: f.__delitem__("ids"), "no dataset 'ids'"),
                            (lambda f: (f.__delitem__("features"), f.create_dataset("features", (150, 10, 128), "f2")),
                             "one uncompressed chunk")):
        out.write_bytes(good)
        with h5py.File(out, "r+") as file:
            change(file)
        assert finding in message(open_features, out, "audio")
    out.write_bytes(good[:len(good) // 2])
    assert "not a valid HDF5 file" in message(open_features, out, "audio")


def test_damage_between_two_runs_is_found(broken, zips, tmp_path):
    """A clip of the partial file whose bytes changed does not pass for written."""
    message(pack, broken, tmp_path / "p.h5", "audio")
    with h5py.File(tmp_path / "p.h5.partial", "r+") as file:
        assert file["state"][0] == 1
        file["features"].id.write_direct_chunk((0, 0, 0), bytes(10 * 128 * 2))
    (broken / f"{IDS[3]}.zip").write_bytes(zip_bytes(np.ones((10, 128), np.float32)))
    pack(broken, tmp_path / "p.h5", "audio")
    first = open_features(zips, "audio").read(IDS[0]).astype(np.float16)
    assert np.array_equal(open_features(tmp_path / "p.h5", "audio").read(IDS[0]), first)


NOISY = """
import os, sys
sys.path.insert(0, {src!r})
from cmg.prepare import pack as packing
write = packing._save
read = packing._read
packing._read = lambda *args: (os.write(1, b"."), read(*args))[1]
packing._save = lambda *args: (os.write(1, b"s"), write(*args))[1]
packing.BATCH = 8
packing.pack({source!r}, {out!r}, "audio", "float32")
"""


def test_killed_at_any_moment_it_goes_on(zips, tmp_path):
    """SIGKILL while reading, writing and saving, each time resumed; the pack equals that of an unbroken run."""
    out = tmp_path / "p.h5"
    code = NOISY.format(src=str(ROOT / "code" / "src"), source=str(zips), out=str(out))
    states = []
    for events in (1, 9, 31):                           # 9: with the first flags being saved
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
            assert len(run.stdout.read(events)) == events
            run.send_signal(signal.SIGKILL)
        with h5py.File(tmp_path / "p.h5.partial") as file:
            states.append(int((file["state"][:] == 1).sum()))
    assert states == sorted(states) and states[-1] >= 24        # nothing that was written is lost
    assert not out.exists() and pack(zips, out, "audio", "float32").resumed == states[-1]
    source, packed = open_features(zips, "audio"), open_features(out, "audio")
    assert all(np.array_equal(packed.read(name), source.read(name)) for name in IDS)


def test_a_second_run_is_refused_while_the_first_works(zips, tmp_path):
    """HDF5 locks the unfinished pack."""
    out = tmp_path / "p.h5"
    code = NOISY.format(src=str(ROOT / "code" / "src"), source=str(zips), out=str(out))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as first:
        assert len(first.stdout.read(9)) == 9
        first.send_signal(signal.SIGSTOP)
        refused("p.h5: cannot be written", pack, zips, out, "audio", "float32")
        first.send_signal(signal.SIGCONT)
        first.stdout.read()
    assert first.returncode == 0 and pack(zips, tmp_path / "other.h5", "audio", "float32").clips == 150
    assert np.array_equal(open_features(out, "audio").read(IDS[0]), open_features(zips, "audio").read(IDS[0]))
