"""Checks of values for `prepare.py check`: copies across splits, uninformative features, labels that do not match their
features, values that float16 cannot represent.

All findings are warnings: a run would work, but its results could be misleading.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np

from cmg.data.labels import clip_class

SHOWN = 5                       # ids named in a warning
COMPARED = 1000                 # maximum of clips in the search for nearest neighbors
LEAST_COMPARED = 12             # minimum of clips for a conclusion
DEVIATIONS = 2                  # standard deviations above chance that count as informative
LARGE_OFFSET = 1                # mean of features, relative to their deviation, that is reported
LOST = 0.01                     # fraction of a clip's norm that float16 may lose; rounding alone loses 0.0003
SAFE = 2.0 ** -8                # a clip with a largest value from here on does not underflow
ZEROS, CONSTANT = "all zeros", "constant"
OVERFLOW, UNDERFLOW = "too large for float16", "too small for float16"


class ClipValues(NamedTuple):
    """Summary of a clip's feature in one modality."""

    digest: bytes               # hash of the values
    flat: str                   # ZEROS, CONSTANT or ""
    float16: str                # OVERFLOW, UNDERFLOW or ""


def float16_problem(x):
    """OVERFLOW, UNDERFLOW, or "" if float16 represents a clip (T, ...) up to rounding."""
    scale = float(np.abs(x).max(initial=0))
    if scale > float(np.finfo(np.float16).max):
        return OVERFLOW
    if not 0 < scale < SAFE:
        return ""
    lost = np.linalg.norm((x - x.astype(np.float16).astype(x.dtype)) / np.float32(scale))
    return UNDERFLOW if lost > LOST * np.linalg.norm(x / np.float32(scale)) else ""


def summarize(x):
    """Compute `ClipValues` of a clip's feature, a float32 array."""
    low, high = float(x.min()), float(x.max())
    flat = "" if low < high else CONSTANT if low else ZEROS
    digest = hashlib.sha256(f"{x.shape}".encode() + np.ascontiguousarray(x).tobytes()).digest()[:12]
    return ClipValues(digest, flat, float16_problem(x))


