"""Mask loss and audio-masked-visual matching loss (Zhou et al., ECCV 2022)."""

import torch
from torch.nn import functional as F


def mask_loss(logits, masks, released=False):
    """Binary cross-entropy of the first frame of each clip, a mean over B H W.

    Args:
        logits: (B, 1, H, W) of the first frames.
        masks: (B, 1, H, W) in {0, 1}.
        released: as published, apply the sigmoid first and clamp logarithms at -100, so that in float32 a background
            pixel with a logit above about 17 has a loss of 100 and no gradient. Otherwise the result is the same.
    """
    if released:
        return F.binary_cross_entropy(logits.sigmoid(), masks)
    return F.binary_cross_entropy_with_logits(logits, masks)


def matching_loss(logits, maps, queries, stages, pooling="avg", normalize=True):
    """-log of the cosine between the aligned query and the mean of the stage map in the predicted mask, averaged over
    stages. The logits get no gradient, because the mask is thresholded.

    Args:
        logits: (B T, 1, H, W) of all frames.
        maps: four rectified stage maps (B T, C, h, w).
        queries: four aligned queries (B, T, C); those of `stages` must exist.
        stages: stages to average over.
        pooling: pooling of the predicted mask to the size of the stage, "avg" or "max".
        normalize: L2-normalize both sides.
    """
    pool = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}[pooling]
    probability = logits.detach().sigmoid()
    losses = []
    for stage in stages:
        x, query = maps[stage], queries[stage].flatten(0, 1)                         # (B T, C, h, w), (B T, C)
        mask = (pool(probability, x.shape[-2:]) > 0.5).to(x.dtype)
        visual = (mask * x).sum((2, 3)) / (mask.sum((2, 3)) + 1e-6)
        if normalize:
            visual, query = F.normalize(visual, dim=1), F.normalize(query, dim=1)
        cosine = (visual * query).sum(1).relu() + 1e-6
        losses.append(-cosine.log().mean())
    return torch.stack(losses).mean()
