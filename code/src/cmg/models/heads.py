"""Downstream heads on frozen codes: classes of clips, classes of seconds, and retrieval.

There are many seconds but few distinct codes. A head therefore also accepts a table of codes (U, D) with the row of
each second as `rows` (..., T); layers that act on single seconds are then computed once per code. `mask` (..., T) is a
mask of the seconds (cmg/models/masking.py).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from cmg.models.masking import mean_of_clips, mean_of_seconds


class ClipHead(nn.Module):
    """One class per clip: linear layer, maximum over time, linear layer (tasks AVE and UCF/VGG).

    Args:
        code_dim: width D of the codes (256; 512 for H-DCID; fewer where channels are selected).
        num_classes: foreground classes C; there is no background output.
    """

    clipwise = True

    def __init__(self, code_dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(code_dim, code_dim)
        self.event_classifier = nn.Linear(code_dim, num_classes)

    def forward(self, codes, rows=None, mask=None):
        """Class scores (..., C) of codes (..., T, D), or of a table (U, D) and rows (..., T)."""
        hidden = self.linear(codes)
        hidden = hidden if rows is None else F.embedding(rows, hidden)
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        return self.event_classifier(hidden.amax(-2))

    def loss(self, targets, codes, rows=None, mask=None):
        """Mean cross-entropy (nats) against clip classes (B,), int64; codes and rows as in `forward`."""
        return F.cross_entropy(self(codes, rows, mask), targets)


class SegmentHead(nn.Module):
    """Several classes per second: two consecutive linear layers on every second (tasks AVVP and AVE->AVVP).

    Args:
        code_dim: width D of the codes.
        num_classes: foreground classes C; the head has C + 1 outputs, the last one background.
    """

    clipwise = False

    def __init__(self, code_dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(code_dim, code_dim)
        self.event_classifier = nn.Linear(code_dim, num_classes + 1)
        self.explog = ExpLog(num_classes + 1)

    def classify(self, codes):
        """Logits (..., C + 1) of codes (..., D), for each second independently."""
        return self.event_classifier(self.linear(codes))

    def forward(self, codes, rows=None, mask=None):
        """Logits (..., T, C + 1) of codes (..., T, D), or of a table (U, D) and rows (..., T)."""
        logits = self.classify(codes)
        return logits if rows is None else F.embedding(rows, logits)

    def loss(self, labels, codes, rows=None, mask=None):
        """Binary cross-entropy (mean over cells) plus ExpLog against labels (B, T, C + 1) of 0 and 1."""
        logits = self(codes, rows)
        if mask is None:
            cells = F.binary_cross_entropy_with_logits(logits, labels)
        else:
            cells = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
            cells = mean_of_seconds(cells, mask)
        return cells + self.explog(logits, labels, mask)


class DeepSegmentHead(SegmentHead):
    """Segment head with four linear layers and no nonlinearities (AVVP in CoDAAR's program)."""

    def __init__(self, code_dim: int, num_classes: int) -> None:
        super().__init__(code_dim, num_classes)
        self.fusion_layer = nn.Linear(code_dim, code_dim // 2)
        self.linear1 = nn.Linear(code_dim // 2, code_dim // 2)
        self.event_classifier = nn.Linear(code_dim // 2, num_classes + 1)

    def classify(self, codes):
        return self.event_classifier(self.linear1(self.fusion_layer(self.linear(codes))))


class ExpLog(nn.Module):
    """Cross-entropy in which each class has a learnable weight exp(-alpha), with alpha initialized to 0.1.

    As published, alpha is unbounded: the loss decreases as alpha grows, so alpha rises by about the learning rate per
    step.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((num_classes,), 0.1))

    def forward(self, logits, labels, mask=None):
        """-mean over rows of sum_c y_c * log_softmax(logits)_c * exp(-alpha_c), for logits and labels (..., C)."""
        rows = (labels * logits.log_softmax(-1) * torch.exp(-self.alpha)).sum(-1)
        return -(rows.mean() if mask is None else mean_of_seconds(rows, mask))


class RetrievalHead(nn.Module):
    """Maps codes and audio features of a clip to a joint embedding space (NeurIPS 2023, section 5.1).

    The authors' script is not available; this is the simplest training procedure that matches the paper. The mean of
    the clip's codes goes through a linear layer, the mean of its audio features through an MLP with one hidden layer.
    Both are normalized to length 1. The loss is symmetric InfoNCE over the clips of the batch, with a learnable
    temperature initialized to 0.07. Clips with the same prompt count as negatives of each other.

    Args:
        code_dim: width D of the codes.
        audio_dim: width of the audio features.
        width: width of the joint space.
    """

    def __init__(self, code_dim, audio_dim, width=256):
        super().__init__()
        self.query = nn.Linear(code_dim, width)
        self.sound = nn.Sequential(nn.Linear(audio_dim, width), nn.ReLU(), nn.Linear(width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, codes, rows=None, mask=None):
        """Unit vectors (..., width) of codes (..., T, D), or of a table (U, D) and rows (..., T)."""
        hidden = self.query(codes)
        return F.normalize(mean_of_clips(hidden if rows is None else F.embedding(rows, hidden), mask), dim=-1)

    def embed_audio(self, audio):
        """Unit vectors (N, width) of audio features (N, T, audio_dim), or of maps (N, T, H, W, audio_dim)."""
        return F.normalize(self.sound(audio.flatten(1, -2).mean(1)), dim=-1)

    def loss(self, audio, codes, rows=None, mask=None):
        """Symmetric InfoNCE (nats) between the clips' audio features (B, T, audio_dim) and their codes."""
        scores = self.log_scale.exp() * self(codes, rows, mask) @ self.embed_audio(audio).mT          # (B, B)
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.mT, right)) / 2
