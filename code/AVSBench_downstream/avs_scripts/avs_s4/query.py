"""Query codes of a clip's audio or text: an adapter over time, then the frozen encoder (arXiv 2403.05168)."""

import torch
from torch import nn

from cmg.data.sets.avs_s4 import SECONDS

STEPS = 10                      # seconds per clip in pretraining, and words per sentence


class Adapter(nn.Linear):
    """Linear map over time from ten steps to five, shared by modalities and channels:
    y[b, s, d] = bias[s] + sum_t weight[s, t] x[b, t, d].

    Args:
        start: initialization. "torch" is that of PyTorch; "tied" the same with column t + 5 equal to column t;
            "resample" the mean of steps s and s + 5, which does not change repeated audio. In training on audio, which
            is repeated, columns t and t + 5 get equal gradients: their initial difference stays and affects only text.
    """

    def __init__(self, start="tied"):
        super().__init__(STEPS, SECONDS)
        with torch.no_grad():
            if start == "tied":
                self.weight[:, SECONDS:] = self.weight[:, :SECONDS]
            elif start == "resample":
                self.weight.copy_(torch.eye(SECONDS).repeat(1, STEPS // SECONDS) * SECONDS / STEPS)
                self.bias.zero_()
            elif start != "torch":
                raise ValueError(f"adapter start {start!r}")

    def forward(self, x):
        """(B, 10, d) -> (B, 5, d)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Query(nn.Module):
    """Query codes of clips. Only the adapter is trained, by straight-through gradients of the frozen codes.

    Args:
        encoder: FrozenEncoder (cmg/systems/base.py).
        adapter: Adapter, on the encoder's device.
        words: array (C, 10, 768) of word vectors of the class sentences; None without text.
        dropout: keep the encoder's dropout enabled, as in the published program (protocol "released").
        channels: (S,) int64 channels of the codes (cmg.models.toc.head_channels); None for all.
    """

    def __init__(self, encoder, adapter, words=None, dropout=False, channels=None):
        super().__init__()
        self.encoder, self.adapter, self.dropout, self.channels = encoder, adapter, dropout, channels
        self.train(False)
        self.sentences = None
        if words is not None:       # one sentence per class, encoded by the LSTM once
            with torch.no_grad():
                self.sentences = encoder.inputs("text", torch.as_tensor(words, device=self.device))

    @property
    def device(self):
        return self.adapter.weight.device

    @property
    def width(self):
        """Number of channels of the codes."""
        return self.encoder.head_dim if self.channels is None else len(self.channels)

    def train(self, mode=True):
        """Set the mode of the adapter. The encoder stays in evaluation mode, or in training mode with `dropout`."""
        self.adapter.train(mode)
        self.encoder.set_dropout(self.dropout)
        self.training = mode
        return self

    def forward(self, modality, batch):
        """Codes (B, 5, width) of a batch with "audio" (B, 5, 128) or "category" (B,) class numbers."""
        if modality == "text":
            inputs = self.sentences[batch["category"]]
        else:
            inputs = self.encoder.inputs(modality, batch[modality].repeat(1, STEPS // SECONDS, 1))
        own, theirs = self.adapter.weight.dtype, self.encoder.codebooks[0].dtype
        vectors = self.encoder.embed_inputs(modality, self.adapter(inputs.to(own)).to(theirs)).vectors
        return (vectors if self.channels is None else vectors[..., self.channels]).to(own)
