"""Masks of padded seconds (--padding mask).

A mask is (B, T) bool, True for the seconds that a clip has, which always include the first. None means no padding;
everything is then computed as published.
"""

import torch
from torch.nn import functional as F

from cmg.utils import dist


class Features(dict):
    """Input of `System.encode`: modality -> (B, T, ...), with the batch's mask as an attribute."""

    def __init__(self, features, mask=None):
        super().__init__(features)
        self.mask = mask


def mean_of_clips(x, mask):
    """Mean over the seconds of each clip: (..., B, T, D) -> (..., B, D); `mask` may also have leading dimensions."""
    if mask is None:
        return x.mean(-2)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(-2) / weight.sum(-2)


def mean_of_seconds(x, mask):
    """Mean over all seconds of a batch: (..., B, T) -> (...)."""
    return x.mean((-2, -1)) if mask is None else (x * mask).sum((-2, -1)) / mask.sum()


def squared_error(y, target, mask):
    """Mean squared error, a scalar, between y and target (B, T, ...)."""
    if mask is None:
        return F.mse_loss(y, target)
    y = torch.where(mask.view(*mask.shape, *[1] * (y.ndim - 2)), y, target)
    return F.mse_loss(y, target, reduction="sum") / (mask.sum() * y[0, 0].numel())


def gathered(mask, like):
    """The mask of the whole batch, gathered from all processes in the dtype of the tensor `like`."""
    return None if mask is None else dist.all_gather(mask.to(like.dtype)) > 0.5


def first_rows(rng, number, wanted, mask):
    """Random rows of a batch to initialize codes from, (wanted,) int64, chosen from all `number` rows or those in
    `mask`."""
    if mask is None:
        return rng.rows(number, wanted)
    order = rng.rows(number, number).to(mask.device, non_blocking=True)
    order = order[torch.argsort((~mask[order]).to(torch.int8), stable=True)]        # random order, padding last
    return order[torch.arange(wanted, device=mask.device) % mask.sum()]


def unmasked(of_modalities, mask):
    """Remove padded seconds: modality -> (B, T) to modality -> (n,). Synchronizes with a GPU, so use it only for logged
    metrics."""
    return of_modalities if mask is None else {m: x[mask] for m, x in of_modalities.items()}
