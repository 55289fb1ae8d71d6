"""Feature stores with a common interface: a folder with one file per id (.zip, .npy, .npz, .pkl, .pt), an HDF5 pack of
such a folder, AVE's HDF5 arrays, or an HDF5 file with one dataset per id.

A store returns the feature of an id as float32 (T, ...), checked and fitted to T seconds, and the clip's own length.
Stores are small objects that can be sent to DataLoader workers; HDF5 files are opened lazily, once per process.
"""

import io
import math
import os
import stat
import unicodedata
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmg.data.archive import (
    AGAIN,
    check_limit,
    read_limited,
    read_npy,
    read_npz,
    read_pickle,
    read_zip,
    require_stored,
)
from cmg.data.hdf5 import hdf5_array, open_hdf5, reading
from cmg.models.config import check_shape
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

VECTOR, MAP, TOKENS = (None,), (None, None, None), (None, None)     # None: the size of the first clip
KINDS = {"vector": (VECTOR,), "map": (MAP,), "tokens": (TOKENS,)}   # channels last
SHAPES = {                      # allowed shapes of one second, or of one clip for "text"
    "audio": (VECTOR, MAP),     # (128,) in the published features
    "video": (VECTOR, MAP),     # (7, 7, 512)
    "text": (TOKENS,),
    "label": ((),),             # 1 if the clip's event is audible and visible in that second
}
PACK_FORMAT = "cmg-pack-1"


def fit_length(x, seconds, where="clip"):
    """Fit (t, ...) to `seconds` rows by repeating the LAST row or cutting (published loaders).

    Raises:
        InputError: t = 0, which cannot be padded.
    """
    if len(x) == 0:
        raise InputError(f"{where}: 0 seconds; expected at least one; extract the feature again, or skip the clip with "
                         "--on_bad_clip skip")
    return x[:seconds] if seconds is None or len(x) >= seconds else x[at_seconds(len(x), seconds)]


def at_seconds(own, seconds):
    """Index into a clip's `own` seconds for each of T: (T,), repeating the last second or cutting."""
    return np.minimum(np.arange(seconds), own - 1)


def fitting(shape, shapes):
    """Whether `shape` matches one of `shapes`, in which None stands for any size."""
    return any(len(shape) == len(form) and all(m in (None, n) for n, m in zip(shape, form)) for form in shapes)


def names_of(shapes, unit):
    """Shapes for messages: "(seconds, any)", "(seconds, 128) or (seconds, any, any, any)"."""
    return " or ".join("(" + ", ".join([*unit, *("any" if n is None else str(n) for n in form)])
                       + ("," if len(unit) + len(form) == 1 else "") + ")" for form in shapes)


def check_clip(x, shapes, seconds, where, like=""):
    """Check a clip's feature and convert it to float32 (seconds, *shape), or (L, W) for tokens.

    Args:
        x: (t, *shape) or (L, W) numeric array; segment labels may also be (1, t).
        shapes: allowed shapes of one second (as in `SHAPES`), None for any size.
        seconds: T.
        where: name for messages.
        like: origin of the required shape, for messages.
    Raises:
        InputError: wrong rank or width, no rows, or values that are not finite.
    """
    is_tokens = all(len(form) == 2 for form in shapes)
    if shapes == ((),) and x.ndim == 2 and x.shape[0] == 1:
        x = x[0]
    if not fitting(x.shape[0 if is_tokens else 1:], shapes) or not x.ndim:
        form = names_of(shapes, () if is_tokens else ("seconds",))
        like = like and f", as in {like}"
        raise InputError(f"{where}: shape {tuple(x.shape)}; expected {form}{like}; check that this is the right kind "
                         "of feature, or skip the clip with --on_bad_clip skip")
    with np.errstate(over="ignore"):        # values that overflow float32 become infinite and are reported below
        x = (x if is_tokens else fit_length(x, seconds, where)).astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{where}: {int((~np.isfinite(x)).sum())} of {x.size} values are NaN or infinite; expected "
                         "finite numbers; extract the feature again, or skip the clip with --on_bad_clip skip")
    return x


