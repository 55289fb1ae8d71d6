"""Bombs and crafted files, one a line: refused in one line that names the file, in a process with one GiB of room, or
read for what they hold. Each was met by fuzzing (test_fuzz.py, fuzz_guided.py) or is made for a limit of
cmg/utils/limits.py."""

import struct
import zipfile
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from cmg.checkpoints import hub
from cmg.extract import audio, clip, encoders, media
from cmg.utils.limits import LIMITS
from foreign_files import hdf5_files, header_of, safetensors, saved, write_shared, zip_of
from foreign_reader import READ, REFUSED
from made_videos import make_video
from test_extract_weights import TINY, keras_file, small

SMALL = dict(seconds=1, size=(32, 24), rate=8)


def sparse(path, size, begin=b""):
    """A file of any size that takes no room on the disk."""
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(size)


def patched(path, found, place, value):
    """Write bytes at an offset from each place where `found` stands."""
    data, at = bytearray(path.read_bytes()), -1
    while (at := data.find(found, at + 1)) >= 0:
        data[at + place:at + place + len(value)] = value
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------------------- videos
def png_size(path, width, height):
    """A video of PNG pictures that claim a size."""
    patched(make_video(path, seconds=2, rate=2, size=(32, 24), codec="png", pixels="rgb24", audio=None), b"IHDR", 4,
            struct.pack(">II", width, height))


def wav(path, rate=8000, data=None):
    """A wav of two seconds that claims a rate or a number of bytes."""
    make_video(path, seconds=2, video=False, audio_codec="pcm_s16le", audio_rate=8000, layout="mono")
    patched(path, b"fmt ", 12, struct.pack("<I", rate))
    if data:
        patched(path, b"data", 4, struct.pack("<I", data))


def playlist(path, text):
    make_video(path.parent / "other.mp4", **SMALL)
    path.write_text(text)


