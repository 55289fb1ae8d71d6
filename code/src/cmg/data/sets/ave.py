"""AVE: 4,143 annotated clips of 28 classes; features and labels in HDF5 arrays with one row per sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmg.data.clips import Clips, Paths
from cmg.data.csv import read_classes
from cmg.data.hdf5 import hdf5_array, open_hdf5, reading
from cmg.data.labels import clip_class
from cmg.data.text import TextFeatures
from cmg.utils.errors import InputError

SPLITS = ("train", "val", "test")
# Files next to the labels of data built by this project: images and audio of the test clips (`Clips.original`).
ORIGINALS = {"audio": "test_spectrograms.h5", "video": "test_pictures.h5"}
CATEGORIES = (              # label order of the published labels
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin")


class AVE(Clips):
    """Samples of one split of AVE.

    Args:
        paths: name -> Path of "audio", "video", "label", "train", "val", "test"; "text" for class prompts;
            "categories" for a list of class names (default: the published 28).
        modalities: from "audio", "video", "text" (the prompt of the clip's class).
        split: "train", "val", "test", or a tuple of them.
        reading: on_bad_clip, in_memory, seconds, padding; see `Clips`.
    Raises:
        InputError: wrong shape, dtype or number of classes, or row numbers outside the arrays.
    """

    NUMBERED = "AVE"

    def __init__(self, paths: Paths, modalities: Sequence[str] = ("audio", "video"),
                 split: str | Sequence[str] = "train", **reading: Any) -> None:
        splits = (split,) if isinstance(split, str) else tuple(split)
        labels = read_labels(paths["label"])
        classes = read_categories(paths.get("categories"))
        if labels.shape[2] != len(classes) + 1:
            raise InputError(f"{paths['label']}: {labels.shape[2]} columns; expected {len(classes)} classes and a "
                             "background; use the label file that belongs to this class list")
        rows = np.concatenate([read_order(paths[name], len(labels)) for name in splits])
        self.folder = Path(paths["label"]).parent
        self.numbers = {str(row): number for number, row in enumerate(rows)} if splits == ("test",) else {}
        self.prompts = TextFeatures(paths["text"]).sentences(classes) if "text" in modalities else None
        super().__init__("AVE " + "+".join(splits), modalities, [str(row) for row in rows],
                         {m: paths[m] for m in modalities if m != "text"}, classes=classes, labels=labels[rows],
                         text=class_text(paths, classes, labels[rows]) if "text" in modalities else None,
                         **reading)


    def original(self, modality: str, i: int) -> NDArray[Any] | str | None:
        if modality == "text" and self.prompts and self.labels is not None:
            return self.prompts[int(clip_class(self.labels[i:i + 1])[0])]
        path = self.folder / ORIGINALS.get(modality, "")
        if not self.numbers or not path.is_file():
            return None
        with open_hdf5(path) as file, reading(path):
            return hdf5_array(file, "originals", "u", 3, 4)[self.numbers[self.ids[i]]]


def read_labels(path):
    """Read labels (samples, seconds, C+1) of 0 and 1, last column background, as float32."""
    with open_hdf5(path) as file, reading(path):
        labels = hdf5_array(file, "avadataset", "fiu", 3)[:].astype(np.float32)
    if not labels.shape[1] or not np.isin(labels, (0, 1)).all():
        found = "values other than 0 and 1" if labels.shape[1] else "no seconds"
        raise InputError(f"{path}: {found}; expected labels (samples, seconds, classes + 1); check that this is the "
                         "label file")
    return labels


def read_order(path, samples):
    """Read the row numbers of a split, int64; InputError if one is repeated or outside the `samples` rows."""
    with open_hdf5(path) as file, reading(path):
        order = hdf5_array(file, "order", "iu", 1)[:].astype(np.int64)
    if not len(order) or order.min() < 0 or order.max() >= samples or len(np.unique(order)) != len(order):
        found = f"{len(order)} row numbers" + (f" from {order.min()} to {order.max()}" if len(order) else "")
        raise InputError(f"{path}: {found}; expected distinct numbers below {samples}; use the order file that "
                         "belongs to these labels")
    return order


def read_categories(path):
    """Class names in label order: the user's list if there is one, else the published 28."""
    return read_classes(path) if path is not None and path.exists() else list(CATEGORIES)


def class_text(paths, classes, labels):
    """Class prompts as (vectors, index of each clip), the `text` of `Clips`; `labels` is (N, T, C+1)."""
    features = TextFeatures(paths["text"])
    return features.vectors, np.array(features.indices(classes))[clip_class(labels).numpy()]