def open_features(path, kind, seconds=10, form=None, by_id=False):
    """Open the store at `path`.

    Args:
        path: folder of one file per clip (`READERS`), an HDF5 pack written by `prepare.py pack`, or AVE's HDF5 array.
        kind: modality, or "label"; determines the shape of one second (`SHAPES`; other modalities are vectors or maps).
        seconds: T; shorter clips repeat their last second, longer ones are cut. None keeps the clips' lengths.
        form: the required form, "vector", "map" or "tokens".
        by_id: read any other HDF5 file as one with a dataset for each id.
    Returns:
        a store with `ids`, `read(id)` and `missing(ids)`.
    Raises:
        InputError: the path does not exist or is none of these.
    """
    path = Path(path)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        shapes = KINDS[form] if form else SHAPES.get(kind, (VECTOR, MAP))
        if is_folder:
            store = ArrayFolder(path, kind, seconds, shapes)
            store.may_lack_time = by_id
            return store
        with reading(path):
            return _file_store(path, by_id)(path, kind, seconds, shapes)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a folder of features or an HDF5 file with {kind} features; "
                         "download it with the data package (data/README.md), or set its path with --path (--features "
                         "for your own data)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a readable folder or HDF5 file; check "
                         "its permissions") from None


def _file_store(path, by_id):
    """The store class for an HDF5 file: Pack, Rows or Datasets."""
    with open_hdf5(path) as file:
        return Pack if "format" in file.attrs else Datasets if by_id and "avadataset" not in file else Rows


