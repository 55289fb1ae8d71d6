"""Feature stores, all read in the same way: a folder of <id>.zip or <id>.npy, an HDF5 pack of it, AVE's HDF5 arrays, or
an HDF5 file with a dataset for each id.

A store gives the clip of an id as float32 (T, ...), checked and fitted to T seconds, and how many the clip has. Stores
are small objects that can be sent to DataLoader workers; HDF5 files are opened lazily, once per process.
"""

import math
import os
import stat
from pathlib import Path

import h5py
import numpy as np
import torch

from dataset.archive import AGAIN, LIMITS, check_limit, read_npy, read_zip
from errors import InputError

SHAPES = {                      # of one second; None: whatever the first clip has, then the same for all
    "audio": (128,),
    "video": (7, 7, None),      # channels last; 512 in the published features
    "text": (None,),            # one row a word
    "label": (),                # 1 where the clip's event is heard and seen in that second
}
PACK_FORMAT = "cmg-pack-1"
MAX_CHUNK_BYTES = 256 << 20     # a chunk is one clip, 1 MB in the published features


def fit_length(x, seconds, where="clip"):
    """Fit (t, ...) to `seconds` rows: the LAST row is repeated, or the first rows kept (released loaders).

    Raises:
        InputError: t = 0, which cannot be padded.
    """
    if len(x) == 0:
        raise InputError(f"{where}: 0 seconds; at least one is expected; extract the feature again, or leave the clip "
                         "out with --on_bad_clip skip")
    return x[:seconds] if seconds is None or len(x) >= seconds else x[fitting(len(x), seconds)]


def fitting(own, seconds):
    """Which of a clip's `own` seconds stands at each of T: (T,), the last one repeated or the first ones alone."""
    return np.minimum(np.arange(seconds), own - 1)


def fit_words(x, words, where="clip"):
    """Fit (n, ...) word vectors to `words` rows: the first are kept, or zeros follow, as in a file of prompts.

    Raises:
        InputError: n = 0.
    """
    if len(x) == 0:
        raise InputError(f"{where}: 0 words; at least one is expected; encode the sentence again, or leave the clip out "
                         "with --on_bad_clip skip")
    return np.concatenate([x[:words], np.zeros((max(0, words - len(x)), *x.shape[1:]), x.dtype)])


def check_clip(x, tail, seconds, where, fit=fit_length):
    """One clip's feature as float32 (seconds, *tail).

    Args:
        x: (t, *tail) array of numbers; segment labels (tail empty) may also be (1, t).
        tail: shape of one second, None for any size.
        seconds: T.
        where: name for messages.
        fit: `fit_length`, or `fit_words` of text.
    Raises:
        InputError: wrong rank or width, no rows, or values that are not finite.
    """
    if tail == () and x.ndim == 2 and x.shape[0] == 1:
        x = x[0]
    if x.ndim != 1 + len(tail) or any(n != m for n, m in zip(x.shape[1:], tail) if m is not None):
        form = ", ".join(["seconds"] + ["any" if n is None else str(n) for n in tail])
        raise InputError(f"{where}: shape {tuple(x.shape)}; ({form}) is expected; check that this is the right kind of "
                         "feature, or skip the clip with --on_bad_clip skip")
    with np.errstate(over="ignore"):        # what float32 cannot hold becomes infinite and is named below
        x = fit(x, seconds, where).astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{where}: {int((~np.isfinite(x)).sum())} of {x.size} values are NaN or infinite; finite "
                         f"numbers are expected; extract the feature again, or skip the clip with --on_bad_clip "
                         "skip")
    return x


def open_features(path, kind, seconds=10):
    """The store at `path`.

    Args:
        path: folder of <id>.zip or <id>.npy files, an HDF5 pack written by `prepare.py pack`, AVE's HDF5 array, or an
            HDF5 file with one dataset for each id.
        kind: "audio", "video", "text" or "label": what one second looks like (`SHAPES`).
        seconds: T; shorter clips repeat their last second, longer ones are cut. None: clips as they are.
    Returns:
        a store with `ids`, `read(id)` and `missing(ids)`.
    Raises:
        InputError: nothing there, or none of these.
    """
    path = Path(path)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        return ZipFolder(path, kind, seconds) if is_folder else _open_file(path, kind, seconds)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; a folder of zips or an HDF5 file with {kind} features is expected; get "
                         "it from the data package (data/README.md), or set its place with --path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); a readable folder of zips or HDF5 file is "
                         "expected; check its permissions") from None


