"""AVSBench-S4 on disk: frames, masks, sounds and class sentences of one split (spec/avs.md sections 1, 2)."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from avs_s4.query import SECONDS
from dataset.archive import read_zip
from dataset.features import SHAPES, check_clip
from errors import InputError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)     # of ImageNet, which the backbones were trained on
SPLITS = ("train", "val", "test")
HALF = 128                          # grey levels from here on are foreground


def read_list(path):
    """The clip table with columns name, category, split, as text; other headers fall back to positions 0 and 2.

    Raises:
        InputError: no file, not a table, a column or value missing, an unknown split, a clip listed twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]}); expected the clip list "
                         "with columns name, start, category, split; see --path avs.csv") from error
    for position, column in ((0, "name"), (2, "category")):
        if column not in table and len(table.columns) > position:
            table = table.rename(columns={table.columns[position]: column})
    missing = [column for column in ("name", "category", "split") if column not in table]
    if missing:
        raise InputError(f"{path}: no column '{missing[0]}' among {', '.join(map(str, table.columns))}; expected name, "
                         "start, category, split")
    table = table[["name", "category", "split"]].apply(lambda column: column.str.strip())
    for column in table:
        if (table[column] == "").any():
            row = int((table[column] == "").argmax()) + 1
            raise InputError(f"{path}: row {row} has no {column}; fill or remove it")
    strange = sorted(set(table["split"]) - set(SPLITS))
    if strange:
        raise InputError(f"{path}: split '{strange[0]}'; expected train, val or test")
    twice = table[table.duplicated(["name", "category", "split"])]
    if len(twice):
        raise InputError(f"{path}: clip {twice['name'].iloc[0]} is listed twice; remove one of the rows")
    if any(part in name for name in (*table["name"], *table["category"]) for part in ("/", "\\", "..")):
        raise InputError(f"{path}: a name or category with a path in it; expected plain names")
    return table


def read_image(path, mode, size):
    """A picture as an array: mode "RGB" (H, W, 3), resized bilinearly, or "L" (H, W), nearest; uint8."""
    try:
        with Image.open(path) as image:
            image = image.convert(mode)
            if image.size != (size, size):
                image = image.resize((size, size), Image.BILINEAR if mode == "RGB" else Image.NEAREST)
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such picture; unpack the data again or correct the clip list") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a whole picture ({error}); unpack it again") from error


class S4(Dataset):
    """One split. An item is a dict: "frames" (5, 3, S, S) float32 normalised, "masks" (1 or 5, S, S) float32 in {0, 1}
    (one in train), "audio" (5, 128) float32, "category" int, "number" int, "greys" int: mask values besides 0 and 255.

    Args:
        paths: {"csv", "frames", "masks", "audio"} -> Path.
        split: "train", "val" or "test".
        size: S, side of frames and masks.
        modalities: ("audio", "text"): whether sounds are read.
        name: of the data set, in results.

    Raises:
        InputError: see read_list; no clip of the split; any picture or sound missing (the first is named).
    """

    def __init__(self, paths, split, size=224, modalities=("audio", "text"), name="AVSBench-S4"):
        table = read_list(paths["csv"])
        self.classes = sorted(set(table["category"]))       # of the whole list: the same numbers in all splits
        table = table[table["split"] == split]
        if table.empty:
            raise InputError(f"{paths['csv']}: no clip of split '{split}'")
        self.name, self.split, self.size, self.modalities = name, split, size, tuple(modalities)
        self.ids, self.categories = list(table["name"]), list(table["category"])
        self.numbers = [self.classes.index(category) for category in self.categories]
        self.paths = {name: Path(paths[name]) for name in ("frames", "masks", "audio")}
        self.num_masks = 1 if split == "train" else SECONDS
        self._require_files()

    def __len__(self):
        return len(self.ids)

    def picture(self, kind, i, k):
        """Path of the k-th (1..5) frame or mask of clip i."""
        return self.paths[kind] / self.split / self.categories[i] / self.ids[i] / f"{self.ids[i]}_{k}.png"

    def sound(self, i):
        """Path of the audio features of clip i."""
        return self.paths["audio"] / self.split / "zip" / self.categories[i] / f"{self.ids[i]}.zip"

    def _require_files(self):
        missing = []
        for i in range(len(self)):
            files = [self.picture("frames", i, k) for k in range(1, SECONDS + 1)]
            files += [self.picture("masks", i, k) for k in range(1, self.num_masks + 1)]
            files += [self.sound(i)] if "audio" in self.modalities else []
            missing += [path for path in files if not path.is_file()]
        if missing:
            raise InputError(f"{missing[0]}: no such file ({len(missing)} files of split '{self.split}' are missing); "
                             "unpack the data again, correct the clip list, or see --data_root and --path")

    def __getitem__(self, i):
        frames = np.stack([read_image(self.picture("frames", i, k), "RGB", self.size) for k in range(1, SECONDS + 1)])
        frames = (frames.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
        masks = [read_image(self.picture("masks", i, k), "L", self.size) for k in range(1, self.num_masks + 1)]
        masks = np.stack(masks)
        item = {"frames": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
                "masks": (masks >= HALF).astype(np.float32), "category": self.numbers[i], "number": i,
                "greys": int(((masks != 0) & (masks != 255)).sum())}
        if "audio" in self.modalities:
            item["audio"] = self.read_sound(i)
        return item

    def read_sound(self, i):
        """Audio features of clip i, (5, 128) float32: the last second repeated, or the first five kept."""
        path = self.sound(i)
        return check_clip(read_zip(path), SHAPES["audio"], SECONDS, path)

    def queries(self):
        """What the queries of all clips are made of: {"audio" (n, 5, 128), "category" (n,)} tensors."""
        inputs = {"category": torch.tensor(self.numbers)}
        if "audio" in self.modalities:
            inputs["audio"] = torch.from_numpy(np.stack([self.read_sound(i) for i in range(len(self))]))
        return inputs


def warn_of_greys(dataset, batch, warn):
    """True after one line about the first mask of a batch that is not black and white."""
    greys = batch["greys"]
    if not greys.any():
        return False
    i = int(batch["number"][int(greys.argmax())])
    warn(f"{dataset.picture('masks', i, 1)}: {int(greys.max())} mask pixels are neither 0 nor 255; from {HALF} on they "
         "count as foreground (further such masks are not reported)")
    return True
