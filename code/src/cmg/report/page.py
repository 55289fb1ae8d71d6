"""`report.html`: a self-contained page about one run, or several side by side, for any browser.

It is generated from the files of the runs. Everything from these files is escaped, and the page's content security
policy blocks all requests and all scripts except page.js.
"""

import base64
import hashlib
import io
import os
import time
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from PIL import Image

from cmg.report import pictures, tables
from cmg.report.run_files import read_runs
from cmg.report.style import DPI
from cmg.results import provenance
from cmg.results import rows as results
from cmg.systems.registry import SYSTEMS
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output, open_input

LARGEST_PAGE = 3_000_000        # bytes; pictures beyond this limit are omitted and listed
CSS_DPI = 96
PAGE, COLUMN = 1152, 563        # CSS pixels: contents of the page, and one of its two columns (page.html)
BROAD = 760                     # CSS pixels; wider pictures get a row of their own
OPEN = 4                        # pictures of a section that are not collapsed; a broad one counts as two
ROOM_FOR_TAGS = 100             # bytes around a picture
SHOWN_WARNINGS, SHOWN_PROBLEMS = 100, 50
SECTIONS = {                    # id -> (title, description)
    "what": ("Runs", ""),
    "results": ("Results", results.NOTES.replace("+-", "±")),
    "examples": ("Examples", "Test clips as a person sees or hears them, with predictions of a head trained on another "
                 "modality; correct and wrong ones are shown in their true proportion."),
    "losses": ("Losses", "Pretraining losses of every logged step, one color per modality."),
    "heads": ("Heads by epoch", "The metric that selects the best epoch, on the evaluation set."),
    "classes": ("Transfer by class", "Results per class of heads trained on the same modality and on another."),
    "confusion": ("Confusion", "Rows are the classes of the clips, columns the predictions of the heads."),
    "timelines": ("Timelines", "Clips with several events, second by second, from best to worst."),
    "clips": ("Clips", "Features of clips, with predictions of a head that was not trained on this modality."),
    "retrieval": ("Retrieval", "Queries and the sounds ranked first."),
    "open": ("Open set", "Confidence of known and unknown clips, and the rates at each threshold."),
    "codes": ("Code usage", "How many codes are used, and how many are shared by all modalities, during pretraining; "
              "and which modalities use which codes on the test clips."),
    "other": ("Other pictures", ""),
    "warnings": ("Warnings", "Warnings of the monitors during the runs."),
    "provenance": ("Provenance", "Hashes of the checkpoints and data lists behind the result lines, compared with the "
                   "current files."),
}
# by the first word of a picture's name
SECTION_OF = {"table": "results", "epochs": "results", "sharing": "codes", "optimization": "losses"}
HEADS = ("task", "tested on", "direction", "metric")
FEATURES = ("examples", "clips", "retrieval")       # sections whose pictures are not inverted in dark mode


@dataclass
class Section:
    """Contents of a section of the page."""

    html: list = field(default_factory=list)
    pictures: list = field(default_factory=list)        # (run's name, path)


@dataclass
class Measured:
    """Result lines of one measurement of one checkpoint, over its seeds."""

    run: str
    names: tuple                # of HEADS
    seeds: list
    columns: dict               # column -> values of the seeds
    is_main: bool               # whether this is the main metric of its task


def write(folders, out, drawn=None, pool=False):
    """Write the report of one or more runs.

    Args:
        folders: folders of the runs, searched recursively.
        out: path of the page.
        drawn: pictures of a single run, if already drawn by `pictures.draw_run`.
        pool: treat checkpoints with the same file name as seeds of one run.

    Returns:
        `out`.

    Raises:
        InputError: a folder contains no run, a file is damaged, or there are too many result lines for a page.
    """
    runs = read_runs(folders)
    with TemporaryDirectory() as scratch:
        drawn = [("", path) for path in drawn] if drawn else draw(runs, Path(scratch), pool)
        page = build(runs, drawn, pool)
    with atomic_output(out, "w", "choose another --out") as file:
        file.write(page)
    return Path(out)


