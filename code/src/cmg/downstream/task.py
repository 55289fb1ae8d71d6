"""A downstream task with opened data: clips by modality, the head, its metrics and settings."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmg.checkpoints import hub
from cmg.data.clips import Clips
from cmg.data.fingerprint import Fingerprint
from cmg.downstream import encode, fit_heads, metrics
from cmg.downstream.code_cache import CodeCache
from cmg.downstream.doubts import Doubts
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.settings import CacheSettings
from cmg.models.heads import DeepSegmentHead, SegmentHead
from cmg.systems.base import FrozenEncoder
from cmg.utils import files
from cmg.utils.errors import InputError

log = logging.getLogger(__name__)
SHOWN = 8                        # test clips whose features are saved for the pictures


@dataclass
class Task:
    """A task with opened data."""

    name: str
    head: type[Any]                              # ClipHead or SegmentHead (cmg/models/heads.py)
    best_by: str                                 # metric that chooses the best epoch, one of `metrics`
    train: dict[str, Clips]                      # modality -> labeled clips to train heads on
    test: dict[str, Clips]                       # modality -> clips to test heads on
    val: dict[str, Clips] = field(default_factory=dict)     # modality -> clips for choosing an epoch, if any
    contents: dict[str, Fingerprint] = field(default_factory=dict, kw_only=True)  # by dotted name
    label_key = "label"                          # key of an item's labels

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that `measure` returns."""
        return ("accuracy", "macro_precision") if self.head.clipwise else ("precision", "recall", "f1")

    @property
    def classes(self) -> list[str]:
        return next(iter(self.train.values())).classes

    def make(self, width: int, segment_layers: int = 2) -> torch.nn.Module:
        """A new head for codes of this width; `segment_layers` is the depth of heads that classify seconds."""
        head = DeepSegmentHead if segment_layers == 4 and self.head is SegmentHead else self.head
        return head(width, len(self.classes))

    def training(self, part: EncodedSplit) -> tuple[EncodedSplit, EncodedSplit | None]:
        """Split the labeled clips into (EncodedSplit for training heads, EncodedSplit of held-out clips or None)."""
        return part, None

    def targets(self, part: EncodedSplit) -> Tensor:
        """Targets of the head's loss: clip classes (N,) or labels (N, T, C + 1)."""
        return part.clip_classes if self.head.clipwise else part.labels

    def measure(self, heads: Sequence[torch.nn.Module], part: EncodedSplit,
                batch_size: int | None = None) -> dict[str, Tensor]:
        """metric -> (E,) percent of E heads on an EncodedSplit. `batch_size`: see metrics.segment_scores,
        macro_precision."""
        outputs = fit_heads.predict(heads, part)
        if self.head.clipwise:
            return {"accuracy": metrics.accuracy(outputs, part.clip_classes),
                    "macro_precision": metrics.macro_precision(outputs, part.clip_classes, batch_size)}
        return metrics.segment_scores(outputs, part.labels, batch_size, part.mask)

    def chance(self, part: EncodedSplit, batch_size: int | None = None) -> dict[str, float]:
        """metric -> percent for a constant guess that ignores the input."""
        if self.head.clipwise:
            return dict.fromkeys(self.metrics, 100 / len(self.classes))
        return metrics.segment_chance(part.labels, batch_size, part.mask)

    def at_end(self, head: torch.nn.Module, part: EncodedSplit, held: EncodedSplit | None) -> dict[str, float]:
        """metric -> percent of metrics that require a trained head, on an EncodedSplit; `held`: clips held out by
        `training`."""
        return {}

    def pictured(self, heads: Sequence[torch.nn.Module], part: EncodedSplit, dataset: Clips) -> dict[str, Any]:
        """Arrays for the pictures of a direction.

        `shown` are the clips whose features are saved (`sample`).

        Args:
            heads: the direction's, then the same-modality one.
            part: EncodedSplit of the tested clips.
            dataset: these clips.
        """
        outputs = fit_heads.predict(heads, part).float().cpu().numpy()
        classes, labels = part.clip_classes.cpu().numpy(), part.labels.cpu().numpy().astype(np.uint8)
        shown = sample(classes, outputs[0].argmax(-1) == classes if self.head.clipwise else classes >= 0)
        if part.mask is not None and not self.head.clipwise:        # padded seconds have no labels or predictions
            padded = ~part.mask.cpu().numpy()
            labels[padded], outputs[:, padded] = 0, -np.inf
        return {"classes": np.array(self.classes), "labels": labels,
                "clipwise": self.head.clipwise, "cross": outputs[0], "same": outputs[-1],
                "shown": shown}


