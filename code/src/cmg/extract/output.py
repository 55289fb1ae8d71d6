"""Files written by an extraction: zips and images, the report, its journals, the sidecar, AVE's arrays.

All writes are atomic. A clip is done when its features exist and the report (or the journal of an unfinished run) has a
line for it. The report is sorted, so that sharded and interrupted runs write the same bytes as a single run.
"""

import csv
import hashlib
import io
import json
import pickle
import platform
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

import av
import h5py
import numpy as np
from PIL import Image

from cmg.data.archive import read_zip
from cmg.data.features import fit_length
from cmg.data.origins import SIDECAR, read_sidecar
from cmg.extract.clip import BAD_START, Row
from cmg.utils.console import clean
from cmg.utils.errors import InputError
from cmg.utils.files import as_input_error, atomic_output, file_lock, read_text_input
from cmg.utils.limits import LIMITS

REPORT, CHECKED = "report.csv", "video_name_checked.csv"
COLUMNS = [field.name for field in fields(Row)]
RETRIED = ("unreadable", "error", BAD_START)        # statuses that may change at the next attempt
EXCUSED = {"ok": (), "no_audio": ("audio",), "no_video": ("video",)}        # features that may be missing
OTHER = "choose another --out"
PACKAGES = ("torch", "numpy", "scipy", "transformers", "av")


def write_whole(path, data):
    """Write bytes atomically to a path below the output folder; InputError if that fails."""
    with atomic_output(path, remedy=OTHER) as file:
        file.write(data)


# ---------------------------------------------------------------------------------------------------- features
def zip_bytes(name, array):
    """A feature zip in the published format: one member <name>.pkl, a pickled array that NumPy 1 and 2 can read.

    The date is fixed, so that equal arrays give equal bytes.
    """
    content = pickle.dumps(np.ascontiguousarray(array), protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray", 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}.pkl"), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def is_good_zip(path):
    """Whether a feature exists and can be read."""
    try:
        return len(read_zip(path)) > 0
    except InputError:
        return False


def write_pictures(folder, name, frames):
    """AVSBench's frames: <folder>/<name>_<k>.png, k from 1."""
    for k, frame in enumerate(frames, 1):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "png")
        write_whole(folder / f"{name}_{k}.png", buffer.getvalue())


# ---------------------------------------------------------------------------------------------------- report
def read_rows(path):
    """Lines of a report or journal by id; an incomplete last line is ignored."""
    try:
        text = read_text_input(path, LIMITS.list_bytes)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error)[:80]}); expected the report of an extraction; check the "
                         "disk, or delete the file to extract its clips again") from error
    lines = csv.reader(io.StringIO(text[:text.rfind("\n") + 1], newline=""))
    return {line[0]: Row(*line) for line in lines if len(line) == len(COLUMNS) and line != COLUMNS}


def _line(values):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([clean(str(value)) for value in values])
    return buffer.getvalue()


class Report:
    """The report of a folder, and the journal of one run on it.

    Args:
        folder: the output folder.
        shard: (number, count) of this run.
    Attributes:
        rows: id -> `Row` of earlier and unfinished runs; `add` adds those of this run.
    Raises:
        InputError: another run is processing the same shard, or the folder is not writable.
    """

    def __init__(self, folder, shard):
        self.folder = Path(folder)
        path = self.path = self.folder / f".report-{shard[0]}-of-{shard[1]}.journal"
        self.opened = ExitStack()
        try:
            self.opened.enter_context(file_lock(_lock_of(path), "choose another --shard"))
            with as_input_error(path, OTHER):
                self.own = self.opened.enter_context(open(path, "a", encoding="utf-8"))
                self.own.truncate(path.read_bytes().rfind(b"\n") + 1)       # the last line may be incomplete
            self.rows = self._known()
        except BaseException:
            self.close()
            raise

    def _journals(self):
        return sorted(self.folder.glob(".report-*.journal"))

    def _known(self):
        rows = read_rows(self.folder / REPORT)
        for journal in self._journals():
            rows |= read_rows(journal)
        return rows

    def add(self, row):
        """Add a clip's line and write it to the journal immediately."""
        self.rows[row.id] = row
        with as_input_error(self.path, OTHER):
            self.own.write(_line(asdict(row).values()))
            self.own.flush()

    def finish(self, write_lists):
        """Under a lock, write the report of all runs so far and the lists derived from it.

        Args:
            write_lists: function of the rows, sorted by id.
        """
        with file_lock(self.folder / ".lock", OTHER, wait=True):
            rows = dict(sorted(self._known().items()))
            write_whole(self.folder / REPORT,
                         "".join(map(_line, [COLUMNS] + [asdict(row).values() for row in rows.values()])).encode())
            write_lists(rows)
            self.path.unlink()
            for journal in self._journals():                # delete those of finished runs
                with suppress(OSError, InputError), file_lock(_lock_of(journal)):
                    journal.unlink()
            self.close()
        self.rows = rows

    def close(self):
        """Close the journal, which the next run continues."""
        with suppress(OSError):             # the disk is full, as `add` has already reported
            self.opened.close()


