"""TPAVI: temporal pixel-wise interaction of a stage's map with the query codes (Zhou et al., ECCV 2022)."""

import torch
from torch import nn


class TPAVI(nn.Module):
    """Non-local block whose keys come from the query: z = LayerNorm(BatchNorm(W_z y) + x).

    y_i = 1/N sum_j (theta_i . phi_j) g_j over all N = T h w positions j of a clip. Because there is no softmax, it is
    computed as theta_i times the small matrix 1/N sum_j phi_j g_j^T, without an N x N matrix.

    Args:
        channels: channels C of the map; theta, phi and g have C/2.
        code_dim: width of the query codes.
        norm_start: initial weight of the BatchNorm. With 0, as published, the query has no influence at first.
    """

    def __init__(self, channels, code_dim, norm_start=0.0):
        super().__init__()
        inner = channels // 2
        self.align_channel = nn.Linear(code_dim, channels)
        self.norm_layer = nn.LayerNorm(channels)
        self.g = nn.Conv3d(channels, inner, 1)
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)
        self.W_z = nn.Sequential(nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels))
        nn.init.constant_(self.W_z[1].weight, norm_start)
        nn.init.zeros_(self.W_z[1].bias)

    @torch.no_grad()
    def whiten(self, codes, ridge=0.2):
        """Initialize `align_channel` as a random projection of whitened codes.

        The codes of a trained codebook have a large common mean and vary in few directions. Whitened codes are as
        distinguishable as random vectors, so training uses the query far earlier.

        Args:
            codes: (n, code_dim) codes of training clips.
            ridge: regularization, relative to the largest singular value.
        """
        mean = codes.mean(0)
        _, strength, directions = torch.linalg.svd(codes - mean, full_matrices=False)
        strength = strength / len(codes) ** 0.5
        kept = strength > 1e-3 * strength[0]
        strength, directions = strength[kept], directions[kept]
        scale = (strength ** 2 + (ridge * strength[0]) ** 2).rsqrt()                # (r,)
        random = torch.randn(self.align_channel.out_features, len(scale)).to(codes) / len(scale) ** 0.5
        self.align_channel.weight.copy_(random * scale @ directions)
        self.align_channel.bias.copy_(-self.align_channel.weight @ mean)

    def attend(self, x, aligned=None):
        """y (B, C/2, T, h, w) of a map x (B, C, T, h, w) and aligned queries (B, T, C), or of x alone."""
        positions = x[0, 0].numel()
        if aligned is None:
            phi, g = self.phi(x).flatten(2), self.g(x).flatten(2)                  # (B, C/2, N)
        else:
            # phi is the same at all positions of a frame: sum g over the positions first. As g is affine, x is summed.
            area = x[0, 0, 0].numel()
            query = aligned.transpose(1, 2)[..., None, None]                       # (B, C, T, 1, 1)
            phi = self.phi(query).flatten(2)                                       # (B, C/2, T)
            bias = self.g.bias[:, None]
            g = self.g(x.sum((3, 4), keepdim=True)).flatten(2) + (area - 1) * bias
        memory = phi @ g.transpose(1, 2) / positions                               # (B, C/2, C/2)
        return (memory.transpose(1, 2) @ self.theta(x).flatten(2)).unflatten(2, x.shape[2:])

    def forward(self, x, query=None):
        """Let the map attend to the query.

        Args:
            x: (B, C, T, h, w) stage map.
            query: (B, T, code_dim) query codes; with None, the map attends to itself.

        Returns:
            (z (B, C, T, h, w), aligned query (B, T, C) or None).
        """
        aligned = None if query is None else self.align_channel(query)
        z = self.W_z(self.attend(x, aligned)) + x
        return self.norm_layer(z.movedim(1, -1)).movedim(-1, 1), aligned
