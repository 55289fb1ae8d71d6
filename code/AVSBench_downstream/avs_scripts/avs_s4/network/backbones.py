"""Backbones from transformers: PVT-v2-b5, ResNet-50, and a small ResNet for the demo."""

from pathlib import Path

import torch
from network import published
from torch import nn

from cmg.data.pretrained import from_pretrained
from cmg.utils.errors import InputError, absolute

STAGES = ["stage1", "stage2", "stage3", "stage4"]
PVT_SHAPES = {                     # name -> depths, channels, heads, reduction of keys and values
    "pvt": ((3, 6, 40, 3), (64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1)),
}
RESNET_SHAPES = {                  # name -> first channels, channels, depths, kind of block
    "resnet": (64, (256, 512, 1024, 2048), (3, 4, 6, 3), "bottleneck"),
    "small": (24, (32, 48, 64, 96), (1, 1, 1, 1), "basic"),
}


class Backbone(nn.Module):
    """A backbone from transformers: frames (n, 3, H, W) -> four maps with strides 4, 8, 16 and 32.

    Attributes:
        channels: widths of the four maps.
        table: published key -> our keys (network/published.py).
    """

    def __init__(self, name):
        super().__init__()
        self.name = name
        if name in RESNET_SHAPES:
            from transformers import ResNetBackbone, ResNetConfig  # here, because --help needs no network
            first, channels, depths, block = RESNET_SHAPES[name]
            self.network = ResNetBackbone(ResNetConfig(embedding_size=first, hidden_sizes=channels, depths=depths,
                                                       layer_type=block, out_features=STAGES))
            self.table = published.resnet_table(depths, convolutions=3 if block == "bottleneck" else 2)
        elif name in PVT_SHAPES:
            from transformers import PvtV2Backbone, PvtV2Config
            depths, channels, heads, reductions = PVT_SHAPES[name]
            self.network = PvtV2Backbone(PvtV2Config(
                depths=depths, hidden_sizes=channels, num_attention_heads=heads, sr_ratios=reductions,
                mlp_ratios=(4, 4, 4, 4), patch_sizes=(7, 3, 3, 3), strides=(4, 2, 2, 2), qkv_bias=True,
                layer_norm_eps=1e-6, drop_path_rate=0.1, out_features=STAGES))
            self.table = published.pvt_table(depths, reductions)
            # transformers has a single eps; the published network uses 1e-5 after patch embeddings and reductions
            for key, module in self.network.named_modules():
                if key.endswith((".patch_embedding.layer_norm", ".attention.layer_norm")):
                    module.eps = 1e-5
        else:
            raise ValueError(f"unknown backbone {name!r}; one of {', '.join((*RESNET_SHAPES, *PVT_SHAPES))}")
        self.channels = tuple(self.network.channels)

    def forward(self, frames):
        return self.network(frames).feature_maps


def load_weights(backbone, source):
    """Load all weights of a backbone from `source`: a file, a name on the hub, or "none".

    Files contain the official state dict of PVT-v2-b5 or torchvision's of ResNet-50 (the classifiers `head.*` and
    `fc.*` are ignored), or the backbone with transformers' names. The weights of `microsoft/resnet-50` on the hub
    differ from torchvision's first ResNet-50.

    Raises:
        InputError: not found, or the tensors do not match this backbone.
    """
    if source == "none":
        return
    if not Path(source).is_file():
        state = _from_hub(backbone, source)
    else:
        state = published.read_state(source)
        if not set(state) & set(backbone.network.state_dict()):
            state = published.from_pretrained_file(state, backbone, source)
    ours = backbone.network.state_dict()
    published.require_keys(state, ours, f"{source}: backbone weights for '{backbone.name}'")
    backbone.network.load_state_dict(state)


def _from_hub(backbone, name):
    network = type(backbone.network)
    try:
        donor, info = from_pretrained(network, name, output_loading_info=True, dtype=torch.float32)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{absolute(name)}: no such file, and {name} is not available on the hub "
                         f"({str(error).splitlines()[0]}); pass "
                         "--backbone_weights FILE, a name on the hub, or none") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise InputError(f"{name}: {len(lost)} tensors of the backbone '{backbone.name}' are not in this model "
                         f"(first: {lost[0]}); pass another model")
    return donor.state_dict()
