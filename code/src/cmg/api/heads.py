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
Clips: TypeAlias = tuple[str, Array] | Labeled         # modality, features, and classes where they are known


class Head:
    """A head on the codes of one modality, for those of all others.

    Attributes:
        encoder: whose codes it reads.
        module: the trained network; `losses`: mean training loss of each epoch.
        clipwise: one class a clip; else several classes a second.
        classes: names of the classes, in the order of the scores' columns; None where they were given as numbers.
        trained: numbers of the classes that clips may have; None where any is possible.
    """

    def __init__(self, encoder: Encoder, module: ClipHead | SegmentHead, losses: list[float],
                 classes: list[str] | None = None, trained: set[int] | None = None) -> None:
        self.encoder, self.module, self.losses, self.clipwise = encoder, module, losses, module.clipwise
        self.classes, self.trained = classes, trained

    @plain_torch()
    @torch.no_grad()
    def predict(self, modality: str, x: Array) -> Tensor:
        """Scores before softmax (B, C) of clips, or logits (B, T, C + 1) of seconds, the last column background."""
        scores: Tensor = self.module(self.encoder.embed(modality, x).vectors)
        return scores

    @plain_torch()
    def score(self, modality: str, x: Array, labels: Array) -> dict[str, float]:
        """{metric: percent}: accuracy of clips with classes (B,); precision, recall, f1 with labels (B, T, C + 1).

        Raises:
            InputError: labels of another form than those that it was trained on, or of classes that these did not have.
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
    """Train a head on one modality's codes, as the papers do; it then reads every other modality's.

    Args:
        encoder: `Encoder`; it does not change.
        modality: "audio", "video" or "text".
        x: features of the labeled clips, see `Encoder.embed`.
        labels: (B,) whole numbers from 0 on or names, one class a clip; or (B, T, C + 1) of 0 and 1, classes by second,
            the last column background.
        num_classes: C; default: what the labels show.
        epochs, seed, batch_size, lr: passes over the clips, seed of weights and order, clips a step, learning rate
            (halved at epochs 10, 20, 30).

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
    """What heads trained on one modality do on another, in percent.

    Attributes:
        cross: metric -> a value for each seed, after the last epoch.
        untrained: the same over an encoder with fresh weights: what the pretraining is worth.
        chance: metric -> a guess that ignores its input.
        curves: metric -> (seeds, epochs), of `cross`.
    """

    cross: dict[str, list[float]]
    untrained: dict[str, list[float]]
    chance: dict[str, float]
    curves: dict[str, NDArray[np.float64]]


@plain_torch()
def transfer(encoder: Encoder, train: Labeled, test: Labeled, *, num_classes: int | None = None, epochs: int = 30,
             seeds: Iterable[int] = (0,), batch_size: int = 80, lr: float = 4e-4) -> Transfer:
    """Train heads on one modality, test them on another.

    Args:
        encoder: `Encoder`.
        train, test: (modality, features, labels), as of `fit_head`.
        num_classes: C; default: what the labels to train on show, which must have every class to test on.
        epochs, batch_size, lr: as of `fit_head`.
        seeds: one head each.

    Returns:
        `Transfer`.

    Raises:
        InputError: features or labels of another form, or options out of range.
    """
    seeds = _seeds(seeds)
    for name, given in (("train", train), ("test", test)):
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise InputError(f"{name}: (modality, features, labels) is expected")
    encoders, classes = {"cross": _encoder(encoder)}, _names(train[2])
    encoders["untrained"] = Encoder(untrained_like(encoder.frozen, seeds[0]))
    trials: dict[str, list[fit_heads.HeadRun]] = {}
    for name, of in encoders.items():
        part, targets = _training(of, *train, classes)
        tested, aims = _training(of, *test, classes)
        if aims.ndim != targets.ndim or aims.ndim > 1 and aims.shape[-1] != targets.shape[-1]:
            raise InputError(f"labels of shapes {tuple(targets.shape)} to train and {tuple(aims.shape)} to test; the "
                             "same classes are expected in both")
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
        raise InputError(f"encoder: a value of type {type(encoder).__name__}; one of cmg.load is expected")
    return encoder


def _seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    try:
        found = tuple(seeds)
    except TypeError:
        found = ()
    if not found:
        raise InputError("seeds: a list of whole numbers is expected, at least one")
    return tuple(arguments.integer(seed, "seeds") for seed in found)


def _training(encoder: Encoder, modality: str, x: Array, labels: Array,
              classes: list[str] | None) -> tuple[EncodedSplit, Tensor]:
    """(codes with labels, labels on their device); `classes`: see `_labels`."""
    codes = _encoder(encoder).embed(modality, x)
    found = _labels(labels, len(codes.vectors), classes).to(codes.vectors.device)
    if found.ndim == 3:
        found = found.to(codes.vectors.dtype)
        if found.shape[1] != codes.vectors.shape[1]:
            raise InputError(f"labels of {found.shape[1]} seconds, codes of {codes.vectors.shape[1]}; as many are "
                             "expected")
    return EncodedSplit.of(codes.vectors, codes.indices, found), found


def _names(labels: Any) -> list[str] | None:
    """Names of classes, sorted; None where labels are numbers."""
    found = arguments.names(labels)
    return None if found is None else sorted(set(found))


