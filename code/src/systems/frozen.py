"""A pretrained encoder as downstream tasks use it: frozen, in evaluation mode, raw features in, codes out."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Codes:
    """Codes of a batch of one modality."""

    vectors: Tensor     # (B, T, head_dim); H-DCID: both levels' codes, level 1 first
    indices: Tensor     # (B, T) int64; H-DCID: (B, T, 2)


class FrozenEncoder(nn.Module):
    """The encoder of a checkpoint without gradients of its own.

    Attributes:
        config: widths and modalities of the system.
        epoch: epoch of the checkpoint, None if it was never trained.
    """

    def __init__(self, encoder, epoch=None):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.config = encoder.config
        self.epoch = epoch
        self.eval()

    @property
    def head_dim(self):
        """Width of the vectors that `embed` gives."""
        return self.config.code_dim * self.config.num_levels

    @property
    def codebooks(self):
        """Code vectors of every level, (K, D) each."""
        return [level.codebook.embedding for level in self.encoder.levels]

    @property
    def dtype(self):
        return self.codebooks[0].dtype

    def text_lstm(self, words):
        """Word vectors (B, 10, 768) -> text features (B, 10, 256), as nn.LSTM returns them."""
        return self.encoder.text_lstm(words.to(self.dtype))

    def embed(self, modality, x):
        """Codes of raw features: audio (B, T, 128), video (B, T, 7, 7, V), text (B, 10, 768) word vectors."""
        self._check(modality)
        with torch.no_grad():
            x = x.to(self.codebooks[0])
            return self.embed_features(modality, self.text_lstm(x)[0] if modality == "text" else x)

    def embed_features(self, modality, features):
        """As `embed` for text that went through the LSTM already, with a straight-through gradient to `features`."""
        self._check(modality)
        vectors, indices = [], []
        for number, level in enumerate(self.encoder.levels):
            chosen, index = level.codebook.lookup(level.semantic[modality](features))
            vectors.append(chosen)
            indices.append(index)
            if number + 1 < len(self.encoder.levels):
                features = level.specific[modality](features).pooled
        return Codes(torch.cat(vectors, -1), torch.stack(indices, -1) if len(indices) > 1 else indices[0])

    def _check(self, modality):
        if modality not in self.config.modalities:
            raise ValueError(f"this encoder was pretrained on {', '.join(self.config.modalities)}; no {modality}")
