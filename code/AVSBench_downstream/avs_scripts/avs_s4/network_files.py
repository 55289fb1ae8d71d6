"""Trained networks on disk: one dict with network, adapter and all settings (spec/avs.md section 9.8)."""

from dataclasses import asdict
from pathlib import Path

import torch

from avs_s4.network import published
from avs_s4.network.avs import AVSNetwork, NetworkConfig
from avs_s4.query import Adapter
from engine import checkpoint
from errors import InputError
from model.toc import Selection, head_channels

# best: by validation with the queries to be tested, as published; source: by validation with the training modality's
# queries, the choice one could make without ever seeing the other modality
FILES = {"best": "best.pth", "last": "last.pth", "source": "best_source.pth"}
KEYS = ("network", "adapter", "settings", "direction", "image_size", "epoch", "score", "encoder_sha256", "protocol")


def save(path, network, adapter, **facts):
    """Write a trained network, whole or not at all.

    `network` in the file has the published names (`torch.load(FILE)["network"]` loads into the published program).

    Args:
        facts: direction, image_size, epoch, score, encoder_sha256, protocol, seed, toc.
    """
    checkpoint.save(path, {"network": published.to_published(network), "adapter": adapter.state_dict(),
                           "settings": asdict(network.config) | {"tpavi_stages": list(network.config.tpavi_stages)},
                           **facts})


def load(path, opts, encoder_sha256, codebooks):
    """A trained network and its adapter.

    Args:
        path: file of `save`, or a bare published state dict (then the flags must describe it, and the adapter is None).
        opts: test options; whatever is not None there must agree with the file.
        encoder_sha256: hash of the encoder that will be used.
        codebooks: its codebooks, (K, D) each.

    Returns:
        (network, adapter, facts): network in evaluation mode; facts: the other entries of the file, "toc" as a
        model.toc.Selection or None.
    """
    state, head_dim = published.read_state(path), sum(codes.shape[1] for codes in codebooks)
    if "network" not in state:
        return _load_bare(path, state, opts, head_dim), None, {
            "direction": opts.direction, "image_size": opts.image_size or 224, "epoch": None, "score": None}
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise InputError(f"{path}: no '{missing[0]}' in it; expected a file of train.py or a bare network state dict")
    if state["encoder_sha256"] != encoder_sha256:
        raise InputError(f"{path}: trained with another encoder (SHA-256 {state['encoder_sha256'][:12]}..., given "
                         f"{encoder_sha256[:12]}...); pass the --checkpoint it was trained with")
    _refuse_contradictions(path, opts, state)
    try:
        config = NetworkConfig(**state["settings"])
        selection = Selection(*state["toc"]) if state.get("toc") else None
        channels = head_channels(codebooks, selection)
        width = head_dim if channels is None else len(channels)
        if width != config.code_dim:
            raise ValueError(f"it takes codes of {config.code_dim} channels, its choice of channels gives {width}")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: settings of no network ({error}); expected a file of train.py") from error
    network, adapter = AVSNetwork(config), Adapter()
    published.load_published(network, state["network"], path)
    published.require_keys(state["adapter"], adapter.state_dict(), f"{path}: adapter")
    adapter.load_state_dict(state["adapter"])
    return network.eval(), adapter.eval(), {
        **{key: state[key] for key in state if key not in ("network", "adapter")}, "toc": selection}


def _refuse_contradictions(path, opts, state):
    settings = state["settings"]
    stored = {"direction": state["direction"], "visual_backbone": settings.get("backbone"),
              "tpavi_stages": settings.get("tpavi_stages"), "tpavi_vv_flag": settings.get("tpavi_vv"),
              "tpavi_va_flag": settings.get("tpavi_va"), "image_size": state["image_size"]}
    for flag, value in stored.items():
        given = getattr(opts, flag)
        if given is not None and given != value:
            raise InputError(f"{path}: trained with {flag} {value}, not --{flag} {given}; leave the flag out, or pass "
                             "another file with --weights")
    if opts.protocol != state["protocol"]:
        raise InputError(f"{path}: trained under --protocol {state['protocol']}, not {opts.protocol}; test it so")


def _load_bare(path, state, opts, code_dim):
    if not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise InputError(f"{path}: neither a file of train.py nor a network state dict")
    if opts.visual_backbone is None or opts.direction is None:
        raise InputError(f"{path}: a bare state dict does not say what it is; pass --visual_backbone, --direction, and "
                         "the --tpavi_ flags it was trained with")
    config = NetworkConfig(opts.visual_backbone, tuple(opts.tpavi_stages or ()), bool(opts.tpavi_vv_flag),
                           bool(opts.tpavi_va_flag), code_dim)
    network = AVSNetwork(config)
    published.load_published(network, state, path)
    return network.eval()


def files_of(weights):
    """Kind -> file: "best", "last", "source" of a run folder, or the one file given, under the kind its name says."""
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
