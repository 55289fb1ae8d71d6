"""The frozen encoder in Python: `load` it, `embed` features, and `export` or `push` it."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmg.api.state import plain_torch
from cmg.checkpoints import hub
from cmg.systems.base import Codes, FrozenEncoder
from cmg.utils import arguments
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

Array: TypeAlias = Tensor | NDArray[Any]
FilePath: TypeAlias = str | PathLike[str]

BATCH = 64                      # clips encoded at once; results do not depend on it


class Encoder:
    """A frozen encoder, which maps the features of a clip to a code for every second.

    Attributes:
        modalities: names of the modalities that it was pretrained on.
        head_dim: width D of the vectors that `embed` returns.
        codebooks: code vectors (K, D) of every codebook, shared by all modalities.
        epoch: pretraining epoch, None for an untrained encoder.
        frozen: the underlying FrozenEncoder (cmg/systems/base.py).
        source: path of its weights; None for an untrained encoder.
    """

    def __init__(self, frozen: FrozenEncoder, source: Path | None = None) -> None:
        self.frozen, self.source = frozen, source

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.frozen.config.modalities

    @property
    def head_dim(self) -> int:
        return self.frozen.head_dim

    @property
    def codebooks(self) -> Sequence[Tensor]:
        return self.frozen.codebooks

    @property
    def epoch(self) -> int | None:
        return self.frozen.epoch

    def __repr__(self) -> str:
        return (f"<{self.frozen.system.label} encoder of {', '.join(self.modalities)}: "
                f"{' and '.join(str(len(codes)) for codes in self.codebooks)} codes, D = {self.head_dim}>")

    @plain_torch()
    def embed(self, modality: str, x: Array) -> Codes:
        """Encode clips.

        Args:
            modality: one of `modalities`.
            x: tensor or array (of any byte order and strides) of floating-point features with the sizes used in
                pretraining: vectors (B, T, W), maps (B, T, H, W, C), text (B, L, W) word vectors.

        Returns:
            `Codes` on the encoder's device: vectors (B, T, D), indices (B, T) int64, or (B, T, codebooks) if there are
            several codebooks.

        Raises:
            InputError: the encoder does not have this modality or width, or values are not finite.
        """
        x = self._checked(modality, x)
        parts = [self.frozen.embed(modality, part) for part in torch.split(x, BATCH)]
        return Codes(torch.cat([part.vectors for part in parts]), torch.cat([part.indices for part in parts]))

    @plain_torch()
    def embed_clips(self, modality: str, x: Array) -> Tensor:
        """One vector per clip, (B, D), for the same inputs as `embed`: the mean of its codes (FCID: the clip's
        code)."""
        x = self._checked(modality, x)
        return torch.cat([self.frozen.embed_clips(modality, part) for part in torch.split(x, BATCH)])

    def _checked(self, modality: str, x: Array) -> Tensor:
        if not isinstance(modality, str) or modality not in self.modalities:
            raise InputError(f"{str(modality)[:60]}: this encoder was pretrained on {', '.join(self.modalities)}")
        x = arguments.tensor(x, f"{modality} features")
        config = self.frozen.config
        given = x.shape[1 if config.kind(modality) == "tokens" else 2:]
        if not config.fits(modality, given) or not x.numel() or not x.is_floating_point():
            raise InputError(f"{modality} features of shape {tuple(x.shape)}, {str(x.dtype).removeprefix('torch.')}; "
                             f"expected {config.axes(modality)} floating-point numbers")
        if not (x.abs() < LIMITS.feature).all():
            raise InputError(f"{modality} features: some are NaN, infinite, or beyond {LIMITS.feature:g}; expected "
                             "finite features; fix or omit these clips")
        return x.to(self.codebooks[0])

    @plain_torch()
    def features_of(self, path: FilePath, audio: FilePath | Callable[..., Any] | None = None,
                    video: FilePath | Callable[..., Any] | None = None, seconds: int | None = None,
                    front_end: dict[str, dict[str, Any]] | None = None) -> dict[str, NDArray[np.float32]]:
        """Extract features of a video file, of the kind that the encoder was pretrained on.

        Args:
            path: anything that PyAV decodes.
            audio: "logmel", the file of VGGish's weights (the published features), an ONNX file, or a function (see
                code/docs/features.md); None skips this modality.
            video: "patches", the file of VGG-19's weights (the published features), an ONNX file, or a function.
            seconds: T; default: as in pretraining.
            front_end: modality -> key -> value, for an ONNX file or function.

        Returns:
            {"audio": (1, T, 128), "video": (1, T, 7, 7, V)} float32 arrays for `embed`, for the requested modalities.

        Raises:
            InputError: the video is missing, damaged, or has no audio or no picture; or the weights are not the
                expected ones.
        """
        from cmg.extract import clip, custom, encoders, weights  # imported here because it needs PyAV
        from cmg.extract.audio import FrontEnd
        from cmg.extract.video import random_filters
        if audio is None and video is None:
            raise InputError("features_of: no modality requested; pass audio, video or both, for example "
                             "audio=\"logmel\"")
        path = arguments.path(path, "features_of: path")
        if seconds is not None:
            seconds = arguments.integer(seconds, "features_of: seconds", 1, LIMITS.video_seconds)
        for name, given in (("audio", audio), ("video", video)):
            if given is not None and name not in self.modalities:
                raise InputError(f"features_of: {name}={given!r}; this encoder was pretrained on "
                                 f"{', '.join(self.modalities)}")
        device = self.codebooks[0].device
        sound: Any = None
        pictures: Any = None
        front_end = front_end or {}
        if custom.is_custom(audio):
            sound = custom.CustomSound(audio, device, front_end.get("audio"))
        elif audio is not None:
            sound = encoders.LogMelSound(FrontEnd()) if audio == "logmel" else encoders.VGGishSound(
                weights.read(audio, "vggish"), FrontEnd(), device)
        if custom.is_custom(video):
            form = "map" if self.frozen.config.kind("video") == "map" else "vector"
            pictures = custom.CustomPictures(video, device, front_end.get("video"), form)
        elif video is not None:
            channels = self.frozen.config.feature_dim("video")
            pictures = encoders.PatchPictures(random_filters(channels)) if video == "patches" else \
                encoders.VGG19Pictures(weights.read(video, "vgg19"), device)
        known = [found for name in ("audio", "video") if (found := (self.frozen.features or {}).get(name))]
        timing = clip.Timing.of(seconds or self.frozen.config.seconds, known[0] if known else {})
        found = clip.extract(path, Path(path).stem, timing, sound, pictures)
        if found.row.status == "unreadable" or found.problems:
            reasons = "; ".join(text for _, text in found.problems) or found.row.warning
            raise InputError(f"{path}: {reasons}; expected a video with the requested modalities")
        return {name: feature[None] for name, feature in (("audio", found.audio), ("video", found.video))
                if feature is not None}


@plain_torch()
def load(source: FilePath, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
         revision: str | None = None) -> Encoder:
    """Load the `Encoder` of a checkpoint or of a shared export.

    Args:
        source: a checkpoint file, published or ours; a folder written by `python -m cmg.checkpoints export`; or a name
            on the Hugging Face Hub, such as "somebody/dcid", which is downloaded once.
        device, dtype: device and dtype of the encoder.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: the file is missing or damaged, or could run code.
    """
    arguments.path(source, "load: source")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"load: dtype {dtype!s:.40}; expected torch.float32 or another floating-point type")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).cpu()         # no such device here, or "meta"
    except (RuntimeError, TypeError, AttributeError, AssertionError):     # AssertionError: PyTorch lacks this backend
        raise InputError(f"load: device {device!s:.40}; expected \"cpu\" or a GPU that PyTorch can use on this "
                         "machine") from None
    file = hub.locate(source, revision)
    return Encoder(hub.load_encoder(file, device, dtype), file)


@plain_torch()
def export(checkpoint: FilePath, out: FilePath, results: Sequence[FilePath] = ()) -> list[Path]:
    """Export the encoder of a checkpoint for sharing: model.safetensors, config.json and a model card, README.md.

    Args:
        checkpoint: file, published or ours.
        out: folder to write, which `load` accepts, as it does its name on the Hub after an upload.
        results: results.jsonl files; rows of this checkpoint are included in the card.

    Returns:
        paths of the files.
    """
    from cmg.report import export as exporting
    return exporting.export(arguments.path(checkpoint, "export: checkpoint"), arguments.path(out, "export: out"),
                            arguments.paths(results, "export: results"))


@plain_torch()
def push(encoder: Encoder, name: str, private: bool = True, results: Sequence[FilePath] = ()) -> str:
    """Upload the files that `export` writes to the Hugging Face Hub, so that `load(name)` can load the encoder.

    Args:
        encoder: `Encoder` returned by `load`.
        name: such as "somebody/dcid"; the repository is created if it does not exist.
        private: visible only to its owner. A repository that is already public is refused.
        results: results.jsonl files; rows of its checkpoint are included in the model card. Do not pass them for an
            exported folder, whose card already has its results.

    Returns:
        URL of the repository.

    Raises:
        InputError: the encoder was not loaded from a file, or there is no token (`hf auth login`), permission or
            network.
    """
    from cmg.report import export as exporting
    source = encoder.source
    if source is None:
        raise InputError("push: this encoder was not loaded from a file; push one that cmg.load returned")
    with TemporaryDirectory() as folder:
        if source.suffix != ".safetensors":
            exporting.export(source, folder, results, name)
        elif results:
            raise InputError(f"{source.parent}: an exported folder, whose card already has its results; export the "
                             "checkpoint again with these results")
        else:
            exporting.copy(source.parent, folder, name)
        return hub.upload(folder, name, private)