def draw(runs, folder, pool):
    """Draw the pictures of all runs, as (name of the run, path). The results of several runs are drawn together."""
    found = []
    for number, run in enumerate(runs):
        drawn = pictures.draw_run(run.folder, folder / str(number))
        found += [(run.name if len(runs) > 1 else "", path) for path in drawn
                  if len(runs) == 1 or SECTION_OF.get(path.stem.split("-")[0]) != "results"]
    if len(runs) > 1:
        found += [("", path) for path in pictures.draw_tables(rows_of(runs, pool), folder / "all")]
    return found


def rows_of(runs, pool):
    """The result lines of all runs by name of the run, with each measurement once."""
    rows = list({results.identity(row): row for run in runs for row in tables.of_run(run.rows, run.name)}.values())
    return results.distinguish(tables.pooled(rows) if pool else rows)


def build(runs, drawn, pool=False):
    """The HTML of the page; `drawn` is the result of `draw`."""
    sections = {name: Section() for name in SECTIONS}
    rows = rows_of(runs, pool)
    measured = measure(rows)
    sections["what"].html = what(runs)
    sections["results"].html = [f"<p>{escape(tables.title(rows))}</p>"] * bool(tables.title(rows))
    sections["results"].html += [f'<p class="soft">{escape(note)}</p>' for note in [results.seen_note(rows)] if note]
    sections["results"].html += result_tables(measured)
    sections["warnings"].html = warnings(runs)
    sections["provenance"].html = sources(runs)
    for run, path in drawn:
        word = path.stem.split("-")[0]
        name = SECTION_OF.get(word, word if word in SECTIONS else "other")
        sections[name].pictures.append((run, path))
    sections = {name: section for name, section in sections.items() if section.html or section.pictures}
    names = list(dict.fromkeys(run.name for run in runs))
    title = ("Run " if len(names) == 1 else "Runs ") + ", ".join(names[:4]) + (" and more" if len(names) > 4 else "")
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def page(shown):
        return template.substitute(
            title=escape(title), subtitle=f"created {time.strftime('%Y-%m-%d %H:%M')} by python -m cmg.report",
            script=script, script_hash=f"sha256-{digest}",
            links="".join(f'<a href="#{name}">{SECTIONS[name][0]}</a>' for name in sections),
            sections="\n".join(_section(name, section, shown) for name, section in sections.items()))

    room = LARGEST_PAGE - ROOM_FOR_TAGS - len(page({}).encode())
    if room < 0:
        raise InputError(f"{', '.join(str(run.folder) for run in runs)}: {len(measured)} measurements do not fit on a "
                         f"page of {LARGEST_PAGE / 1e6:.0f} MB; pass fewer runs")
    return page(_embedded(sections, room))


def _embedded(sections, room):
    """path -> `Embedded` for as many pictures as fit: the first of every section, then the second, and so on."""
    waiting, shown = [list(section.pictures) for section in sections.values()], {}
    while any(waiting):
        for of_section in filter(None, waiting):
            _, path = of_section.pop(0)
            image = _image(path)
            if len(image.html) <= room:
                shown[path] = image
                room -= len(image.html) + ROOM_FOR_TAGS
    return shown


@dataclass
class Embedded:
    """A picture as an <img> with embedded data; `kind` is the CSS class of pictures that fill a row."""

    html: str
    kind: str


def _image(path):
    """The `Embedded` of a file."""
    data = io.BytesIO()
    try:
        with open_input(path) as file, Image.open(file) as image:
            size = [side * CSS_DPI / DPI for side in image.size]
            is_broad = size[0] > BROAD
            scale = min(1, (PAGE if is_broad else COLUMN) / size[0])
            image.convert("RGB").save(data, "WEBP", lossless=True, quality=60)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a complete picture ({str(error)[:80]}); draw it again with python -m "
                         "cmg.report.pictures") from error
    width, height = (int(side * scale) for side in size)
    return Embedded(f'<img width="{width}" height="{height}" loading="lazy" alt="{escape(path.stem)}" '
                    f'src="data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}">',
                    " broad" if is_broad else "")


