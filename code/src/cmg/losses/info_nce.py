"""InfoNCE within a batch, in one direction: queries find their keys (FCID, MICU)."""

import torch
from torch.nn import functional as F

from cmg.models.masking import mean_of_clips

TEMPERATURE = 0.1


def info_nce(queries, keys, mask=None):
    """Mean over the rows of -log softmax(cosine / 0.1) at the row's own key: (..., n, D) twice -> (...).

    Leading dimensions are broadcast. A zero query costs log n and has a gradient of the order of 10^12, which a mask
    behind it must cancel: float32 or wider. Rows that are not `mask` (n,) are neither queries nor keys.
    """
    scores = F.normalize(queries, dim=-1, eps=1e-12) @ F.normalize(keys, dim=-1, eps=1e-12).mT / TEMPERATURE
    own = scores.diagonal(dim1=-2, dim2=-1)
    if mask is None:
        return (scores.logsumexp(-1) - own).mean(-1)
    costs = scores.masked_fill(~mask.unsqueeze(-2), -torch.inf).logsumexp(-1) - own
    return (costs * mask).sum(-1) / mask.sum(-1)


def clip_pairs(queries, keys):
    """Contrast of the clips of a batch for all ordered pairs of modalities, themselves included: (M, B, D) twice, means
    of a clip's seconds -> scalar, the sum over the pairs."""
    return info_nce(queries.unsqueeze(1), keys.unsqueeze(0)).sum()


def masked_pairs(z, kept, mask=None):
    """Fine-coarse masked contrast of all ordered pairs of modalities, themselves included (MICU).

    Args:
        z: (B, M, T, D) semantic features.
        kept: (B, T) of 0 and 1, seconds of the queries; one mask for all modalities.
        real: mask of the seconds (cmg/models/masking.py).
    Returns:
        (fine, coarse): scalars; contrasted over the seconds of a clip, and means over seconds over the clips.
    """
    z = z.transpose(0, 1)                                               # (M, B, T, D)
    masked = z * kept.to(z).unsqueeze(-1)
    fine = info_nce(masked.unsqueeze(1), z.unsqueeze(0), mask)          # (M, M, B)
    return fine.mean(2).sum(), clip_pairs(mean_of_clips(masked, mask), mean_of_clips(z, mask))
