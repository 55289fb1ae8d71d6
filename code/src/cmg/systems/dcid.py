"""DCID (Uni-Code): dual cross-modal information disentangling with a shared codebook (NeurIPS 2023, Figure 2).

The encoder is a stack of levels: one here, two in H-DCID (cmg/systems/h_dcid.py). A level encodes its inputs into
semantic and specific features and quantizes the semantic ones. Its objective holds the networks that only training
needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.losses import club
from cmg.losses.club import CLUB, BatchedCLUB, SufficientStats
from cmg.losses.cross_cpc import CrossCPC
from cmg.losses.info_nce import clip_pairs
from cmg.models.blocks import Blocks
from cmg.models.codebook import Codebook, Quantized, Reset
from cmg.models.config import in_order
from cmg.models.masking import mean_of_clips, squared_error, unmasked
from cmg.systems import base, settings
from cmg.systems.base import Codes, Losses, full_precision
from cmg.systems.settings import timed_modalities
from cmg.systems.state_dicts import dcid
from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS
from cmg.utils import dist

CLUB_ITERATIONS = 5                         # optimizer steps of the CLUB networks in each training step
CLUB_ORDER = ("video", "text", "audio")     # of the published program's CLUB networks and their permutations
VIDEO_AUDIO, AUDIO_VIDEO = ("video", "audio"), ("audio", "video")


def reset_of(options, is_on):
    """The `Reset` of a codebook (cmg/models/codebook.py) under these SharedCodebookOptions, "off" unless `is_on`."""
    return Reset(options.code_reset if is_on else "off", options.reset_after, options.reset_to)


# --------------------------------------------------------------------------------------------------------- the encoder
@dataclass
class LevelOutput:
    """Output of one level for a batch; dicts are keyed by modality."""

    inputs: dict            # targets of the reconstruction
    semantic: dict          # (B, T, D) before quantization
    specific: dict          # Specific
    quantized: Quantized
    mask: Tensor | None = None      # (B, T) mask of the seconds (cmg/models/masking.py)
    club: BatchedCLUB | None = None     # networks fitted to this pass


class Level(nn.Module):
    """Encoders and codebook of one level."""

    def __init__(self, config, semantic, specific):
        super().__init__()
        self.semantic = nn.ModuleDict(semantic)
        self.specific = nn.ModuleDict(specific)
        self.codebook = Codebook(config.num_codes, config.code_dim)

    def forward(self, inputs, with_cmcm=True, mask=None, joint=()):
        """Encode and quantize `inputs`, modality -> features; returns a LevelOutput. `joint`: see
        `Codebook.forward`."""
        semantic = {m: self.encode_semantic(m, x, mask) for m, x in inputs.items()}
        specific = {m: self.specific[m](x) for m, x in inputs.items()}
        with full_precision(self.codebook.embedding):
            return LevelOutput(inputs, semantic, specific, self.codebook(semantic, with_cmcm, mask, joint), mask)

    def encode_semantic(self, modality, x, mask=None):
        """Semantic features (B, T, D) in the codebook's precision, even under autocast.

        Sentences that differ in one word may be closer than bf16 can resolve, so that two classes would share a code.
        The higher precision takes half a percent of the step time.
        """
        with full_precision(x):
            return self.semantic[modality](x.to(self.codebook.embedding.dtype), mask)

    def lookup(self, modality, x, mask=None):
        """(vectors, indices) of the codes that are nearest to the semantic features of one modality's inputs."""
        with full_precision(x):
            return self.codebook.lookup(self.encode_semantic(modality, x, mask))


def first_level(config):
    """Level 1, on the features themselves or, for tokens, on the output of their LSTM."""
    semantic, specific = {}, {}
    for modality in config.modalities:
        blocks = Blocks(config, modality)
        semantic[modality], specific[modality] = blocks.semantic(), blocks.specific()
    return Level(config, semantic, specific)


class Encoder(base.Encoder):
    """LSTMs of tokens, and the levels."""

    def __init__(self, config, levels):
        super().__init__(config)
        self.add_lstms()
        self.add_standardization()
        self.levels = nn.ModuleList(levels)

    @property
    def codebooks(self):
        return [level.codebook.embedding for level in self.levels]

    def features(self, batch):
        """`inputs` of all modalities; other entries of the batch are ignored."""
        return {m: self.inputs(m, batch[m]) for m in self.config.modalities}

    def forward(self, features, with_cmcm=True, mask=None, joint=(), up_to=None):
        """The LevelOutput of each level (only of the first `up_to`, if given), given `features(batch)`."""
        outputs = []
        for level in self.levels[:up_to]:
            outputs.append(level(features, with_cmcm, mask, joint))
            features = {m: s.pooled for m, s in outputs[-1].specific.items()}
        return outputs

    def embed_inputs(self, modality, inputs, mask=None):
        vectors, indices = [], []
        for number, level in enumerate(self.levels):
            nearest, assigned = level.lookup(modality, inputs, mask)
            vectors.append(nearest)
            indices.append(assigned)
            if number + 1 < len(self.levels):
                inputs = level.specific[modality](inputs).pooled
        return Codes(torch.cat(vectors, -1), torch.stack(indices, -1) if len(indices) > 1 else indices[0])


