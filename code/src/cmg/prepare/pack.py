"""Pack a store of clips (zips, or AVE's array) into one HDF5 file; packing can be resumed, and the pack is verified.

The unfinished pack is <out>.partial. Its arrays are allocated once at full size, so later writes change only clip data,
checksums, lengths and flags, in this order. A killed run can be resumed: a clip counts as written if its flag is set
and its checksum matches.
"""

import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from cmg.data.features import PACK_FORMAT, Pack, open_features
from cmg.data.fingerprint import fingerprint
from cmg.data.origins import CONTENT, ORIGIN, describe
from cmg.prepare.values import float16_problem
from cmg.utils.cores import usable_cores
from cmg.utils.errors import InputError
from cmg.utils.signals import stop_on_signals

PENDING, WRITTEN, SKIPPED = 0, 1, 2
BATCH = 64                      # clips between two flushes
SAMPLE = 64                     # clips that are compared with their source at the end


@dataclass
class Packed:
    """Result of `pack`: clips in the pack, how many came from an earlier run, skipped clips (id -> reason), bytes."""

    clips: int
    resumed: int
    skipped: dict
    size: int


def pack(source, out, kind, dtype="float16", seconds=10, on_bad_clip="error", ids=None, form=None):
    """Pack clips of a store, fitted to `seconds` rows.

    Args:
        source: folder of features, or an HDF5 file; see `open_features`.
        out: pack to write.
        kind: modality, or "label".
        dtype: data type of the stored features, "float16" or "float32".
        seconds: T; None for the length of the longest clip.
        ids: the user's own clips; None for all clips of the store, sorted by id.
        form: the required form, "vector" or "map".
        on_bad_clip: "error" stops at a bad clip (the partial file is kept), "skip" skips it.
    Returns:
        `Packed`.
    Raises:
        Stopped: a signal was received; the partial file is kept.
        InputError: a bad clip, nothing to pack, a value outside float16, a full disk, a partial file of other data, or
            a clip that reads back incorrectly.
    """
    source, out = Path(source), Path(out)
    is_own = ids is not None
    store = open_features(source, kind, seconds, form, is_own)
    if isinstance(store, Pack):
        raise InputError(f"{source}: already a pack; expected a folder of features or another HDF5 file; use the pack "
                         "itself")
    ids = list(ids or sorted(store.ids, key=lambda name: (len(name), name) if name.isdigit() else (0, name)))
    if not ids:
        raise InputError(f"{source}: contains no <id>.zip; expected one zip per clip; unpack the features there")
    absent = store.missing(ids)
    if absent and on_bad_clip == "error":
        raise InputError(f"{source}: {len(absent)} of {len(ids)} clips have no {kind} feature "
                         f"({', '.join(absent[:5])}); expected one each; add the others, or skip these clips with "
                         "--on_bad_clip skip")
    ids = [name for name in ids if name not in set(absent)]
    partial = Path(f"{out}.partial")
    first = _first_good(store, ids, on_bad_clip)
    store.probe(first)
    if not store.leading:
        raise InputError(f"{source}: tokens cannot be packed; expected vectors or maps; use the features without "
                         "packing")
    if seconds is None:
        seconds = _longest(store, ids)
        store = open_features(source, kind, seconds, form, is_own)
        store.probe(first)
    shape = (len(ids), seconds, *store.tail)
    file_of = getattr(store, "file_of", None)
    content = fingerprint(source, [file_of(name) for name in ids] if file_of else None, full=True)
    try:
        if not partial.exists():
            _lay_out(partial, ids, shape, dtype, {ORIGIN: json.dumps(describe(source, kind)),
                                                  CONTENT: np.bytes_(content.sha256)})
        with stop_on_signals() as stop, h5py.File(partial, "r+") as file:
            _check_same(file, partial, ids, shape, dtype)
            if file.attrs.get(CONTENT) != np.bytes_(content.sha256):        # a clip was fixed or replaced since then
                _forget_changed(file, store, ids, np.dtype(dtype))
                file.attrs[CONTENT] = np.bytes_(content.sha256)
            resumed, skipped = _fill(file, store, ids, np.dtype(dtype), on_bad_clip, stop)
            _verify(file, store, ids, stop)
            file.attrs.modify("complete", True)         # in place: nothing else in the file changes
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, out)
    except (OSError, RuntimeError) as error:                # h5py raises either when a disk is full
        raise InputError(f"{out}: cannot be written ({str(error)[:100]}); expected {_gigabytes(shape, dtype):.1f} GB "
                         f"of free, writable space; free some and run again to continue, or delete {partial}") from None
    return Packed(len(ids) - len(skipped), resumed, skipped, out.stat().st_size)


def _longest(store, ids):
    """Rows of the longest clip; bad clips are handled in `_fill`."""
    found = []
    for name in tqdm(ids, f"measuring {store.kind}", unit="clip", disable=None, leave=False):
        with suppress(InputError):
            found.append(store.measure(name)[1])
    return max(found)


def _gigabytes(shape, dtype):
    return np.prod(shape, dtype=np.float64) * np.dtype(dtype).itemsize / 1e9


