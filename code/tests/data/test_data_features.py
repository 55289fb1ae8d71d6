"""Zips, pickles and HDF5 files: what is read, what is refused, and the messages."""

import io
import os
import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cmg.data.archive import read_counts, read_zip, unpickle_array
from cmg.data.clips import Clips
from cmg.data.features import check_clip, fit_length, open_features
from cmg.utils.errors import InputError, run
from conftest import message
from data_trees import features, write_zips, zip_bytes

RNG = np.random.default_rng(0)
CLIP = features(RNG, 10)


# ------------------------------------------------------------------------------------------------- good pickles
@pytest.mark.parametrize("array", [CLIP, CLIP.astype(">f8"), np.asfortranarray(CLIP), np.arange(10), CLIP > 1,
                                   CLIP.astype(np.float16), np.zeros((0, 128), np.float32)], ids=lambda x: str(x.dtype))
def test_arrays_of_every_protocol(array):
    for protocol in range(6):
        found = unpickle_array(pickle.dumps(array, protocol), "x")
        assert found.dtype == array.dtype and np.array_equal(found, array)


@pytest.mark.parametrize("spelling", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_both_module_spellings(spelling):
    data = pickle.dumps(CLIP, 2)
    ours = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
    assert np.array_equal(unpickle_array(data.replace(ours, spelling), "x"), CLIP)


def test_pickle_of_python_2():
    """cPickle of Python 2 writes byte strings where Python 3 has bytes."""
    raw = CLIP[:1].astype("<f4").tobytes()
    data = (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x80\x86"
            b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<i", len(raw)) + raw + b"tb.")
    assert np.array_equal(unpickle_array(data, "x"), CLIP[:1])


# ---------------------------------------------------------------------------------------------- hostile pickles
class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    """name -> pickle; each would do something on `pickle.loads`."""
    target = str(tmp_path / "executed")
    memo = b"\x80\x04N" + b"r" + struct.pack("<I", 0x7FFFFFFF) + b"."                   # 16 GB in the C unpickler
    return {
        "system": pickle.dumps(Call(os.system, f"touch {target}")),
        "open": pickle.dumps(Call(open, target, "w")),
        "eval": pickle.dumps(Call(eval, f"open({target!r}, 'w')")),
        "load": pickle.dumps(Call(np.load, target)),
        "inside an array": pickle.dumps(np.array([Call(os.system, f"touch {target}")], dtype=object)),
        "a method of numpy": b"\x80\x04cnumpy\nndarray.tofile\n.",
        "a method of a stand-in": b"\x80\x04cnumpy\ndtype.__init__.__globals__\n.",
        "memo": memo,
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pname\n.",
        "nested": b"\x80\x02)" + b"2\x86" * 60 + b"}" + b"N" + b"s.",
        "huge array": pickle.dumps(CLIP).replace(b"K\nK\x80\x86", b"K\xffK\x80\x86"),
        "dict": pickle.dumps({"a": CLIP}),
        "nothing": b"",
    }


@pytest.mark.parametrize("name", list(hostile(__import__("pathlib").Path("/nowhere"))))
def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path, name):
    path = tmp_path / "clip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.pkl", hostile(tmp_path)[name])
    text = message(read_zip, path)
    assert str(path) in text and "expected" in text and "--on_bad_clip skip" in text
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError):
        read_counts(path)


def test_word_list_admits_integers_only(tmp_path):
    for k, (content, good) in enumerate([({0: 0, 1037: 1}, True), ({0: 0, "a": 1}, False), ([0, 1], False),
                                         ({True: 1}, False), ({0: 1.5}, False), ({(1, 2): 1}, False)]):
        path = tmp_path / f"{k}.pkl"
        path.write_bytes(pickle.dumps(content))
        if good:
            assert read_counts(path) == content
        else:
            assert "dict of integers" in message(read_counts, path)


# ------------------------------------------------------------------------------------------------- broken clips
def encrypted():
    data = bytearray(zip_bytes(CLIP))
    data[6] |= 1                                                # flag bit 0 of the local header ...
    data[data.rindex(b"PK\x01\x02") + 8] |= 1                   # ... and of the central directory
    return bytes(data)


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.pkl", bytes((64 << 20) + 1))
    return buffer.getvalue()


