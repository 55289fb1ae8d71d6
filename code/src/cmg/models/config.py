"""Configuration of a system: its modalities with their kinds and shapes, and the widths of its networks.

A new system takes the shapes from its data; a loaded one takes them from its file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from cmg.utils.errors import InputError
from cmg.utils.settings import positive, setting

MODALITIES = ("audio", "video", "text")     # published; they come first, in this order
KINDS = {1: "vector", 2: "tokens", 3: "map"}    # by the rank of a shape: (W,), (L, W), (H, W, C)
MIN_MAP_SIZE = 5                            # positions per side: there are two 3x3 convolutions without padding
NAME = re.compile(r"[a-z][a-z0-9_]{2,}")       # shorter ones could be letters in published names
MIN_SECONDS = 3                             # per clip, required by Cross-CPC
RESET_AFTER = 300                           # published number of passes without use before a code is reset
TOC_TERMS = ("both", "similarity", "variance")      # of TOC's criterion; a single one is an ablation
# Names used by other keys of batches, losses and prediction files, and by FCID's shared networks.
RESERVED_NAMES = ("label", "mask", "total", "audiovisual", "checkpoint", "manifest", "num_codes", "code", "file")


def in_order(modalities, first=MODALITIES):
    """Modalities in a fixed order: those of `first` in its order, then all others by name.

    The EMA of the codebook, the random draws and the names in files depend on such orders.
    """
    return tuple(m for m in first if m in modalities) + tuple(sorted(m for m in set(modalities) if m not in first))


def modalities_of(directions):
    """Modalities that occur in (source, target) directions, in the fixed order."""
    return in_order({m for direction in directions for m in direction})


def short(modality):
    """First letter of a published modality, the full name of any other: for file names and metric names."""
    return modality[0] if modality in MODALITIES else modality


def check_name(modality):
    """Raise InputError unless this is a valid name for a modality."""
    if modality in MODALITIES:
        return
    from torch import nn  # imported here because --help does not need PyTorch
    if not NAME.fullmatch(modality) or modality in RESERVED_NAMES or hasattr(nn.ModuleDict, modality):
        raise InputError(f"modality '{modality[:40]}': expected a name of three or more lower-case letters, digits and "
                         f"_, other than {', '.join(RESERVED_NAMES)} and methods of PyTorch modules; choose another")


def check_shape(modality, shape):
    """Raise InputError unless this is a valid shape for features of a modality: (W,) or (H, W, C) per second, or (L, W)
    per clip."""
    if len(shape) not in KINDS or not all(type(n) is int and n > 0 for n in shape):
        raise InputError(f"{modality}: features of shape {tuple(shape)}; expected (width,) or (height, width, "
                         "channels) per second, or (tokens, width) per clip")
    if modality in MODALITIES and (modality == "text") != (len(shape) == 2):
        raise InputError(f"{modality}: features of shape {tuple(shape)}, {KINDS[len(shape)]}; "
                         f"expected {'tokens (length, width)' if modality == 'text' else 'a vector or a map'}")
    if len(shape) == 3 and min(shape[:2]) < MIN_MAP_SIZE:
        hint = "; a first axis of one clip is to be removed" if shape[0] == 1 else ""
        raise InputError(f"{modality}: maps of {shape[0]} x {shape[1]} positions; expected at least {MIN_MAP_SIZE} x "
                         f"{MIN_MAP_SIZE} (two 3x3 convolutions without padding); extract larger maps, or average over "
                         f"the positions and pass vectors{hint}")


def describe_shape(modality, shape):
    """Description of a modality's features for messages: "video as maps of 7 x 7 x 512", "audio as vectors of 128"."""
    kind = KINDS.get(len(shape), "arrays")
    sizes = shape[-1:] if kind == "tokens" else shape
    return f"{modality} as {kind if kind.endswith('s') else kind + 's'} of {' x '.join(map(str, sizes))}"


