"""The table printed by evaluate.py, fitted to the terminal. All values are in table.txt and results.jsonl."""

from cmg.data.manifest import CUSTOM
from cmg.downstream.tasks import TASKS
from cmg.report import tables
from cmg.results.rows import PROTOCOLS, SEEN_MARK, distinguish, is_seen, mean_std, render, seen_note, show, tested_on
from cmg.utils.console import fill

ABOUT = ("Percent. last: after the last epoch of the heads. best: best epoch on the test clips, as in the papers. val: "
         "best epoch on validation clips, if any. same: head trained on the tested modality. untrained: encoder with "
         "untrained weights. chance: a guess that ignores the input.")
NAMES = ("task", "direction", "metric")
SEVERAL = "Percent after the last epoch of the heads, cross-modal; mean: over all columns."


def table(rows, width):
    """Result lines as a table of at most `width` characters, with a caption: for a single checkpoint, one line per
    direction of the papers' main table; for several, one line per checkpoint."""
    parts = []
    for protocol in PROTOCOLS:
        of_protocol = distinguish([row for row in rows if row["protocol"] == protocol])
        if of_protocol:
            make = _of_one if len(tables.names(of_protocol)) == 1 else _of_several
            parts.append(make(of_protocol, width))
    return "\n\n".join(parts)


def _of_one(rows, width):
    listed = [(cell.task, cell.metric, cell.direction) for cell in tables.cells_of(rows).values()]
    measured = dict.fromkeys((row["task"], row["metric"], row["direction"]) for row in rows)
    shown = [key for key in listed if key in measured]
    others = {(task, direction) for task, _, direction in measured} - {key[::2] for key in shown}
    if not shown:
        shown, others = [key for key in measured if key[1] == tables.main_metric(key[0], rows)], ()
    lines = [_line(rows, *key) for key in shown]
    shared = [name for name in ("task", "metric") if len({line[name] for line in lines}) == 1]
    entries = [{name: show(value) if isinstance(value, list) else value for name, value in line.items()}
               for line in lines]
    if len(lines) > 1 and all(key in listed for key in shown):
        first = next(name for name in NAMES if name not in shared)
        entries.append(dict.fromkeys(NAMES, "") | {first: "mean"} | {
            name: _mean([line[name] for line in lines]) for name in lines[0] if isinstance(lines[0][name], list)})
    seeds = " ".join(str(seed) for seed in dict.fromkeys(row["seed"] for row in rows))
    title = f"{next(iter(tables.names(rows).values()))} ({'+'.join(rows[0]['modalities'])}), heads of seed {seeds}"
    title += "".join(f", {lines[0][name]}" for name in shared)
    data = tables.title(rows)
    about = [f"{ABOUT} {len(others)} more directions: results.jsonl." if others else ABOUT]
    about.append(seen_note([row for row in rows if (row["task"], row["metric"], row["direction"]) in shown]))
    table = render(entries, [name for name in entries[0] if name not in shared], width=width, names=NAMES)
    about = [fill(text, width) for text in about if text]
    return "\n".join([*([fill(data, width)] if data else []), fill(title, width), "", table, "", *about])


def _line(rows, task, metric, direction):
    """Values of a direction: column name -> text, or list with one value per seed."""
    own = [row for row in rows if (row["task"], row["metric"], row["direction"]) == (task, metric, direction)]

    def values(selection, field="value", control=None):
        return [row[field] for row in own if (row["selection"], row["control"]) == (selection, control)
                and row.get(field) is not None]
    label = TASKS[task].label if task in TASKS and task != CUSTOM else tested_on(own[0])
    chance = values("last", "chance")[:1]
    return {"task": label, "direction": direction + SEEN_MARK * is_seen(own[0]), "metric": metric,
            "last": values("last"), "best": values("best"), "val": values("last", "value_at_validation"),
            "same": values("last", "same_modality"), "untrained": values("last", control="untrained"), "chance": chance}


def _mean(columns):
    """Mean of the means of some columns; "-" if a column has none."""
    means = [mean_std(values)[0] for values in columns]
    return "-" if None in means else show([sum(means) / len(means)])


def _of_several(rows, width):
    seen = tables.seen_columns(rows)
    titles = {column: column + SEEN_MARK * (column in seen) for column in tables.cells_of(rows)}
    entries = [{"checkpoint": row.name, "mean": show(row.mean) if row.values.keys() >= titles.keys() else "-"}
               | {title: show(row.cells.get(column, [])) for column, title in titles.items()}
               for row in [*tables.collect(rows, "last"), tables.chance(rows)]]
    table, data = render(entries, ["checkpoint", *titles.values(), "mean"], width=width), tables.title(rows)
    about = seen_note([row for row in rows if tables.column_of(row)])
    parts = [fill(data, width), ""] if data else []
    return "\n".join([*parts, table, "", *(fill(text, width) for text in (SEVERAL, about) if text)])


def choice(rows):
    """One line that tells which of several checkpoints to use, according to validation clips and to the published
    rule."""
    by_validation, published = tables.choose(rows), tables.choose_as_published(rows)
    taken = (f"use {by_validation.name}: best on validation clips of {by_validation.tasks} "
             f"({by_validation.validation:.1f} %)" if by_validation else "no choice: no validation clips")
    data = dict.fromkeys(tested_on(row | {"dataset": TASKS["ave"].label}) for row in rows if row["task"] == "ave")
    return taken + (f"; the papers' rule (best on test clips of {' and '.join(data)}) selects {published}"
                    if published else "")
