"""VGGish, VGG-19 up to its fifth pooling layer, their inputs, and VGGish's PCA.

Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017); Simonyan and Zisserman, "Very
Deep Convolutional Networks" (ICLR 2015). Parameter names follow the PyTorch ports of both (`features.N`,
`embeddings.N`). Widths come from the weights, so tests can use narrow networks.
"""

import numpy as np
import torch
from torch import nn

VGGISH_BLOCKS, VGG19_BLOCKS = (1, 1, 2, 2), (2, 2, 4, 4, 4)         # convolutions before each pooling
CAFFE_MEAN = (103.939, 116.779, 123.68)     # blue, green, red
TORCHVISION_MEAN, TORCHVISION_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # red, green, blue


def convolution_keys(blocks):
    """Keys of the convolutions: `features.N`, where N counts convolutions, ReLUs and poolings as in torchvision."""
    keys, at = [], 0
    for block in blocks:
        keys += [f"features.{at + 2 * k}" for k in range(block)]
        at += 2 * block + 1
    return keys


def _convolutions(blocks, inputs, widths):
    layers, widths = [], iter(widths)
    for block in blocks:
        for _ in range(block):
            width = next(widths)
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGGish(nn.Module):
    """VGGish from log-mel patches to embeddings.

    Args:
        widths: output channels of the six convolutions and the three linear layers.
    """

    def __init__(self, widths=(64, 128, 256, 256, 512, 512, 4096, 4096, 128)):
        super().__init__()
        self.features = _convolutions(VGGISH_BLOCKS, 1, widths[:6])
        linear, inputs = [], 6 * 4 * widths[5]
        for width in widths[6:]:
            linear += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.embeddings = nn.Sequential(*linear)

    def forward(self, patches, pre_relu=False):
        """(N, 96, 64) log-mel -> (N, 128) >= 0, or the values before the last ReLU."""
        x = self.features(patches[:, None])                             # (N, C, 6, 4): time, band
        x = x.permute(0, 2, 3, 1).flatten(1)                            # time, band, channel, as TensorFlow flattens
        return self.embeddings[:-1](x) if pre_relu else self.embeddings(x)


class VGG19(nn.Module):
    """The convolutions of VGG-19 without batch normalization, up to the fifth pooling.

    Args:
        widths: output channels of the sixteen convolutions.
    """

    def __init__(self, widths=(64, 64, 128, 128) + (256,) * 4 + (512,) * 8):
        super().__init__()
        self.features = _convolutions(VGG19_BLOCKS, 3, widths)

    def forward(self, x):
        """(N, 3, 224, 224), preprocessed -> (N, 7, 7, 512) >= 0, channels last."""
        return self.features(x).permute(0, 2, 3, 1)


def caffe_input(frames):
    """(N, 224, 224, 3) uint8 RGB -> (N, 3, 224, 224) float32: BGR minus the mean, no scaling (Simonyan's model)."""
    x = frames.flip(-1).float() - torch.tensor(CAFFE_MEAN, device=frames.device)
    return x.permute(0, 3, 1, 2)


def torchvision_input(frames):
    """(N, 224, 224, 3) uint8 RGB -> (N, 3, 224, 224) float32: torchvision's normalization."""
    mean, deviation = (torch.tensor(x, device=frames.device) for x in (TORCHVISION_MEAN, TORCHVISION_DEVIATION))
    return ((frames.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def pca(embeddings, vectors, means):
    """AudioSet's PCA of VGGish embeddings before the last ReLU: vectors @ (embedding - means).

    Args:
        embeddings: (N, D).
        vectors: (D, D), `pca_eigen_vectors`.
        means: (D,) or (D, 1), `pca_means`.
    Returns:
        (N, D) float64.
    """
    embeddings, vectors, means = (np.asarray(x, np.float64) for x in (embeddings, vectors, means))
    return (embeddings - means.reshape(-1)) @ vectors.T


def quantize(x):
    """AudioSet's quantization: clipped to -2..2, scaled to 0..255, truncated as in TensorFlow's program."""
    return ((np.clip(x, -2, 2) + 2) * 63.75).astype(np.uint8)