class ChannelSums:
    """Running sums over rows of features, to compute their offset."""

    def __init__(self):
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, x):
        """Add features (..., C)."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        self.count, self.total = self.count + len(rows), self.total + rows.sum(0)
        self.square += (rows ** 2).sum()

    @property
    def offset(self):
        """Norm of the mean vector relative to the RMS distance of rows from it (0 if all rows are equal)."""
        mean = ((self.total / self.count) ** 2).sum()
        spread = self.square / self.count - mean
        return float(np.sqrt(mean / spread)) if spread > np.finfo(np.float64).eps * mean else 0.0


@dataclass
class Part:
    """Clips of one call of a loader. The object itself is the `observe` argument of Clips.

    Attributes:
        clips: cmg.data.clips.Clips.
        splits: roles of the clips, from "train", "val", "test", or a function that maps a clip's id to them.
        values: (modality, key) -> ClipValues.
        sums: (modality, channels) -> `ChannelSums` of the clips.
    """

    splits: object = ()
    clips: object = None
    values: dict = field(default_factory=dict)
    sums: dict = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __call__(self, modality, key, x):
        if modality != "label" and (modality, key) not in self.values:
            self.values[modality, key] = summarize(x)
            with self.lock:             # clips are read by several threads
                self.sums.setdefault((modality, x.shape[-1]), ChannelSums()).add(x)

    def splits_of(self, clip):
        return tuple(self.splits(clip)) if callable(self.splits) else tuple(self.splits)


@dataclass
class Found:
    """Lines for a report: information, warnings, and aspects that were not checked."""

    lines: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    left_out: list = field(default_factory=list)


def named(ids):
    """The first few ids, as text."""
    ids = list(ids)
    return ", ".join(map(str, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")


def look(parts):
    """Check the features of all Parts of a dataset; returns `Found`."""
    found = Found()
    for modality in dict.fromkeys(modality for part in parts for modality, _ in part.values):
        clips = {}                      # (path, key) -> [values, splits]
        for part in parts:
            if part.clips is None or modality not in part.clips.stores:
                continue
            path = part.clips.stores[modality].path
            for clip, key in zip(part.clips.ids, part.clips.keys):
                if (modality, key) in part.values:
                    entry = clips.setdefault((path, key), [part.values[modality, key], set()])
                    entry[1].update(part.splits_of(clip))
        _offset(found, modality, parts)
        _flat(found, modality, clips)
        _copies(found, modality, clips)
    _shared_ids(found, parts)
    _labels(found, parts)
    return found


def _offset(found, modality, parts):
    """Report a mean that hides the differences between seconds."""
    offset = max((sums.offset for part in parts for (m, _), sums in part.sums.items() if m == modality), default=0)
    if offset > LARGE_OFFSET:
        found.lines.append(f"{modality}: the features' mean is {offset:.1f} times their deviation, so an encoder may "
                           "collapse to one code: pretrain with --standardize channel (the default for your own data)")


def _flat(found, modality, clips):
    """Warn of uninformative features, and of values that float16 cannot represent."""
    for what in (ZEROS, CONSTANT):
        keys = [key for (_, key), (values, _) in clips.items() if values.flat == what]
        if keys:
            found.warnings.append(f"{modality}: {len(keys):,} of {len(clips):,} clips are {what} ({named(keys)}); "
                                  "extract these features again, or remove the clips")
    for what in (OVERFLOW, UNDERFLOW):
        keys = [key for (_, key), (values, _) in clips.items() if values.float16 == what]
        if keys:
            found.warnings.append(f"{modality}: {len(keys):,} of {len(clips):,} clips have values {what} ({named(keys)}"
                                  "); pack them with --dtype float32, train without --precision bf16, or scale them")


def _copies(found, modality, clips):
    """Warn of exact copies within a split and across splits."""
    groups = {}
    for (_, key), (values, splits) in clips.items():
        if not values.flat:
            groups.setdefault(values.digest, []).append((key, splits))
    groups = [group for group in groups.values() if len(group) > 1]
    for group in [group for group in groups if 2 * len(group) > len(clips)]:
        groups.remove(group)
        found.warnings.append(f"{modality}: {len(group):,} of {len(clips):,} clips have the same feature ("
                              f"{named(key for key, _ in group)}); extract them again, or remove the clips")
    if not groups:
        return
    across = {}
    for group in groups:
        first = {}                      # splits -> their first two clips, because two lists may use the same key
        for key, splits in group:
            known = first.setdefault(frozenset(splits), [])
            if len(known) < 2 and key not in known:
                known.append(key)
        for key, splits in group:
            for others, known in first.items():
                other, pair = next((k for k in known if k != key), None), _pair(splits, others)
                if other is not None and pair:
                    across.setdefault(pair, {}).setdefault(key, other)
    for (one, two), pairs in across.items():
        found.warnings.append(f"{modality}: {len(pairs):,} {two} clips are exact copies of {one} clips ("
                              f"{named(f'{a} = {b}' for a, b in pairs.items())}), so test data leaks into training: "
                              "remove them from one of the two")
    number = sum(map(len, groups))
    if not across or number > 2 * sum(map(len, across.values())):
        found.warnings.append(f"{modality}: {number:,} of {len(clips):,} clips have exactly the features of another "
                              f"clip ({named(' = '.join(key for key, _ in group[:3]) for group in groups)}); check "
                              "whether the files were copied or the extraction failed")


def _pair(splits, others):
    """(split of the other clip, split of this one) if a copy leaks data from training to test or validation."""
    return next(((one, two) for two in ("test", "val") for one in ("train", "val")
                 if two in splits and one in others and one != two and two not in others and one not in splits), None)


def _shared_ids(found, parts):
    """Warn of clips that two lists, or two parts of a list, assign to different splits. Parts that train and test on
    the same clips by design are skipped."""
    places = {}
    for part in parts:
        for clip in part.clips.ids if part.clips is not None else ():
            splits = part.splits_of(clip)
            if len(splits) == 1:
                for modality, store in part.clips.stores.items():
                    places.setdefault((modality, str(store.path), clip), set()).update(splits)
        if part.clips is not None and not callable(part.splits) and {"train", "test"} <= set(part.splits):
            found.left_out.append(f"copies between training and test in {part.clips.name}, which uses the same clips "
                                  "for both, as published")
    for one, two in (("train", "test"), ("train", "val"), ("val", "test")):
        both = list(dict.fromkeys(clip for (*_, clip), splits in places.items() if {one, two} <= splits))
        if both:
            found.warnings.append(f"{len(both):,} clips are in both {one} and {two} ({named(both)}), so test data "
                                  "leaks into training: use matching lists")


# --------------------------------------------------------------------------------------------------------------- labels
def _labels(found, parts):
    """Check whether features depend on the classes, by comparing each clip's class with its nearest neighbor's."""
    kinds = dict.fromkeys((m, store.tail) for part in parts if part.clips is not None
                          for m, store in part.clips.stores.items() if m != "label")
    for modality, shape in kinds:               # features of different shapes cannot be compared
        classes, digests, stores = {}, {}, {}
        for part in parts:
            store = part.clips.stores.get(modality) if part.clips is not None else None
            for key, name in _classes(part.clips).items() if store is not None and store.tail == shape else ():
                if store.leading and (modality, key) in part.values and not part.values[modality, key].flat:
                    classes[str(store.path), key] = name
                    digests[str(store.path), key] = part.values[modality, key].digest
                    stores[str(store.path), key] = store
        counts = Counter(classes.values())
        clips = [clip for clip, name in classes.items() if counts[name] > 1]
        if len(counts) < 2 or len(clips) < LEAST_COMPARED:
            if classes:
                found.left_out.append(f"whether {modality} depends on the class (fewer than {LEAST_COMPARED} clips "
                                      "whose class has another clip)")
            continue
        chosen = np.random.default_rng(0).permutation(len(clips))[:COMPARED]
        clips = [clips[k] for k in sorted(chosen)]
        agreement = nearest_agreement([_mean(stores[clip], clip[1]) for clip in clips], [classes[c] for c in clips],
                                      [digests[clip] for clip in clips])
        text = (f"{modality}: the nearest other clip has the same class for {100 * agreement.share:.0f} % of "
                f"{agreement.clips:,} clips (chance: {100 * agreement.chance:.0f} %)")
        if agreement.is_chance:
            found.warnings.append(f"{text}; expected similar features within a class: check that labels and features "
                                  f"are in the same order ({named(key for _, key in clips)})")
        else:
            found.lines.append(text)


def _classes(clips):
    """Key -> class name of the clips with a single class."""
    if clips.labels is not None:
        is_single = np.asarray(clips.labels)[..., :-1].any(1).sum(-1) == 1
        numbers = clip_class(clips.labels).tolist()
        return {key: clips.classes[number] for key, number, single in zip(clips.keys, numbers, is_single) if single}
    return dict(zip(clips.keys, getattr(clips, "categories", None) or ()))


def _mean(store, key):
    """A clip's feature averaged over time and position, (C,) float64."""
    x = store.read(key)
    return x.reshape(-1, x.shape[-1]).mean(0, dtype=np.float64)


