"""A user's own dataset: a manifest (cmg/data/manifest.py) and the features of its clips, by modality."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cmg.data.clips import Clips, Paths
from cmg.data.hdf5 import open_hdf5, reading
from cmg.data.labels import multi_event, single_event
from cmg.data.manifest import Manifest
from cmg.data.text import FORMAT, TextFeatures
from cmg.utils.errors import InputError


class Custom(Clips):
    """Clips of some splits of a manifest.

    Args:
        paths: "manifest", and the path of the features of each modality; see cmg/data/features.py. "text" is either a
            file of `prepare.py text`, with the clip's prompts (or its label if the manifest has no prompts), or word
            vectors per clip like any other features.
        modalities: modalities to read.
        splits: from "train", "val", "test".
        is_labeled: use only labeled clips, with labels (T, C+1). The class applies to all seconds, or with onsets, to
            every second that overlaps an event.
        kinds: modality -> "vector", "map" or "tokens", for modalities besides audio, video and text.
        seconds, reading (on_bad_clip, in_memory, padding): see `Clips`.
    Attributes:
        has_times: the manifest has onsets.
        origin: the name of the manifest's folder, unless this project built the dataset.
    Raises:
        InputError: an invalid manifest, missing or bad clips, sentences without word vectors.
    """

    BY_ID = True

    def __init__(self, paths: Paths, modalities: Sequence[str], splits: Sequence[str] = ("train",),
                 is_labeled: bool = False, *, seconds: int | None = 10, **reading: Any) -> None:
        manifest = Manifest(paths["manifest"], math.inf if seconds is None else seconds)
        self.has_times, self.NUMBERED, labels = manifest.has_times, str(Path(manifest.path).absolute()), None
        classes = manifest.classes() if is_labeled else []
        ids = [name for split in splits for name in manifest.labeled(split)] if is_labeled else manifest.ids(splits)
        if not ids:
            raise InputError(f"{manifest.path}: no row has the split {' or '.join(splits)}; expected at least one "
                             "clip; check the column 'split', or choose others with --splits")
        if is_labeled:
            labels = _labels([manifest.clips[name].events for name in ids], classes, seconds, self.has_times)
        stores, text = {m: paths[m] for m in modalities}, None
        if "text" in stores and is_prompts_file(stores["text"]):
            text = _sentences(manifest, ids, TextFeatures(stores.pop("text")))
        super().__init__(f"{Path(paths['manifest']).name} {'+'.join(splits)}", modalities, ids, stores, text=text,
                         labels=labels, classes=classes, seconds=seconds, **reading)
        self.origin = self.origin or Path(paths["manifest"]).resolve().parent.name


def is_prompts_file(path):
    """Whether a file was written by `prepare.py text`, with word vectors by sentence instead of by clip."""
    path = Path(path)
    if not path.is_file():
        return False
    with open_hdf5(path) as file, reading(path):
        return file.attrs.get("format") == FORMAT


def _labels(events, classes, seconds, has_times):
    """Labels (N, T, C+1) uint8 of the events of each clip."""
    index = {name: k for k, name in enumerate(classes)}
    if not has_times:
        mask = np.ones((len(events), seconds))
        return single_event([index[of_clip[0][1]] for of_clip in events], mask, len(classes)).astype(np.uint8)
    return np.stack([multi_event([(index[label], math.floor(onset), math.ceil(offset))
                                  for _, label, onset, offset in of_clip], len(classes), seconds)
                     for of_clip in events]).astype(np.uint8)


def _sentences(manifest, ids, features):
    """The sentences of each clip as (vectors, rows (N,) or (N, S) padded with -1), the `text` of `Clips`."""
    sentences = {}
    for name in ids:
        clip = manifest.clips[name]
        sentences[name] = clip.prompts if manifest.has_prompts else [clip.events[0][1]] if clip.events else []
        if not sentences[name]:
            wanted = "prompt" if manifest.has_prompts else "label, and the manifest has no prompts"
            raise InputError(f"{manifest.path}: line {clip.line}: {name} has no {wanted}; expected a sentence for each "
                             "clip if text is a modality; add it, or omit --features text=PATH")
    different = list(dict.fromkeys(chain.from_iterable(sentences.values())))
    rows = dict(zip(different, features.indices(different)))
    most = max(map(len, sentences.values()))
    index = np.array([[*(rows[sentence] for sentence in of_clip), *[-1] * (most - len(of_clip))]
                      for of_clip in sentences.values()])
    return features.vectors, index if most > 1 else index[:, 0]