class MapWidths(NamedTuple):
    """Widths of the networks that encode and decode maps of C channels."""

    hidden: int         # between the two 3x3 convolutions, and in the decoder
    specific: int
    pool_hidden: int    # MLP of the pooled specific feature
    squeeze: int        # squeeze-excitation
    attention: int      # spatial attention, which has no effect in the published form

    @classmethod
    def of(cls, channels: int) -> "MapWidths":
        """Widths in the published ratios to the channels: 512 gives 1024, 2048, 1024, 64 and 256."""
        return cls(2 * channels, 4 * channels, 2 * channels, max(1, channels // 8), max(1, channels // 2))


PUBLISHED: dict[str, tuple[int, ...]] = {"audio": (128,), "video": (7, 7, 512), "text": (10, 768)}


def seconds_or_auto(text):
    """Argument type for --seconds; `auto` is resolved when the clips are opened."""
    return text if text == "auto" else positive(text)


@dataclass(frozen=True)
class Config:
    """Sizes that all systems have; the defaults are the published ones. A system may add fields in a subclass.

    Attributes:
        shapes: (modality, shape) of every modality, in their fixed order: a vector (W,) or a map (H, W, C) per second,
            or tokens (L, W) per clip. The networks do not depend on L.
        map_widths: (modality, MapWidths) of the modalities that are maps.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...] = tuple(PUBLISHED.items())
    map_widths: tuple[tuple[str, MapWidths], ...] = (("video", MapWidths.of(512)),)
    num_codes: int = 400                # K
    code_dim: int = 256                 # D, also the width of the specific features of vectors and tokens
    text_hidden: int = 128              # of each direction of the LSTM over tokens
    feed_forward: int = 1024
    num_layers: int = 2
    num_heads: int = 4
    club_hidden: int = 128
    dropout: float = 0.1
    spatial_attention: str = "sum"      # or "softmax"
    seconds: int = setting(10, "seconds per clip (T): longer clips are truncated, shorter ones padded; auto: length of "
                           "the longest clip in the list", type=seconds_or_auto, metavar="N|auto")
    padding: str = setting("repeat", "how shorter clips are padded: by repeating the last second, as published, or "
                           "with a mask that hides the padding from losses, codes, attention and heads",
                           choices=("repeat", "mask"))
    standardize: str = setting("none", "channel: standardize each channel of the features, except those of tokens, "
                               "with mean and standard deviation over the training clips; none: keep the features "
                               "unchanged, as published (default: channel for --dataset_name custom, else none)",
                               choices=("channel", "none"))

    def __post_init__(self) -> None:
        self._require("spatial_attention", self.spatial_attention in ("sum", "softmax"))
        self._require("padding", self.padding in ("repeat", "mask"))
        self._require("standardize", self.standardize in ("channel", "none"))
        self._require("dropout", 0 <= self.dropout < 1)
        self._require("shapes", self.modalities == in_order(self.modalities))
        for modality, shape in self.shapes:
            check_name(modality)
            check_shape(modality, shape)
        maps = [m for m in self.modalities if self.kind(m) == "map"]
        self._require("map_widths", [m for m, _ in self.map_widths] == maps)

    def _require(self, name: str, is_good: bool) -> None:
        if not is_good:                     # no assert: a file may hold anything, also under python -O
            raise ValueError(f"{name} = {getattr(self, name)!r:.80}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in their fixed order."""
        return tuple(m for m, _ in self.shapes)

    def shape(self, modality: str) -> tuple[int, ...]:
        """Shape of a modality's features: (W,), (H, W, C) or (L, W)."""
        return dict(self.shapes)[modality]

    def kind(self, modality: str) -> str:
        """Kind of a modality's features: "vector", "map" or "tokens"."""
        return KINDS[len(self.shape(modality))]

    def feature_dim(self, modality: str) -> int:
        """Width (channels) of a modality's features in the data."""
        return self.shape(modality)[-1]

    def input_dim(self, modality: str) -> int:
        """Width of the semantic encoder's input; for tokens, the output of the LSTM."""
        return 2 * self.text_hidden if self.kind(modality) == "tokens" else self.feature_dim(modality)

    def pooled_dim(self, modality: str) -> int:
        """Width of the pooled specific feature, the input of CLUB."""
        return self.feature_dim(modality) if self.kind(modality) == "map" else self.code_dim

    @property
    def reading(self) -> dict[str, Any]:
        """How clips are read for this system, as keyword arguments of cmg.data.clips.Clips."""
        return {"seconds": self.seconds, "padding": self.padding}

    def widths(self, modality: str) -> MapWidths:
        """MapWidths of a modality."""
        return dict(self.map_widths)[modality]

    def fits(self, modality: str, shape: Sequence[int]) -> bool:
        """Whether the system accepts features of this shape as the modality; the number of tokens may differ."""
        expected = self.shape(modality)
        given = 1 if self.kind(modality) == "tokens" else 0
        return len(shape) == len(expected) and tuple(shape[given:]) == expected[given:]

    def describe(self, modality: str) -> str:
        """Description of a modality's features for messages; see `describe_shape`."""
        return describe_shape(modality, self.shape(modality))

    def axes(self, modality: str) -> str:
        """Shape of a batch of a modality's features, as text: "(B, T, 128)", "(B, T, 7, 7, 512)", "(B, L, 768)"."""
        shape = self.shape(modality)
        return f"(B, {'L' if self.kind(modality) == 'tokens' else 'T'}, {', '.join(map(str, shape[len(shape) == 2:]))})"

    def with_modalities(self, modalities: Sequence[str]) -> "Config":
        """Copy of this config with only some of the modalities."""
        return with_numbers(self, {}, modalities)

    @classmethod
    def for_data(cls, modalities: Mapping[str, Sequence[int]] | Sequence[str], audio_dim: int = 128,
                 video_dim: int = 512, text_dim: int = 768, **sizes: Any) -> "Config":
        """Config for given data.

        Args:
            modalities: modality -> shape (`Clips.shapes`), or names of published modalities, which then have their
                published kinds.
            audio_dim, video_dim, text_dim: widths of the published kinds: a vector, a 7x7 map, ten word vectors.
            sizes: other fields; the widths of maps follow the published ratios to their channels.

        Raises:
            InputError: a shape or name is not supported, or all modalities are tokens.
        """
        if not isinstance(modalities, Mapping):
            published = {"audio": (audio_dim,), "video": (7, 7, video_dim), "text": (10, text_dim)}
            modalities = {m: published[m] for m in modalities}
        shapes = {m: tuple(modalities[m]) for m in in_order(modalities)}
        if all(KINDS[len(shape)] == "tokens" for shape in shapes.values()):
            raise InputError(f"{', '.join(shapes)}: all are tokens; expected at least one modality with features per "
                             "second; add one")
        return cls(tuple(shapes.items()), tuple((m, MapWidths.of(shape[-1])) for m, shape in shapes.items()
                                                if len(shape) == 3), **sizes)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, as stored in files; see `from_dict`."""
        return {name: value for name, value in asdict(self).items() if name not in ("shapes", "map_widths")} | {
            "shapes": {m: list(shape) for m, shape in self.shapes},
            "map_widths": {m: dict(widths._asdict()) for m, widths in self.map_widths}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Config":
        """Inverse of `to_dict`. Files of earlier versions have audio_dim, video_dim (of a 7x7 map) and text_dim instead
        of `shapes`.

        Raises:
            InputError, ValueError: an unknown field, or a value of the wrong type.
        """
        stored = dict(stored)
        if "shapes" not in stored:
            stored = _with_shapes(stored)
        values = {"shapes": _mapping(stored, "shapes", lambda shape: tuple(shape)),
                  "map_widths": _mapping(stored, "map_widths", lambda widths: MapWidths(**widths))}
        defaults = {f.name: f.default for f in fields(cls)}
        for name, value in stored.items():
            if name not in values:
                if name not in defaults or type(value) is not type(defaults[name]):
                    raise ValueError(f"{name} = {value!r:.60}")
                values[name] = value
        return cls(**values)


OLD_MAP_WIDTHS = {"video_hidden": "hidden", "video_specific_dim": "specific", "video_pool_hidden": "pool_hidden",
                  "squeeze_dim": "squeeze", "attention_dim": "attention"}


def _with_shapes(stored):
    """A stored config of an earlier version, with its audio_dim, text_dim and fields of video replaced by `shapes` and
    `map_widths`."""
    shapes = {"audio": ("audio_dim", [128]), "video": ("video_dim", [7, 7, 512]), "text": ("text_dim", [10, 768])}
    modalities, stored = stored.pop("modalities", MODALITIES), dict(stored)
    if not isinstance(modalities, (list, tuple)) or any(m not in shapes for m in modalities):
        raise ValueError(f"modalities = {modalities!r:.60}")
    sizes = {m: [*usual[:-1], stored.pop(name, usual[-1])] for m, (name, usual) in shapes.items()}
    widths = {new: stored.pop(old, usual) for (old, new), usual in zip(OLD_MAP_WIDTHS.items(), MapWidths.of(512))}
    return stored | {"shapes": {m: sizes[m] for m in modalities},
                     "map_widths": {m: widths for m in modalities if m == "video"}}


def _mapping(stored, name, read):
    """(modality, value) pairs of a field that is stored as a dict; raises ValueError if it is not of this form."""
    found = stored.get(name)
    try:
        pairs = tuple((m, read(value)) for m, value in found.items())
        if not all(type(m) is str and all(type(n) is int for n in value) for m, value in pairs):
            raise TypeError("not whole numbers")
        return pairs
    except (AttributeError, TypeError):
        raise ValueError(f"{name} = {found!r:.60}") from None


# --------------------------------------------------------------------- all integers, by (field, modality, axis)
def numbers(config):
    """Every integer of a config: (field,) -> value, or (field, modality, index within the tuple) -> value."""
    found = {(f.name,): getattr(config, f.name) for f in fields(config) if type(getattr(config, f.name)) is int}
    for name in ("shapes", "map_widths"):
        found |= {(name, m, i): n for m, values in getattr(config, name) for i, n in enumerate(values)}
    return found


def with_numbers(config, changed, modalities=None):
    """Copy of a config with some of its `numbers` changed, and with only some of its modalities if they are given."""
    values = {f.name: changed.get((f.name,), getattr(config, f.name)) for f in fields(config)}
    for name, kind in (("shapes", tuple), ("map_widths", MapWidths._make)):
        values[name] = tuple((m, kind(changed.get((name, m, i), n) for i, n in enumerate(of)))
                             for m, of in getattr(config, name) if modalities is None or m in modalities)
    return type(config)(**values)
