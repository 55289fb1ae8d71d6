"""Encode datasets with frozen encoders, reading each dataset once, and check that encoders and datasets fit."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from cmg.data.labels import clip_class
from cmg.data.loader import ClipLoader
from cmg.models.config import describe_shape
from cmg.models.masking import mean_of_clips
from cmg.utils.errors import InputError


@dataclass
class EncodedSplit:
    """The codes of a dataset split in one modality, as a table of the distinct codes and a row number per second."""

    table: Tensor                # (U, D) distinct codes that occur
    numbers: Tensor              # (U,) int64 indices in the codebook; (U, L) with L codebooks
    rows: Tensor                 # (N, T) int64 row of each second in the table
    labels: Tensor               # (N, T, C + 1) of 0 and 1, background last; retrieval: audio features (N, T, 128)
    mask: Tensor | None = None   # (N, T) bool, with --padding mask (cmg/models/masking.py); text has none

    def __len__(self):
        return len(self.rows)

    @property
    def codes(self):
        """Name -> tensor of everything except the labels."""
        masked = {} if self.mask is None else {"mask": self.mask}
        return {"table": self.table, "numbers": self.numbers, "rows": self.rows, **masked}

    @classmethod
    def of(cls, vectors: Tensor, indices: Tensor, labels: Tensor, mask: Tensor | None = None) -> "EncodedSplit":
        """Build the table from the quantized vectors (N, T, D) and code indices (N, T) or (N, T, L) of all seconds.

        Padded seconds get the code of the clip's first second, so that they add no codes to the table.
        """
        if mask is not None:
            where = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0)
            clips = torch.arange(len(mask), device=mask.device).unsqueeze(1)
            vectors, indices = vectors[clips, where], indices[clips, where]
        numbers, rows = indices.flatten(0, 1).unique(dim=0, return_inverse=True)
        flat = vectors.flatten(0, 1)
        table = flat.new_empty(len(numbers), flat.shape[-1])
        table[rows] = flat                      # all seconds of one code have the same vector, up to rounding
        assert torch.allclose(table[rows], flat, rtol=1e-3, atol=1e-4), "vectors are not a function of the code indices"
        return cls(table, numbers, rows.view(vectors.shape[:2]), labels, mask)

    def select(self, channels):
        """Copy with only some `channels` of the codes, (S,) int64; None keeps all."""
        return self if channels is None else replace(self, table=self.table[:, channels])

    def of_clips(self, keep):
        """Copy with only some of the clips, given by indices (n,) or a mask (N,)."""
        return replace(self, rows=self.rows[keep], labels=self.labels[keep],
                       mask=None if self.mask is None else self.mask[keep])

    @property
    def indices(self):
        """Code indices (N, T) or (N, T, L)."""
        return self.numbers[self.rows]

    @cached_property
    def clip_classes(self):
        """Class of each clip, (N,) int64."""
        return clip_class(self.labels)


def check_modality(encoder, modality, checkpoint):
    """Raise InputError unless the encoder was pretrained on a modality; `checkpoint` is used in the message."""
    if modality not in encoder.config.modalities:
        raise InputError(f"{checkpoint}: pretrained on {', '.join(encoder.config.modalities)}, but {modality} was "
                         "requested; choose other directions or a checkpoint with this modality")


def check_fit(encoder, dataset, modality, checkpoint):
    """Raise InputError unless the encoder accepts the features of a dataset; reads one clip.

    Args:
        encoder: FrozenEncoder (cmg/systems/base.py).
        dataset: items are dicts of arrays.
        modality: name of a modality.
        checkpoint: name for the message.
    """
    check_modality(encoder, modality, checkpoint)
    found = dataset[0][modality].shape
    store = getattr(dataset, "stores", {}).get(modality)
    check_shape(encoder, modality, found if encoder.config.kind(modality) == "tokens" else found[1:],
                f"{dataset.name} ({store.path})" if store else dataset.name, checkpoint)


def check_shape(encoder, modality, shape, name, checkpoint):
    """Raise InputError unless the encoder accepts features of this shape (cmg/models/config.py); `name` and
    `checkpoint` are used in the message."""
    if not encoder.config.fits(modality, shape):
        raise InputError(f"{checkpoint}: expects {encoder.config.describe(modality)}, but {name} has "
                         f"{describe_shape(modality, shape)}; use a checkpoint that was pretrained on features of this "
                         "kind")


def seconds_of(encoder, modality, mask):
    """Mask of a modality's codes, given the mask of the clips' seconds; None for tokens."""
    return None if mask is None or encoder.config.kind(modality) == "tokens" else mask


@torch.no_grad()
def codes(encoders, dataset, modalities, *, labels="label", batch_size=80, workers=0, precision="float32",
          training=False, cache=None):
    """Encode a dataset, reading it once for all encoders and modalities.

    Args:
        encoders: name -> FrozenEncoder, for example {None: pretrained, "untrained": control}, all on one device.
        dataset: items are dicts of arrays with the modalities and the labels; with `cache`, cmg.data.clips.Clips.
        modalities: modalities to encode.
        labels: key of the items to store as labels.
        batch_size, workers: arguments of the DataLoader; they do not affect the results.
        precision: "bf16" runs the encoders under autocast.
        training: keep dropout on (protocol="released"); the codebooks never change.
        cache: CodeCache (cmg/downstream/code_cache.py) to read known codes from; not used with `training`.

    Returns:
        {(name, modality): EncodedSplit} on the encoders' device.
    """
    device = next(iter(encoders.values())).codebooks[0].device
    wanted = [(name, modality) for modality in modalities for name in encoders]
    keys = {} if cache is None or training else {
        (name, modality): cache.key(encoders[name], dataset, modality, batch_size=batch_size, precision=precision)
        for name, modality in wanted}
    known = {pair: found for pair, key in keys.items() if (found := cache.read(key, device))}
    missing = [pair for pair in wanted if pair not in known]
    fresh, mask = {}, None
    if missing or labels != "label":
        read = {labels, *(modality for _, modality in missing)}
        fresh, kept, mask = _encode(encoders, missing, dataset.only(read) if keys else dataset, labels,
                                    batch_size=batch_size, workers=workers, precision=precision, training=training)
    else:
        kept = torch.tensor(dataset.labels, dtype=torch.float32, device=device)
    sets = {}
    for name, modality in wanted:
        if (name, modality) in known:
            found = known[name, modality]
            sets[name, modality] = EncodedSplit(labels=kept.to(found["table"].dtype), **found)
            continue
        vectors, indices = fresh[name, modality]
        sets[name, modality] = EncodedSplit.of(vectors, indices, kept.to(vectors.dtype),
                                               seconds_of(encoders[name], modality, mask))
        if keys:
            cache.write(keys[name, modality], sets[name, modality].codes)
    return sets


def _encode(encoders, wanted, dataset, labels, *, batch_size, workers, precision, training):
    """One pass over a dataset: returns ({(name, modality): (vectors, indices)} for the `wanted` pairs, labels, mask of
    the clips' seconds or None), all on the encoders' device. The arguments are those of `codes`."""
    device = next(iter(encoders.values())).codebooks[0].device
    loader = ClipLoader(dataset, batch_size, workers)
    vectors, indices, kept, masks = defaultdict(list), defaultdict(list), [], []
    for encoder in encoders.values():
        encoder.set_dropout(training)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for item in tqdm(loader, desc=f"codes of {dataset.name}", unit="batch", leave=False, disable=None):
            mask = item["mask"].to(device) if "mask" in item else None
            kept.append(item[labels].to(device))
            if mask is not None:
                masks.append(mask)
            for modality in dict.fromkeys(modality for _, modality in wanted):
                x = item[modality].to(device)
                for name in (name for name, of in wanted if of == modality):
                    got = encoders[name].embed(modality, x, seconds_of(encoders[name], modality, mask))
                    vectors[name, modality].append(got.vectors)
                    indices[name, modality].append(got.indices)
    for encoder in encoders.values():
        encoder.set_dropout(False)
    kept, mask, found = torch.cat(kept), torch.cat(masks) if masks else None, {}
    if mask is not None and labels != "label":      # audio features: padding must not change their mean over time
        kept = torch.where(mask.unsqueeze(2), kept, mean_of_clips(kept, mask).unsqueeze(1))
    for pair, parts in vectors.items():
        parts = torch.cat(parts)
        found[pair] = parts.float() if parts.dtype == torch.bfloat16 else parts, torch.cat(indices[pair])
    return found, kept, mask
