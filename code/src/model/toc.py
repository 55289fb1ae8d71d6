"""TOC: training-free choice of codebook channels (arXiv 2403.05168; h_dcid_toc.md B)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from errors import InputError

SIMILARITY_WEIGHT, VARIANCE_WEIGHT = 0.7, 0.3


@dataclass(frozen=True)
class Selection:
    """How many channels to keep, and the shares of the best and the worst among them (released options)."""

    choose_channel: int
    toc_max_num: int = 1
    toc_min_num: int = 0

    def counts(self, width):
        """(best, worst) channels kept of `width`; InputError names the nearest valid setting."""
        total = self.toc_max_num + self.toc_min_num
        if self.toc_max_num < 0 or self.toc_min_num < 0 or total == 0:
            raise InputError(f"--toc_max_num {self.toc_max_num} --toc_min_num {self.toc_min_num}: expected shares that "
                             "are not negative and not both 0; the nearest valid setting is 1 and 0")
        if self.choose_channel < 1 or self.choose_channel > width or self.choose_channel % total:
            nearest = min(max(round(self.choose_channel / total), 1), width // total) * total
            raise InputError(f"--choose_channel {self.choose_channel}: expected a multiple of toc_max_num + toc_min_num "
                             f"= {total} between {total} and {width}; the nearest valid value is {nearest}")
        unit = self.choose_channel // total
        return unit * self.toc_max_num, unit * self.toc_min_num


def criterion(codes):
    """-0.7 mean pairwise product + 0.3 variance of every channel: codes (K, D) -> (D,) float64, larger is better.

    The mean over ordered pairs i != j of E_ik E_jk is (s^2 - q) / (K (K - 1)) with s the sum and q the sum of squares.
    """
    codes = codes.detach().double()
    number = len(codes)
    similarity = (codes.sum(0) ** 2 - (codes ** 2).sum(0)) / (number * (number - 1))
    return VARIANCE_WEIGHT * codes.var(0) - SIMILARITY_WEIGHT * similarity


def select(codes, selection):
    """Channels that TOC keeps of one codebook: the best in descending, then the worst in ascending order, int64."""
    best, worst = selection.counts(codes.shape[1])
    value = criterion(codes)
    descending = torch.argsort(value, descending=True, stable=True)
    ascending = torch.argsort(value, stable=True)
    return torch.cat([descending[:best], ascending[:worst]])


def mean_cosine(codes):
    """Mean off-diagonal cosine similarity of code vectors (K, S); a zero code has similarity 0 with everything."""
    unit = F.normalize(codes.detach().double(), dim=1, eps=1e-12)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (len(unit) * (len(unit) - 1)))
