"""Files written whole or not at all: a temporary file beside the old one, flushed to disk, then renamed over it.

Valid Python 3.7, standard library alone: the exporter of text features imports it there.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from cmg.utils.errors import InputError, readable

LONGEST_LINE = 1 << 20          # bytes at the end of a file in which a cut line is looked for
LONGEST_NAME = 255              # bytes of a file's name, on all common file systems


def safe_name(text, where):
    """A name that was read from a file, once it is known to name nothing but an entry of one folder.

    Whatever is read from a file and then becomes a part of a path passes through here.

    Args:
        text: the name.
        where: the file that holds it, for the message.

    Raises:
        InputError: no text, empty, "." or "..", with a separator of folders or a zero byte, or too long for a file.
    """
    if not isinstance(text, str) or text in ("", ".", "..") or set(text) & set("/\\\0") or len(
            text.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise InputError(f"{where}: the name {str(text)[:60]!r} is not a plain file name; a name without folders, of at "
                         f"most {LONGEST_NAME} bytes, is expected; correct it, or do not use this file")
    return text


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; it takes that name when the block ends without an error.

    Until then, and after any error, what was at `path` before is untouched. The temporary file is locked while it is
    written, so that `remove_leftovers` can tell one whose writer was killed.

    Raises:
        OSError: no permission, no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def as_input_error(path, remedy="choose another place"):
    """Turn an OSError of the block, in which something is written at `path`, into one line.

    Raises:
        InputError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); a writable place with free space is "
                         f"expected; make room, or {remedy}; what was there before is untouched") from error


@contextmanager
def atomic_output(path, mode="wb", remedy="choose another place"):
    """As `atomic_write`, for a file that the user asked for: its folder is made, and what goes wrong is one line.

    HDF5 files are built in memory and written here as bytes: on a full disk h5py complains without end.

    Args:
        path: file to write.
        mode: of `open`.
        remedy: what to do if the place is no good, the flag named.

    Raises:
        InputError: the place cannot be written; what was there stays.
    """
    with as_input_error(path, remedy):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, mode) as file:
            yield file


@contextmanager
def atomic_folder(out, is_there=lambda: False, remedy="choose another --out"):
    """Give a folder beside `out` that takes its name when the block ends without an error; after one it is removed.

    Args:
        out: absolute path; absent or empty.
        is_there: tells whether `out` holds the same by now, because another build was first.
        remedy: what to do if the place is no good, the flag named.
    Raises:
        InputError: no place to write, or none any more.
    """
    with as_input_error(out, remedy):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent))
        try:
            partial.chmod(0o755)            # mkdtemp makes private folders
            yield partial
            try:
                os.rename(partial, out)     # replaces an empty folder, never a filled one
            except OSError:
                if not is_there():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def file_lock(path, remedy):
    """Hold the lock file `path` within the block, so that no other process does the same work there at the same time.

    Args:
        path: the lock file; its folder is made, and it is removed in the end.
        remedy: what to do if it is taken, the flag named.

    Raises:
        InputError: another process holds it, or the place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); a writable folder is expected; "
                         f"{remedy}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)        # of this process; it ends with it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):         # else a file system without locks
                raise InputError(f"{path.parent}: another process is writing here ({path.name} is locked); one at a "
                                 f"time is expected; wait for it, or {remedy}") from None
        try:
            yield
        finally:
            with suppress(OSError):             # the folder may be read-only by now; the lock itself ends here
                os.remove(path)


def append_lines(path, data, flushed=False):
    """Add bytes that are whole lines to a file of one writer, or nothing; a last line that was cut off is removed.
    `flushed`: they are on the disk when this returns.

    Raises:
        OSError: no permission, no space.
    """
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(max(0, end - LONGEST_LINE))
            tail = file.read()
            if b"\n" in tail or len(tail) == end:
                end -= len(tail) - tail.rfind(b"\n") - 1
                file.truncate(end)
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if flushed:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def remove_leftovers(folder, name="*"):
    """Remove temporary files of `atomic_write` in a folder whose writers were killed; `name`: pattern of the files."""
    for leftover in Path(folder).glob(f".{name}.*.tmp"):
        with suppress(OSError), open(leftover, "rb") as file:       # it is gone by now, or its writer lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftover)


def _remove(path):
    with suppress(FileNotFoundError):
        os.remove(path)


def _sync_folder(folder):
    """Make a rename last through a power failure, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass                                    # some network file systems know no fsync of folders
    finally:
        os.close(descriptor)


def sha256(path):
    """SHA-256 of a file, as hexadecimal text; InputError where it cannot be read."""
    digest = hashlib.sha256()
    with readable(path), open(path, "rb") as file:
        while part := file.read(1 << 20):           # hashlib.file_digest is of Python 3.11
            digest.update(part)
    return digest.hexdigest()
