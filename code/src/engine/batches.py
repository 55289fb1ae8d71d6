"""Batches of a dataset in a reproducible order: from memory (or a GPU) where it fits, else through workers."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from stopping import left_to_the_run


def epoch_order(num_clips, seed, epoch):
    """Order of the clips in one epoch, (N,) int64: a function of seed and epoch; a resumed run needs no state."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_clips, generator=generator)


def stored_dtype(precision, dtype):
    """What features are kept as in memory: 16 bits for --precision bf16, else the dtype of the batches."""
    return torch.float16 if precision == "bf16" else dtype


@dataclass
class Resident:
    """All features of a dataset as tensors on one device, modality -> (N, T, ...); text as a table and row numbers."""

    features: dict
    text: tuple             # (table (P, 10, 768), row of each clip (N,)) or None
    dtype: torch.dtype      # of the batches

    @classmethod
    def of(cls, dataset, modalities, device, dtype, stored):
        """Read everything once; a progress bar shows the clips. They are kept as `stored`, and batches are `dtype`:
        in 16 bits the video of VGGSound-40K takes 20 GB."""
        features = {}
        for modality in modalities:
            if modality != "text":
                loaded = dataset.memory.get(modality)
                loaded = dataset.load(modality) if loaded is None else loaded
                features[modality] = torch.from_numpy(loaded).to(stored).to(device)
        text = None
        if "text" in modalities:
            table, rows = dataset.text
            text = torch.as_tensor(table).to(device, dtype), torch.as_tensor(rows).to(device)
        return cls(features, text, dtype)

    def __call__(self, order, batch_size):
        """Batches (modality -> tensor) of the clips of `order`; the last one may be smaller."""
        device = next(iter([*self.features.values(), *(self.text or ())])).device
        for chosen in order.to(device).split(batch_size):
            batch = {m: x[chosen].to(self.dtype) for m, x in self.features.items()}
            if self.text is not None:
                table, rows = self.text
                batch["text"] = table[rows[chosen]]
            yield batch


@dataclass
class Streamed:
    """Clips read by worker processes while the device computes."""

    dataset: object
    modalities: tuple
    device: torch.device
    dtype: torch.dtype
    workers: int

    def __call__(self, order, batch_size):
        """As `Resident.__call__`."""
        loader = DataLoader(self.dataset, batch_size, sampler=order.tolist(), num_workers=self.workers,
                            pin_memory=self.device.type == "cuda", worker_init_fn=left_to_the_run,
                            generator=torch.Generator())       # its own: else it draws from dropout's
        for item in loader:
            yield {m: item[m].to(self.device, self.dtype, non_blocking=True) for m in self.modalities}
