"""The segmentation network: backbone and decoder with query codes (Zhou et al., ECCV 2022)."""

from dataclasses import dataclass

from network.backbones import Backbone
from network.decoder import Decoder
from torch import nn


@dataclass(frozen=True)
class NetworkConfig:
    """Configuration of a network, stored with its weights.

    Attributes:
        backbone: "pvt", "resnet" or "small".
        tpavi_stages: stages, 0 to 3, with a TPAVI block.
        tpavi_vv, tpavi_va: whether maps attend to themselves, and to the query.
        code_dim: width of the query codes.
        channels: width of the decoder (published: 256).
        norm_start: initial weight of TPAVI's BatchNorm (published: 0).
    """

    backbone: str = "resnet"
    tpavi_stages: tuple = ()
    tpavi_vv: bool = False
    tpavi_va: bool = False
    code_dim: int = 256
    channels: int = 256
    norm_start: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "tpavi_stages", tuple(self.tpavi_stages))
        if any(stage not in range(4) for stage in self.tpavi_stages):
            raise ValueError(f"TPAVI stages {self.tpavi_stages} are not among 0, 1, 2, 3")
        if len(set(self.tpavi_stages)) < len(self.tpavi_stages):
            raise ValueError(f"TPAVI stages {self.tpavi_stages} name a stage twice")
        if self.tpavi_stages and not (self.tpavi_vv or self.tpavi_va):
            raise ValueError("TPAVI stages have no effect without vv or va")


class AVSNetwork(nn.Module):
    """Predicts mask logits from frames and query codes."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.decoder = Decoder(self.backbone.channels, config.channels, config.code_dim, config.tpavi_stages,
                               self_attention=config.tpavi_vv, cross_attention=config.tpavi_va,
                               norm_start=config.norm_start)

    @property
    def device(self):
        return next(self.parameters()).device

    def forward(self, frames, query, first_frames=False):
        """Segment clips.

        Args:
            frames: (B, T, 3, H, W) normalized frames, H and W multiples of 32.
            query: (B, T, code_dim) codes, one per frame.
            first_frames: decode only the first frame of each clip (see Decoder.forward).

        Returns:
            Segmentation.
        """
        if frames.shape[:2] != query.shape[:2]:
            raise ValueError(f"{tuple(frames.shape[:2])} frames (clips, seconds) and {tuple(query.shape[:2])} codes")
        if frames.shape[-1] % 32 or frames.shape[-2] % 32:
            raise ValueError(f"frames of {tuple(frames.shape[-2:])}: sides must be multiples of 32")
        return self.decoder(self.backbone(frames.flatten(0, 1)), query, first_frames)
