"""Batches of a dataset in a reproducible order, from memory (or a GPU) if it fits, else through worker processes."""

from dataclasses import dataclass

import torch

from cmg.data.loader import ClipLoader


def epoch_order(num_clips, seed, epoch):
    """Order of the clips in one epoch, (N,) int64. It depends only on seed and epoch, so a resumed run needs no
    state."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_clips, generator=generator)


def stored_dtype(precision, dtype):
    """Dtype of features in memory: 16 bits for --precision bf16, else the dtype of the batches."""
    return torch.float16 if precision == "bf16" else dtype


class Text:
    """Word vectors of the sentences of a dataset, and the choice of sentences for a batch.

    Args:
        text: (table (P, 10, 768), row of each clip (N,), or (N, S) where clips have several sentences) of a dataset.
        rng: cmg.models.random.StepRandom, which draws one of a clip's sentences in each step; if None, the first is
            used.
        device, dtype: device and dtype of the batches.
    """

    def __init__(self, text, rng, device, dtype):
        table, rows = (torch.as_tensor(x) for x in text)
        self.table, self.rows, self.rng = table.to(device, dtype), rows.view(len(rows), -1), rng
        self.counts, self.first = (self.rows >= 0).sum(1), self.rows[:, 0].to(device)

    @property
    def is_drawn(self):
        return self.rng is not None and self.rows.shape[1] > 1

    def drawn(self, chosen):
        """Word vectors (B, 10, 768) of the clips `chosen` (B,), on the CPU. This is called once per step, right before
        it, so that a resumed run continues with the same draws and worker processes that read ahead draw nothing."""
        rows = self.rows[chosen, self.rng.sentences(self.counts)[chosen]]
        return self.table[rows.to(self.table.device, non_blocking=True)]


@dataclass
class Resident:
    """All features of a dataset as tensors on one device, modality -> (N, T, ...)."""

    features: dict
    text: Text              # None: text is among the features, or not requested
    dtype: torch.dtype      # of the batches
    seconds: torch.Tensor = None    # (N,) length of each clip, with --padding mask
    length: int = 0                 # T

    @classmethod
    def of(cls, dataset, modalities, device, dtype, stored, rng=None):
        """Read all clips once, with a progress bar. They are kept in the dtype `stored`, and batches are `dtype`; in 16
        bits the video of VGGSound-40K takes 20 GB. `rng`: see `Text`."""
        features = {}
        for modality in modalities:
            if modality != "text" or dataset.text is None:
                loaded = dataset.memory.get(modality)
                loaded = dataset.load(modality) if loaded is None else loaded
                features[modality] = torch.from_numpy(loaded).to(stored).to(device)
        has_table = "text" in modalities and dataset.text is not None
        own = torch.from_numpy(dataset.real_seconds).to(device) if dataset.padding == "mask" else None
        return cls(features, Text(dataset.text, rng, device, dtype) if has_table else None, dtype, own,
                   dataset.seconds)

    def __call__(self, order, batch_size):
        """Batches of the clips in `order`: modality -> tensor and, with --padding mask, "mask" -> (B, T) bool, true for
        a clip's own seconds.

        The last one may be smaller.
        """
        device = next(iter(self.features.values()), self.text and self.text.table).device
        for clips, chosen in zip(order.split(batch_size), order.to(device).split(batch_size)):
            batch = {m: x[chosen].to(self.dtype) for m, x in self.features.items()}
            if self.text is not None:
                drawn = self.text.is_drawn
                batch["text"] = self.text.drawn(clips) if drawn else self.text.table[self.text.first[chosen]]
            if self.seconds is not None:
                batch["mask"] = torch.arange(self.length, device=device) < self.seconds[chosen].unsqueeze(1)
            yield batch


@dataclass
class Streamed:
    """Clips read by worker processes while the device computes."""

    dataset: object
    modalities: tuple
    device: torch.device
    dtype: torch.dtype
    workers: int
    rng: object = None          # see `Text`
    loader: ClipLoader = None   # used in the last pass

    def __call__(self, order, batch_size):
        """As `Resident.__call__`."""
        if self.loader is not None:
            self.loader.require_workers()                   # those of the previous epoch
        loader = self.loader = ClipLoader(
            self.dataset, batch_size, self.workers, sampler=order.tolist(), pin_memory=self.device.type == "cuda",
            generator=torch.Generator())                    # otherwise it would draw from that of dropout
        self.workers = loader.num_workers                   # the number that fits into shared memory
        has_table = "text" in self.modalities and self.dataset.text is not None
        text = Text(self.dataset.text, self.rng, self.device, self.dtype) if has_table else None
        for item, chosen in zip(loader, order.split(batch_size)):
            batch = {m: item[m].to(self.device, self.dtype, non_blocking=True) for m in self.modalities}
            if text is not None and text.is_drawn:
                batch["text"] = text.drawn(chosen)
            if "mask" in item:
                batch["mask"] = item["mask"].to(self.device, non_blocking=True)
            yield batch
