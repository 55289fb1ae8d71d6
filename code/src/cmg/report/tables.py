"""The papers' main table from result lines: one row per checkpoint, two columns per task (NeurIPS 2023, Table 3)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from cmg.data.manifest import CUSTOM
from cmg.downstream.settings import OWN_SECONDS_BY
from cmg.downstream.tasks import TASKS
from cmg.results.rows import (
    SEEN_MARK,
    SELECTIONS,
    caption,
    distinguish,
    is_seen,
    mean_std,
    render,
    show,
    tested_on,
)


@dataclass(frozen=True)
class Cell:
    """The content of a column of the table."""

    task: str
    metric: str
    source: str
    target: str

    @property
    def direction(self):
        return f"{self.source}->{self.target}"


CELLS = {                        # column -> Cell
    f"{entry.label} {source[0].upper()}>{target[0].upper()}": Cell(entry.name, entry.column, source, target)
    for entry in TASKS.values() if entry.column for source, target in entry.directions.values()}
PUBLISHED = {}                   # row -> column -> value
for _entry in (entry for entry in TASKS.values() if entry.column):
    for _row, _values in _entry.published.items():
        PUBLISHED.setdefault(_row, {}).update(zip(
            (column for column, cell in CELLS.items() if cell.task == _entry.name), _values, strict=True))

ABOUT = (f"Columns: {', '.join(f'{entry.label} {entry.column}' for entry in TASKS.values() if entry.column)}, in "
         "percent (the paper calls AVVP's metric accuracy); mean: over the columns measured in this row, whose number "
         f"is given next to it (of {len(CELLS)}).")
ABOUT_PUBLISHED = ("Published rows: NeurIPS 2023, best epoch on the evaluation set, AVE on the head's own training "
                   "clips, precision and recall averaged over batches.")


@dataclass
class Row:
    """One row of the table."""

    name: str
    values: dict                               # column -> run (checkpoint, seed) -> value
    key: tuple = ()                             # from `row_key`; for rows of this table
    seeds: tuple = ()
    checkpoints: tuple = field(default=())

    @property
    def cells(self):
        """Column -> its values, one per run."""
        return {column: list(of_runs.values()) for column, of_runs in self.values.items()}

    @property
    def runs(self):
        """What the values of a column are taken over: seeds of heads, and pretraining runs if there are several."""
        count = len(self.checkpoints)
        return " ".join(map(str, self.seeds)) + (f" x {count} checkpoints" if count > 1 else "")

    @property
    def mean(self):
        """Mean over the measured columns, one for each run that has all of them; if no run has, the mean of the column
        means; empty without columns."""
        columns = list(self.values.values())
        complete = [run for run in columns[0] if all(run in column for column in columns)] if columns else []
        if columns and not complete:
            return [sum(mean_std(column.values())[0] for column in columns) / len(columns)]
        return [sum(column[run] for column in columns) / len(columns) for run in complete]


def row_key(row):
    """Key that is equal for result lines of one table row: the checkpoint, the variant of its codes, and other
    differences. Requires rows returned by `results.distinguish`."""
    return row["checkpoint_sha256"], row.get("variant") or "", row.get("differs", "")


def pooled(rows):
    """Pool the results of checkpoints with the same file name, as from pretraining with several seeds in different
    folders: their rows become a single row with mean and standard deviation, under the name of the first run."""
    runs = {}
    for row in rows:
        runs.setdefault(Path(row["checkpoint"]).name, {})[row.get("run")] = None
    named = {file: next(iter(of)) and next(iter(of)) + f" and {len(of) - 1} more" * (len(of) > 1)
             for file, of in runs.items()}
    return [row | {"checkpoint_sha256": file, "run": named[file]}
            for row, file in ((row, Path(row["checkpoint"]).name) for row in rows)]


def of_run(rows, run):
    """Name the results of one run's folder after the run: the only checkpoint gets its name, several get it as a
    prefix."""
    short = {key[0]: name for key, name in names([row | {"differs": "", "variant": ""} for row in rows]).items()}
    return [row | {"run": run if len(short) == 1 else f"{run}: {short[row['checkpoint_sha256']]}"} for row in rows]


def names(rows):
    """row_key -> a short name: that of the run if `of_run` has set one, else the file name with as many parent folders
    as needed to distinguish it, and with the first digits of its SHA-256 if a file was overwritten."""
    rows = distinguish(rows)
    paths = {row_key(row): Path(row["checkpoint"] or "-") for row in rows}
    files = {sha: path for (sha, *_), path in paths.items()}
    short = {}
    for sha, path in files.items():
        others = {other for other in files.values() if other != path}
        name = next((tail for tail in _path_suffixes(path)
                     if not any(tail in _path_suffixes(other) for other in others)), str(path))
        alike = [of for of, other in files.items() if other == path]
        short[sha] = name if len(alike) == 1 else f"{name} ({str(sha)[:6]})"
    short |= {row["checkpoint_sha256"]: row["run"] for row in rows if row.get("run")}
    return {key: short[key[0]] + "".join(f" + {text}" for text in key[1:] if text) for key in paths}


def _path_suffixes(path):
    """Ends of a path, the shortest first: "c.pt", "b/c.pt", "a/b/c.pt"."""
    return ["/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1)]


def column_of(row):
    """The column that a result belongs to, or None."""
    if row["task"] == CUSTOM and row["metric"] in (TASKS[CUSTOM].best_by, OWN_SECONDS_BY):
        return f"{TASKS[CUSTOM].label} {row['direction'].replace('->', '>')}"
    found = row["task"], row["metric"], row["direction"]
    return next((column for column, cell in CELLS.items() if (cell.task, cell.metric, cell.direction) == found), None)


def is_own(rows):
    """Whether all results are on the user's own data."""
    return all(row["task"] == CUSTOM for row in rows)


