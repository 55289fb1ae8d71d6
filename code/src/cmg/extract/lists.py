"""Write the lists that the other scripts read below a data root from a table of video labels."""

import csv
import errno
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from cmg.data.csv import read_header, read_rows
from cmg.data.manifest import OPTIONAL, Manifest
from cmg.data.text import read_prompts
from cmg.extract.output import CHECKED, write_whole
from cmg.utils.errors import InputError

IDS, LABELS = ("file", "video_id", "id", "name"), ("label", "category")
FULL = errno.ENOSPC, errno.EDQUOT
CYCLE = ("train", "train", "test", "train", "val")          # splits of a class's clips if the table has none
MANIFEST = "clips.csv"
FOLDER = "vggsound40k"                                       # folder of pretraining clips below a data root
LIST = f"{FOLDER}/data/vggsound-avel40k.csv"
CATEGORIES = f"{FOLDER}/data/VggsoundAVEL40kCategories.txt"
PROMPTS = f"{FOLDER}/data/vggsoundCategories2Prompts.csv"
TRANSFER = {"train": "UCF101/data/ucf2vggsound.csv", "test": "UCF101/data/vggsound2ucf.csv"}
WRITTEN = (CHECKED, MANIFEST, LIST, CATEGORIES, PROMPTS, *TRANSFER.values())
TRANSFER_CLASSES = ("UCF101/data/UCF101sameVGGSound.txt", "UCF101/data/VGGSoundsameUCF101.txt")
LINKS = {f"{FOLDER}/feature/audio": "../../audio", f"{FOLDER}/feature/video": "../../video",
         f"{FOLDER}/feature/text": "../../text",
         "UCF101/feature/video": "../../video", "UCF101/feature/text": "../../text",
         f"{FOLDER}/data/video_name_vggsound81k_checked.csv": f"../../{CHECKED}"}


@dataclass
class Labels:
    """A table of labels: one row per clip, or several where events have onsets or clips have several sentences.

    Attributes:
        path: the table, for messages.
        ids: clip of each row (N).
        lines: line number of each row (N).
        columns: those of "label", "split", "prompt", "onset" and "offset" that the table has: (N).
        prompts: label -> sentence.
        starts: clip -> (line, seconds), if a column of starts was named.
    """

    path: Path
    ids: list
    lines: list
    columns: dict
    prompts: dict = field(default_factory=dict)
    starts: dict = field(default_factory=dict)

    def first(self, column):
        """Clip -> value of a column in the clip's first row."""
        return dict(zip(reversed(self.ids), reversed(self.columns[column])))

    def sentences(self):
        """Prompt of each row, by default that of its label."""
        own = self.columns.get("prompt", [""] * len(self.ids))
        return [prompt or self.prompts[label] for prompt, label in zip(own, self.columns["label"])]


def read_labels(path, to_id, start=None, prompts=None, names=None):
    """Read the user's table, which must follow the rules of a manifest (cmg/data/manifest.py).

    Args:
        path: csv; see `IDS` and `LABELS` for the two required columns.
        to_id: function that converts a file name to a clip id.
        start: column with the start of each clip, or None.
        prompts: csv of label, prompt, or None.
        names: column names of a table without a header, or None.
    Returns:
        `Labels`.
    Raises:
        InputError: a missing column, an empty cell, an unknown split, a start that is not a number, a label without a
            prompt; a clip with two splits, two starts, or two classes without onsets.
    """
    header = read_header(path, names=names, flag="--labels")
    key = next((name for name in IDS if name in header), None)
    label = next((name for name in LABELS if name in header), None)
    if key is None or label is None:
        raise InputError(f"{path}: columns {', '.join(header)[:80] or 'none'}; expected one of {', '.join(IDS)} and "
                         f"one of {', '.join(LABELS)}; rename them in the header, or use --columns for a table without "
                         "a header")
    if start and start not in header:
        raise InputError(f"{path}: no column '{start}' for --start; expected one of {', '.join(header)[:80]}, or "
                         "seconds; correct --start")
    more = [name for name in ("split", *OPTIONAL) if name in header]
    needed = [name for name in dict.fromkeys((key, label, "split", start)) if name in header]
    rows = list(read_rows(path, needed, optional=OPTIONAL, names=names, flag="--labels"))
    ids = [to_id(cells[key]) for _, cells in rows]
    table = [(line, {"split": "train", **{column: cells[column] for column in more}, "id": name,
                     "label": cells[label]}) for name, (line, cells) in zip(ids, rows)]
    Manifest(path, table=(["id", "split", "label", *more], table))             # reports contradictions by line
    labels = Labels(path, ids, [line for line, _ in rows],
                    {"label": [cells[label] for _, cells in rows],
                     **{column: [cells[column] for _, cells in rows] for column in more if column != "label"}})
    for name, (line, cells) in zip(ids, rows) if start else ():
        _add_start(labels, line, name, cells[start])
    known = read_prompts(prompts, "--prompts") if prompts else {}
    for name in labels.columns["label"]:
        if prompts and name not in known:
            raise InputError(f"{prompts}: no prompt for '{name[:60]}'; expected one for each label; add it")
        labels.prompts[name] = known.get(name, name.replace("_", " "))
    return labels


