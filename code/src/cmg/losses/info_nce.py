"""InfoNCE within a batch, in one direction, from queries to keys (FCID, MICU)."""

import torch
from torch.nn import functional as F

from cmg.models.masking import mean_of_clips

TEMPERATURE = 0.1


def info_nce(queries, keys, mask=None):
    """InfoNCE with cosine similarity and temperature 0.1: the mean over rows of -log softmax at the row's own key.

    A zero query has a loss of log n and a gradient on the order of 10^12, which the mask applied to the query must
    cancel; this requires float32 or wider.

    Args:
        queries, keys: (..., n, D); leading dimensions are broadcast.
        mask: (n,) bool, optionally with leading dimensions; rows outside it are neither queries nor keys.

    Returns:
        Loss of shape (...).
    """
    scores = F.normalize(queries, dim=-1, eps=1e-12) @ F.normalize(keys, dim=-1, eps=1e-12).mT / TEMPERATURE
    own = scores.diagonal(dim1=-2, dim2=-1)
    if mask is None:
        return (scores.logsumexp(-1) - own).mean(-1)
    costs = scores.masked_fill(~mask.unsqueeze(-2), -torch.inf).logsumexp(-1) - own
    return (costs * mask).sum(-1) / mask.sum(-1)


def clip_pairs(queries, keys):
    """Contrast between the clips of a batch: the sum of `info_nce` over all ordered pairs of modalities, including
    pairs of the same modality. Queries and keys (M, B, D), means over the seconds of a clip -> scalar."""
    return info_nce(queries.unsqueeze(1), keys.unsqueeze(0)).sum()


def masked_pairs(z, kept, mask=None):
    """Fine-coarse masked contrastive losses (FCMI) over all ordered pairs of modalities, including pairs of the same
    modality (MICU).

    Args:
        z: (B, M, T, D) semantic features.
        kept: (B, T) of 0 and 1; seconds marked 0 are excluded from the queries of all modalities.
        mask: mask of the seconds (cmg/models/masking.py).

    Returns:
        (fine, coarse) scalars: contrast between the seconds of a clip, and between the clips' means over the seconds.
    """
    z = z.transpose(0, 1)                                               # (M, B, T, D)
    masked = z * kept.to(z).unsqueeze(-1)
    fine = info_nce(masked.unsqueeze(1), z.unsqueeze(0), mask)          # (M, M, B)
    return fine.mean(2).sum(), clip_pairs(mean_of_clips(masked, mask), mean_of_clips(z, mask))
