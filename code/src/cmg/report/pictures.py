"""Draw pictures of a run from its files: `python -m cmg.report.pictures RUN_FOLDER --out figs/demo`.

Reads every metrics.jsonl (pretraining), results.jsonl and predictions/*.npz in the folder, recursively. Each modality
has the same color in all pictures: audio orange, video blue, text green.
"""

import itertools
import json
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from cmg.downstream.tasks import TASKS
from cmg.models.config import MODALITIES, in_order
from cmg.report import plots, tables
from cmg.report.style import (
    GRAY,
    PALE,
    SAME,
    UNTRAINED,
    WIDEST,
    colors_of,
    legend_below,
    new_figure,
    save,
    set_title,
    styled,
)
from cmg.results import rows as results
from cmg.utils.errors import InputError, Parser, run
from cmg.utils.files import read_text_input, require_regular
from cmg.utils.limits import LIMITS

LOSS_TITLES = {"recon": "reconstruction", "commit": "commitment", "cpc": "Cross-CPC", "cmcm": "CMCM", "total": "total"
               } | dict.fromkeys(("club", "mi"), "CLUB bound")      # mi: in logs of earlier versions
MOST_PANELS = 60
LETTERS_PER_INCH = 14           # of 8-point labels


def modalities_of(losses):
    """The modalities of a run, in their fixed order, given the names of its losses; each has a commitment loss."""
    found = {name.removesuffix("_commit") for name in losses if name.endswith("_commit")}
    return in_order(found | {m for m in MODALITIES if any(name.startswith(f"{m}_") for name in losses)})


@styled
def draw_losses(lines, path):
    """Draw the loss curves of pretraining, with one panel per kind of loss and one color per modality.

    Args:
        lines: lines of metrics.jsonl, {"epoch", "step", "losses": {name: value}, ...}.
        path: picture to write.
    """
    panels, modalities = {}, modalities_of(lines[0]["losses"])
    colors = colors_of(modalities)
    for name in lines[0]["losses"]:
        modality = max((m for m in modalities if name.startswith(f"{m}_")), key=len, default=None)
        kind = name.removeprefix(f"{modality}_") if modality else name
        panels.setdefault(kind, []).append((modality, name))
    if len(panels) > MOST_PANELS:
        raise ValueError(f"{len(panels)} kinds of losses; expected at most {MOST_PANELS}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, size=(WIDEST / 3 * columns, 2.7 * rows))
    steps = np.array([line["step"] for line in lines])
    starts = [line["step"] for before, line in zip(lines, lines[1:]) if line["epoch"] != before["epoch"]]
    for axis, (kind, members) in zip(axes.flat, panels.items()):
        members.sort(key=lambda member: modalities.index(member[0]) if member[0] else 0)
        values = np.array([[line["losses"].get(name, np.nan) for line in lines] for _, name in members])
        values[~np.isfinite(values)] = np.nan
        for (modality, _), curve in zip(members, values):
            axis.plot(steps, curve, color=colors.get(modality, "black"), label=modality)
        for start in starts:
            axis.axvline(start, color=PALE, linewidth=0.8, zorder=0)
        axis.set_title(LOSS_TITLES.get(kind, kind))
        if np.isfinite(values).any() and np.nanmin(values) > 0 and np.nanmax(values) > 20 * np.nanmin(values):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        elif np.isfinite(values).any():
            axis.set_ylim(bottom=min(0, np.nanmin(values)))
        if members[0][0]:
            axis.legend(frameon=False)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    set_title(figure, "Pretraining losses" + (" (gray lines: epochs)" if starts else ""))
    return save(figure, path)


@styled
def draw_sharing(lines, path):
    """Draw how many codes of each codebook are used during pretraining, and how many are shared by all modalities.

    Args:
        lines: lines of metrics.jsonl, with metrics codes_used, codes_shared and code_perplexity, followed by the suffix
            of the codebook (`CodebookMonitor.update`).
        path: picture to write.
    """
    suffixes = [name.removeprefix("codes_used") for name in lines[0]["metrics"] if name.startswith("codes_used")]
    figure, axes = new_figure(1, 2, size=(8.4, 2.9))
    steps = np.array([line["step"] for line in lines])
    for number, suffix in enumerate(suffixes):
        ending = f", codebook {number + 1}" if len(suffixes) > 1 else ""
        for axis, name, label, color in ((axes[0, 0], "codes_used", "used in a batch", GRAY),
                                         (axes[0, 0], "codes_shared", "shared by all modalities in a batch", "black"),
                                         (axes[0, 1], "code_perplexity", "perplexity", "black")):
            curve = np.array([line["metrics"].get(name + suffix) for line in lines], float)
            axis.plot(steps, curve, ("-", "--", ":", "-.")[number % 4], color=color, label=label + ending)
    axes[0, 0].set(title="codes used and shared", ylabel="codes", xlabel="step", ylim=(0, None))
    axes[0, 1].set(title="perplexity of the moving counts", ylabel="codes", xlabel="step", ylim=(0, None))
    for axis in axes[0]:
        axis.margins(y=0.15)
        axis.legend(frameon=False, loc="best")
    set_title(figure, "Codebook during pretraining")
    return save(figure, path)


@styled
def draw_optimization(lines, path):
    """Draw the learning rate, gradient norms before clipping, log-likelihoods of the CLUB networks, and speed.

    Args:
        lines: lines of metrics.jsonl, with "learning_rate", "grad_norms", "likelihoods" and "clips_per_second".
        path: picture to write.
    """
    figure, axes = new_figure(2, 2, size=(9.6, 6.4))
    steps, modalities = np.array([line["step"] for line in lines]), modalities_of(lines[0]["losses"])
    colors = colors_of(modalities)
    for axis, name, title in ((axes[0, 0], "learning_rate", "learning rate"),
                              (axes[1, 0], "clips_per_second", "clips per second")):
        axis.plot(steps, [line[name] for line in lines], color="black")
        axis.set(title=title, ylim=(0, None))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axis, group, title in ((axes[0, 1], "grad_norms", "gradient norm of each group before clipping"),
                               (axes[1, 1], "likelihoods", "log-likelihood of the CLUB networks (nats)")):
        for number, name in enumerate(sorted(set().union(*(line[group] for line in lines)))):
            curve = np.array([line[group].get(name, np.nan) for line in lines])
            own = next((m for m in modalities if name.lower().startswith(m)), None)
            axis.plot(steps, np.where(np.isfinite(curve), curve, np.nan), ("-", "--", ":", "-.")[number % 4],
                      color=colors.get(own, GRAY), label=name.removesuffix("_parameters").replace("_", " "))
        axis.set_title(title)
        if axis.lines:
            axis.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes[0, 1].set_yscale("log")
    axes[0, 1].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0, 1].yaxis.set_minor_formatter(NullFormatter())
    for axis in axes[:, 0]:
        axis.set_xlabel("step")
    set_title(figure, "Optimization")
    return save(figure, path)