def _section(name, section, shown):
    """HTML of one section, with the pictures in `shown`."""
    title, about = SECTIONS[name]
    parts = [f'<section id="{name}"><h2>{title}</h2>']
    parts += [f'<p class="soft">{escape(about)}</p>'] if about else []
    parts += section.html
    for run in dict.fromkeys(run for run, _ in section.pictures):
        of_run = [path for other, path in section.pictures if other == run]
        parts += [f"<h3>{escape(run)}</h3>"] if run else []
        fits = [path for path in of_run if path in shown]
        taken = list(accumulate(2 if shown[path].kind else 1 for path in fits))
        count = max(1, sum(spaces <= OPEN for spaces in taken))
        parts.append(_grid(fits[:count], name, shown))
        if fits[count:]:
            parts.append(f"<details><summary>{len(fits) - count} more: "
                         f"{escape(', '.join(path.stem for path in fits[count:]))}</summary>"
                         f"{_grid(fits[count:], name, shown)}</details>")
        left = [path.stem for path in of_run if path not in shown]
        if left:
            parts.append(f'<p class="soft">Omitted to keep the page small: {escape(", ".join(left))}; python -m '
                         "cmg.report.pictures draws them.</p>")
    return "\n".join([*parts, "</section>"])


def _grid(paths, section, shown):
    """HTML of the pictures of one section, in two columns if they are narrow."""
    kind = "features" if section in FEATURES else "drawn"
    return ('<div class="grid">' + "".join(f'<figure class="{kind}{shown[path].kind}">{shown[path].html}</figure>'
                                           for path in paths) + "</div>")


# --------------------------------------------------------------------------------------------------------- the results
def measure(rows):
    """`Measured` of result lines, in their order; controls become separate columns."""
    short, groups = tables.names(rows), {}
    for row in rows:
        names = (row["task"], results.tested_on(row), row["direction"].replace("->", " → "), row["metric"]
                 + (" (released)" if row["protocol"] == "released" else ""))
        groups.setdefault((names, tables.row_key(row)), []).append(row)
    found = []
    for (names, key), group in groups.items():
        picked = {selection: [row for row in group if row["selection"] == selection and not row["control"]]
                  for selection in results.SELECTIONS}
        reference = picked["last"] or picked["best"]
        columns = {selection: [row["value"] for row in of] for selection, of in picked.items()}
        columns["validation"] = [row.get("value_at_validation") for row in reference]
        columns["same modality"] = [row["same_modality"] for row in reference]
        for row in group:
            if row["control"] and row["selection"] == "last":
                columns.setdefault(row["control"], []).append(row["value"])
        columns["chance"] = [results.mean_std([row["chance"] for row in reference])[0]]
        task, data, direction, metric = names
        names = task, data, direction + results.SEEN_MARK * any(map(results.is_seen, group)), metric
        found.append(Measured(short[key], names, [row["seed"] for row in reference], columns,
                              group[0]["metric"] == tables.main_metric(group[0]["task"], rows)))
    return found


def result_tables(measured):
    """Tables of the main metrics, side by side if there are several runs, and of all metrics."""
    if not measured:
        return []
    runs = list(dict.fromkeys(m.run for m in measured))
    columns = list(dict.fromkeys(column for m in measured for column, values in m.columns.items()
                                 if results.mean_std(values)[0] is not None))
    columns.sort(key=lambda column: column == "chance")                 # chance last
    main = [m for m in measured if m.is_main]
    first = _all_columns(main, runs, columns) if len(runs) == 1 else _side_by_side(main, runs)
    return [first, "<details><summary>All metrics" + " and columns of every run" * (len(runs) > 1) + "</summary>",
            _all_columns(measured, runs, columns), "</details>"]


def _all_columns(measured, runs, columns):
    """Table with one row per measurement and run."""
    rows = [[*m.names, *([m.run] if len(runs) > 1 else []), *(_values(m.columns.get(c, [])) for c in columns),
             " ".join(map(str, m.seeds))] for m in measured]
    return _sortable([*HEADS, *(["run"] if len(runs) > 1 else [])], columns, rows, ["seeds"])


