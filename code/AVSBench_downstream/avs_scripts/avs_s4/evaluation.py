"""Metrics of a network on a set with several kinds of queries, for which the backbone runs once per batch."""

import torch
from network.metrics import SetMetrics
from tqdm import tqdm

from cmg.data.loader import ClipLoader
from cmg.data.sets.avs_s4 import warn_of_greys

CHUNK = 256                     # clips encoded at once


def loader(dataset, batch_size, workers, sampler=None):
    """DataLoader of a split, in the order of a sampler if there is one."""
    return ClipLoader(dataset, batch_size, workers, sampler=sampler, generator=torch.Generator(),
                      persistent_workers=True)


@torch.no_grad()
def clip_codes(query, modality, inputs):
    """Codes (n, 5, width) of all clips of a set, given its `inputs`, S4.queries()."""
    parts = [{name: x[i:i + CHUNK].to(query.device) for name, x in inputs.items()}
             for i in range(0, len(inputs["category"]), CHUNK)]
    return torch.cat([query(modality, part) for part in parts])


def shuffled(codes, seed):
    """Codes of other clips: a permutation of the set without fixed points, if there are at least two clips."""
    # a random cyclic permutation: each clip gets the codes of the previous one in a random order
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed)).to(codes.device)
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return codes[others]


@torch.no_grad()
def evaluate(network, batches, codes, on_batch=None, desc="test"):
    """Metrics with every kind of query, and of predicting foreground everywhere.

    Args:
        network: AVSNetwork, which is set to evaluation mode.
        batches: loader of a split without shuffling.
        codes: name of the kind of query -> (n, 5, width) codes of all clips, on the network's device.
        on_batch: called with (indices of the clips (B,), frames, masks (B, 5, S, S), name -> logits (B, 5, S, S)).
        desc: title of the progress bar.

    Returns:
        name -> SetMetrics, including "chance".
    """
    network.eval()
    counted, gray = {name: SetMetrics() for name in (*codes, "chance")}, False
    bar = tqdm(batches, desc=desc, unit="batch", leave=False, disable=None)
    for batch in bar:
        gray = gray or warn_of_greys(batches.dataset, batch)
        frames, masks = batch["frames"].to(network.device), batch["masks"].to(network.device)
        truth, numbers = masks.flatten(0, 1), batch["number"]
        maps = network.backbone(frames.flatten(0, 1))
        predicted = {}
        for name, table in codes.items():
            logits = network.decoder(maps, table[numbers.to(table.device)]).logits[:, 0]
            counted[name].add(logits, truth)
            predicted[name] = logits.unflatten(0, masks.shape[:2])
        counted["chance"].add(torch.ones_like(truth), truth)
        first = counted[next(iter(codes))]
        bar.set_postfix(mIoU=f"{first.iou_sum / first.frames:.3f}")
        if on_batch:
            on_batch(numbers, frames, masks, predicted)
    return counted
