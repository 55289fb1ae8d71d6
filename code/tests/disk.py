"""A disk that breaks, for programs in Python: what they read and write below some folders is counted by place, and at
one operation something happens.

Writing (a disk that is full): making a file or a folder, a write of a file's buffer, fsync, rename, a link. The
operation fails with ENOSPC, a write after half of its bytes; a disk that is full stays full: every later one fails too.
Reading (a bad sector): a file gives the first half of its bytes, then EIO, however often it is opened.

What Python code opens is meant: `open`, pathlib, zipfile, PIL, pandas, torch.save and torch.load (which take a file of
Python). HDF5 gets a file of Python as well (h5py's driver `fileobj`), so that each of its own reads and writes counts;
so does FFmpeg for reading. Not covered: memory maps, safetensors and tokenizers (Rust), `ndarray.tofile`.

Instead of a failure, anything else may happen at an operation: see `Disk.action`.
"""

import builtins
import collections
import errno
import io
import os
import pathlib
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
SOURCES = [str(CODE / folder) + os.sep for folder in ("src", "AVSBench_downstream")]
WRITING = ("create", "write", "sync", "rename", "folder", "link")
PRIMITIVES = ("cmg/utils/files.py", "cmg/utils/locks.py")       # of these the caller is the place


@dataclass(frozen=True)
class Place:
    """Where a program touches a file.

    Attributes:
        kind: of `WRITING`, or "read".
        name: of the file, numbers and the random part of temporary names as #.
        site: "<module>:<function>" of our sources that asked for it; "" in a thread of a library.
    """

    kind: str
    name: str
    site: str

    def __str__(self):
        return f"{self.kind} {self.name} by {self.site or 'a library'}"


@dataclass
class Disk:
    """What happens below some folders.

    Attributes:
        folders: files below them count.
        fault: (Place, n): its n-th operation, from 0, fails; None: nothing does.
        action: called at that operation, which then does not fail by itself.
        seen: Place -> how many operations.
        broken: has the fault happened?
    """

    folders: list
    fault: tuple = None
    action: object = None
    seen: collections.Counter = field(default_factory=collections.Counter)
    broken: bool = False
    bad: set = field(default_factory=set)           # files with a bad sector

    def path(self, file):
        """The path of a file that counts, else None; `file`: path or descriptor."""
        if isinstance(file, int) and not isinstance(file, bool):
            try:
                file = os.readlink(f"/proc/self/fd/{file}")
            except OSError:
                return None
        if not isinstance(file, (str, bytes, os.PathLike)):
            return None
        found = os.path.abspath(os.fsdecode(file))
        return found if not found.endswith((".py", ".pyc")) and any(
            found.startswith(str(folder) + os.sep) or found == str(folder) for folder in self.folders) else None

    def note(self, kind, path):
        """Count an operation; is it the one that fails?"""
        place = Place(kind, "." if path in map(str, self.folders) else pattern(path), site())
        number, self.seen[place] = self.seen[place], self.seen[place] + 1
        hit = self.fault == (place, number)
        self.broken |= hit
        if hit and self.action:
            self.action()
        return hit and not self.action

    @property
    def is_full(self):
        return self.broken and not self.action and self.fault[0].kind in WRITING

    def write(self, kind, file):
        """Before an operation that needs space."""
        path = self.path(file)
        if path and (self.note(kind, path) or self.is_full):
            raise full(path)

    def read(self, path):
        """When a file is opened for reading."""
        if self.note("read", path):
            self.bad.add(path)


