"""Seconds that clips do not have (--padding mask): what the parts of a model ask of the mask `real`, (B, T) bool, True
in the seconds of a clip, its first one always among them. None: all seconds count, and all is computed as published."""

import torch
from torch.nn import functional as F


class Features(dict):
    """What `System.encode` takes: modality -> (B, T, ...), and the batch's mask."""

    def __init__(self, features, real=None):
        super().__init__(features)
        self.real = real


def mean_of_clips(x, real):
    """Mean over the seconds of each clip: (..., B, T, D) -> (..., B, D); `real` may have more dimensions in front."""
    if real is None:
        return x.mean(-2)
    weight = real.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(-2) / weight.sum(-2)


def mean_of_seconds(x, real):
    """Mean over all seconds of a batch: (..., B, T) -> (...)."""
    return x.mean((-2, -1)) if real is None else (x * real).sum((-2, -1)) / real.sum()


def squared_error(y, target, real):
    """Mean squared error over the seconds' numbers, of (B, T, ...) twice."""
    if real is None:
        return F.mse_loss(y, target)
    y = torch.where(real.view(*real.shape, *[1] * (y.ndim - 2)), y, target)
    return F.mse_loss(y, target, reduction="sum") / (real.sum() * y[0, 0].numel())


def gathered(real, together, like):
    """The mask of the whole batch, from each process's; `like`: a tensor in whose dtype it travels."""
    return None if real is None else together.gather(real.to(like.dtype)) > 0.5


def first_rows(draws, number, wanted, real):
    """Which rows of a batch start codes, (wanted,): of `number`, or of those that `real` (number,) bool marks."""
    if real is None:
        return draws.rows(number, wanted)
    order = draws.rows(number, number).to(real.device, non_blocking=True)
    order = order[torch.argsort((~real[order]).to(torch.int8), stable=True)]        # in random order, real ones first
    return order[torch.arange(wanted, device=real.device) % real.sum()]


def only_real(of_modalities, real):
    """modality -> (B, T) as (n,), the real seconds' alone, for counts in the log: the host waits for their number."""
    return of_modalities if real is None else {m: x[real] for m, x in of_modalities.items()}
