"""Mean and standard deviation of each channel of the training features, for --standardize channel.

Nonnegative features, such as log-mel bands and maps after a ReLU, have a large common offset. The semantic encoders end
in a layer norm, which removes the scale but keeps the offset: the outputs for all seconds are then nearly parallel, and
the encoder of such a modality may collapse to one code.
"""

import torch
from tqdm import tqdm

from cmg.utils import dist


def channel_statistics(batches, num_clips, config, batch_size=256):
    """Statistics over all seconds of all clips, and over all positions of maps, in one pass.

    Args:
        batches: Resident or Streamed (cmg/training/batches.py).
        num_clips: number of clips.
        config: config of the system; modalities of tokens are skipped.

    Returns:
        modality -> (mean (C,), standard deviation (C,)), float64.
    """
    timed = [m for m in config.modalities if config.kind(m) != "tokens"]
    sums = {m: torch.zeros(2, config.shape(m)[-1], dtype=torch.float64) for m in timed}
    counts, shift = dict.fromkeys(timed, 0), {}
    with tqdm(total=num_clips, desc="statistics of the features", unit="clip",
              disable=None if dist.is_main() else True) as bar:
        for batch in batches(torch.arange(num_clips), batch_size):
            for m in timed:
                rows = batch[m] if batch.get("mask") is None else batch[m][batch["mask"]]
                rows = rows.reshape(-1, rows.shape[-1]).double()
                shift.setdefault(m, rows.mean(0))               # keeps the sums small: no digits cancel
                rows = rows - shift[m]
                sums[m] += torch.stack([rows.sum(0), (rows ** 2).sum(0)]).cpu()
                counts[m] += len(rows)
            bar.update(len(next(iter(batch.values()))))
    found = {}
    for m in timed:
        mean, square = sums[m] / counts[m]
        found[m] = mean + shift[m].cpu(), (square - mean ** 2).clamp_min(0).sqrt()
    return found
