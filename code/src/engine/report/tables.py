"""The papers' main table from result lines: a row a checkpoint, eight columns, their mean (NeurIPS 2023, Table 3)."""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.results import SELECTIONS, caption, render, show, spread

CELLS = {                        # column -> (task, metric, direction)
    f"{title} {arrow}": (task, metric, direction)
    for title, task, metric in (("AVE", "ave", "accuracy"), ("AVVP", "avvp", "precision"),
                                ("AVE>AVVP", "ave_avvp", "f1"), ("UCF/VGG", "ucf_vggsound", "accuracy"))
    for arrow, direction in (("V>A", "video->audio"), ("A>V", "audio->video"))}
COLUMNS = ("row", *CELLS, "mean", "seeds")

PUBLISHED = {                    # row -> cells in the order of CELLS; NeurIPS 2023, best epoch, released protocol
    "published: Uni-Code, AVT 40K (Table 3)": (54.1, 55.0, 63.4, 71.0, 53.0, 52.4, 67.1, 60.6),
    "published: same modality, AVT 40K (Table 3)": (64.8, 65.8, 71.0, 72.9, None, None, 80.0, 85.4),
    "published: Uni-Code, AV 40K (Table 1)": (47.7, 52.3, 64.0, 65.6),
    "published: baseline, AV 40K (Table 1)": (5.5, 5.4, 6.9, 8.7),
}
ABOUT = ("Columns: AVE and UCF/VGG accuracy, AVVP precision (\"accuracy\" in the paper), AVE>AVVP F1, in percent; mean "
         "of the eight, where all are there. Published rows: NeurIPS 2023, on the real data, best epoch on the "
         "evaluation set, AVE on the head's own training clips, precision and recall averaged over batches; not "
         "comparable with other data.")


@dataclass
class Row:
    """One row of the table: a list of values (one a seed and checkpoint) for each cell that was measured."""

    name: str
    cells: dict
    seeds: tuple = ()
    checkpoints: tuple = ()

    @property
    def spread_over(self):
        """What the values of a cell are: seeds of heads, and pretraining runs if there are several."""
        runs = len(self.checkpoints)
        return " ".join(map(str, self.seeds)) + (f" x {runs} checkpoints" if runs > 1 else "")

    @property
    def mean(self):
        """Means over the eight cells, one a seed; empty where a cell is missing."""
        full = [self.cells.get(cell) for cell in CELLS]
        if not all(full) or len({len(values) for values in full}) > 1:
            return []
        return [sum(values) / len(CELLS) for values in zip(*full)]


def key(row):
    """What makes rows those of one line of the table: the checkpoint and what was done to its codes."""
    return row["checkpoint_sha256"], row.get("variant") or ""


def pooled(rows):
    """The same results with checkpoints of one file name, as pretraining with other seeds leaves them in other folders,
    as one: their rows become a single one with mean and standard deviation over them."""
    return [row | {"checkpoint_sha256": Path(row["checkpoint"]).name} for row in rows]


def names(rows):
    """A short name for each checkpoint: the file's name, with its folder where two are alike."""
    paths = {key(row): Path(row["checkpoint"]) for row in rows}
    alike = {path.name for path in paths.values() if len({p for p in paths.values() if p.name == path.name}) > 1}
    plain = {of: f"{path.parent.name}/{path.name}" if path.name in alike else path.name for of, path in paths.items()}
    return {of: name + (f" + {of[1]}" if of[1] else "") for of, name in plain.items()}


def cell_of(row):
    """The column in which a result stands; None for those of no column."""
    return next((cell for cell, of in CELLS.items() if of == (row["task"], row["metric"], row["direction"])), None)


def collect(rows, selection, control=None, field="value"):
    """The measured rows of the table for one selection, in the order of the results.

    Args:
        rows: result lines of one protocol (engine/results.py).
        selection: "last" or "best".
        control: None, or the name of a control.
        field: "value" or "same_modality".
    """
    short, found = names(rows), {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        cell = cell_of(row)
        if cell and row["selection"] == selection and row["control"] == control and row[field] is not None:
            entry = found.setdefault(key(row), Row(short[key(row)], {}))
            entry.cells.setdefault(cell, []).append(row[field])
            entry.seeds = tuple(dict.fromkeys((*entry.seeds, row["seed"])))
            entry.checkpoints = tuple(dict.fromkeys((*entry.checkpoints, row["checkpoint"])))
    return [found[of] for of in short if of in found]


def chance(rows):
    """The row of guesses that ignore their input."""
    cells = {}
    for row in rows:
        if cell_of(row) and row["control"] is None:
            cells[cell_of(row)] = [row["chance"]]
    return Row("chance", cells)


def all_rows(rows):
    """Everything that stands in the table, from top to bottom."""
    table = []
    for selection in SELECTIONS:
        table += [replace(row, name=f"{row.name} ({selection})") for row in collect(rows, selection)]
    table += [replace(row, name=f"{row.name}, same modality (last)")
              for row in collect(rows, "last", field="same_modality")]
    table += [replace(row, name=f"{row.name}, untrained control (last)")
              for row in collect(rows, "last", "untrained")]
    table.append(chance(rows))
    table += [Row(name, {cell: [value] for cell, value in zip(CELLS, values) if value is not None})
              for name, values in PUBLISHED.items()]
    return table


def paper_table(rows, form="text"):
    """The table of result lines of one protocol, as text, markdown or csv (means only, no caption)."""
    cell = show if form != "csv" else lambda values: "" if spread(values)[0] is None else f"{spread(values)[0]:.2f}"
    entries = [{"row": row.name, "mean": cell(row.mean), "seeds": row.spread_over}
               | {name: cell(row.cells.get(name, [])) for name in CELLS} for row in all_rows(rows)]
    table = render(entries, COLUMNS, form)
    return table if form == "csv" else f"{table}\n\n{ABOUT}\n{caption(rows)}"


@dataclass
class Choice:
    """The checkpoint that the AVE validation split would choose."""

    name: str
    validation: float            # percent on the validation split, mean over directions and seeds
    cells: dict                  # its row of the table, last epoch


def choose(rows):
    """The checkpoint with the best AVE accuracy on the VALIDATION split (tested modality); None without such figures.

    It never sees a test clip, unlike the choice by test figures that the papers report.
    """
    short, found = names(rows), {}
    for row in rows:
        if (row["task"] == "ave" and cell_of(row) and row["selection"] == "last" and not row["control"]
                and row.get("validation") is not None):
            found.setdefault(key(row), []).append(row["validation"])
    if not found:
        return None
    means = {of: spread(values)[0] for of, values in found.items()}
    best = max(means, key=means.get)
    cells = next(row.cells for row in collect(rows, "last") if row.name == short[best])
    return Choice(short[best], means[best], cells)


