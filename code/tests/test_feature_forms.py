"""Features as people have them: every kind of file, clips without a time axis, packs of one's own, and what a file that
cannot be read is told."""

import fcntl
import io
import pickle
import subprocess
import unicodedata
import zipfile

import h5py
import numpy as np
import pytest
import torch

import prepare
from cmg.checkpoints import checkpoint
from cmg.data.features import Pack, open_features, read_tensor
from cmg.data.hdf5 import hdf5_array, open_hdf5
from cmg.data.sets.custom import Custom
from cmg.prepare.pack import pack
from conftest import ROOT, message
from data_trees import zip_bytes

RNG = np.random.default_rng(0)
CLIPS = {name: RNG.standard_normal((seconds, 6)).astype(np.float32) for name, seconds in
         (("a", 10), ("b", 4), (unicodedata.normalize("NFC", "é c"), 7))}


def save(path, array):
    """Write an array in the form of the file's ending."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, array)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(array))
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    else:
        path.write_bytes(zip_bytes(array))


def tree(folder, ending, clips, name="audio"):
    """Features below folder/name, ids in the file system as a Mac has them, and a manifest; returns the arguments."""
    (folder / name).mkdir(parents=True)
    for clip, array in clips.items():
        save(folder / name / f"{unicodedata.normalize('NFD', clip)}{ending}", array)
    (folder / "clips.csv").write_text("id,split,label\n" + "".join(
        f"{clip},{split},x\n" for clip, split in zip(clips, ("train", "train", "test"))), encoding="utf-8")
    return ["--manifest", str(folder / "clips.csv"), "--features", f"{name}={folder / name}"]


# ------------------------------------------------------------------------------------------------------ files of clips
@pytest.mark.parametrize("ending", [".zip", ".npy", ".npz", ".pkl", ".pt"])
def test_every_kind_of_file_is_read_and_named(ending, tmp_path, capsys):
    arguments = tree(tmp_path, ending, CLIPS)
    (tmp_path / "audio" / "README.txt").write_text("mine")
    data = Custom({"manifest": tmp_path / "clips.csv", "audio": tmp_path / "audio"}, ("audio",), ("train", "test"))
    for item, array in zip(data, CLIPS.values()):
        assert np.array_equal(item["audio"][:len(array)], array) and (item["audio"][len(array):] == array[-1]).all()
    prepare.main(["check", "--dataset", "custom", *arguments, "--features", f"video={tmp_path / 'audio'}"])
    assert f"(3 {ending}, 1 .txt)" in capsys.readouterr().out


def pt(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def larger_than_its_file():
    """A tensor of torch.save whose pickle claims more numbers than there are."""
    source, buffer = zipfile.ZipFile(io.BytesIO(pt(torch.zeros(200)))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):               # BININT1 200, of storage and of shape
                data = data.replace(b"K\xc8", b"M\xff\xff")
            out.writestr(name, data)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Runs:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("name, content, finding", [
    ("a.npz", npz(x=np.ones(3), y=np.ones(3)), "2 arrays in the zip (x.npy, y.npy); expected exactly one .npy"),
    ("a.npz", npz(), "0 arrays"), ("a.npz", npz(x=np.array([{}])), "Python objects"), ("a.npz", b"", "an empty file"),
    ("a.npz", npz(x=np.ones(3))[:-30], "truncated or damaged"),
    ("a.pkl", pickle.dumps(Runs()), "refers to builtins.print"),
    ("a.pkl", pickle.dumps({"x": np.ones(3)}), "with other content"), ("a.pkl", b"", "not a valid pickle"),
    ("a.pt", pt({"x": torch.ones(3)}), "contains a dict of x"), ("a.pt", pt(Runs()), "UnpicklingError"),
    ("a.pt", pt(3), "contains a int"), ("a.pt", pt(torch.ones(3, dtype=torch.complex64)), "contains a Tensor"),
    ("a.pt", pt(torch.eye(3).to_sparse()), "contains a Tensor"), ("a.pt", b"PK\3\4", "BadZipFile"),
    ("a.pt", pt(torch.ones(3), _use_new_zipfile_serialization=False), "before PyTorch 1.6"),
    ("a.pt", larger_than_its_file(), "expected one tensor of numbers, as written by torch.save"),
    ("a.pt", pt(torch.ones(1).expand(1 << 28)), "bytes unpacked or more")])
def test_files_of_something_else_are_one_line_and_run_nothing(name, content, finding, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    store = open_features(tmp_path, "audio", by_id=True)
    assert finding in message(store.read, "a") and "must not run" not in capsys.readouterr().out


def test_tensors_of_every_precision(tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.bool):
        x = torch.arange(6).view(2, 3).to(dtype)
        torch.save(x.T[:, :1], tmp_path / "a.pt")                       # a view, which is stored with all of its base
        assert np.array_equal(read_tensor(tmp_path / "a.pt").astype(np.float32), x.T[:, :1].float().numpy())
    torch.save(torch.nn.Parameter(torch.ones(2)), tmp_path / "a.pt")
    assert (read_tensor(tmp_path / "a.pt") == 1).all()


def test_a_folder_of_other_files_is_named(tmp_path):
    tree(tmp_path, ".npy", CLIPS)
    for path in (tmp_path / "audio").iterdir():
        path.rename(path.with_suffix(".mat"))
    assert "the folder has 3 .mat" in message(
        Custom, {"manifest": tmp_path / "clips.csv", "audio": tmp_path / "audio"}, ("audio",))


# ------------------------------------------------------------------------------------------------- without a time axis
@pytest.mark.parametrize("form", ["folder", "HDF5"])
def test_a_picture_and_a_sound_are_clips_of_one_second(form, tmp_path):
    sounds = {name: RNG.standard_normal(6).astype(np.float32) for name in "abc"}
    pictures = {name: RNG.standard_normal((5, 6, 3)).astype(np.float32) for name in "abc"}
    tree(tmp_path, ".npy", sounds)
    tree(tmp_path, ".npy", pictures, "video")
    paths = {"manifest": tmp_path / "clips.csv", "audio": tmp_path / "audio", "video": tmp_path / "video"}
    if form == "HDF5":
        for name, clips in (("audio", sounds), ("video", pictures)):
            paths[name] = tmp_path / f"{name}.h5"
            with h5py.File(paths[name], "w") as file:
                for clip, array in clips.items():
                    file[clip] = array
    data = Custom(paths, ("audio", "video"), ("train", "test"), seconds=None)
    assert data.longest() == 1 and data.shapes == {"audio": (6,), "video": (5, 6, 3)}
    data = Custom(paths, ("audio", "video"), ("train", "test"), seconds=1)
    assert np.array_equal(data[1]["audio"], sounds["b"][None])
    assert np.array_equal(data[1]["video"], pictures["b"][None])
    assert "shape" in message(open_features(tmp_path / "video", "video").read, "a")     # in a published layout a defect


# ---------------------------------------------------------------------------------------------------------------- packs
def test_own_features_are_packed(tmp_path, capsys):
    arguments = tree(tmp_path, ".npy", {**CLIPS, "not in the list": CLIPS["a"]})
    (tmp_path / "clips.csv").write_text("id,split,label\n" + "".join(f"{name},train,x\n" for name in CLIPS))
    for told in ("3 clips, 0.00 GB", "not changed"):
        assert prepare.main(["pack", *arguments, "--dtype", "float32"]) is None
        output = capsys.readouterr().out
        assert told in output and f"--features audio={tmp_path / 'audio.pack.h5'}" in output
    packed = open_features(tmp_path / "audio.pack.h5", "audio", None, by_id=True)
    assert isinstance(packed, Pack) and packed.ids == set(CLIPS) and packed.shape == (10, 6)
    for seconds in (10, 7):
        one, other = (Custom({"manifest": tmp_path / "clips.csv", "audio": tmp_path / name}, ("audio",),
                             seconds=seconds, padding="mask") for name in ("audio", "audio.pack.h5"))
        assert all(np.array_equal(x[m], y[m]) for x, y in zip(one, other) for m in ("audio", "mask"))


def test_what_cannot_be_packed_is_one_line(tmp_path):
    arguments = tree(tmp_path, ".npy", CLIPS)
    (tmp_path / "audio" / "b.npy").unlink()
    assert "1 of 3 clips have no audio feature (b)" in message(prepare.main, ["pack", *arguments])
    assert pack(tmp_path / "audio", tmp_path / "p.h5", "audio", ids=list(CLIPS), on_bad_clip="skip").clips == 2
    np.save(tmp_path / "audio" / "b.npy", np.ones((4, 6)))
    assert "tokens" in message(pack, tmp_path / "audio", tmp_path / "t.h5", "words", ids=list(CLIPS), form="tokens")
    for wrong in ([], ["vggsound.audio", *arguments], ["vggsound.smell"], arguments[:2]):
        with pytest.raises(SystemExit):
            prepare.main(["pack", *wrong])


# ---------------------------------------------------------------------------------------------------------------- HDF5
def test_a_locked_file_is_no_damaged_one(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = CLIPS["a"]
    with open(tmp_path / "a.h5", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        text = message(open_features, tmp_path / "a.h5", "audio", by_id=True)
    assert "locked by another program" in text and "HDF5_USE_FILE_LOCKING=FALSE" in text and "make" not in text
    assert open_features(tmp_path / "a.h5", "audio", by_id=True).read("a").shape == (10, 6)


def test_what_an_hdf5_file_holds_instead_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/feature"] = CLIPS["a"]
        file.create_dataset("b", data=np.ones((10, 6), np.int32), scaleoffset=0)
        file["c"] = np.arange(60).reshape(10, 6)
        file["d"] = np.array([b"text"])
    store = open_features(tmp_path / "a.h5", "audio", by_id=True)
    assert "'a' is a group (feature)" in message(store.read, "a")
    assert "compressed by scaleoffset" in message(store.read, "b") and "h5repack" in message(store.read, "b")
    assert store.read("c").sum() == 59 * 30 and "|S4 (1,)" in message(store.read, "d")
    with open_hdf5(tmp_path / "a.h5") as file:
        assert "expected integers of rank 1" in message(hdf5_array, file, "c", "iu", 1)
    with h5py.File(tmp_path / "ave.h5", "w") as file:
        file["avadataset"] = np.ones((2, 10, 6), np.int32)
    assert open_features(tmp_path / "ave.h5", "audio").read("1").sum() == 60


# ---------------------------------------------------------------------------------------------- files of other programs
@pytest.mark.parametrize("value", [np.float64(33.3), np.ones(3), np.int64(1)])
def test_a_value_of_numpy_in_a_checkpoint_is_named(value, tmp_path):
    torch.save({"encoder": {"w": torch.ones(2)}, "best_acc": value, "epoch": 1}, tmp_path / "a.pt")
    text = message(checkpoint.read, tmp_path / "a.pt")
    assert "at its entry 'best_acc'" in text and "float(x)" in text and "run code" not in text
    torch.save({"x": torch.ones(2), "other": Runs()}, tmp_path / "a.pt")
    assert "which could run code" in message(checkpoint.read, tmp_path / "a.pt")


def test_without_the_set_up_a_script_names_it(tmp_path):
    source = tmp_path / "code" / "src"
    source.mkdir(parents=True)
    (source / "python.sh").write_bytes((ROOT / "code" / "src" / "python.sh").read_bytes())
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(["bash", "-c", ". ./python.sh; echo started"], cwd=source, text=True, capture_output=True,
                          env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "code/setup.sh" in done.stderr
