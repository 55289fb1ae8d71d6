"""Front ends of custom networks: convert a second of audio or a frame to the network's input.

A front end is a small JSON object, in `net.json` next to `net.onnx` or from `--front-end MODALITY.KEY=VALUE`. Its keys
are the fields of `SoundFront`, `PictureFront` or `TextFront`, and those of `Network`.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.signal.windows import hann

from cmg.extract import audio
from cmg.utils.errors import InputError, readable
from cmg.utils.files import read_text_input
from cmg.utils.limits import LIMITS

INPUTS = ("waveform", "log-mel")
LOGS = {"ln": np.log, "log10": np.log10, "db": lambda x: 10 * np.log10(x)}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WHOLE, TEXT = int, str
CHOICES = {"input": INPUTS, "mel_scale": ("htk", "slaney", "kaldi"), "norm": (None, "slaney"), "log": tuple(LOGS),
           "triangles": ("mel", "hz"), "resize": ("stretch", "crop"), "filter": tuple(FILTERS),
           "colors": ("RGB", "BGR")}
LONGEST = 1 << 24                   # limit on the samples of a network's input
LARGEST = 1 << 14                   # limit on other integers: pixels of a side, bands, frames, a batch


@dataclass(frozen=True, kw_only=True)
class Network:
    """Handling of a network's input and output.

    Attributes:
        layout: letters of the input's axes: N, C, then T (waveform), T and F (log-mel), or H and W; None for the
            usual order with as many axes as the network declares.
        scale, zero_point: quantization of the input: x becomes round(x / scale + zero_point).
        output: name of the tensor to use, which may be an inner one; None if the network has a single output.
        output_layout: letters of the output's axes, including N and C; not needed for "NC". Vectors are averaged over
            all other axes; a map needs H and W.
        batch: items per forward pass.
    """

    layout: str | None = None
    scale: float | None = None
    zero_point: float = 0.0
    output: str | None = None
    output_layout: str | None = None
    batch: int = 16

    def stored(self, x, dtype):
        """The input in the network's data type, quantized if a scale is given."""
        if self.scale is not None:
            x = np.round(x / self.scale + self.zero_point)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            x = np.clip(np.round(x), limits.min, limits.max)
        return np.ascontiguousarray(x, dtype)

    def arranged(self, x, axes, rank):
        """Transpose `x`, whose axes are named by `axes` (N first), to the network's order.

        Args:
            rank: number of axes that the network declares; None if it does not.
        """
        layout = self.layout or (axes if rank in (None, len(axes)) else axes.replace("N", "NC", 1))
        present = layout.replace("C", "") if "C" not in axes else layout
        if sorted(present) != sorted(axes) or len(set(layout)) != len(layout) or rank not in (None, len(layout)):
            raise InputError(f"layout {layout!r}: expected a permutation of the axes {axes}"
                             f"{'' if 'C' in axes else ', optionally with C for a single channel'}"
                             + (f", {rank} in total" if rank else "") + "; fix 'layout' in the front end")
        x = x.transpose([axes.index(letter) for letter in present])
        return np.expand_dims(x, layout.index("C")) if len(layout) > len(present) else x


