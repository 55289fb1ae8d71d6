"""Manifest of a user's clips: a csv with the columns id and split and, optionally, label, onset, offset and prompt.

Several rows with the same id are several events of a clip, or several sentences about it; "|" separates sentences in a
cell.
"""

import math
import unicodedata
from dataclasses import dataclass, field

from cmg.data.csv import read_header, read_rows
from cmg.utils.errors import InputError
from cmg.utils.files import safe_name

CUSTOM = "custom"                  # --dataset_name, task and path prefix of the user's own data
SPLITS = ("train", "val", "test")
OPTIONAL = ("label", "onset", "offset", "prompt")
FORM = "the columns id, split and, optionally, label, onset, offset, prompt"


@dataclass
class Clip:
    """One clip of a manifest.

    Attributes:
        line: line number of its first row.
        split: "train", "val" or "test".
        events: (line, label, onset, offset) of its labeled rows; times in seconds, None if the manifest has no times.
        prompts: its distinct sentences.
    """

    line: int
    split: str
    events: list = field(default_factory=list)
    prompts: list = field(default_factory=list)


def sentences_in(cell):
    """The sentences in a cell of the column `prompt`."""
    return [sentence.strip() for sentence in cell.split("|")]


class Manifest:
    """A validated manifest.

    Args:
        path: csv file, UTF-8, comma-separated.
        seconds: T; no event may end later.
        table: (column names, rows as yielded by `read_rows`) of another table converted to this format; `path` is then
            its name for messages.
    Attributes:
        clips: id -> `Clip`, in the order of their first rows. Ids are normalized to NFC.
        columns: the known columns of the header.
    Raises:
        InputError: with file and line: an invalid csv, a missing column, an unknown split, an id that is not a file
            name, a clip with two splits or classes, invalid times.
    """

    def __init__(self, path, seconds=math.inf, table=None):
        self.path, self.clips = path, {}
        header, rows = table or (read_header(path, flag="--manifest"),
                                 read_rows(path, ("id", "split"), optional=OPTIONAL, flag="--manifest"))
        self.columns = [name for name in ("id", "split", *OPTIONAL) if name in header]
        other = next((name for name in header if name.lower() in OPTIONAL and name.lower() not in header), None)
        if other:
            raise InputError(f"{path}: column '{other}'; expected '{other.lower()}' in lower case; rename it")
        lonely = {"onset", "offset"} & set(header)
        if len(lonely) == 1 or lonely and "label" not in header:
            missing = next(name for name in ("onset", "offset", "label") if name not in header)
            raise InputError(f"{path}: column '{min(lonely)}' but no column '{missing}'; expected label, onset and "
                             f"offset together; add '{missing}', or remove '{min(lonely)}'")
        for line, cells in rows:
            self._add(line, cells, seconds)
        if not self.clips:
            raise InputError(f"{path}: no rows below the header; expected one row per clip, with {FORM}; add them")

    @property
    def has_times(self):
        """Whether labels apply to seconds instead of whole clips."""
        return "onset" in self.columns

    @property
    def has_prompts(self):
        return any(clip.prompts for clip in self.clips.values())

    def ids(self, splits):
        """Ids of the clips in some splits, ordered by split: train, val, test."""
        return [name for split in SPLITS if split in splits for name, clip in self.clips.items() if clip.split == split]

    def classes(self):
        """Sorted class names of the labeled train clips.

        Raises:
            InputError: no train clip has a label, or another split has a label that train does not have.
        """
        if "label" not in self.columns:
            raise InputError(f"{self.path}: no column 'label'; expected a class for each clip of train and test; add "
                             "the column, or use the list only for pretraining")
        found = {split: {} for split in SPLITS}
        for clip in self.clips.values():
            for line, label, *_ in clip.events:
                found[clip.split].setdefault(label, line)
        if not found["train"]:
            raise InputError(f"{self.path}: no row of the split train has a label; expected labeled clips to train on; "
                             "fill in the column 'label'")
        for split in ("val", "test"):
            for label, line in found[split].items():
                if label not in found["train"]:
                    raise InputError(f"{self.path}: line {line}: the label '{label[:60]}' is in {split} but not in "
                                     "train; expected a class that train has; correct the name, or add clips of this "
                                     "class to train")
        return sorted(found["train"])

    def labeled(self, split):
        """Ids of the labeled clips of a split. Unlabeled train clips are allowed; they are used only for pretraining.

        Raises:
            InputError: a clip of val or test without a label, or no clips.
        """
        ids = self.ids((split,))
        if not ids:
            raise InputError(f"{self.path}: no row has the split '{split}'; expected clips of train and of test; mark "
                             "some with it in the column 'split'")
        for name in ids:
            if split != "train" and not self.clips[name].events:
                raise InputError(f"{self.path}: line {self.clips[name].line}: no label, and the split is {split}; "
                                 "expected a label for every clip of val and test; add it, or remove the line")
        return [name for name in ids if self.clips[name].events]

    # ------------------------------------------------------------------------------------------------ reading
    def _add(self, line, cells, seconds):
        name, split = unicodedata.normalize("NFC", cells["id"]), cells["split"]
        where = f"{self.path}: line {line}"
        try:
            safe_name(name, where)
        except InputError:
            raise InputError(f"{where}: the id '{name[:60]}' contains a folder or is too long; expected a plain file "
                             "name without its suffix; rename the clip, and pass the folder with --features") from None
        if split not in SPLITS:
            raise InputError(f"{where}: split '{split[:40]}'; expected train, val or test; correct the line")
        clip = self.clips.setdefault(name, Clip(line, split))
        if clip.split != split:
            raise InputError(f"{where}: {name} is in {split}, but in {clip.split} in line {clip.line}; expected all "
                             "rows of a clip in one split; correct one of the lines")
        sentences = sentences_in(cells.get("prompt", ""))
        if cells.get("prompt") and not all(sentences):
            raise InputError(f"{where}: an empty sentence in the prompt '{cells['prompt'][:60]}'; expected sentences "
                             "separated by |; correct the line")
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence and sentence not in clip.prompts]
        event = self._event(where, line, cells, seconds)
        before = [known[1:] for known in clip.events]
        if clip.line != line and not new and (event is None or event[1:] in before):
            raise InputError(f"{where}: {name} is already in line {clip.line}, with the same label and prompt; "
                             "expected each clip once, or once per event or sentence; remove the line")
        clip.prompts += new
        if event is None or event[1:] in before:
            return
        if clip.events and not self.has_times:
            raise InputError(f"{where}: {name} has the label '{event[1][:60]}', but '{clip.events[0][1][:60]}' in line "
                             f"{clip.events[0][0]}; expected one class per clip; correct one of the lines, or add "
                             "onset and offset for clips with several events")
        clip.events.append(event)

    def _event(self, where, line, cells, seconds):
        """(line, label, onset, offset) of a row; None if it has no label."""
        label = cells.get("label", "")
        times = [cells[name] for name in ("onset", "offset") if name in cells]
        if not label:
            if any(times):
                raise InputError(f"{where}: no label, but an event from {times[0] or '?'} to {times[1] or '?'}; "
                                 "expected the class of the event; add the label, or remove the times")
            return None
        if not times:
            return line, label, None, None
        try:
            onset, offset = map(float, times)
        except ValueError:
            onset = offset = math.nan
        if not (math.isfinite(onset) and math.isfinite(offset)):
            raise InputError(f"{where}: onset '{times[0][:20]}' and offset '{times[1][:20]}'; expected two times in "
                             "seconds; correct the line")
        if not 0 <= onset < offset:
            raise InputError(f"{where}: an event from {onset:g} to {offset:g}; expected 0 <= onset < offset, in "
                             "seconds; correct the line")
        if offset > seconds:
            raise InputError(f"{where}: an event from {onset:g} to {offset:g} seconds, but clips have {seconds}; "
                             "expected times within the clip; correct the line, or set the clip length with --seconds")
        return line, label, onset, offset
