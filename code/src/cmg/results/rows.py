"""Results: one JSON line per finished evaluation, appended under a lock; `python -m cmg.results FILE` prints."""

import csv
import hashlib
import io
import json
import logging
import math
import statistics
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from cmg.data.fingerprint import combined, how_checked
from cmg.data.manifest import CUSTOM
from cmg.utils.console import fill
from cmg.utils.errors import InputError
from cmg.utils.files import append_lines, read_text_input
from cmg.utils.limits import LIMITS
from cmg.utils.locks import flock, lock_by_name

# What every line must have. `value`, `same_modality` and `chance` are in the metric's unit: percent, for
# median_rank a rank. More keys are allowed.
KEYS = ("task", "dataset", "direction", "metric", "value", "epoch", "selection", "same_modality", "chance", "seed",
        "protocol", "modalities", "checkpoint", "checkpoint_sha256", "commit", "seconds", "control")
KINDS = {"task": (str,), "dataset": (str,), "direction": (str,), "metric": (str,), "selection": (str,),
         "protocol": (str,), "modalities": (list, tuple), "checkpoint": (str, type(None)),
         "checkpoint_sha256": (str, type(None)), "control": (str, type(None)), "seed": (int, type(None))}
# Kinds of keys that may be absent: rows of earlier versions do not have them all.
OPTIONAL = {"variant": str, "origin": str, "provenance": str, "checkpoint_epoch": int, "data": str, "data_checked": str,
            "settings": dict, "first_seed": int}
log = logging.getLogger(__name__)
# Fractions of the test clips that were trained on before, of which tables say so -> how.
SEEN = {"seen_in_pretraining": "in pretraining, without labels", "seen_by_head": "by the head, in another modality"}
SEEN_MARK = "*"
SELECTIONS, PROTOCOLS = ("last", "best"), ("default", "released")
# What identifies a measurement: a later line with the same values here replaces an earlier one. `variant` names what
# else was switched (TOC), `data` is the hash of what the data holds, `settings` are those of the heads on which results
# depend, `first_seed` that of the call, from which the untrained control and the released protocol's dropout are drawn.
IDENTITY = ("task", "dataset", "direction", "metric", "selection", "seed", "protocol", "modalities",
            "checkpoint_sha256", "control", "variant", "data", "settings", "first_seed")
SEEDS = ("seed", "first_seed")
DIGITS = 6                  # of a hash, in tables

CAPTIONS = {
    "default": "Protocol default: frozen encoder in evaluation mode, AVE on its test split, precision, recall and F1 "
               "from counts pooled over the whole set (the published program averages batches: not the same values).",
    "released": "Protocol released, as the published program: dropout stays on in the frozen encoder while the head "
                "trains, AVE on its TRAINING clips, precision and recall averaged over batches of 80 clips, F1 from "
                "these averages (pooled counts differ), fewer epochs after a later checkpoint.",
}
NOTES = ("last: after the last epoch. best: at the epoch that is best on the evaluation set itself, as the papers "
         "report. val: at the epoch that is best on a validation split, where there is one. same: the head "
         "trained on the tested modality, last epoch (where a task has no split by clip, on its own training clips). "
         "chance: a guess that ignores its input. Several seeds: mean +- standard deviation.")
SEGMENTATION = ("avs, mIoU and F over all frames of the set (protocol released: means over batches). last: after "
                "the last epoch. best: at the epoch that is best on the validation split under the tested "
                "modality's queries, as published. val: under the training modality's, a choice that needs nothing "
                "of the other. same: the same network under the queries it was trained with. chance: every pixel "
                "called foreground.")


@dataclass(frozen=True)
class Output:
    """Where a call puts its results, and what they depend on beside the encoder.

    Attributes:
        path: results.jsonl.
        record: the provenance record that its lines name, relative to the file's folder.
        contents: dotted name -> Fingerprint (cmg/data/fingerprint.py) of what the data was opened from.
        modalities: whose features are among `contents`; a row depends on those of its direction, and on `always`.
        settings: of the heads, as plain values.
        first_seed: of the call.
    """

    path: Path
    record: str
    contents: dict = field(default_factory=dict)
    modalities: tuple = ()
    always: tuple = ()
    settings: dict = field(default_factory=dict)
    first_seed: int = None

    def identify(self, row):
        """The row with what else its numbers depend on: `data`, `settings`, and where it matters `first_seed`."""
        features = {*row["direction"].split("->"), *self.always}
        used = {name: found for name, found in self.contents.items()
                if name.split(".")[1] in features or name.split(".")[1] not in self.modalities}
        data = {"data": combined({name: found.sha256 for name, found in used.items()}),
                "data_checked": how_checked(used.values())} if used else {}
        is_drawn = row["control"] or row["protocol"] == "released"
        return row | data | {"settings": self.settings, "first_seed": self.first_seed if is_drawn else None}

    @property
    def record_name(self):
        """Name of the record; calls with other options or data have another."""
        return Path(self.record).stem

    def beside(self, name):
        """A file of this call beside the results."""
        return Path(self.path).parent / name


