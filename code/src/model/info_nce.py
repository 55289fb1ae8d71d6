"""InfoNCE within a batch, in one direction: queries find their keys (FCID, MICU)."""

from torch.nn import functional as F

TEMPERATURE = 0.1


def info_nce(queries, keys):
    """Mean over the rows of -log softmax(cosine / 0.1) at the row's own key: (..., n, D) twice -> (...).

    Leading dimensions are broadcast. A zero query costs log n and has a gradient of the order of 10^12, which a mask
    behind it must cancel: float32 or wider.
    """
    scores = F.normalize(queries, dim=-1, eps=1e-12) @ F.normalize(keys, dim=-1, eps=1e-12).mT / TEMPERATURE
    return (scores.logsumexp(-1) - scores.diagonal(dim1=-2, dim2=-1)).mean(-1)


def masked_pairs(z, kept):
    """Fine-coarse masked contrast of all ordered pairs of modalities, themselves included (MICU).

    Args:
        z: (B, M, T, D) semantic features.
        kept: (B, T) of 0 and 1, seconds of the queries; one mask for all modalities.
    Returns:
        (fine, coarse): scalars; contrasted over the seconds of a clip, and means over seconds over the clips.
    """
    z = z.transpose(0, 1)                                               # (M, B, T, D)
    masked = z * kept.to(z).unsqueeze(-1)
    fine = info_nce(masked.unsqueeze(1), z.unsqueeze(0))                # (M, M, B)
    coarse = info_nce(masked.mean(2).unsqueeze(1), z.mean(2).unsqueeze(0))
    return fine.mean(2).sum(), coarse.sum()