def _add_start(labels, line, name, text):
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(f"{labels.path}: line {line}: the start is '{text[:20]}'; expected seconds; correct the line, "
                         "or choose another column with --start") from None
    first, known = labels.starts.setdefault(name, (line, seconds))
    if known != seconds:
        raise InputError(f"{labels.path}: line {line}: {name} starts at {seconds:g} s, but at {known:g} s in line "
                         f"{first}; expected one start per clip; correct one of the lines")


def splits(labels):
    """Split of each clip: from the table, else three fifths of each class train, one test and one val, by id."""
    if "split" in labels.columns:
        return labels.first("split")
    of_class = {}
    for name, label in sorted(labels.first("label").items()):
        of_class.setdefault(label, []).append(name)
    return {name: CYCLE[k % len(CYCLE)] for names in of_class.values() for k, name in enumerate(names)}


def _csv(header, rows):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows] if header else rows)
    return buffer.getvalue().encode("utf-8")


def write_checked(folder, ids):
    """Write `video_name_checked.csv`: the clips with complete features, in the format of the published list."""
    write_whole(Path(folder) / CHECKED, _csv(["id"], [[f"{name}.mp4"] for name in ids]))


def write_lists(folder, labels, ids, hop=1):
    """Write the lists for pretraining and transfer: published formats, and a manifest `clips.csv`.

    The transfer lists have the format of UCF<->VGGSound: video of the train clips on one side, audio of the test clips
    on the other, with the same classes.

    Args:
        folder: the output folder, to be used as a data root.
        labels: `Labels`.
        ids: clips with complete features.
        hop: seconds between consecutive rows of a feature; the manifest's onsets and offsets are in rows.
    """
    folder, ids = Path(folder), set(ids)
    of, split = labels.first("label"), splits(labels)
    names = [name for name in dict.fromkeys(labels.ids) if name in ids]
    write_whole(folder / LIST, _csv(["category", "video_id", "split"], [[of[n], n, split[n]] for n in names]))
    classes = _csv([], [[label] for label in sorted(set(labels.prompts))])
    for name in (CATEGORIES, *TRANSFER_CLASSES):
        write_whole(folder / name, classes)
    for part, path in TRANSFER.items():
        rows = [[of[n], n, part] for n in names if split[n] == part]
        write_whole(folder / path, _csv(["category", "video_id", "split"], rows))
    write_whole(folder / PROMPTS, _csv(["label", "prompt"], labels.prompts.items()))
    events = [name for name in ("onset", "offset") if name in labels.columns]
    sentences = labels.sentences()

    def in_rows(seconds):
        return seconds if hop == 1 else f"{float(seconds) / hop:.6g}"

    rows = [[name, split[name], label, *(in_rows(labels.columns[event][k]) for event in events), sentences[k]]
            for k, (name, label) in enumerate(zip(labels.ids, labels.columns["label"])) if name in ids]
    write_whole(folder / MANIFEST, _csv(["id", "split", "label", *events, "prompt"], rows))


def link_paths(folder, links):
    """Create relative links from paths below a data root to the files that this command writes.

    Returns:
        the paths that could not be linked because the file system has no links.
    Raises:
        InputError: the disk is full.
    """
    failed = []
    for name, target in links.items():
        path = Path(folder) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink() and not path.exists():
                os.symlink(target, path)
        except OSError as error:
            if error.errno in FULL:
                raise InputError(f"{path}: cannot be linked ({error.strerror}); free some disk space and run the "
                                 "command again to continue") from error
            failed.append(name)
    return failed