def _side_by_side(measured, runs):
    """Table with one row per measurement and one column per run: values after the last epoch, and differences from the
    first run."""
    of_names = {}
    for m in measured:
        of_names.setdefault(m.names, {})[m.run] = m.columns["last"] or m.columns["best"]
    rows = []
    for names, of_runs in of_names.items():
        first = results.mean_std(of_runs.get(runs[0], []))[0]
        cells = [_values(of_runs.get(runs[0], []))]
        for run in runs[1:]:
            mean = results.mean_std(of_runs.get(run, []))[0]
            cells += [_values(of_runs.get(run, [])),
                      _number("" if None in (mean, first) else f"{mean - first:+.1f}",
                              None if None in (mean, first) else mean - first)]
        rows.append([*names, *cells])
    columns = [runs[0]]
    for run in runs[1:]:
        columns += [run, "diff."]
    return ('<p class="soft">After the last epoch, with several seeds: mean ± standard deviation; differences to '
            f"{escape(runs[0])}.</p>" + _sortable(HEADS, columns, rows))


class Number(str):
    """HTML of a table cell that sorts by a number."""


def _values(values):
    """Cell with the mean of some values."""
    mean, _ = results.mean_std(values)
    return _number(results.show(values).replace("+-", "±"), mean)


def _number(text, value):
    return Number(f'<td class="n" data-value="{"" if value is None else f"{value:.6g}"}">{escape(text)}</td>')


def _sortable(texts, numbers, rows, more=()):
    """A table that can be sorted by clicking its headers. Cells are texts or `Number`s."""
    kinds = ["dataset" if name == "tested on" else "t" for name in texts] + ["n"] * len(numbers) + ["t"] * len(more)
    head = "".join(f'<th class="{kind}"><button>{escape(str(name))}</button></th>'
                   for name, kind in zip([*texts, *numbers, *more], kinds))
    body = "".join("<tr>" + "".join(c if isinstance(c, Number) else f'<td class="{kind}">{escape(c)}</td>'
                                    for c, kind in zip(row, kinds)) + "</tr>\n" for row in rows)
    return (f'<div class="wide"><table class="figures"><thead><tr>{head}</tr></thead><tbody>\n'
            f'{body}</tbody></table></div>')


# ------------------------------------------------------------------------------------------------ what, warnings, files
def what(runs):
    """Table of facts with one column per pretraining run; runs without pretraining show those of their records."""
    columns = {}
    for run in runs:
        for pretraining in run.pretrainings:
            inside = "" if len(run.pretrainings) == 1 else f"/{pretraining.folder.relative_to(run.folder).as_posix()}"
            columns[run.name + inside.removesuffix("/.")] = _facts(pretraining)
        if not run.pretrainings and run.records:
            columns[run.name] = _machine(run.records[0][1])
    names = list(dict.fromkeys(name for facts in columns.values() for name in facts))
    rows = "".join(f"<tr><th>{name}</th>" + "".join(f"<td>{escape(facts.get(name, ''))}</td>" for facts in
                                                  columns.values()) + "</tr>" for name in names)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    parts = [f'<div class="wide"><table class="facts"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>'
             "</table></div>"] if columns else []
    for run in runs:
        for pretraining in run.pretrainings:
            text = ", ".join(f"{name} {value}" for name, value in sorted(pretraining.options.items()))
            if text:
                parts.append(f"<details><summary>All options of {escape(str(pretraining.folder))}</summary>"
                             f"<p><code>{escape(text[:20000])}</code></p></details>")
    return parts


