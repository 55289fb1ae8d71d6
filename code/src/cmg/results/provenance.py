"""Provenance of results: a record of options, program, versions and data lists, and the check that it still holds.

A record is `<folder>/provenance/<first 12 digits of its SHA-256>.json`, so that result lines can refer to it, another
run in the same folder never overwrites it, and changes to it can be detected.
"""

import hashlib
import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cmg.data.fingerprint import fingerprint
from cmg.data.origins import packed_content
from cmg.utils.errors import InputError, readable
from cmg.utils.files import atomic_output, read_input, read_text_input, remove_leftovers
from cmg.utils.limits import LIMITS

RECORD = re.compile(r"provenance/[0-9a-f]{12}\.json")
PACKAGES = ("torch", "numpy", "pandas", "h5py", "scikit-learn", "transformers")


def source_commit():
    """Commit of the running program, with '+' if its files have changed since; 'unknown' outside a clone."""
    def git(*arguments):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True, timeout=20).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def program_version():
    """Hash of the program's source and versions of PyTorch and NumPy, as text, which must agree in all processes of a
    run, in a clone or an installed package."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{digest.hexdigest()[:12]} with PyTorch {torch.__version__}, NumPy {version('numpy')}"


def describe_data(path, found):
    """Entry of a record for a file or folder: path, size, SHA-256, and how the hash was determined ("checked").

    Args:
        path: path of the data.
        found: its cmg.data.fingerprint.Fingerprint.
    """
    path = Path(path)
    described = {"path": str(path), "bytes": found.bytes, "sha256": found.sha256, "checked": found.checked}
    if path.is_dir():
        return described | {"entries": found.files}
    if path.suffix not in (".csv", ".txt"):
        packed_from = packed_content(path)
        return described | ({"packed_from": packed_from} if packed_from else {})
    if found.bytes <= LIMITS.hashed_bytes:
        with readable(path):
            described["rows"] = sum(1 for line in read_input(path, LIMITS.hashed_bytes).splitlines() if line.strip())
    return described


def collect(options, device, paths, *, fingerprints=None, cache=None, **facts):
    """The record of one run.

    Args:
        options: name -> JSON value, resolved.
        device: torch device of the run.
        paths: name -> Path of the data that the run may open.
        fingerprints: name -> Fingerprint of the paths whose fingerprints are already known.
        cache: folder of the fingerprint cache; see cmg/data/fingerprint.py.
        facts: additional JSON values.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    versions["torch"] = torch.__version__           # includes the build, such as +cu130, which the metadata may omit
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    commit = source_commit()
    known = fingerprints or {}
    found = {name: known.get(name) or fingerprint(path, cache=cache) for name, path in paths.items()}
    data = {name: describe_data(paths[name], of_path) for name, of_path in found.items() if of_path}
    return {"options": options, "commit": commit.rstrip("+"), "changed_since_commit": commit.endswith("+"),
            "versions": versions, "device": f"{device.type} {model}".strip(), "threads": torch.get_num_threads(),
            "data": data, **facts}


def write(folder, record):
    """Write a record below `folder` unless it exists; returns its path relative to `folder`, as used in result lines.

    Raises:
        InputError: the folder cannot be written.
    """
    text = json.dumps(record, indent=1, sort_keys=True, default=str) + "\n"
    name = Path("provenance") / f"{_digest(json.loads(text))}.json"
    path = Path(folder) / name
    if not path.exists():
        remove_leftovers(path.parent)
        with atomic_output(path, "w", "choose another --snapshot_pref or --results") as file:
            file.write(text)
    return str(name)


