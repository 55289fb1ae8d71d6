"""Stage heads, query interaction, fusion from coarse to fine, and the mask head (Zhou et al., ECCV 2022)."""

from dataclasses import dataclass

import torch
from network.tpavi import TPAVI
from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (3, 6, 12, 18)


@dataclass
class Segmentation:
    """Output of the network."""

    logits: Tensor              # (n, 1, H, W); n is B T, or B if only first frames were decoded
    maps: list                  # four rectified stage maps (B T, C, h, w)
    queries: list               # four aligned queries (B, T, C), None for stages without a query


class StageHead(nn.Module):
    """Sum of four parallel dilated 3x3 convolutions."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, channels, 3, padding=rate, dilation=rate) for rate in DILATIONS)
        for convolution in self.conv2d_list:
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, x):
        return sum(convolution(x) for convolution in self.conv2d_list)


class ResidualUnit(nn.Module):
    """relu(x) + f(relu(x)). As in the published network, the skip connection carries the rectified input."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        x = x.relu()
        return x + self.conv2(self.conv1(x).relu())


class Fusion(nn.Module):
    """Fuse the coarser path with a stage map, and double the size with aligned corners.

    The `first`, coarsest one has no path to add, so `resConfUnit1` of published files is unused and not built
    (published.py fills its keys when saving).
    """

    def __init__(self, channels, first=False):
        super().__init__()
        if not first:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x, stage=None):
        if stage is not None:
            x = x + self.resConfUnit1(stage)
        return F.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Everything after the backbone. Attribute names match published state dicts.

    Args:
        stage_channels: channels of the four backbone maps.
        channels: C, width of all stages (published: 256).
        code_dim: width of the query codes.
        stages: stages, 0 to 3, with a TPAVI block.
        self_attention, cross_attention: let maps attend to themselves (vv) and to the query (va); with both, the mean.
        norm_start: see TPAVI.
    """

    def __init__(self, stage_channels, channels, code_dim, stages, *, self_attention, cross_attention, norm_start=0.0):
        super().__init__()
        self.stages, self.self_attention, self.cross_attention = tuple(stages), self_attention, cross_attention
        for i, width in enumerate(stage_channels):
            setattr(self, f"conv{i + 1}", StageHead(width, channels))
            setattr(self, f"path{i + 1}", Fusion(channels, first=i == 3))
        for stage in self.stages:
            setattr(self, f"tpavi_b{stage + 1}", TPAVI(channels, code_dim, norm_start))
        middle, last = channels // 2, max(channels // 8, 16)      # with fewer channels, the ReLU may zero all
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, middle, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(middle, last, 3, padding=1), nn.ReLU(), nn.Conv2d(last, 1, 1))

    def whiten(self, codes):
        """Initialize every TPAVI block with whitened codes (n, code_dim); see TPAVI.whiten."""
        for stage in self.stages:
            getattr(self, f"tpavi_b{stage + 1}").whiten(codes)

    def interact(self, stage, x, query):
        """(map of a stage after its TPAVI block, aligned query), given x (B T, C, h, w) and query (B, T, code_dim)."""
        if stage not in self.stages:
            return x, None
        block, results, aligned = getattr(self, f"tpavi_b{stage + 1}"), [], None
        clips = x.unflatten(0, query.shape[:2]).transpose(1, 2)                    # (B, C, T, h, w)
        if self.self_attention:
            results.append(block(clips)[0])
        if self.cross_attention:
            z, aligned = block(clips, query)
            results.append(z)
        return torch.stack(results).mean(0).transpose(1, 2).flatten(0, 1), aligned

    def forward(self, maps, query, first_frames=False):
        """Predict masks from the backbone's maps and the query codes.

        Args:
            maps: four maps (B T, width, h, w) with strides 4, 8, 16 and 32.
            query: (B, T, code_dim) codes, one per frame.
            first_frames: decode only the first frame of each clip, which the mask loss uses. Its logits and gradients
                do not change, because nothing after the TPAVI blocks mixes frames.

        Returns:
            Segmentation.
        """
        queries, stages = [], []
        for i, x in enumerate(maps):
            x, aligned = self.interact(i, getattr(self, f"conv{i + 1}")(x), query)
            stages.append(x)
            queries.append(aligned)
        step = query.shape[1] if first_frames else 1
        path = self.path4(stages[3][::step])
        for i in (2, 1, 0):
            path = getattr(self, f"path{i + 1}")(path, stages[i][::step])
        return Segmentation(self.output_conv(path), [x.relu() for x in stages], queries)
