"""What an extraction leaves on disk: zips and pictures, the report, its journals, the sidecar, AVE's arrays.

Everything is written whole or not at all. A clip counts as done when its features are there and a line of the report
(or of the journal of an unfinished run) says so; the report is sorted, so that shards and interrupted runs leave the
same bytes as one run.
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
RETRIED = ("unreadable", "error", BAD_START)        # statuses that may be another one at the next try
EXCUSED = {"ok": (), "no_audio": ("audio",), "no_video": ("video",)}        # features that such a clip need not have
OTHER = "choose another --out"
PACKAGES = ("torch", "numpy", "scipy", "transformers", "av")


def write_whole(path, data):
    """Put bytes at a path below the output folder, whole or not at all; InputError where that cannot be done."""
    with atomic_output(path, remedy=OTHER) as file:
        file.write(data)


# ---------------------------------------------------------------------------------------------------- features
def zip_bytes(name, array):
    """A feature zip as published: one member <name>.pkl, one pickled array that NumPy 1 and 2 read.

    The date is fixed, so that the same array gives the same bytes.
    """
    content = pickle.dumps(np.ascontiguousarray(array), protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray", 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}.pkl"), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def is_good_zip(path):
    """Whether a feature is there and can be read."""
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
    """Lines of a report or journal by id; a last line that was cut off is left out."""
    try:
        text = read_text_input(path, LIMITS.list_bytes)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({str(error)[:80]}); the report of an extraction is expected; check "
                         "the disk, or remove the file to extract its clips again") from error
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
        rows: id -> `Row`, of earlier and unfinished runs; those of this run are added by `add`.
    Raises:
        InputError: the same shard is being made by another run, or the folder cannot be written.
    """

    def __init__(self, folder, shard):
        self.folder = Path(folder)
        path = self.path = self.folder / f".report-{shard[0]}-of-{shard[1]}.journal"
        self.opened = ExitStack()
        try:
            self.opened.enter_context(file_lock(_lock_of(path), "take another --shard"))
            with as_input_error(path, OTHER):
                self.own = self.opened.enter_context(open(path, "a", encoding="utf-8"))
                self.own.truncate(path.read_bytes().rfind(b"\n") + 1)       # the last line may have been cut off
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
        """Keep a clip's line, before anything else happens."""
        self.rows[row.id] = row
        with as_input_error(self.path, OTHER):
            self.own.write(_line(asdict(row).values()))
            self.own.flush()

    def finish(self, write_lists):
        """Write the report of all runs so far and, under a lock, the lists that follow from it.

        Args:
            write_lists: function of the rows, sorted by id.
        """
        with file_lock(self.folder / ".lock", OTHER, wait=True):
            rows = dict(sorted(self._known().items()))
            write_whole(self.folder / REPORT,
                         "".join(map(_line, [COLUMNS] + [asdict(row).values() for row in rows.values()])).encode())
            write_lists(rows)
            self.path.unlink()
            for journal in self._journals():                # of runs that have ended
                with suppress(OSError, InputError), file_lock(_lock_of(journal)):
                    journal.unlink()
            self.close()
        self.rows = rows

    def close(self):
        """Close the journal; the next run continues it."""
        with suppress(OSError):             # a line that did not fit on the disk: `add` has reported it
            self.opened.close()


def _lock_of(journal):
    return journal.with_suffix(".lock")


# ---------------------------------------------------------------------------------------------------- sidecar
def versions():
    """What made the features: packages, FFmpeg's libraries, a hash of this package's source."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "ffmpeg": libraries,
            "extract": source.hexdigest()[:12]}


def write_sidecar(folder, settings, notes):
    """Record what the features of a folder depend on; refuse to mix them with others.

    Args:
        folder: the output folder.
        settings: section ("clips", "audio", "video", "text") -> JSON values.
        notes: lines that whoever uses the features should know.
    Returns:
        the settings of all runs on the folder: a modality may be added later.
    Raises:
        InputError: features of other settings, or of unknown origin, in the folder.
    """
    folder, settings = Path(folder), json.loads(json.dumps(settings))
    before = read_sidecar(folder)
    for section, ours in settings.items():
        theirs = before.get("settings", {}).get(section)
        if theirs is not None and theirs != ours:
            key = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
            raise InputError(f"{folder / SIDECAR}: {section} features with {key} {theirs.get(key)!r} are there, "
                             f"{ours.get(key)!r} is asked for; features of one kind are expected; choose another --out")
    if not before:
        strange = next((zips for m in ("audio", "video") for zips in (folder / m / "zip").glob("*.zip")), None)
        if strange:
            raise InputError(f"{strange}: a feature of unknown origin (no {SIDECAR}); features of one kind are "
                             "expected; choose another --out")
    settings = before.get("settings", {}) | settings
    notes = list(dict.fromkeys(before.get("notes", []) + notes))
    content = {"settings": settings, "notes": notes, "versions": versions()}
    write_whole(folder / SIDECAR, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return settings


# ---------------------------------------------------------------------------------------------------- AVE's form
class _Patient:
    """A file for h5py that keeps its first OSError until `settle` and does nothing from then on: one that is raised
    into HDF5 ends the process with a segmentation fault."""

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

    def settle(self):
        if self.error:
            raise self.error


def write_ave(path, rows, zips, seconds, dtype):
    """AVE's array `avadataset` (rows, T, ...) from feature zips, row by row.

    Args:
        path: file to write.
        rows: id of each row; one that occurs twice gives two equal rows.
        zips: folder of <id>.zip.
        seconds: T; a shorter clip repeats its last row.
        dtype: "float32" or "float64".
    Returns:
        ids without features, whose rows are NaN: readers refuse them by name, zeros would pass for features.
    """
    rows, missing = list(rows), []
    shape = next((read_zip(zips / f"{name}.zip").shape[1:] for name in rows if (zips / f"{name}.zip").exists()), None)
    if shape is None:
        raise InputError(f"{zips}: no feature of the {len(rows)} rows asked for; one at least is expected; see --order")
    with atomic_output(path, "w+b", OTHER) as file:
        patient = _Patient(file)
        with h5py.File(patient, "w") as out:
            array = out.create_dataset("avadataset", (len(rows), seconds, *shape), dtype, chunks=(1, seconds, *shape))
            for k, name in enumerate(rows):
                source = zips / f"{name}.zip"
                if patient.error:
                    break
                if source.exists():
                    array[k] = fit_length(read_zip(source), seconds, source)
                else:
                    array[k] = np.nan
                    missing.append(name)
        patient.settle()
    return missing
