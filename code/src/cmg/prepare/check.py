"""Dataset validation, `prepare.py check`: what is present, what is wrong with it, and whether a run would work."""

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
    """Clips of a part, all shorter or all longer than T in a modality."""

    title: str
    modality: str
    ids: list
    own: np.ndarray             # their seconds


@dataclass
class Report:
    """Findings on one dataset. `lines` describe it, `warnings` are worth knowing, `problems` would stop a run."""

    name: str
    lines: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    left_out: list = field(default_factory=list)        # what was not looked at
    parts: list = field(default_factory=list)           # cmg.prepare.values.Part of the clips that were read
    unfit: dict = field(default_factory=dict)           # ("padded" or "cut", T) -> parts with all clips so: `Unfit`

    def problem(self, title, text):
        """Add a problem, unless another step has found it already."""
        if not any(text in known for known in self.problems):
            self.problems.append(f"{title}: {text}")

    def add(self, found):
        """Add what a look at values has found (cmg.prepare.values.Found)."""
        self.lines += found.lines
        self.warnings += found.warnings
        self.left_out += found.left_out

    def __str__(self):
        rows = [self.name] + [f"  {line}" for line in self.lines]
        rows += [f"  warning: {line}" for line in self.warnings] + [f"  PROBLEM: {line}" for line in self.problems]
        rows += [f"  not looked at: {'; '.join(dict.fromkeys(self.left_out))}"] if self.left_out else []
        return "\n".join(rows + ["  ok: a run would work" if not self.problems else "  not ready"])


def check(name, paths, source, steps):
    """Read everything that a run reads and report on it, and on what its values say.

    Args:
        name: of the report, e.g. "vggsound_AVT".
        paths: dotted name -> Path of what a run opens.
        source: where to get them.
        steps: list of (title, function (report, title)); `clips` makes those that open clips as a run does.
    Returns:
        `Report`; it takes as long as reading all features once (progress bars).
    """
    report = Report(name, left_out=["whether the features of a clip are of one recording"])
    absent = {dotted: path for dotted, path in paths.items() if not path.exists()}
    for dotted, path in absent.items():
        family, short = dotted.split(".")
        make = f"make it with `python prepare.py text --dataset {family}`"
        flag = f"--path {dotted}=FILE"
        if family == CUSTOM:
            make = f"make it with `python prepare.py text --manifest {paths[f'{CUSTOM}.manifest']}`"
            flag = "--manifest CSV" if short == "manifest" else f"--features {short}=PATH"
        report.problem(f"{dotted} is absent", f"{path}; {make if short == 'text' else 'get it'}, or set its path with "
                       f"{flag}")
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
        report.lines.append(f"get it from: {source}")
    return report


def clips(title, load, splits=()):
    """A step that opens clips with the loader call of a run, bad ones skipped.

    Args:
        title: in the report.
        load: see tasks.Split.
        splits: that the clips serve as, of "train", "val", "test"; or a function of a clip's id that tells them.
    """
    def step(report, title):
        part = values.Part(splits)
        part.clips = load(on_bad_clip="skip", observe=part)
        report.parts.append(part)
        describe(report, title, part.clips)
    return title, step


def class_orders(lists):
    """A step that compares lists of classes whose order is the meaning of the labels.

    Args:
        lists: pairs of lists; each a Path, or (title, names) of a published order. Absent files are left out.
    """
    def read(named):
        return named if isinstance(named, tuple) else (named, read_classes(named))

    def step(report, title):
        there = [pair for pair in lists if all(isinstance(named, tuple) or named.exists() for named in pair)]
        report.warnings += values.class_orders([tuple(map(read, pair)) for pair in there])
    return "classes", step


def pretraining(modalities, length):
    """A step that refuses what pretrain.py refuses of the user's own data before it reads any.

    Args:
        modalities: of the data.
        length: function that gives T.
    """
    def step(report, title):
        if len(modalities) < 2:
            report.problem(title, f"features of {' and '.join(modalities) or 'nothing'}; pretrain.py needs two "
                           "modalities at least; give another with --features MODALITY=PATH")
        if length() < MIN_SECONDS:
            report.lines.append(f"{title}: T = {length()}: Cross-CPC, which needs {MIN_SECONDS}, is off")
    return "pretraining", step


def manifest(report, path, modalities):
    """Describe a list of the user's own clips, and what its sentences are good for."""
    found = Manifest(path)
    splits = Counter(clip.split for clip in found.clips.values())
    report.lines.append(f"{path}: {len(found.clips):,} clips ("
                        f"{', '.join(f'{split} {splits[split]:,}' for split in SPLITS if splits[split])}), "
                        f"columns {', '.join(found.columns)}")
    bare = sum(not clip.events for clip in found.clips.values() if clip.split == "train")
    if "label" not in found.columns:
        report.lines.append("no column 'label': for pretraining alone")
    elif bare:
        report.lines.append(f"train: {bare:,} clips without a label, for pretraining alone")
    if found.has_prompts and "text" not in modalities:
        report.lines.append(f"prompts: text is no modality until `python prepare.py text --manifest {path}` has made "
                            "their word vectors and --features text=FILE names them")