@dataclass
class Agreement:
    """How often a clip's nearest neighbor has the same class."""

    clips: int
    share: float
    chance: float

    @property
    def is_chance(self):
        """Whether the share is not significantly above chance."""
        deviation = np.sqrt(self.chance * (1 - self.chance) / self.clips)
        return self.share <= self.chance + DEVIATIONS * deviation


def nearest_agreement(vectors, names, digests):
    """`Agreement` of clips given by vectors (N, C), with standardized channels; exact copies do not count as neighbors.
    """
    vectors = np.asarray(vectors)
    vectors = vectors - vectors.mean(0)
    vectors /= np.where(vectors.std(0) > 0, vectors.std(0), 1)
    names, digests = np.unique(names, return_inverse=True)[1], np.unique(digests, return_inverse=True)[1]
    distance = (vectors ** 2).sum(1)[:, None] + (vectors ** 2).sum(1) - 2 * vectors @ vectors.T
    distance[digests[:, None] == digests] = np.inf
    has_other = np.isfinite(distance).any(1)
    share = (names[distance.argmin(1)] == names)[has_other].mean() if has_other.any() else 1.0
    same = np.bincount(names)[names] - 1
    return Agreement(len(names), float(share), float(same.mean() / max(len(names) - 1, 1)))


# --------------------------------------------------------------------------------------------------------- class order
def class_orders(lists):
    """Warnings about lists that have the same classes in a different order, which changes the labels.

    Args:
        lists: pairs of (title, names).
    """
    return [f"{one}: the classes of {two} in a different order (line {k + 1} is {names[k]}, there {others[k]}); labels "
            "are line numbers: use matching lists, or the published order"
            for (one, names), (two, others) in lists if sorted(names) == sorted(others) and names != others
            for k in [next(k for k, pair in enumerate(zip(names, others)) if pair[0] != pair[1])]]