def full(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def pattern(path):
    """Name of a file without what differs between two runs."""
    name = re.sub(r"(?<=\.)[\w-]+(?=\.tmp$)|[0-9a-f]{12,}|\d+", "#", os.path.basename(path))
    return re.sub(r"events\.out\..*", "events", name)


def site():
    """The function of our sources that is at work."""
    frame = sys._getframe(2)
    while frame:
        code, name = frame.f_code, frame.f_code.co_filename
        if not code.co_name.startswith("<") and name.startswith(tuple(SOURCES)):
            if module(name) not in PRIMITIVES:
                return f"{module(name)}:{code.co_name}"
        frame = frame.f_back
    return ""


def module(path):
    """A file of our sources as the tables name it."""
    return re.sub(r"^(src|AVSBench_downstream/avs_scripts)/", "", str(Path(path).relative_to(CODE)))


# ---------------------------------------------------------------------------------------------------------- one file
class _Raw(io.FileIO):
    """A file of the disk below Python's buffers."""

    def __init__(self, file, mode, disk, path, closefd=True, opener=None, is_short=True):
        makes = not os.path.exists(path)
        if makes and set(mode) & set("wax"):
            disk.write("create", path)
        super().__init__(file, mode, closefd, opener)
        self.disk, self.path, self.is_short = disk, path, is_short
        if self.readable() and not makes and "w" not in mode:
            disk.read(path)

    def write(self, data):
        disk, size = self.disk, memoryview(data).nbytes
        was = disk.is_full
        hit = disk.note("write", self.path)
        if hit and self.is_short and size > 1:
            return super().write(memoryview(data).cast("B")[:size // 2])
        if hit or was:
            raise full(self.path)
        return super().write(data)

    def readinto(self, buffer):
        if self.path not in self.disk.bad:
            return super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        left = os.fstat(self.fileno()).st_size // 2 - self.tell()
        if left <= 0 and len(view):
            raise self.error()
        return super().readinto(view[:left])

    def read(self, size=-1):
        if self.path not in self.disk.bad:
            return super().read(size)
        if size is None or size < 0:
            return self.readall()
        data = bytearray(size)
        return bytes(data[:self.readinto(data)])

    def readall(self):
        if self.path not in self.disk.bad:
            return super().readall()
        raise self.error()

    def error(self):
        return OSError(errno.EIO, os.strerror(errno.EIO), self.path)

    def __repr__(self):
        return str(self.path)           # by which h5py names a file that Python opened


def _opener(disk, plain):
    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        path = disk.path(file)
        if path is None:
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), disk, path, closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
        text.mode = mode
        return text
    return opened


def _hdf5(disk, plain):
    class File(plain):
        def __init__(self, name, mode="r", **kwargs):
            path = None if hasattr(name, "read") else disk.path(name)
            if path is not None and (mode != "r" or os.path.exists(path)):
                name = self._raw = _Raw(path, {"r": "r", "r+": "r+", "w": "w+", "a": "a+"}[mode], disk, path,
                                        is_short=False)
            super().__init__(name, mode, **kwargs)

        def close(self):
            try:
                super().close()
            except AttributeError:          # the driver asks for `truncate` while an error is on its way
                raise full(self._raw.path) from None
            finally:
                if hasattr(self, "_raw"):
                    self._raw.close()
    return File


def _ffmpeg(disk, plain, failure):
    class File(_Raw):
        def error(self):            # as PyAV spells it where FFmpeg reads
            return failure(errno.EIO, os.strerror(errno.EIO), self.path)

    def opened(file, mode="r", **kwargs):
        path = disk.path(str(file).removeprefix("file:"))
        if path is None or mode != "r" or not os.path.isfile(path):
            return plain(file, mode, **kwargs)
        return plain(File(path, "r", disk, path), mode, **kwargs)
    return opened


def _system(disk, name):
    """A function of `os` that takes space on the disk."""
    plain = getattr(os, name)
    kind, which = {"fsync": ("sync", 0), "mkdir": ("folder", 0), "replace": ("rename", 1), "rename": ("rename", 1),
                   "symlink": ("link", 1), "link": ("link", 1), "sendfile": ("write", 0)}[name]

    def called(*args, **kwargs):
        if kind not in ("folder", "link") or not os.path.lexists(args[which]):
            disk.write(kind, args[which])
        return plain(*args, **kwargs)
    return called


@contextmanager
def broken(disk):
    """Within the block, all that Python code of this process does goes through `disk`."""
    import h5py
    swaps = [(os, name, _system(disk, name)) for name in
             ("fsync", "mkdir", "replace", "rename", "symlink", "link", "sendfile")]
    swaps += [(module, "open", _opener(disk, builtins.open)) for module in (builtins, io)]
    accessor = getattr(pathlib, "_NormalAccessor", None)            # Python 3.10 keeps functions of its own
    if accessor:
        swaps += [(accessor, name, staticmethod(swap)) for module, name, swap in swaps
                  if module in (os, io) and hasattr(accessor, name)]
    swaps += [(h5py, "File", _hdf5(disk, h5py.File)), *_descriptors(disk)]
    if "av" in sys.modules:
        import av
        swaps.append((av, "open", _ffmpeg(disk, av.open, av.error.OSError)))
    before = [(module, name, module.__dict__[name]) for module, name, _ in swaps]
    for module, name, swap in swaps:
        setattr(module, name, swap)
    try:
        yield disk
    finally:
        for module, name, plain in before:
            setattr(module, name, plain)


def _descriptors(disk):
    """os.open, os.write and os.pread."""
    plain_open, plain_write, plain_pread = os.open, os.write, os.pread

    def opened(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and not os.path.exists(path):
            disk.write("create", path)
        elif disk.path(path) and os.path.isfile(path):
            disk.read(disk.path(path))
        return plain_open(path, flags, *args, **kwargs)

    def write(descriptor, data):
        path, was = disk.path(descriptor), disk.is_full
        hit = path and disk.note("write", path)
        if hit and len(data) > 1:
            return plain_write(descriptor, data[:len(data) // 2])
        if hit or path and was:
            raise full(path)
        return plain_write(descriptor, data)

    def pread(descriptor, size, offset):
        path = disk.path(descriptor)
        if path in disk.bad and offset + size > os.fstat(descriptor).st_size // 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return plain_pread(descriptor, size, offset)
    return [(os, "open", opened), (os, "write", write), (os, "pread", pread)]