class Store:
    """Base class of stores: keeps the shape found in the first clip, and a file handle that stays in its process.

    Attributes:
        shapes: allowed shapes of a clip; after `probe` a single one, without None.
        tokens: number of tokens that each clip is zero-padded to, as in a file of prompts; 0 for no padding.
    """

    form = ""                       # description for messages
    is_ragged = False               # clips may have different numbers of tokens
    may_lack_time = False           # a clip may be one vector or map, without a dimension of seconds

    def __init__(self, path, kind, seconds, shapes):
        self.path, self.kind, self.seconds, self.shapes = Path(path), kind, seconds, shapes
        self.like, self.tokens = "", 0
        self._file, self._pid = None, None

    @property
    def tail(self):
        """Shape of one second, or of a clip's tokens; has no None after `probe`."""
        return self.shapes[0]

    @property
    def leading(self):
        """Dimensions that precede `tail` in a clip: (T,), or () for tokens."""
        return () if len(self.tail) == len(TOKENS) else (self.seconds,)

    def missing(self, ids):
        """Those of `ids` that the store does not have, in order."""
        return [i for i in ids if i not in self.ids]

    def read(self, clip):
        """Feature of one clip, float32 (T, ...)."""
        return self.measure(clip)[0]

    def measure(self, clip):
        """Feature of one clip, float32 (T, ...), and its length in seconds before it was fitted to T."""
        raise NotImplementedError

    def probe(self, clip):
        """Read one clip and require its shape of all others. Returns its length in seconds."""
        x, own = self.measure(clip)
        self.fix_shape(x.shape[len(self.leading):], f"clip {clip}")
        return own

    def fix_shape(self, tail, like):
        """Require this shape of all clips; `like` says where it was found, for messages."""
        if self.kind != "label":
            check_shape(f"{self.path}, {self.kind}", tail)
        self.shapes, self.like = (tuple(tail),), like

    def array_of(self, file, name, kinds="f"):
        """The dataset with all clips of an HDF5 file; fixes the shape of the clips."""
        leading = len(self.leading)
        array = hdf5_array(file, name, kinds, *(1 + leading + len(tail) for tail in self.shapes), by_row=True)
        self.fix_shape(array.shape[1 + leading:], "the others")
        return array

    def fit_tokens(self, clips):
        """Pad all these clips to the tokens of the longest one. Bad clips are ignored here and reported when read."""
        if len(self.tail) == len(TOKENS) and self.is_ragged:
            found = []
            for clip in tqdm(clips, f"measuring {self.kind}", unit="clip", disable=None, leave=False):
                with suppress(InputError):
                    found.append(len(self.read(clip)))
            self.tokens = max(found, default=0)

    def with_time(self, x):
        """A clip's array; a single vector or map gets a time dimension of one second."""
        is_single = self.may_lack_time and self.leading and x.ndim in map(len, self.shapes)
        return x[None] if is_single and not any(x.ndim == 1 + len(tail) for tail in self.shapes) else x

    def check(self, x, where):
        """A clip's array as float32, checked; see `check_clip`."""
        if len(self.tail) == len(TOKENS) and x.ndim == len(TOKENS):
            if len(x) == 0:
                raise InputError(f"{where}: 0 words; expected at least one; encode the sentence again, or skip the "
                                 "clip with --on_bad_clip skip")
            x = np.concatenate([x, np.zeros((max(0, self.tokens - len(x)), x.shape[1]), x.dtype)])
        return check_clip(x, self.shapes, self.seconds, where, self.like)

    def open(self):
        """The HDF5 file, opened once per process (a handle must not cross a fork)."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path), os.getpid()
        return self._file

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_pid": None}


def read_tensor(path):
    """Read the tensor in a clip's .pt file, as written by `torch.save(tensor, file)`, as an array.

    Raises:
        InputError: no file, anything but one dense tensor of real numbers, or above `LIMITS`.
    """
    import torch  # here and below, because --help does not need it
    expected = "one tensor of numbers, as written by torch.save(tensor, file)"
    data = read_limited(path, LIMITS.pickle_bytes, expected)
    require_stored(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = [member.file_size for member in archive.infolist() if "/data/" in member.filename]
        x = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001   BadZipFile, UnpicklingError, RuntimeError ...
        raise InputError(f"{path}: not a tensor, or saved before PyTorch 1.6 ({type(error).__name__}); "
                         f"expected {expected}; save it again") from None
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.is_complex() or x.is_quantized or (
            x.device.type != "cpu"):
        found = f"a dict of {', '.join(map(str, list(x)[:5]))}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise InputError(f"{path}: contains {found[:100]}; expected {expected}; save only the tensor")
    if sizes != [x.untyped_storage().nbytes()]:                 # torch would read past the end of the data
        raise InputError(f"{path}: {sum(sizes):,} bytes for a tensor of {x.untyped_storage().nbytes():,}; expected "
                         f"{expected}; {AGAIN}")
    check_limit(x.numel() * x.element_size(), LIMITS.pickle_bytes, path, "bytes unpacked")      # strides may repeat
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


READERS = {".zip": read_zip, ".npy": read_npy, ".npz": read_npz, ".pkl": read_pickle, ".pt": read_tensor}


class ArrayFolder(Store):
    """A folder with one array per clip, <id> with one of the suffixes of `READERS`.

    Ids are normalized to NFC, however the file system stores names.
    """

    is_ragged = True

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        self.files = {}                                         # id -> name of its file
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending not in READERS:
                continue
            known = self.files.setdefault(unicodedata.normalize("NFC", stem), name)
            if known != name:
                raise InputError(f"{self.path}: both {known} and {name}; expected one file for each clip; remove one "
                                 "of them")
        self.ids = set(self.files)
        self.others = [name for name in names if os.path.splitext(name)[1] not in READERS and not name.startswith(".")]

    @property
    def form(self):
        """Content of the folder, such as "12 .npy, 1 .csv"."""
        endings = Counter(os.path.splitext(name)[1] or "without suffix"
                          for name in (*self.files.values(), *self.others))
        return ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(4)) or "empty"

    def file_of(self, clip):
        """Name of a clip's file in the folder."""
        return self.files[clip]

    def measure(self, clip):
        """See `Store.measure`."""
        path = self.path / self.files[clip]
        array = self.with_time(READERS[path.suffix](path))
        return self.check(array, path), array.shape[-1 if self.kind == "label" else 0]


class Rows(Store):
    """AVE's format: dataset `avadataset` (samples, T, ...); the id of a clip is its row number as text."""

    form = "HDF5, rows"

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:
            array = self.array_of(file, "avadataset", "biuf")
            self.ids = {str(row) for row in range(len(array))}

    def measure(self, clip):
        """See `Store.measure`."""
        where = f"{self.path}, row {clip}"
        with reading(where, "a complete file", AGAIN):
            row = self.open()["avadataset"][int(clip)]
        return self.check(row, where), len(row)