def _digest(record):
    """Name of a record: the hash of its text, excluding how the data was checked, so that a repeated call gives the
    same name."""
    content = record | {"data": {name: {key: value for key, value in found.items() if key != "checked"}
                                 for name, found in record.get("data", {}).items()}}
    if isinstance(content.get("clips"), dict):
        content["clips"] = {key: value for key, value in content["clips"].items() if key != "checked"}
    text = json.dumps(content, indent=1, sort_keys=True, default=str) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def record_of(row, folder):
    """Path of the record that a result line names, below the results file's folder; None if it names none.

    Raises:
        InputError: the name is not one that `write` returns.
    """
    if not row.get("provenance"):
        return None
    if not RECORD.fullmatch(row["provenance"]):
        raise InputError(f"{folder}: a result names the record {row['provenance'][:60]!r}; expected provenance/<12 "
                         "digits>.json; run the evaluation again")
    return Path(folder) / row["provenance"]


def read(path):
    """A record: {"options", "commit", "versions", "device", "data": {name: {"path", ...}}, ...}.

    Raises:
        InputError: there is no such file, or it is not a record.
    """
    try:
        if Path(path).stat().st_size > LIMITS.text_bytes:
            raise ValueError("larger than any that this program writes")
        record = json.loads(read_text_input(path, LIMITS.text_bytes))
        if not all(isinstance(record[name], dict) for name in ("options", "versions", "data")) or not all(
                isinstance(found["path"], str) for found in record["data"].values()):
            raise ValueError("its entries have the wrong types")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a provenance record ({type(error).__name__}: {str(error)[:80]}); run the "
                         "program again to create one") from error
    return record


def verify(rows, folder, full=True):
    """Compare the rows of a results file with the files they name.

    Regular files at the paths in rows and records are opened for hashing; none of their contents are shown.

    Args:
        rows: rows of a results file (cmg/results/rows.py).
        folder: folder of the results file.
        full: read all data again; otherwise, only files whose size, modification time or sample has changed.

    Returns:
        a list of (row, problems), where problems is a list of texts, empty if nothing has changed.
    """
    known, checked = {}, []

    def hashed(path):
        if path not in known:
            try:
                found = fingerprint(path, full=full)
            except (OSError, ValueError):       # not a valid path on this system
                found = None
            known[path] = found and found.sha256
        return known[path]

    for row in rows:
        problems = []
        if row["checkpoint"]:
            now = hashed(row["checkpoint"])
            if now != row["checkpoint_sha256"]:
                problems.append(f"{row['checkpoint']} is {'missing' if now is None else 'now a different file'}")
        problems += _verify_record(Path(folder), row, hashed)
        checked.append((row, problems))
    return checked


def _same_size(path, was):
    """(whether a path exists, whether its size matches a record from before contents were recorded)."""
    try:
        if path.is_dir():
            return True, sum(1 for _ in path.iterdir()) == was.get("entries")
        return path.exists() or None, path.is_file() and path.stat().st_size == was.get("bytes")
    except (OSError, ValueError):               # not a valid path on this system
        return None, False


def _verify_record(folder, row, hashed):
    """Problems with the record that a row names."""
    try:
        path = record_of(row, folder)
        if path is None:
            return ["has no provenance"]
        if not path.is_file():
            return [f"{path} is missing"]
        record = read(path)
    except InputError as error:
        return [str(error)]
    if _digest(record) != path.stem:
        return [f"{path} has been changed"]
    problems = []
    for name, was in record["data"].items():
        path = Path(was["path"])
        if "sha256" in was:
            now = hashed(was["path"])
            same = now == was["sha256"]
        else:               # from before contents were recorded
            now, same = _same_size(path, was)
        if not same:
            problems.append(f"{name} ({was['path']}) is {'missing' if now is None else 'no longer the same'}")
    return problems


def report(checked):
    """The result of `verify` as text: rows that no longer match their files, and the number of those that do."""
    lines = []
    for row, problems in checked:
        if problems:
            lines.append(f"{row['task']} {row['direction']} {row['metric']} {row['selection']} seed {row['seed']}"
                         f"{' ' + row['control'] if row['control'] else ''}: {'; '.join(problems)}")
    good = sum(not problems for _, problems in checked)
    return "\n".join([*lines, f"{good} of {len(checked)} rows match their files"])
