"""Reconstruction of a level's inputs from code and specific feature (dcid.md 6, h_dcid_toc.md A1)."""

import torch
from torch import nn
from torch.nn import functional as F

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
        self.deconv1 = nn.ConvTranspose2d(config.code_dim + config.video_specific_dim, hidden, 3)
        self.residual = ResidualBlock(hidden)
        self.deconv2 = nn.ConvTranspose2d(hidden, width, 3)
        self.deconv3 = nn.ConvTranspose2d(width, width, 1)

    def forward(self, codes, specific):
        rows, columns = specific.shape[2:4]
        code = self.code_linear(codes)[:, :, None, None].expand(-1, -1, rows, columns, -1)
        maps = torch.cat([code, specific], -1).flatten(0, 1).permute(0, 3, 1, 2)            # (B*T, D+O, 3, 3)
        maps = self.residual(self.deconv1(maps))
        maps = self.deconv3(F.relu(self.deconv2(maps)))                                     # (B*T, V, 7, 7)
        return maps.permute(0, 2, 3, 1).unflatten(0, codes.shape[:2])