def lying_bomb():
    """A bomb whose directory declares ten bytes."""
    data = bytearray(bomb())
    k = data.rindex(b"PK\x01\x02") + 24
    data[k:k + 4] = struct.pack("<I", 10)
    return bytes(data)


def changed(x, where, value):
    x = x.copy()
    x[where] = value
    return x


DEFECTS = {                                     # name -> (bytes of the file, what the line must say)
    "truncated": (zip_bytes(CLIP)[:900], "truncated or damaged zip"),
    "a flipped byte": (bytes(b ^ (k == 400) for k, b in enumerate(zip_bytes(CLIP))), "damaged zip"),
    "empty file": (b"", "0 bytes"),
    "no zip": (b"<html>404</html>" * 20, "damaged zip"),
    "empty zip": (zip_bytes(), "no member"),
    "no pickle": (zip_bytes(CLIP, names=["clip.npy"]), "no .pkl member"),
    "two pickles": (zip_bytes(CLIP, CLIP), "2 pickles"),
    "path trick": (zip_bytes(CLIP, names=["../../clip.pkl"]), "leaves the folder"),
    "absolute path": (zip_bytes(CLIP, names=["/etc/clip.pkl"]), "leaves the folder"),
    "drive": (zip_bytes(CLIP, names=["C:\\clip.pkl"]), "leaves the folder"),
    "bomb": (bomb(), "at most 67,108,864"),
    "lying bomb": (lying_bomb(), "damaged zip"),
    "encrypted": (encrypted(), "damaged zip"),
    "wrong rank": (zip_bytes(CLIP[0]), "shape (128,)"),
    "wrong width": (zip_bytes(CLIP[:, :64]), "shape (10, 64)"),
    "0 seconds": (zip_bytes(CLIP[:0]), "0 seconds"),
    "NaN": (zip_bytes(changed(CLIP, (3, 5), np.nan)), "1 of 1280 values are NaN"),
    "infinite": (zip_bytes(changed(CLIP, (3, slice(None)), np.inf)), "128 of 1280 values"),
    "too large for float32": (zip_bytes(CLIP.astype(float) * 1e300), "infinite"),
    "object array": (zip_bytes(np.array([CLIP, None], dtype=object)), "array of Python objects"),
    "text array": (zip_bytes(np.array(["a", "b"])), "array of type 'U1'"),
    "complex": (zip_bytes(CLIP.astype(np.complex64)), "array of type 'c8'"),
    "a list": (zip_bytes([1, 2]), "is a list"),
}


@pytest.fixture
def folder(tmp_path):
    write_zips(tmp_path, {f"clip{k}": CLIP + k for k in range(4)})
    return tmp_path


def clips(folder, **kwargs):
    return Clips("set", ("audio",), [f"clip{k}" for k in range(4)], {"audio": folder}, **kwargs)


@pytest.mark.parametrize("name", list(DEFECTS))
def test_each_defect_is_named_and_can_be_skipped(folder, caplog, name):
    content, finding = DEFECTS[name]
    (folder / "clip2.zip").write_bytes(content)
    text = message(clips(folder).__getitem__, 2)
    assert str(folder / "clip2.zip") in text and finding in text and "expected" in text or "at most" in text
    left = clips(folder, on_bad_clip="skip")
    assert left.ids == ["clip0", "clip1", "clip3"] and list(left.skipped) == ["clip2"]
    assert "skipping 1 of 4 clips" in caplog.text and finding in caplog.text
    assert np.array_equal(left[2]["audio"], CLIP + 3)


def test_missing_clips_are_counted_and_named(folder, caplog):
    (folder / "clip1.zip").unlink()
    assert "1 of 4 clips of set have no audio feature (clip1; the folder has 3 .zip)" in message(clips, folder)
    assert clips(folder, on_bad_clip="skip").ids == ["clip0", "clip2", "clip3"]
    assert "clip1" in caplog.text
    assert "not found" in message(clips, folder / "nowhere")
    for k in (0, 2, 3):
        (folder / f"clip{k}.zip").unlink()
    assert "all 4 clips are bad" in message(clips, folder, on_bad_clip="skip")