@dataclass(frozen=True, kw_only=True)
class SoundFront(Network):
    """Converts a second of audio to the network's input; the defaults are those of VGGish's log-mel.

    Attributes:
        input: "waveform" or "log-mel".
        rate: sample rate of the network in Hz.
        samples: length of a waveform; a second is cut or zero-padded to it. Default: one second.
        window, hop, fft: samples per frame, between frames, and of the Fourier transform.
        power: 1 for magnitudes, 2 for power.
        center: whether frames are centered on their times, with reflected ends.
        bands, lowest_hz, highest_hz: number and range of the mel filters.
        mel_scale, norm, triangles: "htk", "slaney" or "kaldi"; None or "slaney" (area 1); linear in "mel" or "hz".
        log, offset: log(mel + offset), where log is "ln", "log10" or "db" (10 log10).
        frames: frames per patch.
        mean, std: the input becomes (input - mean) / std.
    """

    input: str = "waveform"
    rate: int = audio.RATE
    samples: int | None = None
    window: int = audio.WINDOW
    hop: int = audio.HOP
    fft: int = audio.SPECTRUM
    power: float = 1.0
    center: bool = False
    bands: int = audio.BANDS
    lowest_hz: float = audio.LOWEST_HZ
    highest_hz: float = audio.HIGHEST_HZ
    mel_scale: str = "htk"
    norm: str | None = None
    triangles: str = "mel"
    log: str = "ln"
    offset: float = audio.OFFSET
    frames: int = audio.PATCH
    mean: float = 0.0
    std: float = 1.0

    AXES = {"waveform": "NT", "log-mel": "NTF"}

    def __post_init__(self):
        if self.input == "log-mel" and (
                self.fft < self.window or not 0 <= self.lowest_hz < self.highest_hz <= self.rate / 2):
            raise InputError(f"log-mel with window {self.window}, hop {self.hop}, fft {self.fft}, "
                             f"{self.lowest_hz:g} to {self.highest_hz:g} Hz at {self.rate} Hz; expected a window up to "
                             "fft, and frequencies from 0 to half the rate; fix the front end")
        if self.needed > LONGEST:
            raise InputError(f"the input has {self.needed:,} samples; expected at most {LONGEST:,}; fix the front end")

    @cached_property
    def filters(self):
        """(fft // 2 + 1, bands) float64."""
        from transformers.audio_utils import mel_filter_bank
        return mel_filter_bank(self.fft // 2 + 1, self.bands, self.lowest_hz, self.highest_hz, self.rate, self.norm,
                               self.mel_scale, self.triangles == "mel")

    @property
    def needed(self):
        """Samples per input."""
        if self.input == "waveform":
            return self.samples or self.rate
        return (self.frames - 1) * self.hop + (self.window % 2 if self.center else self.window)

    def __call__(self, wave):
        """Convert a waveform (N,) at `rate`, full scale 1, to (samples,) or (frames, bands) float64."""
        wave = np.pad(wave[:self.needed], (0, max(0, self.needed - len(wave))))
        if self.input == "log-mel":
            wave = np.pad(wave, self.window // 2, mode="reflect") if self.center else wave
            frames = sliding_window_view(wave, self.window)[::self.hop][:self.frames] * hann(self.window, sym=False)
            wave = LOGS[self.log](np.abs(np.fft.rfft(frames, self.fft)) ** self.power @ self.filters + self.offset)
        return (wave - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class PictureFront(Network):
    """Converts a frame to the network's input.

    Attributes:
        size: pixels of a side, or [height, width]; None for the size that the network declares, else 224.
        resize: "stretch" both sides to the size; or "crop", which resizes the shorter side to `shorter` and takes the
            center.
        shorter: pixels; None for the size's shorter side.
        filter: "bilinear" or "bicubic", with antialiasing.
        colors: "RGB" or "BGR".
        white: the value that 255 is scaled to before mean and std: 1 or 255.
        mean, std: one number, or one per color; None keeps 8-bit values.
    """

    size: int | list | None = None
    resize: str = "stretch"
    shorter: int | None = None
    filter: str = "bilinear"
    colors: str = "RGB"
    white: float = 1.0
    mean: float | list | None = None
    std: float | list | None = None

    def resized(self, rgb):
        """Resize a frame (H, W, 3) uint8 to `size`, which must be set: (h, w, 3) uint8."""
        height, width = self.size
        image, resample = Image.fromarray(np.ascontiguousarray(rgb)), FILTERS[self.filter]
        if self.resize == "stretch":
            return np.asarray(image.resize((width, height), resample))
        factor = max((self.shorter or min(height, width)) / min(image.size), height / image.height,
                     width / image.width)
        image = image.resize((max(width, round(image.width * factor)), max(height, round(image.height * factor))),
                             resample)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def __call__(self, frames):
        """Stack resized frames: (N, h, w, 3) uint8, or float32 with mean and std."""
        x = np.stack(frames)
        x = x[..., ::-1] if self.colors == "BGR" else x
        if self.mean is None:
            return x
        return (x.astype(np.float32) * np.float32(self.white / 255) - np.float32(self.mean)) / np.float32(self.std)


@dataclass(frozen=True, kw_only=True)
class TextFront(Network):
    """Front end for sentences.

    Attributes:
        tokenizer: folder of a transformers tokenizer; None for the ONNX file's folder.
    """

    tokenizer: str | None = None


FRONTS = {"audio": SoundFront, "video": PictureFront, "text": TextFront}


def _is_kind(value, annotation):
    """Whether a JSON value has a field's type, given as text such as "int | None"."""
    names = annotation.split(" | ")
    if value is None:
        return "None" in names
    if isinstance(value, bool):
        return "bool" in names
    if isinstance(value, list):
        return "list" in names and len(value) in (2, 3) and all(
            isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)
    if isinstance(value, str):
        return "str" in names
    return "float" in names or isinstance(value, int) and "int" in names


def described(values, modality, source):
    """Build a front end from JSON values.

    Args:
        values: key -> value.
        modality: "audio", "video" or "text".
        source: file or flag, for messages.
    Raises:
        InputError: an unknown key, or a value of the wrong type or out of range.
    """
    kind = FRONTS[modality]
    known = {field.name: field.type.__name__ if isinstance(field.type, type) else str(field.type)
             for field in fields(kind)}
    if not isinstance(values, dict):
        raise InputError(f"{source}: not a JSON object; expected keys such as {', '.join(list(known)[6:9])}")
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{source}: unknown key {str(key)[:40]!r}; the keys of a front end for {modality} are "
                             f"{', '.join(known)}; correct it")
        good = _is_kind(value, known[key]) and (key not in CHOICES or value in CHOICES[key])
        numbers = value if isinstance(value, list) else [value]
        if good and isinstance(numbers[0], (int, float)) and not isinstance(value, bool):
            good = all(np.isfinite(number) for number in numbers)
            if "int" in known[key].split(" "):
                good &= all(number == int(number) and 0 < number <= (
                    LIMITS.sound_rate if key in ("rate", "samples") else LARGEST) for number in numbers)
            if key in ("std", "scale", "offset"):
                good &= min(numbers) > 0
        if not good:
            choices = " or ".join(map(str, CHOICES[key])) if key in CHOICES else known[key].replace(" | ", " or ")
            raise InputError(f"{source}: {key} is {json.dumps(value)[:40]}; expected {choices}; correct it")
    if modality == "video" and (values.get("mean") is None) != (values.get("std") is None):
        raise InputError(f"{source}: only one of mean and std is given; expected both or neither; add the other")
    if modality == "video" and isinstance(values.get("size"), list) and len(values["size"]) != 2:
        raise InputError(f"{source}: size is {values['size']}; expected a number or [height, width]; correct it")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def beside(path):
    """Values of the JSON file next to an ONNX file; empty if there is no such file."""
    path = Path(path).with_suffix(".json")
    if not path.exists():
        return {}
    with readable(path):
        try:
            return json.loads(read_text_input(path, LIMITS.record_bytes))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON ({str(error)[:80]}); expected the front end of the ONNX file "
                             "next to it; correct it") from None


def read_flags(pairs):
    """Values of all --front-end MODALITY.KEY=VALUE: modality -> key -> JSON value, or text if it is not JSON."""
    found = {}
    for pair in pairs or ():
        name, is_pair, text = pair.partition("=")
        modality, _, key = name.partition(".")
        if modality not in FRONTS or not key or not is_pair:
            raise InputError(f"--front-end {pair}: expected MODALITY.KEY=VALUE, such as audio.rate=16000")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        found.setdefault(modality, {})[key] = value
    return found
