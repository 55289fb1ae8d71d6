"""Cache for the output of a frozen encoder on the clips of a dataset, in a folder next to its checkpoint.

An entry is a safetensors file. Its name is the hash of everything that its values depend on: the encoder's weights and
sizes, the data, batch size, precision, machine, and this program. An entry is read completely or not at all.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cmg.downstream.settings import CODE_CACHE
from cmg.results.provenance import program_version
from cmg.utils.files import atomic_write, read_input, remove_leftovers

SUFFIX = ".safetensors"


class CodeCache:
    """The cache entries of one checkpoint.

    Several processes may read and write them at the same time. A damaged entry is treated as missing.

    Args:
        checkpoint: path of the checkpoint.
        gigabytes: maximum size of all entries in its folder; above 0.
        contents: path of features -> SHA-256 of its contents (cmg/data/fingerprint.py).
        warn: called with a list of lines for the user.
    """

    def __init__(self, checkpoint, gigabytes, contents, warn):
        self.folder, self.limit = Path(checkpoint).parent / CODE_CACHE, int(gigabytes * 1e9)
        self.contents, self.warn = contents, warn
        self._program, self._encoders = program_version(), {}

    def key(self, encoder, dataset, modality, text=None, **how):
        """The key of an entry, as text.

        Args:
            encoder: FrozenEncoder; two with different weights have different keys.
            dataset: cmg.data.clips.Clips.
            modality: modality to encode.
            text: (vectors, index) of the sentences; default: those of `dataset`.
            how: JSON values that describe how it is encoded.
        """
        if encoder not in self._encoders:
            self._encoders[encoder] = _digest(encoder.state_dict(), encoder.system.name, repr(encoder.config),
                                              encoder.epoch, encoder.zero_code0)
        device = encoder.codebooks[0].device
        is_masked = dataset.padding == "mask"               # a clip then has the seconds common to all its modalities
        stores = [m for m in dataset.stores if m == modality or is_masked and m in dataset.timed]
        data = {"clips": dataset.keys, "seconds": dataset.seconds, "padding": dataset.padding, "stores": {
            m: (self.contents[dataset.stores[m].path], type(dataset.stores[m]).__name__, dataset.stores[m].tail)
            for m in stores}}
        if modality not in dataset.stores:
            vectors, index = text or dataset.text
            data["text"] = _digest({"vectors": vectors, "index": np.asarray(index)})
        machine = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                   f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads")
        return json.dumps({"encoder": self._encoders[encoder], "data": data, "modality": modality, "machine": machine,
                           "program": self._program, **how}, sort_keys=True)

    def read(self, key, device="cpu"):
        """Name -> tensor of an entry, on `device`; None if it is missing or damaged."""
        try:
            tensors = load(read_input(self._path(key), self.limit))
            is_whole = bytes(tensors.pop("digest").tolist()).hex() == _digest(tensors, key)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        return {name: x.to(device) for name, x in tensors.items()} if is_whole else None

    def write(self, key, tensors):
        """Store an entry, name -> tensor, removing the oldest ones if space is needed. If the folder cannot be written,
        warn with one line."""
        tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
        digest = torch.tensor(list(bytes.fromhex(_digest(tensors, key))), dtype=torch.uint8)
        data = save(tensors | {"digest": digest})
        if len(data) > self.limit:
            self.warn([f"--cache_gb {self.limit / 1e9:g}: codes of {len(data) / 1e9:.3g} GB do not fit and are not "
                       "cached; raise it to cache them for the next call"])
            return
        try:
            self.folder.mkdir(exist_ok=True)
            remove_leftovers(self.folder)
            self._evict(len(data))
            with atomic_write(self._path(key)) as file:
                file.write(data)
        except OSError as error:
            self.warn([f"{self.folder}: cannot be written ({error.strerror}), so codes are not cached and the next "
                       "call encodes the clips again; make it writable, or pass --cache_gb 0"])

    def _path(self, key):
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}"

    def _evict(self, size):
        """Remove the oldest entries until `size` more bytes fit."""
        with os.scandir(self.folder) as found:
            entries = sorted((entry.stat().st_mtime_ns, entry.path, entry.stat().st_size) for entry in found
                             if entry.name.endswith(SUFFIX))
        total = size + sum(of_entry for _, _, of_entry in entries)
        for _, path, of_entry in entries:
            if total <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= of_entry


def _digest(arrays, *facts):
    """SHA-256, as hex text, of the names, types, shapes and bytes of tensors or NumPy arrays, and of additional
    facts."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, x in sorted(arrays.items()):
        digest.update(repr((name, str(x.dtype), tuple(x.shape))).encode())
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(x))
    return digest.hexdigest()
