"""Read the files of a run for the report: options, records, log, result lines, warnings."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from cmg.report.pictures import read_log, read_text
from cmg.results import provenance
from cmg.results import rows as results
from cmg.training.run_logger import WARNINGS
from cmg.utils.errors import InputError

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
START = re.compile(rf"(?m)^(?={TIME} .* on \S+: \d+ clips, )")       # first line of a call in log.txt
RESUMED = ": resuming in epoch "


@dataclass
class Pretraining:
    """The files of one folder of cmg.training.run_logger.RunLogger."""

    folder: Path
    options: dict
    lines: list                                     # of metrics.jsonl
    record: dict = field(default_factory=dict)      # provenance record; {} if there is none
    began: str = ""                                 # first and last time in log.txt
    ended: str = ""


@dataclass
class RunFiles:
    """All run files in one folder given on the command line, found recursively.

    Attributes:
        pretrainings: list of Pretraining.
        results: (folder of a results.jsonl, its rows).
        records: (path, provenance record) of all result lines.
        warnings: (folder, {"time", "level", "message"}) of pretraining and tasks.
    """

    name: str
    folder: Path
    pretrainings: list
    results: list
    records: list
    warnings: list

    @property
    def rows(self):
        """The latest result line of each measurement."""
        return results.latest(row for _, rows in self.results for row in rows)


def read_runs(folders):
    """`RunFiles` of some folders, named by as many path components as needed to distinguish them."""
    runs = [read_run(folder) for folder in dict.fromkeys(Path(folder).absolute() for folder in folders)]
    depth = 1
    while len({run.folder.parts[-depth:] for run in runs}) < len(runs):
        depth += 1
    for run in runs:
        run.name = "/".join(run.folder.parts[-depth:])
    return runs


def read_run(folder):
    """`RunFiles` of a folder.

    Raises:
        InputError: the folder does not exist or contains no run, or a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run's folder with results.jsonl or metrics.jsonl")
    logs = [path.parent for path in sorted(folder.rglob("metrics.jsonl"))]
    found = [(path.parent, results.read(path)) for path in sorted(folder.rglob("results.jsonl"))]
    if not logs and not found:
        raise InputError(f"{folder}: contains neither metrics.jsonl nor results.jsonl; pass the folder of a run")
    records = filter(None, dict.fromkeys(_record(row, inside) for inside, rows in found for row in rows))
    warned = [(path.parent, line) for path in sorted(folder.rglob(WARNINGS)) for line in _warnings(path)]
    return RunFiles(folder.absolute().name, folder, [_pretraining(log) for log in logs], found,
                    [(path, provenance.read(path)) for path in records if path.is_file()], warned)


def _record(row, folder):
    """Path of a result line's record; None if it names none or something invalid (`provenance.verify` reports it)."""
    try:
        return provenance.record_of(row, folder)
    except InputError:
        return None


def _pretraining(folder):
    path = folder / "options.json"
    options = _object(path, read_text(path)) if path.exists() else {}
    found = Pretraining(folder, options, read_log(folder / "metrics.jsonl"))
    records = sorted((folder / "provenance").glob("*.json"), key=lambda record: record.stat().st_mtime)
    if records:
        found.record = provenance.read(records[-1])
    if (folder / "log.txt").exists():
        times = re.findall(TIME, _last_run(read_text(folder / "log.txt")))
        if times:
            found.began, found.ended = times[0], times[-1]
    return found


def _last_run(text):
    """The part of log.txt written by the last run: the last call and the earlier calls that it resumed."""
    calls = START.split(text)
    first = len(calls) - 1
    while first > 1 and RESUMED in calls[first]:
        first -= 1
    return "".join(calls[first:])


def _warnings(path):
    lines = [_object(path, line) for line in read_text(path).splitlines() if line.strip()]
    return [{name: str(line.get(name, "")) for name in ("time", "level", "message")} for line in lines]


def _object(path, text):
    """The JSON object in a text from the file `path`."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON object ({error}); remove it or run the program again") from error
    return found
