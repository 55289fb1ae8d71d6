"""Mean and standard deviation of each channel of the training features, for --standardize channel.

Nonnegative features, such as log-mel bands and maps after a ReLU, have a large common offset. The semantic encoders end
in a layer norm, which removes the scale but keeps the offset: the outputs for all seconds are then nearly parallel, and
the encoder of such a modality may collapse to a single code.
"""

import hashlib
import json
import logging
import zipfile

import numpy as np
import torch
from tqdm import tqdm

from cmg.data.fingerprint import cache_folder
from cmg.utils import dist
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output

log = logging.getLogger(__name__)


def cached_statistics(batches, clips, config, folder=None):
    """`channel_statistics`, read from the cache of fingerprints if they were computed before for the same content.

    Args:
        batches, config: see `channel_statistics`.
        clips: identity of the training clips (cmg.training.run_state.identify).
        folder: cache folder; default: `cache_folder`.
    """
    about = {"ids": clips["ids_sha256"], "content": clips.get("content"), "shapes": config.shapes,
             "seconds": config.seconds, "padding": config.padding}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = (folder or cache_folder()) / f"statistics-{digest}.npz"
    modalities = [m for m in config.modalities if config.kind(m) != "tokens"]
    try:
        with np.load(path, allow_pickle=False) as file:
            return {m: tuple(torch.from_numpy(file[m])) for m in modalities}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = channel_statistics(batches, clips["number"], config)
    try:
        with atomic_output(path) as file:
            np.savez(file, **{m: torch.stack(pair).numpy() for m, pair in found.items()})
    except InputError as error:
        log.info("statistics of the features cannot be cached, so the next run will recompute them: %s", error)
    return found


def channel_statistics(batches, num_clips, config, batch_size=256):
    """Statistics over all seconds of all clips, and over all positions of maps, in one pass.

    Args:
        batches: Resident or Streamed (cmg/training/batches.py).
        num_clips: number of clips.
        config: config of the system; tokens are skipped.

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
                shift.setdefault(m, rows.mean(0))               # keeps the sums small, so that no digits cancel
                rows = rows - shift[m]
                sums[m] += torch.stack([rows.sum(0), (rows ** 2).sum(0)]).cpu()
                counts[m] += len(rows)
            bar.update(len(next(iter(batch.values()))))
    found = {}
    for m in timed:
        mean, square = sums[m] / counts[m]
        found[m] = mean + shift[m].cpu(), (square - mean ** 2).clamp_min(0).sqrt()
    return found
