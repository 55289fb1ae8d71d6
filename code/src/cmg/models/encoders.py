"""Semantic (modality-general) and modality-specific encoders of one level (NeurIPS 2023, section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cmg.models.map_conv import MapConv


class TemporalEncoder(nn.Module):
    """Linear layer to the code width, then post-norm Transformer layers over time without positional encoding.

    (B, T, input_dim) -> (B, T, D). Seconds outside `mask` (cmg/models/masking.py) are not attended to. The layers are
    initialized independently; those of the published program start as copies of each other.
    """

    def __init__(self, config, input_dim):
        super().__init__()
        self.affine = nn.Linear(input_dim, config.code_dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(config.code_dim, config.num_heads, config.feed_forward, config.dropout,
                                       batch_first=True) for _ in range(config.num_layers))

    def forward(self, x, mask=None):
        x = self.affine(x)
        for layer in self.layers:
            x = layer(x) if mask is None else layer(x, src_key_padding_mask=~mask)
        return x


class MapSemanticEncoder(nn.Module):
    """Squeeze-excitation over channels, pooling over positions, then the temporal encoder.

    (B, T, H, W, C) -> (B, T, D). `spatial_attention="sum"` gives the published numbers: the published softmax runs over
    an axis of length 1, so every position has weight 1. "softmax" is the attention described in the paper; files of
    earlier versions may use it. Published files contain the three attention layers, which "sum" does not use.
    """

    def __init__(self, config, channels, widths):
        super().__init__()
        self.squeeze = nn.Linear(channels, widths.squeeze, bias=False)
        self.excite = nn.Linear(widths.squeeze, channels, bias=False)
        self.average_attention = nn.Linear(channels, widths.attention)
        self.place_attention = nn.Linear(channels, widths.attention)
        self.attention = nn.Linear(widths.attention, 1)
        self.temporal = TemporalEncoder(config, channels)
        self.spatial_attention = config.spatial_attention

    @property
    def unread(self):
        """Names of parameters that have no effect."""
        layers = ("average_attention", "place_attention", "attention") if self.spatial_attention == "sum" else ()
        return [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]

    def gate(self, x):
        """Squeeze-excitation of x (B, T, H, W, C): returns (factor, mean over the positions), both (B, T, C).

        The residual form x * gate + x equals x * factor.
        """
        average = x.flatten(-3, -2).mean(-2)
        return 1 + torch.sigmoid(self.excite(F.relu(self.squeeze(average)))), average

    def pool(self, x, factor=None, average=None):
        """Pool over the positions: (B, T, H, W, C) -> (B, T, C). `factor` and `average` are the result of `gate(x)`, if
        already computed."""
        if factor is None:
            factor, average = self.gate(x)
        positions = x.flatten(-3, -2)                                       # (B, T, H*W, C)
        if self.spatial_attention == "sum":
            return factor * average * positions.shape[-2]                   # sum over positions of x * factor
        positions = positions * factor.unsqueeze(-2)
        match = F.relu(self.place_attention(positions)) * F.relu(self.average_attention(average)).unsqueeze(-2)
        weights = torch.tanh(self.attention(match)).softmax(-2)
        return (weights * positions).sum(-2)

    def forward(self, x, mask=None):
        return self.temporal(self.pool(x), mask)


@dataclass
class Specific:
    """Modality-specific features: `full` for the decoder, `pooled` (B, T, width) for CLUB and the next level."""

    full: Tensor
    pooled: Tensor


class LinearSpecificEncoder(nn.Module):
    """Linear layer and ReLU, for vectors and tokens at level 1 and for all modalities at level 2."""

    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim)

    def forward(self, x):
        y = F.relu(self.linear(x))
        return Specific(y, y)


class ResidualBlock(nn.Module):
    """relu(relu(x) + conv1x1(relu(conv3x3(relu(x))))) over maps (N, H, W, C).

    The published block applies its first ReLU in place, so that the skip connection carries relu(x), not x.
    """

    def __init__(self, channels):
        super().__init__()
        self.conv3x3 = MapConv(channels, channels, 3, padding=1, bias=False)
        self.conv1x1 = MapConv(channels, channels, 1, bias=False)

    def forward(self, x):
        x = F.relu(x)
        return F.relu(x + self.conv1x1(F.relu(self.conv3x3(x))))


class MapSpecificEncoder(nn.Module):
    """Convolutions over the map of each second: (B, T, H, W, C) -> full (B, T, H-4, W-4, O), pooled (B, T, C)."""

    def __init__(self, channels, widths):
        super().__init__()
        self.conv1 = MapConv(channels, widths.hidden, 3)
        self.conv2 = MapConv(widths.hidden, widths.specific, 3)
        self.conv3 = MapConv(widths.specific, widths.specific, 1)
        self.residual = ResidualBlock(widths.specific)
        self.pool1 = nn.Linear(widths.specific, widths.pool_hidden)
        self.pool2 = nn.Linear(widths.pool_hidden, channels)
        self.recompute = False          # activation checkpointing; set by cmg/training/step.py

    def forward(self, x):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._encode, x, use_reentrant=False)
        return self._encode(x)

    def _encode(self, x):
        maps = F.relu(self.conv2(F.relu(self.conv1(x.flatten(0, 1)))))
        full = self.residual(self.conv3(maps)).unflatten(0, x.shape[:2])
        pooled = self.pool2(F.relu(self.pool1(full.mean((-3, -2)))))
        return Specific(full, pooled)