# ---------------------------------------------------------------------------------------------------------- the losses
class Objective(nn.Module):
    """The networks of one level that only its losses use: Cross-CPC, CLUB and the decoders."""

    def __init__(self, config, decoder, accuracy_over="targets"):
        super().__init__()
        width = config.code_dim
        self.cpc = CrossCPC(config.modalities, width, accuracy_over)
        self.club = nn.ModuleDict({m: CLUB(width, config.pooled_dim(m), config.club_hidden) for m in config.modalities})
        self.decoders = nn.ModuleDict({m: decoder(config, m) for m in config.modalities})

    @property
    def club_order(self):
        return in_order(self.club, CLUB_ORDER)

    def clubs(self):
        """The CLUB networks as one BatchedCLUB, in `club_order`."""
        return BatchedCLUB([self.club[m] for m in self.club_order])

    def stats(self, output):
        """SufficientStats for fitting the CLUB networks, without gradient."""
        quantized = output.quantized
        return SufficientStats.of(quantized.codes, self._stacked(quantized.indices), self._pooled(output).detach(),
                                  output.mask)

    def reconstruct(self, output):
        """modality -> reconstruction of the level's inputs."""
        return {m: self.decoders[m](output.quantized.vectors[m], output.specific[m].full) for m in self.decoders}

    def forward(self, output, reconstructed, rng, with_club, with_cpc):
        """`Losses` of the level (NeurIPS 2023, section 3)."""
        vectors, recon, terms = output.quantized.vectors, {}, {}
        for m, y in reconstructed.items():
            target = output.inputs[m].to(vectors[m].dtype)
            error = squared_error(y.to(target.dtype), target, output.mask)
            recon[m] = dist.mean(error, output.mask)
        terms = {"recon": recon, "commit": output.quantized.commitment}
        if with_club:
            codes = self._stacked(vectors)
            whole = dist.global_batch_size(codes[0])
            orders = torch.stack([rng.permutation(whole) for _ in codes]).to(codes.device, non_blocking=True)
            bounds = (output.club or self.clubs()).upper_bounds(codes, self._pooled(output), orders, output.mask)
            terms["club"] = dict(zip(self.club_order, bounds))
        metrics = output.quantized.metrics
        if with_cpc:
            seconds = min(z.shape[1] for z in output.semantic.values())
            prediction = self.cpc(output.semantic, rng.second(seconds), output.mask)
            terms["cpc"] = prediction.loss
            metrics |= prediction.metrics
        terms["cmcm"] = output.quantized.cmcm
        return Losses(terms, metrics)

    def _stacked(self, of_modalities):
        return torch.stack([of_modalities[m] for m in self.club_order])

    def _pooled(self, output):
        """Pooled specific features of all modalities, (M, B, T, S), padded with zeros to one width."""
        pooled = {m: output.specific[m].pooled for m in self.club_order}
        width = max(x.shape[-1] for x in pooled.values())
        pooled = {m: F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for m, x in pooled.items()}
        return self._stacked(pooled).to(output.quantized.codes.dtype)


def first_decoder(config, modality):
    """Decoder of level 1, which reconstructs the features themselves or, for tokens, the output of their LSTM."""
    return Blocks(config, modality).decoder()


