"""Dataset validation for `prepare.py check`: find missing and invalid data, and tell whether a run would work."""

import logging
import textwrap
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cmg.data import origins
from cmg.data.csv import class_indices, read_classes, read_header, read_table
from cmg.data.labels import clip_class
from cmg.data.manifest import CUSTOM, SPLITS, Manifest
from cmg.data.sets.avs_s4 import S4
from cmg.data.sets.avs_s4 import SPLITS as S4_SPLITS
from cmg.data.sets.known_lists import warn_of_cut
from cmg.data.text import TextFeatures, read_prompts
from cmg.models.config import MIN_SECONDS
from cmg.prepare import prompts as prompt_values
from cmg.prepare import values
from cmg.utils import console
from cmg.utils.errors import InputError

SHOWN = 5                       # ids and reasons named in a report


class Unfit(NamedTuple):
    """A part whose clips are all shorter or all longer than T in a modality."""

    title: str
    modality: str
    ids: list
    own: np.ndarray             # their lengths in seconds


@dataclass
class Report:
    """Findings on one dataset. `lines` describe it, `warnings` may matter, `problems` would stop a run."""

    name: str
    lines: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    left_out: list = field(default_factory=list)        # aspects that were not checked
    parts: list = field(default_factory=list)           # cmg.prepare.values.Part of the clips that were read
    unfit: dict = field(default_factory=dict)           # ("padded" or "cut", T) -> `Unfit` parts

    def problem(self, title, text):
        """Add a problem unless another step has already found it."""
        if not any(text in known for known in self.problems):
            self.problems.append(f"{title}: {text}")

    def add(self, found):
        """Add the findings about values (cmg.prepare.values.Found)."""
        self.lines += found.lines
        self.warnings += found.warnings
        self.left_out += found.left_out

    def __str__(self):
        rows = [self.name] + [f"  {line}" for line in self.lines]
        rows += [f"  warning: {line}" for line in self.warnings] + [f"  PROBLEM: {line}" for line in self.problems]
        rows += [f"  not checked: {'; '.join(dict.fromkeys(self.left_out))}"] if self.left_out else []
        return "\n".join(rows + ["  ok: a run would work" if not self.problems else "  not ready"])


def check(name, paths, source, steps):
    """Read everything that a run reads, and report on the files and their values.

    Args:
        name: name of the report, e.g. "vggsound_AVT".
        paths: dotted name -> Path of the files and folders that a run opens.
        source: where to download them.
        steps: list of (title, function (report, title)); see `clips` for those that open clips like a run.
    Returns:
        `Report`; takes as long as reading all features once (with progress bars).
    """
    report = Report(name, left_out=["whether a clip's features come from the same recording"])
    absent = {dotted: path for dotted, path in paths.items() if not path.exists()}
    for dotted, path in absent.items():
        family, short = dotted.split(".")
        make = f"create it with `python prepare.py text --dataset {family}`"
        flag = f"--path {dotted}=FILE"
        if family == CUSTOM:
            make = f"create it with `python prepare.py text --manifest {paths[f'{CUSTOM}.manifest']}`"
            flag = "--manifest CSV" if short == "manifest" else f"--features {short}=PATH"
        report.problem(f"{dotted} is missing", f"{path}; {make if short == 'text' else 'download it'}, or set its path "
                       f"with {flag}")
    for dotted, path in paths.items():
        report.warnings += [f"{dotted}: {note}" for note in origins.notes(path, dotted.split(".")[1])]
    with _kept_warnings(report):
        for title, step in steps:
            try:
                step(report, title)
            except InputError as error:
                if not any(str(path) in str(error) for path in absent.values()):
                    report.problem(title, str(error))
        _warn_of_lengths(report)
        report.add(values.look(report.parts))
    if report.problems:
        report.lines.append(f"download from: {source}")
    return report


def clips(title, load, splits=()):
    """A step that opens clips with the loader call of a run, skipping bad ones.

    Args:
        title: title in the report.
        load: see tasks.Split.
        splits: roles of the clips, from "train", "val", "test"; or a function that maps a clip's id to them.
    """
    def step(report, title):
        part = values.Part(splits)
        part.clips = load(on_bad_clip="skip", observe=part)
        report.parts.append(part)
        describe(report, title, part.clips)
    return title, step


def class_orders(lists):
    """A step that compares class lists whose order defines the labels.

    Args:
        lists: pairs of lists; each a Path, or (title, names) of a published order. Missing files are skipped.
    """
    def read(named):
        return named if isinstance(named, tuple) else (named, read_classes(named))

    def step(report, title):
        there = [pair for pair in lists if all(isinstance(named, tuple) or named.exists() for named in pair)]
        report.warnings += values.class_orders([tuple(map(read, pair)) for pair in there])
    return "classes", step


