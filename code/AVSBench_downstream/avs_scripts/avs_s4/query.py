"""From a clip's sound or sentence to query codes: adapter over time, then frozen encoder (spec/avs.md section 3)."""

import torch
from torch import nn

from model.toc import head_channels

SECONDS, STEPS = 5, 10          # of a clip here; of a clip in pretraining, and words of a sentence


class Adapter(nn.Linear):
    """y[b, s, d] = bias[s] + sum_t weight[s, t] x[b, t, d]: ten steps to five, shared by modalities and channels.

    Args:
        start: "torch", PyTorch's start; "tied", the same with column t + 5 equal to column t; "resample", the mean of
            steps s and s + 5, so that a repeated sound passes unchanged. Trained on sound, which is repeated, columns t
            and t + 5 get equal gradients: what they differ by at the start stays, and acts on sentences only.
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
    """Query codes of clips. Only the adapter learns; gradient reaches it straight through the frozen codes.

    Args:
        encoder: frozen encoder (engine/checkpoint.py).
        adapter: Adapter.
        words: (C, 10, 768) word vectors of the class sentences; None where no text is used.
        dropout: keep the encoder's dropout on, as the published program does (protocol "released").
        selection: model.toc.Selection of the code channels that the network sees; None for all.
    """

    def __init__(self, encoder, adapter, words=None, dropout=False, selection=None):
        super().__init__()
        self.encoder, self.adapter, self.dropout = encoder, adapter, dropout
        self.channels = head_channels(encoder.codebooks, selection)
        self.train(False)
        with torch.no_grad():       # one sentence a class: through the LSTM once, not once a batch
            self.sentences = None if words is None else encoder.text_lstm(words)[0]

    @property
    def width(self):
        """Channels of the codes that `forward` gives."""
        return self.encoder.head_dim if self.channels is None else len(self.channels)

    def train(self, mode=True):
        """The adapter follows `mode`; the encoder stays in evaluation mode (or in training mode, if released)."""
        self.adapter.train(mode)
        self.encoder.train(self.dropout)
        self.training = mode
        return self

    def forward(self, modality, batch):
        """Codes (B, 5, width) of a batch with "audio" (B, 5, 128) or "category" (B,) class numbers."""
        if modality == "audio":
            features = batch["audio"].repeat(1, STEPS // SECONDS, 1)
        else:
            features = self.sentences[batch["category"]]
        parameter = self.adapter.weight
        codes = self.encoder.embed_features(modality, self.adapter(features.to(parameter.dtype)).to(self.encoder.dtype))
        vectors = codes.vectors if self.channels is None else codes.vectors[..., self.channels]
        return vectors.to(parameter.dtype)
