"""Feature stores, all read in the same way: a folder with a file for each id (.zip, .npy, .npz, .pkl, .pt), an HDF5
pack of it, AVE's HDF5 arrays, or an HDF5 file with a dataset for each id.

A store gives the clip of an id as float32 (T, ...), checked and fitted to T seconds, and how many the clip has. Stores
are small objects that can be sent to DataLoader workers; HDF5 files are opened lazily, once per process.
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

VECTOR, MAP, TOKENS = (None,), (None, None, None), (None, None)     # any size: what the first clip has, all must have
KINDS = {"vector": (VECTOR,), "map": (MAP,), "tokens": (TOKENS,)}   # channels last
SHAPES = {                      # that one second may have, of "text" one clip
    "audio": (VECTOR, MAP),     # (128,) in the published features
    "video": (VECTOR, MAP),     # (7, 7, 512)
    "text": (TOKENS,),
    "label": ((),),             # 1 where the clip's event is heard and seen in that second
}
PACK_FORMAT = "cmg-pack-1"


def fit_length(x, seconds, where="clip"):
    """Fit (t, ...) to `seconds` rows: the LAST row is repeated, or the first rows kept (released loaders).

    Raises:
        InputError: t = 0, which cannot be padded.
    """
    if len(x) == 0:
        raise InputError(f"{where}: 0 seconds; at least one is expected; extract the feature again, or leave the clip "
                         "out with --on_bad_clip skip")
    return x[:seconds] if seconds is None or len(x) >= seconds else x[at_seconds(len(x), seconds)]


def at_seconds(own, seconds):
    """Which of a clip's `own` seconds is at each of T: (T,), the last one repeated or the first ones alone."""
    return np.minimum(np.arange(seconds), own - 1)


def fitting(shape, shapes):
    """Is `shape` one of `shapes`, in which None stands for any size?"""
    return any(len(shape) == len(form) and all(m in (None, n) for n, m in zip(shape, form)) for form in shapes)


def names_of(shapes, unit):
    """Shapes for messages: "(seconds, any)", "(seconds, 128) or (seconds, any, any, any)"."""
    return " or ".join("(" + ", ".join([*unit, *("any" if n is None else str(n) for n in form)])
                       + ("," if len(unit) + len(form) == 1 else "") + ")" for form in shapes)


def check_clip(x, shapes, seconds, where, like=""):
    """One clip's feature as float32 (seconds, *shape), or (L, W) of tokens.

    Args:
        x: (t, *shape) or (L, W) array of numbers; segment labels may also be (1, t).
        shapes: that one second may have (as in `SHAPES`), None for any size.
        seconds: T.
        where: name for messages.
        like: where the shape comes from, for messages.
    Raises:
        InputError: wrong rank or width, no rows, or values that are not finite.
    """
    is_tokens = all(len(form) == 2 for form in shapes)
    if shapes == ((),) and x.ndim == 2 and x.shape[0] == 1:
        x = x[0]
    if not fitting(x.shape[0 if is_tokens else 1:], shapes) or not x.ndim:
        form = names_of(shapes, () if is_tokens else ("seconds",))
        like = like and f", as of {like}"
        raise InputError(f"{where}: shape {tuple(x.shape)}; {form} is expected{like}; check that this is the right "
                         "kind of feature, or skip the clip with --on_bad_clip skip")
    with np.errstate(over="ignore"):        # what float32 cannot hold becomes infinite and is named below
        x = (x if is_tokens else fit_length(x, seconds, where)).astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{where}: {int((~np.isfinite(x)).sum())} of {x.size} values are NaN or infinite; finite "
                         f"numbers are expected; extract the feature again, or skip the clip with --on_bad_clip "
                         "skip")
    return x