def vggsound_list(path, categories):
    """A step that describes a VGGSound list."""
    return "list", lambda report, title: _describe_list(report, path, categories)


def text(path, prompts=None):
    """A step that describes the word vectors of the prompts; `prompts`: the list that they are made from."""
    return "text", lambda report, title: _describe_text(report, path, prompts)


def no_text(path):
    """A step that says what the absence of the prompts means."""
    return "text", lambda report, title: report.lines.append(
        f"text: there is no {path}; directions with text are skipped until `python prepare.py text` has made it")


def avs(paths):
    """The steps that open the splits of AVSBench-S4 as a run does."""
    return [(split, lambda report, title: _check_avs(report, title, S4(paths, title))) for split in S4_SPLITS]


def describe(report, title, clips):
    """Add rows, features, classes and bad clips of a dataset that was read with on_bad_clip="skip"."""
    sizes = ", ".join(f"{m} {' x '.join(map(str, shape))}" for m, shape in clips.shapes.items())
    report.lines.append(f"{title}: {len(clips) + len(clips.skipped):,} clips, {len(clips):,} with good "
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
                       f"{', ...' if len(missing) > SHOWN else ''}; get them, or run with --on_bad_clip skip")
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
    """How long the clips are, and what happens to those that have not T seconds."""
    for modality, own in clips.lengths.items():
        if modality not in clips.timed or (own == clips.seconds).all():
            continue
        shorter, longer = int((own < clips.seconds).sum()), int((own > clips.seconds).sum())
        text = f"{title}: {modality} of {own.min()} to {own.max()} seconds, T = {clips.seconds}:"
        if shorter:
            text += (f" {shorter:,} of {len(clips):,} clips are padded (their last second is repeated; --padding mask "
                     "of pretrain.py leaves it out)")
        if longer:
            text += f"{',' if shorter else ''} {longer:,} are cut"
        is_all = "padded" if shorter == len(clips) else "cut" if longer == len(clips) else None
        if is_all:
            report.unfit.setdefault((is_all, clips.seconds), []).append(Unfit(title, modality, clips.ids, own))
        else:
            report.lines.append(text)


def _warn_of_lengths(report):
    """A warning for each kind of parts none of whose clips has T seconds."""
    for (kind, seconds), parts in report.unfit.items():
        modalities, titles = (", ".join(dict.fromkeys(of)) for of in zip(*((p.modality, p.title) for p in parts)))
        own, number = np.concatenate([part.own for part in parts]), len({clip for part in parts for clip in part.ids})
        how = (" (their last second is repeated; --padding mask of pretrain.py leaves it out)"
               if kind == "padded" else "")
        report.warnings.append(f"{titles}: {modalities} of {own.min()} to {own.max()} seconds, T = {seconds}: all "
                               f"{number:,} clips are {kind}{how}; is T right? pretrain.py --seconds {own.max()} takes "
                               "the clips whole")


def _counts(title, counts):
    numbers = sorted(counts.values())
    table = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    absent = sum(n == 0 for n in numbers)
    sizes = f"{numbers[0]} to {numbers[-1]} clips each, median {numbers[len(numbers) // 2]}"
    head = (f"{title}: {len(counts)} classes{f' ({absent} without clips)' if absent else ''}, "
            f"{sizes if numbers[0] < numbers[-1] else f'{numbers[0]} clips each'}:")
    return head + "\n" + textwrap.fill(table, console.width(), initial_indent="      ", subsequent_indent="      ")


def _describe_list(report, path, categories):
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
    cut = None if bare else warn_of_cut(table["category"], table["video_id"])
    if cut:
        report.warnings.append(f"{path}: {cut}")


def _describe_text(report, path, prompts):
    """What a text feature file is, and whether its vectors are those of its sentences."""
    features = TextFeatures(path)
    words = "every word" if features.text_vocabulary == "all" else "words of the word list (cnt.pkl)"
    report.lines.append(f"text: {len(features.labels)} prompts by {features.backend}, {words}")
    silent = [label for label, x in zip(features.labels, features.vectors) if not x.any()]
    if silent:
        report.warnings.append(f"text: {len(silent)} prompts keep no word and are zeros: {', '.join(silent[:SHOWN])}")
    report.add(prompt_values.look(path, read_prompts(prompts) if prompts and prompts.exists() else None))


def _check_avs(report, title, clips):
    """Clips and classes of one split of AVSBench-S4; every clip is read."""
    report.lines.append(f"{title}: {len(clips):,} clips with all frames, masks, sounds and sentences")
    report.lines.append(_counts(title, Counter(clips.categories)))
    report.left_out.append("copies across splits, and whether sounds and frames tell of the classes")
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
    """Warnings of the loaders go into the report; skipped clips are there already (`describe`)."""
    class Keep(logging.Handler):
        def emit(self, record):
            kind = getattr(record, "skipped", None)         # what --on_bad_clip skip had to do
            if kind == "rows":                              # without that flag it stops a run
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
