"""Evaluate one or more checkpoints on all cross-modal tasks whose data exist: the papers' main table (Table 3).

For one checkpoint, this prints a line per direction. For several, it prints a line per checkpoint and the best choice
by validation clips and by the papers' rule, and draws the metrics over the epochs. The complete table is in table.txt;
retrieval and directions with text are only in results.jsonl.
"""

import json
import logging
import time
from dataclasses import dataclass
from itertools import permutations

from tqdm import tqdm

from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TaskEntry
from cmg.programs.downstream import measure, open_task, toc_choices
from cmg.report import screen, tables
from cmg.results import rows as results
from cmg.training.run_logger import kept_warnings
from cmg.utils import console
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output

log = logging.getLogger(__name__)


@dataclass
class PlannedTask:
    """A task and the variants to measure for each encoder."""

    entry: TaskEntry
    directions: list            # directions of all encoders, for which the data is opened
    variants: list              # result of toc.variants for each encoder, None if it has no direction of this task


def directions_of(entry, modalities, opts):
    """Ordered pairs of modalities shared by task and encoder, video->audio first, as in the papers."""
    usable = [m for m in entry.usable(opts.data_path) if m in modalities and (m != "text" or not opts.no_text)]
    return list(permutations(usable, 2))


def plan(opts, encoders):
    """The PlannedTasks that can be measured. Tasks without data or directions are printed and skipped."""
    planned = []
    for entry in map(opts.entry, opts.tasks):
        first = opts.data_path(entry.required[0])
        if not first.exists():
            print(f"{entry.name}: skipped, {first} does not exist")
            continue
        wanted = [directions_of(entry, pretrained.encoder.config.modalities, opts) for pretrained in encoders]
        variants = [toc_choices(opts, entry, pairs, pretrained) if pairs else None
                    for pretrained, pairs in zip(encoders, wanted)]
        for pretrained, pairs in zip(encoders, wanted):
            if not pairs:
                print(f"{entry.name}: skipped for {pretrained.path}, pretrained on "
                      f"{', '.join(pretrained.encoder.config.modalities)}")
        planned.append(PlannedTask(entry, list(dict.fromkeys(sum(wanted, []))), variants))
    if not planned:
        raise InputError(f"{opts.data_root}: no data for any of the tasks {', '.join(opts.tasks)}; set --data_root or "
                         "--path")
    return planned


def runs_of(encoders):
    """A line for each folder with checkpoints of several pretraining runs, with the runs and their differences."""
    lines, folders = [], {}
    for pretrained in encoders:
        run = json.dumps(pretrained.encoder.pretraining, sort_keys=True, default=str)
        folders.setdefault(pretrained.path.parent, {}).setdefault(run, []).append(pretrained)
    for folder, runs in folders.items():
        options = [members[0].encoder.pretraining.get("options", {}) for members in runs.values()]
        differ = [name for name in {**options[0], **options[-1]} if len({str(of.get(name)) for of in options}) > 1]
        named = [f"{', '.join(one.path.name for one in members)}"
                 + f" ({', '.join(f'{name} {of.get(name)}' for name in differ) or 'other clips'})"
                 for members, of in zip(runs.values(), options)]
        if len(runs) > 1:
            lines.append(f"{folder}: checkpoints of {len(runs)} runs, not epochs of one run: {'; '.join(named)}")
    return lines


def measure_all(opts, encoders):
    """Measure all tasks, printing a line of progress for each; returns the result lines."""
    rows, began = [], time.monotonic()
    planned = [work for work in plan(opts, encoders) if work.directions]
    for number, work in enumerate(planned):
        left = (time.monotonic() - began) / number * (len(planned) - number) if number else None
        print(f"{number + 1}/{len(planned)}  {work.entry.label}: {len(work.directions)} directions"
              + ("" if left is None else f", about {tqdm.format_interval(left)} left"), flush=True)
        task, opened = None, None
        for pretrained, variants in zip(encoders, work.variants):
            if variants:
                config = pretrained.encoder.config
                if config.reading != opened:        # encoders with another T read the clips differently
                    task, opened = open_task(opts, work.entry, work.directions, config), config.reading
                rows += measure(opts, work.entry, task, pretrained, variants)
    return rows


def main(opts):
    """Run evaluate.py with parsed options."""
    with kept_warnings(opts.results.parent):
        written = evaluate(opts)
    print(f"\nwritten: {', '.join(written)}")


def evaluate(opts):
    """Measure and print; returns descriptions of the files written."""
    found = [Pretrained.load(path, opts.device, opts.precision, opts.zero_code0) for path in opts.checkpoints]
    encoders = list({pretrained.sha256: pretrained for pretrained in found[::-1]}.values())[::-1]
    for line in runs_of(encoders) + [f"{len(found) - len(encoders)} of the checkpoints are copies of others and are "
                                     "measured only once"] * (len(encoders) < len(found)):
        log.warning("warning: %s", line)
    rows = measure_all(opts, encoders)
    if not rows:
        raise InputError(f"{', '.join(map(str, opts.checkpoints))}: no direction of the tasks {', '.join(opts.tasks)} "
                         "has both modalities; choose other tasks or checkpoints")
    shown = tables.pooled(rows) if opts.pool else rows
    folder = opts.results.parent
    choice = f"\n{screen.choice(shown)}\n" if len(encoders) > 1 else ""
    for form, suffix in (("text", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_output(folder / f"table.{suffix}", "w", "choose another path with --results") as file:
            file.write(tables.paper_table(shown, form) + "\n" + (choice if form != "csv" else ""))
    if opts.verbose:
        print(f"\n{results.summary(rows)}\n\n{tables.paper_table(shown)}")
    else:
        print(f"\n{screen.table(shown, console.width())}")
    if choice:
        print(f"\n{console.fill(choice.strip())}")
    for pretrained in encoders:
        pretrained.conclude(f"{pretrained.path.name}: " if len(encoders) > 1 else "")
    from cmg.report import pictures as figures  # here, because --help needs no Matplotlib
    pictures = figures.draw_tables(shown, folder)
    return [str(opts.results), "table.txt, .md, .csv", *(path.name for path in pictures)]
