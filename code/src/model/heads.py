"""Downstream heads over frozen codes, and the ExpLog loss of the localisation tasks (spec downstream.md)."""

import torch
from torch import nn
from torch.nn import functional as F


class ClipHead(nn.Module):
    """One class a clip: Linear, maximum over time, Linear (tasks AVE and UCF/VGG).

    Args:
        code_dim: width D of the codes (256; 512 for H-DCID; fewer where channels are selected).
        num_classes: foreground classes C; there is no background output.
    """

    clipwise = True

    def __init__(self, code_dim, num_classes):
        super().__init__()
        self.linear = nn.Linear(code_dim, code_dim)
        self.event_classifier = nn.Linear(code_dim, num_classes)

    def forward(self, codes):
        """Class scores (..., C) of codes (..., T, D)."""
        return self.event_classifier(self.linear(codes).amax(-2))

    def loss(self, codes, targets):
        """Mean cross-entropy (nats) of codes (B, T, D) against clip classes (B,), int64."""
        return F.cross_entropy(self(codes), targets)


class SegmentHead(nn.Module):
    """Several classes a second: two Linear layers, one after the other, on every second (tasks AVVP and AVE->AVVP).

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

    def forward(self, codes):
        """Logits (..., T, C + 1) of codes (..., T, D)."""
        return self.event_classifier(self.linear(codes))

    def loss(self, codes, labels):
        """Binary cross-entropy (mean over cells) plus ExpLog of codes (B, T, D) against labels (B, T, C + 1) of 0 and 1."""
        logits = self(codes)
        return F.binary_cross_entropy_with_logits(logits, labels) + self.explog(logits, labels)


class ExpLog(nn.Module):
    """Cross-entropy in which each class has a learnable weight exp(-alpha), alpha starting at 0.1.

    Nothing holds alpha back (the loss falls as alpha grows), so it rises by about the learning rate a step; it is as
    published, where alpha is float32 whatever the rest is.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((num_classes,), 0.1))

    def forward(self, logits, labels):
        """-mean over rows of sum_c y_c * log_softmax(logits)_c * exp(-alpha_c), for logits and labels (..., C)."""
        return -(labels * logits.log_softmax(-1) * torch.exp(-self.alpha)).sum(-1).mean()
