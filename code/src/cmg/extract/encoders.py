"""Encoders of seconds of audio and of frames: the published networks, and two that need no download.

An audio encoder has `nearest_route` (how the audio is to be decoded), `whole` (whether it keeps the whole clip in
memory), `encode(seconds, rate)` -> (T, width) and `record()`. A video encoder has `prepare(rgb)` for one frame,
`encode(list of prepared frames)` -> (N, ...) and `record()`. A record lists everything that the features depend on, as
JSON values. Encoders from transformers are in `hub`.
"""

import numpy as np
import torch

from cmg.extract import audio, networks, video

BATCH, CPU_BATCH = 16, 2            # patches or frames per forward pass; frames on a CPU


class VGGishSound:
    """VGGish embeddings, one per second of audio: the published audio features.

    Args:
        weights: `weights.Weights` of the network "vggish".
        front: `audio.FrontEnd`.
        device: torch device.
        pre_relu: return the values before the last ReLU, as Google's code since 2020; not the published features.
        pca: (vectors, means) of `weights.read_pca`, or None.
        as_bytes: AudioSet's quantization after the PCA: uint8.
    """

    def __init__(self, weights, front, device, pre_relu=False, pca=None, as_bytes=False):
        self.front, self.device, self.source = front, device, weights.record()
        self.pre_relu, self.pca, self.as_bytes = pre_relu, pca, as_bytes
        self.nearest_route, self.whole = front.route == "nearest", front.framing == "continuous"
        self.network = weights.build().to(device)

    def encode(self, seconds, rate):
        """(T, 128) float32, or uint8 with `as_bytes`."""
        rows = [np.zeros((0, self.network.embeddings[-2].out_features), np.float32)]
        with torch.inference_mode():
            rows += [self.network(torch.from_numpy(part).to(self.device), self.pre_relu).cpu().numpy()
                     for part in self.front.parts(seconds, rate, BATCH)]
        rows = np.concatenate(rows)
        if self.pca is not None:
            rows = networks.pca(rows, *self.pca)
        return networks.quantize(rows) if self.as_bytes else rows.astype(np.float32)

    def record(self):
        return {**self.source, **vars(self.front), "pre_relu": self.pre_relu, "pca": self.pca is not None,
                "bytes": self.as_bytes, "width": self.network.embeddings[-2].out_features}


class LogMelSound:
    """`audio.logmel_of_patches`: no network, no download."""

    def __init__(self, front):
        self.front, self.nearest_route = front, front.route == "nearest"
        self.whole = front.framing == "continuous"

    def encode(self, seconds, rate):
        """(T, 128) float32 >= 0."""
        rows = [audio.logmel_of_patches(part) for part in self.front.parts(seconds, rate)]
        return np.concatenate([np.zeros((0, 2 * audio.BANDS), np.float32), *rows])

    def record(self):
        return {"network": "logmel", **vars(self.front), "width": 2 * audio.BANDS}


class VGG19Pictures:
    """Output of VGG-19's fifth pooling layer: the published video features, if the weights are of kind `caffe`.

    Args:
        weights: `weights.Weights` of the network "vgg19"; their kind determines the preprocessing.
        device: torch device.
    """

    def __init__(self, weights, device):
        self.source, self.published, self.device = weights.record(), weights.published, device
        self.network = weights.build().to(device, memory_format=torch.channels_last)
        self.input = networks.torchvision_input if weights.kind == "torchvision" else networks.caffe_input

    def prepare(self, rgb):
        """(224, 224, 3) uint8."""
        return video.resize(rgb)

    def encode(self, frames):
        """(N, 7, 7, 512) float32."""
        with torch.inference_mode():
            return self.network(self.input(torch.from_numpy(np.stack(frames)).to(self.device))).cpu().numpy()

    def record(self):
        return {**self.source, "width": self.network.features[34].out_channels}


class PatchPictures:
    """`video.patches`: no network, no download.

    Args:
        filters: (192, C).
        kind: "random" or "pca", for the record.
    """

    def __init__(self, filters, kind="random"):
        self.filters, self.kind = filters, kind

    def prepare(self, rgb):
        """(224, 224, 3) uint8."""
        return video.resize(rgb)

    def encode(self, frames):
        """(N, 7, 7, C) float32."""
        return video.patches(frames, self.filters)

    def record(self):
        return {"network": "patches", "filters": self.kind, "width": self.filters.shape[1]}


class StillPictures:
    """The frames themselves, 224 x 224: the input of AVSBench's segmentation."""

    prepare = staticmethod(video.resize)

    def encode(self, frames):
        """(N, 224, 224, 3) uint8."""
        return np.stack(frames)

    def record(self):
        return {"network": "frames", "width": 3}


IN_PROCESSES = (LogMelSound, PatchPictures, StillPictures)      # NumPy only: they may run in worker processes
