"""Results: one JSON line per finished evaluation, appended under a lock; `python -m cmg.results FILE` prints them."""

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

# Required keys of every line. `value`, `same_modality` and `chance` are in the metric's unit: percent, or a rank for
# median_rank. Other keys are allowed.
KEYS = ("task", "dataset", "direction", "metric", "value", "epoch", "selection", "same_modality", "chance", "seed",
        "protocol", "modalities", "checkpoint", "checkpoint_sha256", "commit", "seconds", "control")
KINDS = {"task": (str,), "dataset": (str,), "direction": (str,), "metric": (str,), "selection": (str,),
         "protocol": (str,), "modalities": (list, tuple), "checkpoint": (str, type(None)),
         "checkpoint_sha256": (str, type(None)), "control": (str, type(None)), "seed": (int, type(None))}
# Types of optional keys; rows of earlier versions do not have all of them.
OPTIONAL = {"variant": str, "origin": str, "provenance": str, "checkpoint_epoch": int, "data": str, "data_checked": str,
            "settings": dict, "first_seed": int}
log = logging.getLogger(__name__)
# Key with the fraction of test clips that were seen in training -> how they were seen, for tables.
SEEN = {"seen_in_pretraining": "in pretraining, without labels", "seen_by_head": "by the head, in another modality"}
SEEN_MARK = "*"
SELECTIONS, PROTOCOLS = ("last", "best"), ("default", "released")
# Keys that identify a measurement: a later line with the same values replaces an earlier one. `variant` names another
# variation (TOC), `data` is the hash of the data's contents, `settings` are those settings of the heads that affect
# results, and `first_seed` is the call's, which determines the untrained control and the dropout of the released
# protocol.
IDENTITY = ("task", "dataset", "direction", "metric", "selection", "seed", "protocol", "modalities",
            "checkpoint_sha256", "control", "variant", "data", "settings", "first_seed")
SEEDS = ("seed", "first_seed")
DIGITS = 6                  # of a hash shown in tables

CAPTIONS = {
    "default": "Protocol default: frozen encoder in evaluation mode, AVE on its test split, precision, recall and F1 "
               "from counts pooled over the whole set (the published program averages over batches, which gives "
               "different values).",
    "released": "Protocol released, as in the published program: dropout stays on in the frozen encoder while the head "
                "trains, AVE is tested on its TRAINING clips, precision and recall are averaged over batches of 80 "
                "clips, F1 is computed from these averages (pooled counts give different values), and later "
                "checkpoints get fewer epochs.",
}
NOTES = ("last: after the last epoch. best: best epoch on the evaluation set itself, as reported in the papers. val: "
         "best epoch on a validation split, if any. same: head trained on the tested modality, last epoch (on its own "
         "training clips if a task has no split by clip). chance: a guess that ignores the input. Several seeds: mean "
         "+- standard deviation.")
SEGMENTATION = ("avs, mIoU and F over all frames of the set (protocol released: means over batches). last: after the "
                "last epoch. best: best epoch on the validation split with queries of the tested modality, as "
                "published. val: with queries of the training modality, which requires nothing of the other. same: the "
                "same network with the queries it was trained on. chance: every pixel predicted as foreground.")


@dataclass(frozen=True)
class Output:
    """Where a call writes its results, and what they depend on besides the encoder.

    Attributes:
        path: results.jsonl.
        record: path of the provenance record named by its lines, relative to the file's folder.
        contents: dotted name -> Fingerprint (cmg/data/fingerprint.py) of the opened data.
        modalities: modalities whose features are among `contents`; a row depends on those of its direction and on
            `always`.
        settings: settings of the heads, as plain values.
        first_seed: first seed of the call.
    """

    path: Path
    record: str
    contents: dict = field(default_factory=dict)
    modalities: tuple = ()
    always: tuple = ()
    settings: dict = field(default_factory=dict)
    first_seed: int = None

    def identify(self, row):
        """The row with the other keys that its values depend on: `data`, `settings`, and `first_seed` if it matters."""
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
        """Path of a file of this call next to the results."""
        return Path(self.path).parent / name