def append(path, row):
    """Append one line, under a lock and in one write, so that concurrent writers do not mix.

    Raises:
        ValueError: `row` lacks a key or has a value that no table could show (a mistake of ours, not of the user).
        InputError: the file cannot be written; what was in it is untouched.
    """
    problem = find_problem(row)
    if problem:
        raise ValueError(problem)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            with nullcontext() if flock(file, wait=True) else lock_by_name(path, "wait for it", wait=True):
                append_lines(path, json.dumps(row).encode() + b"\n", flushed=True, is_whole=_is_json)
    except OSError as error:
        raise InputError(f"{path}: a result cannot be added ({error.strerror}); free space or choose another path "
                         "with --results; what was there before is untouched") from error


def _is_json(data):
    try:
        json.loads(data)
        return True
    except (ValueError, RecursionError):
        return False


def find_problem(row):
    """What is wrong with a row, in words; None where nothing is."""
    if not isinstance(row, dict):
        return f"a result is an object with keys, not {type(row).__name__}"
    missing = [key for key in KEYS if key not in row]
    if missing:
        return f"keys missing: {', '.join(missing)}"
    for key in ("value", "same_modality", "chance", "value_at_validation", *SEEN):
        number = row.get(key)
        if number is None and key != "value":
            continue
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < LIMITS.figure:
            return f"{key} is {number!r:.60}, not a finite number"
    for key, kinds in KINDS.items():
        if not isinstance(row[key], kinds) or isinstance(row[key], bool):
            return f"{key} is {row[key]!r:.60}, not {' or '.join(kind.__name__ for kind in kinds)}"
    for key, kind in OPTIONAL.items():
        if not isinstance(row.get(key), (kind, type(None))):
            return f"{key} is {row[key]!r:.60}, not {kind.__name__}"
    for key in (*KINDS, *OPTIONAL):
        if isinstance(row.get(key), str) and len(row[key]) > LIMITS.path_letters:
            return f"{key} has {len(row[key]):,} letters; up to {LIMITS.path_letters:,} are expected"
        if isinstance(row.get(key), int) and abs(row[key]) >= LIMITS.seed:
            return f"{key} is beyond {LIMITS.seed:,}"
    if not all(isinstance(modality, str) for modality in row["modalities"]):
        return f"modalities are {row['modalities']!r:.60}, not names"
    if row["selection"] not in SELECTIONS:
        return f"selection is {row['selection']!r}, not one of {', '.join(SELECTIONS)}"
    if row["protocol"] not in PROTOCOLS:
        return f"protocol is {row['protocol']!r}, not one of {', '.join(PROTOCOLS)}"
    if "->" not in str(row["direction"]):
        return f"direction is {row['direction']!r}, not like 'audio->video'"
    return None


def read(*paths):
    """All rows of results files, of each measurement the latest, in the order of their first appearance: copies of a
    line are not further seeds.

    Raises:
        InputError: no such file, or a line that is no result.
    """
    rows = {}
    for path in paths:
        rows |= _read(Path(path))
    return list(rows.values())


def _read(path):
    """`identity` -> row of one file."""
    try:
        if path.stat().st_size > LIMITS.text_bytes:
            raise OSError(f"more than {LIMITS.text_bytes >> 20} MiB")
        text = read_text_input(path, LIMITS.text_bytes)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as results ({error}); give a results.jsonl that a script "
                         "wrote") from error
    rows, lines = {}, text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if rows and number == len(lines) and not text.endswith("\n"):
                log.warning("%s: its last line was cut off within a write and is left out; repeat that call", path)
                break
            raise InputError(f"{path}: line {number} is not JSON ({getattr(error, 'msg', error)}); remove this "
                             "line") from error
        problem = find_problem(row)
        if problem:
            raise InputError(f"{path}: line {number}: {problem}; remove or correct this line")
        rows[identity(row)] = row
    if not rows:
        raise InputError(f"{path}: no results in it; expected one JSON object per line; run a task script first")
    return rows


def identity(row):
    """What makes two rows results of the same measurement."""
    return tuple(json.dumps(row.get(key), sort_keys=True) for key in IDENTITY)


def identity_digest(row):
    """`identity` as 12 digits."""
    return hashlib.sha256("\n".join(identity(row)).encode()).hexdigest()[:12]