def sample(classes, is_right, count=SHOWN):
    """Sorted indices of up to `count` clips, with correct and wrong predictions in the overall proportion, from many
    classes.

    Args:
        classes, is_right: (N,) class of each clip, and whether its prediction is right.
    """
    count, found = min(count, len(classes)), []
    wrong = round(count * (1 - is_right.mean()))
    for mask, number in ((~is_right, wrong), (is_right, count - wrong)):
        for _ in range(number):
            times = Counter(classes[found].tolist())
            rest = [clip for clip in np.flatnonzero(mask) if clip not in found]
            found.append(min(rest, key=lambda clip: (times[classes[clip]], clip)))
    return np.sort(found)


@dataclass
class Pretrained:
    """A frozen encoder and its source."""

    path: Path
    encoder: FrozenEncoder
    sha256: str
    warned: set[str] = field(default_factory=set)
    doubts: Doubts = field(default_factory=Doubts)

    def warn(self, lines: Iterable[str]) -> None:
        """Log each of these lines unless it was logged before for this encoder."""
        for line in lines:
            if line not in self.warned:
                self.warned.add(line)
                log.warning(line)

    def conclude(self, name: str = "") -> None:
        """Log the doubts about all results; `name` is that of the encoder if there are several."""
        self.warn(f"warning: {name}{line}" for line in self.doubts.lines(self.encoder))

    @classmethod
    def load(cls, path: str | PathLike[str], device: str | torch.device, precision: str,
             zero_code0: bool = False) -> "Pretrained":
        """The frozen encoder of a checkpoint, an exported folder, or a name on the hub (cmg/checkpoints/hub.py);
        float64 only for `precision` "float64"."""
        dtype, found = torch.float64 if precision == "float64" else torch.float32, hub.locate(path)
        return cls(found, hub.load_encoder(found, device, dtype, zero_code0), files.sha256(found))

    def cache(self, settings: CacheSettings, paths: Mapping[str, Path],
              contents: Mapping[str, Fingerprint]) -> CodeCache | None:
        """The code cache of the checkpoint, None with --cache_gb 0. `paths` and `contents`: dotted name -> path and
        fingerprint of the encoded data."""
        if not settings.cache_gb:
            return None
        return CodeCache(self.path, settings.cache_gb, {paths[name]: found.sha256 for name, found in contents.items()},
                         self.warn)

    @property
    def code_dim(self) -> int:
        """Width of the codes of one codebook, in which TOC counts channels."""
        return self.encoder.codebooks[0].shape[1]


def check(task, pretrained, directions):
    """Raise InputError unless the task's data and the encoder support every direction; reads one clip of each
    dataset."""
    for source, target in directions:
        for role, modality, parts in (("labeled", source, task.train), ("test", target, task.test)):
            if modality not in parts:
                raise InputError(f"{task.name}: {source}->{target} needs {role} clips with {modality}, which this task "
                                 "does not have; choose another --source and --target")
            encode.check_fit(pretrained.encoder, parts[modality], modality, pretrained.path)
    classes = {tuple(part.classes) for part in (*task.train.values(), *task.test.values(), *task.val.values())}
    if len({len(names) for names in classes}) > 1:
        counts = " and ".join(str(len(names)) for names in classes)
        raise InputError(f"{task.name}: its parts have {counts} classes; expected the same list of classes; check the "
                         "category files")
