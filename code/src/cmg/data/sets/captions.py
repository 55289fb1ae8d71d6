"""Clips with several captions each, such as MS-COCO's, Clotho's or FlickrSoundNet's: a list, features, word vectors."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmg.data.clips import Clips, Paths
from cmg.data.csv import read_table
from cmg.data.text import TextFeatures
from cmg.utils.errors import InputError


class Captions(Clips):
    """Clips of a list whose rows are captions: `label` (a unique name), `prompt` (the sentence), `clip`.

    The word vectors come from the same list: `prepare.py text --dataset vggsound --prompts LIST --out FILE`.

    Args:
        paths: name -> Path of "csv", "text", and "audio" and "video" if in `modalities`.
        modalities: from "audio" and "video".
        reading: on_bad_clip, in_memory, seconds, padding; see `Clips`.
    Attributes:
        owner: (C,) int64, the clip of each caption whose clip was not skipped.
        sentences: (vectors (M, 10, 768), row of each caption (C)); see `caption_vectors`.
    Raises:
        InputError: an invalid list, a repeated name, captions without word vectors, missing or bad clips.
    """

    def __init__(self, paths: Paths, modalities: Sequence[str], **reading: Any) -> None:
        table = read_table(paths["csv"], ("label", "prompt", "clip"))
        twice = next((name for name, count in Counter(table["label"]).items() if count > 1), None)
        if twice is not None:
            raise InputError(f"{paths['csv']}: the label '{twice[:60]}' occurs twice; expected a unique name for each "
                             "caption; number them")
        features = TextFeatures(paths["text"])
        rows = np.array(features.indices(table["label"]))
        super().__init__("captions", modalities, list(dict.fromkeys(table["clip"])), {m: paths[m] for m in modalities},
                         **reading)
        position = {clip: number for number, clip in enumerate(self.ids)}
        kept = [number for number, clip in enumerate(table["clip"]) if clip in position]    # without skipped clips
        self.owner = np.array([position[table["clip"][number]] for number in kept])
        self.sentences = features.vectors, rows[kept]

    def caption_vectors(self, start: int, stop: int) -> NDArray[Any]:
        """Word vectors (n, 10, 768) float32 of the captions start..stop."""
        vectors, index = self.sentences
        return vectors[index[start:stop]]