# ------------------------------------------------------------------------------------------------------ padding
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(1, 15), st.lists(st.integers(1, 3), max_size=3))
def test_short_clips_repeat_the_last_second_long_ones_are_cut(t, seconds, tail):
    x = np.random.default_rng(t).standard_normal((t, *tail))
    if t == 0:
        assert "0 seconds" in message(fit_length, x, seconds)
        return
    found = fit_length(x, seconds)
    assert found.shape == (seconds, *tail)
    for k in range(seconds):
        assert np.array_equal(found[k], x[min(k, t - 1)])


def test_segment_labels_may_have_a_leading_one():
    label = np.arange(10)
    assert np.array_equal(check_clip(label[None], ((),), 10, "x"), label)
    assert "shape (10, 1)" in message(check_clip, label[:, None], ((),), 10, "x")


# --------------------------------------------------------------------------------------------------------- HDF5
def test_hdf5_features_by_row(tmp_path):
    x = RNG.standard_normal((5, 10, 128))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["avadataset"] = x
    store = open_features(tmp_path / "a.h5", "audio")
    assert np.array_equal(store.read("3"), x[3].astype(np.float32)) and store.missing(["4", "5"]) == ["5"]


ROWS = np.ones((4, 10, 128))
HDF5 = {                # name -> (what is written in place of the array, what the line must say)
    "another name": (lambda file: file.create_dataset("features", data=ROWS), "no dataset 'avadataset'"),
    "wrong rank": (lambda file: file.create_dataset("avadataset", data=ROWS[0]), "rank 3 or 5"),
    "maps too small": (lambda file: file.create_dataset("avadataset", data=np.ones((4, 10, 4, 7, 3))),
                       "maps of 4 x 7 positions"),
    "a group": (lambda file: file.create_group("avadataset"), "'avadataset' is a group (empty)"),
    "another format": (lambda file: (file.create_dataset("avadataset", data=ROWS),
                                     file.attrs.update(format="something")), "something"),
    "truncated": (5000, "not a valid HDF5 file"), "no HDF5": (0, "not a valid HDF5 file")}


@pytest.mark.parametrize("name", HDF5)
def test_broken_hdf5_is_named(tmp_path, name):
    path, (made, finding) = tmp_path / "a.h5", HDF5[name]
    with h5py.File(path, "w") as file:
        file.create_dataset("avadataset", data=ROWS) if isinstance(made, int) else made(file)
    if isinstance(made, int):
        path.write_bytes(path.read_bytes()[:made] or b"PK" * 100)
    text = message(open_features, path, "audio")
    assert str(path) in text and finding in text and "expected" in text


def test_bad_rows_of_hdf5_are_named(tmp_path):
    x = RNG.standard_normal((5, 10, 128))
    x[3, 0, 0] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["avadataset"] = x
    assert "row 3: 1 of 1280" in message(open_features(tmp_path / "a.h5", "audio").read, "3")


# ------------------------------------------------------------------------------------------------------ workers
@pytest.mark.parametrize("form", ["zips", "rows"])
def test_workers_read_the_same_clips(folder, form):
    if form == "rows":
        with h5py.File(folder / "a.h5", "w") as file:
            file["avadataset"] = np.stack([CLIP + k for k in range(4)]).astype(float)
        data = Clips("set", ("audio",), list("0123"), {"audio": folder / "a.h5"})
    else:
        data = clips(folder)
    data[0]                                         # an HDF5 file open here must not be shared with the workers
    batches = [batch["audio"].numpy() for batch in DataLoader(data, 2, num_workers=2)]
    assert np.array_equal(np.concatenate(batches), np.stack([CLIP + k for k in range(4)]))
    assert np.array_equal(pickle.loads(pickle.dumps(data))[1]["audio"], CLIP + 1)


def test_a_bad_clip_in_a_worker_is_one_line(folder, capsys):
    (folder / "clip2.zip").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        run(lambda: list(DataLoader(clips(folder), 2, num_workers=2)))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: {folder / 'clip2.zip'}: an empty file (0 bytes)")
