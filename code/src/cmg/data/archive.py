"""Read feature files with one array each: a zipped pickle as in the published download, a bare pickle, .npy, .npz.

Downloads are not trusted: nothing is extracted to disk, sizes are limited, and pickles are read by an interpreter with
only the opcodes needed to build numeric arrays.
"""

import io
import os
import pickle
import re
import zipfile
from pathlib import PurePosixPath

import numpy as np

from cmg.utils.errors import InputError
from cmg.utils.files import open_input, require_regular
from cmg.utils.limits import LIMITS

AGAIN = "copy or unpack the file again, or skip the clip with --on_bad_clip skip"
_PLAIN = re.compile(r"b1|[iu][1248]|f(2|4|8|16)")         # dtype codes of numbers; O, V, S, U, M are rejected


class _Dtype:
    """Replaces numpy.dtype while unpickling; holds only the checked type code and byte order."""

    def __init__(self, code="", align=False, copy=False):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if isinstance(code, str) and code.lstrip("<>|=").startswith("O"):
            raise InputError("an array of Python objects")
        if not isinstance(code, str) or not _PLAIN.fullmatch(code.lstrip("<>|=")):
            raise InputError(f"an array of type {str(code)[:20]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Replaces numpy.ndarray while unpickling; `value` is the array once its state has been checked."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data, dtype, shape, order):
        if isinstance(data, list):
            raise InputError("an array of Python objects")
        data = data.encode("latin1") if isinstance(data, str) else data         # written by Python 2
        sizes = isinstance(shape, tuple) and len(shape) <= LIMITS.dimensions and all(
            type(n) is int and n >= 0 for n in shape)
        if not sizes or not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or (
                len(data) != np.prod(shape, dtype=object) * dtype.dtype.itemsize):
            raise InputError("an array whose size does not match its shape")
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(subtype, shape, code):
    return _Array()


