"""TOC: training-free optimization of a codebook by selecting its channels (arXiv 2403.05168)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cmg.models.config import TOC_TERMS
from cmg.utils.errors import InputError

SIMILARITY_WEIGHT, VARIANCE_WEIGHT = 0.7, 0.3


@dataclass(frozen=True)
class Selection:
    """How many channels to keep, and the ratio of best to worst channels among them (the published options).

    Raises:
        TypeError: the values are not three integers and one of `TOC_TERMS`.
    """

    choose_channel: int
    toc_max_num: int = 1
    toc_min_num: int = 0
    terms: str = "both"

    def __post_init__(self):
        numbers = self.choose_channel, self.toc_max_num, self.toc_min_num
        if not all(type(number) is int for number in numbers) or self.terms not in TOC_TERMS:
            raise TypeError(f"expected three integers and one of {', '.join(TOC_TERMS)} as a selection of channels, "
                            f"not {(*numbers, self.terms)}")

    def counts(self, width):
        """Numbers of (best, worst) channels to keep out of `width`.

        Raises:
            InputError: the selection is not possible with this width; the message gives the nearest valid setting.
        """
        total = self.toc_max_num + self.toc_min_num
        if self.toc_max_num < 0 or self.toc_min_num < 0 or not 0 < total <= width:
            raise InputError(f"--toc_max_num {self.toc_max_num} --toc_min_num {self.toc_min_num}: expected nonnegative "
                             f"numbers, not both 0, whose sum is at most the {width} channels; the nearest valid "
                             f"setting is {' and '.join(map(str, self._nearest_shares(width)))}")
        if self.choose_channel < 1 or self.choose_channel > width or self.choose_channel % total:
            nearest = min(max(round(self.choose_channel / total), 1), width // total) * total
            raise InputError(f"--choose_channel {self.choose_channel}: expected a multiple of toc_max_num + "
                             f"toc_min_num = {total} between {total} and {width // total * total}; "
                             f"the nearest valid value is {nearest}")
        unit = self.choose_channel // total
        return unit * self.toc_max_num, unit * self.toc_min_num

    def _nearest_shares(self, width):
        best = min(max(self.toc_max_num, 0), width)
        worst = min(max(self.toc_min_num, 0), width - best)
        return (best, worst) if best + worst else (1, 0)


def criterion(codes, terms="both"):
    """TOC's criterion for every channel: -0.7 mean pairwise product + 0.3 variance; larger is better.

    The mean over ordered pairs i != j of E_ik E_jk is (s^2 - q) / (K (K - 1)) with s the sum and q the sum of squares.
    The published program sums over the pairs one by one in float32.

    Args:
        codes: (K, D) code vectors E.
        terms: one of `TOC_TERMS`.

    Returns:
        (D,) float64.

    Raises:
        InputError: the codebook has only one code, so there are no pairs.
    """
    codes = codes.detach().double()
    number = len(codes)
    if number < 2:
        raise InputError(f"TOC compares pairs of codes, but this codebook has {number}; omit --choose_channel")
    similarity = (codes.sum(0) ** 2 - (codes ** 2).sum(0)) / (number * (number - 1))
    value = {"similarity": -SIMILARITY_WEIGHT * similarity, "variance": VARIANCE_WEIGHT * codes.var(0)}
    return sum(value.values()) if terms == "both" else value[terms]


def select(codes, selection):
    """Channels of one codebook (K, D) that TOC keeps, int64: the best in descending order, then the worst in ascending
    order.

    Raises:
        InputError: the selection does not fit this codebook.
    """
    best, worst = selection.counts(codes.shape[1])
    value = criterion(codes, selection.terms)
    descending = torch.argsort(value, descending=True, stable=True)
    ascending = torch.argsort(value, stable=True)
    return torch.cat([descending[:best], ascending[:worst]])


def head_channels(codebooks, selection):
    """Indices of the kept channels in a head's input, which concatenates the codes of all levels; None (all) without
    TOC.

    Args:
        codebooks: code vectors (K, D) of every level; the selection applies to each of them.
        selection: Selection, or None.
    """
    if selection is None:
        return None
    starts = range(0, sum(codes.shape[1] for codes in codebooks), codebooks[0].shape[1])
    return torch.cat([start + select(codes, selection) for start, codes in zip(starts, codebooks)])


def cosines(codes):
    """Cosine similarity of all pairs of code vectors: (K, S) -> (K, K) float64; 0 for codes of length 0."""
    unit = F.normalize(codes.detach().double(), dim=1, eps=torch.finfo(torch.float64).tiny)
    return unit @ unit.T


def mean_cosine(codes):
    """Mean off-diagonal cosine similarity of code vectors (K, S)."""
    pairs = cosines(codes)
    return float((pairs.sum() - pairs.diagonal().sum()) / (len(pairs) * (len(pairs) - 1)))
