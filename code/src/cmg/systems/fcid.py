"""FCID: fine alignment of audio and video by second, coarse alignment of clips by one codebook (ACL 2025 Findings)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.losses import club
from cmg.losses.club import CLUB, BatchedCLUB, SufficientStats
from cmg.losses.cross_cpc import CrossCPC
from cmg.losses.info_nce import info_nce
from cmg.models.blocks import Blocks
from cmg.models.codebook import Codebook, Quantized
from cmg.models.config import in_order
from cmg.models.decoders import LinearDecoder
from cmg.models.masking import mean_of_clips, squared_error
from cmg.systems import base, dcid, settings
from cmg.systems.base import Codes, Losses, full_precision
from cmg.systems.dcid import AUDIO_VIDEO, CLUB_ITERATIONS, VIDEO_AUDIO
from cmg.systems.settings import FCID_ORDER, PAIR, timed_modalities
from cmg.systems.state_dicts import fcid
from cmg.systems.state_dicts.rules import DECODER, ENCODER
from cmg.utils import dist


@dataclass
class Output:
    """Output of one pass; dicts are keyed by modality."""

    inputs: dict            # features of the data
    semantic: dict          # (B, T, D)
    specific: dict          # Specific, of modalities with seconds
    clips: dict             # (B, D) projected means over time
    general: dict           # (B, 1, D), not negative, in the order of the EMA; input of the codebook
    private: dict           # (B, D), not negative
    quantized: Quantized
    mask: Tensor | None = None      # (B, T) mask of the seconds (cmg/models/masking.py); tokens have none
    clubs: dict | None = None       # networks that were fitted to this pass, as in `FCID.clubs`


class ClipEncoder(nn.Module):
    """Projection of a clip's mean features, and its general and specific parts; modalities with seconds share one
    encoder."""

    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(width, width)
        self.general = nn.Linear(width, width)
        self.specific = nn.Linear(width, width)

    def to_general(self, x):
        """Semantic features (..., D) -> general features (..., D), the input of the codebook."""
        return F.relu(self.general(self.project(x)))


class Encoder(base.Encoder):
    """Semantic and specific encoders of seconds, encoders of clips, and the codebook."""

    def __init__(self, config):
        super().__init__(config)
        self.add_standardization()
        width = config.code_dim
        self.semantic = nn.ModuleDict({m: Blocks(config, m).semantic() for m in config.modalities})
        self.specific = nn.ModuleDict({m: Blocks(config, m).specific() for m in config.modalities if m in config.fine})
        self.clip = nn.ModuleDict({name: ClipEncoder(width) for name in config.clip_encoders})
        self.codebook = Codebook(config.num_codes, width)

    @property
    def codebooks(self):
        return [self.codebook.embedding]

    def encode_semantic(self, modality, x, mask=None):
        """Semantic features (B, T, D) in the codebook's precision, even under autocast (see cmg/systems/dcid.py)."""
        with full_precision(x):
            return self.semantic[modality](x.to(self.codebook.embedding.dtype), mask)

    def forward(self, features, with_cmcm=True, mask=None, joint=()):
        """The `Output` for `features`, modality -> features of the data."""
        masks = {m: None if self.config.kind(m) == "tokens" else mask for m in features}
        semantic = {m: self.encode_semantic(m, x, masks[m]) for m, x in features.items()}
        specific = {m: encoder(features[m]) for m, encoder in self.specific.items()}
        with full_precision(self.codebook.embedding):
            clips, general, private = {}, {}, {}
            for m in in_order(semantic, FCID_ORDER):
                encoder = self.clip[self.config.clip_encoder(m)]
                clips[m] = encoder.project(mean_of_clips(semantic[m], masks[m]))    # text: over all word positions
                general[m] = F.relu(encoder.general(clips[m])).unsqueeze(1)
                private[m] = F.relu(encoder.specific(clips[m]))
            quantized = self.codebook(general, with_cmcm, joint=joint)
        return Output(features, semantic, specific, clips, general, private, quantized, mask)

    def embed_inputs(self, modality, inputs, mask=None):
        """Codes of single seconds: each second is treated as a clip, after the semantic encoder has processed the whole
        clip."""
        return self._codes(modality, self.encode_semantic(modality, inputs, mask))

    def embed_clips(self, modality, inputs, mask=None):
        """One code per clip, assigned to the mean over its seconds, as in training."""
        means = mean_of_clips(self.encode_semantic(modality, inputs, mask), mask)
        return self._codes(modality, means.unsqueeze(1)).vectors.squeeze(1)

    def _codes(self, modality, semantic):
        with full_precision(semantic):
            return Codes(*self.codebook.lookup(self.clip[self.config.clip_encoder(modality)].to_general(semantic)))