def distinguish(rows):
    """The rows with an entry `differs`: what tells a row from others of one checkpoint that a table would show alike,
    as text, such as "lr 0.001" or "data 3fa2c1"; empty where nothing does.

    A setting that differs in one task is named in all rows of the checkpoint, so that the same settings make one row of
    a table over tasks. Rows from before data and settings were recorded say so where there are newer ones as well.
    """
    if all("differs" in row for row in rows):
        return rows
    alike, differing, newer = {}, {}, set()
    for row in rows:
        key = tuple(json.dumps(row.get(name)) for name in IDENTITY if name not in (
            "data", "settings", "selection", *SEEDS))
        alike.setdefault(key, []).append(row)
    for group in alike.values():
        kept = [row for row in group if row.get("settings") is not None]
        of_checkpoint = differing.setdefault(_checkpoint(group[0]), {})
        for name in dict.fromkeys(name for row in kept for name in row["settings"]):
            if len({json.dumps(row["settings"].get(name)) for row in kept}) > 1:
                of_checkpoint[name] = None
        if kept:
            newer.add(_checkpoint(group[0]))
    found = []
    for group in alike.values():
        has_data = len({row["data"] for row in group if row.get("data")}) > 1
        for row in group:
            parts = []
            if row.get("settings") is None and _checkpoint(row) in newer:
                parts.append("data and settings not recorded")
            elif row.get("settings") is not None:
                parts += [f"{name} {_shown(row['settings'].get(name))}" for name in differing[_checkpoint(row)]]
                parts += [f"data {row['data'][:DIGITS]}"] if has_data and row.get("data") else []
            found.append((id(row), ", ".join(parts)))
    texts = dict(found)
    return [row | {"differs": texts[id(row)]} for row in rows]


def _checkpoint(row):
    return row["checkpoint_sha256"], row.get("variant") or ""


def _shown(value):
    return "not given" if value is None else str(value)[:40]


def mean_std(values):
    """Mean and standard deviation (of the sample; None for a single value) of some values without their Nones."""
    values = [value for value in values if value is not None]
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def show(values):
    """'83.2', '83.2 +- 0.4' or '-'."""
    mean, deviation = mean_std(values)
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} +- {deviation:.1f}"


def tested_on(row):
    """The data of a result line, or of the arrays of a predictions file, in words.

    "AVE test" is the published data. Data that the project builds in its form is "Dialled Digits as AVE test", the
    user's own "folder: clips.csv test". Lines of earlier versions name no origin.
    """
    origin = row.get("origin")
    return row["dataset"] if not origin else f"{origin}{': ' if row['task'] == CUSTOM else ' as '}{row['dataset']}"


def pretrained_on(origin, name):
    """The data of a pretraining run in words: its --dataset_name, as in `tested_on`."""
    return " as ".join(filter(None, [origin, "" if origin and name == CUSTOM else name]))


COLUMNS = ("checkpoint", "pretrained on", "task", "tested on", "direction", "differs", "metric", "last", "best", "val",
           "same", "chance", "seeds")
NUMBERS = ("last", "best", "val", "same", "chance")
DESCRIBING = ("checkpoint", "pretrained on", "task", "tested on", "differs", "seeds")


def tabulate(rows):
    """Rows of the summary table: one for each checkpoint, task, direction, metric and control, seeds put together.

    Returns:
        list of {column -> text}, columns as in `COLUMNS`, in the order in which things were measured; a control stands
        below the rows of its direction.
    """
    rows, table = distinguish(rows), []
    same = [name for name in IDENTITY if name not in ("selection", *SEEDS)]
    import pandas as pd  # here, because most programs need no table
    keys = pd.DataFrame([{name: json.dumps(row.get(name), sort_keys=True) for name in same} for row in rows])
    files = {}                                  # name of a checkpoint's file -> hashes
    for row in rows:
        files.setdefault(Path(row["checkpoint"] or "-").name, set()).add(row["checkpoint_sha256"])
    for _, alike in keys.groupby(same, sort=False):         # pandas 2 sorts what `.groups` gives
        group = [rows[number] for number in alike.index]
        first, picked = group[0], {s: [row for row in group if row["selection"] == s] for s in SELECTIONS}
        reference = picked["last"] or picked["best"]
        name = Path(first["checkpoint"]).name if first["checkpoint"] else "-"
        other = [f"checkpoint {str(first['checkpoint_sha256'])[:DIGITS]}"] * (len(files[name]) > 1)
        table.append({
            "checkpoint": name + (f" + {first['variant']}" if first.get("variant") else ""),
            "pretrained on": "+".join(first["modalities"]),
            "task": first["task"],
            "tested on": tested_on(first),
            "direction": first["direction"] + SEEN_MARK * is_seen(first) + (
                f" [{first['control']}]" if first["control"] else ""),
            "differs": ", ".join(filter(None, [*other, first["differs"]])),
            "metric": first["metric"],
            "last": show([row["value"] for row in picked["last"]]),
            "best": show([row["value"] for row in picked["best"]]),
            "val": show([row.get("value_at_validation") for row in reference]),
            "same": show([row["same_modality"] for row in reference]),
            "chance": show([mean_std([row["chance"] for row in reference])[0]]),
            "seeds": " ".join(str(row["seed"]) for row in reference),
        })
    order = list(dict.fromkeys((entry["checkpoint"], entry["task"]) for entry in table))
    return sorted(table, key=lambda entry: order.index((entry["checkpoint"], entry["task"])))


