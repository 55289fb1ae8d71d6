"""IoU and F of predicted masks (Zhou et al., ECCV 2022): by frame, over the whole set, and by batch as published."""

from dataclasses import dataclass

import torch

THRESHOLDS = 255
BETA_SQUARED = 0.3


def frame_iou(logits, masks):
    """IoU (n,) of each frame, or, if its mask is empty, the fraction of pixels predicted as background.

    Args:
        logits, masks: (n, H, W).
    """
    predicted, truth = logits.sigmoid() > 0.5, masks > 0.5                 # a logit of exactly 0 is background
    both, either = ((predicted & truth).sum((1, 2)), (predicted | truth).sum((1, 2)))
    background, pixels = (~predicted).sum((1, 2)), masks[0].numel()
    return torch.where(truth.any(2).any(1), both / (either + 1e-7), background / (pixels + 1e-7))


@dataclass
class Curves:
    """Precision, recall and F of frames at all thresholds k/254, (n, 255) each, and whether each frame counts."""

    precision: torch.Tensor
    recall: torch.Tensor
    f: torch.Tensor
    has_truth: torch.Tensor     # (n,) bool; frames with an empty mask do not count


def frame_curves(logits, masks):
    """`Curves` of each frame over 255 thresholds, given logits and masks (n, H, W)."""
    # float32 like the published thresholds: a probability of exactly 1 must reach the last one
    probability, truth = logits.float().sigmoid().flatten(1), masks.flatten(1) > 0.5
    thresholds = torch.linspace(0, 1, THRESHOLDS, dtype=torch.float32, device=logits.device)
    # number of thresholds that a pixel reaches, 1..255, and cumulative counts, instead of 255 comparisons per pixel
    level = torch.bucketize(probability, thresholds, right=True)
    n = len(level)
    row = torch.arange(n, device=level.device)[:, None] * (THRESHOLDS + 1) + level

    def reached(rows):
        counts = torch.bincount(rows.flatten(), minlength=n * (THRESHOLDS + 1)).view(n, -1)
        return counts.flip(1).cumsum(1).flip(1)[:, 1:].float()

    selected, hits = reached(row), reached(row[truth])
    precision = hits / (selected + 1e-20)
    recall = hits / (truth.sum(1, keepdim=True) + 1e-20)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return Curves(precision, recall, f.nan_to_num(0.0), truth.any(1))


class SetMetrics:
    """Metrics of a set, accumulated over batches; `result` returns fractions in [0, 1]."""

    def __init__(self):
        self.iou_sum, self.frames = 0.0, 0
        self.f_sum, self.f_frames = torch.zeros(THRESHOLDS, dtype=torch.float64), 0
        self.batch_iou, self.batch_f = [], []

    def add(self, logits, masks):
        """Add a batch of logits and masks (n, H, W); returns its published metrics (mean IoU, maximum F)."""
        iou, curves = frame_iou(logits, masks).double().cpu(), frame_curves(logits, masks)
        f = curves.f[curves.has_truth].double().cpu()
        self.iou_sum += iou.sum().item()
        self.frames += len(iou)
        self.f_sum += f.sum(0)
        self.f_frames += len(f)
        self.batch_iou.append(iou.mean().item())
        self.batch_f.append(f.mean(0).max().item() if len(f) else 0.0)
        return self.batch_iou[-1], self.batch_f[-1]

    def result(self, protocol="default"):
        """{"mIoU", "F"} over all frames. With protocol "released" they are unweighted means of the values of batches,
        which depend on the batch size and, for F, are biased upwards."""
        if protocol == "released":
            batches = len(self.batch_iou)
            return {"mIoU": sum(self.batch_iou) / batches, "F": sum(self.batch_f) / batches}
        f = (self.f_sum / self.f_frames).max().item() if self.f_frames else 0.0
        return {"mIoU": self.iou_sum / self.frames, "F": f}