VIDEOS = {      # name, reader -> (what is written, outcome, words of the line)
    ("a.mov", "video"): (lambda path: png_size(path, 100_000, 100_000), REFUSED, "no frame can be decoded"),
    ("b.mov", "video"): (lambda path: png_size(path, 16_000, 16_000), REFUSED, "no frame can be decoded"),
    ("concat.mp4", "video"): (lambda path: playlist(path, "ffconcat version 1.0\nfile other.mp4\n"), REFUSED, "opened"),
    ("playlist.ts", "video"): (lambda path: playlist(
        path, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"), REFUSED, "opened"),
    ("session.mp4", "video"): (lambda path: path.write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"), REFUSED, "opened"),
    ("samples.wav", "video, all"): (lambda path: wav(path, data=0xFFFFFFF0), READ, ""),
    ("fast.wav", "video"): (lambda path: wav(path, 2 ** 31 - 1), REFUSED, "2,147,483,647 Hz"),
    ("fast.wav", "video, nearest"): (lambda path: wav(path, 2 ** 31 - 1), REFUSED, "2,147,483,647 Hz"),
    ("slow.wav", "video, all"): (lambda path: wav(path, 1), REFUSED, "sample rate is 1 Hz"),
    ("far.mkv", "video, all"): (lambda path: make_video(path, times=[0, 10 ** 13], size=(32, 24), audio=None), REFUSED,
                                "10000000000 s; expected at most"),
    ("far.mkv", "video, silence"): (lambda path: make_video(path, times=[0, 10 ** 13], size=(32, 24), audio=None),
                                    REFUSED, "10000000000 s; expected at most"),
    ("far.mkv", "video"): (lambda path: make_video(path, times=[0, 10 ** 13], size=(32, 24), audio=None), READ, ""),
    ("late.mkv", "video"): (lambda path: make_video(path, **SMALL, delay=1e9), READ, ""),
}


@pytest.mark.parametrize("name, what", list(VIDEOS))
def test_videos(tmp_path, reader, name, what):
    write, outcome, words = VIDEOS[name, what]
    write(tmp_path / name)
    found, line = reader.read(what, tmp_path / name)
    assert found == outcome and words in line, line


# --------------------------------------------------------------------------------------------------------------- HDF5
def hdf5(**more):
    """Writer of an HDF5 file with one dataset; `name` of it, and arguments of create_dataset."""
    def write(path):
        with h5py.File(path, "w") as file:
            file.create_dataset(**{"name": "avadataset", "dtype": "f4"} | more)
    return write


def good(name, change):
    """Writer of a changed good file of `hdf5_files`."""
    def write(path):
        path.write_bytes(hdf5_files(path.parent / "good")[name].read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
    return write


def endless_text(path):
    """Word vectors with a text of no bytes: the first object of the first collection of texts."""
    path.write_bytes(hdf5_files(path.parent / "good")["text"].read_bytes())
    patched(path, b"GCOL", 16, bytes(16))


def short_chunk(file, name, size):
    """A chunk of few bytes; the others stay as they are, or are written whole."""
    array = file[name]
    for k in range(len(array)):
        array.id.write_direct_chunk((k,) + (0,) * (array.ndim - 1), bytes(72 if k else size))


def short_clip(file):
    x = np.zeros((4, 3, 6), np.float32)
    del file["features"]
    file.create_dataset("features", x.shape, x.dtype, chunks=(1, 3, 6))
    short_chunk(file, "features", 4)


def replaced(name, **more):
    """Change of a file: another dataset under this name."""
    def change(file):
        del file[name]
        file.create_dataset(name, **more)
    return change


def one_text_many_rows(file):
    """Many rows that name one text: 18 GB."""
    for name in ("labels", "prompts", "vectors"):
        del file[name]
    kind = h5py.string_dtype()
    file.create_dataset("labels", (300_000,), kind, fillvalue="x" * 60_000)
    file.create_dataset("prompts", (300_000,), kind)
    file.create_dataset("vectors", (300_000, 1, 1), "f4", chunks=(100_000, 1, 1))


HDF5 = {
    ("rows", "huge chunks"): (hdf5(shape=(64, 64 << 20), chunks=(64, 64 << 20), compression="gzip"), "in chunks of"),
    ("rows", "huge rows"): (hdf5(shape=(4, 3, 1 << 40)), "rows of"),
    ("rows", "many rows"): (hdf5(shape=(1 << 40, 3, 6), chunks=(1, 3, 6)), "4,194,304 rows"),
    ("rows", "sizes that overflow"): (hdf5(shape=(1 << 22, 1 << 31, 1 << 11), chunks=(1, 1, 1)), "rows of"),
    ("rows", "chunk without checksum"): (good("rows", lambda file: short_chunk(file, "avadataset", 3)),
                                         "chunk of 3 bytes"),
    ("rows", "other filter"): (hdf5(shape=(4, 3, 6), chunks=(1, 3, 6), scaleoffset=2), "compressed by scaleoffset"),
    ("ids", "huge clip"): (hdf5(name="c", shape=(3, 1 << 34)), "unpacks to"),
    ("ids", "packed clip"): (hdf5(name="c", shape=(3, 1 << 26), chunks=(1, 1 << 20), compression="gzip"), "unpacks to"),
    ("ids", "soft link"): (lambda path: h5py.File(path, "w").update({"c": h5py.SoftLink("/d")}), "a link"),
    ("labels", "huge"): (hdf5(shape=(1 << 20, 1 << 20, 29), chunks=(1, 1 << 10, 29)), "unpacks to"),
    ("order", "huge"): (hdf5(name="order", shape=(1 << 40,), dtype="i8", chunks=(1 << 10,)), "unpacks to"),
    ("pack", "short chunk"): (good("pack", short_clip), "chunk of 4 bytes"),
    ("pack", "fewer states"): (good("pack", replaced("state", data=np.ones(1, np.uint8))), "one id per clip"),
    ("pack", "fewer seconds"): (good("pack", replaced("seconds", data=np.ones(1, np.uint32))), "one id per clip"),
    ("pack", "ids in no UTF-8"): (good("pack", replaced("ids", data=np.array([b"\xff"] * 4))), "utf-8"),
    ("pack", "two answers"): (good("pack", lambda file: file.attrs.update(complete=np.ones(2))), "damaged"),
    ("text", "two formats"): (good("text", lambda file: file.attrs.update(format=np.ones(2))), "damaged"),
    ("text", "endless text"): (endless_text, "string has an impossible length"),
    ("text", "huge vectors"): (good("text", replaced("vectors", shape=(2, 10, 1 << 34), dtype="f4")), "unpacks to"),
    ("text", "labels that are numbers"): (good("text", replaced("labels", data=np.ones(2))), "'labels' is float64"),
    ("text", "one text in many rows"): (good("text", one_text_many_rows), "characters"),
    ("vgg19", "huge kernel"): (hdf5(name="block1_conv1/x", shape=(3, 3, 1 << 20, 1 << 20)), "unpacks to"),
    ("vgg19", "other file"): (lambda path: h5py.File(path, "w").update(
        {"model_weights": h5py.ExternalLink(str(path.parent / "other"), "/")}), "features.0 of vgg19 is missing"),
}


@pytest.mark.parametrize("what, name", list(HDF5))
def test_hdf5(tmp_path, reader, what, name):
    write, words = HDF5[what, name]
    path = tmp_path / "a.h5"
    write(path)
    found, line = reader.read(what, path)
    assert found == REFUSED and words in line, line


def test_a_link_to_another_file_of_weights_is_not_followed(tmp_path, reader):
    keras_file(tmp_path / "other", small("vgg19").state_dict())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other"), "/")
    assert reader.read("vgg19", tmp_path / "other") == (READ, "")
    assert reader.read("vgg19", tmp_path / "a.h5")[0] == REFUSED


# ------------------------------------------------------------------------------------------- weights of other programs
def vgg19(**tensors):
    """Writer of VGG-19's weights with other tensors: names without "features."."""
    def write(path):
        torch.save(dict(small("vgg19").state_dict()) | {
            f"features.{name.replace('_', '.')}": value for name, value in tensors.items()}, path)
    return write


def compressed(path):
    torch.save({"features.0.weight": torch.zeros(1 << 22)}, path.parent / "plain")
    with zipfile.ZipFile(path.parent / "plain") as plain:
        zip_of(path, *((member.filename, plain.read(member)) for member in plain.infolist()))


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    """A field of a protocol buffer: an integer, or bytes."""
    return (varint(number << 3) + varint(value) if isinstance(value, int) else
            varint(number << 3 | 2) + varint(len(value)) + value)


def tensorflow(path, shape=(), own=b"x", times=1, entries=1):
    """A one-file checkpoint of one empty tensor with a shape, `times` in its index, under keys that share prefixes."""
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    meta = field(1, field(1, field(1, b"x") + field(2, sizes) + field(3, 1) + field(4, b"")))
    data = field(2, field(1, b"x") + field(3, b""))

    def block(pairs):
        content, before = b"", 0
        for key, value in pairs:
            content += varint(before) + varint(len(key)) + varint(len(value)) + key + value
            before += len(key)
        return content + bytes(4) + (1).to_bytes(4, "little")

    first = block([(b"", meta), *[(own, data)] * entries])
    handle = varint(0) + varint(len(first))
    index = block([(b"", handle)] * times)
    begin = len(first) + 5
    footer = varint(0) + varint(0) + varint(begin) + varint(len(index))
    path.write_bytes(first + bytes(5) + index + bytes(5) + footer.ljust(40, b"\0") + TINY.read_bytes()[-8:])


def npz(path, shape):
    """A PCA of a shape that it has not."""
    np.savez_compressed(path, pca_eigen_vectors=np.zeros(shape, np.float32), pca_means=np.zeros(4))


WEIGHTS = {
    ("vgg19", "compressed"): (compressed, "expected an uncompressed file"),
    ("vgg19", "one number"): (vgg19(**{"0_weight": torch.zeros(1, dtype=torch.half).expand(1 << 20, 1 << 20, 3, 3)}),
                              "stores fewer elements"),
    ("vgg19", "no channels"): (vgg19(**{"0_weight": torch.zeros(0, 3, 3, 3), "0_bias": torch.zeros(0)}), "shape"),
    ("vgg19", "sparse"): (vgg19(**{"0_bias": torch.zeros(1).to_sparse()}), "sparse"),
    ("vgg19", "no data"): (vgg19(**{"0_bias": torch.zeros(1, device="meta")}), "special"),
    ("vgg19", "complex"): (vgg19(**{"0_bias": torch.zeros(1, dtype=torch.complex64)}), "complex64"),
    ("vgg19", "eight bits"): (vgg19(**{"0_bias": torch.zeros(1).to(torch.float8_e5m2)}), "float8"),
    ("vggish", "shape that overflows"): (lambda path: tensorflow(path, (1 << 32, 1 << 32)), "tensor x has 0 values"),
    ("vggish", "shape beyond 64 bits"): (lambda path: tensorflow(path, ((1 << 64) - 1, 2)), "tensor x has 0 values"),
    ("vggish", "overlapping blocks"): (lambda path: tensorflow(path, (0,), times=100), "overlap"),
    ("vggish", "names that grow"): (lambda path: tensorflow(path, (0,), own=b"x" * 100, entries=1000), "a name of"),
    ("pca", "a bomb"): (lambda path: npz(path, (5000, 5000)), "expected at most"),
    ("pca", "one number"): (lambda path: torch.save(
        {"pca_eigen_vectors": torch.zeros(1).expand(1 << 17, 1 << 17), "pca_means": torch.zeros(1 << 17)}, path),
        "stores fewer elements"),
    ("pca", "NaN"): (lambda path: np.savez(path, pca_eigen_vectors=np.eye(4), pca_means=np.full(4, np.nan)), "NaN"),
}


@pytest.mark.parametrize("what, name", list(WEIGHTS))
def test_weights(tmp_path, reader, what, name):
    write, words = WEIGHTS[what, name]
    path = tmp_path / ("a.npz" if name in ("a bomb", "NaN") else "a.bin")
    write(path)
    found, line = reader.read(what, path)
    assert found == REFUSED and words in line, line


# ---------------------------------------------------------------------------------------------------- exported folders
def entry(weights, **more):
    """The file with other facts about its first tensor."""
    header, data = header_of(weights)
    name = next(name for name in header if name != "__metadata__")
    header[name] = header[name] | more
    return safetensors(header, data)


def overlapping(weights):
    header, data = header_of(weights)
    first, *others = (name for name in header if name != "__metadata__")
    for name in others:
        header[name]["data_offsets"] = header[first]["data_offsets"]
    return safetensors(header, data)


def of_eight_bits(weights):
    header, data = header_of(weights)
    return saved({name: torch.zeros(of["shape"]).to(torch.float8_e4m3fn) for name, of in header.items()
                  if name != "__metadata__"})


SHARED = {
    "no header": lambda weights: b"",
    "a header of 2^63 bytes": lambda weights: safetensors({}, length=1 << 63),
    "a header of 2^64 - 1 bytes": lambda weights: safetensors({}, length=(1 << 64) - 1),
    "a header of spaces": lambda weights: safetensors(b" " * 1_000_000),
    "a header 100,000 deep": lambda weights: safetensors(b'{"a":' * 100_000),
    "sizes that overflow": lambda weights: entry(weights, shape=[1 << 32, 1 << 32, 1 << 32]),
    "offsets beyond the end": lambda weights: entry(weights, data_offsets=[0, 1 << 60]),
    "offsets the wrong way": lambda weights: entry(weights, data_offsets=[32, 0]),
    "offsets of all the same": overlapping,
    "another type": lambda weights: entry(weights, dtype="F64"),
    "no type": lambda weights: entry(weights, dtype="F3"),
    "numbers of eight bits": of_eight_bits,
}


@pytest.mark.parametrize("name", list(SHARED))
def test_exported_weights(tmp_path, reader, exported, name):
    weights, about = exported["weights"], exported["about"]
    found, line = reader.read("shared", write_shared(tmp_path / "folder", SHARED[name](weights), about))
    assert found == REFUSED and hub.WEIGHTS in line, line


@pytest.mark.parametrize("name, value", [("dropout", 2e257), ("dropout", float("nan")), ("dropout", -1.0),
                                         ("num_heads", 1 << 62), ("seconds", 10 ** 400)])
def test_exported_sizes(tmp_path, reader, exported, name, value):
    weights, about = exported["weights"], exported["about"]
    folder = write_shared(tmp_path / "folder", weights, about | {"config": about["config"] | {name: value}})
    found, line = reader.read("shared", folder)
    assert found == REFUSED and "config" in line, line


# -------------------------------------------------------------------------------------------- lists, zips and pictures
def members(path, count=1, size=0, total=None):
    """A zip with this many empty members, of which one claims a size, and the end a number of them."""
    zip_of(path, *((f"{k}.pkl", b"") for k in range(count)))
    data = bytearray(path.read_bytes())
    begin = data.index(b"PK\x01\x02")
    data[begin + 24:begin + 28] = struct.pack("<I", size)
    if total:                           # the directory of zip64, whose counts have eight bytes
        end = data.index(b"PK\x05\x06")
        record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, end - begin, begin)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
        data[end:] = record + locator + b"PK\x05\x06" + b"\xff" * 16 + bytes(2)
    path.write_bytes(data)


def one_picture(path, width, height, kind="PNG"):
    """A picture that claims a size, with no more than its header right."""
    Image.new("RGB", (8, 8)).save(path, kind)
    if kind == "PNG":
        header = b"IHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
        patched(path, b"IHDR", 0, header + struct.pack(">I", zlib.crc32(header)))


OTHERS = {
    ("list", "a line of 2 GB"): (lambda path: sparse(path, 2 << 30, b"a,b\n1,"), "more than 268,435,456 bytes"),
    ("list", "a header of two lines"): (lambda path: path.write_bytes(b'"a,b\n\x1b[2J",c\n1,2\n'),
                                      "line 1 cannot be read as csv"),
    ("results", "2 GB"): (lambda path: sparse(path, 2 << 30, b"{"), "more than"),
    ("record", "2 GB"): (lambda path: sparse(path, 2 << 30, b"{"), "larger than"),
    ("record", "100,000 deep"): (lambda path: path.write_bytes(b'{"options":' * 100_000), "provenance record"),
    ("npy", "2 GB"): (lambda path: sparse(path, 2 << 30, b"\x93NUMPY"), "expected at most 67,108,864"),
    ("zip", "2 GB"): (lambda path: sparse(path, 2 << 30, b"PK\x03\x04"), "expected at most 67,108,864"),
    ("zip", "2^32 members"): (lambda path: members(path, total=1 << 32), "not a valid pickle"),
    ("zip", "100 members"): (lambda path: members(path, 100), "expected at most 64"),
    ("zip", "a member of 4 GB"): (lambda path: members(path, size=0xFFFFFFF0), "unpacked"),
    ("checkpoint", "2^32 members"): (lambda path: members(path, total=1 << 32), "not a torch.save checkpoint"),
    ("image", "100,000 x 100,000"): (lambda path: one_picture(path, 100_000, 100_000), "not a valid image"),
    ("image", "10,000 x 10,000"): (lambda path: one_picture(path, 10_000, 10_000), "67,108,864 pixels"),
    ("image", "PostScript"): (lambda path: one_picture(path, 8, 8, "EPS"), "not a valid image"),
}


@pytest.mark.parametrize("what, name", list(OTHERS))
def test_others(tmp_path, reader, what, name):
    write, words = OTHERS[what, name]
    write(tmp_path / "a.bin")
    found, line = reader.read(what, tmp_path / "a.bin")
    assert found == REFUSED and words in line, line


def test_sound_that_is_missing_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "LIMITS", replace(LIMITS, silence_seconds=2))
    make_video(tmp_path / "late.mkv", **SMALL, delay=1e9)
    sound = encoders.LogMelSound(audio.FrontEnd())
    made = clip.extract(tmp_path / "late.mkv", "late", clip.Timing(None), sound)
    assert made.row.status == "unreadable" and "more than 2 s of audio are missing" in made.row.warning
    assert clip.extract(tmp_path / "late.mkv", "late", clip.Timing(1), sound).row.status == "ok"