@styled
def draw_cells(rows, path):
    """Draw the cells of the papers' main table for each checkpoint, with best epoch, same modality, control and
    chance."""
    of_last = tables.collect(rows, "last")
    known = tables.cells_of(rows)
    cells = [cell for cell in known if any(cell in row.cells for row in of_last)]
    others = [({row.key: row for row in found}, color, label) for found, color, label in (
        (tables.collect(rows, "best"), "black", "best epoch on the evaluation set"),
        (tables.collect(rows, "last", field="same_modality"), SAME, "same modality (last)"),
        (tables.collect(rows, "last", "untrained"), UNTRAINED, "untrained encoder"))]
    chance = tables.chance(rows)
    positions = np.arange(len(cells))
    figure, axes = new_figure(1, 1, size=(min(max(6.0, 1.45 * len(cells)), WIDEST), 4.4))
    axis = axes[0, 0]
    width = 0.76 / len(of_last)
    labeled = set()
    for number, last in enumerate(of_last):
        shade = mpl.colormaps["Blues"](0.85 if len(of_last) == 1 else 0.35 + 0.6 * number / (len(of_last) - 1))
        x = positions - 0.38 + width * (number + 0.5)
        means = [results.mean_std(last.cells.get(cell, []))[0] or 0 for cell in cells]
        errors = [results.mean_std(last.cells.get(cell, []))[1] or 0 for cell in cells]
        axis.bar(x, means, width * 0.9, yerr=errors, color=shade, label=last.name, error_kw={"linewidth": 1})
        for of_key, color, label in others:
            if last.key in of_key:
                _ticks(axis, x, width, of_key[last.key], cells, color, None if label in labeled else label)
                labeled.add(label)
    for spot, cell in zip(positions, cells):
        if cell in chance.cells:
            axis.plot([spot - 0.42, spot + 0.42], chance.cells[cell] * 2, color=GRAY, linewidth=1, linestyle=":",
                      label=None if "chance" in labeled else "chance")
            labeled.add("chance")
    ticks = [f"{TASKS[known[cell].task].label}\n{known[cell].source} to {known[cell].target}" for cell in cells]
    room = LETTERS_PER_INCH * figure.get_figwidth() / len(cells)
    is_narrow = max(len(line) for tick in ticks for line in tick.split("\n")) > room
    axis.set_xticks(positions, ticks, fontsize=8, rotation=90 if is_narrow else 0)
    axis.set_ylim(0, 101)
    axis.set_yticks(range(0, 101, 20))
    axis.set_ylabel("percent")
    set_title(figure, _titled("Cross-modal transfer: bars after the last epoch of the head", rows))
    legend_below(figure, *axis.get_legend_handles_labels())
    return save(figure, path)