def append(path, row):
    """Append one line, under a lock and in a single write, so that lines of concurrent writers do not mix.

    Raises:
        ValueError: `row` lacks a key or has a value that tables cannot show (our mistake, not the user's).
        InputError: the file cannot be written; its contents are unchanged.
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
        raise InputError(f"{path}: a result cannot be added ({error.strerror}); free space or choose another path with "
                         "--results; its contents are unchanged") from error


def _is_json(data):
    try:
        json.loads(data)
        return True
    except (ValueError, RecursionError):
        return False


def find_problem(row):
    """Description of what is wrong with a row; None if it is valid."""
    if not isinstance(row, dict):
        return f"a result must be an object with keys, not {type(row).__name__}"
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
            return f"{key} has {len(row[key]):,} letters; expected at most {LIMITS.path_letters:,}"
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
    """All rows of results files, the latest for each measurement, in order of first appearance. Copies of a line do not
    count as additional seeds.

    Raises:
        InputError: there is no such file, or a line is not a valid result.
    """
    return latest(row for path in paths for row in _read(Path(path)))


def latest(rows):
    """The last row of each measurement, in the order of the first ones."""
    return list({identity(row): row for row in rows}.values())


def _read(path):
    try:
        if path.stat().st_size > LIMITS.text_bytes:
            raise OSError(f"more than {LIMITS.text_bytes >> 20} MiB")
        text = read_text_input(path, LIMITS.text_bytes)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as results ({error}); pass a results.jsonl that a script "
                         "wrote") from error
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if rows and number == len(lines) and not text.endswith("\n"):
                log.warning("%s: its last line is incomplete because a write was interrupted, and is ignored; repeat "
                            "that call", path)
                break
            raise InputError(f"{path}: line {number} is not JSON ({getattr(error, 'msg', error)}); remove this "
                             "line") from error
        problem = find_problem(row)
        if problem:
            raise InputError(f"{path}: line {number}: {problem}; remove or correct this line")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: contains no results; expected one JSON object per line; run a task script first")
    return rows


def identity(row):
    """Key that is equal for rows of the same measurement."""
    return tuple(json.dumps(row.get(key), sort_keys=True) for key in IDENTITY)


def identity_digest(row):
    """`identity` as 12 digits."""
    return hashlib.sha256("\n".join(identity(row)).encode()).hexdigest()[:12]


def distinguish(rows):
    """Add an entry `differs` to the rows: a text such as "lr 0.001" or "data 3fa2c1" that distinguishes a row from
    others of the same checkpoint that would look the same in a table; empty if there are none.

    A setting that differs in one task is named in all rows of the checkpoint, so that rows with the same settings form
    one row of a table over tasks. Rows from before data and settings were recorded are marked if there are also newer
    ones.
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
    """Mean and sample standard deviation (None for a single value) of some values, ignoring None."""
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
    """Description of the data of a result line, or of the arrays of a predictions file.

    Published data is "AVE test", data that the project builds in its form "Dialled Digits as AVE test", and the user's
    own data "folder: clips.csv test". Lines of earlier versions have no origin.
    """
    origin = row.get("origin")
    return row["dataset"] if not origin else f"{origin}{': ' if row['task'] == CUSTOM else ' as '}{row['dataset']}"


def pretrained_on(origin, name):
    """Description of the data of a pretraining run: its --dataset_name, as in `tested_on`."""
    return " as ".join(filter(None, [origin, "" if origin and name == CUSTOM else name]))


COLUMNS = ("checkpoint", "pretrained on", "task", "tested on", "direction", "differs", "metric", "last", "best", "val",
           "same", "chance", "seeds")
NUMBERS = ("last", "best", "val", "same", "chance")
DESCRIBING = ("checkpoint", "pretrained on", "task", "tested on", "differs", "seeds")


def tabulate(rows):
    """Rows of the summary table: one for each checkpoint, task, direction, metric and control, over all seeds.

    Returns:
        list of {column -> text}, with the columns `COLUMNS`, in the order of measurement; a control follows the rows of
        its direction.
    """
    rows, table = distinguish(rows), []
    same = [name for name in IDENTITY if name not in ("selection", *SEEDS)]
    import pandas as pd  # imported here because most programs need no tables
    keys = pd.DataFrame([{name: json.dumps(row.get(name), sort_keys=True) for name in same} for row in rows])
    files = {}                                  # name of a checkpoint's file -> hashes
    for row in rows:
        files.setdefault(Path(row["checkpoint"] or "-").name, set()).add(row["checkpoint_sha256"])
    for _, alike in keys.groupby(same, sort=False):         # pandas 2 sorts `.groups`
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
    """Explanation of the table's values: its tasks and protocols, and the columns."""
    heads = {row["protocol"] for row in rows if row["task"] != "avs"}
    parts = [CAPTIONS[protocol] for protocol in PROTOCOLS if protocol in heads] + [NOTES] * bool(heads)
    parts += [SEGMENTATION] * any(row["task"] == "avs" for row in rows)
    return " ".join(filter(None, [*parts, seen_note(rows)]))


def is_seen(row):
    """Whether clips that a result was tested on were seen in training; tables mark it with SEEN_MARK."""
    return any(row.get(key) for key in SEEN)


def seen_note(rows):
    """Explanation of the mark of `is_seen` in a table of these rows: the tasks, how the clips were seen, and the
    fraction of them; empty if there are no marks."""
    found = {}
    for row in rows:
        for key in SEEN:
            if row.get(key) and not row["control"]:
                found.setdefault(key, {}).setdefault(row["task"], []).append(100 * row[key])
    told = [f"{text}: {', '.join(f'{task} {max(of_task):.3g} %' for task, of_task in found[key].items())}"
            for key, text in SEEN.items() if key in found]
    return f"{SEEN_MARK} test clips were seen before {'; '.join(told)}." if told else ""


def render(table, columns, form="text", width=None, names=()):
    """A table (list of {column -> text}) as aligned text, markdown or csv, without empty columns.

    Args:
        width: terminal width; text columns that do not fit follow in further tables below.
        names: columns that identify a row, repeated in each of these tables; default: the first.
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
    """The complete report of some rows: one table with a caption per protocol.

    Args:
        form: "text", "markdown" or "csv".
        width: terminal width, which text is fitted to; values that all rows share are then printed above the table.
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
    """Texts of a table: the values that all rows share, then the table. If that is too wide, it is split by checkpoint
    or by another describing column."""
    shared = [name for name in DESCRIBING if len({entry[name] for entry in table}) == 1]
    text = render(table, [name for name in COLUMNS if name not in shared], "text", width,
                  [name for name in COLUMNS if name not in NUMBERS])
    apart = [name for name in DESCRIBING if name not in shared]
    if apart and max(map(len, text.splitlines())) > width:
        groups = dict.fromkeys(entry[apart[0]] for entry in table)
        return [part for group in groups for part in _fitted([e for e in table if e[apart[0]] == group], width)]
    head = ", ".join(f"{name} {table[0][name]}" for name in shared if table[0][name] not in ("", "-"))
    return [*([fill(head, width)] if head else []), text]