def _open_file(path, kind, seconds):
    with open_hdf5(path) as file:
        store = Pack if "format" in file.attrs else Rows if "avadataset" in file else Datasets
    return store(path, kind, seconds)


def open_hdf5(path):
    """An HDF5 file opened for reading; InputError where it is missing, truncated or something else."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        found = "not found" if not Path(path).exists() else f"not a whole HDF5 file ({str(error)[:60]})"
        raise InputError(f"{path}: {found}; an HDF5 file is expected; get or make the file again, or set its place "
                         "with --path") from None


def hdf5_array(file, name, kinds, rank):
    """A dataset of an open HDF5 file, checked before anything of it is read.

    Args:
        file: open h5py file.
        name: dataset.
        kinds: admitted NumPy kinds, e.g. "f" or "iu".
        rank: number of dimensions.
    Raises:
        InputError: absent, of another type or rank, stored outside this file, or in chunks beyond `MAX_CHUNK_BYTES`.
    """
    link = file.get(name, getlink=True) if name in file or name in list(file) else None
    array = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset):
        found = "a link" if link is not None else f"it has {', '.join(list(file)[:5]) or 'nothing'}"
        raise InputError(f"{file.filename}: no dataset '{name}' of its own ({found}); an array under that name is "
                         "expected; check that this is the right file")
    if array.dtype.kind not in kinds or array.ndim != rank:
        raise InputError(f"{file.filename}: '{name}' is {array.dtype} {array.shape}; numbers of rank {rank} are "
                         "expected; check that this is the right file")
    chunk = np.prod(array.chunks or (1,), dtype=np.float64) * array.dtype.itemsize
    if array.external or array.is_virtual or chunk > MAX_CHUNK_BYTES:
        raise InputError(f"{file.filename}: '{name}' is stored in other files or in chunks of {chunk:,.0f} bytes; a "
                         f"plain array with chunks up to {MAX_CHUNK_BYTES:,} bytes is expected; do not trust this file")
    return array


class Store:
    """What the stores share: the width found in the first clip, and a file handle that stays in its process."""

    def __init__(self, path, kind, seconds):
        self.path, self.kind, self.seconds = Path(path), kind, seconds
        self.tail = SHAPES[kind]
        self.fit = fit_words if kind == "text" else fit_length
        self._file, self._pid = None, None

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
        """Read one clip and hold all others to its width. Returns its own seconds."""
        x, own = self.measure(clip)
        self.tail = x.shape[1:]
        return own

    def open(self):
        """The HDF5 file, opened once per process (a handle must not cross a fork)."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_hdf5(self.path), os.getpid()
        return self._file

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_pid": None}


class ZipFolder(Store):
    """A folder with one array for each clip: <id>.zip with a pickle in it, as published, or <id>.npy."""

    def __init__(self, path, kind, seconds):
        super().__init__(path, kind, seconds)
        with os.scandir(self.path) as entries:
            names = {entry.name for entry in entries if entry.name.endswith((".zip", ".npy"))}
        self.ids = {name[:-4] for name in names}
        self.npy = {name[:-4] for name in names if name.endswith(".npy")}
        twice = next((name for name in sorted(self.npy) if f"{name}.zip" in names), None)
        if twice is not None:
            raise InputError(f"{self.path}: both {twice}.zip and {twice}.npy; one file for each clip is expected; remove "
                             "one of them")

    def measure(self, clip):
        """As `Store.measure`."""
        path = self.path / f"{clip}{'.npy' if clip in self.npy else '.zip'}"
        array = read_npy(path) if clip in self.npy else read_zip(path)
        return check_clip(array, self.tail, self.seconds, path, self.fit), array.shape[0 if self.tail else -1]


class Rows(Store):
    """AVE's form: dataset `avadataset` (samples, T, ...); the id of a clip is its row number as text."""

    def __init__(self, path, kind, seconds):
        super().__init__(path, kind, seconds)
        with open_hdf5(self.path) as file:
            array = hdf5_array(file, "avadataset", "f", 2 + len(self.tail))
            check_shape(self.path, "avadataset", array.shape[2:], self.tail)
            self.ids = {str(row) for row in range(len(array))}

    def measure(self, clip):
        """As `Store.measure`."""
        try:
            row = self.open()["avadataset"][int(clip)]
        except OSError as error:
            raise InputError(f"{self.path}: row {clip} cannot be read ({str(error)[:60]}); {AGAIN}") from None
        return check_clip(row, self.tail, self.seconds, f"{self.path}, row {clip}"), len(row)


