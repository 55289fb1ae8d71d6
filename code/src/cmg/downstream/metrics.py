"""Metrics of the downstream tasks, in percent: accuracy of clips; precision, recall and F1 of (second, class) cells;
retrieval.

Leading dimensions (...) are broadcast, so that all heads of a task are evaluated at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5                  # a cell is predicted if sigmoid(logit) exceeds it


def accuracy(scores: Tensor, targets: Tensor) -> Tensor:
    """Percentage (...) of clips whose highest score is that of the target; ties go to the lowest class.

    Args:
        scores: (..., N, C).
        targets: (N,) int64.
    """
    return 100 * (scores.argmax(-1) == targets).double().mean(-1)


def macro_precision(scores: Tensor, targets: Tensor, batch: int | None = None) -> Tensor:
    """Precision (percent, shape (...)) averaged over the classes that are predicted at least once.

    Classes that a head never predicts do not count.

    Args:
        scores: (..., N, C).
        targets: (N,) int64.
        batch: None to use the whole set, or the number of clips per batch to average over batches, weighted by their
            numbers of clips, as in CoDAAR's program.
    """
    if batch is not None:
        parts = [(len(y), macro_precision(x, y)) for x, y in zip(scores.split(batch, -2), targets.split(batch))]
        return sum((number * value for number, value in parts), torch.zeros(())) / len(targets)
    predicted = F.one_hot(scores.argmax(-1), scores.shape[-1]).double()                # (..., N, C)
    number = predicted.sum(-2)
    right = (predicted * F.one_hot(targets, scores.shape[-1])).sum(-2)
    return 100 * (right / number.clamp(min=1)).sum(-1) / (number > 0).sum(-1)


@dataclass
class Cells:
    """Counts of (second, class) cells, including the background column. Counts of disjoint parts of a set can be
    added."""

    hits: Tensor               # predicted and labeled
    predicted: Tensor
    labeled: Tensor

    def __add__(self, other: "Cells") -> "Cells":
        return Cells(self.hits + other.hits, self.predicted + other.predicted, self.labeled + other.labeled)

    @property
    def precision(self) -> Tensor:
        """Percent; 0 if nothing is predicted."""
        return 100 * self.hits / self.predicted.clamp(min=1)

    @property
    def recall(self) -> Tensor:
        """Percent; 0 if nothing is labeled."""
        return 100 * self.hits / self.labeled.clamp(min=1)

    @property
    def f1(self) -> Tensor:
        """Percent; harmonic mean of precision and recall, 0 if both are 0."""
        return harmonic_mean(self.precision, self.recall)


def count_cells(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Cells:
    """`Cells` of a whole set.

    Args:
        logits: (..., N, T, C + 1).
        labels: (N, T, C + 1) of 0 and 1.
        mask: (N, T) mask of the seconds (cmg/models/masking.py).
    """
    predicted, labeled = torch.sigmoid(logits) > THRESHOLD, labels > 0.5
    if mask is not None:
        predicted, labeled = predicted & mask.unsqueeze(-1), labeled & mask.unsqueeze(-1)
    cells = (-3, -2, -1)
    return Cells((predicted & labeled).sum(cells).double(), predicted.sum(cells).double(),
                 labeled.sum(cells).double().expand(logits.shape[:-3]))


def harmonic_mean(a: Tensor, b: Tensor) -> Tensor:
    """2ab / (a + b), or 0 where both are 0."""
    total = a + b
    return torch.where(total > 0, 2 * a * b / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(total))


def segment_scores(logits: Tensor, labels: Tensor, batch: int | None = None,
                   mask: Tensor | None = None) -> dict[str, Tensor]:
    """Precision, recall and F1 (percent) of predictions per second.

    By default, counts are pooled over the set. The published program instead averages precision and recall over
    batches, weighted by their numbers of clips, and computes F1 from these averages; its results differ and depend on
    the batch size.

    Args:
        logits: (..., N, T, C + 1).
        labels: (N, T, C + 1).
        batch: None for pooled counts, or the number of clips per batch (published: 80) for the published averages.
        mask: see `count_cells`.

    Returns:
        {"precision", "recall", "f1"} -> (...) percent.
    """
    if batch is None:
        cells = count_cells(logits, labels, mask)
        return {"precision": cells.precision, "recall": cells.recall, "f1": cells.f1}
    mask = labels.new_ones(labels.shape[:2], dtype=torch.bool) if mask is None else mask
    parts = [(len(y), count_cells(x, y, m)) for x, y, m in zip(
        logits.split(batch, -3), labels.split(batch), mask.split(batch))]
    precision = sum((n * cells.precision for n, cells in parts), torch.zeros(())) / len(labels)
    recall = sum((n * cells.recall for n, cells in parts), torch.zeros(())) / len(labels)
    return {"precision": precision, "recall": recall, "f1": harmonic_mean(precision, recall)}


def segment_chance(labels: Tensor, batch: int | None = None, mask: Tensor | None = None) -> dict[str, float]:
    """Chance level: metrics of always predicting only the most frequently labeled column."""
    logits = torch.full_like(labels, -1.0)
    present = labels if mask is None else labels * mask.unsqueeze(-1)
    logits[..., present.flatten(0, -2).sum(0).argmax()] = 1
    return {name: float(value) for name, value in segment_scores(logits, labels, batch, mask).items()}


def recall_at(similarity: Tensor, k: Sequence[int]) -> dict[str, float]:
    """Recall at k for retrieval in which candidate i is the only correct answer to query i.

    Candidates that are exactly as similar as the answer are ranked in random order, and the expected value is returned:
    a constant similarity gives chance level, not 0 or 100.

    Args:
        similarity: (N, N) similarity of each query (row) to each candidate (column).
        k: numbers of candidates, such as (1, 5, 10).

    Returns:
        {"r@k": percentage of queries whose answer is among the top k, for each k; "median_rank": median rank of the
        answers, starting at 1}.
    """
    right = similarity.diagonal().unsqueeze(-1)
    better = (similarity > right).sum(-1).double()
    equal = (similarity == right).sum(-1).double()                         # including the answer itself
    recalls = {f"r@{n}": float(100 * ((n - better) / equal).clamp(0, 1).mean()) for n in k}
    return recalls | {"median_rank": float((better + (equal + 1) / 2).quantile(0.5))}


def recall_chance(candidates: int, k: Sequence[int]) -> dict[str, float]:
    """The result of `recall_at` for `candidates` candidates in random order."""
    return {f"r@{n}": 100 * min(n, candidates) / candidates for n in k} | {"median_rank": (candidates + 1) / 2}


CLASS_RANK = 10                  # of nDCG@10
ROWS = 512                       # queries ranked at a time; limits memory


def class_retrieval(similarity: Tensor, query_classes: Tensor, candidate_classes: Tensor) -> dict[str, float]:
    """Mean average precision and nDCG@10 (percent) of retrieval in which all candidates of the query's class are
    correct.

    Both can distinguish systems even if several clips share a caption, so that R@k cannot reach 100. They agree with
    scikit-learn's `average_precision_score` and `ndcg_score`: for tied candidates, the former counts all at once and
    the latter averages over their orders.

    Args:
        similarity: (Q, C) similarity of each query (row) to each candidate (column).
        query_classes: (Q,) int64, each with at least one candidate.
        candidate_classes: (C,) int64.

    Returns:
        {"map", "ndcg@10"}: means over the queries.
    """
    parts = [_precision_and_gain(part, of_queries.unsqueeze(-1) == candidate_classes) for part, of_queries in zip(
        similarity.split(ROWS), query_classes.split(ROWS))]
    precision, gain = torch.cat(parts, -1).mean(-1)
    return {"map": float(100 * precision), f"ndcg@{CLASS_RANK}": float(100 * gain)}


def _precision_and_gain(similarity: Tensor, is_right: Tensor) -> Tensor:
    """(2, Q) average precision and nDCG@10 of each query; both arguments (Q, C)."""
    similarity, order = similarity.sort(-1, descending=True)
    right = is_right.gather(-1, order).double()
    position = torch.arange(similarity.shape[-1], device=similarity.device).expand_as(similarity)
    changes = similarity[:, 1:] != similarity[:, :-1]                  # boundaries between groups of tied candidates
    ends = F.pad(changes, (0, 1), value=True)
    last = position.where(ends, position[:, -1:]).flip(-1).cummin(-1).values.flip(-1)       # last index of its ties
    first = position.where(F.pad(changes, (1, 0), value=True), 0).cummax(-1).values
    found = right.cumsum(-1)
    of_group = found.gather(-1, last)                                   # correct ones up to the end of the ties
    total = found[:, -1:]
    precision = (right * of_group / (last + 1)).sum(-1) / total[:, 0]
    share = (of_group - (found - right).gather(-1, first)) / (last - first + 1)     # of correct ones among the ties
    discount = (1 / torch.log2(position[0].double() + 2)).where(position[0] < CLASS_RANK, 0)
    ideal = (discount * (position < total)).sum(-1)
    return torch.stack([precision, (share * discount).sum(-1) / ideal])


def class_retrieval_chance(query_classes: Tensor, candidate_classes: Tensor) -> dict[str, float]:
    """The result of `class_retrieval` if all similarities are equal."""
    constant = torch.zeros(len(query_classes), len(candidate_classes), device=query_classes.device)
    return class_retrieval(constant, query_classes, candidate_classes)
