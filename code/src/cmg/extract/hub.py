"""Encoders from transformers, by name on the Hugging Face hub or from a folder: any vision, audio or text model.

Models are loaded through `AutoModel` with their own processor. The vector for a second or a word is the model's pooled
output if it has one (projected, in two-tower models such as CLIP), else the mean over its tokens; a map is the grid of
patch tokens, averaged to 7 x 7.
"""

import inspect
import json
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from cmg.data.pretrained import from_pretrained
from cmg.extract import audio
from cmg.extract.encoders import BATCH
from cmg.extract.video import GRID, SIDE
from cmg.utils.errors import InputError
from cmg.utils.files import sha256

PROCESSORS = {"vision": "AutoImageProcessor", "audio": "AutoFeatureExtractor", "text": "AutoTokenizer"}
INPUTS = {"vision": ("pixel_values",), "audio": ("input_values", "input_features"), "text": ("input_ids",)}
TOWERS = {"vision": ("vision_model", "vision_tower", "vision_encoder", "visual"),
          "audio": ("audio_model", "audio_tower", "audio_encoder", "speech_encoder"),
          "text": ("text_model", "text_encoder", "language_model")}
PROJECTED = {"vision": ("get_image_features",), "audio": ("get_audio_features", "get_audio_embeds"), "text": ()}
MASKS = ("attention_mask", "padding_mask", "input_features_mask", "input_values_mask")      # 0 at padding