class Datasets(Store):
    """One HDF5 file with a dataset (t, ...) for each clip, by its id."""

    def __init__(self, path, kind, seconds):
        super().__init__(path, kind, seconds)
        with open_hdf5(self.path) as file:
            self.ids = set(file)
        if not self.ids:
            raise InputError(f"{self.path}: an HDF5 file without datasets; one for each clip, by its id, is expected; "
                             "make the file again")

    def measure(self, clip):
        """As `Store.measure`."""
        where = f"{self.path}, clip {clip}"
        try:
            array = hdf5_array(self.open(), clip, "biuf", 1 + len(self.tail))
            check_limit(array.nbytes, LIMITS.pickle_bytes, where, "bytes")
            x = array[:]
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({str(error)[:60]}); {AGAIN}") from None
        return check_clip(x, self.tail, self.seconds, where, self.fit), len(x)


class Pack(Store):
    """One HDF5 file per modality, written and verified by `prepare.py pack`: `features` (clips, t, ...), `ids`, and
    `seconds`, how many each clip had before it was fitted to t; packs of earlier versions do not say that.

    A chunk is one clip, stored as it is: reading a clip is one copy, and the checks of `check_clip` were made when the
    pack was written.
    """

    def __init__(self, path, kind, seconds):
        super().__init__(path, kind, seconds)
        with open_hdf5(self.path) as file:
            found = str(file.attrs.get("format"))[:40]
            if found != PACK_FORMAT or not file.attrs.get("complete"):
                state = "an unfinished pack" if found == PACK_FORMAT else f"format '{found}'"
                raise InputError(f"{self.path}: {state}; a finished pack ({PACK_FORMAT}) is expected; run "
                                 "`python prepare.py pack` (again)")
            array = hdf5_array(file, "features", "f", 2 + len(self.tail))
            names = hdf5_array(file, "ids", "S", 1)
            check_shape(self.path, "features", array.shape[2:], self.tail)
            filters = array.id.get_create_plist().get_nfilters()
            plain = array.chunks == (1, *array.shape[1:]) and not filters and array.dtype in (np.float16, np.float32)
            if not plain or len(names) != len(array):
                raise InputError(f"{self.path}: {array.dtype} in chunks {array.chunks}, {len(names)} ids; float16 or "
                                 "float32, one uncompressed chunk and one id per clip are expected; run `python "
                                 "prepare.py pack` again")
            written = hdf5_array(file, "state", "u", 1)[:] == 1         # 2: a bad clip that was skipped
            self.rows = {name.decode(): k for k, name in enumerate(names[:]) if written[k]}
            self.dtype, self.shape = array.dtype, array.shape[1:]
            self.own = hdf5_array(file, "seconds", "iu", 1)[:] if "seconds" in file else None
        longest = int(self.own.max(initial=0)) if self.own is not None else math.inf
        if seconds is not None and self.shape[0] < min(seconds, longest):
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
        try:
            self.open().id.read_direct_chunk((self.rows[clip],) + (0,) * len(self.shape),
                                            out=result.reshape(-1).view(np.uint8))
            return fit_length(result, self.seconds)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: clip {clip} cannot be read ({str(error)[:60]}); a whole pack is expected; "
                             "run `python prepare.py pack` again") from None


def to_float32(x):
    """A clip as float32: from float16, torch takes a quarter of NumPy's time, except for the smallest arrays."""
    return torch.from_numpy(x).float().numpy() if x.size > 1 << 14 else x.astype(np.float32)


def check_shape(path, name, shape, expected):
    """InputError unless `shape` equals `expected`, None standing for any size."""
    if len(shape) != len(expected) or any(n != m for n, m in zip(shape, expected) if m is not None):
        form = tuple("any" if n is None else n for n in expected)
        raise InputError(f"{path}: '{name}' has clips of shape {tuple(shape)}; {form} is expected; check that this is "
                         "the right kind of feature")
