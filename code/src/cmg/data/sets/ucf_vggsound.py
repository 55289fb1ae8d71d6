"""UCF-101 (video) and VGGSound (audio): sixteen shared classes; one event fills each clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmg.data.clips import Clips, Paths
from cmg.data.csv import class_indices, first_rows, read_classes, read_table
from cmg.data.labels import single_event
from cmg.data.text import TextFeatures
from cmg.utils.errors import InputError


class UCFVGGSound(Clips):
    """Clips of one side: "video" is UCF-101, "audio" is VGGSound; "text" adds the prompt of the class to either.

    Line k of both class lists is the same class under two names; the label is k, and every second is foreground.

    Args:
        paths: name -> Path of "ucf_categories", "vggsound_categories"; "ucf_csv" and "video", or "vggsound_csv" and
            "audio"; "text" for prompts (labeled by the names of the VGGSound list).
        modalities: ("video",) or ("audio",), optionally with "text".
        on_bad_clip, reading (in_memory, seconds, padding): see `Clips`.
    Raises:
        InputError: class lists of different lengths, an invalid list, unknown class, missing or bad clips.
    """

    def __init__(self, paths: Paths, modalities: Sequence[str], *, on_bad_clip: str = "error", **reading: Any) -> None:
        modalities = (modalities,) if isinstance(modalities, str) else tuple(modalities)
        if ("audio" in modalities) == ("video" in modalities):
            raise InputError(f"UCF/VGGSound with {' and '.join(modalities)}: the two sides have different clips; "
                             "expected audio or video, alone or with text; change the modalities")
        side = "ucf" if "video" in modalities else "vggsound"
        lists = {name: read_classes(paths[f"{name}_categories"]) for name in ("ucf", "vggsound")}
        if len(lists["ucf"]) != len(lists["vggsound"]):
            raise InputError(f"{paths['ucf_categories']}: {len(lists['ucf'])} classes; {paths['vggsound_categories']} "
                             f"has {len(lists['vggsound'])}; expected aligned lists; use files that belong together")
        table = read_table(paths[f"{side}_csv"], ("category", "video_id"))
        rows = first_rows(paths[f"{side}_csv"], table["video_id"], on_bad_clip)
        index = np.array(class_indices(paths[f"{side}_csv"], [table["category"][row] for row in rows], lists[side],
                                       paths[f"{side}_categories"]))
        classes = lists["vggsound"]
        text = None
        if "text" in modalities:
            features = TextFeatures(paths["text"])
            text = features.vectors, np.array(features.indices(classes))[index]
        super().__init__(f"UCF/VGGSound {side}", modalities, [table["video_id"][row] for row in rows],
                         {m: paths[m] for m in modalities if m != "text"}, text=text, classes=classes,
                         labels=single_event(index, np.ones((len(index), 1)), len(classes)),
                         on_bad_clip=on_bad_clip, **reading)
