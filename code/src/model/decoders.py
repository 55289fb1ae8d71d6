"""Reconstruction of a level's inputs from code and specific feature (NeurIPS 2023; level 2: arXiv 2403.05168)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.conv_matmul import MapSpreadConv
from model.encoders import ResidualBlock


class LinearDecoder(nn.Module):
    """Linear of the code, concatenated before the specific feature, Linear to the input: (B, T, .) -> (B, T, out)."""

    def __init__(self, code_dim, code_out, specific_dim, output_dim):
        super().__init__()
        self.code_linear = nn.Linear(code_dim, code_out)
        self.reconstruct = nn.Linear(code_out + specific_dim, output_dim)

    def forward(self, codes, specific):
        return self.reconstruct(torch.cat([self.code_linear(codes), specific], -1))


class VideoDecoder(nn.Module):
    """Transposed convolutions from the code, repeated over 3x3, and the specific map back to (B, T, 7, 7, V)."""

    def __init__(self, config):
        super().__init__()
        hidden, width = config.video_hidden, config.video_dim
        self.code_linear = nn.Linear(config.code_dim, config.code_dim)
        self.deconv1 = MapSpreadConv(config.code_dim + config.video_specific_dim, hidden, 3)
        self.residual = ResidualBlock(hidden)
        self.deconv2 = MapSpreadConv(hidden, width, 3)
        self.deconv3 = MapSpreadConv(width, width, 1)
        self.recompute = False          # as in VideoSpecificEncoder

    def forward(self, codes, specific):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._decode, codes, specific, use_reentrant=False)
        return self._decode(codes, specific)

    def _decode(self, codes, specific):
        code = self.code_linear(codes).flatten(0, 1)                                        # (B*T, D)
        maps = self.residual(self.deconv1(specific.flatten(0, 1), code))                    # (B*T, 5, 5, hidden)
        return self.deconv3(F.relu(self.deconv2(maps))).unflatten(0, codes.shape[:2])       # (B, T, 7, 7, V)
