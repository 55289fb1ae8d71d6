"""Open files named by users safely, and write files atomically: to a temporary file next to the target, which is
flushed to disk and then renamed.

Must run on Python 3.7 with only the standard library, because the exporter of text features uses it.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from cmg.utils.errors import InputError, readable
from cmg.utils.locks import flock, is_of_dead_process, lock_by_name, process_token, released_in_children

LONGEST_LINE = 1 << 20          # bytes at the end of a file that are searched for an incomplete line
LONGEST_NAME = 100              # bytes of a file's name that are repeated in the name of its temporary file
NAME_BYTES = 255                # limit on a file's name in all common file systems


def safe_name(text, where):
    """Check that a name read from a file is a plain file name.

    Use it for every string from a file that becomes part of a path.

    Args:
        text: the name.
        where: the file that contains it, for the message.

    Raises:
        InputError: not a string, empty, "." or "..", with a path separator or a zero byte, or too long.
    """
    if not isinstance(text, str) or text in ("", ".", "..") or set(text) & set("/\\\0") or len(
            text.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise InputError(f"{where}: the name {str(text)[:60]!r} is not a plain file name; expected a name without "
                         f"folders, of at most {NAME_BYTES} bytes; correct it, or do not use this file")
    return text


def require_regular(path):
    """Raise OSError unless a path is a regular file: a pipe, terminal or other device may block forever, or react to
    being opened. For libraries that open files themselves; otherwise use `open_input`.

    Raises:
        OSError: missing, a folder, or not a regular file.
    """
    mode = os.stat(str(path)).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or device, not a regular file", str(path))


def open_input(path):
    """Open a file named by the user for reading bytes.

    Raises:
        OSError: see `require_regular`; or the file cannot be opened.
    """
    require_regular(path)
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):          # replaced in the meantime
            raise OSError(errno.EINVAL, "a pipe or device, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path, limit):
    """Read all bytes of a file named by the user.

    Raises:
        OSError: see `open_input`; or more than `limit` bytes.
    """
    with open_input(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
    return data


def read_text_input(path, limit):
    """Read a UTF-8 file named by the user; line endings are not converted.

    Raises:
        OSError: see `read_input`.
        UnicodeDecodeError: not UTF-8.
    """
    return read_input(path, limit).decode("utf-8")


def temporary_name(path):
    """A name in the folder of `path` that is unique over processes and machines, and identifies its process."""
    path = Path(path)
    return path.with_name(f".{_shortened(path.name)}.{process_token()}-{os.urandom(4).hex()}.tmp")


def _shortened(name):
    return os.fsencode(name)[:LONGEST_NAME].decode("utf-8", "ignore")


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file next to `path`, which replaces `path` when the block ends without an error.

    Until then, and after any error, the previous file is untouched. The temporary file is locked while it is written,
    so that `remove_leftovers` can recognize those of killed processes. Text is UTF-8.

    Raises:
        OSError: no permission, no space.
    """
    path, temporary = Path(path), temporary_name(path)
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
        with open(str(temporary), mode.replace("w", "x"), **text) as file:
            flock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def as_input_error(path, remedy="choose another path"):
    """Convert an OSError of the block, which writes to `path`, to an InputError.

    Raises:
        InputError: the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); expected a writable path with free "
                         f"space; free some, or {remedy}; the previous content is untouched") from error


@contextmanager
def atomic_output(path, mode="wb", remedy="choose another path"):
    """Like `atomic_write`, for a file requested by the user: creates its folder, and raises InputError.

    HDF5 files are built in memory and written here as bytes, because h5py does not recover from a full disk.

    Args:
        path: file to write.
        mode: mode of `open`.
        remedy: what to do if the path cannot be written, with the flag to set.

    Raises:
        InputError: the path cannot be written; the previous file is untouched.
    """
    with as_input_error(path, remedy):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, mode) as file:
            yield file


@contextmanager
def atomic_folder(out, is_there=lambda: False, remedy="choose another --out"):
    """Yield a temporary folder that is renamed to `out` when the block ends without an error, and removed otherwise.

    Args:
        out: absolute path; must not exist or be empty.
        is_there: returns whether another process has created the same `out` in the meantime.
        remedy: what to do if the path cannot be written, with the flag to set.

    Raises:
        InputError: the path cannot be written, or the disk is full.
    """
    with as_input_error(out, remedy):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{_shortened(out.name)}.", suffix=".tmp", dir=out.parent))
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
def file_lock(path, remedy="wait for it", wait=False):
    """Hold the lock file `path` during the block, so that no other process does the same work at the same time.

    The lock is `flock`; on file systems without it, a second file, PATH.held, is used (cmg/utils/locks.py).

    Args:
        path: the lock file; its folder is created, and the file is removed at the end.
        remedy: what to do if it is locked, with the flag to set.
        wait: wait until it is free.

    Raises:
        InputError: another process holds it, or the path cannot be written.
    """
    path = Path(path)
    file, has_flock = _locked(path, remedy, wait)
    with file, released_in_children(file), nullcontext() if has_flock else lock_by_name(path, remedy, wait):
        try:
            yield
        finally:
            with suppress(OSError):             # the folder may be read-only by now; closing the file ends the lock
                os.remove(path)


def _locked(path, remedy, wait):
    """(open lock file, whether it is locked). After waiting, the file may have been removed by its holder, and others
    would not see a lock on it; then the lock is acquired again."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written ({error.strerror}); expected a writable folder; "
                             f"{remedy}") from error
        file = os.fdopen(descriptor, "wb")
        try:
            if not flock(file, wait):
                return file, False
            if os.path.samestat(os.fstat(descriptor), os.stat(str(path))):
                return file, True
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.close()
            raise InputError(f"{path.parent}: another process is writing here ({path.name} is locked); expected one at "
                             f"a time; wait for it, or {remedy}") from None
        except BaseException:
            file.close()
            raise
        file.close()


def append_lines(path, data, flushed=False, is_whole=lambda line: False):
    """Append complete lines to a file with a single writer, or nothing; an incomplete last line is removed first.

    Args:
        flushed: sync the file to disk before returning.
        is_whole: returns whether the last line lacks only its line ending; it is kept then.
    Raises:
        OSError: no permission, no space.
    """
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(max(0, end - LONGEST_LINE))
            tail = file.read()
            last = tail[tail.rfind(b"\n") + 1:]
            if is_whole(last):
                data = b"\n" + data
            elif b"\n" in tail or len(tail) == end:
                end -= len(last)
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
    """Remove temporary files of `atomic_write` in a folder whose writers were killed; `name` is a pattern."""
    for leftover in Path(folder).glob(f".{_shortened(name)}.*.tmp"):
        is_dead = is_of_dead_process(leftover.name)
        with suppress(OSError), open_input(leftover) as file:       # gone by now, or its writer is alive
            if flock(file) and is_dead is not False or is_dead:
                _remove(leftover)


def _remove(path):
    with suppress(FileNotFoundError):
        os.remove(path)


def _sync_folder(folder):
    """Make a rename survive a power failure, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass                                    # some network file systems cannot sync folders
    finally:
        os.close(descriptor)


def sha256(*paths):
    """Hex SHA-256 of a file, or of several concatenated ones; InputError if one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with readable(path), open_input(path) as file:
            for part in iter(lambda: file.read(1 << 20), b""):      # hashlib.file_digest needs Python 3.11
                digest.update(part)
    return digest.hexdigest()