def pretraining(modalities, length):
    """A step that checks the requirements of pretrain.py on the user's own data.

    Args:
        modalities: modalities of the data.
        length: function that returns T.
    """
    def step(report, title):
        if len(modalities) < 2:
            report.problem(title, f"features of {' and '.join(modalities) or 'nothing'}; pretrain.py needs at least "
                           "two modalities; add one with --features MODALITY=PATH")
        if length() < MIN_SECONDS:
            report.lines.append(f"{title}: T = {length()}: Cross-CPC, which needs T >= {MIN_SECONDS}, is off")
    return "pretraining", step


def manifest(report, path, modalities):
    """Describe a manifest: its clips, labels and prompts."""
    found = Manifest(path)
    splits = Counter(clip.split for clip in found.clips.values())
    report.lines.append(f"{path}: {len(found.clips):,} clips ("
                        f"{', '.join(f'{split} {splits[split]:,}' for split in SPLITS if splits[split])}), "
                        f"columns {', '.join(found.columns)}")
    bare = sum(not clip.events for clip in found.clips.values() if clip.split == "train")
    if "label" not in found.columns:
        report.lines.append("no column 'label': only for pretraining")
    elif bare:
        report.lines.append(f"train: {bare:,} clips without a label, only for pretraining")
    if found.has_prompts and "text" not in modalities:
        report.lines.append(f"prompts: to use text, encode them with `python prepare.py text --manifest {path}` and "
                            "pass --features text=FILE")


def vggsound_list(path, categories):
    """A step that describes a VGGSound list."""
    return "list", lambda report, title: _describe_list(report, path, categories)


def text(path, prompts=None):
    """A step that describes the word vectors of the prompts; `prompts` is their source list."""
    return "text", lambda report, title: _describe_text(report, path, prompts)


def no_text(path):
    """A step that reports missing prompts."""
    return "text", lambda report, title: report.lines.append(
        f"text: {path} does not exist; directions with text are skipped until `python prepare.py text` creates it")


def avs(paths):
    """Steps that open the splits of AVSBench-S4 like a run."""
    return [(split, lambda report, title: _check_avs(report, title, S4(paths, title))) for split in S4_SPLITS]


def describe(report, title, clips):
    """Report rows, features, classes and bad clips of a dataset that was read with on_bad_clip="skip"."""
    sizes = ", ".join(f"{m} {' x '.join(map(str, shape))}" for m, shape in clips.shapes.items())
    report.lines.append(f"{title}: {len(clips) + len(clips.skipped):,} clips, {len(clips):,} with valid "
                        f"{', '.join(clips.modalities)} ({sizes})")
    if clips.BY_ID:
        forms = "; ".join(f"{m} from {store.path} ({store.form})" for m, store in clips.stores.items())
        report.lines += [f"{title}: {forms}"] if forms else []
    _describe_lengths(report, title, clips)
    missing = clips.missing
    absent = set(missing)
    bad = [reason for key, reason in clips.skipped.items() if key not in absent]
    if missing:
        report.problem(title, f"{len(missing):,} clips have no feature file: {', '.join(missing[:SHOWN])}"
                       f"{', ...' if len(missing) > SHOWN else ''}; add them, or run with --on_bad_clip skip")
    for reason in bad[:SHOWN]:
        report.problem(title, reason)
    if len(bad) > SHOWN:
        report.problems.append(f"{title}: and {len(bad) - SHOWN:,} more bad clips")
    if clips.labels is not None:
        present = clips.labels[..., :-1].any(1).sum(0)                      # clips with each class
        report.lines.append(_counts(title, dict(zip(clips.classes, present.astype(int)))))
        empty = int((~clips.labels[..., :-1].any((1, 2))).sum())
        if empty:
            report.warnings.append(f"{title}: {empty} clips have no foreground second")
        if len(clip_class(clips.labels).unique()) < 2:
            report.warnings.append(f"{title}: all clips have the same class")
    elif getattr(clips, "categories", None):
        report.lines.append(_counts(title, Counter(clips.categories)))


def _describe_lengths(report, title, clips):
    """Report the clips' lengths, and how many are padded or cut to T seconds."""
    for modality, own in clips.lengths.items():
        if modality not in clips.timed or (own == clips.seconds).all():
            continue
        shorter, longer = int((own < clips.seconds).sum()), int((own > clips.seconds).sum())
        text = f"{title}: {modality} has {own.min()} to {own.max()} seconds, T = {clips.seconds}:"
        if shorter:
            text += (f" {shorter:,} of {len(clips):,} clips are padded (by repeating their last second; pretrain.py "
                     "--padding mask excludes the padding)")
        if longer:
            text += f"{',' if shorter else ''} {longer:,} are cut"
        is_all = "padded" if shorter == len(clips) else "cut" if longer == len(clips) else None
        if is_all:
            report.unfit.setdefault((is_all, clips.seconds), []).append(Unfit(title, modality, clips.ids, own))
        else:
            report.lines.append(text)


