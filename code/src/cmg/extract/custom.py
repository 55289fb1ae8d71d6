"""Custom audio, video and text encoders: an ONNX file or a function of the user.

The output of an encoder must depend on its input only. A fixed probe is encoded at the start, alone and in a batch, and
again for every audio track and every `PROBE_EVERY` frames; an encoder whose output changes, for example because it is
in training mode, is rejected.
"""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from cmg.extract import audio, front_ends
from cmg.extract.functions import Failed, FunctionNetwork, as_array, is_spec
from cmg.extract.onnx import OnnxNetwork
from cmg.extract.video import GRID, SIDE
from cmg.utils.errors import InputError

PROBE_EVERY = 64                    # frames after which the probe is encoded again
TOLERANCE = 1e-3                    # allowed difference of two outputs, relative to the largest value


def is_custom(name):
    """Whether an encoder's name refers to an ONNX file or a function."""
    return callable(name) or str(name).endswith(".onnx") or is_spec(name)


class _CustomEncoder:
    """A network with its front end.

    Args:
        name: ONNX file, `module:function`, `file.py:function`, or a callable.
        device: torch device.
        values: front end, key -> JSON value; overrides the JSON file next to an ONNX file.
    """

    modality = None

    def __init__(self, name, device, values=None):
        self.name = str(name)
        self.is_function = callable(name) or not self.name.endswith(".onnx")
        stored = {} if self.is_function else front_ends.beside(name)
        source = self.name if values or self.is_function else Path(name).with_suffix(".json")
        given = {**stored, **(values or {})} if isinstance(stored, dict) else stored
        self.front = front_ends.described(given, self.modality, f"{source}: front end")
        self.given = set(given)
        self.network = FunctionNetwork(name) if self.is_function else OnnxNetwork(name, device, self.front.output)
        self.name, self.probe, self.output = str(self.network.path), None, None

    def _require_keys(self, *keys):
        missing = [key for key in keys if key not in self.given]
        if missing and not self.is_function:
            raise InputError(f"{self.name}: the front end lacks {', '.join(missing)}; add it to "
                             f"{Path(self.name).with_suffix('.json').name} next to the file, or pass --front-end "
                             f"{self.modality}.{missing[0]}=VALUE (code/docs/features.md)")

    def _run(self, x, axes):
        """The network's output for inputs (N, ...), whose axes are named."""
        if self.network.inputs:
            shape, dtype = self.network.main_input
            rank = len(shape) or None
        else:
            rank, dtype = None, x.dtype
        try:
            x = self.front.stored(self.front.arranged(x, axes, rank), dtype)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        parts = [self.network(x=part) if self.network.inputs else self.network(part)
                 for part in (x[k:k + self.front.batch] for k in range(0, len(x), self.front.batch))]
        if any(part.ndim < 2 or len(part) != min(self.front.batch, len(x) - k * self.front.batch)
               for k, part in enumerate(parts)):
            raise InputError(f"{self.name}: output of shape {parts[-1].shape} for input {x.shape}; expected one row "
                             "per item of the batch, (N, D) or with more axes; fix the encoder")
        if len({part.shape[1:] for part in parts}) > 1:
            raise InputError(f"{self.name}: outputs of shapes {parts[0].shape} and {parts[-1].shape}; expected the "
                             "same width; fix the encoder")
        return np.concatenate(parts).astype(np.float32)

    def _axes(self, output):
        """Letters of the axes of an output."""
        layout = self.front.output_layout or ("NC" if output.ndim == 2 else "")
        if len(layout) != output.ndim or layout[0] != "N" or "C" not in layout or len(set(layout)) != len(layout):
            raise InputError(f"{self.name}: output of shape {output.shape}, output_layout {layout!r}; expected one "
                             "letter per axis, such as NCHW or NTC; set output_layout in the front end")
        return layout

    def _vectors(self, output):
        """(N, D): the mean over all axes except N and C."""
        layout = self._axes(output)
        return output.mean(tuple(k for k, letter in enumerate(layout) if letter not in "NC"))

    def _set_probe(self, encode, probe, other):
        """Store the output for the probe; reject an encoder whose output depends on anything else."""
        try:
            self.probe, self.output = probe, encode([probe])
            self._require_same(encode([probe]), "again")
            self._require_same(encode([other, probe])[-1:], "in another batch", "set batch to 1 in the front end")
        except Failed as error:
            raise InputError(f"{error}; fix the encoder or its front end") from None

    def _require_same(self, output, when, remedy="use evaluation mode, without random numbers or state"):
        if output.shape != self.output.shape or not np.allclose(
                output, self.output, rtol=0, atol=TOLERANCE * max(float(np.abs(self.output).max()), 1e-30),
                equal_nan=True):
            raise InputError(f"{self.name}: the output for an input has shape {self.output.shape[1:]} and mean "
                             f"{float(self.output.mean()):.4g}, but {output.shape[1:]} and {float(output.mean()):.4g} "
                             f"when it is encoded {when}; expected the same output; {remedy}")

    def _require_unchanged(self, output):
        """Reject an encoder that changed during a run."""
        self._require_same(output, "later", "fix the encoder and pass --overwrite, because the features of this run "
                           "may differ")

    def _require_same_width(self, rows):
        if rows.shape[1:] != self.output.shape[1:]:
            raise InputError(f"{self.name}: output of shape {rows.shape[1:]}, but {self.output.shape[1:]} before; "
                             "expected the same width; fix the encoder")
        return rows

    def record(self):
        """JSON values for the record of a run."""
        usual = {field.name: field.default for field in fields(self.front)}
        front = {key: value for key, value in asdict(self.front).items()
                 if value != usual[key] or key in ("input", "rate", "size")}
        return {**self.network.source, "front_end": front, "width": int(self.output.shape[-1])}


