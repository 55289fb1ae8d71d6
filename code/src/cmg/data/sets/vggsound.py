"""VGGSound-AVEL, the pretraining dataset: the 24K/40K/81K/179K lists, with audio, video and class prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmg.data.clips import Clips, Paths
from cmg.data.csv import class_indices, first_rows, read_classes, read_header, read_table
from cmg.data.labels import single_event
from cmg.data.text import TextFeatures
from cmg.utils.errors import InputError

SPLITS = ("train", "test", "val")       # order of the published loader


class VGGSound(Clips):
    """Clips of a VGGSound list with audio, video and text in any combination.

    Args:
        paths: name -> Path of "csv" and, as needed, "audio", "video", "text", "label", "categories".
        modalities: from "audio", "video", "text".
        splits: splits of the list; all three are the paper's 40K, "train" alone its 24K. The 81K and 179K lists (column
            `id`, file names) have no splits, classes or prompts and are used completely.
        with_labels: add "label" (T, 142) from the stored segment labels (published AV mode; no loss uses it).
        on_bad_clip, reading (in_memory, seconds, padding): see `Clips`.
    Attributes:
        categories: class name of each clip; empty for the 81K and 179K lists.
    Raises:
        InputError: an invalid list (missing column, unknown split or class, repeated id), missing or bad clips.
    """

    def __init__(self, paths: Paths, modalities: Sequence[str] = ("audio", "video", "text"),
                 splits: Sequence[str] = SPLITS, *, with_labels: bool = False, on_bad_clip: str = "error",
                 **reading: Any) -> None:
        ids, self.categories = read_list(paths["csv"], splits, on_bad_clip)
        if not self.categories and ("text" in modalities or with_labels):
            raise InputError(f"{paths['csv']}: no column 'category'; expected it for text and labels; use the 40k list "
                             "or the modalities audio and video")
        classes: list[str] = []
        text = None
        if with_labels:
            classes = read_classes(paths["categories"]) if paths.get("categories") else sorted(set(self.categories))
            self.label = np.array(class_indices(paths["csv"], self.categories, classes, "the class list"))
        if "text" in modalities:
            features = TextFeatures(paths["text"])
            text = features.vectors, np.array(features.indices(self.categories))
        kinds = [m for m in modalities if m != "text"] + ["label"] * with_labels
        super().__init__("VGGSound-AVEL", modalities, ids, {m: paths[m] for m in kinds}, text=text, classes=classes,
                         on_bad_clip=on_bad_clip, **reading)

    def __getitem__(self, i: int) -> dict[str, NDArray[Any]]:
        item = super().__getitem__(i)
        if "label" in self.stores:
            mask = self.stores["label"].read(self.keys[i])
            item["label"] = single_event(self.label[i], mask, len(self.classes))
        return item

    def _keep(self, keep):
        super()._keep(keep)
        if self.categories:
            self.categories = [self.categories[i] for i in keep]
        if self.classes:
            self.label = self.label[keep]


def read_list(path, splits=SPLITS, on_bad_clip="error"):
    """Read the ids and categories of a list, ordered by split (train, test, val), then as in the file.

    Args:
        path: csv with category, video_id, split; or with only id (<id>.mp4).
        splits: splits to use.
        on_bad_clip: "skip" keeps the first row of a repeated id instead of raising.
    Returns:
        (ids, categories); categories is empty for a list without them.
    Raises:
        InputError: missing column, unknown split, repeated id, no rows in these splits.
    """
    header = read_header(path)
    if "id" in header and "video_id" not in header:
        ids = [name.removesuffix(".mp4") for name in read_table(path, ("id",))["id"]]
        categories, parts, splits = [], ["train"] * len(ids), SPLITS
    else:
        table = read_table(path, ("category", "video_id", "split"))
        ids, categories, parts = table["video_id"], table["category"], table["split"]
    unknown = [k for k, part in enumerate(parts) if part not in SPLITS]
    if unknown:
        raise InputError(f"{path}: clip {ids[unknown[0]]} has the split '{parts[unknown[0]][:40]}'; expected train, "
                         "val or test; correct the line")
    once = first_rows(path, ids, on_bad_clip)
    order = [k for split in SPLITS if split in splits for k in once if parts[k] == split]
    if not order:
        raise InputError(f"{path}: no clips in {', '.join(splits)}; expected at least one; check --splits")
    return [ids[k] for k in order], [categories[k] for k in order] if categories else []
