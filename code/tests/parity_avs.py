"""Golden numbers of the AVSBench-S4 task (golden/README_avs.md). `CHECKS`: file stem -> check(folder) -> list[Check].

Everything is read from the files: sizes, stages, which arrays there are. Weights are drawn by the files' own rule.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from network import losses, metrics, published
from network.avs import AVSNetwork, NetworkConfig
from network.decoder import Decoder, Fusion, ResidualUnit, StageHead
from network.tpavi import TPAVI

from golden_io import Check, relative_error

DOUBLE, STORED_FLOAT32, RAW_MATCH, SINGLE, METRIC = 1e-9, 1e-6, 1e-7, 1e-4, 1e-5
FRAMES = 5                                   # a clip, where no array tells


def det(key, like):
    """The tensor that stands under `key` (README_avs.md, rule for weights), float64; integer buffers as built."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(like.shape)) * 0.05
    return torch.from_numpy(np.asarray(np.abs(x) + 1 if key.endswith("running_var") else x))


def filled(module):
    """A bare module in float64, evaluation mode, weights by the rule under its own keys."""
    module.load_state_dict({key: det(key, x) for key, x in module.state_dict().items()}, assign=True)
    return module.eval()


class Golden:
    """Arrays of one file, and the checks made on them."""

    def __init__(self, folder, stem):
        self.stem, self.arrays, self.checks = stem, dict(np.load(Path(folder) / f"{stem}.npz", allow_pickle=False)), []

    def __contains__(self, name):
        return name in self.arrays

    def input(self, name, dtype=torch.float64):
        """An input array as a tensor."""
        return torch.from_numpy(self.arrays[name]).to(dtype)

    def compare(self, name, ours, tolerance=None):
        """Check one array, if the file has it; returns nothing."""
        if name not in self.arrays:
            return
        theirs = self.arrays[name]
        if tolerance is None:
            tolerance = STORED_FLOAT32 if theirs.dtype == np.float32 else DOUBLE
        self.checks.append(Check(self.stem, name, relative_error(ours, theirs), tolerance))


def check_tpavi(folder):
    """Forward, gradients, both forms, a visible attention path, training mode with BatchNorm's state after it."""
    golden = Golden(folder, "avs_tpavi")
    for part in sorted(name[:-2] for name in golden.arrays if name.endswith("_x") and "grad" not in name):
        x, audio = golden.input(f"{part}_x"), golden.input(f"{part}_audio")
        module = filled(TPAVI(x.shape[1], audio.shape[-1]))

        def run(form, x, audio, module=module, part=part):
            z, aligned = module(x, audio)
            y = module.attend(x, aligned)
            golden.compare(f"{part}_{form}_z", z)
            if aligned is not None:
                golden.compare(f"{part}_{form}_a", aligned)
            golden.compare(f"{part}_{form}_y", y)
            golden.compare(f"{part}_{form}_wy", module.W_z(y))
            return z

        leaves = x.clone().requires_grad_(), audio.clone().requires_grad_()
        z = run("va", *leaves)
        if f"{part}_objective" in golden:
            gradients = torch.autograd.grad((z * golden.input(f"{part}_objective")).sum(), leaves)
            golden.compare(f"{part}_va_grad_x", gradients[0])
            golden.compare(f"{part}_va_grad_audio", gradients[1])
        with torch.no_grad():
            run("vv", x, None)
            run("big", 10 * x, 100 * audio)
            module.train()
            z, _ = module(x, audio)
            golden.compare(f"{part}_train_z", z)
            golden.compare(f"{part}_train_running_mean", module.W_z[1].running_mean)
            golden.compare(f"{part}_train_running_var", module.W_z[1].running_var)
    return golden.checks


@torch.no_grad()
def check_blocks(folder):
    """Stage head, residual unit with its rectified skip, fusion of one and of two maps."""
    golden = Golden(folder, "avs_blocks")
    x = golden.input("head_x")
    golden.compare("head_y", filled(StageHead(x.shape[1], golden.arrays["head_y"].shape[1]))(x))
    x = golden.input("rcu_x")
    golden.compare("rcu_y", filled(ResidualUnit(x.shape[1]))(x))
    golden.compare("rcu_x_after", x.relu())
    x0, x1 = golden.input("fuse_x0"), golden.input("fuse_x1")
    fusion = filled(Fusion(x0.shape[1]))
    golden.compare("fuse_y_one", fusion(x0))
    golden.compare("fuse_y_two", fusion(x0, x1))
    return golden.checks


