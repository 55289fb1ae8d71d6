"""Where a result comes from: a record of options, program, versions and data lists, and the check that they still hold.

A record is `<folder>/provenance/<first 12 digits of its SHA-256>.json`, so that it can be named by a result line, is
never overwritten by another run in the same folder, and shows by its name if it was changed.
"""

import hashlib
import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cmg.utils import files
from cmg.utils.errors import InputError, readable
from cmg.utils.files import atomic_output, remove_leftovers
from cmg.utils.limits import LIMITS

RECORD = re.compile(r"provenance/[0-9a-f]{12}\.json")
PACKAGES = ("torch", "numpy", "pandas", "h5py", "scikit-learn", "transformers")


def source_commit():
    """Commit of the program that is running, with '+' where its files were changed since; 'unknown' outside a clone."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True, timeout=20).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def fingerprint(path):
    """What identifies a data file: SHA-256, size and non-empty lines of a list; entries of a folder; None if absent.
    InputError where it cannot be read."""
    path = Path(path)
    if path.is_dir():
        with readable(path):
            return {"path": str(path), "entries": sum(1 for _ in path.iterdir())}
    if not path.is_file():
        return None
    found = {"path": str(path), "bytes": path.stat().st_size}
    if found["bytes"] > LIMITS.hashed_bytes:
        return found
    if path.suffix in (".csv", ".txt"):
        with readable(path):
            found["rows"] = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return found | {"sha256": files.sha256(path)}


def collect(options, device, places, **facts):
    """The record of one run.

    Args:
        options: name -> JSON value, resolved.
        device: torch device of the run.
        places: name -> Path of the data that it may open.
        facts: more of it, JSON values.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    versions["torch"] = torch.__version__           # with its build, which the package's metadata may leave out: +cu130
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    commit = source_commit()
    data = {name: fingerprint(path) for name, path in places.items()}
    return {"options": options, "commit": commit.rstrip("+"), "changed_since_commit": commit.endswith("+"),
            "versions": versions, "device": f"{device.type} {model}".strip(), "threads": torch.get_num_threads(),
            "data": {name: found for name, found in data.items() if found}, **facts}


def write(folder, record):
    """Write a record below `folder` unless it is there; returns its path relative to `folder`, as result lines name it.

    Raises:
        InputError: the folder cannot be written.
    """
    text = json.dumps(record, indent=1, sort_keys=True, default=str) + "\n"
    name = Path("provenance") / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path = Path(folder) / name
    if not path.exists():
        remove_leftovers(path.parent)
        with atomic_output(path, "w", "choose another --snapshot_pref or --results") as file:
            file.write(text)
    return str(name)


def record_of(row, folder):
    """Path of the record that a result line names, below the results file's folder; None where it names none.

    Raises:
        InputError: the name is not one that `write` gives.
    """
    if not row.get("provenance"):
        return None
    if not RECORD.fullmatch(row["provenance"]):
        raise InputError(f"{folder}: a result names the record {row['provenance'][:60]!r}; provenance/<12 digits>.json "
                         "is expected; measure again")
    return Path(folder) / row["provenance"]


def read(path):
    """A record: {"options", "commit", "versions", "device", "data": {name: {"path", ...}}, ...}.

    Raises:
        InputError: no such file, or no record.
    """
    try:
        if Path(path).stat().st_size > LIMITS.text_bytes:
            raise ValueError("larger than any that this program writes")
        record = json.loads(Path(path).read_text())
        if not all(isinstance(record[name], dict) for name in ("options", "versions", "data")) or not all(
                isinstance(found["path"], str) for found in record["data"].values()):
            raise ValueError("its entries are of other kinds")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a provenance record ({type(error).__name__}: {str(error)[:80]}); run the "
                         "program again to have one") from error
    return record


def verify(rows, folder):
    """Compare the rows of a results file with the files that they name.

    Args:
        rows: of a results file (cmg/results/rows.py).
        folder: in which it lies.

    Returns:
        a list of (row, problems): problems are texts, an empty list where everything is as it was.
    """
    seen, checked = {}, []

    def hashed(file):
        if file not in seen:
            seen[file] = files.sha256(file) if Path(file).is_file() else None
        return seen[file]

    for row in rows:
        problems = []
        if row["checkpoint"]:
            now = hashed(row["checkpoint"])
            if now != row["checkpoint_sha256"]:
                problems.append(f"{row['checkpoint']} is {'gone' if now is None else 'another file now'}")
        problems += _verify_record(Path(folder), row, hashed)
        checked.append((row, problems))
    return checked


def _verify_record(folder, row, hashed):
    """Problems of the record that a row names."""
    try:
        path = record_of(row, folder)
    except InputError as error:
        return [str(error)]
    if path is None:
        return ["names no provenance"]
    found = hashed(path)
    if found is None or not found.startswith(path.stem):
        return [f"{path} is {'gone' if found is None else 'changed'}"]
    try:
        data = read(path)["data"]
    except InputError as error:
        return [str(error)]
    problems = []
    for name, was in data.items():
        now = fingerprint(was["path"]) if "sha256" not in was else was | {"sha256": hashed(was["path"])}
        if now != was:
            gone = now is None or now.get("sha256", "") is None
            problems.append(f"{name} ({was['path']}) is {'gone' if gone else 'another one now'}")
    return problems


def report(checked):
    """The outcome of `verify` as text: rows that no longer match their files, and how many do."""
    lines = []
    for row, problems in checked:
        if problems:
            lines.append(f"{row['task']} {row['direction']} {row['metric']} {row['selection']} seed {row['seed']}"
                         f"{' ' + row['control'] if row['control'] else ''}: {'; '.join(problems)}")
    good = sum(not problems for _, problems in checked)
    return "\n".join([*lines, f"{good} of {len(checked)} rows match their files"])