class DCID(settings.DCID, base.System):
    """One level of alignment."""

    KEY_RULES = dcid.KEY_RULES
    ORDER = CLUB_ORDER
    GROUPS = {
        "encoder.{m}_lstm.": LSTMS,
        "encoder.": ENCODER,
        "objectives.0.cpc.": "CPC_parameters",
        "objectives.0.decoders.": DECODER,
        "objectives.0.club.{m}.": "{M}_mi_net_parameters",
    }
    AUXILIARY = {"{M}_mi_net_parameters": "optimizer_{m}_mi_net"}
    # These follow no rule: they were chosen on the evaluation data.
    TOC_RELEASED = {
        "ave": {VIDEO_AUDIO: (224, 1, 1), AUDIO_VIDEO: (224, 1, 1)},
        "avvp": {VIDEO_AUDIO: (128, 3, 1), AUDIO_VIDEO: (128, 3, 1)},
        "ave_avvp": {VIDEO_AUDIO: (224, 1, 0), AUDIO_VIDEO: (196, 1, 0)},
        "ucf_vggsound": {VIDEO_AUDIO: (128, 1, 0), AUDIO_VIDEO: (224, 1, 0)},
    }

    def __init__(self, config):
        super().__init__(config)
        self.encoder = Encoder(config, self.levels())
        self.objectives = nn.ModuleList(self.level_objectives())
        self.initialized = [False] * len(self.encoder.levels)

    def levels(self):
        return [first_level(self.config)]

    def level_objectives(self):
        return [Objective(self.config, first_decoder)]

    def features(self, batch):
        return base.to_seconds(self.encoder.features(batch), self.config, batch.get("mask"))

    def encode(self, features, epoch):
        return self._levels(features, self.is_on("cmcm"))

    def _levels(self, features, with_cmcm, up_to=None):
        with self.autocast():
            return self.encoder(features, with_cmcm, features.mask, self.options.joint_modalities(self.config), up_to)

    def init_codebooks(self, features, epoch, rng):
        if self.options.codebook_init == "released":
            self.initialized = [True] * len(self.initialized)
        for number in range(len(self.encoder.levels)):
            if not self.initialized[number]:
                with self.evaluating():
                    outputs = self._levels(features, False, number + 1)
                self.encoder.levels[number].codebook.init_from_data(outputs[number].semantic, rng, features.mask)
                self.initialized[number] = True

    def update_codebooks(self, outputs, rng):
        teacher = self.options.mm_ema if self.is_on("mm_ema") else "own"
        reset = reset_of(self.options, self.is_on("reset"))
        for level, output in zip(self.encoder.levels, outputs):
            level.codebook.update_ema(output.semantic, output.quantized.indices, teacher, output.mask)
            level.codebook.expire_codes(self.codes_in_use(output.quantized.indices), rng, reset,
                                        {m: output.semantic[m] for m in timed_modalities(self.config)}, output.mask)

    def codes_in_use(self, indices):
        """Assigned codes, modality -> (B, T), that count as used for code resets."""
        return indices

    def training_pass(self, features, epoch, rng, auxiliary):
        """One encoder pass, and five optimizer steps of the CLUB networks on its outputs.

        With mi_forward="released" there are five passes with one such step each and a sixth for the losses, so the
        codebooks are updated six times.
        """
        levels = [n for n in range(len(self.objectives)) if self.is_trained(n, epoch)] if self.is_on("club") else []
        clubs = {n: self.objectives[n].clubs() for n in levels}
        for batched in clubs.values():
            batched.share_gradients()
        likelihoods, passes = {}, CLUB_ITERATIONS if clubs and self.options.mi_forward == "released" else 0
        for _ in range(passes):
            likelihoods = self.fit_auxiliary(clubs, self._pass(features, epoch, rng), auxiliary, 1)
        outputs = self._pass(features, epoch, rng)
        if not passes:
            likelihoods = self.fit_auxiliary(clubs, outputs, auxiliary, CLUB_ITERATIONS)
        for n, batched in clubs.items():
            outputs[n].club = batched
        return outputs, likelihoods

    def is_trained(self, level, epoch):
        """Whether the losses of a level are part of the total in an epoch."""
        return True

    def _pass(self, features, epoch, rng):
        outputs = self.encode(features, epoch)
        self.update_codebooks(outputs, rng)
        return outputs

    def fit_auxiliary(self, clubs, outputs, optimizer, iterations):
        """Fit the CLUB networks: maximum likelihood of the specific features given the codes."""
        found = club.fit(clubs, {n: self.objectives[n].stats(outputs[n]) for n in clubs}, optimizer, iterations)
        return {f"{m}_club{_suffix(n)}": value for n, values in found.items()
                for m, value in zip(self.objectives[n].club_order, values)}

    def losses(self, outputs, rng):
        """Losses of all levels in `outputs`; names of the second level's end in "_2"."""
        terms, metrics = {}, {}
        for number, output in enumerate(outputs):
            objective, suffix = self.objectives[number], _suffix(number)
            with self.autocast():
                reconstructed = objective.reconstruct(output)
            level = objective(output, reconstructed, rng, self.is_on("club"), self.is_on("cpc"))
            terms |= {kind + suffix: value for kind, value in level.terms.items()}
            metrics |= {name + suffix: value for name, value in level.metrics.items()}
        if self.weights(epoch=0).get("contrast"):
            terms["contrast"] = self._contrast_of_clips(outputs[0])
        return Losses(terms, metrics)

    def _contrast_of_clips(self, output):
        """`clip_pairs` of the mean semantic features of the batch's clips."""
        semantic = torch.stack(list(output.semantic.values()))                          # (M, B, T, D)
        with full_precision(semantic):
            means = dist.all_gather(mean_of_clips(semantic, output.mask).transpose(0, 1)).transpose(0, 1)
            return clip_pairs(means, means)

    @property
    def codebooks(self):
        return {_suffix(number): level.codebook for number, level in enumerate(self.encoder.levels)}

    def level_outputs(self, outputs):
        return {_suffix(number): output for number, output in enumerate(outputs)}

    def assigned_codes(self, outputs):
        return {_suffix(number): unmasked(output.quantized.indices, output.mask)
                for number, output in enumerate(outputs)}


def _suffix(level):
    return f"_{level + 1}" if level else ""