def _lock_of(journal):
    return journal.with_suffix(".lock")


# ---------------------------------------------------------------------------------------------------- sidecar
def versions():
    """Versions of packages and FFmpeg's libraries, and a hash of this module's source."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "ffmpeg": libraries,
            "extract": source.hexdigest()[:12]}


def write_sidecar(folder, settings, notes):
    """Record the settings that a folder's features depend on; refuse to mix features of different settings.

    Args:
        folder: the output folder.
        settings: section ("clips", "audio", "video", "text") -> JSON values.
        notes: remarks for the users of the features.
    Returns:
        the settings of all runs on the folder, because a modality may be added later.
    Raises:
        InputError: the folder has features of other settings or of unknown origin.
    """
    folder, settings = Path(folder), json.loads(json.dumps(settings))
    before = read_sidecar(folder)
    for section, ours in settings.items():
        theirs = before.get("settings", {}).get(section)
        if theirs is not None and theirs != ours:
            key = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
            raise InputError(f"{folder / SIDECAR}: the {section} features there have {key} {theirs.get(key)!r}, not "
                             f"{ours.get(key)!r}; expected the same settings; choose another --out")
    if not before:
        strange = next((zips for m in ("audio", "video") for zips in (folder / m / "zip").glob("*.zip")), None)
        if strange:
            raise InputError(f"{strange}: a feature of unknown origin (no {SIDECAR}); expected a folder written by "
                             "this command; choose another --out")
    settings = before.get("settings", {}) | settings
    notes = list(dict.fromkeys(before.get("notes", []) + notes))
    content = {"settings": settings, "notes": notes, "versions": versions()}
    write_whole(folder / SIDECAR, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return settings


# ---------------------------------------------------------------------------------------------------- AVE's form
class _DeferredErrors:
    """A file for h5py that stores its first OSError and ignores all further calls, because an exception raised inside
    HDF5 causes a segmentation fault. `check` raises the error."""

    def __init__(self, file):
        self.file, self.error = file, None

    def __getattr__(self, name):
        def act(*args):
            try:
                if self.error is None:
                    return getattr(self.file, name)(*args)
            except OSError as error:
                self.error = error
            return 0
        return act

    def check(self):
        if self.error:
            raise self.error


def write_ave(path, rows, zips, seconds, dtype):
    """Write AVE's array `avadataset` (rows, T, ...) from feature zips, row by row.

    Args:
        path: file to write.
        rows: id of each row; ids may repeat.
        zips: folder of <id>.zip.
        seconds: T; a shorter clip repeats its last row.
        dtype: "float32" or "float64".
    Returns:
        ids without features; their rows are NaN, which readers reject, while zeros would look like features.
    """
    rows, missing = list(rows), []
    shape = next((read_zip(zips / f"{name}.zip").shape[1:] for name in rows if (zips / f"{name}.zip").exists()), None)
    if shape is None:
        raise InputError(f"{zips}: no feature for any of the {len(rows)} rows; expected at least one; check --order")
    with atomic_output(path, "w+b", OTHER) as file:
        deferred = _DeferredErrors(file)
        with h5py.File(deferred, "w") as out:
            array = out.create_dataset("avadataset", (len(rows), seconds, *shape), dtype, chunks=(1, seconds, *shape))
            for k, name in enumerate(rows):
                source = zips / f"{name}.zip"
                if deferred.error:
                    break
                if source.exists():
                    array[k] = fit_length(read_zip(source), seconds, source)
                else:
                    array[k] = np.nan
                    missing.append(name)
        deferred.check()
    return missing
