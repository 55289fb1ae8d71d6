"""AVVP (LLP): ten-second clips with several events each, with separate annotations for audio and video."""

from typing import Any

import numpy as np

from cmg.data.clips import Clips, Paths
from cmg.data.csv import class_indices, read_classes, read_table
from cmg.data.labels import multi_event, parse_times
from cmg.utils.errors import InputError

COLUMNS = ("filename", "onset", "offset", "event_labels")
LISTS = {"audio": "audio_csv", "video": "visual_csv"}       # each modality is tested on its own annotation


class AVVP(Clips):
    """The annotated (val and test) clips of one modality, with that modality's events as labels.

    Args:
        paths: name -> Path of "categories", "audio_csv" and "audio", or "visual_csv" and "video".
        modality: "audio" or "video".
        seconds: T; only events in the first T seconds are used.
        reading: on_bad_clip, in_memory, padding; see `Clips`.
    Raises:
        InputError: an invalid list, an unknown class, missing or bad clips.
    """

    def __init__(self, paths: Paths, modality: str, *, name: str = "AVVP", seconds: int = 10, **reading: Any) -> None:
        classes = read_classes(paths["categories"])
        names, labels = read_events(paths[LISTS[modality]], classes, seconds)
        super().__init__(f"{name} {modality}", (modality,), names, {modality: paths[modality]},
                         keys=[name[:11] for name in names], classes=classes, labels=labels,
                         seconds=seconds, **reading)


def read_events(path, classes, seconds=10):
    """Read the clips and labels of an event list: tab-separated, one row per clip, comma-separated events.

    Args:
        path: csv with `COLUMNS`; `filename` is the 11-character id with the start and end, <id>_<start>_<end>.
        classes: class names in label order (C).
        seconds: T.
    Returns:
        (names, labels (N, T, C+1) float32).
    Raises:
        InputError: missing column, lists of different lengths, times that are not numbers, unknown class.
    """
    table = read_table(path, COLUMNS, "\t")
    events = [[event.strip() for event in row.split(",")] for row in table["event_labels"]]
    class_indices(path, [event for row in events for event in row], classes, "the class list")
    index = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(events), seconds, len(classes) + 1), np.float32)
    for n, (name, row) in enumerate(zip(table["filename"], events)):
        onsets = parse_times(path, name, table["onset"][n])
        offsets = parse_times(path, name, table["offset"][n])
        if not len(row) == len(onsets) == len(offsets):
            raise InputError(f"{path}: {name} has {len(row)} events, {len(onsets)} onsets and {len(offsets)} offsets; "
                             "expected one of each for every event; correct the line")
        labels[n] = multi_event([(index[event], on, off) for event, on, off in zip(row, onsets, offsets)],
                                len(classes), seconds)
    return table["filename"], labels
