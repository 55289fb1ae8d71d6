"""What is there of a dataset, what is wrong with it, and whether a run would work: `prepare.py check`."""

import logging
import textwrap
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from dataset.annotation_csv import class_indices, first_rows, read_classes, read_header, read_table
from dataset.ave import AVE
from dataset.ave_avvp import AVEShared, AVVPShared
from dataset.avvp import AVVP
from dataset.features import check_clip, open_features
from dataset.labels import clip_class
from dataset.text import TextFeatures
from dataset.ucf_vggsound import UCFVGGSound
from dataset.vggsound import VGGSound
from errors import InputError

SHOWN = 5                       # ids and reasons named in a report
EARLY_UPLOAD = range(18_000, 22_000)    # rows of a 40k list that was cut (warned of by the authors)
SOURCES = {
    "vggsound": "the CMG data package (github.com/haihuangcode/CMG), folder vggsound40k; see data/README.md",
    "ave": "AVE_Dataset features of github.com/YapengTian/AVE-ECCV18, folder AVE; lists: prepare.py lists",
    "avvp": "the CMG data package, folder AVVP; lists from github.com/YapengTian/AVVP-ECCV20 by prepare.py lists",
    "ave_avvp": "the CMG data package, folder AVE_AVVP; or prepare.py lists from AVE's and AVVP's annotations",
    "ucf_vggsound": "the CMG data package, folder UCF101; VGGSound audio from vggsound40k",
    "avs": "AVSBench, github.com/OpenNLPLab/AVSBench (on request), folder AVSBench; audio from the CMG data package",
}

NEEDED = {                      # places that a run opens, besides VGGSound's modalities
    "vggsound": ("csv",), "ave": ("audio", "video", "label", "train", "val", "test"),
    "avvp": ("categories", "audio_csv", "visual_csv", "audio", "video"),
    "ave_avvp": ("categories", "label", "order", "audio_csv", "visual_csv", "ave_audio", "ave_video", "avvp_audio",
                 "avvp_video"),
    "ucf_vggsound": ("ucf_csv", "vggsound_csv", "ucf_categories", "vggsound_categories", "audio", "video"),
    "avs": ("csv", "frames", "masks", "audio"),
}


@dataclass
class Report:
    """Findings on one dataset. `lines` describe it, `warnings` are worth knowing, `problems` would stop a run."""

    name: str
    lines: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    def __str__(self):
        rows = [self.name] + [f"  {line}" for line in self.lines]
        rows += [f"  warning: {line}" for line in self.warnings] + [f"  PROBLEM: {line}" for line in self.problems]
        return "\n".join(rows + ["  ok: a run would work" if not self.problems else "  not ready"])


def check(name, source, paths, modalities=("audio", "video")):
    """Read everything a dataset has and report on it.

    Args:
        name: of the report, e.g. "vggsound_AVT".
        source: key of `SOURCES`.
        paths: the dataset's places.
        modalities: for VGGSound and AVE.
    Returns:
        `Report`; it takes as long as reading all features once (progress bars).
    """
    report = Report(name)
    with _kept_warnings(report):
        for title, build in _parts(source, paths, modalities):
            try:
                build(report, title)
            except InputError as error:
                if not any(str(error) in problem for problem in report.problems):
                    report.problems.append(f"{title}: {error}")
    if report.problems:
        needed = NEEDED[source] + (tuple(modalities) if source == "vggsound" else ())
        report.lines += [f"absent: {paths[key]}" for key in needed if not paths[key].exists()]
        report.lines.append(f"get it from: {SOURCES[source]}")
    return report


def _parts(source, paths, modalities):
    """(title, function (report, title)) for each part of a dataset."""
    def clips(title, make):
        return title, lambda report, title: describe(report, title, make())
    read = {"on_bad_clip": "skip"}
    if source == "avs":
        return [("S4", lambda report, title: _check_avs(report, title, paths))]
    if source == "ave":
        return [clips(split, lambda split=split: AVE(paths, modalities, split, **read))
                for split in ("train", "val", "test")]
    if source == "avvp":
        return [clips(m, lambda m=m: AVVP(paths, m, **read)) for m in ("audio", "video")]
    if source == "ave_avvp":
        return [clips(f"{side} {m}", lambda make=make, m=m: make(paths, m, **read))
                for side, make in (("AVE", AVEShared), ("AVVP", AVVPShared)) for m in ("audio", "video")]
    if source == "ucf_vggsound":
        return [clips(m, lambda m=m: UCFVGGSound(paths, (m,), **read)) for m in ("audio", "video")]
    parts = [("list", lambda report, title: _check_list(report, paths["csv"], paths["categories"]))]
    return parts + [clips("clips", lambda: VGGSound(paths, modalities, **read))]