class CustomSound(_CustomEncoder):
    """One vector per second of audio; each second is encoded separately."""

    modality, nearest_route, whole = "audio", False, False

    def __init__(self, name, device, values=None, resampler="r022"):
        super().__init__(name, device, values)
        self.resampler = resampler
        self._require_keys("input", *(["rate"] if self.front.input == "waveform" else []))
        if self.front.input == "waveform" and self.network.inputs and not self.front.samples:
            shape = self.network.main_input[0]
            self.front = replace(self.front, samples=shape[-1] if shape else None)
        rng = np.random.RandomState(0)
        noise = [(3000 * rng.standard_normal((audio.RATE, 1))).astype(np.int16) for _ in range(2)]
        self._set_probe(self._encode_waves, *(self._wave(second, audio.RATE) for second in noise))

    def _wave(self, samples, rate):
        wave = audio.resample(audio.mono(samples), rate, self.front.rate, self.resampler)
        return self.front(wave).astype(np.float32)

    def _encode_waves(self, inputs):
        return self._vectors(self._run(np.stack(inputs), self.front.AXES[self.front.input]))

    def encode(self, seconds, rate):
        """(T, width) float32; a last second shorter than 0.975 s gives no row."""
        self._require_unchanged(self._encode_waves([self.probe]))
        rows, waiting = [self.output[:0]], []
        for samples in seconds:
            if len(samples) * audio.RATE >= audio.NEEDED * rate:
                waiting.append(self._wave(samples, rate))
            if len(waiting) == self.front.batch:
                rows.append(self._require_same_width(self._encode_waves(waiting)))
                waiting = []
        return np.concatenate([*rows, self._require_same_width(self._encode_waves(waiting))] if waiting else rows)

    def record(self):
        return {**super().record(), "resampler": self.resampler}