def is_comparable(rows):
    """Whether there may be results on published data, which are comparable with the papers' rows."""
    return not rows or not all(row["task"] == CUSTOM or row.get("origin") for row in rows)


def title(rows):
    """Line above a table that names the data of the results if it is not the published data; otherwise empty."""
    rows = [row for row in rows if row.get("origin")]
    tasks, origins = {row["task"] for row in rows}, " and ".join(dict.fromkeys(row["origin"] for row in rows))
    forms = [entry.label for entry in TASKS.values() if entry.column and entry.name in tasks]
    return f"{origins} in the form of {', '.join(forms)}" if forms else origins


def cells_of(rows):
    """Column -> Cell: those of the papers, then those of the user's own data among the results; only the latter if
    there are no other results."""
    own = {column_of(row): Cell(CUSTOM, row["metric"], *row["direction"].split("->")) for row in rows
           if row["task"] == CUSTOM and column_of(row)}
    return own if own and is_own(rows) else CELLS | own


def main_metric(task, rows):
    """The metric of a task in the papers' table, else the one that selects its epoch, else its first one in `rows`."""
    metrics = [row["metric"] for row in rows if row["task"] == task]
    if task == CUSTOM and OWN_SECONDS_BY in metrics:
        return OWN_SECONDS_BY
    if task in TASKS:
        return TASKS[task].column or TASKS[task].best_by
    return metrics[0]


def collect(rows, selection, control=None, field="value"):
    """The measured rows of the table for one selection, in the order of the results.

    Args:
        rows: result lines of one protocol (cmg/results/rows.py).
        selection: "last" or "best".
        control: None, or the name of a control.
        field: "value" or "same_modality".
    """
    rows = distinguish(rows)
    short = names(rows)
    keys = list(short)                          # in the order of the results
    found = [row | {"number": keys.index(row_key(row)), "column": column_of(row)} for row in rows
             if row["selection"] == selection and row["control"] == control and row[field] is not None]
    import pandas as pd  # here, because most programs need no table
    frame = pd.DataFrame([row for row in found if row["column"]])
    if frame.empty:
        return []
    table = []
    for number, group in frame.sort_values("seed", kind="stable").groupby("number"):
        key = keys[number]
        values = {column: dict(zip(zip(of_column["checkpoint"], of_column["seed"]), of_column[field]))
                   for column, of_column in group.groupby("column", sort=False)}
        table.append(Row(short[key], values, key, tuple(group["seed"].unique().tolist()),
                         tuple(group["checkpoint"].unique())))
    return table