class Datasets(Store):
    """One HDF5 file with a dataset (t, ...) for each clip, named by its id."""

    form, is_ragged, may_lack_time = "HDF5, a dataset for each id", True, True

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:                                      # names that are not UTF-8 are bytes
            self.names = {unicodedata.normalize("NFC", name): name for name in file if isinstance(name, str)}
        self.ids = set(self.names)
        if not self.ids:
            raise InputError(f"{self.path}: an HDF5 file without datasets; expected one per clip, named by its id; "
                             "write the file again")

    def measure(self, clip):
        """See `Store.measure`."""
        where = f"{self.path}, clip {clip}"
        ranks = {number + len(tail) for tail in self.shapes for number in {len(self.leading), 0}}
        with reading(where, "a complete file", AGAIN):
            array = hdf5_array(self.open(), self.names[clip], "biuf", *sorted(ranks))
            check_limit(array.nbytes, LIMITS.pickle_bytes, where, "bytes")
            x = self.with_time(array[:])
        return self.check(x, where), len(x)


class Pack(Store):
    """One HDF5 file per modality, written and verified by `prepare.py pack`: `features` (clips, t, ...), `ids`, and
    `seconds`, each clip's length before it was fitted to t (missing in packs of earlier versions).

    A chunk is one uncompressed clip, so reading a clip is a single copy. The checks of `check_clip` were made when the
    pack was written.
    """

    form = "a pack"

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:
            found = str(file.attrs.get("format"))[:40]
            if found != PACK_FORMAT or not file.attrs.get("complete"):
                state = "an unfinished pack" if found == PACK_FORMAT else f"format '{found}'"
                raise InputError(f"{self.path}: {state}; expected a finished pack ({PACK_FORMAT}); run `python "
                                 "prepare.py pack` (again)")
            array = self.array_of(file, "features")
            names = hdf5_array(file, "ids", "S", 1)
            filters = array.id.get_create_plist().get_nfilters()
            plain = array.chunks == (1, *array.shape[1:]) and not filters and array.dtype in (np.float16, np.float32)
            state = hdf5_array(file, "state", "u", 1)
            own = hdf5_array(file, "seconds", "iu", 1) if "seconds" in file else state
            if not plain or {len(names), len(state), len(own)} != {len(array)} or (
                    array.id.get_storage_size() != array.nbytes):       # a short chunk would leave memory uninitialized
                raise InputError(f"{self.path}: {array.dtype} in chunks {array.chunks}, {len(names)} ids; expected "
                                 "float16 or float32, one uncompressed chunk and one id per clip; run `python "
                                 "prepare.py pack` again")
            written = state[:] == 1                                     # 2 marks a bad clip that was skipped
            self.rows = {unicodedata.normalize("NFC", name.decode()): k for k, name in enumerate(names[:])
                         if written[k]}
            self.dtype, self.shape = array.dtype, array.shape[1:]
            self.own = None if own is state else own[:]
        longest = int(self.own.max(initial=0)) if self.own is not None else math.inf
        if self.leading and seconds is not None and self.shape[0] < min(seconds, longest):
            raise InputError(f"{self.path}: a pack of {self.shape[0]} seconds per clip, but T = {seconds}, and the "
                             "clips may be longer; pack the features again with `python prepare.py pack --seconds "
                             f"{seconds}`, or pass --seconds {self.shape[0]}")
        self.ids = set(self.rows)

    def open(self):
        """The `features` dataset, opened once per process."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path)["features"], os.getpid()
        return self._file

    def measure(self, clip):
        """See `Store.measure`; the length is None if the pack does not have it."""
        return to_float32(self.read_stored(clip)), None if self.own is None else int(self.own[self.rows[clip]])

    def read_stored(self, clip):
        """Feature of one clip in the pack's own dtype, (T, ...)."""
        result = np.empty(self.shape, self.dtype)
        with reading(f"{self.path}: clip {clip}", "a complete pack", "run `python prepare.py pack` again"):
            self.open().id.read_direct_chunk((self.rows[clip],) + (0,) * len(self.shape),
                                            out=result.reshape(-1).view(np.uint8))
        return fit_length(result, self.seconds) if self.leading else result


def to_float32(x):
    """Convert a clip to float32. From float16, torch is four times as fast as NumPy, except for the smallest arrays."""
    import torch
    return torch.from_numpy(x).float().numpy() if x.size > 1 << 14 else x.astype(np.float32)