def _warn_of_lengths(report):
    """Warn of parts in which no clip has T seconds."""
    for (kind, seconds), parts in report.unfit.items():
        modalities, titles = (", ".join(dict.fromkeys(of)) for of in zip(*((p.modality, p.title) for p in parts)))
        own, number = np.concatenate([part.own for part in parts]), len({clip for part in parts for clip in part.ids})
        how = (" (by repeating their last second; pretrain.py --padding mask excludes the padding)"
               if kind == "padded" else "")
        report.warnings.append(f"{titles}: {modalities} with {own.min()} to {own.max()} seconds, T = {seconds}: all "
                               f"{number:,} clips are {kind}{how}; is T right? pretrain.py --seconds {own.max()} uses "
                               "complete clips")


def _counts(title, counts):
    numbers = sorted(counts.values())
    table = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    absent = sum(n == 0 for n in numbers)
    sizes = f"{numbers[0]} to {numbers[-1]} clips each, median {numbers[len(numbers) // 2]}"
    head = (f"{title}: {len(counts)} classes{f' ({absent} without clips)' if absent else ''}, "
            f"{sizes if numbers[0] < numbers[-1] else f'{numbers[0]} clips each'}:")
    return head + "\n" + textwrap.fill(table, console.width(), initial_indent="      ", subsequent_indent="      ")


def _describe_list(report, path, categories):
    """Report rows of the VGGSound list, compare its classes with the class list, and warn if it is truncated."""
    bare = "id" in read_header(path) and "video_id" not in read_header(path)
    table = read_table(path, ("id",) if bare else ("category", "video_id", "split"))
    rows = len(next(iter(table.values())))
    splits = ", ".join(f"{name} {n:,}" for name, n in sorted(Counter(table.get("split", [])).items()))
    report.lines.append(f"{path}: {rows:,} rows{f' ({splits})' if splits else ''}")
    if not bare and categories.exists():
        try:
            class_indices(path, table["category"], read_classes(categories), categories)
        except InputError as error:         # classes are needed only for segment labels or prompts
            report.warnings.append(str(error))
    cut = None if bare else warn_of_cut(table["category"], table["video_id"])
    if cut:
        report.warnings.append(f"{path}: {cut}")


def _describe_text(report, path, prompts):
    """Describe a text feature file, and check that its vectors match its sentences."""
    features = TextFeatures(path)
    words = "every word" if features.text_vocabulary == "all" else "words of the word list (cnt.pkl)"
    report.lines.append(f"text: {len(features.labels)} prompts by {features.backend}, {words}")
    silent = [label for label, x in zip(features.labels, features.vectors) if not x.any()]
    if silent:
        report.warnings.append(f"text: {len(silent)} prompts keep no word and are zero: {', '.join(silent[:SHOWN])}")
    report.add(prompt_values.look(path, read_prompts(prompts) if prompts and prompts.exists() else None))


def _check_avs(report, title, clips):
    """Report clips and classes of one split of AVSBench-S4, and read every clip."""
    report.lines.append(f"{title}: {len(clips):,} clips with all frames, masks, audio and sentences")
    report.lines.append(_counts(title, Counter(clips.categories)))
    report.left_out.append("copies across splits, and whether audio and frames depend on the class")
    bad = []
    for i in tqdm(range(len(clips)), f"checking {title}", unit="clip", disable=None, leave=False):
        try:
            clips[i]
        except InputError as error:
            bad.append(str(error))
    for reason in bad[:SHOWN]:
        report.problem(title, reason)
    if len(bad) > SHOWN:
        report.problems.append(f"{title}: and {len(bad) - SHOWN:,} more bad clips")


@contextmanager
def _kept_warnings(report):
    """Collect warnings of the loaders in the report, except skipped clips, which `describe` reports."""
    class Keep(logging.Handler):
        def emit(self, record):
            kind = getattr(record, "skipped", None)         # set if --on_bad_clip skip took effect
            if kind == "rows":                              # stops a run without that flag
                report.problem(report.name, record.getMessage())
            elif kind is None and record.getMessage() not in report.warnings:
                report.warnings.append(record.getMessage())
    logger, handler = logging.getLogger("cmg.data"), Keep(logging.WARNING)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
