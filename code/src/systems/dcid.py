"""DCID (Uni-Code): dual cross-modal information disentangling over one codebook (NeurIPS 2023, Figure 2).

A system is a stack of levels. A level encodes its inputs into semantic and specific features and quantises the
semantic ones; its objective holds the networks that only training needs. DCID has one level, H-DCID (h_dcid.py) two.
From the batch to the losses everything is a dict over modalities.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from model.club import Club, Clubs, Evidence
from model.codebook import Codebook, Quantized
from model.collectives import ALONE
from model.config import CLUB_ORDER
from model.cross_cpc import CrossCPC
from model.decoders import LinearDecoder, VideoDecoder
from model.encoders import LinearSpecificEncoder, TemporalEncoder, VideoSemanticEncoder, VideoSpecificEncoder

LEVEL_SUFFIX = ("", "_2")       # of loss names, as in the published logs


@dataclass
class LevelOutput:
    """One level's view of a batch; dicts over modalities."""

    inputs: dict            # what the decoders reconstruct
    semantic: dict          # (B, T, D) before quantisation
    specific: dict          # Specific
    quantized: Quantized


@dataclass
class Losses:
    """Terms of one level's loss, and figures that are only reported."""

    terms: dict
    metrics: dict = field(default_factory=dict)


class Level(nn.Module):
    """Encoders and codebook of one level."""

    def __init__(self, config, semantic, specific):
        super().__init__()
        self.semantic = nn.ModuleDict(semantic)
        self.specific = nn.ModuleDict(specific)
        self.codebook = Codebook(config.num_codes, config.code_dim)

    def forward(self, inputs, with_cmcm=True):
        """Encode and quantise `inputs`, modality -> features.

        What becomes codes keeps its own precision under autocast: sentences that differ in one word are closer to each
        other than bf16 resolves, and two classes would share a code. It is half a percent of the work.
        """
        precise = partial(torch.autocast, self.codebook.embedding.device.type, enabled=False)
        with precise():
            semantic = {m: self.semantic[m](self._precise(x)) for m, x in inputs.items()}
        specific = {m: self.specific[m](x) for m, x in inputs.items()}
        with precise():
            return LevelOutput(inputs, semantic, specific, self.codebook(semantic, with_cmcm))

    def _precise(self, x):
        return x.to(self.codebook.embedding.dtype)


def first_level(config):
    """Level 1: audio and text by linear maps, video by convolutions (dcid.md 2)."""
    semantic, specific = {}, {}
    for modality in config.modalities:
        width = config.input_dim(modality, 0)
        is_video = modality == "video"
        semantic[modality] = VideoSemanticEncoder(config) if is_video else TemporalEncoder(config, width)
        specific[modality] = VideoSpecificEncoder(config) if is_video else LinearSpecificEncoder(width, config.code_dim)
    return Level(config, semantic, specific)


class Encoder(nn.Module):
    """Everything that a downstream task needs: the text LSTM and the levels."""

    def __init__(self, config, levels):
        super().__init__()
        self.config = config
        if "text" in config.modalities:
            self.text_lstm = nn.LSTM(config.text_dim, config.text_hidden, 2, batch_first=True, bidirectional=True)
        self.levels = nn.ModuleList(levels)

    def features(self, batch):
        """Inputs of level 1: audio (B, T, 128) and video (B, T, 7, 7, V) as they are, text (B, 10, 768) through
        its LSTM to (B, 10, 256); other entries of the batch are left out."""
        return {m: self.text_lstm(batch[m])[0] if m == "text" else batch[m] for m in self.config.modalities}

    def forward(self, features, depth=None, with_cmcm=True):
        """`features(batch)` -> a LevelOutput for each of the first `depth` levels (all by default)."""
        outputs = []
        for level in self.levels[:depth]:
            outputs.append(level(features, with_cmcm))
            features = {m: s.pooled for m, s in outputs[-1].specific.items()}
        return outputs


class Objective(nn.Module):
    """The networks of one level that only its losses use: Cross-CPC, CLUB and the decoders."""

    def __init__(self, config, level):
        super().__init__()
        width = config.code_dim
        self.together = ALONE
        self.cpc = CrossCPC(config.modalities, width)
        self.club = nn.ModuleDict({m: Club(width, config.pooled_dim(m), config.club_hidden) for m in config.modalities})
        self.decoders = nn.ModuleDict()
        for m in config.modalities:
            pooled = config.pooled_dim(m)
            if level == 0 and m == "video":
                self.decoders[m] = VideoDecoder(config)
            elif level == 0:
                self.decoders[m] = LinearDecoder(width, width, pooled, config.input_dim(m, 0))
            else:
                self.decoders[m] = LinearDecoder(width, pooled, pooled, pooled)

    @property
    def club_order(self):
        return [m for m in CLUB_ORDER if m in self.club]

    def clubs(self):
        """The CLUB networks side by side, in `club_order`."""
        return Clubs([self.club[m] for m in self.club_order], self.together)

    def evidence(self, output):
        """What the CLUB networks are fitted to: Evidence, without gradient."""
        quantized = output.quantized
        return Evidence.of(quantized.codes, self._stacked(quantized.indices), self._pooled(output).detach())

    def reconstruct(self, output):
        """modality -> reconstruction of the level's inputs."""
        return {m: self.decoders[m](output.quantized.vectors[m], output.specific[m].full) for m in self.decoders}

    def forward(self, output, reconstructed, draws, without=(), detach_targets=False, clubs=None):
        """All terms of the level's loss (dcid.md 6), and its reported figures; `clubs()` if they are there already."""
        vectors, terms = output.quantized.vectors, {}
        for m, y in reconstructed.items():
            target = output.inputs[m].to(vectors[m].dtype)
            error = F.mse_loss(y.to(target.dtype), target.detach() if detach_targets else target)
            terms[f"{m}_recon"] = self.together.average(error)
        terms |= {f"{m}_commit": loss for m, loss in output.quantized.commitment.items()}
        if "club" not in without:
            codes = self._stacked(vectors)
            whole = self.together.clips(codes[0])
            orders = torch.stack([draws.permutation(whole) for _ in codes]).to(codes.device, non_blocking=True)
            bounds = (clubs or self.clubs()).upper_bounds(codes, self._pooled(output), orders)
            terms |= {f"{m}_mi": bound for m, bound in zip(self.club_order, bounds)}
        metrics = {f"{m}_perplexity": p for m, p in output.quantized.perplexity.items()}
        metrics["equal_num"] = output.quantized.equal_num
        if "cpc" not in without:
            seconds = min(z.shape[1] for z in output.semantic.values())
            prediction = self.cpc(output.semantic, draws.second(seconds))
            terms["cpc"] = prediction.loss
            metrics |= {f"cpc_accuracy_{y[0]}_to_{x[0]}": a for (y, x), a in prediction.accuracy.items()}
        terms["cmcm"] = output.quantized.cmcm
        return Losses(terms, metrics)

    def _stacked(self, of_modalities):
        return torch.stack([of_modalities[m] for m in self.club_order])

    def _pooled(self, output):
        """Specific features of all modalities, (M, B, T, S): the narrower ones end in zeros."""
        pooled = {m: output.specific[m].pooled for m in self.club_order}
        width = max(x.shape[-1] for x in pooled.values())
        pooled = {m: F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for m, x in pooled.items()}
        return self._stacked(pooled).to(output.quantized.codes.dtype)


class DCID(nn.Module):
    """Encoder and objectives of one system; `build` makes it from a config."""

    def __init__(self, config, levels):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, levels)
        self.objectives = nn.ModuleList(Objective(config, number) for number in range(len(levels)))