def caption(rows):
    """What the table's values are: the tasks and protocols that occur in it, and the columns."""
    heads = {row["protocol"] for row in rows if row["task"] != "avs"}
    parts = [CAPTIONS[protocol] for protocol in PROTOCOLS if protocol in heads] + [NOTES] * bool(heads)
    parts += [SEGMENTATION] * any(row["task"] == "avs" for row in rows)
    return " ".join(filter(None, [*parts, seen_note(rows)]))


def is_seen(row):
    """Whether clips on which a result was measured were trained on before; tables mark it with SEEN_MARK."""
    return any(row.get(key) for key in SEEN)


def seen_note(rows):
    """What the mark of `is_seen` means in a table of these rows: which tasks, how trained, and what part of the clips;
    empty without one."""
    found = {}
    for row in rows:
        for key in SEEN:
            if row.get(key) and not row["control"]:
                found.setdefault(key, {}).setdefault(row["task"], []).append(100 * row[key])
    told = [f"{text}: {', '.join(f'{task} {max(of_task):.3g} %' for task, of_task in found[key].items())}"
            for key, text in SEEN.items() if key in found]
    return f"{SEEN_MARK} tested clips were seen before {'; '.join(told)}." if told else ""


def render(table, columns, form="text", width=None, names=()):
    """A table (list of {column -> text}) as aligned text, markdown or csv, without columns that are all empty.

    Args:
        width: of a terminal: columns of a text that it has no room for follow in further tables below.
        names: columns that name a row, and begin each of these tables; default: the first.
    """
    columns = [column for column in columns if any(entry[column] not in ("-", "") for entry in table)]
    wide = {column: max(len(column), *(len(str(entry[column])) for entry in table)) + 2 for column in columns}
    first = [column for column in columns if column in names] or columns[:1]
    room, parts = (width or math.inf) + 2 - sum(wide[column] for column in first), [[]]
    for column in columns:
        if column in first:
            continue
        if parts[-1] and sum(wide[other] for other in [*parts[-1], column]) > room:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(_render(table, [*first, *part], form) for part in parts)


def _render(table, columns, form):
    cells = [list(columns)] + [[str(entry[column]) for column in columns] for entry in table]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in cells] if form == "markdown" else cells
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(cells)
        return buffer.getvalue().rstrip("\n")
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in cells]
    if form == "markdown":
        rule = ["-" * width for width in widths]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], ["-" * width for width in widths], *lines[1:]])


def summary(rows, form="text", width=None):
    """The whole report of some rows: one table per protocol, each with its caption.

    Args:
        form: "text", "markdown" or "csv".
        width: of a terminal: what all rows of a text have in common stands above its table, and everything is fitted.
    """
    parts = []
    for protocol in PROTOCOLS:
        of_protocol = [row for row in rows if row["protocol"] == protocol]
        if not of_protocol:
            continue
        table, about = tabulate(of_protocol), caption(of_protocol)
        if width and form == "text":
            parts += [*_fitted(table, width), fill(about, width)]
        else:
            text = render(table, COLUMNS, form)
            parts.append(text if form == "csv" else f"{text}\n\n{about}")
    return "\n\n".join(parts)


def _fitted(table, width):
    """Texts of a table: what all rows have in common, then the table; where that is too wide, the same for each
    checkpoint, or for each of what else describes rows."""
    shared = [name for name in DESCRIBING if len({entry[name] for entry in table}) == 1]
    text = render(table, [name for name in COLUMNS if name not in shared], "text", width,
                  [name for name in COLUMNS if name not in NUMBERS])
    apart = [name for name in DESCRIBING if name not in shared]
    if apart and max(map(len, text.splitlines())) > width:
        groups = dict.fromkeys(entry[apart[0]] for entry in table)
        return [part for group in groups for part in _fitted([e for e in table if e[apart[0]] == group], width)]
    head = ", ".join(f"{name} {table[0][name]}" for name in shared if table[0][name] not in ("", "-"))
    return [*([fill(head, width)] if head else []), text]