class HubModel:
    """A model with its processor.

    Args:
        name: folder, or name on the hub.
        kind: "vision", "audio" or "text".
        device: torch device.
    Raises:
        InputError: no such model, or its input is of another kind.
    """

    def __init__(self, name, kind, device):
        import transformers
        self.name, self.kind, self.device = str(name), kind, device
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.processor = from_pretrained(getattr(transformers, PROCESSORS[kind]), self.name)
                model = from_pretrained(transformers.AutoModel, self.name, dtype=torch.float32)
        except InputError as error:
            raise InputError(f"{error}; see {_flag(kind)}") from None
        except Exception as error:  # noqa: BLE001   transformers raises OSError, ValueError, KeyError, ImportError ...
            raise InputError(f"{name}: no {kind} model found ({_reason(error)}); expected a folder with config.json, "
                             "weights and processor files, or a model name on the Hugging Face hub; see "
                             f"{_flag(kind)}") from None
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.revision = getattr(model.config, "_commit_hash", None) or _hash_of_weights(self.name)
        self.model = model.to(device).eval().requires_grad_(False)
        self.tower = _first(self.model, TOWERS[kind]) or self.model
        if self.tower.main_input_name not in INPUTS[kind]:
            raise InputError(f"{name}: the model's input is {self.tower.main_input_name}; expected a model that "
                             f"encodes {kind}; see {_flag(kind)}")
        self.width = None                       # length of a vector, determined from an example

    def _call(self, function, inputs):
        """Call a model or one of its methods with the inputs that it accepts; the mask is passed under its own name."""
        takes = inspect.signature(getattr(function, "forward", function)).parameters
        given = {key: value.to(self.device) for key, value in inputs.items() if key in takes}
        masks = [inputs[name] for name in MASKS if name in inputs]
        name = next((name for name in MASKS if name in takes), None)
        if masks and name and not given.keys() & set(MASKS):
            given[name] = masks[0].to(self.device)
        return function(**given)

    def _require_vectors(self, encode):
        """Width of the vectors for an example.

        Raises:
            InputError: the model and its processor cannot encode the example.
        """
        try:
            return int(encode().shape[-1])
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001   any model may fail in its own way
            raise InputError(f"{self.name}: this model of type {self.model.config.model_type} cannot encode an example "
                             f"({_reason(error)}); expected a model that encodes {self.kind}; choose another; see "
                             f"{_flag(self.kind)}") from None

    def pooled(self, inputs):
        """(N, width): the model's pooled output if it has one, else the mean over all tokens except padding."""
        projected = _first(self.model, PROJECTED[self.kind])
        if projected is not None:
            result = self._call(projected, inputs)
            return _rows(getattr(result, "pooler_output", result), inputs)
        result = self._call(self.tower, inputs)
        pooled = getattr(result, "pooler_output", None)
        if pooled is not None:
            return _rows(pooled.flatten(1), inputs)
        states = _states(result)
        if states.ndim == 4:                                            # a convolutional network: (N, C, h, w)
            return states.mean((2, 3))
        mask = next((inputs[name] for name in MASKS if name in inputs), None)
        if mask is None or mask.ndim != 2:
            return states.mean(1)
        mask = mask.to(self.device)
        mask = F.interpolate(mask[:, None].float(), size=states.shape[1], mode="nearest")[:, 0, :, None]
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)

    def grid(self, inputs):
        """(N, 7, 7, width): patch tokens, or the last feature map of a convolutional network."""
        states = _states(self._call(self.tower, inputs))
        if states.ndim == 3:
            size = getattr(self.tower.config, "patch_size", None)
            height, width = inputs["pixel_values"].shape[-2:]
            size = (size, size) if isinstance(size, int) else tuple(size or (0, 0))[-2:]
            rows, columns = (height // size[0], width // size[1]) if all(size) else (0, 0)
            before = states.shape[1] - rows * columns                   # [CLS] and register tokens
            if before < 0 or not rows:
                raise InputError(f"{self.name}: its {states.shape[1]} tokens do not form a grid; expected one token "
                                 "per patch; use --video-form vector")
            states = states[:, before:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(states, GRID).permute(0, 2, 3, 1)

    def record(self):
        """JSON values for the record of a run."""
        folder = Path(self.name).is_dir()
        return {"network": "transformers", "model": Path(self.name).name if folder else self.name,
                "type": self.model.config.model_type, "revision": self.revision, "width": self.width}


def _first(owner, names):
    """The first of these attributes that is not None, else None."""
    return next((found for name in names if (found := getattr(owner, name, None)) is not None), None)


def _states(result):
    """The last hidden state of a model's output."""
    states = getattr(result, "last_hidden_state", None)
    if states is None:
        raise ValueError(f"its output {type(result).__name__} has no last_hidden_state")
    return states


def _rows(vectors, inputs):
    """Vectors (N, D), one per input; tokens (N, L, D) are averaged."""
    count = len(next(iter(inputs.values())))
    if not isinstance(vectors, torch.Tensor) or vectors.ndim not in (2, 3) or len(vectors) != count:
        raise ValueError(f"its pooled output {getattr(vectors, 'shape', type(vectors).__name__)} is not one vector per "
                         "input")
    return vectors.mean(1) if vectors.ndim == 3 else vectors


def _reason(error):
    """First line of an exception's message, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__


def _flag(kind):
    return {"vision": "--video-encoder", "text": "--text-encoder (--model of prepare.py text)"}.get(
        kind, f"--{kind}-encoder")


def _hash_of_weights(name):
    """SHA-256 of a folder's weight files, in order of their names."""
    return sha256(*sorted([*Path(name).glob("*.safetensors"), *Path(name).glob("*.bin")]))


class HubSound(HubModel):
    """One vector per second of audio; each second is encoded separately, at the model's own sample rate."""

    nearest_route = whole = False

    def __init__(self, name, device, resampler="r022"):
        super().__init__(name, "audio", device)
        self.rate, self.resampler = getattr(self.processor, "sampling_rate", audio.RATE), resampler
        asked = {"sampling_rate": self.rate, "return_attention_mask": True}
        takes = inspect.signature(self.processor).parameters.values()
        is_open = any(argument.kind is argument.VAR_KEYWORD for argument in takes)
        names = {argument.name for argument in takes}
        self.arguments = {name: value for name, value in asked.items() if is_open or name in names}
        self.width = self._require_vectors(lambda: self.encode([np.zeros((audio.RATE, 1), np.int16)], audio.RATE))

    def encode(self, seconds, rate):
        """(T, width) float32; a last second shorter than 0.975 s gives no row."""
        waves = (audio.resample(audio.mono(samples), rate, self.rate, self.resampler).astype(np.float32)
                 for samples in seconds if len(samples) * audio.RATE >= audio.NEEDED * rate)
        rows = []
        while part := list(islice(waves, BATCH)):
            batch = [np.pad(wave, (0, max(0, self.rate - len(wave)))) for wave in part]
            inputs = self.processor(batch, return_tensors="pt", **self.arguments)
            with torch.inference_mode():
                rows.append(self.pooled(inputs).float().cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)

    def record(self):
        return {**super().record(), "resampler": self.resampler, "rate": self.rate}


class HubPictures(HubModel):
    """One vector or 7 x 7 map per frame.

    Args:
        form: "map" or "vector".
    """

    def __init__(self, name, device, form="map"):
        super().__init__(name, "vision", device)
        self.form = form
        self.width = self._require_vectors(lambda: self.encode([self.prepare(np.zeros((SIDE, SIDE, 3), np.uint8))]))

    def prepare(self, rgb):
        """Run the model's processor on a frame: (3, H, W) float32."""
        return np.asarray(self.processor(images=np.ascontiguousarray(rgb), return_tensors="np",
                                         input_data_format="channels_last")["pixel_values"][0], np.float32)

    def encode(self, frames):
        """(N, 7, 7, width) or (N, width) float32."""
        inputs = {"pixel_values": torch.from_numpy(np.stack(frames))}
        with torch.inference_mode():
            result = self.grid(inputs) if self.form == "map" else self.pooled(inputs)
        return result.float().cpu().numpy()

    def record(self):
        return {**super().record(), "form": self.form}


class HubText(HubModel):
    """Word vectors of sentences: the last layer's tokens, averaged over the pieces of each word."""

    def __init__(self, name, device):
        super().__init__(name, "text", device)
        if not self.processor.is_fast:
            raise InputError(f"{name}: its tokenizer does not map pieces to words; expected a fast tokenizer "
                             "(tokenizer.json); choose another model")
        if self.processor.pad_token is None:
            self.processor.pad_token = self.processor.eos_token
        self.width = self._require_vectors(lambda: self.encode(["a"])[0][1])

    @property
    def is_uncased_bert(self):
        """Whether it is an uncased BERT, whose words the published program splits and joins in its own way."""
        backend = json.loads(self.processor.backend_tokenizer.to_str())
        lowers = bool((backend.get("normalizer") or {}).get("lowercase"))
        return self.model.config.model_type == "bert" and backend["model"]["type"] == "WordPiece" and lowers

    def encode(self, sentences):
        """Word vectors of each sentence: list of (words, (n, width) float32)."""
        result = []
        for k in range(0, len(sentences), BATCH):
            texts = list(sentences[k:k + BATCH])
            batch = self.processor(texts, truncation=True, padding=True, return_tensors="pt",
                                   return_offsets_mapping=True)
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
            with torch.inference_mode():
                states = _states(self._call(self.tower, inputs)).float().cpu()
            result += [word_vectors(batch, n, text, x) for n, (text, x) in enumerate(zip(texts, states))]
        return result


def word_vectors(batch, n, text, states):
    """Words of sentence `n` in a tokenizer's batch, and the mean of their pieces' states (L, width): (words, width)."""
    pairs = [(word, k) for k, word in enumerate(batch.word_ids(n)) if word is not None]
    words, vectors = [], []
    for word in dict.fromkeys(word for word, _ in pairs):
        pieces = [k for other, k in pairs if other == word]
        first, last = int(batch["offset_mapping"][n, pieces[0], 0]), int(batch["offset_mapping"][n, pieces[-1], 1])
        words.append(text[first:last].strip().lower())
        vectors.append(states[pieces].mean(0).numpy())
    return words, np.stack(vectors) if vectors else np.zeros((0, states.shape[-1]), np.float32)
