"""Base class of all datasets: feature stores by modality, class prompts as text, labels, handling of bad clips."""

import copy
import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from cmg.data.features import ArrayFolder, Pack, at_seconds, open_features, to_float32
from cmg.data.origins import data_set
from cmg.utils.cores import usable_cores
from cmg.utils.errors import InputError

Paths: TypeAlias = Mapping[str, Path]           # short name of a file -> its path
log = logging.getLogger(__name__)


class Clips:
    """Map-style dataset of clips with features by modality; an item is a dict of float32 arrays.

    In audio, video and other timed modalities each second is a vector, (T, W), or a map, (T, H, W, C); see `shapes`.
    "text" is (L, W), "label" (T, C+1) with the background last. With padding "mask" there is also "mask" (T,) bool: the
    seconds that the clip has in all its timed modalities.

    Args:
        name: name for messages.
        modalities: keys of an item, in their fixed order (cmg/models/config.py).
        ids: name of each clip (N), for messages and results.
        paths: modality (or "label") -> path of its store.
        keys: id of each clip in the stores (N); default `ids`.
        text: (vectors (M, L, W), row of each clip (N)), or None. Rows (N, P) give each clip up to P sentences, padded
            with -1; an item has the first one, cmg/training/batches.py draws one per step.
        labels: (N, t, C+1) array or None; fitted to T like the features.
        classes: foreground class names (C).
        on_bad_clip: "error", or "skip": read every clip once now and skip the bad ones with a warning.
        in_memory: read all features now and keep them, in the dtype of the store.
        seconds: T; longer clips are cut, shorter ones repeat their last second. None keeps the clips' lengths.
        padding: "repeat" uses repeated seconds like the others, as published; "mask" excludes them (item "mask").
        kinds: modality -> the required kind, "vector", "map" or "tokens".
        observe: with on_bad_clip "skip", called with modality, key and array (T, ...) of every good clip, from several
            threads.
    Attributes:
        origin: name of the dataset if this project built it (origins.data_set), else empty.
        lengths: modality -> (N,) seconds of the clips before they were fitted; only for modalities read completely.
        skipped: key -> reason for each skipped clip; `missing` lists those without a feature file.
    Raises:
        InputError: missing clips, or (when read) bad ones.
    """

    BY_ID = False               # HDF5 files may have a dataset for each id
    NUMBERED = ""               # prefix that distinguishes numeric ids, which are row numbers, of different lists

    def __init__(self, name: str, modalities: Iterable[str], ids: Sequence[str], paths: Paths, *,
                 keys: Sequence[str] | None = None, text: tuple[NDArray[Any], NDArray[Any]] | None = None,
                 labels: NDArray[Any] | None = None, classes: Iterable[str] = (), on_bad_clip: str = "error",
                 in_memory: bool = False, seconds: int | None = 10, padding: str = "repeat",
                 kinds: Mapping[str, str | None] | None = None,
                 observe: Callable[[str, str, NDArray[Any]], None] | None = None) -> None:
        self.name, self.modalities, self.classes = name, tuple(modalities), list(classes)
        self.ids, self.origin = list(ids), data_set(paths.values())
        self.keys = [unicodedata.normalize("NFC", key) for key in (ids if keys is None else keys)]     # as in stores
        self.seconds, self.padding = seconds, padding
        self.lengths: dict[str, NDArray[Any]] = {}
        self.text, self.labels = text, labels
        if labels is not None and seconds not in (None, labels.shape[1]):
            self.labels = labels[:, at_seconds(labels.shape[1], seconds)]
        self.observe = observe
        self.stores = {m: open_features(path, m, seconds, (kinds or {}).get(m), self.BY_ID)
                       for m, path in paths.items()}
        self.skipped: dict[str, str] = {}
        self.missing: list[str] = []
        self.memory: dict[str, NDArray[Any]] = {}
        if not self.ids:
            raise InputError(f"{name}: no clips are left; expected at least one; check the list and the splits")
        self._drop_missing(on_bad_clip)
        for store in self.stores.values():
            store.fit_tokens(self.keys)
        if on_bad_clip == "skip":
            self._drop({clip: reason for m in self.stores for clip, reason in self._scan(m).items()})
        self.first_lengths = {m: store.probe(self.keys[0]) for m, store in self.stores.items()}
        for m in [m for m in self.timed if self.first_lengths[m] is None] if padding == "mask" else ():
            raise InputError(f"{self.stores[m].path}: a pack of an earlier version, without the clips' lengths; "
                             "--padding mask needs them; pack the features again")
        if in_memory:
            self.memory = {m: self.load(m) for m in self.stores if m != "label"}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """modality -> shape of one second, (W,) or (H, W, C), or of a clip's text (L, W)."""
        text = {} if self.text is None else {"text": self.text[0].shape[1:]}
        return {m: self.stores[m].tail if m in self.stores else text[m] for m in self.modalities}

    def original(self, modality: str, i: int) -> NDArray[Any] | str | None:
        """A clip's content for display: an image (H, W) or (H, W, 3) or a spectrogram (bands, frames), uint8, or a
        sentence; None if the data does not include it."""
        return None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, NDArray[Any]]:
        item, own = {}, []
        for m in self.modalities:
            if m in self.stores:
                item[m], seconds = self._clip(m, i)
                own += [seconds] if self.stores[m].leading else []
        if self.padding == "mask":
            item["mask"] = np.arange(self.seconds or max(own)) < min(own)
        if self.text is not None:
            vectors, index = self.text
            item["text"] = vectors[np.ravel(index[i])[0]]
        if self.labels is not None:
            item["label"] = np.asarray(self.labels[i], np.float32)
        return item

    def only(self, modalities: Iterable[str]) -> "Clips":
        """The same clips with only these modalities in their items. With padding "mask" all are kept, because the mask
        depends on all modalities."""
        if self.padding == "mask":
            return self
        part, kept = copy.copy(self), set(modalities)
        part.modalities = tuple(m for m in self.modalities if m in kept)
        part.text = self.text if "text" in kept else None
        return part

    def _clip(self, modality, i):
        if modality in self.memory:
            return to_float32(self.memory[modality][i]), self.lengths[modality][i] if modality in self.lengths else None
        return self.stores[modality].measure(self.keys[i])

    @property
    def real_seconds(self) -> NDArray[Any]:
        """(N,) seconds that each clip has in all its modalities, at most T; reads the clips if necessary."""
        own = np.min([self._lengths(m) for m in self.timed], 0)
        return own if self.seconds is None else np.minimum(own, self.seconds)

    @property
    def timed(self) -> list[str]:
        """The modalities with a time axis: all but tokens."""
        return [m for m in self.modalities if m in self.stores and self.stores[m].leading]

    def longest(self) -> int:
        """Seconds of the longest clip in any modality: the stored length of packs; other stores are read completely."""
        stores = [(m, self.stores[m]) for m in self.timed]
        return max(store.shape[0] if isinstance(store, Pack) else int(self._lengths(m).max()) for m, store in stores)

    def _lengths(self, modality):
        """`lengths` of a modality; reads the clips if necessary."""
        if modality not in self.lengths:
            self._scan(modality)
        return self.lengths[modality]

    def load(self, modality: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Load all clips of one modality, (N, T, ...), in `dtype` (default: that of the store, float32 for zips), to
        keep them in memory or on a GPU.
        """
        if modality not in self.stores:
            assert self.text is not None, modality
            vectors, index = self.text
            return vectors[index.reshape(len(self), -1)[:, 0]].astype(dtype or np.float32)
        store, own = self.stores[modality], np.zeros(len(self), np.int64)
        is_pack = isinstance(store, Pack)
        first = store.read_stored(self.keys[0]) if is_pack else store.read(self.keys[0])
        result = np.empty((len(self), *first.shape), dtype or first.dtype)
        for i, key in enumerate(tqdm(self.keys, f"reading {modality}", unit="clip", disable=None, leave=False)):
            if is_pack:
                result[i] = store.read_stored(key)
            else:
                result[i], own[i] = store.measure(key)
        if not is_pack:
            self.lengths[modality] = own
        return result

    def _drop_missing(self, on_bad_clip):
        for modality, store in self.stores.items():
            missing = store.missing(self.keys)
            if missing and on_bad_clip == "error":
                found = f"; the folder has {store.form}" if isinstance(store, ArrayFolder) else ""
                raise InputError(f"{store.path}: {len(missing)} of {len(self)} clips of {self.name} have no {modality} "
                                 f"feature ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}{found}); "
                                 "expected one each; add the others, or skip these clips with --on_bad_clip skip")
            self.missing += missing
            self._drop(dict.fromkeys(missing, f"{store.path}: no {modality} feature"))

    def _scan(self, modality):
        """Key -> reason for the bad clips of a store; sets `lengths`. Packs were checked when they were written."""
        store = self.stores[modality]
        if isinstance(store, Pack):
            if store.own is not None:
                self.lengths[modality] = store.own[[store.rows[key] for key in self.keys]].astype(np.int64)
            for key in self.keys if self.observe else ():
                self.observe(modality, key, store.read(key))
            return {}
        good = next((key for key in self.keys if not _measured(store, key)[1]), None)
        if good is not None:
            store.probe(good)
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            measured = pool.map(lambda key: _measured(store, key, self.observe), self.keys)
            found = list(tqdm(measured, f"checking {modality}", len(self), unit="clip", disable=None, leave=False))
        self.lengths[modality] = np.array([own for own, _ in found])
        return {key: reason for key, (_, reason) in zip(self.keys, found) if reason}

    def _drop(self, reasons):
        """Skip the clips with these keys, with a warning."""
        if not reasons:
            return
        keep = [i for i, key in enumerate(self.keys) if key not in reasons]
        log.warning("%s: skipping %d of %d clips (--on_bad_clip skip):\n  %s", self.name, len(self) - len(keep),
                    len(self), "\n  ".join(f"{key}: {reason}" for key, reason in reasons.items()),
                    extra={"skipped": "clips"})
        self.skipped.update(reasons)
        if not keep:
            raise InputError(f"{self.name}: all {len(self)} clips are bad; the first: {next(iter(reasons.values()))}")
        self._keep(keep)

    def _keep(self, keep):
        self.ids, self.keys = [self.ids[i] for i in keep], [self.keys[i] for i in keep]
        self.lengths = {m: own[keep] for m, own in self.lengths.items()}
        if self.text is not None:
            self.text = self.text[0], np.asarray(self.text[1])[keep]
        if self.labels is not None:
            self.labels = self.labels[keep]


def name_hashes(clips: Any) -> NDArray[np.int64]:
    """(N,) hashes of the clips' names, to find the clips that two datasets share.

    Args:
        clips: `Clips`, or another dataset with `ids`.
    """
    numbered = getattr(clips, "NUMBERED", "")
    names = [f"{numbered}:{key}" if key.isdecimal() else key for key in getattr(clips, "keys", clips.ids)]
    digests = b"".join(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8] for name in names)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def _measured(store, key, observe=None):
    """(seconds of a clip, None), or (0, the problem with it); for `observe` see `Clips`."""
    try:
        x, own = store.measure(key)
        if observe:
            observe(store.kind, key, x)
        return own, None
    except InputError as error:
        return 0, str(error)
