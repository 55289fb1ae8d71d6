"""Tables of the published names of the segmentation network's tensors, and loading and saving with them."""

import torch

from cmg.data.archive import require_stored
from cmg.utils.errors import InputError

LINEAR = ("weight", "bias")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
SECOND_BRANCH = {"layer3_2.": "layer3_1.", "layer4_2.": "layer4_1."}       # of the published ResNet, unused
UNUSED_UNIT = ("path4.resConfUnit1.", "path4.resConfUnit2.")               # an unused unit, and one with the same shape


def pvt_table(depths, reductions):
    """Published key -> our keys of a PVT-v2; the published layer of keys and values is two layers in transformers."""
    table = {}

    def add(theirs, *ours):
        for leaf in LINEAR:
            table[f"{theirs}.{leaf}"] = tuple(f"{key}.{leaf}" for key in ours)

    for i, (depth, reduction) in enumerate(zip(depths, reductions, strict=True)):
        layer = f"encoder.layers.{i}"
        add(f"patch_embed{i + 1}.proj", f"{layer}.patch_embedding.proj")
        add(f"patch_embed{i + 1}.norm", f"{layer}.patch_embedding.layer_norm")
        add(f"norm{i + 1}", f"{layer}.layer_norm")
        for j in range(depth):
            theirs, ours = f"block{i + 1}.{j}", f"{layer}.blocks.{j}"
            add(f"{theirs}.norm1", f"{ours}.layer_norm_1")
            add(f"{theirs}.norm2", f"{ours}.layer_norm_2")
            add(f"{theirs}.attn.q", f"{ours}.attention.query")
            add(f"{theirs}.attn.kv", f"{ours}.attention.key", f"{ours}.attention.value")
            add(f"{theirs}.attn.proj", f"{ours}.attention.proj")
            if reduction > 1:
                add(f"{theirs}.attn.sr", f"{ours}.attention.spatial_reduction")
                add(f"{theirs}.attn.norm", f"{ours}.attention.layer_norm")
            add(f"{theirs}.mlp.fc1", f"{ours}.mlp.dense1")
            add(f"{theirs}.mlp.dwconv.dwconv", f"{ours}.mlp.dwconv.dwconv")
            add(f"{theirs}.mlp.fc2", f"{ours}.mlp.dense2")
    return table


def resnet_table(depths, convolutions):
    """Published key -> our keys of a ResNet (of its used branch), with `convolutions` convolutions per block."""
    table = {}

    def add(theirs_convolution, theirs_norm, ours):
        table[f"{theirs_convolution}.weight"] = (f"{ours}.convolution.weight",)
        for leaf in NORM:
            table[f"{theirs_norm}.{leaf}"] = (f"{ours}.normalization.{leaf}",)

    add("conv1", "bn1", "embedder.embedder")
    for s, (layer, depth) in enumerate(zip(("layer1", "layer2", "layer3_1", "layer4_1"), depths, strict=True)):
        for j in range(depth):
            theirs, ours = f"{layer}.{j}", f"encoder.stages.{s}.layers.{j}"
            for n in range(convolutions):
                add(f"{theirs}.conv{n + 1}", f"{theirs}.bn{n + 1}", f"{ours}.layer.{n}")
        add(f"{layer}.0.downsample.0", f"{layer}.0.downsample.1", f"encoder.stages.{s}.layers.0.shortcut")
    return table


def _prefix(backbone):
    return "resnet." if "conv1.weight" in backbone.table else "encoder_backbone."


def to_published(network):
    """State dict of a network with all published names.

    Unused tensors of the published network are copies of those of the same shape, as in the published loader.
    """
    prefix, ours = _prefix(network.backbone), network.backbone.network.state_dict()
    state = {}
    for theirs, keys in network.backbone.table.items():
        state[prefix + theirs] = torch.cat([ours[key] for key in keys]) if len(keys) > 1 else ours[keys[0]]
    for dead, twin in SECOND_BRANCH.items():
        for key in [key for key in state if key.startswith(prefix + twin)]:
            state[key.replace(twin, dead)] = state[key].clone()
    decoder = network.decoder.state_dict()
    state.update(decoder)
    state.update({key.replace(UNUSED_UNIT[1], UNUSED_UNIT[0]): x.clone()
                  for key, x in decoder.items() if key.startswith(UNUSED_UNIT[1])})
    return state


def load_published(network, state, source):
    """Load a network strictly from a state dict with published names; unused tensors are checked as well."""
    require_keys(state, to_published(network), f"{source}: segmentation network ('{network.backbone.name}')")
    prefix = _prefix(network.backbone)
    network.backbone.network.load_state_dict(_split(state, network.backbone.table, prefix))
    network.decoder.load_state_dict({key: state[key] for key in network.decoder.state_dict()})


def from_pretrained_file(state, backbone, source):
    """Translate the official state dict of PVT-v2 or torchvision's of ResNet-50, which must be complete, to our
    keys."""
    if _prefix(backbone) == "resnet.":
        state = {key.replace("layer3.", "layer3_1.").replace("layer4.", "layer4_1."): x for key, x in state.items()}
    state = {key: x for key, x in state.items() if not key.startswith(("head.", "fc."))}
    missing = [key for key in backbone.table
               if key not in state and not key.endswith("num_batches_tracked")]        # not in old torchvision files
    if missing or set(state) - set(backbone.table):
        unknown = sorted(set(state) - set(backbone.table))
        raise InputError(f"{source}: {len(missing)} tensors of the backbone '{backbone.name}' are missing and "
                         f"{len(unknown)} are unknown (first: {(missing + unknown)[0]}); pass the file for this "
                         "backbone")
    for key in backbone.table:
        if key not in state:
            state[key] = torch.zeros((), dtype=torch.int64)
    return _split(state, backbone.table, "")


def _split(state, table, prefix):
    ours = {}
    for theirs, keys in table.items():
        ours.update(zip(keys, state[prefix + theirs].chunk(len(keys)) if len(keys) > 1 else [state[prefix + theirs]],
                        strict=True))
    return ours


def require_keys(state, wanted, what):
    """Raise InputError unless `state` has exactly the keys and shapes of `wanted`; `what` names it in messages."""
    if not isinstance(state, dict):
        raise InputError(f"{what}: a {type(state).__name__}; expected a state dict")
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted), key=str)
    if missing or unknown:
        raise InputError(f"{what}: {len(missing)} tensors missing, {len(unknown)} unknown (first: "
                         f"{(missing + unknown)[0]}); the file must contain all {len(wanted)}")
    for key, x in wanted.items():
        found = list(state[key].shape) if isinstance(state[key], torch.Tensor) else type(state[key]).__name__
        if found != list(x.shape):
            raise InputError(f"{what}: {key} is {found}; expected {list(x.shape)}; the file was saved with "
                             "other settings")


def read_state(path):
    """A state dict from a file, without running code from it."""
    require_stored(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except Exception as error:         # torch raises many types for foreign or truncated files and pickled code
        raise InputError(f"{path}: not a readable PyTorch file ({str(error).strip().partition(chr(10))[0][:120]}); "
                         "expected weights saved by torch.save") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: contains a {type(state).__name__}; expected a state dict")
    return state
