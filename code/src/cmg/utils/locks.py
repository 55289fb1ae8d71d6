"""Locks between processes: `flock`, or a file created with O_EXCL on file systems without `flock` (Lustre without
`-o flock`, some FUSE mounts), which also works between machines.

Must run on Python 3.7 with only the standard library.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import time
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from cmg.utils.errors import InputError

log = logging.getLogger(__name__)
POLL = 0.1                      # seconds between attempts to get a lock
TOKEN = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp$")
_held, _told = set(), set()


def flock(file, wait=False):
    """Lock an open file until it is closed.

    Args:
        wait: wait until it is free.

    Returns:
        False if the file system has no `flock`.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, os.strerror(error.errno)) from None
        return False


@contextmanager
def released_in_children(file):
    """Keep the lock of a file in this process only: processes forked during the block release it."""
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)


def _release_in_child():
    for file in _held:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), file.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


# ------------------------------------------------------------------------------------------------------- without flock
@contextmanager
def lock_by_name(path, remedy, wait=False):
    """Hold the file PATH.held during the block; it is removed at the end. The file of a killed process is removed only
    if that process is certainly gone: on this machine, since its last boot, in the same container.

    Args:
        path, remedy, wait: see `cmg.utils.files.file_lock`.

    Raises:
        InputError: another process holds it.
    """
    held = path.with_name(f"{path.name}.held")
    if path.parent not in _told:
        log.warning("%s: this file system has no locks (flock); using the file %s as a lock during writes",
                    path.parent, held.name)
        _told.add(path.parent)
    own = json.dumps(dict(_this_process(), time=time.strftime("%Y-%m-%d %H:%M:%S")))
    while not _create(held, own):
        owner = _read(held)
        if _is_dead(owner):
            _remove_stale(held)
        elif wait:
            time.sleep(POLL)
        else:
            told = f", process {owner.get('pid')} on {owner.get('host')} since {owner.get('time')}" if owner else ""
            raise InputError(f"{path.parent}: another process is writing here ({held.name}{told}); expected one at a "
                             f"time; wait for it, or {remedy}; if that process is gone, delete the file")
    try:
        yield
    finally:
        with suppress(OSError):
            if held.read_text(encoding="utf-8") == own:
                os.remove(held)


def _create(path, text):
    """Create a file; returns False if it exists."""
    try:
        descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _read(path):
    """The holder of a lock; empty if the file does not contain it (yet)."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def _remove_stale(held):
    """Remove a lock whose holder is gone. A second file prevents the removal of a new lock by a slower process."""
    guard = held.with_name(f"{held.name}.stale")
    if _create(guard, ""):
        try:
            if _is_dead(_read(held)):
                os.remove(held)
        finally:
            os.remove(guard)
    else:
        time.sleep(POLL)


# ----------------------------------------------------------------------------------------------------- which process
def process_token():
    """Text that identifies this process among those of all machines and containers."""
    return f"{_machine()}-{os.getpid()}"


def is_of_dead_process(name):
    """Whether the process that named a temporary file (`process_token`) is gone; None if unknown, because it ran on
    another machine, in another container or before the last boot."""
    found = TOKEN.search(name)
    if not found or found[1] != _machine():
        return None
    return not _is_alive(int(found[2]))


def _this_process():
    return {"host": platform.node(), "pid": os.getpid(), "machine": _machine(), "started": _started(os.getpid())}


def _is_dead(owner):
    """Whether the holder of a lock is certainly gone."""
    if owner.get("machine") != _machine() or not isinstance(owner.get("pid"), int) or not _boot():
        return False
    started = _started(owner["pid"])
    return not _is_alive(owner["pid"]) or None not in (started, owner.get("started")) and started != owner["started"]


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@lru_cache(maxsize=None)
def _machine():
    """Digest of this machine, its last boot, and the container's process namespace."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {_boot()} {namespace}".encode()).hexdigest()[:8]


@lru_cache(maxsize=None)
def _boot():
    """Identifier of this machine's last boot; empty if the system does not provide it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _started(pid):
    """Start time of a process, in clock ticks since boot; None if unknown."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):       # /proc of another container
            return None
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
