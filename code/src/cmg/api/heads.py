"""Heads, cross-modal transfer and retrieval from Python, on the codes of an `Encoder`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmg.api.encoder import Array, Encoder
from cmg.api.state import plain_torch
from cmg.checkpoints.checkpoint import untrained_like
from cmg.downstream import fit_heads, metrics
from cmg.downstream.encode import EncodedSplit
from cmg.models.heads import ClipHead, SegmentHead
from cmg.utils import arguments
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

Labeled: TypeAlias = tuple[str, Array, Array]          # modality, features, labels
Clips: TypeAlias = tuple[str, Array] | Labeled         # modality, features, and classes if known


class Head:
    """A head trained on the codes of one modality, applicable to those of all others.

    Attributes:
        encoder: encoder that produces its codes.
        module: the trained network; `losses`: mean training loss of each epoch.
        clipwise: True for one class per clip, False for several classes per second.
        classes: names of the classes, in the order of the score columns; None if they were given as numbers.
        trained: numbers of the classes that occurred in training; None if any class is accepted.
    """

    def __init__(self, encoder: Encoder, module: ClipHead | SegmentHead, losses: list[float],
                 classes: list[str] | None = None, trained: set[int] | None = None) -> None:
        self.encoder, self.module, self.losses, self.clipwise = encoder, module, losses, module.clipwise
        self.classes, self.trained = classes, trained

    @plain_torch()
    @torch.no_grad()
    def predict(self, modality: str, x: Array) -> Tensor:
        """Scores before softmax (B, C) for clips, or logits (B, T, C + 1) for seconds, where the last column is
        background."""
        scores: Tensor = self.module(self.encoder.embed(modality, x).vectors)
        return scores

    @plain_torch()
    def score(self, modality: str, x: Array, labels: Array) -> dict[str, float]:
        """{metric: percent}: accuracy for classes (B,) of clips; precision, recall and f1 for labels (B, T, C + 1).

        Raises:
            InputError: labels have another form than in training, or classes that did not occur in training.
        """
        scores = self.predict(modality, x)
        truth = _labels(labels, len(scores), self.classes).to(scores.device)
        if (truth.ndim == 1) != self.clipwise or truth.ndim == 3 and truth.shape != scores.shape:
            form = "classes (B,)" if self.clipwise else f"labels (B, T, C + 1), which is {tuple(scores.shape)} here"
            raise InputError(f"labels of shape {tuple(truth.shape)}; this head was trained on {form}")
        _require_trained(truth, self.trained)
        return {name: float(value) for name, value in _measure(scores, truth).items()}


@plain_torch()
def fit_head(encoder: Encoder, modality: str, x: Array, labels: Array, *, num_classes: int | None = None,
             epochs: int = 30, seed: int = 0, batch_size: int = 80, lr: float = 4e-4) -> Head:
    """Train a head on the codes of one modality, as in the papers. It can then be applied to every other modality.

    Args:
        encoder: `Encoder`, which is not changed.
        modality: "audio", "video" or "text".
        x: features of the labeled clips, see `Encoder.embed`.
        labels: (B,) whole numbers from 0 on or names, one class per clip; or (B, T, C + 1) of 0 and 1, classes per
            second, where the last column is background.
        num_classes: C; default: inferred from the labels.
        epochs, seed, batch_size, lr: passes over the clips, seed for weights and order, clips per step, and learning
            rate (halved at epochs 10, 20, 30).

    Returns:
        `Head`.

    Raises:
        InputError: features or labels of another form, or options out of range.
    """
    classes = _names(labels)
    part, targets = _training(encoder, modality, x, labels, classes)
    trial = fit_heads.HeadRun(part, targets, arguments.integer(seed, "seed"), {})
    _fit([trial], len(classes) if num_classes is None and classes else num_classes, epochs, batch_size, lr)
    trained = set(targets.tolist()) if targets.ndim == 1 and num_classes is None else None
    return Head(encoder, trial.head, trial.losses, classes, trained)


@dataclass
class Transfer:
    """Results of heads trained on one modality and tested on another, in percent.

    Attributes:
        cross: metric -> one value per seed, after the last epoch.
        untrained: the same with an untrained encoder, to show the benefit of pretraining.
        chance: metric -> value of a guess that ignores the input.
        curves: metric -> (seeds, epochs) values for `cross`.
    """

    cross: dict[str, list[float]]
    untrained: dict[str, list[float]]
    chance: dict[str, float]
    curves: dict[str, NDArray[np.float64]]


@plain_torch()
def transfer(encoder: Encoder, train: Labeled, test: Labeled, *, num_classes: int | None = None, epochs: int = 30,
             seeds: Iterable[int] = (0,), batch_size: int = 80, lr: float = 4e-4) -> Transfer:
    """Train heads on one modality and test them on another.

    Args:
        encoder: `Encoder`.
        train, test: (modality, features, labels), as for `fit_head`.
        num_classes: C; default: inferred from the training labels, which must contain every test class.
        epochs, batch_size, lr: as for `fit_head`.
        seeds: one head is trained for each.

    Returns:
        `Transfer`.

    Raises:
        InputError: features or labels of another form, or options out of range.
    """
    seeds = _seeds(seeds)
    for name, given in (("train", train), ("test", test)):
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise InputError(f"{name}: expected (modality, features, labels)")
    encoders, classes = {"cross": _encoder(encoder)}, _names(train[2])
    encoders["untrained"] = Encoder(untrained_like(encoder.frozen, seeds[0]))
    trials: dict[str, list[fit_heads.HeadRun]] = {}
    for name, of in encoders.items():
        part, targets = _training(of, *train, classes)
        tested, aims = _training(of, *test, classes)
        if aims.ndim != targets.ndim or aims.ndim > 1 and aims.shape[-1] != targets.shape[-1]:
            raise InputError(f"labels of shapes {tuple(targets.shape)} for training and "
                             f"{tuple(aims.shape)} for testing; expected the same classes in both")
        trials[name] = [fit_heads.HeadRun(part, targets, seed, {"test": tested}) for seed in seeds]
    if num_classes is None:
        _require_trained(aims, set(targets.tolist()) if targets.ndim == 1 else None)
        num_classes = len(classes) if classes else None
    count = _fit(sum(trials.values(), []), num_classes, epochs, batch_size, lr)
    found = {name: {metric: [trial.curves["test"][metric][-1] for trial in of] for metric in of[0].curves["test"]}
             for name, of in trials.items()}
    chance = {"accuracy": 100 / count} if aims.ndim == 1 else metrics.segment_chance(aims)
    curves = {metric: np.array([trial.curves["test"][metric] for trial in trials["cross"]])
              for metric in found["cross"]}
    return Transfer(found["cross"], found["untrained"], chance, curves)


def _encoder(encoder: Encoder) -> Encoder:
    if not isinstance(encoder, Encoder):
        raise InputError(f"encoder: a value of type {type(encoder).__name__}; expected an encoder returned by cmg.load")
    return encoder


def _seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    try:
        found = tuple(seeds)
    except TypeError:
        found = ()
    if not found:
        raise InputError("seeds: expected a list of at least one whole number")
    return tuple(dict.fromkeys(arguments.integer(seed, "seeds") for seed in found))


def _training(encoder: Encoder, modality: str, x: Array, labels: Array,
              classes: list[str] | None) -> tuple[EncodedSplit, Tensor]:
    """(codes with labels, labels on the same device); `classes`: see `_labels`."""
    codes = _encoder(encoder).embed(modality, x)
    found = _labels(labels, len(codes.vectors), classes).to(codes.vectors.device)
    if found.ndim == 3:
        found = found.to(codes.vectors.dtype)
        if found.shape[1] != codes.vectors.shape[1]:
            raise InputError(f"labels of {found.shape[1]} seconds, codes of {codes.vectors.shape[1]}; "
                             "expected as many labels as codes")
    return EncodedSplit.of(codes.vectors, codes.indices, found), found


def _names(labels: Any) -> list[str] | None:
    """Sorted class names; None if labels are numbers."""
    found = arguments.names(labels)
    return None if found is None else sorted(set(found))


def _labels(labels: Any, clips: int, classes: list[str] | None = None) -> Tensor:
    """Labels as a tensor: int64 classes (B,), or (B, T, C + 1) of 0 and 1.

    Args:
        labels: the caller's labels.
        clips: B.
        classes: names by number, if labels may be names.
    """
    given = arguments.names(labels)
    if given is not None:
        known = {name: number for number, name in enumerate(classes or [])}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise InputError(f"labels: the class '{unknown[:60]}' is not one of the training classes "
                             f"({', '.join(known)[:200] or 'they were numbers'}); correct it, or omit these clips")
        labels = np.array([known[name] for name in given])
    elif classes is not None:
        raise InputError(f"labels: numbers for classes that have names ({', '.join(classes)[:200]}); expected names "
                         "here as well")
    found = arguments.tensor(labels, "labels")
    is_whole = not found.is_floating_point() and found.dtype != torch.bool
    good = found.ndim == 1 and is_whole and int(found.min()) >= 0 if found.numel() else False
    good |= found.ndim == 3 and found.shape[2] > 1 and found.numel() > 0 and bool(((found == 0) | (found == 1)).all())
    if not good or len(found) != clips:
        kind = str(found.dtype).removeprefix("torch.")
        raise InputError(f"labels of shape {tuple(found.shape)}, {kind}, for {clips} clips; expected names or whole "
                         "numbers from 0 on, (B,), or 0 and 1 of shape (B, T, C + 1)")
    if found.ndim == 1 and int(found.max()) >= LIMITS.classes:
        raise InputError(f"labels: the class {int(found.max()):,}; expected numbers from 0 on, below "
                         f"{LIMITS.classes:,}; number the classes, for example with np.unique(labels, "
                         "return_inverse=True), or pass names")
    return found.long() if found.ndim == 1 else found


def _require_trained(classes: Tensor, trained: set[int] | None) -> None:
    """Raise InputError for a class (B,) that did not occur in training."""
    absent = set(classes.tolist()) - trained if trained is not None and classes.ndim == 1 else set()
    if absent:
        raise InputError(f"labels: no training clip has the class {min(absent)}; expected at least one for each class; "
                         "omit these clips, or pass num_classes to count them as wrong")


def _fit(trials: list[fit_heads.HeadRun], num_classes: int | None, epochs: int, batch_size: int, lr: float) -> int:
    """Train heads, and return them with the number of classes."""
    targets = trials[0].targets
    epochs, batch_size = arguments.integer(epochs, "epochs", 1), arguments.integer(batch_size, "batch_size", 1)
    lr = arguments.not_negative(lr, "lr")
    if targets.ndim == 1:
        largest = max(int(t.max()) for t in [targets, *(part.labels for part in trials[0].measured.values())])
        count = largest + 1 if num_classes is None else num_classes
        count = arguments.integer(count, "num_classes", 1, LIMITS.classes)
        if count <= largest:
            raise InputError(f"num_classes {count}, but there is a class {largest} (numbers start at 0)")
    else:
        count = targets.shape[-1] - 1
    kind = ClipHead if targets.ndim == 1 else SegmentHead
    fit_heads.fit(trials, lambda width: kind(width, count), lambda heads, part: _measure(
        fit_heads.predict(heads, part), part.labels), epochs=epochs, batch_size=batch_size, lr=lr)
    return count


def _measure(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """metric -> percent for outputs (..., B, C) or (..., B, T, C + 1)."""
    if labels.ndim == 1:
        return {"accuracy": metrics.accuracy(outputs, labels)}
    return metrics.segment_scores(outputs, labels)


# ----------------------------------------------------------------------------------------------------------- retrieval
@dataclass
class RetrievalResult:
    """Candidates for every query, the most similar first."""

    indices: Tensor             # (Q, k) int64
    similarity: Tensor          # (Q, k) cosine of the clips' vectors
    metrics: dict[str, float] = field(default_factory=dict)     # "map", "ndcg@10" in percent, if classes were given


@plain_torch()
@torch.no_grad()
def retrieve(encoder: Encoder, query: Clips, candidates: Clips, k: int = 5) -> RetrievalResult:
    """Retrieve clips of one modality with clips of another, without training, by cosine similarity of
    `Encoder.embed_clips`.

    Args:
        encoder: `Encoder`.
        query, candidates: (modality, features), see `Encoder.embed`; or (modality, features, classes (B,)), for both or
            neither. With classes, candidates of the query's class are correct, and all candidates are ranked for the
            metrics.
        k: number of candidates to return per query, at most their total number.

    Returns:
        `RetrievalResult`.
    """
    k = arguments.integer(k, "k", 1)
    for name, given in (("query", query), ("candidates", candidates)):
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise InputError(f"{name}: expected (modality, features) or (modality, features, classes)")
    vectors = [F.normalize(_encoder(encoder).embed_clips(modality, x), dim=-1)
               for modality, x, *_ in (query, candidates)]
    similarity, found = vectors[0] @ vectors[1].T, {}
    if len(query) > 2 or len(candidates) > 2:
        known = _names(candidates[-1])
        classes = [_classes(part, known).to(similarity.device) for part in (query, candidates)]
        absent = set(classes[0].tolist()) - set(classes[1].tolist())
        if absent:
            raise InputError(f"classes: no candidate has the query's class {min(absent)}; expected at least one; omit "
                             "these queries")
        found = metrics.class_retrieval(similarity, *classes)
    best, indices = similarity.topk(min(k, similarity.shape[1]), dim=-1)
    return RetrievalResult(indices, best, found)


def _classes(part: Clips, known: list[str] | None) -> Tensor:
    """Classes (B,) of the queries or candidates, given (modality, features, classes); `known`: see `_labels`."""
    if len(part) != 3:
        raise InputError("classes: given only for queries or only for candidates; expected (modality, features, "
                         "classes) for both, or no classes")
    classes = _labels(part[2], len(part[1]), known)
    if classes.ndim != 1:
        raise InputError(f"classes of shape {tuple(classes.shape)}; expected one class per clip, (B,)")
    return classes