def _facts(pretraining):
    """Facts of a pretraining run, name -> text."""
    options, lines, record = pretraining.options, pretraining.lines, pretraining.record
    system = SYSTEMS.get(str(options.get("system")))
    facts = {}
    if system:
        without = options.get("without")
        facts["system"] = system.label + (f" without {_joined(without)}" if without else "")
    facts["modalities"] = _joined(options.get("modalities", ""))
    clips, read = record.get("clips"), [found["path"] for found in record.get("data", {}).values()]
    clips = clips if isinstance(clips, dict) else {}
    data = results.pretrained_on(clips.get("origin"), str(options.get("dataset_name", "")))
    facts["data"] = ", ".join(filter(None, [data, f"{clips['number']} clips" if "number" in clips else "",
                                            _common_folder(read)]))
    facts["seed"] = str(options.get("seed", ""))
    facts["codes"] = str(options.get("n_embeddings", ""))
    if lines:
        facts["length"] = (f"{lines[-1]['epoch'] + 1} epochs, {lines[-1]['step']} steps of "
                           f"{options.get('batch_size', '?')} clips")
    if pretraining.began:
        facts["time"] = f"{pretraining.began} to {pretraining.ended}"
    speeds = sorted(line["clips_per_second"] for line in lines
                    if isinstance(line.get("clips_per_second"), (int, float)))
    if speeds:
        facts["speed"] = f"{speeds[len(speeds) // 2]:.0f} clips a second (median)"
    if "precision" in options:
        facts["precision"] = str(options["precision"])
    return {name: text for name, text in facts.items() if text} | (_machine(record) if record else {})


def _common_folder(paths):
    """The innermost folder that contains all files a run has read; empty if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:          # no paths, or different drives
        return ""


def _machine(record):
    """Facts of a provenance record."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return {"commit": str(record.get("commit", "")) + (", files changed since" if record.get("changed_since_commit")
                                                       else ""),
            "machine": f"{record.get('device', '')}, {record.get('threads', '?')} threads", "versions": versions}


def _joined(value):
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def warnings(runs):
    """List of distinct warnings."""
    found = {}
    for run in runs:
        for folder, line in run.warnings:
            found.setdefault((run.name, folder, line["message"]), []).append(line)
    if not found:
        return ["<p>None.</p>"]
    items = [f'<li><strong>{escape(run)}</strong> {escape(lines[0]["time"])}'
             f'{f" ({len(lines)} times)" * (len(lines) > 1)}: {escape(message[:2000])}</li>'
             for (run, _, message), lines in list(found.items())[:SHOWN_WARNINGS]]
    more = len(found) - SHOWN_WARNINGS
    return ["<ul>", *items, "</ul>"] + ([f"<p>And {more} more in warnings.jsonl.</p>"] if more > 0 else [])


def sources(runs):
    """Checkpoints and data files of the result lines, and whether they have changed since."""
    checked = [found for run in runs for folder, rows in run.results
               for found in provenance.verify(rows, folder, full=False)]
    if not checked:
        return []
    good, problems = sum(not found for _, found in checked), {}
    for _, found in checked:
        for problem in found:
            problems[problem] = problems.get(problem, 0) + 1
    kind = "good" if good == len(checked) else "bad"
    parts = [f'<p class="{kind}">{good} of {len(checked)} result lines match their files.</p>']
    if problems:
        parts += ["<ul>", *(f"<li>{escape(problem)} ({count} lines)</li>"
                            for problem, count in list(problems.items())[:SHOWN_PROBLEMS]), "</ul>"]
    paths = {(row["checkpoint"], row["checkpoint_sha256"]): row for row, _ in checked if row["checkpoint"]}
    parts.append(_files("checkpoint", [(path, sha, f"{row['seconds']} s, commit {row['commit']}")
                                       for (path, sha), row in paths.items()], "first measurement"))
    files = {(found["path"], str(found.get("sha256", "")) or f"{found.get('bytes', '?')} bytes"): name
             for run in runs for _, record in [*run.records, *(("", p.record) for p in run.pretrainings if p.record)]
             for name, found in record["data"].items()}
    parts += ["<details><summary>Data files</summary>",
              _files("file", [(path, sha, name) for (path, sha), name in sorted(files.items())], "name"), "</details>"]
    return parts


def _files(title, rows, more):
    body = "".join(f"<tr><td>{escape(str(path))}</td><td><code>{escape(str(sha))}</code></td>"
                   f"<td>{escape(str(text))}</td></tr>" for path, sha, text in rows)
    return (f'<div class="wide"><table class="files"><thead><tr><th>{title}</th><th>SHA-256</th><th>{more}</th></tr>'
            f"</thead><tbody>{body}</tbody></table></div>")
