"""Downstream heads over frozen codes, and the ExpLog loss of the localisation tasks (NeurIPS 2023, section 4).

There are few different codes and many seconds. A head therefore also takes the codes as a table (U, D) with `rows`
(..., T) that say which of them each second has: whatever depends on one second alone is computed once a code.
"""

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

    def forward(self, codes, rows=None):
        """Class scores (..., C) of codes (..., T, D), or of a table (U, D) and rows (..., T)."""
        hidden = self.linear(codes)
        return self.event_classifier((hidden if rows is None else F.embedding(rows, hidden)).amax(-2))

    def loss(self, targets, codes, rows=None):
        """Mean cross-entropy (nats) against clip classes (B,), int64; codes and rows as in `forward`."""
        return F.cross_entropy(self(codes, rows), targets)


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

    def forward(self, codes, rows=None):
        """Logits (..., T, C + 1) of codes (..., T, D), or of a table (U, D) and rows (..., T)."""
        logits = self.event_classifier(self.linear(codes))
        return logits if rows is None else F.embedding(rows, logits)

    def loss(self, labels, codes, rows=None):
        """Binary cross-entropy (mean over cells) plus ExpLog against labels (B, T, C + 1) of 0 and 1."""
        logits = self(codes, rows)
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
