"""Downstream heads over frozen codes: one class per clip, classes per second, retrieval; ExpLog loss of localisation.

There are few different codes and many seconds. A head therefore also takes the codes as a table (U, D) with `rows`
(..., T) that say which of them each second has: whatever depends on one second alone is computed once per code. `mask`
(..., T) is a mask of the seconds (cmg/models/masking.py).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from cmg.models.masking import mean_of_clips, mean_of_seconds


class ClipHead(nn.Module):
    """One class per clip: Linear, maximum over time, Linear (tasks AVE and UCF/VGG).

    Args:
        code_dim: width D of the codes (256; 512 for H-DCID; fewer where channels are selected).
        num_classes: foreground classes C; there is no background output.
    """

    clipwise = True

    def __init__(self, code_dim, num_classes):
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
    """Several classes per second: two Linear layers, one after the other, on every second (tasks AVVP and AVE->AVVP).

    Args:
        code_dim: width D of the codes.
        num_classes: foreground classes C; the head has C + 1 outputs, the last one background.
    """

    clipwise = False

    def __init__(self, code_dim, num_classes):
        super().__init__()
        self.linear = nn.Linear(code_dim, code_dim)
        self.event_classifier = nn.Linear(code_dim, num_classes + 1)
        self.explog = ExpLog(num_classes + 1)

    def classify(self, codes):
        """Logits of every second alone."""
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
    """A segment head of four Linear layers, nothing between them (AVVP in CoDAAR's program)."""

    def __init__(self, code_dim, num_classes):
        super().__init__(code_dim, num_classes)
        self.fusion_layer = nn.Linear(code_dim, code_dim // 2)
        self.linear1 = nn.Linear(code_dim // 2, code_dim // 2)
        self.event_classifier = nn.Linear(code_dim // 2, num_classes + 1)

    def classify(self, codes):
        return self.event_classifier(self.linear1(self.fusion_layer(self.linear(codes))))


class ExpLog(nn.Module):
    """Cross-entropy in which each class has a learnable weight exp(-alpha), alpha starting at 0.1.

    Nothing holds alpha back (the loss falls as alpha grows), so it rises by about the learning rate per step; it is as
    published, where alpha is float32 whatever the rest is.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((num_classes,), 0.1))

    def forward(self, logits, labels, mask=None):
        """-mean over rows of sum_c y_c * log_softmax(logits)_c * exp(-alpha_c), for logits and labels (..., C)."""
        rows = (labels * logits.log_softmax(-1) * torch.exp(-self.alpha)).sum(-1)
        return -(rows.mean() if mask is None else mean_of_seconds(rows, mask))


class RetrievalHead(nn.Module):
    """Puts a clip's codes and a clip's sound into one space (NeurIPS 2023, section 5.1).

    The authors' script is lost; this is the plainest training that fits the paper's words. The mean of the clip's codes
    goes through one Linear layer, the mean of its audio features through Linear, ReLU, Linear. Both are scaled to
    length 1; the loss is InfoNCE in both directions over the clips of the batch, with a learnable
    temperature that starts at 0.07. Clips with the same prompt are not treated as equals.

    Args:
        code_dim: width D of the codes.
        audio_dim: width of the audio features.
        width: of the common space.
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
        """Unit vectors (N, width) of the means of sounds (N, T, audio_dim), or maps (N, T, H, W, audio_dim)."""
        return F.normalize(self.sound(audio.flatten(1, -2).mean(1)), dim=-1)

    def loss(self, audio, codes, rows=None, mask=None):
        """Mean of the two cross-entropies (nats) of finding clip i's sound (B, T, audio_dim) by its codes and back."""
        scores = self.log_scale.exp() * self(codes, rows, mask) @ self.embed_audio(audio).mT          # (B, B)
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.mT, right)) / 2
