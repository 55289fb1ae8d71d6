"""Open untrusted HDF5 files and check their arrays before reading them: no other files are opened, and sizes are
limited by cmg/utils/limits.py.

Must run on Python 3.7 with only NumPy and h5py, because the text exporter uses it in old environments.
"""

import mmap
import os
from contextlib import contextmanager

import h5py
import numpy as np

from cmg.utils.errors import InputError
from cmg.utils.files import require_regular
from cmg.utils.limits import LIMITS

# Exceptions that h5py raises for damaged files.
ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
AGAIN = "download or write the file again, or set its path with --path"
SIGNATURE, HEAP = b"\x89HDF\r\n\x1a\n", b"GCOL\x01\0\0\0"       # signatures of a file and of a heap of texts
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)
NAMES = {h5py.h5z.FILTER_SZIP: "szip", h5py.h5z.FILTER_NBIT: "nbit", h5py.h5z.FILTER_SCALEOFFSET: "scaleoffset",
         32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd"}
KINDS = {"f": "floating-point numbers", "iu": "integers", "u": "integers", "S": "strings", "O": "strings"}
CHECKSUM = 4                            # bytes of the Fletcher checksum at the end of a chunk
HEADER, ALIGNED = 16, 8                 # header size of a heap and of each text, and alignment of texts, in bytes


@contextmanager
def reading(where, expected="a valid HDF5 file", remedy=AGAIN):
    """Convert exceptions of h5py in this block to an InputError."""
    try:
        yield
    except InputError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise InputError(f"{where}: damaged ({reason}); expected {expected}; {remedy}") from None


def open_hdf5(path):
    """Open an HDF5 file for reading; InputError if it is missing, truncated or not HDF5."""
    try:
        require_regular(path)
    except OSError as error:
        found = "not found" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{path}: {found}; expected an HDF5 file; {AGAIN}") from None
    try:
        _require_texts(path)
        return h5py.File(str(path), "r")
    except InputError:
        raise
    except ERRORS as error:
        found, remedy = f"not a valid HDF5 file ({str(error)[:60]})", AGAIN
        if getattr(error, "errno", None):             # a system error, not a damaged file
            found = f"cannot be read ({os.strerror(error.errno)})"
            if "lock" in str(error):
                found = "locked by another program, or on a file system without locks"
                remedy = "close that program, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        raise InputError(f"{path}: {found}; expected an HDF5 file; {remedy}") from None


def _require_texts(path):
    """Raise InputError for a heap with a text of size zero, for which HDF5 2.0 loops forever at the same offset.

    Files above the limit on lists are not searched, because that would take longer than reading their clips.
    """
    size = os.path.getsize(str(path))
    if not 0 < size <= LIMITS.list_bytes:
        return
    with open(str(path), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = data.find(SIGNATURE)
        offset = head + (13 if data[head + 8:head + 9] < b"\2" else 9)
        if head >= 0 and data[offset:offset + 2] != b"\x08\x08":
            raise InputError(f"{path}: not a valid HDF5 file (addresses are not 8 bytes); expected an intact file; "
                             f"{AGAIN}")
        begin = data.find(HEAP)
        while begin >= 0:
            end = begin + int.from_bytes(data[begin + 8:begin + HEADER], "little")
            at = begin + HEADER
            while at + HEADER <= min(end, size):
                is_text = data[at:at + 2] != b"\0\0"
                length = int.from_bytes(data[at + 8:at + HEADER], "little")
                step = HEADER + -(-length // ALIGNED) * ALIGNED if is_text else length
                if not 0 < step <= size:
                    raise InputError(f"{path}: not a valid HDF5 file (a string has an impossible length); expected an "
                                     f"intact file; {AGAIN}")
                at += step
            begin = data.find(HEAP, begin + 1)


def hdf5_array(file, name, kinds, *ranks, by_row=False):
    """Get a dataset of an open HDF5 file, checked before any of its data is read.

    Args:
        file: open h5py file or group.
        name: name of the dataset.
        kinds: allowed NumPy kinds, e.g. "f" or "iu"; "O" is variable-length text, "S" fixed-length text.
        ranks: allowed numbers of dimensions.
        by_row: whether it will be read row by row instead of at once.
    Raises:
        InputError: missing, wrong type or rank, stored outside this file, or above the limits of cmg/utils/limits.py.
    """
    where = file.file.filename
    with reading(where):
        link = file.get(name, getlink=True) if name in file or name in list(file) else None
        array = file.get(name) if isinstance(link, h5py.HardLink) else None
        if isinstance(array, h5py.Group):
            raise InputError(f"{where}: '{name}' is a group ({', '.join(map(str, list(array)[:5])) or 'empty'}); "
                             "expected an array; store the array directly under that name")
        if not isinstance(array, h5py.Dataset):
            found = "a link" if link is not None else f"found {', '.join(map(str, list(file)[:5])) or 'nothing'}"
            raise InputError(f"{where}: no dataset '{name}' ({found}); expected an array with that name; "
                             "check that this is the right file")
        require_plain(array, where, by_row)
        is_text = array.dtype.kind != "O" or h5py.check_string_dtype(array.dtype) is not None
        if array.dtype.kind not in kinds or not is_text or array.ndim not in ranks:
            raise InputError(f"{where}: '{name}' is {array.dtype} {array.shape}; expected "
                             f"{KINDS.get(kinds, 'numbers')} of rank {' or '.join(map(str, ranks))}; check that this "
                             "is the right file")
        return array


def require_plain(array, where, by_row=False):
    """Raise InputError for a dataset stored outside its file or above the limits of cmg/utils/limits.py."""
    layout = array.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():      # first, because reading the shape
        raise InputError(f"{where}: '{array.name}' is stored in other files; expected an array in this file; do not "
                         "trust this file")                                         # may open those files
    shape = array.shape or ()
    one = float(array.dtype.itemsize)
    chunk = np.prod(array.chunks or (1,), dtype=np.float64) * one
    whole = np.prod(shape, dtype=np.float64) * one
    if chunk > LIMITS.chunk_bytes:
        raise InputError(f"{where}: '{array.name}' is stored in chunks of {chunk:,.0f} bytes; expected up to "
                         f"{LIMITS.chunk_bytes:,} (cmg/utils/limits.py); do not trust this file")
    if by_row and (shape[:1] > (LIMITS.clips,) or whole > LIMITS.chunk_bytes * max(shape[:1], default=1)):
        raise InputError(f"{where}: '{array.name}' has shape {shape}; expected up to {LIMITS.clips:,} rows of "
                         f"{LIMITS.chunk_bytes:,} bytes (cmg/utils/limits.py); do not trust this file")
    if not by_row and whole > LIMITS.list_bytes and whole > array.id.get_storage_size():
        raise InputError(f"{where}: '{array.name}' unpacks to {whole:,.0f} bytes; expected up to "
                         f"{LIMITS.list_bytes:,} (cmg/utils/limits.py); do not trust this file")
    if array.chunks is not None:
        _require_chunks(array, chunk, where)


def _require_chunks(array, size, where):
    """Raise InputError for chunks of impossible size, because HDF5 2.0 crashes on a chunk shorter than its checksum,
    and for rare filters, which have had vulnerabilities."""
    layout = array.id.get_create_plist()
    filters = [layout.get_filter(k)[0] for k in range(layout.get_nfilters())]
    least, most = (CHECKSUM + 1, size * 1.125 + 1024) if filters else (size, size)
    wrong = []
    array.id.chunk_iter(lambda chunk: wrong.append(chunk.size) if not least <= chunk.size <= most else None)
    foreign = [str(NAMES.get(name, f"filter {name}")) for name in filters if name not in FILTERS]
    if foreign:
        raise InputError(f"{where}: '{array.name}' is compressed by {', '.join(foreign)}; expected no compression, "
                         "gzip or lzf; convert the file with `h5repack -f GZIP=1 OLD NEW`")
    if wrong:
        raise InputError(f"{where}: '{array.name}' has a chunk of {wrong[0]:,} bytes; expected whole chunks of "
                         f"{size:,.0f} bytes; write the file again")


def texts(array):
    """Read a text dataset that was checked by `hdf5_array`: list of str.

    Raises:
        InputError: not UTF-8, or above the limit on lists in total: many rows may refer to one long text.
    """
    where = array.file.filename
    rows = max(1, LIMITS.list_bytes // max(os.path.getsize(where), 1))     # each text is shorter than the file
    found, size = [], 0
    with reading(where):
        for k in range(0, len(array), rows):
            found += [text.decode("utf-8") for text in array[k:k + rows]]
            size += sum(map(len, found[k:]))
            if size > LIMITS.list_bytes:
                raise InputError(f"{where}: '{array.name}' has too many characters; expected at most "
                                 f"{LIMITS.list_bytes:,} (cmg/utils/limits.py); do not trust this file")
    return found
