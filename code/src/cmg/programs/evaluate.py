"""Evaluate one or more checkpoints on all cross-modal tasks whose data exist: the papers' main table (Table 3).

Rows are checkpoints. With one checkpoint per epoch, a picture shows the metrics over the epochs, and the checkpoint is
printed that AVE's validation split would choose. Retrieval and directions with text are only in results.jsonl.
"""

from dataclasses import dataclass
from itertools import permutations

from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TaskEntry
from cmg.programs.downstream import measure, open_task, toc_choices
from cmg.report import tables
from cmg.results import rows as results
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output


@dataclass
class PlannedTask:
    """A task, and the variants to measure for each encoder."""

    entry: TaskEntry
    directions: list            # directions of all encoders, for which the data is opened
    variants: list              # result of toc.variants for each encoder, None if it has no direction of this task


def directions_of(entry, modalities, opts):
    """Ordered pairs of modalities that task and encoder have in common, video->audio first, as in the papers."""
    usable = [m for m in entry.usable(opts.data_path) if m in modalities and (m != "text" or not opts.no_text)]
    return list(permutations(usable, 2))


def plan(opts, encoders):
    """The PlannedTasks that can be measured. Tasks without data or directions are printed and skipped."""
    planned = []
    for entry in map(opts.entry, opts.tasks):
        first = opts.data_path(entry.required[0])
        if not first.exists():
            print(f"{entry.name}: skipped, there is no {first}")
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
        raise InputError(f"{opts.data_root}: data of none of the tasks {', '.join(opts.tasks)}; set --data_root or "
                         "--path")
    return planned


def main(opts):
    """Measure all checkpoints, print the table, and write it with its pictures."""
    encoders = [Pretrained.load(path, opts.device, opts.precision, opts.zero_code0) for path in opts.checkpoints]
    rows = []
    for work in plan(opts, encoders):
        if not work.directions:
            continue
        task, opened = None, None
        for pretrained, variants in zip(encoders, work.variants):
            if variants:
                config = pretrained.encoder.config
                if config.reading != opened:        # encoders of another T see other clips
                    task, opened = open_task(opts, work.entry, work.directions, config), config.reading
                rows += measure(opts, work.entry, task, pretrained, variants)
    if not rows:
        raise InputError(f"{', '.join(map(str, opts.checkpoints))}: no direction of the tasks {', '.join(opts.tasks)} "
                         "has both modalities; choose other tasks or checkpoints")
    shown = tables.pooled(rows) if opts.pool else rows
    folder = opts.results.parent
    for form, suffix in (("text", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_output(folder / f"table.{suffix}", "w", "choose another place with --results") as file:
            file.write(tables.paper_table(shown, form) + "\n")
    print(f"{results.summary(rows)}\n\n{tables.paper_table(shown)}")
    choice = tables.choose(shown)
    if choice and len(encoders) > 1:
        print(f"\nAVE's validation split would choose {choice.name} ({choice.validation:.1f} % on it)")
    from cmg.report import pictures as figures  # here, because --help needs no Matplotlib
    pictures = figures.draw_tables(shown, folder)
    written = [opts.results, *(folder / f"table.{suffix}" for suffix in ("txt", "md", "csv")), *pictures]
    print(f"\nwritten: {', '.join(map(str, written))}")