def decoder_of(maps, audio, channels, stages, vv, va):
    """A decoder that fits the stored maps, filled by the rule."""
    return filled(Decoder([x.shape[1] for x in maps], channels, audio.shape[-1], stages,
                          self_attention=vv, cross_attention=va))


@torch.no_grad()
def check_decoder(folder, stem):
    """Everything behind the backbone, from stored maps, with every combination of TPAVI forms in the file."""
    golden = Golden(folder, stem)
    maps, audio = [golden.input(f"map{i}") for i in range(4)], golden.input("audio")
    aligned = next((x for name, x in golden.arrays.items() if "a_fea" in name), None)
    frames, channels = aligned.shape[1:] if aligned is not None else (FRAMES, 256)
    for name in sorted(name for name in golden.arrays if name.endswith("logits")):
        form, _, rest = name.rpartition("logits")[0].rstrip("_").partition("_")
        stages = [int(s) for s in rest] or ([] if form == "none" else range(4))
        decoder = decoder_of(maps, audio, channels, stages, form in ("vv", "both"), form in ("", "va", "both"))
        out = decoder(maps, audio.unflatten(0, (-1, frames)))
        prefix = name[:-len("logits")]
        golden.compare(name, out.logits)
        for i, (x, query) in enumerate(zip(out.maps, out.queries, strict=True)):
            golden.compare(f"{prefix}stage_map{i}", x)
            if query is not None:
                golden.compare(f"{prefix}a_fea{i}", query)
        for statistic in ("mean", "std", "min"):
            golden.compare(f"{prefix}stage_map_{statistic}",
                           torch.stack([getattr(x, statistic)() for x in out.maps]))
    return golden.checks


@torch.no_grad()
def check_full(folder, stem, backbone):
    """Backbone through transformers and everything behind it; the filled network also goes through the name map."""
    golden = Golden(folder, stem)
    network = published_network(backbone)
    query = golden.input("audio").unflatten(0, (-1, FRAMES))
    maps = network.backbone(golden.input("frames"))
    golden.compare("logits", network.decoder(maps, query).logits)
    for i, x in enumerate(maps):
        golden.compare(f"map{i}", x)
        golden.compare(f"map{i}_frames04", x[[0, 4]])
    return golden.checks


def meta_network(backbone):
    """The published network's shape without memory: stages 0 to 3, va."""
    with torch.device("meta"):
        return AVSNetwork(NetworkConfig(backbone, (0, 1, 2, 3), tpavi_va=True))


def published_network(backbone):
    """The published network in float64, evaluation mode, filled by the rule under the published keys."""
    network = meta_network(backbone).double()
    state = {key: det(key, x) for key, x in published.to_published(network).items()}
    network.to_empty(device="cpu")                        # no start values: every tensor is filled below
    published.load_published(network, state, "rule")
    return network.eval()


def check_manifest(folder, stem, backbone):
    """Our state dict under published names has exactly the published keys and shapes. Errors count keys."""
    theirs = json.loads((Path(folder) / f"{stem}.json").read_text())
    ours = {key: list(x.shape) for key, x in published.to_published(meta_network(backbone)).items()}
    wrong = [key for key in set(ours) & set(theirs) if ours[key] != theirs[key]]
    return [Check(stem, "keys missing or unknown", float(len(set(ours) ^ set(theirs))), 0.0),
            Check(stem, "shapes that differ", float(len(wrong)), 0.0)]