def describe(report, title, clips):
    """Add rows, features, classes and bad clips of a dataset that was read with on_bad_clip="skip"."""
    report.lines.append(f"{title}: {len(clips) + len(clips.skipped):,} clips, {len(clips):,} with good "
                        f"{', '.join(clips.modalities)}" + (f"; V = {clips.video_dim}" if clips.video_dim else ""))
    missing = clips.missing
    bad = [reason for key, reason in clips.skipped.items() if key not in set(missing)]
    if missing:
        report.problems.append(f"{title}: {len(missing):,} clips have no feature file: {', '.join(missing[:SHOWN])}"
                               f"{', ...' if len(missing) > SHOWN else ''}; get them, or run with --on_bad_clip skip")
    report.problems += [f"{title}: {reason}" for reason in bad[:SHOWN]]
    if len(bad) > SHOWN:
        report.problems.append(f"{title}: and {len(bad) - SHOWN:,} more bad clips")
    if clips.labels is not None:
        present = clips.labels[..., :-1].any(1).sum(0)                      # clips with each class
        report.lines.append(_counts(title, dict(zip(clips.classes, present.astype(int)))))
        empty = int((~clips.labels[..., :-1].any((1, 2))).sum())
        if empty:
            report.warnings.append(f"{title}: {empty} clips have no foreground second")
        if len(np.unique(clip_class(clips.labels))) < 2:
            report.warnings.append(f"{title}: all clips have the same class")
    elif getattr(clips, "categories", None):
        report.lines.append(_counts(title, Counter(clips.categories)))


def _counts(title, counts):
    numbers = sorted(counts.values())
    table = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    absent = sum(n == 0 for n in numbers)
    spread = f"{numbers[0]} to {numbers[-1]} clips each, median {numbers[len(numbers) // 2]}"
    head = (f"{title}: {len(counts)} classes{f' ({absent} without clips)' if absent else ''}, "
            f"{spread if numbers[0] < numbers[-1] else f'{numbers[0]} clips each'}:")
    return head + "\n" + textwrap.fill(table, 110, initial_indent="      ", subsequent_indent="      ")


def _check_list(report, path, categories):
    """Rows of the VGGSound list, its classes against the class list where there is one, whether it was cut."""
    bare = "id" in read_header(path) and "video_id" not in read_header(path)
    table = read_table(path, ("id",) if bare else ("category", "video_id", "split"))
    rows = len(next(iter(table.values())))
    splits = ", ".join(f"{name} {n:,}" for name, n in sorted(Counter(table.get("split", [])).items()))
    report.lines.append(f"{path}: {rows:,} rows{f' ({splits})' if splits else ''}")
    if not bare and categories.exists():
        try:
            class_indices(path, table["category"], read_classes(categories), categories)
        except InputError as error:         # only runs with segment labels or prompts need the classes
            report.warnings.append(str(error))
    if rows in EARLY_UPLOAD:
        report.warnings.append(f"{path}: {rows:,} rows; the full 40k list has 40,801; an early upload of the data "
                               "package was cut to 20k: get the current one")


def check_text(report, path):
    """Add what a text feature file is, or the problem with it."""
    try:
        text = TextFeatures(path)
    except InputError as error:
        report.problems.append(f"text: {error}")
        return
    words = "every word" if text.text_vocabulary == "all" else "words of the word list (cnt.pkl)"
    report.lines.append(f"text: {len(text.labels)} prompts by {text.backend}, {words}")
    silent = [label for label, x in zip(text.labels, text.vectors) if not x.any()]
    if silent:
        report.warnings.append(f"text: {len(silent)} prompts keep no word and are zeros: {', '.join(silent[:SHOWN])}")


def _check_avs(report, title, paths):
    """AVSBench-S4: list, frames, masks and audio of every clip."""
    table = read_table(paths["csv"], ("name", "category", "split"))
    rows = first_rows(paths["csv"], table["name"], "skip")
    clips = [(table["split"][k], table["category"][k], table["name"][k]) for k in rows]
    splits = Counter(split for split, _, _ in clips)
    report.lines.append(f"{paths['csv']}: {len(clips):,} clips ("
                        + ", ".join(f"{split} {n:,}" for split, n in sorted(splits.items())) + ")")
    report.lines.append(_counts(title, Counter(category for _, category, _ in clips)))
    absent = {"frames": [], "masks": [], "audio": []}
    stores, bad = {}, []
    for split, category, name in clips:
        masks = 1 if split == "train" else 5
        for kind, count in (("frames", 5), ("masks", masks)):
            folder = paths[kind] / split / category / name
            if not all((folder / f"{name}_{k}.png").exists() for k in range(1, count + 1)):
                absent[kind].append(name)
        place = paths["audio"] / split / "zip" / category
        if place not in stores:
            stores[place] = open_features(place, "audio", 5) if place.is_dir() else None
        store = stores[place]
        if store is None or store.missing([name]):
            absent["audio"].append(name)
            continue
        try:
            check_clip(store.read(name), store.tail, 5, name)
        except InputError as error:
            bad.append(str(error))
    for kind, names in absent.items():
        if names:
            report.problems.append(f"{title}: {len(names):,} clips lack {kind}: {', '.join(names[:SHOWN])}"
                                   f"{', ...' if len(names) > SHOWN else ''}; get them below {paths[kind]}")
    report.problems += [f"{title}: {reason}" for reason in bad[:SHOWN]]


@contextmanager
def _kept_warnings(report):
    """Warnings of the loaders go into the report; the lists of skipped clips are there already."""
    class Keep(logging.Handler):
        def emit(self, record):
            if "are left out" not in record.msg:
                skipping = "--on_bad_clip skip" in record.msg       # without that flag it stops a run
                (report.problems if skipping else report.warnings).append(record.getMessage())
    logger, handler = logging.getLogger("dataset"), Keep(logging.WARNING)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