def chance(rows):
    """The row of chance levels."""
    values = {column_of(row): {None: row["chance"]} for row in rows if row["control"] is None and row["chance"]
               is not None}
    return Row("chance", {column: of_runs for column, of_runs in values.items() if column})


def all_rows(rows):
    """All rows of the table, from top to bottom."""
    rows, table = distinguish(rows), []
    for selection in SELECTIONS:
        table += [replace(row, name=f"{row.name} ({selection})") for row in collect(rows, selection)]
    table += [replace(row, name=f"{row.name}, same modality (last)")
              for row in collect(rows, "last", field="same_modality")]
    table += [replace(row, name=f"{row.name}, untrained control (last)")
              for row in collect(rows, "last", "untrained")]
    table.append(chance(rows))
    table += [Row(name, {column: {None: value} for column, value in values.items()})
              for name, values in PUBLISHED.items() if is_comparable(rows)]
    return table


def seen_columns(rows):
    """Columns whose test clips were seen in pretraining or in training the head."""
    return {column_of(row) for row in rows if is_seen(row)} - {None}


def paper_table(rows, form="text"):
    """The table of result lines of one protocol, as text, markdown or csv (means only, no caption)."""
    def cell(values):
        return show(values) if form != "csv" else "" if not values else f"{mean_std(values)[0]:.2f}"
    cells, data, mark = cells_of(rows), title(rows), SEEN_MARK if form != "csv" else ""
    entries = [{"data": data, "row": row.name, "mean": cell(row.mean), "columns": str(len(row.values) or ""),
                "seeds": row.runs} | {column: cell(row.cells.get(column, [])) for column in cells}
               for row in all_rows(rows)]
    names = [*(["data"] if form == "csv" else []), "row", *cells, "mean", "columns", "seeds"]
    columns = {name: name + mark * (name in seen_columns(rows)) for name in names}
    table = render([{columns[name]: entry[name] for name in names} for entry in entries], tuple(columns.values()), form)
    if form == "csv":
        return table
    about = [f"{data}\n"] if data else []
    about += [f"{table}\n"]
    about += [ABOUT] if not rows or not is_own(rows) else []
    about += [ABOUT_PUBLISHED] if is_comparable(rows) else []
    return "\n".join([*about, caption(rows)])


@dataclass
class Choice:
    """The checkpoint chosen on validation clips."""

    name: str
    key: tuple                   # of `row_key`
    tasks: str                   # tasks with these validation clips
    validation: float            # percent, mean over directions and seeds
    cells: dict                  # its row of the table, last epoch


def choose(rows):
    """The checkpoint with the best value on VALIDATION clips (tested modality), which AVE and the user's own data have;
    ties go to the latest epoch. None without such values. Compared are the directions that all checkpoints have.

    Unlike the choice in the papers, this uses no test clips.
    """
    rows = distinguish(rows)
    validated = [row | {"validation": row.get("validation")} for row in rows if row["task"] in ("ave", CUSTOM)]
    table = collect(validated, "last", field="validation")
    shared = [column for column in (table[0].values if table else ()) if all(column in row.values for row in table)]
    means = {row.key: mean_std([value for column in shared for value in row.cells[column]])[0]
             for row in table if shared}
    if not means:
        return None
    epochs = {row_key(row): row.get("checkpoint_epoch") or 0 for row in rows}       # ties go to the latest
    chosen = max(means, key=lambda key: (means[key], epochs[key]))
    best = next(row for row in collect(rows, "last") if row.key == chosen)
    tasks = dict.fromkeys(tested_on(row | {"dataset": TASKS[row["task"]].label}) for row in validated
                          if row["validation"] is not None)
    return Choice(best.name, best.key, " and ".join(tasks), means[best.key], best.cells)


def choose_as_published(rows):
    """Name of the checkpoint with the best AVE accuracy on the test clips, at the heads' best epoch: the published
    rule. None without AVE."""
    found = {row.name: mean_std(row.mean)[0] for row in collect([row for row in rows if row["task"] == "ave"], "best")}
    return max(found, key=found.get, default=None)