def _labels(labels: Any, clips: int, classes: list[str] | None = None) -> Tensor:
    """Labels as a tensor: int64 classes (B,), or (B, T, C + 1) of 0 and 1.

    Args:
        labels: of the caller.
        clips: B.
        classes: names by number, where labels may be names.
    """
    given = arguments.names(labels)
    if given is not None:
        known = {name: number for number, name in enumerate(classes or [])}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise InputError(f"labels: the class '{unknown[:60]}' is not one of those to train on "
                             f"({', '.join(known)[:200] or 'they were numbers'}); correct it, or leave these clips out")
        labels = np.array([known[name] for name in given])
    elif classes is not None:
        raise InputError(f"labels: numbers for classes that have names ({', '.join(classes)[:200]}); the names are "
                         "expected here as well")
    found = arguments.tensor(labels, "labels")
    is_whole = not found.is_floating_point() and found.dtype != torch.bool
    good = found.ndim == 1 and is_whole and int(found.min()) >= 0 if found.numel() else False
    good |= found.ndim == 3 and found.shape[2] > 1 and found.numel() > 0 and bool(((found == 0) | (found == 1)).all())
    if not good or len(found) != clips:
        kind = str(found.dtype).removeprefix("torch.")
        raise InputError(f"labels of shape {tuple(found.shape)}, {kind}, for {clips} clips; names or whole numbers "
                         "from 0 on, (B,), or 0 and 1 of shape (B, T, C + 1), are expected")
    if found.ndim == 1 and int(found.max()) >= LIMITS.classes:
        raise InputError(f"labels: the class {int(found.max()):,}; numbers from 0 on, below {LIMITS.classes:,}, are "
                         "expected; number the classes, as np.unique(labels, return_inverse=True) does, or give names")
    return found.long() if found.ndim == 1 else found


def _require_trained(classes: Tensor, trained: set[int] | None) -> None:
    """InputError for a class (B,) that no clip to train on had."""
    absent = set(classes.tolist()) - trained if trained is not None and classes.ndim == 1 else set()
    if absent:
        raise InputError(f"labels: no clip to train on has the class {min(absent)}; at least one of each is expected; "
                         "leave these clips out, or give num_classes to count them as wrong")


def _fit(trials: list[fit_heads.HeadRun], num_classes: int | None, epochs: int, batch_size: int, lr: float) -> int:
    """Train heads, and give the number of classes."""
    targets = trials[0].targets
    epochs, batch_size = arguments.integer(epochs, "epochs", 1), arguments.integer(batch_size, "batch_size", 1)
    lr = arguments.not_negative(lr, "lr")
    if targets.ndim == 1:
        largest = max(int(t.max()) for t in [targets, *(part.labels for part in trials[0].measured.values())])
        count = largest + 1 if num_classes is None else num_classes
        count = arguments.integer(count, "num_classes", 1, LIMITS.classes)
        if count <= largest:
            raise InputError(f"num_classes {count}; there is a class {largest}, they count from 0")
    else:
        count = targets.shape[-1] - 1
    kind = ClipHead if targets.ndim == 1 else SegmentHead
    fit_heads.fit(trials, lambda width: kind(width, count), lambda heads, part: _measure(
        fit_heads.predict(heads, part), part.labels), epochs=epochs, batch_size=batch_size, lr=lr)
    return count


def _measure(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """metric -> percent of outputs (..., B, C) or (..., B, T, C + 1)."""
    if labels.ndim == 1:
        return {"accuracy": metrics.accuracy(outputs, labels)}
    return metrics.segment_scores(outputs, labels)


# ----------------------------------------------------------------------------------------------------------- retrieval
@dataclass
class RetrievalResult:
    """Candidates of every query, the most similar first."""

    indices: Tensor             # (Q, k) int64
    similarity: Tensor          # (Q, k) cosine of the clips' vectors
    metrics: dict[str, float] = field(default_factory=dict)     # "map", "ndcg@10": percent, where classes were given


@plain_torch()
@torch.no_grad()
def retrieve(encoder: Encoder, query: Clips, candidates: Clips, k: int = 5) -> RetrievalResult:
    """Find clips of one modality by clips of another, without training: cosine similarity of `Encoder.embed_clips`.

    Args:
        encoder: `Encoder`.
        query, candidates: (modality, features), see `Encoder.embed`; or (modality, features, classes (B,)), for both or
            neither: candidates of the query's class are then the right ones, and all are ranked for the metrics.
        k: candidates to return, at most as many as there are.

    Returns:
        `RetrievalResult`.
    """
    k = arguments.integer(k, "k", 1)
    for name, given in (("query", query), ("candidates", candidates)):
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise InputError(f"{name}: (modality, features) or (modality, features, classes) is expected")
    vectors = [F.normalize(_encoder(encoder).embed_clips(modality, x), dim=-1)
               for modality, x, *_ in (query, candidates)]
    similarity, found = vectors[0] @ vectors[1].T, {}
    if len(query) > 2 or len(candidates) > 2:
        known = _names(candidates[-1])
        classes = [_classes(part, known).to(similarity.device) for part in (query, candidates)]
        absent = set(classes[0].tolist()) - set(classes[1].tolist())
        if absent:
            raise InputError(f"classes: no candidate has the query's class {min(absent)}; at least one of each is "
                             "expected; leave these queries out")
        found = metrics.class_retrieval(similarity, *classes)
    best, indices = similarity.topk(min(k, similarity.shape[1]), dim=-1)
    return RetrievalResult(indices, best, found)


def _classes(part: Clips, known: list[str] | None) -> Tensor:
    """Classes (B,) of a part of a retrieval, (modality, features, classes); `known`: see `_labels`."""
    if len(part) != 3:
        raise InputError("classes: given for queries or candidates alone; (modality, features, classes) is expected "
                         "for both, or no classes at all")
    classes = _labels(part[2], len(part[1]), known)
    if classes.ndim != 1:
        raise InputError(f"classes of shape {tuple(classes.shape)}; one class a clip, (B,), is expected")
    return classes
