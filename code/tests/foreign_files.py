"""Small good files of every foreign kind that the program reads, and ways to damage bytes."""

import hashlib
import json
import struct
import zipfile

import h5py
import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from cmg.checkpoints import checkpoint, hub
from cmg.data.text import Sentence, write_text_features
from cmg.prepare.pack import pack
from cmg.report import export
from cmg.systems.dcid import DCID
from made_videos import make_video
from test_extract_weights import TINY, keras_file, small

SIZES = dict(num_codes=8, code_dim=8, feed_forward=8, num_layers=1, num_heads=2)
# Sizes, counts and signs that parsers stumble over.
NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 100_000, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0,
           0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 62, (1 << 64) - 1)


class Files(dict):
    """Good files by name; a failed example does not print them."""

    def __repr__(self):
        return "files"


def exported_folder(folder):
    """A small encoder: its checkpoint x.pt in `folder`, exported to the folder "shared" there; the latter."""
    system = DCID(DCID.Config.for_data(("audio", "video"), video_dim=8, **SIZES))
    checkpoint.save(folder / "x.pt", checkpoint.pack(system, None, {}, 0, 0, {}))
    export.export(folder / "x.pt", folder / "shared")
    return folder / "shared"


def exported(folder):
    """`Files`: bytes of the "weights" and the config, "about", of `exported_folder`."""
    shared = exported_folder(folder)
    return Files(weights=(shared / hub.WEIGHTS).read_bytes(),
                 about=json.loads((shared / hub.CONFIG).read_text()))


@st.composite
def damaged(draw, files):
    """(name, bytes) of one of some files {name: (bytes, places)} after up to three changes.

    Args:
        files: `places` are offsets worth changing; most changes hit one of them.
    """
    name = draw(st.sampled_from(sorted(files)))
    data, places = bytearray(files[name][0]), files[name][1]
    others = [content for content, _ in files.values()]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.one_of(st.sampled_from(places), st.sampled_from(places), st.integers(0, len(data) - 1)))
        kind = draw(st.sampled_from(["number", "number", "number", "byte", "cut", "insert", "splice", "end"]))
        if kind == "number":
            size, number = draw(st.sampled_from([1, 2, 4, 4, 8])), draw(st.sampled_from(NUMBERS))
            order = draw(st.sampled_from(["big", "little"]))
            data[at:at + size] = (number % (1 << 8 * size)).to_bytes(size, order)
        elif kind == "byte":
            data[at:at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at:at + draw(st.sampled_from([1, 2, 4, 16, 100, 1000]))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "splice":
            other = draw(st.sampled_from(others))
            begin, size = draw(st.integers(0, len(other) - 1)), draw(st.sampled_from([8, 64, 500]))
            data[at:at + size] = other[begin:begin + size]
        else:
            del data[at:]
        data = data or bytearray(1)
    return name, bytes(data)


def with_places(files, places):
    """{name: path} -> {name: (bytes, places(bytes))}."""
    contents = {name: path.read_bytes() for name, path in files.items()}
    return {name: (data, list(places(data))) for name, data in contents.items()}


def ends(data, size=1500):
    """Offsets in the first and last `size` bytes: headers and indices of videos."""
    return [*range(min(size, len(data))), *range(max(0, len(data) - size), len(data))]


def not_zero(data):
    """Offsets of bytes that are not zero: most of an HDF5 file is room."""
    return [k for k, byte in enumerate(data) if byte]


def videos(folder):
    """Videos and a sound of one second, by name."""
    small_video = dict(seconds=1, size=(32, 24), rate=8, audio_rate=16000)
    return {name: make_video(folder / name, **more) for name, more in {
        "a.mp4": small_video, "a.mkv": small_video, "a.ts": small_video,
        "a.avi": small_video | {"codec": "mpeg4", "audio_codec": "mp3"},
        "a.wav": dict(seconds=1, video=False, audio_codec="pcm_s16le", audio_rate=8000, layout="mono")}.items()}


def hdf5_files(folder):
    """HDF5 files by their reader: features by row, packed and by id, labels, an order, word vectors."""
    x = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
    folder.mkdir()
    with h5py.File(folder / "rows", "w") as file:
        file.create_dataset("avadataset", data=x, chunks=(1, 3, 6), compression="gzip", shuffle=True, fletcher32=True)
    with h5py.File(folder / "ids", "w") as file:
        for k in range(3):
            file[f"c{k}"] = x[k]
    with h5py.File(folder / "labels", "w") as file:
        file.create_dataset("avadataset", data=np.eye(4)[np.arange(12).reshape(4, 3) % 4], compression="gzip")
    with h5py.File(folder / "order", "w") as file:
        file["order"] = np.arange(4)
    pack(folder / "rows", folder / "pack", "audio", "float32", seconds=3)
    sentences = [Sentence(["a", word], np.ones((2, 5)), [1, 2]) for word in ("dog", "cat")]
    write_text_features(folder / "text", {"dog": "a dog", "cat": "a cat"}, sentences, "hashing")
    return {path.name: path for path in sorted(folder.iterdir())}


def weight_files(folder):
    """Weights of other programs: {(reader, form): path}."""
    folder.mkdir()
    for name, legacy in (("vgg19", False), ("vggish", False), ("vggish, legacy", True)):
        torch.save(dict(small(name.partition(",")[0]).state_dict()), folder / name,
                   _use_new_zipfile_serialization=not legacy)
    keras_file(folder / "vgg19, keras", small("vgg19").state_dict())
    (folder / "vggish, tensorflow").write_bytes(TINY.read_bytes())
    np.savez(folder / "pca.npz", pca_eigen_vectors=np.eye(4, dtype="f4"), pca_means=np.arange(4, dtype="f4"))
    torch.save({"pca_eigen_vectors": torch.eye(4), "pca_means": torch.zeros(4)}, folder / "pca.pth")
    return {path.name: path for path in sorted(folder.iterdir())}


def images(folder):
    """Pictures as AVSBench has them."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return {path.name: path for path in sorted(folder.iterdir())}


def write_shared(folder, weights, about):
    """An exported folder of these bytes; config.json names their hash, so that they are looked at."""
    folder.mkdir(exist_ok=True)
    (folder / hub.WEIGHTS).write_bytes(weights)
    (folder / hub.CONFIG).write_text(json.dumps(about | {"weights_sha256": hashlib.sha256(weights).hexdigest()}))
    return folder


def safetensors(header, data=b"", length=None):
    """Bytes of a file of safetensors with any header (dict or bytes), of which any length may be claimed."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header_of(weights):
    """(header, data) of a file of safetensors."""
    size = struct.unpack("<Q", weights[:8])[0]
    return json.loads(weights[8:8 + size]), weights[8 + size:]


def saved(state):
    """A state dict as bytes of safetensors."""
    return save({name: value.contiguous() for name, value in state.items()})


def zip_of(path, *members, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path