def _titled(text, rows):
    """A title, followed by the data of the results unless it is the published data."""
    return "\n".join(filter(None, [text, tables.title(rows)]))


def _ticks(axis, x, width, row, cells, color, label):
    """A short horizontal line at each cell of a row."""
    for spot, cell in zip(x, cells):
        mean = results.mean_std(row.cells.get(cell, []))[0]
        if mean is not None:
            axis.plot([spot - 0.45 * width, spot + 0.45 * width], [mean] * 2, color=color, linewidth=2, label=label)
            label = None


@styled
def draw_epochs(rows, path):
    """Draw the metrics over the checkpoints of one pretraining run; a bar marks the checkpoint chosen on AVE's
    validation split."""
    epochs = {tables.row_key(row): row["checkpoint_epoch"] for row in rows}
    table = sorted(tables.collect(rows, "last"), key=lambda row: epochs[row.key])
    figure, axes = new_figure(1, 1, size=(7.5, 4.2))
    axis = axes[0, 0]
    markers = dict(zip(TASKS, itertools.cycle("os^DvP*X")))
    known = tables.cells_of(rows)
    colors = colors_of({of.target for of in known.values()})
    for cell, of in known.items():
        points = [(epochs[row.key], *results.mean_std(row.cells[cell])) for row in table if cell in row.cells]
        if points:
            x, mean, deviation = zip(*points)
            axis.errorbar(x, mean, [d or 0 for d in deviation], color=colors[of.target], marker=markers[of.task],
                          linewidth=1, markersize=5, label=cell)
    if len({frozenset(row.cells) for row in table}) == 1:       # otherwise the means would be over different columns
        axis.plot([epochs[row.key] for row in table], [results.mean_std(row.mean)[0] for row in table], color="black",
                  linewidth=2.5, label="mean")
    choice = tables.choose(rows)
    if choice:
        axis.axvline(epochs[choice.key], color=PALE, linewidth=9, zorder=0,
                     label=f"chosen on validation clips of {choice.tasks}")
    axis.set_xticks(sorted(set(epochs.values())))
    axis.set_xlabel("epoch of the checkpoint")
    axis.set_ylabel("percent, after the head's last epoch")
    axis.set_ylim(0, 101)
    set_title(figure, _titled("Cross-modal transfer over pretraining", rows))
    legend_below(figure, *axis.get_legend_handles_labels())
    return save(figure, path)


@styled
def draw_tables(rows, folder):
    """Draw the pictures of result lines; returns their paths."""
    folder, written, rows = Path(folder), [], results.distinguish(rows)
    for protocol in results.PROTOCOLS:
        part = [row for row in rows if row["protocol"] == protocol]
        ending = "" if protocol == "default" else f"-{protocol}"
        if tables.collect(part, "last"):
            written.append(draw_cells(part, folder / f"table{ending}.png"))
            whole = [row for row in part if not row.get("variant")]             # without TOC: one point per epoch
            epochs = {row.get("checkpoint_epoch") for row in whole}
            runs = {str(row["checkpoint"]).rstrip(".pt0123456789") for row in whole}        # one folder, one name
            if len(epochs) > 1 and None not in epochs and len(runs) == 1:
                written.append(draw_epochs(whole, folder / f"epochs{ending}.png"))
    return written


def read_log(path):
    """Read the lines of the last run in a metrics.jsonl; a truncated last line is ignored."""
    lines, text = [], read_text(path)
    for number, of_line in enumerate(text.splitlines(), 1):
        try:
            line = {"epoch": 0, "step": 0, "losses": {}, "metrics": {}, "likelihoods": {}, "grad_norms": {},
                    "learning_rate": "nan", "clips_per_second": "nan"} | json.loads(of_line)
            for group in ("losses", "metrics", "likelihoods", "grad_norms"):
                line[group] = {name: float(value) for name, value in line[group].items()}
            line["step"], line["epoch"] = int(line["step"]), int(line["epoch"])
            for name in ("learning_rate", "clips_per_second"):
                line[name] = float(line[name])
            lines.append(line)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if lines and not text.endswith("\n"):
                break
            raise InputError(f"{path}: line {number} is not a JSON line of the log ({getattr(error, 'msg', error)}); "
                             "remove this line") from error
    lines = [line for line in lines if line["losses"]]
    starts = [number for number in range(1, len(lines)) if lines[number]["step"] <= lines[number - 1]["step"]]
    return lines[starts[-1]:] if starts else lines


def read_text(path, largest=LIMITS.text_bytes):
    """Read a text file of a run; InputError if it is not text, or larger than those of any run."""
    try:
        if path.stat().st_size > largest:
            raise InputError(f"{path}: {path.stat().st_size >> 20} MiB; expected at most {largest >> 20} MiB; if it "
                             "contains several runs, move each to its own folder")
        return read_text_input(path, largest)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); run the program again") from error