class CustomPictures(_CustomEncoder):
    """One vector or 7 x 7 map per frame.

    Args:
        form: "map" or "vector".
    """

    modality = "video"

    def __init__(self, name, device, values=None, form="map"):
        super().__init__(name, device, values)
        self.form, self.since = form, 0
        shape, dtype = self.network.main_input if self.network.inputs else ([], np.dtype(np.uint8))
        if dtype != np.uint8:
            self._require_keys("mean", "std")
        size = self.front.size
        if size is None:
            layout = self.front.layout or "NCHW"
            size = [shape[layout.index(letter)] or SIDE for letter in "HW"] if len(shape) == len(layout) == 4 else SIDE
        layout = self.front.layout or ("NHWC" if self.is_function else "NCHW")
        self.front = replace(self.front, size=[size, size] if isinstance(size, int) else list(size), layout=layout)
        rng = np.random.RandomState(0)
        self._set_probe(self._encode, *(self.prepare(rng.randint(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(2)))

    def prepare(self, rgb):
        """(h, w, 3) uint8 in the network's input size."""
        return self.front.resized(rgb)

    def _encode(self, frames):
        output = self._run(self.front(frames), "NHWC")
        if self.form == "vector":
            return self._vectors(output)
        layout = self._axes(output)
        if sorted(layout) != sorted("NCHW"):
            raise InputError(f"{self.name}: output of shape {output.shape}, which is not a map; expected axes such as "
                             "NCHW; use --video-form vector, or select a map with output and output_layout")
        maps = torch.from_numpy(np.ascontiguousarray(output.transpose([layout.index(letter) for letter in "NCHW"])))
        return F.adaptive_avg_pool2d(maps, GRID).permute(0, 2, 3, 1).numpy()

    def encode(self, frames):
        """(N, 7, 7, width) or (N, width) float32."""
        self.since += len(frames)
        if self.since >= PROBE_EVERY:
            self.since = 0
            self._require_unchanged(self._encode([self.probe]))
        return self._require_same_width(self._encode(frames))

    def record(self):
        return {**super().record(), "form": self.form}


class CustomWords(_CustomEncoder):
    """Word vectors of sentences: a network's token vectors averaged over the pieces of each word, or the word vectors
    returned by a function."""

    modality, is_uncased_bert = "text", False
    WORDS = r"\w+|[^\w\s]"

    def __init__(self, name, device, values=None):
        super().__init__(name, device, values)
        self.tokenizer = None if self.is_function else self._open_tokenizer()
        self._set_probe(lambda texts: self.encode(texts)[-1][1][None], "a dog barks", "the sea")

    def _open_tokenizer(self):
        folder = Path(self.name).parent / (self.front.tokenizer or "")
        from transformers import AutoTokenizer
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True,
                                                      trust_remote_code=False)
        except Exception as error:  # noqa: BLE001   transformers raises OSError, ValueError, KeyError ...
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{folder}: no tokenizer ({reason[:120]}); expected tokenizer.json and "
                             "tokenizer_config.json; set 'tokenizer' in the front end to their folder") from None
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    def encode(self, sentences):
        """Word vectors of each sentence: list of (words, (n, width) float32)."""
        result = []
        for k in range(0, len(sentences), self.front.batch):
            texts = list(sentences[k:k + self.front.batch])
            if self.is_function:
                words = [re.findall(self.WORDS, text.lower()) for text in texts]
                result += zip(words, self._of_function(words))
            else:
                result += self._of_network(texts)
        return result

    def _of_function(self, words):
        """Word vectors from the function, which is not called for sentences without words."""
        asked = [of for of in words if of]
        arrays = [as_array(x, self.name) for x in self.network.run(asked)] if asked else []
        if len(arrays) != len(asked) or any(x.ndim != 2 or len(x) != len(of) for x, of in zip(arrays, asked)):
            raise InputError(f"{self.name}: arrays of shapes {[x.shape for x in arrays][:3]} for "
                             f"{[len(of) for of in asked][:3]} words; expected one row per word; fix the function")
        found = iter(arrays)
        return [next(found) if of else np.zeros((0, self.output.shape[-1]), np.float32) for of in words]

    def _of_network(self, texts):
        from cmg.extract.hub import word_vectors
        batch = self.tokenizer(texts, truncation=True, padding=True, return_tensors="np", return_offsets_mapping=True)
        lacking = [name for name in self.network.inputs if name not in batch]
        if lacking:
            raise InputError(f"{self.name}: needs {', '.join(lacking)}, which its tokenizer does not provide; expected "
                             f"inputs among {', '.join(batch)}; export it again")
        inputs = {name: batch[name].astype(dtype) for name, (_, dtype) in self.network.inputs.items()}
        states = self.network(**inputs)
        if states.ndim != 3:
            raise InputError(f"{self.name}: output of shape {states.shape}; expected token vectors (N, L, D); select "
                             "them with 'output' in the front end")
        states = torch.from_numpy(states.astype(np.float32))
        return [word_vectors(batch, n, text, x) for n, (text, x) in enumerate(zip(texts, states))]