def _frombuffer(data, dtype, shape, order):
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _encode(text, encoding="latin1"):
    if encoding not in ("latin1", "latin-1"):
        raise InputError(f"text in encoding {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _no_bytes():
    return b""


# Protocols 0 to 2 write bytes as _codecs.encode(text, "latin1"), and empty bytes as bytes().
_GLOBALS = {("_codecs", "encode"): _encode, ("__builtin__", "bytes"): _no_bytes,
            ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
for _core in ("numpy.core", "numpy._core"):                 # names of the module in NumPy 1 and NumPy 2
    _GLOBALS[_core + ".multiarray", "_reconstruct"] = _reconstruct
    _GLOBALS[_core + ".numeric", "_frombuffer"] = _frombuffer

_BASIC = ("PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
          "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE")
_ARRAY = _BASIC + (" STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES"
                   " BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS"
                   " GLOBAL STACK_GLOBAL REDUCE BUILD")
_COUNTS = _BASIC + " EMPTY_DICT DICT SETITEM SETITEMS"


def _dispatch(opcodes):
    codes = [getattr(pickle, name)[0] for name in opcodes.split() if hasattr(pickle, name)]    # BYTEARRAY8: from 3.8
    return {code: pickle._Unpickler.dispatch[code] for code in codes}


class _ArrayUnpickler(pickle._Unpickler):
    """Builds numeric arrays only.

    This is Python's unpickler instead of the C one, because its opcode table can be restricted, and because its memo is
    a dict, so a forged index of 2^31 in a six-byte file does not allocate 32 GB. Dict and set opcodes are excluded:
    hashing nested tuples can take forever.
    """

    dispatch = _dispatch(_ARRAY)

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise InputError(f"a pickle that refers to {module[:40]}.{name[:40]}") from None


class _CountUnpickler(pickle._Unpickler):
    """Builds a dict of integers only (cnt.pkl)."""

    dispatch = _dispatch(_COUNTS)


def _unpickle(unpickler, data, where, expected, remedy):
    try:
        return unpickler(io.BytesIO(data), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{where}: {error}; expected {expected}; {remedy}") from None
    except KeyError as error:           # the table has no such opcode
        raise InputError(f"{where}: a pickle with other content (opcode {error}); expected {expected}; "
                         f"{remedy}") from None
    except Exception as error:  # noqa: BLE001   a broken pickle may fail anywhere in the interpreter
        raise InputError(f"{where}: not a valid pickle ({type(error).__name__}); expected {expected}; "
                         f"{remedy}") from None


def unpickle_array(data, where):
    """Unpickle a NumPy array without executing any code in the pickle.

    Args:
        data: bytes of the pickle.
        where: name for messages.
    Returns:
        a read-only numeric array with the stored shape and dtype.
    Raises:
        InputError: the pickle is anything but one numeric array.
    """
    result = _unpickle(_ArrayUnpickler, data, where, "one NumPy array of numbers", AGAIN)
    if not isinstance(result, _Array) or result.value is None:
        raise InputError(f"{where}: the pickle is a {type(result).__name__.lstrip('_').lower()}; expected one NumPy "
                         f"array of numbers; {AGAIN}")
    return result.value


def read_zip(path):
    """Read the array in a clip's zip file, which contains one pickle.

    Raises:
        InputError: no file, not a zip, truncated, encrypted, above `LIMITS`, a member name that leaves the folder, not
            exactly one pickle, or a pickle of something else.
    """
    return unpickle_array(_only_member(path, ".pkl", "a zip with one pickled array"), path)


def read_npz(path):
    """Read the array in a clip's .npz file, as written by `np.savez(file, array)`; raises like `read_zip`."""
    return _npy_array(_only_member(path, ".npy", "a .npz file of one array"), path)


def read_pickle(path):
    """Read the array in a clip's .pkl file, as written by `pickle.dump(array, file)`; raises like `unpickle_array`."""
    return unpickle_array(read_limited(path, LIMITS.pickle_bytes, "one pickled NumPy array"), path)


def read_limited(path, limit, expected, remedy=AGAIN):
    """Read the bytes of a file.

    Args:
        path: file to read.
        limit: maximum size in bytes.
        expected, remedy: what the file should be, and what to do if it cannot be read, for messages.
    Raises:
        InputError: the file is missing or too large.
    """
    try:
        with open_input(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {expected}; {remedy}") from None
    check_limit(len(data), limit, path, "bytes")
    return data


def _only_member(path, ending, expected):
    """Content of the only member of a zip file with this suffix."""
    data = read_limited(path, LIMITS.zip_bytes, expected)
    check_limit(data.count(b"PK\x01\x02"), LIMITS.members, path, "members")      # before zipfile lists them
    if not data:
        raise InputError(f"{path}: an empty file (0 bytes); expected {expected}; {AGAIN}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = _member(archive, path, ending)
            check_limit(member.file_size, LIMITS.pickle_bytes, f"{path}, {member.filename}", "bytes unpacked")
            with archive.open(member) as stream:
                content = stream.read(LIMITS.pickle_bytes + 1)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001   zipfile raises BadZipFile, zlib.error, EOFError, RuntimeError ...
        raise InputError(f"{path}: a truncated or damaged zip ({str(error)[:80] or type(error).__name__}); expected "
                         f"{expected}; {AGAIN}") from None
    check_limit(len(content), LIMITS.pickle_bytes, f"{path}, {member.filename}", "bytes unpacked")
    return content


def require_stored(path):
    """Raise InputError for a compressed zip, which torch.save never writes, and for anything but a regular file:
    torch.load would wait forever for a pipe."""
    try:
        require_regular(path)
    except FileNotFoundError:
        return                          # torch.load reports it
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file written by torch.save; check "
                         "the path") from None
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        stored = os.path.getsize(str(path))
    except Exception:  # noqa: BLE001   torch.load reports what is wrong with the zip
        return
    if size > stored:
        raise InputError(f"{path}: {size:,} bytes compressed to {stored:,}; expected an uncompressed file, as written "
                         "by torch.save; use a file from a source that you trust")


def check_limit(value, limit, where, unit):
    """Raise InputError if a size is above its limit."""
    if value > limit:
        raise InputError(f"{where}: {value:,} {unit} or more; expected at most {limit:,} (cmg/utils/limits.py); check "
                         "where the file comes from")


def _member(archive, path, ending):
    members = archive.infolist()
    for member in members:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ":" in name.split("/")[0] or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path}: member name {member.filename[:60]!r} leaves the folder; expected a plain name; "
                             "check where the file comes from")
    names = [m for m in members if ending in PurePosixPath(m.filename).name and not m.is_dir()
             and not m.filename.startswith("__MACOSX/")]
    if len(names) != 1:
        found = ", ".join(m.filename[:40] for m in names[:3]) or ("no member" if not members else f"no {ending} member")
        kind = "pickles" if ending == ".pkl" else "arrays"
        raise InputError(f"{path}: {len(names)} {kind} in the zip ({found}); expected exactly one {ending}; {AGAIN}")
    return names[0]


def read_npy(path):
    """Read the array in a clip's .npy file, as written by `np.save`; object arrays (pickles) are rejected unread.

    Raises:
        InputError: no file, not a numeric array, a size that does not match the header, or above `LIMITS`.
    """
    return _npy_array(read_limited(path, LIMITS.pickle_bytes, "one NumPy array"), path)


def _npy_array(data, path):
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(stream)
    except Exception as error:  # noqa: BLE001   a forged header raises ValueError, SyntaxError, MemoryError ...
        found = "an empty file (0 bytes)" if not data else f"not .npy ({str(error)[:80] or type(error).__name__})"
        raise InputError(f"{path}: {found}; expected one NumPy array of numbers; {AGAIN}") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InputError(f"{path}: an array of {'Python objects' if dtype.hasobject else dtype}; expected numbers; "
                         "save it again as np.save(file, array.astype('float32'))")
    content = data[stream.tell():]
    if len(shape) > LIMITS.dimensions or len(content) != np.prod(shape, dtype=object) * dtype.itemsize:
        raise InputError(f"{path}: {len(content):,} bytes for an array of shape {str(shape)[:60]} and type {dtype}; "
                         f"expected a complete file of at most {LIMITS.dimensions} dimensions; {AGAIN}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_counts(path):
    """Read the dict of integers in a word list such as cnt.pkl (vocabulary index -> dense index).

    Raises:
        InputError: no file, or a pickle of anything but a dict of integers.
    """
    remedy = "use the published cnt.pkl or create one with `python prepare.py vocabulary`"
    data = read_limited(path, LIMITS.pickle_bytes, "a pickled dict of integers", remedy)
    result = _unpickle(_CountUnpickler, data, path, "a dict of integers", remedy)
    if type(result) is not dict or not all(type(n) is int for pair in result.items() for n in pair):
        raise InputError(f"{path}: the pickle is a {type(result).__name__} that is not a dict of integers; expected "
                         f"{{vocabulary index: dense index}}; {remedy}")
    return result
