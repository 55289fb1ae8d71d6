"""From labels of videos to the lists that the other scripts read, at the paths where they look below a data root."""

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
CYCLE = ("train", "train", "test", "train", "val")          # of the clips of a class, where no split is given
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
        columns: of "label", "split", "prompt", "onset" and "offset", those that are there: (N).
        prompts: label -> sentence.
        starts: clip -> (line, seconds), where a column of starts was named.
    """

    path: Path
    ids: list
    lines: list
    columns: dict
    prompts: dict = field(default_factory=dict)
    starts: dict = field(default_factory=dict)

    def first(self, column):
        """Value of a column by clip, of the clip's first row."""
        return dict(zip(reversed(self.ids), reversed(self.columns[column])))

    def sentences(self):
        """Prompt of each row: its own, else its label's."""
        own = self.columns.get("prompt", [""] * len(self.ids))
        return [prompt or self.prompts[label] for prompt, label in zip(own, self.columns["label"])]


def read_labels(path, to_id, start=None, prompts=None, names=None):
    """The user's table, held to the rules of a manifest (cmg/data/manifest.py).

    Args:
        path: csv; see `IDS` and `LABELS` for the two columns that are needed.
        to_id: function from a file's name to a clip's id.
        start: name of the column with the start of each clip, or None.
        prompts: csv of label, prompt, or None.
        names: column names of a table without a header, or None.
    Returns:
        `Labels`.
    Raises:
        InputError: a missing column, an empty cell, an unknown split, a start that is no number, a label without a
            prompt; a clip in two splits, of two classes without onsets, or with two starts.
    """
    header = read_header(path, names=names, flag="--labels")
    key = next((name for name in IDS if name in header), None)
    label = next((name for name in LABELS if name in header), None)
    if key is None or label is None:
        raise InputError(f"{path}: columns {', '.join(header)[:80] or 'none'}; one of {', '.join(IDS)} and one of "
                         f"{', '.join(LABELS)} are expected; rename them in the header, or name the columns of a table "
                         "without one with --columns")
    if start and start not in header:
        raise InputError(f"{path}: no column '{start}' for --start; {', '.join(header)[:80]} are there; name one of "
                         "them, or give seconds")
    more = [name for name in ("split", *OPTIONAL) if name in header]
    needed = [name for name in dict.fromkeys((key, label, "split", start)) if name in header]
    rows = list(read_rows(path, needed, optional=OPTIONAL, names=names, flag="--labels"))
    ids = [to_id(cells[key]) for _, cells in rows]
    table = [(line, {"split": "train", **{column: cells[column] for column in more}, "id": name,
                     "label": cells[label]}) for name, (line, cells) in zip(ids, rows)]
    Manifest(path, table=(["id", "split", "label", *more], table))             # refuses contradictions by line
    labels = Labels(path, ids, [line for line, _ in rows],
                    {"label": [cells[label] for _, cells in rows],
                     **{column: [cells[column] for _, cells in rows] for column in more if column != "label"}})
    for name, (line, cells) in zip(ids, rows) if start else ():
        _add_start(labels, line, name, cells[start])
    known = read_prompts(prompts, "--prompts") if prompts else {}
    for name in labels.columns["label"]:
        if prompts and name not in known:
            raise InputError(f"{prompts}: no prompt for '{name[:60]}'; one for each label is expected; add it")
        labels.prompts[name] = known.get(name, name.replace("_", " "))
    return labels


def _add_start(labels, line, name, text):
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(f"{labels.path}: line {line}: the start '{text[:20]}'; seconds are expected; correct the "
                         "line, or name another column with --start") from None
    first, known = labels.starts.setdefault(name, (line, seconds))
    if known != seconds:
        raise InputError(f"{labels.path}: line {line}: {name} starts at {seconds:g} s, and at {known:g} s in line "
                         f"{first}; one start per clip is expected; correct one of the lines")


def splits(labels):
    """Split of each clip: the table's own, else three fifths of each class train, one test, one val, by id."""
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
    """`video_name_checked.csv`: the clips whose features are all there, as the published list of file names."""
    write_whole(Path(folder) / CHECKED, _csv(["id"], [[f"{name}.mp4"] for name in ids]))


def write_lists(folder, labels, ids, hop=1):
    """The lists of pretraining and transfer: published forms, and a manifest `clips.csv`.

    Transfer has the form of UCF<->VGGSound: the video of the train clips on one side, the audio of the test clips on
    the other, with the same classes.

    Args:
        folder: the output folder, then a data root.
        labels: `Labels`.
        ids: clips whose features are all there.
        hop: seconds from one row of a feature to the next; the manifest's onsets and offsets count rows.
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
    """Relative links from paths below a data root to what this command writes.

    Returns:
        the paths that could not be linked, on file systems without links.
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
                raise InputError(f"{path}: cannot be linked ({error.strerror}); free space is expected; make room and "
                                 "repeat the call to go on") from error
            failed.append(name)
    return failed
