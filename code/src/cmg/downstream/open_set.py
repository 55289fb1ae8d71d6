"""Open-set cross-modal generalization (ICCV 2025): a head knows the first classes; clips of all others are unknown."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmg.data.labels import clip_class
from cmg.downstream import fit_heads
from cmg.downstream.metrics import harmonic_mean
from cmg.downstream.settings import OpenSetSettings
from cmg.downstream.task import Task
from cmg.utils.errors import InputError

STEPS = 10                      # thresholds from the least to the most confident clip
QUANTILE = 0.05                 # of held-out training clips, rejected by the fixed threshold
HELD_OUT = 10                   # one in this many training clips is held out for it
IGNORED = -100                  # target that is ignored by cross-entropy


@dataclass
class Scores:
    """Predictions for clips; leading dimensions (...) are heads or epochs."""

    confidence: Tensor          # (..., N) largest probability
    right: Tensor               # (..., N) bool: the class is known and predicted
    unknown: Tensor             # (N,) bool: the class is not known to the head

    @classmethod
    def of(cls, logits, classes):
        """Scores of logits (..., N, n) for n known classes, given the classes (N,) of the clips; those >= n are
        unknown."""
        confidence, predicted = logits.double().softmax(-1).max(-1)
        return cls(confidence, predicted == classes, classes >= logits.shape[-1])

    def thresholds(self):
        """Ten thresholds (..., 10) from exactly the smallest to exactly the largest confidence."""
        low, high = self.confidence.amin(-1, keepdim=True), self.confidence.amax(-1, keepdim=True)
        steps = torch.arange(STEPS, device=low.device, dtype=low.dtype) / (STEPS - 1)
        between = low + (high - low) * steps
        return torch.cat([between[..., :-1], high], -1)

    def rates(self, thresholds):
        """`Rates` (..., k) if clips below thresholds (..., k) are rejected; NaN without known or unknown clips."""
        accepted = self.confidence.unsqueeze(-2) >= thresholds.unsqueeze(-1)                   # (..., k, N)
        known = (~self.unknown).sum()
        os = (accepted & self.right.unsqueeze(-2)).sum(-1).double() / known
        unk = (~accepted & self.unknown).sum(-1).double() / self.unknown.sum()
        exist = ~(os.isnan() | unk.isnan())
        return Rates(os, unk, torch.where(exist, harmonic_mean(os, unk), torch.nan))

    def closed_accuracy(self):
        """Fraction (...) of known clips that are classified correctly, without rejection."""
        return self.right.sum(-1).double() / (~self.unknown).sum()

    def auroc(self):
        """Probability (...) that a known clip has a higher confidence than an unknown one; ties count one half."""
        # imported here because it takes a third of a second
        from scipy.stats import rankdata
        known = (~self.unknown).cpu().numpy()
        ranks = rankdata(self.confidence.cpu().numpy(), axis=-1)
        pairs = known.sum() * (~known).sum()
        above = ranks[..., known].sum(-1) - known.sum() * (known.sum() + 1) / 2
        return torch.from_numpy(np.asarray(above / pairs if pairs else np.full(above.shape, np.nan)))


@dataclass
class Rates:
    """Fractions of clips: OS* and UNK of ICCV 2025, and their harmonic mean HOS."""

    os: Tensor                  # of known clips, accepted and classified correctly
    unk: Tensor                 # of unknown clips, rejected
    hos: Tensor

    def best(self):
        """The rates at the largest HOS over the last dimension (the first of ties); 0 if none exceeds 0."""
        index = self.hos.argmax(-1, keepdim=True)
        os, unk, hos = (x.gather(-1, index).squeeze(-1) for x in (self.os, self.unk, self.hos))
        return Rates(*(torch.where(hos == 0, 0.0, x) for x in (os, unk, hos)))


def fixed_threshold(confidence):
    """Threshold (...) that rejects 5 % of clips with confidence (..., N), by linear interpolation."""
    return torch.quantile(confidence, QUANTILE, -1)


@dataclass
class OpenSet(Task):
    """Open-set task: a clip head with one output per known class.

    One in ten training clips is held out for the fixed threshold, none with protocol="released". The epoch and the
    threshold for os, unk and hos are chosen on the test clips, as published.

    Raises:
        InputError: there are no known or no unknown classes, or test clips.
    """

    settings: OpenSetSettings = OpenSetSettings()

    metrics = ("hos", "os", "unk", "auroc", "closed_accuracy")

    def __post_init__(self):
        number = len(self.classes)
        self.known = number // 2 if self.settings.source_class_num is None else self.settings.source_class_num
        if not 0 < self.known < number:
            raise InputError(f"--source_class_num {self.known}: {self.name} has {number} classes; 1 to {number - 1} of "
                             "them can be known")
        for clips in {id(clips): clips for clips in self.test.values()}.values():
            for kind, exists in zip(("known", "unknown"), self._kinds(clips)):
                if not exists:
                    raise InputError(f"{clips.name}: no test clip is of the {kind} classes (--source_class_num "
                                     f"{self.known} of {number} classes); choose another number or list")
        self.val = {m: clips for m, clips in self.val.items() if all(self._kinds(clips))}

    def _kinds(self, clips):
        """Whether there are clips of known classes and of unknown classes."""
        classes = clip_class(clips.labels)
        return bool((classes < self.known).any()), bool((classes >= self.known).any())

    def make(self, width, segment_layers=2):
        return self.head(width, self.known)

    def training(self, part):
        known = torch.nonzero(part.clip_classes < self.known).squeeze(1)
        if self.settings.protocol == "released":
            return part.of_clips(known), None
        order = known[torch.argsort(part.clip_classes[known], stable=True)]        # the same fraction of every class
        held = torch.arange(len(order), device=order.device) % HELD_OUT == 0
        if held.all():
            raise InputError(f"{self.name}: {len(known)} training clips of known classes; expected at least two; raise "
                             "--source_class_num")
        return part.of_clips(order[~held].sort().values), part.of_clips(order[held])

    def targets(self, part):
        return torch.where(part.clip_classes < self.known, part.clip_classes, IGNORED)

    def _scores(self, heads, part):
        return Scores.of(fit_heads.predict(heads, part), part.clip_classes)

    def measure(self, heads, part, batch_size=None):
        scores = self._scores(heads, part)
        best = scores.rates(scores.thresholds()).best()
        found = {"hos": best.hos, "os": best.os, "unk": best.unk, "auroc": scores.auroc(),
                 "closed_accuracy": scores.closed_accuracy()}
        return {name: 100 * value.cpu() for name, value in found.items()}

    def chance(self, part, batch_size=None):
        return dict.fromkeys(self.metrics) | {"auroc": 50.0, "closed_accuracy": 100 / self.known}

    def at_end(self, head, part, held):
        """os, unk and hos at the threshold that rejects 5 % of the held-out training clips."""
        if held is None:
            return {}
        threshold = fixed_threshold(self._scores([head], held).confidence).unsqueeze(-1)
        rates = self._scores([head], part).rates(threshold)
        return {f"{name}_fixed": float(100 * getattr(rates, name)) for name in ("hos", "os", "unk")}

    def pictured(self, heads, part, dataset):
        return super().pictured(heads, part, dataset) | {"known": self.known}
