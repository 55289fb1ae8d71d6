"""Files of trained networks: one dict with network, adapter and all settings."""

from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from network import published
from network.avs import AVSNetwork, NetworkConfig
from query import Adapter
from settings import DIRECTIONS, PROTOCOLS
from torch import Tensor

from cmg.checkpoints import checkpoint
from cmg.models.toc import Selection, head_channels
from cmg.utils.errors import InputError

# best: chosen by validation with the test modality's queries, as published; source: chosen by validation with the
# training modality's queries, which needs no data of the other modality
FILES = {"best": "best.pth", "last": "last.pth", "source": "best_source.pth"}
KINDS = {"network": dict, "adapter": dict, "settings": dict, "direction": str, "image_size": int, "epoch": int,
         "score": float, "encoder_sha256": str, "protocol": str}       # required entries of a file


@dataclass
class Trained:
    """A trained network, and the information about its training that testing needs."""

    network: AVSNetwork
    adapter: Adapter                # None: the file is a bare published state dict
    direction: str                  # key of settings.DIRECTIONS
    image_size: int
    protocol: str
    encoder_sha256: str             # of the encoder's checkpoint
    seed: int = None
    selection: Selection = None     # TOC's selection of code channels; None for all
    channels: Tensor = None         # (S,) these channels
    epoch: int = None
    score: float = None             # validation mIoU by which it was chosen


def save(path, trained):
    """Write a trained network atomically.

    `network` in the file has the published names: `torch.load(FILE)["network"]` can be loaded by the published program.
    """
    config = asdict(trained.network.config)
    checkpoint.save(path, {
        "network": published.to_published(trained.network), "adapter": trained.adapter.state_dict(),
        "settings": config | {"tpavi_stages": list(config["tpavi_stages"])}, "epoch": trained.epoch,
        "score": trained.score, "direction": trained.direction, "image_size": trained.image_size,
        "protocol": trained.protocol, "seed": trained.seed,
        "toc": None if trained.selection is None else list(astuple(trained.selection)),
        "encoder_sha256": trained.encoder_sha256})


def load(path, expected, protocol, encoder_sha256, codebooks):
    """Read a trained network.

    Args:
        path: file of `save`, or a bare published state dict, which `expected` must describe.
        expected: settings.Conditions; values other than None must agree with the file.
        protocol: must agree with the file.
        encoder_sha256: hash of the encoder.
        codebooks: codebooks of the encoder, (K, D) each.

    Returns:
        Trained, in evaluation mode.

    Raises:
        InputError: the file is invalid, or does not agree with the arguments.
    """
    state = published.read_state(path)
    if "network" not in state:
        return _load_bare(path, state, expected, protocol, encoder_sha256, codebooks)
    for key, kind in KINDS.items():
        if not isinstance(state.get(key), kind):
            found = f"'{key}' is a {type(state[key]).__name__}" if key in state else f"no '{key}'"
            raise InputError(f"{path}: {found}; expected a file of train.py or a bare network state dict")
    if state["encoder_sha256"] != encoder_sha256:
        raise InputError(f"{path}: trained with another encoder (SHA-256 {state['encoder_sha256'][:12]}..., given "
                         f"{encoder_sha256[:12]}...); pass the --checkpoint it was trained with")
    _refuse_contradictions(path, expected, protocol, state)
    try:
        if state["direction"] not in DIRECTIONS or state["protocol"] not in PROTOCOLS:
            raise ValueError(f"direction {state['direction']}, protocol {state['protocol']}")
        selection = _selection(state.get("toc"))
        channels = head_channels(codebooks, selection)
        width = _head_dim(codebooks) if channels is None else len(channels)
        config = NetworkConfig(**state["settings"])
        if width != config.code_dim:
            raise ValueError(f"it takes codes of {config.code_dim} channels, but its selected channels are {width}")
        network, adapter = AVSNetwork(config), Adapter()
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{path}: invalid settings of a network ({error}); expected a file of train.py") from error
    published.load_published(network, state["network"], path)
    published.require_keys(state["adapter"], adapter.state_dict(), f"{path}: adapter")
    adapter.load_state_dict(state["adapter"])
    return Trained(network.eval(), adapter.eval(), state["direction"], state["image_size"], protocol, encoder_sha256,
                   state.get("seed"), selection, channels, state["epoch"], state["score"])


def _selection(stored):
    """The Selection stored as `toc` in a file; TypeError unless it is None or a list of a Selection's values."""
    if stored is not None and not isinstance(stored, list):
        raise TypeError(f"toc is a {type(stored).__name__}, not a list")
    return None if stored is None else Selection(*stored)


def _head_dim(codebooks):
    return sum(codes.shape[1] for codes in codebooks)


def _refuse_contradictions(path, expected, protocol, state):
    settings = state["settings"]
    stored = {"direction": state["direction"], "visual_backbone": settings.get("backbone"),
              "tpavi_stages": settings.get("tpavi_stages"), "tpavi_vv_flag": settings.get("tpavi_vv"),
              "tpavi_va_flag": settings.get("tpavi_va"), "image_size": state["image_size"]}
    for flag, value in stored.items():
        given = getattr(expected, flag)
        if given is not None and given != value:
            raise InputError(f"{path}: trained with {flag} {value}, not --{flag} {given}; omit the flag, or pass "
                             "another file with --weights")
    if protocol != state["protocol"]:
        raise InputError(f"{path}: trained with --protocol {state['protocol']}, not {protocol}; pass the same one")


def _load_bare(path, state, expected, protocol, encoder_sha256, codebooks):
    if not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise InputError(f"{path}: neither a file of train.py nor a network state dict")
    if expected.visual_backbone is None or expected.direction is None:
        raise InputError(f"{path}: a bare state dict without settings; pass --visual_backbone, --direction, and the "
                         "--tpavi_ flags that it was trained with")
    network = AVSNetwork(NetworkConfig(
        expected.visual_backbone, tuple(expected.tpavi_stages or ()), bool(expected.tpavi_vv_flag),
        bool(expected.tpavi_va_flag), _head_dim(codebooks)))
    published.load_published(network, state, path)
    return Trained(network.eval(), None, expected.direction, expected.image_size or 224, protocol, encoder_sha256)


def files_of(weights):
    """Kind -> file: "best", "last" and "source" of a run folder, or a single file by the kind of its name."""
    weights = Path(weights)
    if weights.is_dir():
        folder = weights / "checkpoints" if (weights / "checkpoints").is_dir() else weights
        files = {kind: folder / name for kind, name in FILES.items() if (folder / name).is_file()}
        if "last" not in files or "best" not in files:
            raise InputError(f"{folder}: no best.pth and last.pth; pass a run folder of train.py or one file")
        return files
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; train first, or correct --weights")
    return {"last" if weights.name == FILES["last"] else "best": weights}
