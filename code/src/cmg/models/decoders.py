"""Decoders: reconstruct a level's inputs from codes and specific features (NeurIPS 2023; level 2: arXiv 2403.05168)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cmg.models.encoders import ResidualBlock
from cmg.models.map_conv import MapConvTranspose


class LinearDecoder(nn.Module):
    """Decoder of vectors and tokens: a linear layer on the code, concatenation with the specific feature, and a linear
    layer to the input: (B, T, D) and (B, T, S) -> (B, T, output_dim)."""

    def __init__(self, code_dim, code_out, specific_dim, output_dim):
        super().__init__()
        self.code_linear = nn.Linear(code_dim, code_out)
        self.reconstruct = nn.Linear(code_out + specific_dim, output_dim)

    def forward(self, codes, specific):
        return self.reconstruct(torch.cat([self.code_linear(codes), specific], -1))


class MapDecoder(nn.Module):
    """Decoder of maps: transposed convolutions on the specific map, with the code at every position.

    Codes (B, T, D) and specific maps (B, T, H-4, W-4, O) -> (B, T, H, W, C).
    """

    def __init__(self, code_dim, channels, widths):
        super().__init__()
        self.code_linear = nn.Linear(code_dim, code_dim)
        self.deconv1 = MapConvTranspose(code_dim + widths.specific, widths.hidden, 3)
        self.residual = ResidualBlock(widths.hidden)
        self.deconv2 = MapConvTranspose(widths.hidden, channels, 3)
        self.deconv3 = MapConvTranspose(channels, channels, 1)
        self.recompute = False          # as in MapSpecificEncoder

    def forward(self, codes, specific):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._decode, codes, specific, use_reentrant=False)
        return self._decode(codes, specific)

    def _decode(self, codes, specific):
        code = self.code_linear(codes).flatten(0, 1)                                        # (B*T, D)
        maps = self.residual(self.deconv1(specific.flatten(0, 1), code))                    # (B*T, H-2, W-2, hidden)
        return self.deconv3(F.relu(self.deconv2(maps))).unflatten(0, codes.shape[:2])       # (B, T, H, W, C)
