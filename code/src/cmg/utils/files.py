"""Files that users name are opened in one way, and files are written whole or not at all: a temporary file beside the
old one, flushed to disk, then renamed over it.

Valid Python 3.7, standard library alone: the exporter of text features imports it there.
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

LONGEST_LINE = 1 << 20          # bytes at the end of a file in which a cut line is looked for
LONGEST_NAME = 100              # bytes of a file's name that its temporary file repeats
NAME_BYTES = 255                # of a file's name, on all common file systems


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
            text.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise InputError(f"{where}: the name {str(text)[:60]!r} is not a plain file name; expected a name without "
                         f"folders, of at most {NAME_BYTES} bytes,; correct it, or do not use this file")
    return text


def require_regular(path):
    """Refuse to read what is no regular file: a pipe, terminal or other device may block for ever, or act when it is
    opened. For libraries that open files themselves; see `open_input`.

    Raises:
        OSError: absent, a folder, or no regular file.
    """
    mode = os.stat(str(path)).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or device, not a regular file", str(path))


def open_input(path):
    """Open a file that the user named for reading bytes.

    Raises:
        OSError: as of `require_regular`, or the file cannot be opened.
    """
    require_regular(path)
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):          # replaced meanwhile
            raise OSError(errno.EINVAL, "a pipe or device, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path, limit):
    """All bytes of a file that the user named.

    Raises:
        OSError: as of `open_input`, or more than `limit` bytes.
    """
    with open_input(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit:,} bytes", str(path))
    return data


def read_text_input(path, limit):
    """The text of a UTF-8 file that the user named; line ends as in the file.

    Raises:
        OSError: as of `read_input`.
        UnicodeDecodeError: not UTF-8.
    """
    return read_input(path, limit).decode("utf-8")


def temporary_name(path):
    """A name beside `path` that no other process on any machine takes, and that tells which one took it."""
    path = Path(path)
    return path.with_name(f".{_shortened(path.name)}.{process_token()}-{os.urandom(4).hex()}.tmp")


def _shortened(name):
    return os.fsencode(name)[:LONGEST_NAME].decode("utf-8", "ignore")


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; it takes that name when the block ends without an error.

    Until then, and after any error, what was at `path` before is untouched. The temporary file is locked while it is
    written, so that `remove_leftovers` can tell one whose writer was killed. Text is UTF-8.

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
    """Turn an OSError of the block, which writes at `path`, into one line.

    Raises:
        InputError: the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); expected a writable path with free "
                         f"space; free some, or {remedy}; what was there before is untouched") from error


@contextmanager
def atomic_output(path, mode="wb", remedy="choose another path"):
    """As `atomic_write`, for a file that the user asked for: its folder is made, and an error is one line.

    HDF5 files are built in memory and written here as bytes, because h5py does not recover from a full disk.

    Args:
        path: file to write.
        mode: of `open`.
        remedy: what to do if the path cannot be written, with the flag to set.

    Raises:
        InputError: the path cannot be written; what was there stays.
    """
    with as_input_error(path, remedy):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, mode) as file:
            yield file


@contextmanager
def atomic_folder(out, is_there=lambda: False, remedy="choose another --out"):
    """Give a folder beside `out` that takes its name when the block ends without an error; else it is removed.

    Args:
        out: absolute path; absent or empty.
        is_there: tells whether `out` holds the same by now, because another process was first.
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
    """Hold the lock file `path` within the block, so that no other process does the same work there at the same time.

    The lock is `flock`; where a file system has none, a second file, PATH.held, stands for it (cmg/utils/locks.py).

    Args:
        path: the lock file; its folder is made, and it is removed in the end.
        remedy: what to do if it is taken, with the flag to set.
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
            with suppress(OSError):             # the folder may be read-only by now; the lock ends with the file
                os.remove(path)


def _locked(path, remedy, wait):
    """(open lock file, whether it is locked). Who waited may hold a file that its holder has removed: a lock that the
    next one, who makes a new file, would not see; then it is taken again."""
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
    """Add bytes that are whole lines to a file of one writer, or nothing; a last line that was cut off is removed.

    Args:
        flushed: they are on the disk when this returns.
        is_whole: does a last line lack no more than its end? It is kept then.
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
    """Remove temporary files of `atomic_write` in a folder whose writers were killed; `name`: pattern of the files."""
    for leftover in Path(folder).glob(f".{_shortened(name)}.*.tmp"):
        is_dead = is_of_dead_process(leftover.name)
        with suppress(OSError), open_input(leftover) as file:       # it is gone by now, or its writer lives
            if flock(file) and is_dead is not False or is_dead:
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
        pass                                    # some network file systems cannot sync folders
    finally:
        os.close(descriptor)


def sha256(*paths):
    """SHA-256 of a file, or of several one after the other, as hex text; InputError where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with readable(path), open_input(path) as file:
            for part in iter(lambda: file.read(1 << 20), b""):      # hashlib.file_digest needs Python 3.11
                digest.update(part)
    return digest.hexdigest()