def read_predictions(path):
    """Read the arrays of a predictions file, name -> array or scalar."""
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > LIMITS.predictions_bytes:
            raise ValueError(f"{size >> 20} MiB when unpacked; expected at most {LIMITS.predictions_bytes >> 20}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] if file[name].ndim else file[name].item() for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, SyntaxError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise InputError(f"{path}: not a predictions file ({error}); run the task again") from error


@contextmanager
def drawing(path):
    """Convert errors in the block, which draws the contents of the file `path`, to InputError."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, MemoryError,
            np.linalg.LinAlgError) as error:
        raise InputError(f"{path}: unexpected contents, which cannot be drawn ({type(error).__name__}: "
                         f"{str(error)[:80]}); run the program again") from error


@styled
def draw_run(folder, out):
    """Draw all pictures of the files in `folder`, recursively, into the folder `out`; returns their paths."""
    folder, out, written = Path(folder), Path(out), []
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a run's folder with results.jsonl or metrics.jsonl")
    for path in sorted(folder.rglob("metrics.jsonl")):
        lines = read_log(path)
        if lines:
            inside = path.parent.relative_to(folder).as_posix().replace("/", "-")
            ending = "" if inside == "." else f"-{inside}"
            with drawing(path):
                written.append(draw_losses(lines, out / f"losses{ending}.png"))
                if any(name.startswith("codes_used") for name in lines[0]["metrics"]):
                    written.append(draw_sharing(lines, out / f"sharing{ending}.png"))
                if lines[0]["grad_norms"]:
                    written.append(draw_optimization(lines, out / f"optimization{ending}.png"))
    rows = tables.of_run(results.read(*sorted(folder.rglob("results.jsonl"))), folder.absolute().name)
    with drawing(folder / "results.jsonl"):
        written += draw_tables(rows, out)
    runs = sorted({path.parent for path in folder.rglob("predictions/*.npz")})
    for run_folder in runs:
        inside = run_folder.parent.relative_to(folder).as_posix().replace("/", "-")
        written += draw_predictions(run_folder, out, f"-{inside}" if len(runs) > 1 else "")
    if not written:
        raise InputError(f"{folder}: nothing to draw; expected metrics.jsonl, results.jsonl or predictions/ in it or "
                         "its subfolders")
    return written


@styled
def draw_predictions(folder, out, ending):
    """Draw the pictures of one predictions folder into `out`, with the suffix `ending` in their names; returns their
    paths."""
    written, found = [], {path: read_predictions(path) for path in sorted(folder.glob("*.npz"))}
    is_one = len({arrays.get("checkpoint") for arrays in found.values()}) == 1
    for path, arrays in found.items():
        with drawing(path):
            written += _draw_file(arrays | {"checkpoint": ""} if is_one else arrays, path.stem, out, ending)
    kept = [arrays for path, arrays in found.items() if not path.stem.startswith("codes-")]
    if kept:
        with drawing(folder):
            written.append(plots.draw_heads(kept, out / f"heads{ending}.png"))
            examples = [arrays for arrays in kept if "originals" in arrays and arrays["clipwise"]]
            tasks = list(dict.fromkeys((arrays["task"], arrays.get("checkpoint")) for arrays in examples))[:1]
            if tasks:
                of_task = [arrays for arrays in examples if (arrays["task"], arrays.get("checkpoint")) in tasks]
                written.append(plots.draw_examples(of_task, out / f"examples{ending}.png"))
    return written


def _draw_file(arrays, stem, out, ending):
    """Draw the pictures of one predictions file; returns their paths."""
    name = stem + ending
    if stem.startswith("codes-"):
        return plots.draw_codes(arrays, out / f"{name}.png")
    if "top" in arrays:
        return [plots.draw_retrieval(arrays, out / f"{name}.png")]
    if "known" in arrays:
        return [plots.draw_open_set(arrays, out / f"open-{name}.png")]
    if arrays["target"] == "text":                      # there is only one prompt per class, so nothing to draw
        return []
    written = [plots.draw_classes(arrays, out / f"classes-{name}.png")]
    if arrays["source"] != "text":
        written.append(plots.draw_clips(arrays, out / f"clips-{name}.png"))
        if arrays["clipwise"]:
            written.append(plots.draw_confusion(arrays, out / f"confusion-{name}.png"))
        else:
            written.append(plots.draw_timelines(arrays, out / f"timelines-{name}.png"))
    return written


def main(argv=None):
    parser = Parser(prog="python -m cmg.report.pictures", description="Draw the pictures of a run from its files.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures, for example figs/demo")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    options = parser.parse_args(argv)
    for path in draw_run(options.folder, options.out):
        print(path)


if __name__ == "__main__":
    run(main)
