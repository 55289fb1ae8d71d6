"""Download, verify and read the recordings and images of Spoken Digits.

* Free Spoken Digit Dataset, commit 26eb9aa: 3,000 words of six speakers, 8 kHz, 16 bit; CC BY-SA 4.0.
* The 10,000 test images of MNIST, 28 x 28; CC BY-SA 3.0.

Archives are read into memory, up to a size limit; the paths in them are not used.
"""

import gzip
import hashlib
import io
import re
import tarfile
import wave
import zlib
from dataclasses import dataclass
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output, open_input
from cmg.utils.limits import LIMITS

RATE = 8000                             # sample rate in Hz
SIDE = 28                               # side of an image in pixels
SPEECH = "free-spoken-digit-dataset-recordings.tar.gz"
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
HOMES = {SPEECH: "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/26eb9aa.tar.gz",
         IMAGES: MNIST + IMAGES, LABELS: MNIST + LABELS}
# SHA-256 of the unpacked contents, because GitHub repacks its archives. For the recordings, it is that of the output of
# sha256sum: lines "<SHA-256 of the file>  <its name>", sorted by name.
SHA256 = {SPEECH: "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
          IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
          LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"}
RECORDING = re.compile(r"(?:.*/)?recordings/((\d)_([a-z]+)_(\d{1,2})\.wav)")
TIMEOUT = 60                            # seconds without a response


@dataclass
class Speech:
    """Recorded words.

    Attributes:
        waves: list of int16 arrays at 8 kHz.
        digit, index: (N,) digit, and number of the take; takes 0 to 4 are the test split of the dataset.
        speaker: (N,) names.
    """

    waves: list
    digit: np.ndarray
    speaker: np.ndarray
    index: np.ndarray


@dataclass
class Images:
    """Handwritten digits: pixels (N, 28, 28) uint8, with bright ink; digit (N,)."""

    pixels: np.ndarray
    digit: np.ndarray


def read_speech(folder):
    """Read the archive in `folder` as `Speech`, sorted by file name; InputError unless it is the published one."""
    path = folder / SPEECH
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_unpacked(path)), mode="r:") as archive:
            for member in archive:
                name = RECORDING.fullmatch(member.name)
                if name and member.isfile() and member.size <= LIMITS.recording_bytes:
                    files[name[1]] = archive.extractfile(member).read()
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise _damaged(path, f"not a tar archive: {error}") from None
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    _verify(path, "".join(lines).encode(), f"{len(files)} recordings")
    names = [RECORDING.fullmatch(f"recordings/{name}").groups() for name in sorted(files)]
    return Speech([_samples(files[name]) for name in sorted(files)], np.array([int(digit) for _, digit, _, _ in names]),
                  np.array([speaker for *_, speaker, _ in names]), np.array([int(take) for *_, take in names]))


def read_images(folder):
    """Read the two files in `folder` as `Images`; InputError unless they are the published ones."""
    pixels, digits = (_verify(folder / name, _unpacked(folder / name), "other content") for name in (IMAGES, LABELS))
    return Images(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, SIDE, SIDE),
                  np.frombuffer(digits, np.uint8, offset=8).astype(np.int64))


def fetch(folder):
    """Download the archives that are not in `folder`; InputError if that fails."""
    for name, address in HOMES.items():
        path = folder / name
        if not path.exists():
            print(f"{address} -> {path}", flush=True)
            download(address, path, f"save the file as {path} yourself, or pass a folder that has it with --recordings")


def download(address, path, remedy, limit=None):
    """Download a URL to a file, atomically.

    Args:
        limit: maximum of bytes; default: LIMITS.download_bytes.
        remedy: what to do if it fails, for the message.

    Raises:
        InputError: the download fails, or has more bytes than `limit`.
    """
    limit = limit or LIMITS.download_bytes
    try:
        with urlopen(address, timeout=TIMEOUT) as answer:
            content = answer.read(limit + 1)
    except (URLError, OSError, ValueError) as error:
        raise InputError(f"{address}: cannot be downloaded ({error}); {remedy}") from None
    if len(content) > limit:
        raise InputError(f"{address}: the response has more than {limit >> 20} MiB; expected {path.name}; {remedy}")
    with atomic_output(path) as file:
        file.write(content)


def _unpacked(path):
    """Contents of a .gz file, up to a size limit."""
    if not path.is_file():
        raise InputError(f"{path}: not found; expected {SPEECH}, {IMAGES} and {LABELS} in one folder; pass it with "
                         "--recordings")
    try:
        with open_input(path) as packed, gzip.open(packed) as file:
            content = file.read(LIMITS.unpacked_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None
    if len(content) > LIMITS.unpacked_bytes:
        raise _damaged(path, f"more than {LIMITS.unpacked_bytes >> 20} MiB unpacked")
    return content


def _verify(path, content, what):
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise _damaged(path, f"{what}: its SHA-256 differs")
    return content


def _damaged(path, why):
    return InputError(f"{path}: not the published file ({why}); delete it to download it again from "
                      f"{HOMES[path.name]}")


def _samples(content):
    with wave.open(io.BytesIO(content)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)
