"""Hash the content of data: of a list, an HDF5 file, or the names and bytes of all feature files in a folder.

The first call on a path reads every byte. For each file, its size, modification time and the hash of a sample are
cached with the hash of the content, in `--cache_root`, CMG_CACHE, or cmg in the user's cache folder. A later "quick"
call reads only the files for which one of these three differs; a "full" call reads everything again. Both give the same
hash.
"""

import hashlib
import json
import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from cmg.data.features import READERS
from cmg.utils.cores import usable_cores
from cmg.utils.errors import InputError, absolute, readable
from cmg.utils.files import atomic_output

log = logging.getLogger(__name__)
_unwritable = set()                     # cache folders that this process has reported as not writable
FEATURES = tuple(READERS)               # suffixes of features; folders without them (images) are read recursively
BLOCK, SPACING, MOST_BLOCKS = 4096, 1 << 20, 64         # sample: block size and spacing in bytes, maximum of blocks
SETTLED = 2                             # seconds after its last modification from which a file is cached
PART = 1 << 20                          # bytes read at once
BATCH = 64                              # files per task of a thread
FORMAT = 1                              # version of the cache files


@dataclass(frozen=True)
class Fingerprint:
    """Content of a path.

    Attributes:
        sha256: hash of the names and hashes of all files in order; for a single file, of its bytes.
        files, bytes: number of files and bytes.
        checked: "full" if every byte was read by this call, "quick" if some hashes came from the cache.
    """

    sha256: str
    files: int
    bytes: int
    checked: str


@dataclass(frozen=True)
class _Known:
    """A cached file: its size, modification time (ns), and the hashes of a sample and of the content."""

    size: int
    mtime: int
    sample: str
    content: str


def cache_folder():
    """The cache folder: CMG_CACHE, else cmg in XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return absolute(os.environ.get("CMG_CACHE") or os.path.join(base, "cmg"))


def fingerprint(path, names=None, full=False, cache=None, quiet=False):
    """Compute the Fingerprint of a file or folder.

    Args:
        path: a list, an HDF5 file, a pack, a folder of features or images.
        names: files of a folder to include, in this order; default: all of them, sorted.
        full: read everything again.
        cache: cache folder; default: `cache_folder`.
        quiet: no progress bar.

    Returns:
        Fingerprint; None if `path` does not exist.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return None
    is_folder = path.is_dir()
    with readable(path):
        files = {name: os.path.join(path, name) for name in names or _names(path)} if is_folder else {"": str(path)}
    began, kept, found, from_cache = time.time_ns(), _read_cache(path, cache), {}, 0
    entries = list(files.items())
    with readable(path), tqdm(total=sum(os.path.getsize(file) for _, file in entries), leave=False, unit_scale=True,
                              desc=f"fingerprint of {path.name}", unit="B", disable=True if quiet else None) as bar, \
            ThreadPoolExecutor(min(8, 2 * usable_cores())) as pool:
        def look(batch):
            return [_look(file, None if full else kept.get(name), bar) for name, file in batch]
        batches = (entries[k:k + BATCH] for k in range(0, len(entries), BATCH))
        for (name, _), (known, was_kept) in zip(entries, chain.from_iterable(pool.map(look, batches))):
            found[name] = known
            from_cache += was_kept
    _write_cache(path, cache, kept if names else {}, kept, found, began)
    if is_folder:
        digest = hashlib.sha256()
        for name, known in found.items():
            digest.update(f"{name}\0{known.content}\n".encode("utf-8", "surrogateescape"))
        sha256 = digest.hexdigest()
    else:
        sha256 = found[""].content
    return Fingerprint(sha256, len(found), sum(known.size for known in found.values()),
                       "quick" if from_cache else "full")


def of_clips(data, paths, cache=None, quiet=False):
    """Fingerprints of a dataset's files: dotted name -> Fingerprint; feature folders include only the dataset's clips.

    Args:
        data: cmg.data.clips.Clips.
        paths: dotted name, such as "vggsound.audio" -> Path of each file or folder of the dataset.
        cache, quiet: see `fingerprint`.
    """
    found = {}
    for dotted, path in paths.items():
        file_of = getattr(data.stores.get(dotted.split(".")[1]), "file_of", None)
        names = None if file_of is None else [file_of(key) for key in dict.fromkeys(data.keys)]
        found[dotted] = fingerprint(path, names, cache=cache, quiet=quiet)
    return {name: of_path for name, of_path in found.items() if of_path}


def combined(digests):
    """A single 16-digit hash of the hashes of several paths (name -> hash)."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]


def how_checked(fingerprints):
    """"full" if all of them are "full", else "quick"."""
    return "full" if all(found.checked == "full" for found in fingerprints) else "quick"


def _names(folder):
    """Sorted names of the feature files in a folder; if there are none, of all files in it, recursively."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(FEATURES))
    if names:
        return names
    return sorted(os.path.relpath(os.path.join(inside, name), folder)
                  for inside, _, files in os.walk(folder) for name in files if not name.startswith("."))


def _look(path, kept, bar):
    """(_Known of a file, whether it is the cache entry `kept`)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)         # a pipe in place of a file must not block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file; remove it, or use another path")
        sample = _sample(descriptor, status.st_size)
        if kept and (kept.size, kept.mtime, kept.sample) == (status.st_size, status.st_mtime_ns, sample):
            bar.update(kept.size)
            return kept, True
        digest = hashlib.sha256()
        while part := os.read(descriptor, PART):
            digest.update(part)
            bar.update(len(part))
        return _Known(status.st_size, status.st_mtime_ns, sample, digest.hexdigest()), False
    finally:
        os.close(descriptor)


def _sample(descriptor, size):
    """Hash of blocks spread over a file, including the first and the last one, which in a zip has a checksum."""
    if size <= BLOCK:
        return hashlib.sha256(os.pread(descriptor, BLOCK, 0)).hexdigest()[:16]
    count = min(size // SPACING, MOST_BLOCKS - 2) + 1
    blocks = [os.pread(descriptor, BLOCK, (size - BLOCK) * k // count) for k in range(count + 1)]
    return hashlib.sha256(b"".join(blocks)).hexdigest()[:16]


def _cache_file(path, cache):
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Path(cache or cache_folder()) / f"fingerprint-{name}.json"


def _read_cache(path, cache):
    """Cached files of a path, name -> _Known; {} if there is no valid cache."""
    try:
        content = json.loads(_cache_file(path, cache).read_bytes())
        if content["format"] != FORMAT:
            return {}
        return {name: _Known(*values) for name, values in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write_cache(path, cache, others, before, found, began):
    """Cache the files found, and `others`. Files modified during or shortly before the reading are excluded, because
    they may change again without a new modification time."""
    settled = {name: known for name, known in found.items() if known.mtime < began - SETTLED * 1_000_000_000}
    kept = others | settled
    if kept == before:
        return
    content = {"format": FORMAT, "path": str(path.resolve()),
               "files": {name: list(asdict(known).values()) for name, known in kept.items()}}
    try:
        with atomic_output(_cache_file(path, cache), "w") as out:
            json.dump(content, out)
    except InputError as error:
        folder = _cache_file(path, cache).parent
        if folder not in _unwritable:
            log.info("fingerprints cannot be cached, so the next run will read the data again: %s", error)
        _unwritable.add(folder)