class FCID(settings.FCID, base.System):
    """Fine alignment by Cross-CPC, coarse alignment by codes and InfoNCE."""

    KEY_RULES = fcid.KEY_RULES
    ORDER = FCID_ORDER
    GROUPS = {"encoder.": ENCODER, "cpc.": "CPC_parameters", "fine_decoders.": DECODER, "coarse_decoders.": DECODER,
              "club.{m}.": "{M}_mi_net_parameters", f"club.{PAIR}.": "AudioVisual_mi_net_parameters"}
    AUXILIARY = {"{M}_mi_net_parameters": "optimizer_{m}_mi_net",
                 "AudioVisual_mi_net_parameters": f"optimizer_{PAIR}_mi_net"}
    # The published scripts have one direction per task; unlike the paper, three of them omit the variance term.
    TOC_RELEASED = {
        "ave": {AUDIO_VIDEO: (256, 1, 0, "both")},
        "avvp": {AUDIO_VIDEO: (196, 1, 0, "similarity")},
        "ave_avvp": {VIDEO_AUDIO: (128, 1, 0, "similarity")},
        "ucf_vggsound": {AUDIO_VIDEO: (168, 1, 0, "similarity")},
    }

    def __init__(self, config):
        super().__init__(config)
        width = config.code_dim
        fine = config.fine
        self.encoder = Encoder(config)
        self.cpc = CrossCPC(fine, width, accuracy_over="predictions") if len(fine) > 1 else None
        self.club = nn.ModuleDict({name: CLUB(width, width if name == PAIR else config.pooled_dim(name),
                                              config.club_hidden)
                                   for name in (*self.order, PAIR)})      # in the order of their permutations
        self.fine_decoders = nn.ModuleDict({m: Blocks(config, m).decoder() for m in fine})
        self.coarse_decoders = nn.ModuleDict({m: LinearDecoder(width, width, width, width) for m in self.order})
        self.initialized = [False]

    def clubs(self):
        """The CLUB networks, batched if they have the same number of rows: "fine" for seconds, one for each modality of
        tokens, and PAIR for the clips of all others."""
        return {key: BatchedCLUB([self.club[name] for name in names]) for key, names in self._members().items()}

    def encode(self, features, epoch):
        with self.autocast():
            return self.encoder(features, self.is_on("cmcm"), features.mask, self.options.joint_modalities(self.config))

    def init_codebooks(self, features, epoch, rng):
        if not self.initialized[0] and self.options.codebook_init == "data":
            with self.evaluating(), self.autocast():
                output = self.encoder(features, with_cmcm=False, mask=features.mask)
            self.encoder.codebook.init_from_data(output.general, rng)
        self.initialized = [True]

    def update_codebooks(self, outputs, rng):
        teacher = self.options.mm_ema if self.is_on("mm_ema") else "own"
        codebook, indices = self.encoder.codebook, outputs.quantized.indices
        codebook.update_ema(outputs.general, indices, teacher)
        codebook.expire_codes(indices, rng, dcid.reset_of(self.options, self.is_on("reset")),
                              {m: outputs.general[m] for m in timed_modalities(self.config)})

    def training_pass(self, features, epoch, rng, auxiliary):
        clubs = self.clubs() if self.is_on("club") else {}
        for batched in clubs.values():
            batched.share_gradients()
        outputs = self.encode(features, epoch)
        self.update_codebooks(outputs, rng)
        likelihoods = self.fit_auxiliary(clubs, outputs, auxiliary)
        outputs.clubs = clubs
        return outputs, likelihoods

    def fit_auxiliary(self, clubs, outputs, optimizer):
        """Fit the CLUB networks: specific features given semantic ones (seconds) or general ones (clips)."""
        stats = {key: SufficientStats.each(*(x.detach().flatten(1, -2) for x in self._pairs(outputs, key)),
                                           outputs.mask if key == "fine" else None) for key in clubs}
        found, members = club.fit(clubs, stats, optimizer, CLUB_ITERATIONS), self._members()
        return {f"{name}_club": value for key, values in found.items() for name, value in zip(members[key], values)}

    def _members(self):
        """Key of `clubs` -> names of its networks."""
        tokens = {m: [m] for m in self.order if m not in self.fine_decoders}
        return {"fine": list(self.fine_decoders), **tokens, PAIR: [PAIR]}

    def _pairs(self, outputs, key):
        """(conditions, targets) of the networks `clubs[key]`, in the codebook's precision: (M, B, T, .) of seconds,
        (1, B, G, .) of clips with G modalities that share a network."""
        if key == "fine":
            specific = [outputs.specific[m].pooled for m in self.fine_decoders]
            width = max(x.shape[-1] for x in specific)
            specific = torch.stack([F.pad(x, (0, width - x.shape[-1])) for x in specific])
            semantic = torch.stack([outputs.semantic[m] for m in self.fine_decoders])
            return semantic, specific.to(semantic.dtype)
        members = [m for m in outputs.private if self.config.clip_encoder(m) == key]
        general = torch.cat([outputs.general[m] for m in members], 1)
        return general.unsqueeze(0), torch.stack([outputs.private[m] for m in members], 1).unsqueeze(0)

    def losses(self, outputs, rng):
        terms = self._reconstruction(outputs)
        terms["commit"] = outputs.quantized.commitment
        if self.is_on("club"):
            terms["club"] = self._bounds(outputs, rng)
        metrics = outputs.quantized.metrics
        if self.cpc and self.is_on("cpc"):
            fine = {m: outputs.semantic[m] for m in self.fine_decoders}
            prediction = self.cpc(fine, rng.second(min(z.shape[1] for z in fine.values())), outputs.mask)
            terms["cpc"] = prediction.loss
            metrics |= prediction.metrics
        terms["cmcm"] = outputs.quantized.cmcm
        tokens = [m for m in outputs.general if m not in self.fine_decoders]
        if tokens:                          # from all other modalities to the text of the clip
            names = in_order(outputs.general, [m for m in self.order if m != tokens[0]])
            clips = torch.cat([outputs.general[m] for m in names], 1)
            clips = dist.all_gather(clips).transpose(0, 1)                                 # (M, B, D)
            terms["infonce"] = dict(zip(names, info_nce(clips[:-1], clips[-1:])))
        return Losses(terms, metrics)

    def _reconstruction(self, outputs):
        fine, coarse = {}, {}
        for m, decoder in self.fine_decoders.items():
            target = outputs.inputs[m].to(outputs.semantic[m].dtype)
            with self.autocast():
                y = decoder(outputs.semantic[m], outputs.specific[m].full)
            fine[m] = dist.mean(squared_error(y.to(target.dtype), target, outputs.mask), outputs.mask)
        for m, decoder in self.coarse_decoders.items():
            y = decoder(outputs.quantized.vectors[m].squeeze(1), outputs.private[m])
            coarse[m] = dist.mean(F.mse_loss(y, outputs.clips[m]))
        return {"fine_recon": fine, "coarse_recon": coarse}

    def _bounds(self, outputs, rng):
        """CLUB bounds. The permutations are drawn in the published order; that of the shared network permutes the rows
        of all its modalities together."""
        clips = dist.global_batch_size(outputs.private[next(iter(outputs.private))])
        rows = clips * len(self.fine_decoders)
        device = self.encoder.codebook.embedding.device
        orders = {name: rng.permutation(rows if name == PAIR else clips).to(device, non_blocking=True)
                  for name in self.club}
        found = {}
        for key, batched in (outputs.clubs or self.clubs()).items():
            given, predicted = self._pairs(outputs, key)
            if key == "fine":
                order = torch.stack([orders[m] for m in self.fine_decoders])
                found |= dict(zip(self.fine_decoders, batched.upper_bounds(given, predicted, order, outputs.mask)))
            else:
                found[key] = batched.upper_bounds_of_clips(given[0], predicted[0], orders[key],
                                                           self.options.club_coarse)
        return found

    @property
    def codebooks(self):
        return {"": self.encoder.codebook}

    def level_outputs(self, outputs):
        return {"": outputs}

    def assigned_codes(self, outputs):
        return {"": outputs.quantized.indices}
