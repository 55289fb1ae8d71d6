"""Ways in which files go wrong: each function makes a faulty copy of a good file or folder, for the tables of tests."""

import ctypes
import os
import pickle
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch

from data_trees import zip_bytes

MARKER = "CMG_HOSTILE_MARKER"       # environment: the file that hostile pickles try to make


class Hostile:
    """Unpickling it would make the file named by MARKER."""

    def __reduce__(self):
        return os.system, (f"touch ${MARKER}",)


# ------------------------------------------------------------------------------------------------------ any file
def missing(good, bad):
    """Nothing there."""


def empty(good, bad):
    bad.write_bytes(b"")


def truncated(good, bad):
    bad.write_bytes(good.read_bytes()[:good.stat().st_size // 2])


def garbage(good, bad):
    bad.write_bytes(np.random.default_rng(0).bytes(3000))


def folder_instead(good, bad):
    bad.mkdir()


def no_permission(good, bad):
    shutil.copy(good, bad)
    bad.chmod(0)


# -------------------------------------------------------------------------------------------------------- tables
def lines(edit):
    """A fault of a text file from a function of its lines."""
    def fault(good, bad):
        bad.write_text("\n".join(edit(good.read_text().splitlines())) + "\n")
    return fault


only_header = lines(lambda rows: rows[:1])
without_column = lines(lambda rows: [rows[0].replace(rows[0].split(",")[0], "color", 1), *rows[1:]])
ragged = lines(lambda rows: [*rows[:3], rows[3].rsplit(",", 1)[0], *rows[4:]])
repeated_row = lines(lambda rows: [*rows, rows[-1]])
unknown_split = lines(lambda rows: [*rows[:2], rows[2].rsplit(",", 1)[0] + ",trian", *rows[3:]])
unknown_class = lines(lambda rows: [*rows[:2], "no such class," + rows[2].split(",", 1)[1], *rows[3:]])
one_class_less = lines(lambda rows: rows[1:])
last_class_less = lines(lambda rows: rows[:-1])
bad_times = lines(lambda rows: [rows[0], "\t".join([rows[1].split("\t")[0], "soon", *rows[1].split("\t")[2:]]),
                                *rows[2:]])
two_times_one_label = lines(lambda rows: [rows[0], rows[1].split("\t")[0] + "\t1,2,3\t2,3,4\t" + rows[1].split(
    "\t")[3].split(",")[0], *rows[2:]])


# ---------------------------------------------------------------------------------------------------------- HDF5
def array(edit, name=None):
    """A fault of the (first) dataset of an HDF5 file from a function of the array."""
    def fault(good, bad):
        shutil.copy(good, bad)
        with h5py.File(bad, "r+") as file:
            key = name or next(iter(file))
            value = edit(file[key][:])
            del file[key]
            file[key] = value
    return fault


def poisoned(x):
    x = x.copy()
    x.reshape(-1)[x.size // 2] = np.nan
    return x


narrow = array(lambda x: x[..., :x.shape[-1] // 2])
flat = array(lambda x: x.reshape(len(x), -1))
integers = array(lambda x: x.astype(np.int64))
texts = array(lambda x: np.full(len(x), b"text"))
not_finite = array(lambda x: np.full_like(x, np.inf))
fewer_rows = array(lambda x: x[:1])
rows_beyond = array(lambda x: x + 10_000)
negative_rows = array(lambda x: x - 1000)


def no_dataset(good, bad):
    with h5py.File(bad, "w") as file:
        file["other"] = np.zeros(3)


# ------------------------------------------------------------------------------------------------- folder of zips
def clip(make):
    """A folder of zips in which one file is what `make(array)` gives: bytes, an array or an object; None: no file."""
    def fault(good, bad):
        bad.mkdir()
        names = sorted(path.name for path in Path(good).iterdir())
        for name in names[1:]:
            os.link(Path(good) / name, bad / name)
        with zipfile.ZipFile(Path(good) / names[0]) as archive:
            made = make(pickle.loads(archive.read(archive.namelist()[0])))
        if made is not None:
            (bad / names[0]).write_bytes(made if isinstance(made, bytes) else zip_bytes(made))
    return fault


clip_missing = clip(lambda x: None)
clip_empty = clip(lambda x: b"")
clip_truncated = clip(lambda x: zip_bytes(x)[:-200])
clip_of_other_shape = clip(lambda x: x[..., 0])
clip_of_other_width = clip(lambda x: np.concatenate([x, x], -1))
clip_of_no_seconds = clip(lambda x: x[:0])
clip_of_text = clip(lambda x: np.array(["a", "b"]))
clip_not_finite = clip(poisoned)
clip_hostile = clip(lambda x: Hostile())


# --------------------------------------------------------------------------------------------------- checkpoints
def contents(edit):
    """A fault of a checkpoint from a function that changes its dict, or gives what is to be saved instead."""
    def fault(good, bad):
        loaded = torch.load(good, weights_only=True)
        changed = edit(loaded)
        torch.save(loaded if changed is None else changed, bad)
    return fault


def encoder_tensor(edit, key="audio_self_att.affine_matrix.weight"):
    """A fault of one tensor of the encoder."""
    return contents(lambda c: c["Encoder_parameters"].update({key: edit(c["Encoder_parameters"][key])}))


ckpt_no_section = contents(lambda c: c.pop("Encoder_parameters") and None)
ckpt_no_lstm = contents(lambda c: c.pop("Text_ar_lstm_parameters") and None)
ckpt_no_tensor = contents(lambda c: c["Encoder_parameters"].pop("audio_self_att.affine_matrix.weight") is None or None)
ckpt_more = contents(lambda c: c["Encoder_parameters"].update({"surprise.weight": torch.zeros(2)}))
ckpt_list = contents(lambda c: [1, 2, 3])
ckpt_shape = encoder_tensor(lambda x: x[:, :7], "Cross_quantizer.embedding")
ckpt_integers = encoder_tensor(lambda x: x.long())
ckpt_not_finite = encoder_tensor(lambda x: x * float("nan"))
ckpt_text_inside = encoder_tensor(lambda x: "weights")
ckpt_epoch = contents(lambda c: c.update(epoch="three"))
ckpt_hostile = contents(lambda c: c.update(extra=Hostile()))
ckpt_no_optimizer = contents(lambda c: c.pop("optimizer") and None)
ckpt_optimizer_shape = contents(lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)))
ckpt_run = contents(lambda c: c["run"].update(position=5))


# ---------------------------------------------------------------------------------------------------- privileges
class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def permission_bits_count():
    """Within the block even root is held to permission bits (Linux: without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    before = sets[0].effective
    sets[0].effective &= ~0b110
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)
