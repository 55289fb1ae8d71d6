"""Create the benchmark's derived lists from the official annotation files.

Text files are byte-identical to the published ones; HDF5 arrays have identical values (HDF5 files contain a date).
"""

import io
import re

import h5py
import numpy as np

from cmg.data.csv import class_indices, read_table, read_text
from cmg.data.labels import single_event
from cmg.data.sets.ave import CATEGORIES
from cmg.data.sets.ave_avvp import SHARED
from cmg.data.sets.avvp import COLUMNS
from cmg.data.sets.ucf51 import CLASSES as UCF51_CLASSES
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output

SECONDS = 10
# Label order of the published AVVP class list, which differs from that of the LLP program.
AVVP_CLASSES = ("Fire_alarm", "Accordion", "Frying_(food)", "Baby_laughter", "Speech", "Helicopter", "Banjo",
                "Chainsaw", "Violin_fiddle", "Acoustic_guitar", "Car", "Dog", "Baby_cry_infant_cry", "Cat", "Cheering",
                "Cello", "Lawn_mower", "Vacuum_cleaner", "Clapping", "Telephone_bell_ringing", "Chicken_rooster",
                "Motorcycle", "Singing", "Basketball_bounce", "Blender")
# Order of the classes in the published vggsound2ucf.csv, whose rows come from the 40k list.
VGGSOUND_OF_UCF = ("playing violin", "rope skipping", "playing cello", "basketball bounce", "playing tabla",
                   "playing acoustic guitar", "playing volleyball", "skateboarding", "bowling impact", "playing piano",
                   "skiing", "playing sitar", "typing on typewriter", "playing table tennis", "playing flute")
# A complete name: 11-character id, start and end. Five official ids are truncated and have no features.
WHOLE_NAME = re.compile(r"[\w-]{11}_\d+_\d+\W?")


def read_annotations(path, flag="--path"):
    """Read AVE's annotations: rows (category, video id, quality, start, end), `&`-separated, with or without header."""
    rows = [line.split("&") for line in read_text(path, flag).splitlines() if line.strip()]
    if rows and rows[0][0] == "Category":
        rows = rows[1:]
    for k, row in enumerate(rows):
        if len(row) != 5 or not (row[3].strip().isdecimal() and row[4].strip().isdecimal()):
            raise InputError(f"{path}: row {k + 1} is '{'&'.join(row)[:60]}'; expected category&id&quality&start&end; "
                             "download AVE's annotation files again")
    if not rows:
        raise InputError(f"{path}: no rows; expected category&id&quality&start&end; download AVE's annotation files "
                         "again")
    return [(category, video, quality, int(start), int(end)) for category, video, quality, start, end in rows]


def ave_labels(path):
    """AVE's labels (samples, 10, 29) float32 from Annotations.txt: foreground if start <= second < end."""
    rows = read_annotations(path)
    index = class_indices(path, [row[0] for row in rows], CATEGORIES, "AVE")
    t = np.arange(SECONDS)
    mask = (np.array([[row[3]] for row in rows]) <= t) & (t < np.array([[row[4]] for row in rows]))
    return single_event(np.array(index), mask, len(CATEGORIES))


def ave_order(annotations, split):
    """Row numbers of a split's rows in Annotations.txt, int64, in the order of the split list.

    Raises:
        InputError: a row of the split is not in the annotations.
    """
    rows = {row: k for k, row in enumerate(read_annotations(annotations))}
    order = [rows.get(row) for row in read_annotations(split)]
    if None in order:
        raise InputError(f"{split}: row {order.index(None) + 1} is not in {annotations}; expected rows of the "
                         "annotations; use matching files")
    return np.array(order, np.int64)


def shared_labels(labels):
    """Labels (samples, 10, 13) of the twelve shared classes: their columns of AVE's labels and the background."""
    return labels[..., [CATEGORIES.index(name) for name in SHARED.values()] + [len(CATEGORIES)]]


def shared_order(labels):
    """Row numbers of the samples with a shared event, int64, from all AVE splits as published."""
    return np.flatnonzero(labels[..., :-1].any((1, 2)))


def avvp_events(path):
    """Official AVVP events, list of (filename, onset, offset, event), without the rows that have no feature file."""
    table = read_table(path, COLUMNS, "\t")
    events = [row for row in zip(*(table[name] for name in COLUMNS)) if WHOLE_NAME.fullmatch(row[0])]
    if not events:
        raise InputError(f"{path}: no file name <11 characters>_<start>_<end>; expected the official AVVP "
                         "list; download it again")
    return events


def shared_events(events):
    """Events of the twelve shared classes; empty events are extended to one second, as in the published lists."""
    return [(name, on, str(int(on) + 1) if on == off else off, event)
            for name, on, off, event in events if event in SHARED]


