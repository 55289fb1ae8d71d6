"""What data holds, as one hash: of a list, an HDF5 file, or all feature files of a folder, names and bytes.

The first call on a path reads every byte. For each file it keeps size, time of change and a hash of a sample, beside
the hash of the content, in a cache folder: `--cache_root`, CMG_CACHE, or cmg below the user's cache folder. A later
"quick" call looks at these three and reads only the files in which one of them differs; a "full" call reads everything
again. The hash is the same in both cases.
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
_unwritable = set()                     # cache folders of which this process has said that they cannot be written
FEATURES = tuple(READERS)               # of a folder of features; other folders (pictures) are read with all below them
BLOCK, SPACING, MOST_BLOCKS = 4096, 1 << 20, 64         # bytes: of a sample's blocks, between two of them; their number
SETTLED = 2                             # seconds since its last change after which a file is kept in the cache
PART = 1 << 20                          # bytes read at once
BATCH = 64                              # files that a thread takes at once
FORMAT = 1                              # of the cache's files


@dataclass(frozen=True)
class Fingerprint:
    """What is at a path.

    Attributes:
        sha256: of the names and hashes of all files in order; of a single file, of its bytes.
        files, bytes: how many there are.
        checked: "full" if every byte was read just now, "quick" if the cache answered for some of them.
    """

    sha256: str
    files: int
    bytes: int
    checked: str


@dataclass(frozen=True)
class _Known:
    """A file of the cache: its size, time of change (ns), hashes of a sample and of everything."""

    size: int
    mtime: int
    sample: str
    content: str


def cache_folder():
    """Folder of the cache: CMG_CACHE, else cmg below XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return absolute(os.environ.get("CMG_CACHE") or os.path.join(base, "cmg"))


def fingerprint(path, names=None, full=False, cache=None, quiet=False):
    """The Fingerprint of a file or folder.

    Args:
        path: a list, an HDF5 file, a pack, a folder of features or pictures.
        names: of a folder, the files that count, in their order; default: all of them, sorted.
        full: read everything again.
        cache: folder of the cache; default: `cache_folder`.
        quiet: no progress bar.

    Returns:
        Fingerprint; None where there is nothing at `path`.

    Raises:
        InputError: a file that cannot be read, or none of this name.
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
    """What the clips of a data set hold: dotted name -> Fingerprint, of a folder of features those of its clips alone.

    Args:
        data: cmg.data.clips.Clips.
        paths: dotted name, such as "vggsound.audio" -> Path of each file or folder that it was opened from.
        cache, quiet: see `fingerprint`.
    """
    found = {}
    for dotted, path in paths.items():
        file_of = getattr(data.stores.get(dotted.split(".")[1]), "file_of", None)
        names = None if file_of is None else [file_of(key) for key in dict.fromkeys(data.keys)]
        found[dotted] = fingerprint(path, names, cache=cache, quiet=quiet)
    return {name: of_path for name, of_path in found.items() if of_path}


def combined(digests):
    """One hash, of 16 digits, of the hashes of several paths (name -> hash)."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]


def how_checked(fingerprints):
    """"full" if every byte of all of them was read just now, else "quick"."""
    return "full" if all(found.checked == "full" for found in fingerprints) else "quick"


def _names(folder):
    """Names of the feature files in a folder, sorted; where there are none, of all files in and below it."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(FEATURES))
    if names:
        return names
    return sorted(os.path.relpath(os.path.join(inside, name), folder)
                  for inside, _, files in os.walk(folder) for name in files if not name.startswith("."))


def _look(path, kept, bar):
    """(_Known of a file, whether the cache's entry `kept` answered for its content)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)         # a pipe in place of a file must not block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file; one is expected; remove it, or name another path")
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
    """Hash of blocks spread over a file, first and last among them: a zip's last one has a checksum of its content."""
    if size <= BLOCK:
        return hashlib.sha256(os.pread(descriptor, BLOCK, 0)).hexdigest()[:16]
    count = min(size // SPACING, MOST_BLOCKS - 2) + 1
    blocks = [os.pread(descriptor, BLOCK, (size - BLOCK) * k // count) for k in range(count + 1)]
    return hashlib.sha256(b"".join(blocks)).hexdigest()[:16]


def _cache_file(path, cache):
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Path(cache or cache_folder()) / f"fingerprint-{name}.json"


def _read_cache(path, cache):
    """Name -> _Known of a path; {} where there is no cache, or one that is damaged."""
    try:
        content = json.loads(_cache_file(path, cache).read_bytes())
        if content["format"] != FORMAT:
            return {}
        return {name: _Known(*values) for name, values in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write_cache(path, cache, others, before, found, began):
    """Keep what was found, and `others`. A file that changed while it was read, or a moment before, may change again
    under the same time, and is left out."""
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
            log.info("fingerprints are not kept, the next run reads the data again: %s", error)
        _unwritable.add(folder)
