"""One or more checkpoints on every cross-modal task that the data allows: the papers' main table (Table 3).

Rows are checkpoints; with one an epoch, the picture shows the figures over epochs, and the checkpoint is named that
AVE's validation split would choose. Retrieval and directions with text stand in the long table (results.jsonl).
"""

from itertools import permutations

import ave
import ave_avvp
import avvp
import retrieval
import ucf_vggsound
from atomic_write import whole_file
from configs.opts import parse_evaluate
from engine import figures, results
from engine.report import tables
from engine.transfer import run_task, toc_variants
from engine.transfer.retrieval import evaluate as evaluate_retrieval
from errors import InputError, run

TASKS = {                        # task -> how its data is built and measured, a file without which there is none
    "ave": (ave.build, run_task.evaluate, "ave.label"),
    "avvp": (avvp.build, run_task.evaluate, "avvp.audio_csv"),
    "ave_avvp": (ave_avvp.build, run_task.evaluate, "ave_avvp.audio_csv"),
    "ucf_vggsound": (ucf_vggsound.build, run_task.evaluate, "ucf_vggsound.ucf_csv"),
    "retrieval": (retrieval.build, evaluate_retrieval, "vggsound.csv"),
}
PROMPTS = {"ave": "ave.text", "ucf_vggsound": "ucf_vggsound.text", "retrieval": "vggsound.text"}


def directions(task, modalities, opts):
    """Ordered pairs of modalities that a task and an encoder have in common; video->audio first, as in the papers."""
    has_text = task in PROMPTS and not opts.no_text and opts.place(PROMPTS[task]).exists()
    usable = [m for m in ("video", "audio", "text") if m in modalities and (m != "text" or has_text)]
    if task == "retrieval":                     # always to audio: the two kinds of queries are video and text
        usable = [m for m in usable if m != "audio"]
    return list(permutations(usable, 2))


def main(argv=None):
    opts = parse_evaluate(argv)
    encoders = [run_task.load(opts, path) for path in opts.checkpoints]
    present = []
    for task in opts.tasks:
        place = opts.place(TASKS[task][2])
        if place.exists():
            present.append(task)
        else:
            print(f"{task}: left out, there is no {place}")
    if not present:
        raise InputError(f"{opts.data_root}: data of none of the tasks {', '.join(opts.tasks)}; set --data_root or "
                         "--path")
    asked = {task: [directions(task, pretrained.encoder.config.modalities, opts) for pretrained in encoders]
             for task in present}
    for task, wanted in asked.items():                      # TOC's settings are refused before any work
        for pretrained, pairs in zip(encoders, wanted):
            if pairs:
                toc_variants.variants(opts.for_task(task, pairs), task, pretrained.encoder.config)
    rows = []
    for task, wanted in asked.items():
        build, evaluate, _ = TASKS[task]
        if any(wanted):
            data = build(opts.for_task(task, list(dict.fromkeys(sum(wanted, [])))))
        for pretrained, pairs in zip(encoders, wanted):
            if pairs:
                rows += evaluate(data, pretrained, opts.for_task(task, pairs))
            else:
                print(f"{task}: left out for {pretrained.path}, pretrained on "
                      f"{', '.join(pretrained.encoder.config.modalities)}")
    shown = tables.pooled(rows) if opts.pool else rows
    folder = opts.results.parent
    for form, suffix in (("text", "txt"), ("markdown", "md"), ("csv", "csv")):
        with whole_file(folder / f"table.{suffix}", "w") as file:
            file.write(tables.paper_table(shown, form) + "\n")
    print(f"{results.summary(rows)}\n\n{tables.paper_table(shown)}")
    choice = tables.choose(shown)
    if choice and len(encoders) > 1:
        print(f"\nAVE's validation split would choose {choice.name} ({choice.validation:.1f} % on it)")
    pictures = figures.draw_tables(shown, folder)
    written = [opts.results, *(folder / f"table.{suffix}" for suffix in ("txt", "md", "csv")), *pictures]
    print(f"\nwritten: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run(main)