def check_losses(folder):
    """Mask loss, matching loss in all its forms, their gradients, totals."""
    golden = Golden(folder, "avs_losses")
    pred, mask = golden.input("pred").requires_grad_(), golden.input("mask").flatten(0, 1)
    maps = [golden.input(f"map{i}").requires_grad_() for i in range(4)]
    queries = [golden.input(f"fea{i}").requires_grad_() for i in range(4)]
    first = slice(None, None, queries[0].shape[1])
    bce = losses.mask_loss(pred[first], mask)
    golden.compare("bce", bce)
    golden.compare("bce_grad_pred", torch.autograd.grad(bce, pred, retain_graph=True)[0])
    large = 100 * pred.detach()[first]
    golden.compare("bce_large_logits", losses.mask_loss(large, mask, released=True))
    golden.compare("bce_large_logits_float32", losses.mask_loss(large.float(), mask.float(), released=True), SINGLE)
    for name in golden.arrays:
        found = re.fullmatch(r"match_(avg|max)_(norm|raw)_(\d+)", name)
        if found:
            pooling, form, stages = found[1], found[2], [int(s) for s in found[3]]
            golden.compare(name, losses.matching_loss(pred, maps, queries, stages, pooling, form == "norm"),
                           RAW_MATCH if form == "raw" else None)
    match = losses.matching_loss(pred, maps, queries, range(4))
    gradients = torch.autograd.grad(match, maps + queries)
    for i in range(4):
        golden.compare(f"match_grad_map{i}", gradients[i])
        golden.compare(f"match_grad_fea{i}", gradients[4 + i])
    golden.compare("match_empty_mask", losses.matching_loss(torch.full_like(pred, -3), maps, queries, range(4)))
    golden.compare("total_lambda05", bce + 0.5 * match)
    golden.compare("total_lambda05_parts", torch.stack([bce, match, torch.tensor(0.5, dtype=torch.float64)]))
    golden.compare("total_default", bce)
    return golden.checks


def check_metrics(folder):
    """IoU and F of hand-made batches, curves, and a set by both protocols."""
    golden = Golden(folder, "avs_metrics")

    def batch(name):
        return golden.input(f"{name}_pred", torch.float32), golden.input(f"{name}_gt", torch.float32)

    released = []
    for case in golden.arrays["case_names"]:
        logits, masks = batch(case)
        released.append(metrics.SetMetrics().add(logits, masks))
        curves = metrics.frame_curves(logits, masks)
        golden.compare(f"{case}_precision", curves.precision, METRIC)
        golden.compare(f"{case}_recall", curves.recall, METRIC)
    golden.compare("case_iou", [iou for iou, _ in released], METRIC)
    golden.compare("case_f", [f for _, f in released], METRIC)
    counted, logits, masks = metrics.SetMetrics(), *batch("set")
    sizes = golden.arrays["set_batch_sizes"].tolist()
    for part in zip(logits.split(sizes), masks.split(sizes), strict=True):
        counted.add(*part)
    golden.compare("set_batch_iou", counted.batch_iou, METRIC)
    golden.compare("set_batch_f", counted.batch_f, METRIC)
    for protocol, prefix, suffix in (("default", "set_whole", ""), ("released", "set_reported", "_upstream")):
        values = counted.result(protocol)
        golden.compare(f"{prefix}_iou{suffix}", values["mIoU"], METRIC)
        golden.compare(f"{prefix}_f{suffix}", values["F"], METRIC)
    return golden.checks


CHECKS = {
    "avs_tpavi": check_tpavi,
    "avs_blocks": check_blocks,
    "avs_decoder_pvt": lambda folder: check_decoder(folder, "avs_decoder_pvt"),
    "avs_decoder_pvt_switches": lambda folder: check_decoder(folder, "avs_decoder_pvt_switches"),
    "avs_decoder_resnet": lambda folder: check_decoder(folder, "avs_decoder_resnet"),
    "avs_full_pvt": lambda folder: check_full(folder, "avs_full_pvt", "pvt"),
    "avs_full_resnet": lambda folder: check_full(folder, "avs_full_resnet", "resnet"),
    "avs_losses": check_losses,
    "avs_manifest_pvt": lambda folder: check_manifest(folder, "avs_manifest_pvt", "pvt"),
    "avs_manifest_resnet": lambda folder: check_manifest(folder, "avs_manifest_resnet", "resnet"),
    "avs_metrics": check_metrics,
}
