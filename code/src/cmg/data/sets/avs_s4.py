"""AVSBench-S4: clips of five frames with masks, audio, and the sentence of their class (Zhou et al., ECCV 2022)."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmg.data.archive import read_zip
from cmg.data.clips import Paths
from cmg.data.csv import read_header, read_table
from cmg.data.features import SHAPES, check_clip
from cmg.data.text import TextFeatures, read_prompts
from cmg.utils.errors import InputError
from cmg.utils.files import open_input, safe_name
from cmg.utils.limits import LIMITS

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
NAME = "AVSBench-S4"
SPLITS = ("train", "val", "test")
SECONDS = 5                     # seconds per clip, with one frame each
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)     # of ImageNet, which the backbones were trained on
FORMATS = ("PNG", "JPEG")        # allowed image formats; others may start programs (EPS)
FOREGROUND = 128                # gray level from which a mask pixel is foreground
COLUMNS = {"name": 0, "category": 2, "split": None}     # -> position of the column if it has another name


class Row(NamedTuple):
    """A clip of the list."""

    name: str
    category: str
    split: str


def read_list(path):
    """Read the clip list: a `Row` for each line.

    If `name` or `category` have other names, the columns at their published positions are used.

    Raises:
        InputError: see read_table; an unknown split, a clip listed twice, a name that is not a plain file name.
    """
    header = read_header(path)

    def heading(name, position):
        is_elsewhere = name not in header and position is not None and position < len(header)
        return header[position] if is_elsewhere and header[position] not in COLUMNS else name
    headings = [heading(*column) for column in COLUMNS.items()]
    table = read_table(path, headings)
    rows = [Row(*cells) for cells in zip(*(table[name] for name in headings))]
    for row in rows:
        if row.split not in SPLITS:
            raise InputError(f"{path}: clip {row.name[:40]} has the split '{row.split[:40]}'; expected train, val or "
                             "test; correct the line")
        for name in row[:2]:
            safe_name(name, path)
    row, times = Counter(rows).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: clip {row.name[:40]} is listed {times} times; expected once; remove the other lines")
    return rows


def read_image(path, mode, size):
    """Read an image as uint8: mode "RGB" (H, W, 3), resized bilinearly, or "L" (H, W), resized to nearest pixels."""
    try:
        with open_input(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > LIMITS.pixels:
                raise ValueError(f"{image.width} x {image.height}, more than {LIMITS.pixels:,} pixels")
            image = image.convert(mode)
            if image.size != (size, size):
                image = image.resize((size, size), Image.BILINEAR if mode == "RGB" else Image.NEAREST)
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image; unpack the data again or correct the clip list") from error
    except Exception as error:      # noqa: BLE001   Pillow's decoders fail in many ways
        raise InputError(f"{path}: not a valid image ({error}); unpack it again") from error


class S4:
    """Map-style dataset of one split.

    An item is a dict: "frames" (5, 3, S, S) float32 normalized, "masks" (1 or 5, S, S) float32 in {0, 1} (one in
    train), "audio" (5, ...) float32, "category" int, "number" int, "greys" int: mask pixels other than 0 and 255.

    Args:
        paths: {"csv", "frames", "masks"} and, as needed, "audio", "prompts" and "text" -> Path.
        split: "train", "val" or "test".
        size: S, side of frames and masks.
        modalities: from "audio" and "text": the modalities of the queries.
        name: name of the dataset in results.
    Attributes:
        words: (C, L, W) float32 word vectors of the class sentences; None without text.
    Raises:
        InputError: see read_list; the split has no clips; missing images or audio (names the first); a class without a
            sentence, a sentence without word vectors.
    """

    def __init__(self, paths: Paths, split: str, size: int = 224, modalities: Sequence[str] = ("audio", "text"),
                 name: str = NAME) -> None:
        rows = read_list(paths["csv"])
        self.classes = sorted({row.category for row in rows})       # of the whole list, so that splits agree
        rows = [row for row in rows if row.split == split]
        if not rows:
            raise InputError(f"{paths['csv']}: no clip of split '{split}'; expected at least one; download the list "
                             "again")
        self.name, self.split, self.size, self.modalities = name, split, size, tuple(modalities)
        self.ids, self.categories = [row.name for row in rows], [row.category for row in rows]
        self.numbers = [self.classes.index(category) for category in self.categories]
        self.paths = {kind: Path(path) for kind, path in paths.items()}
        self.num_masks = 1 if split == "train" else SECONDS
        self.sound_shapes = SHAPES["audio"]         # of one second; fixed by the first clip
        self._require_files()
        self.words = self._read_words() if "text" in self.modalities else None

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, kind: str, i: int, k: int) -> Path:
        """Path of the k-th (1..5) frame or mask of clip i."""
        return self.paths[kind] / self.split / self.categories[i] / self.ids[i] / f"{self.ids[i]}_{k}.png"

    def sound(self, i: int) -> Path:
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

    def _read_words(self):
        prompts = read_prompts(self.paths["prompts"])
        unknown = [name for name in self.classes if name not in prompts]
        if unknown:
            raise InputError(f"{self.paths['prompts']}: no sentence for class '{unknown[0]}' of {self.paths['csv']} "
                             f"({len(unknown)} of {len(self.classes)} lack one); add it or correct the class name")
        features = TextFeatures(self.paths["text"])
        return features.vectors[features.indices([prompts[name] for name in self.classes])]

    def __getitem__(self, i: int) -> dict[str, Any]:
        frames = np.stack([read_image(self.picture("frames", i, k), "RGB", self.size) for k in range(1, SECONDS + 1)])
        frames = (frames.astype(np.float32) / 255 - np.asarray(MEAN, np.float32)) / np.asarray(DEVIATION, np.float32)
        masks = np.stack([read_image(self.picture("masks", i, k), "L", self.size)
                          for k in range(1, self.num_masks + 1)])
        item = {"frames": np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
                "masks": (masks >= FOREGROUND).astype(np.float32), "category": self.numbers[i], "number": i,
                "greys": int(((masks != 0) & (masks != 255)).sum())}
        if "audio" in self.modalities:
            item["audio"] = self.read_sound(i)
        return item

    def read_sound(self, i: int) -> NDArray[Any]:
        """Read the audio features of clip i, (5, ...) float32; shorter ones repeat their last second."""
        path = self.sound(i)
        feature = check_clip(read_zip(path), self.sound_shapes, SECONDS, path, "the first clip")
        self.sound_shapes = (feature.shape[1:],)
        return feature

    def queries(self) -> "dict[str, torch.Tensor]":
        """Inputs of the queries of all clips: tensors {"audio" (n, 5, ...), "category" (n,)}."""
        import torch  # here, because --help and checks do not need it
        inputs = {"category": torch.tensor(self.numbers)}
        if "audio" in self.modalities:
            inputs["audio"] = torch.from_numpy(np.stack([self.read_sound(i) for i in range(len(self))]))
        return inputs


def warn_of_greys(dataset, batch):
    """Warn about the first mask of a batch that is not black and white; returns whether there was one."""
    greys = batch["greys"]
    if not greys.any():
        return False
    i = int(batch["number"][int(greys.argmax())])
    log.warning("%s: %d mask pixels are neither 0 nor 255; values of %d or more count as foreground (more such masks "
                "are not reported)", dataset.picture("masks", i, 1), int(greys.max()), FOREGROUND)
    return True