def open_features(path, kind, seconds=10, form=None, by_id=False):
    """The store at `path`.

    Args:
        path: folder of one file per clip (`READERS`), an HDF5 pack written by `prepare.py pack`, or AVE's HDF5 array.
        kind: modality, or "label": what one second looks like (`SHAPES`; another modality is a vector or a map).
        seconds: T; shorter clips repeat their last second, longer ones are cut. None: clips as they are.
        form: "vector", "map" or "tokens" where only this will do.
        by_id: any other HDF5 file is one with a dataset for each id.
    Returns:
        a store with `ids`, `read(id)` and `missing(ids)`.
    Raises:
        InputError: nothing there, or none of these.
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
        raise InputError(f"{path}: not found; a folder of features or an HDF5 file with {kind} features is expected; "
                         "get it from the data package (data/README.md), or set its path with --path (--features for "
                         "your own data)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); a readable folder or HDF5 file is expected; "
                         "check its permissions") from None


def _file_store(path, by_id):
    """Pack, Rows or Datasets: what an HDF5 file is."""
    with open_hdf5(path) as file:
        return Pack if "format" in file.attrs else Datasets if by_id and "avadataset" not in file else Rows


class Store:
    """What the stores share: the shape found in the first clip, and a file handle that stays in its process.

    Attributes:
        shapes: that a clip may have; after `probe` one, without None.
        tokens: how many each clip gets where they are tokens: zeros follow its own, as in a file of prompts; 0: as many
            as it has.
    """

    form = ""                       # what the store is, for messages
    is_ragged = False               # clips may have different numbers of tokens
    may_lack_time = False           # a clip may be one vector or map, without a dimension of seconds

    def __init__(self, path, kind, seconds, shapes):
        self.path, self.kind, self.seconds, self.shapes = Path(path), kind, seconds, shapes
        self.like, self.tokens = "", 0
        self._file, self._pid = None, None

    @property
    def tail(self):
        """Shape of one second, or of a clip's tokens; without None after `probe`."""
        return self.shapes[0]

    @property
    def leading(self):
        """What precedes `tail` in a clip: (T,), nothing before tokens."""
        return () if len(self.tail) == len(TOKENS) else (self.seconds,)

    def missing(self, ids):
        """Those of `ids` that are not here, in order."""
        return [i for i in ids if i not in self.ids]

    def read(self, clip):
        """Feature of one clip, float32 (T, ...)."""
        return self.measure(clip)[0]

    def measure(self, clip):
        """Feature of one clip, float32 (T, ...), and its own seconds before it was fitted to T."""
        raise NotImplementedError

    def probe(self, clip):
        """Read one clip and hold all others to its shape. Returns its own seconds."""
        x, own = self.measure(clip)
        self.hold(x.shape[len(self.leading):], f"clip {clip}")
        return own

    def hold(self, tail, like):
        """Hold all clips to this shape; `like`: where it was found, for messages."""
        if self.kind != "label":
            check_shape(f"{self.path}, {self.kind}", tail)
        self.shapes, self.like = (tuple(tail),), like

    def array_of(self, file, name, kinds="f"):
        """The dataset of all clips in an HDF5 file; its shape holds for them."""
        leading = len(self.leading)
        array = hdf5_array(file, name, kinds, *(1 + leading + len(tail) for tail in self.shapes), by_row=True)
        self.hold(array.shape[1 + leading:], "the others")
        return array

    def fit_tokens(self, clips):
        """Give all these clips as many tokens as the longest of them has. Bad ones are left to those who read them."""
        if len(self.tail) == len(TOKENS) and self.is_ragged:
            found = []
            for clip in tqdm(clips, f"measuring {self.kind}", unit="clip", disable=None, leave=False):
                with suppress(InputError):
                    found.append(len(self.read(clip)))
            self.tokens = max(found, default=0)

    def with_time(self, x):
        """A clip's array, with a dimension of one second before what is a single vector or map."""
        is_single = self.may_lack_time and self.leading and x.ndim in map(len, self.shapes)
        return x[None] if is_single and not any(x.ndim == 1 + len(tail) for tail in self.shapes) else x

    def check(self, x, where):
        """A clip's array as float32, checked; see `check_clip`."""
        if len(self.tail) == len(TOKENS) and x.ndim == len(TOKENS):
            if len(x) == 0:
                raise InputError(f"{where}: 0 words; at least one is expected; encode the sentence again, or leave the "
                                 "clip out with --on_bad_clip skip")
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
    """The tensor in a clip's .pt file, as `torch.save(tensor, file)` writes it, as an array.

    Raises:
        InputError: no file, anything but one dense tensor of real numbers, or above `LIMITS`; nothing of it is run.
    """
    import torch  # here and below, because --help does not need it
    expected = "one tensor of numbers, as torch.save(tensor, file) writes it,"
    data = read_limited(path, LIMITS.pickle_bytes, expected)
    require_stored(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = [member.file_size for member in archive.infolist() if "/data/" in member.filename]
        x = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001   BadZipFile, UnpicklingError, RuntimeError ... of whatever the file is
        raise InputError(f"{path}: no tensor of torch.save, or one of before PyTorch 1.6 ({type(error).__name__}); "
                         f"{expected} is expected; save it again") from None
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided or x.is_complex() or x.is_quantized or (
            x.device.type != "cpu"):
        found = f"a dict of {', '.join(map(str, list(x)[:5]))}" if isinstance(x, dict) else f"a {type(x).__name__}"
        raise InputError(f"{path}: holds {found[:100]}; {expected} is expected; save the tensor alone")
    if sizes != [x.untyped_storage().nbytes()]:                 # torch would read beyond what the file has
        raise InputError(f"{path}: {sum(sizes):,} bytes for a tensor of {x.untyped_storage().nbytes():,}; {expected} "
                         f"is expected; {AGAIN}")
    check_limit(x.numel() * x.element_size(), LIMITS.pickle_bytes, path, "bytes unpacked")      # strides may repeat
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


READERS = {".zip": read_zip, ".npy": read_npy, ".npz": read_npz, ".pkl": read_pickle, ".pt": read_tensor}


class ArrayFolder(Store):
    """A folder with one array for each clip, <id> with one of the endings of `READERS`.

    Ids are in Unicode's form NFC, whatever form the file system keeps names in.
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
                raise InputError(f"{self.path}: both {known} and {name}; one file for each clip is expected; remove "
                                 "one of them")
        self.ids = set(self.files)
        self.others = [name for name in names if os.path.splitext(name)[1] not in READERS and not name.startswith(".")]

    @property
    def form(self):
        """What is in the folder: "12 .npy, 1 .csv"."""
        endings = Counter(os.path.splitext(name)[1] or "without ending"
                          for name in (*self.files.values(), *self.others))
        return ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(4)) or "empty"

    def file_of(self, clip):
        """Name of a clip's file in the folder."""
        return self.files[clip]

    def measure(self, clip):
        """As `Store.measure`."""
        path = self.path / self.files[clip]
        array = self.with_time(READERS[path.suffix](path))
        return self.check(array, path), array.shape[-1 if self.kind == "label" else 0]


class Rows(Store):
    """AVE's form: dataset `avadataset` (samples, T, ...); the id of a clip is its row number as text."""

    form = "HDF5, rows"

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:
            array = self.array_of(file, "avadataset", "biuf")
            self.ids = {str(row) for row in range(len(array))}

    def measure(self, clip):
        """As `Store.measure`."""
        where = f"{self.path}, row {clip}"
        with reading(where, "a whole file", AGAIN):
            row = self.open()["avadataset"][int(clip)]
        return self.check(row, where), len(row)


class Datasets(Store):
    """One HDF5 file with a dataset (t, ...) for each clip, by its id."""

    form, is_ragged, may_lack_time = "HDF5, a dataset for each id", True, True

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:                                      # names that are no str are no UTF-8
            self.names = {unicodedata.normalize("NFC", name): name for name in file if isinstance(name, str)}
        self.ids = set(self.names)
        if not self.ids:
            raise InputError(f"{self.path}: an HDF5 file without datasets; one for each clip, by its id, is expected; "
                             "write the file again")

    def measure(self, clip):
        """As `Store.measure`."""
        where = f"{self.path}, clip {clip}"
        ranks = {number + len(tail) for tail in self.shapes for number in {len(self.leading), 0}}
        with reading(where, "a whole file", AGAIN):
            array = hdf5_array(self.open(), self.names[clip], "biuf", *sorted(ranks))
            check_limit(array.nbytes, LIMITS.pickle_bytes, where, "bytes")
            x = self.with_time(array[:])
        return self.check(x, where), len(x)


class Pack(Store):
    """One HDF5 file per modality, written and verified by `prepare.py pack`: `features` (clips, t, ...), `ids`, and
    `seconds`, how many each clip had before it was fitted to t; packs of earlier versions do not say that.

    A chunk is one clip, stored as it is: reading a clip is one copy, and the checks of `check_clip` were made when the
    pack was written.
    """

    form = "a pack"

    def __init__(self, path, kind, seconds, shapes):
        super().__init__(path, kind, seconds, shapes)
        with open_hdf5(self.path) as file:
            found = str(file.attrs.get("format"))[:40]
            if found != PACK_FORMAT or not file.attrs.get("complete"):
                state = "an unfinished pack" if found == PACK_FORMAT else f"format '{found}'"
                raise InputError(f"{self.path}: {state}; a finished pack ({PACK_FORMAT}) is expected; run "
                                 "`python prepare.py pack` (again)")
            array = self.array_of(file, "features")
            names = hdf5_array(file, "ids", "S", 1)
            filters = array.id.get_create_plist().get_nfilters()
            plain = array.chunks == (1, *array.shape[1:]) and not filters and array.dtype in (np.float16, np.float32)
            state = hdf5_array(file, "state", "u", 1)
            own = hdf5_array(file, "seconds", "iu", 1) if "seconds" in file else state
            if not plain or {len(names), len(state), len(own)} != {len(array)} or (
                    array.id.get_storage_size() != array.nbytes):       # a chunk cut short would leave memory as it was
                raise InputError(f"{self.path}: {array.dtype} in chunks {array.chunks}, {len(names)} ids; float16 or "
                                 "float32, one uncompressed chunk and one id per clip are expected; run `python "
                                 "prepare.py pack` again")
            written = state[:] == 1                                     # 2: a bad clip that was skipped
            self.rows = {unicodedata.normalize("NFC", name.decode()): k for k, name in enumerate(names[:])
                         if written[k]}
            self.dtype, self.shape = array.dtype, array.shape[1:]
            self.own = None if own is state else own[:]
        longest = int(self.own.max(initial=0)) if self.own is not None else math.inf
        if self.leading and seconds is not None and self.shape[0] < min(seconds, longest):
            raise InputError(f"{self.path}: a pack of {self.shape[0]} seconds a clip; T = {seconds} is asked for, and "
                             "the clips may be longer; pack the features again with `python prepare.py pack --seconds "
                             f"{seconds}`, or pass --seconds {self.shape[0]}")
        self.ids = set(self.rows)

    def open(self):
        """The `features` dataset, opened once per process."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path)["features"], os.getpid()
        return self._file

    def measure(self, clip):
        """As `Store.measure`; None for the seconds where the pack does not say them."""
        return to_float32(self.read_stored(clip)), None if self.own is None else int(self.own[self.rows[clip]])

    def read_stored(self, clip):
        """Feature of one clip in the pack's own dtype, (T, ...)."""
        result = np.empty(self.shape, self.dtype)
        with reading(f"{self.path}: clip {clip}", "a whole pack", "run `python prepare.py pack` again"):
            self.open().id.read_direct_chunk((self.rows[clip],) + (0,) * len(self.shape),
                                            out=result.reshape(-1).view(np.uint8))
        return fit_length(result, self.seconds) if self.leading else result


def to_float32(x):
    """A clip as float32: from float16, torch takes a quarter of NumPy's time, except for the smallest arrays."""
    import torch
    return torch.from_numpy(x).float().numpy() if x.size > 1 << 14 else x.astype(np.float32)
