"""Seconds that clips do not have (--padding mask): what the parts of a model ask of the mask `mask`, (B, T) bool, True
in the seconds of a clip, its first one always among them. None: all seconds count, and all is computed as published."""

import torch
from torch.nn import functional as F

from cmg.utils import dist


class Features(dict):
    """What `System.encode` takes: modality -> (B, T, ...), and the batch's mask."""

    def __init__(self, features, mask=None):
        super().__init__(features)
        self.mask = mask


def mean_of_clips(x, mask):
    """Mean over the seconds of each clip: (..., B, T, D) -> (..., B, D); `mask` may have more dimensions in front."""
    if mask is None:
        return x.mean(-2)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(-2) / weight.sum(-2)


def mean_of_seconds(x, mask):
    """Mean over all seconds of a batch: (..., B, T) -> (...)."""
    return x.mean((-2, -1)) if mask is None else (x * mask).sum((-2, -1)) / mask.sum()


def squared_error(y, target, mask):
    """Mean squared error over the seconds' numbers, of (B, T, ...) twice."""
    if mask is None:
        return F.mse_loss(y, target)
    y = torch.where(mask.view(*mask.shape, *[1] * (y.ndim - 2)), y, target)
    return F.mse_loss(y, target, reduction="sum") / (mask.sum() * y[0, 0].numel())


def gathered(mask, like):
    """The mask of the whole batch, from each process's; `like`: a tensor in whose dtype it travels."""
    return None if mask is None else dist.all_gather(mask.to(like.dtype)) > 0.5


def first_rows(rng, number, wanted, mask):
    """Which rows of a batch start codes, (wanted,): of `number`, or of those that `mask` (number,) bool marks."""
    if mask is None:
        return rng.rows(number, wanted)
    order = rng.rows(number, number).to(mask.device, non_blocking=True)
    order = order[torch.argsort((~mask[order]).to(torch.int8), stable=True)]        # in random order, real ones first
    return order[torch.arange(wanted, device=mask.device) % mask.sum()]


def unmasked(of_modalities, mask):
    """modality -> (B, T) as (n,), the real seconds' alone, for counts in the log: the host waits for their number."""
    return of_modalities if mask is None else {m: x[mask] for m, x in of_modalities.items()}