def joined(events):
    """One row per clip: CONSECUTIVE events with the same filename are joined by commas (two published clips have two
    rows)."""
    rows = []
    for name, *event in events:
        if not rows or rows[-1][0] != name:
            rows.append((name, [], [], []))
        for column, cell in zip(rows[-1][1:], event):
            column.append(cell)
    return [(name, *(",".join(column) for column in columns)) for name, *columns in rows]


def vggsound_of_ucf(path):
    """Rows of vggsound2ucf.csv from the 40k list: ordered by class, then split (train, val, test), then as in the
    file."""
    table = read_table(path, ("category", "video_id", "split"))
    rows = list(zip(table["category"], table["video_id"], table["split"]))
    return [row for name in VGGSOUND_OF_UCF for split in ("train", "val", "test")
            for row in rows if row[0] == name and row[2] == split]


def ucf51_clips(video, audio):
    """Rows (category, video id), by class, of the UCF-101 clips of the 51 classes with audio that have a zip in both
    folders."""
    ids = {path.stem for path in video.glob("*.zip")} & {path.stem for path in audio.glob("*.zip")}
    of_class = {name: [] for name in UCF51_CLASSES}
    for name in sorted(ids):
        found = re.fullmatch(r"v_(\w+)_g\d+_c\d+", name)
        if found and found.group(1) in of_class:
            of_class[found.group(1)].append((found.group(1), name))
    return [row for rows in of_class.values() for row in rows]


def write_lists(path_of, overwrite=False):
    """Write every derived list whose official files exist.

    Args:
        path_of: function from a dotted name (cmg/data/layout.py) to its path.
        overwrite: replace existing files; by default they are kept.
    Returns:
        list of (path, text that says what was done).
    Raises:
        InputError: invalid official files, or a path that cannot be written.
    """
    makers = {}
    annotations = path_of("ave.annotations")
    if annotations.exists():
        labels = ave_labels(annotations)
        shared = shared_labels(labels)
        makers["ave.label"] = lambda path: _write_array(path, "avadataset", labels)
        makers["ave_avvp.label"] = lambda path: _write_array(path, "avadataset", shared)
        makers["ave_avvp.order"] = lambda path: _write_array(path, "order", shared_order(shared))
        for split in ("train", "val", "test"):
            if path_of(f"ave.{split}_list").exists():
                order = ave_order(annotations, path_of(f"ave.{split}_list"))
                makers[f"ave.{split}"] = lambda path, order=order: _write_array(path, "order", order)
    for side in ("audio", "visual"):
        if path_of(f"avvp.official_{side}").exists():
            events = avvp_events(path_of(f"avvp.official_{side}"))
            rows, shared_rows = joined(events), joined(shared_events(events))
            makers[f"avvp.{side}_csv"] = lambda path, rows=rows: _write_rows(path, COLUMNS, rows, "\t")
            makers[f"ave_avvp.{side}_csv"] = lambda path, rows=shared_rows: _write_rows(path, COLUMNS, rows, "\t")
            makers["avvp.categories"] = lambda path: _write_rows(path, (), [(name,) for name in AVVP_CLASSES], ",")
            makers["ave_avvp.categories"] = lambda path: _write_rows(path, (), [(name,) for name in SHARED], ",")
    if path_of("vggsound.csv").exists():
        clips = vggsound_of_ucf(path_of("vggsound.csv"))
        if clips:
            makers["ucf_vggsound.vggsound_csv"] = lambda path: _write_rows(
                path, ("category", "video_id", "split"), clips, ",")
    if path_of("ucf51.video").is_dir() and path_of("ucf51.audio").is_dir():
        clips = ucf51_clips(path_of("ucf51.video"), path_of("ucf51.audio"))
        if clips:
            makers["ucf51.csv"] = lambda path, rows=clips: _write_rows(path, ("category", "video_id"), rows, ",")
    if "ucf51.csv" in makers or path_of("ucf51.csv").exists():
        makers["ucf51.categories"] = lambda path: _write_rows(path, (), [(name,) for name in UCF51_CLASSES], ",")
    report = []
    for name, write in makers.items():
        path = path_of(name)
        if path.exists() and not overwrite:
            report.append((path, "exists, not changed"))
        else:
            write(path)
            report.append((path, "written"))
    return report


def _write_rows(path, header, rows, separator):
    lines = [separator.join(row) for row in ([header] if header else []) + rows]
    _write(path, "".join(f"{line}\n" for line in lines).encode())


def _write_array(path, name, array):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset(name, data=array, compression="gzip")
    _write(path, content.getvalue())


def _write(path, data):
    with atomic_output(path, remedy="choose another path with --path") as file:
        file.write(data)
