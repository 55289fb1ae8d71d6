"""Figures of the downstream tasks, in percent: clip accuracy, precision, recall and F1 of (second, class) cells.

Every function takes any number of leading dimensions, so that all heads of a task are measured at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5                  # a cell is predicted where sigmoid(logit) is above it


def accuracy(scores, targets):
    """Share of clips (percent) whose highest score is at the target; of equal scores the lowest class counts.

    Args:
        scores: (..., N, C).
        targets: (N,) int64.
    """
    return 100 * (scores.argmax(-1) == targets).double().mean(-1)


def macro_precision(scores, targets, batch=None):
    """Mean over the classes that are predicted at least once of their precision (percent); no average over classes
    that a head never predicts, so that it need not be good at them.

    Args:
        scores: (..., N, C).
        targets: (N,) int64.
        batch: None for the whole set; or clips a batch, whose figures are averaged with their numbers of clips, as in
            the program of CoDAAR.
    """
    if batch is not None:
        parts = [(len(y), macro_precision(x, y)) for x, y in zip(scores.split(batch, -2), targets.split(batch))]
        return sum(number * value for number, value in parts) / len(targets)
    predicted = F.one_hot(scores.argmax(-1), scores.shape[-1]).double()                # (..., N, C)
    number = predicted.sum(-2)
    right = (predicted * F.one_hot(targets, scores.shape[-1])).sum(-2)
    return 100 * (right / number.clamp(min=1)).sum(-1) / (number > 0).sum(-1)


@dataclass
class Cells:
    """Counts of (second, class) cells, background column included. Counts of parts of a set add up."""

    hits: Tensor               # predicted and labelled
    predicted: Tensor
    labelled: Tensor

    def __add__(self, other):
        return Cells(self.hits + other.hits, self.predicted + other.predicted, self.labelled + other.labelled)

    @property
    def precision(self):
        """Percent; 0 where nothing is predicted."""
        return 100 * self.hits / self.predicted.clamp(min=1)

    @property
    def recall(self):
        """Percent; 0 where nothing is labelled."""
        return 100 * self.hits / self.labelled.clamp(min=1)

    @property
    def f1(self):
        """Percent; the harmonic mean of precision and recall, 0 where both are."""
        return harmonic_mean(self.precision, self.recall)


def count_cells(logits, labels, mask=None):
    """Counts over a whole set.

    Args:
        logits: (..., N, T, C + 1).
        labels: (N, T, C + 1) of 0 and 1.
        real: (N, T) mask of the seconds that count (cmg/models/masking.py); None: all.
    """
    predicted, labelled = torch.sigmoid(logits) > THRESHOLD, labels > 0.5
    if mask is not None:
        predicted, labelled = predicted & mask.unsqueeze(-1), labelled & mask.unsqueeze(-1)
    cells = (-3, -2, -1)
    return Cells((predicted & labelled).sum(cells).double(), predicted.sum(cells).double(),
                 labelled.sum(cells).double().expand(logits.shape[:-3]))


def harmonic_mean(a, b):
    """2ab / (a + b); 0 where both are 0."""
    total = a + b
    return torch.where(total > 0, 2 * a * b / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(total))


def segment_scores(logits, labels, batch=None, mask=None):
    """Precision, recall and F1 (percent) of second-wise predictions.

    The exact figures pool the counts over the set. The published program instead averages the figures of batches,
    weighted by their numbers of clips, and forms F1 from the two averages: these differ, and depend on the batch size.

    Args:
        logits: (..., N, T, C + 1).
        labels: (N, T, C + 1).
        batch: None for pooled counts, or clips a batch for the published averages (80 there).
        real: see `count_cells`.

    Returns:
        {"precision", "recall", "f1"} -> (...) percent.
    """
    if batch is None:
        cells = count_cells(logits, labels, mask)
        return {"precision": cells.precision, "recall": cells.recall, "f1": cells.f1}
    counted = labels.new_ones(labels.shape[:2], dtype=torch.bool) if mask is None else mask
    parts = [(len(y), count_cells(x, y, r)) for x, y, r in zip(
        logits.split(batch, -3), labels.split(batch), counted.split(batch))]
    precision = sum(n * cells.precision for n, cells in parts) / len(labels)
    recall = sum(n * cells.recall for n, cells in parts) / len(labels)
    return {"precision": precision, "recall": recall, "f1": harmonic_mean(precision, recall)}


def segment_chance(labels, batch=None, mask=None):
    """The figures of predicting, in every second, the one column that is labelled most often: what needs no input."""
    logits = torch.full_like(labels, -1.0)
    counted = labels if mask is None else labels * mask.unsqueeze(-1)
    logits[..., counted.flatten(0, -2).sum(0).argmax()] = 1
    return {name: float(value) for name, value in segment_scores(logits, labels, batch, mask).items()}


def recall_at(similarity, k):
    """Retrieval in which candidate i is the one right answer of query i.

    Candidates that are exactly as similar as the answer stand in random order: what is returned is the expected value,
    so that a constant similarity gives chance level, neither 0 nor 100.

    Args:
        similarity: (N, N) of each query (row) to each candidate (column).
        k: numbers of candidates looked at, such as (1, 5, 10).

    Returns:
        {"r@k": percent of queries answered among their k best, for each k; "median_rank": of the answers, 1 at best}.
    """
    right = similarity.diagonal().unsqueeze(-1)
    better = (similarity > right).sum(-1).double()
    equal = (similarity == right).sum(-1).double()                         # the answer itself included
    figures = {f"r@{n}": float(100 * ((n - better) / equal).clamp(0, 1).mean()) for n in k}
    return figures | {"median_rank": float((better + (equal + 1) / 2).quantile(0.5))}


def recall_chance(candidates, k):
    """What `recall_at` gives for `candidates` in random order."""
    return {f"r@{n}": 100 * min(n, candidates) / candidates for n in k} | {"median_rank": (candidates + 1) / 2}


CLASS_RANK = 10                  # of nDCG@10
ROWS = 512                       # queries ranked at a time; bounds memory, changes no value


def class_retrieval(similarity, query_classes, candidate_classes):
    """Retrieval in which every candidate of the query's class is right: mean average precision and nDCG@10, percent.

    Both separate systems where several clips share a caption, for which R@k has a ceiling below 100. They agree with
    scikit-learn's `average_precision_score` and `ndcg_score`: of candidates that are exactly as similar, the former
    counts all at once, the latter averages over their orders.

    Args:
        similarity: (Q, C) of each query (row) to each candidate (column).
        query_classes: (Q,) int64, each with at least one candidate.
        candidate_classes: (C,) int64.

    Returns:
        {"map", "ndcg@10"}: means over the queries.
    """
    parts = [_precision_and_gain(part, of_queries.unsqueeze(-1) == candidate_classes) for part, of_queries in zip(
        similarity.split(ROWS), query_classes.split(ROWS))]
    precision, gain = torch.cat(parts, -1).mean(-1)
    return {"map": float(100 * precision), f"ndcg@{CLASS_RANK}": float(100 * gain)}


def _precision_and_gain(similarity, is_right):
    """(2, Q) average precision and nDCG@10 of each query; both arguments (Q, C)."""
    similarity, order = similarity.sort(-1, descending=True)
    right = is_right.gather(-1, order).double()
    position = torch.arange(similarity.shape[-1], device=similarity.device).expand_as(similarity)
    changes = similarity[:, 1:] != similarity[:, :-1]                  # candidates between which ties end
    ends = F.pad(changes, (0, 1), value=True)
    last = position.where(ends, position[:, -1:]).flip(-1).cummin(-1).values.flip(-1)       # of those tied with each
    first = position.where(F.pad(changes, (1, 0), value=True), 0).cummax(-1).values
    found = right.cumsum(-1)
    of_group = found.gather(-1, last)                                   # right ones up to the end of the ties
    total = found[:, -1:]
    precision = (right * of_group / (last + 1)).sum(-1) / total[:, 0]
    share = (of_group - (found - right).gather(-1, first)) / (last - first + 1)         # of right ones among the ties
    discount = (1 / torch.log2(position[0].double() + 2)).where(position[0] < CLASS_RANK, 0)
    ideal = (discount * (position < total)).sum(-1)
    return torch.stack([precision, (share * discount).sum(-1) / ideal])


def class_retrieval_chance(query_classes, candidate_classes):
    """What `class_retrieval` gives where every candidate is equally similar."""
    constant = torch.zeros(len(query_classes), len(candidate_classes), device=query_classes.device)
    return class_retrieval(constant, query_classes, candidate_classes)