def _first_good(store, ids, on_bad_clip):
    for name in ids:
        try:
            store.read(name)
            return name
        except InputError:
            if on_bad_clip == "error":
                raise
    raise InputError(f"{store.path}: none of {len(ids)} clips can be read; expected features; download them again")


def _lay_out(partial, ids, shape, dtype, about):
    partial.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(partial.parent).free / 1e9
    if free < _gigabytes(shape, dtype):
        raise OSError(f"{free:.1f} GB are free")
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    temporary = Path(f"{partial}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["format"], file.attrs["complete"] = PACK_FORMAT, False
            file.attrs.update(about)
            file["ids"] = np.array([name.encode() for name in ids])
            file["state"], file["checksum"] = np.zeros(len(ids), np.uint8), np.zeros(len(ids), np.uint32)
            file["seconds"] = np.zeros(len(ids), np.uint32)
            file.create_dataset("features", shape, dtype, chunks=(1, *shape[1:]), dcpl=layout)
        os.replace(temporary, partial)
    finally:
        temporary.unlink(missing_ok=True)


def _check_same(file, partial, ids, shape, dtype):
    found = [name.decode() for name in file["ids"][:]] if "ids" in file and "seconds" in file else []
    if found != ids or file["features"].shape != shape or file["features"].dtype != np.dtype(dtype):
        raise InputError(f"{partial}: an unfinished pack with other clips, width, dtype or version; expected one of "
                         f"these {len(ids)} clips in {dtype}; delete it, or choose another --out")


def _forget_changed(file, store, ids, dtype):
    """Mark clips as not packed if their features differ from those that an earlier run packed."""
    state = file["state"][:]
    for n in tqdm(np.flatnonzero(state == WRITTEN), "comparing", unit="clip", disable=None, leave=False):
        if _read(store, ids[n], dtype)[0] != _chunk(file["features"], n):
            state[n] = PENDING
    file["state"][:] = state
    file.flush()


def _fill(file, store, ids, dtype, on_bad_clip, stop):
    """Write the clips that are not packed yet. Returns (number of clips from an earlier run, skipped id -> reason)."""
    features, state, checksum, seconds = file["features"], file["state"][:], file["checksum"][:], file["seconds"][:]
    for n in np.flatnonzero(state == WRITTEN):
        if zlib.crc32(_chunk(features, n)) != checksum[n]:
            state[n] = PENDING                          # the run was killed during this write
    resumed, skipped = int((state == WRITTEN).sum()), {}
    pending = np.flatnonzero(state != WRITTEN)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool, tqdm(
            total=len(ids), initial=resumed, desc=f"packing {store.kind}", unit="clip", disable=None) as bar:
        for k in range(0, len(pending), BATCH):
            batch = pending[k:k + BATCH]
            for n, (data, own, reason) in zip(batch, pool.map(lambda n: _read(store, ids[n], dtype), batch)):
                if reason is None:
                    features.id.write_direct_chunk((n,) + (0,) * (features.ndim - 1), data)
                    state[n], checksum[n], seconds[n] = WRITTEN, zlib.crc32(data), own
                elif on_bad_clip == "skip":
                    state[n], skipped[ids[n]] = SKIPPED, reason
                else:
                    _save(file, state, checksum, seconds)
                    raise InputError(reason)
            _save(file, state, checksum, seconds)
            bar.update(len(batch))
            _check_stop(stop, f"with {int((state != PENDING).sum()):,} of {len(ids):,} clips packed")
    return resumed, skipped


def _check_stop(stop, done):
    stop.save_and_exit(lambda: None, done, "run again to continue")        # the partial file is already saved


def _save(file, state, checksum, seconds):
    file.flush()
    file["checksum"][:], file["seconds"][:] = checksum, seconds
    file["state"][:] = state
    file.flush()


def _read(store, name, dtype):
    """(bytes of the clip in `dtype`, its length in seconds, None) or (None, 0, the problem with it)."""
    try:
        clip, own = store.measure(name)
        problem = float16_problem(clip) if dtype == np.float16 else ""
        if problem:
            raise InputError(f"{store.path}, clip {name}: values up to {np.abs(clip).max():.3g}, {problem}; expected "
                             "numbers that float16 stores with three digits (up to 65,504); pack with --dtype float32")
        return clip.astype(dtype).tobytes(), own, None
    except InputError as error:
        return None, 0, str(error)


def _chunk(features, n):
    return features.id.read_direct_chunk((n,) + (0,) * (features.ndim - 1))[1]


def _verify(file, store, ids, stop):
    """Compare a sample of the pack with its source, and check every clip's checksum."""
    features, state, checksum = file["features"], file["state"][:], file["checksum"][:]
    written = np.flatnonzero(state == WRITTEN)
    sample = set(np.random.default_rng(0).choice(written, min(SAMPLE, len(written)), replace=False).tolist())
    for n in tqdm(written, "verifying", unit="clip", disable=None, leave=False):
        _check_stop(stop, "with all clips packed, but not all verified")
        data = _chunk(features, n)
        same = zlib.crc32(data) == checksum[n] and (
            n not in sample or data == store.read(ids[n]).astype(features.dtype).tobytes())
        if not same:
            raise InputError(f"{file.filename}: clip {ids[n]} differs from what was written; expected a reliable disk; "
                             "check the disk, delete this file and pack again")
