"""What all datasets share: stores by modality, class prompts as text, labels, and what to do about bad clips."""

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

Paths: TypeAlias = Mapping[str, Path]           # short name of a file -> where it is
log = logging.getLogger(__name__)


class Clips:
    """Clips with features by modality, a map-style dataset; one item is a dict of float32 arrays.

    Of audio, video and others each second is a vector, (T, W), or a map, (T, H, W, C), as `shapes` tells; "text" is
    (L, W), "label" (T, C+1) with the background last. With padding "mask" there is also "real" (T,) bool: the seconds
    that the clip has in all its modalities but tokens.

    Args:
        name: for messages.
        modalities: keys of an item, in their fixed order (cmg/models/config.py).
        ids: name of each clip (N), for messages and results.
        paths: modality (or "label") -> path of its store.
        keys: id of each clip in the stores (N); default `ids`.
        text: (vectors (M, L, W), index into them of each clip (N)), or None. An index (N, P) gives clips up to P
            sentences, -1 where there are fewer; an item has the first, cmg/training/batches.py draws one a step.
        labels: (N, t, C+1) array or None; fitted to T as the features are.
        classes: foreground class names (C).
        on_bad_clip: "error", or "skip": read every clip once now and skip the bad ones with a warning.
        in_memory: read all features now and keep them, in the dtype of the store.
        seconds: T; longer clips are cut, shorter ones repeat their last second. None: clips as they are.
        padding: what repeated seconds are: "repeat", seconds like the others, as published; "mask", none ("real").
        kinds: modality -> "vector", "map" or "tokens", where only this will do.
        observe: with on_bad_clip "skip", called with modality, key and array (T, ...) of every good clip, from several
            threads.
    Attributes:
        origin: name of the data set, if the files lie in one that the project builds (origins.data_set), else empty.
        lengths: modality -> (N,) own seconds of the clips before they were fitted, as far as all clips have been read.
        skipped: key -> reason of the skipped clips; `missing` are those of them without a feature file.
    Raises:
        InputError: missing clips, or (when read) bad ones.
    """

    BY_ID = False               # HDF5 files may have a dataset for each id
    NUMBERED = ""               # where ids that are numbers count rows: clips 3 of two lists are different ones

    def __init__(self, name: str, modalities: Iterable[str], ids: Sequence[str], paths: Paths, *,
                 keys: Sequence[str] | None = None, text: tuple[NDArray[Any], NDArray[Any]] | None = None,
                 labels: NDArray[Any] | None = None, classes: Iterable[str] = (), on_bad_clip: str = "error",
                 in_memory: bool = False, seconds: int | None = 10, padding: str = "repeat",
                 kinds: Mapping[str, str | None] | None = None,
                 observe: Callable[[str, str, NDArray[Any]], None] | None = None) -> None:
        self.name, self.modalities, self.classes = name, tuple(modalities), list(classes)
        self.ids, self.origin = list(ids), data_set(paths.values())
        self.keys = [unicodedata.normalize("NFC", key) for key in (ids if keys is None else keys)]     # as of stores
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
            raise InputError(f"{name}: no clips are left; at least one is expected; check the list and the splits")
        self._drop_missing(on_bad_clip)
        for store in self.stores.values():
            store.fit_tokens(self.keys)
        if on_bad_clip == "skip":
            self._drop({clip: reason for m in self.stores for clip, reason in self._scan(m).items()})
        self.first_lengths = {m: store.probe(self.keys[0]) for m, store in self.stores.items()}
        for m in [m for m in self.timed if self.first_lengths[m] is None] if padding == "mask" else ():
            raise InputError(f"{self.stores[m].path}: a pack of an earlier version, which does not say how long its "
                             "clips are; --padding mask needs that: pack the features again")
        if in_memory:
            self.memory = {m: self.load(m) for m in self.stores if m != "label"}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """modality -> shape: of one second (W,) or (H, W, C), of the text of a clip (L, W)."""
        text = {} if self.text is None else {"text": self.text[0].shape[1:]}
        return {m: self.stores[m].tail if m in self.stores else text[m] for m in self.modalities}

    def original(self, modality: str, i: int) -> NDArray[Any] | str | None:
        """What a person sees or hears of a clip: a picture (H, W) or (H, W, 3), or a spectrogram (bands, frames),
        uint8, or a sentence; None for data that does not say."""
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
        """The same clips, whose items have only these modalities; with padding "mask" all of them, because a clip has
        the seconds that all its modalities have."""
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
        """(N,) how many seconds the clips have in all their modalities, T at most; what is not known yet is read."""
        own = np.min([self._lengths(m) for m in self.timed], 0)
        return own if self.seconds is None else np.minimum(own, self.seconds)

    @property
    def timed(self) -> list[str]:
        """The modalities that have seconds: all but tokens."""
        return [m for m in self.modalities if m in self.stores and self.stores[m].leading]

    def longest(self) -> int:
        """Seconds of the longest clip, in any modality: of a pack what it keeps, else every clip is read."""
        stores = [(m, self.stores[m]) for m in self.timed]
        return max(store.shape[0] if isinstance(store, Pack) else int(self._lengths(m).max()) for m, store in stores)

    def _lengths(self, modality):
        """`lengths` of a modality, read now where they are not known."""
        if modality not in self.lengths:
            self._scan(modality)
        return self.lengths[modality]

    def load(self, modality: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """All clips of one modality, (N, T, ...), in `dtype` (default: the store's own, float32 from zips).

        For keeping a whole set in memory or on a GPU; a progress bar shows clips per second.
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
                found = f"; the folder holds {store.form}" if isinstance(store, ArrayFolder) else ""
                raise InputError(f"{store.path}: {len(missing)} of {len(self)} clips of {self.name} have no {modality} "
                                 f"feature ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}{found}); one "
                                 "each is expected; get the rest, or skip them with --on_bad_clip skip")
            self.missing += missing
            self._drop(dict.fromkeys(missing, f"{store.path}: no {modality} feature"))

    def _scan(self, modality):
        """Bad clips of a store -> reason; sets `lengths`. A pack was checked when it was written."""
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
        log.warning("%s: %d of %d clips are skipped (--on_bad_clip skip):\n  %s", self.name, len(self) - len(keep),
                    len(self), "\n  ".join(f"{key}: {reason}" for key, reason in reasons.items()),
                    extra={"skipped": "clips"})
        self.skipped.update(reasons)
        if not keep:
            raise InputError(f"{self.name}: all {len(self)} clips are bad, first {next(iter(reasons.values()))}")
        self._keep(keep)

    def _keep(self, keep):
        self.ids, self.keys = [self.ids[i] for i in keep], [self.keys[i] for i in keep]
        self.lengths = {m: own[keep] for m, own in self.lengths.items()}
        if self.text is not None:
            self.text = self.text[0], np.asarray(self.text[1])[keep]
        if self.labels is not None:
            self.labels = self.labels[keep]


def name_hashes(clips: Any) -> NDArray[np.int64]:
    """(N,) hashes of the clips' names, which tell whether another set has the same clips.

    Args:
        clips: `Clips`, or another data set with `ids`.
    """
    numbered = getattr(clips, "NUMBERED", "")
    names = [f"{numbered}:{key}" if key.isdecimal() else key for key in getattr(clips, "keys", clips.ids)]
    digests = b"".join(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8] for name in names)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def _measured(store, key, observe=None):
    """(seconds of a clip, None), or (0, what is wrong with it); `observe`: see `Clips`."""
    try:
        x, own = store.measure(key)
        if observe:
            observe(store.kind, key, x)
        return own, None
    except InputError as error:
        return 0, str(error)
