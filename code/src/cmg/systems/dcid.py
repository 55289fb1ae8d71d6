"""DCID (Uni-Code): dual cross-modal information disentangling over one codebook (NeurIPS 2023, Figure 2).

The encoder is a stack of levels, one here, two in H-DCID (cmg/systems/h_dcid.py). A level encodes its inputs into semantic
and specific features and quantises the semantic ones; its objective holds the networks that only training needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.losses.club import Club, Clubs, Evidence
from cmg.losses.cross_cpc import CrossCPC
from cmg.losses.info_nce import clip_pairs
from cmg.models.blocks import Blocks
from cmg.models.codebook import RESET_AFTER, Codebook, Quantized, Reset
from cmg.models.config import in_order
from cmg.models.masking import mean_of_clips, only_real, squared_error
from cmg.models.random import RESET_NOISE
from cmg.systems import base
from cmg.systems.base import Codes, Losses, Term, precise
from cmg.systems.state_dicts import dcid
from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS
from cmg.utils.collectives import ALONE
from cmg.utils.settings import not_negative, positive, setting

MI_ITERATIONS = 5                           # Adam steps of the CLUB networks in each training step
CLUB_ORDER = ("video", "text", "audio")     # of the published program's MI networks and their permutations
VIDEO_AUDIO, AUDIO_VIDEO = ("video", "audio"), ("audio", "video")


@dataclass(frozen=True)
class CodebookOptions(base.CodebookOptions):
    """How a codebook with MM-EMA starts and moves."""

    mm_ema: str = setting("mean", "teachers of the EMA: the same second of the other modalities, or attention (NeurIPS "
                          "2023, eq. 7)", choices=("mean", "attention"))
    code_choice: str = setting("own", "in training the code of a second is each modality's own nearest, or one that "
                               "modalities other than text choose together", choices=("own", "joint"))
    reset_after: int = setting(RESET_AFTER, "passes without use until a code is re-drawn", type=positive)
    reset_distance: float = setting(RESET_NOISE, "largest distance, in each channel, of a re-drawn code from where it "
                                    "is drawn", type=not_negative)
    reset_to: str = setting("code", "a code is re-drawn beside a code in use, or at a random second of the batch, "
                            "between its modalities", choices=("code", "second"))

    def reset(self, is_on):
        """How codes are reset (cmg/models/codebook.py); `is_on`: not switched off."""
        return Reset(self.code_reset if is_on else "off", self.reset_after, self.reset_distance, self.reset_to)

    def together(self, config):
        """Modalities of which a second chooses one code."""
        return with_seconds(config) if self.code_choice == "joint" else ()


def with_seconds(config):
    """Modalities that have seconds, not tokens of the whole clip: a second of one belongs to that of the others."""
    return tuple(m for m in config.modalities if config.kind(m) != "tokens")


@dataclass(frozen=True)
class Options(CodebookOptions):
    """How DCID is trained."""

    mi_forward: str = setting("once", "encoder passes per step: one, or six as in the published checkpoints",
                              choices=("once", "released"))
    contrast: float = setting(0.0, "weight of a contrast of clips between the modalities, in the codebook's space (not "
                              "published; 3 in --recipe shared)", type=not_negative)


# --------------------------------------------------------------------------------------------------------- the encoder
@dataclass
class LevelOutput:
    """One level's view of a batch; dicts over modalities."""

    inputs: dict            # what the decoders reconstruct
    semantic: dict          # (B, T, D) before quantisation
    specific: dict          # Specific
    quantized: Quantized
    real: Tensor = None     # (B, T) mask of the seconds (cmg/models/masking.py)


class Level(nn.Module):
    """Encoders and codebook of one level."""

    def __init__(self, config, semantic, specific):
        super().__init__()
        self.semantic = nn.ModuleDict(semantic)
        self.specific = nn.ModuleDict(specific)
        self.codebook = Codebook(config.num_codes, config.code_dim)

    def forward(self, inputs, with_cmcm=True, real=None, joint=()):
        """Encode and quantise `inputs`, modality -> features; `joint`: see `Codebook.forward`."""
        semantic = {m: self.encode_semantic(m, x, real) for m, x in inputs.items()}
        specific = {m: self.specific[m](x) for m, x in inputs.items()}
        with precise(self.codebook.embedding):
            return LevelOutput(inputs, semantic, specific, self.codebook(semantic, with_cmcm, real, joint), real)

    def encode_semantic(self, modality, x, real=None):
        """Semantic features (B, T, D) in the codebook's precision, under autocast too.

        Sentences that differ in one word are closer to each other than bf16 resolves, and two classes would share a
        code. It is half a percent of the work.
        """
        with precise(x):
            return self.semantic[modality](x.to(self.codebook.embedding.dtype), real)

    def lookup(self, modality, x, real=None):
        """(vectors, indices) of the codes nearest to the semantic features of one modality's inputs."""
        with precise(x):
            return self.codebook.lookup(self.encode_semantic(modality, x, real))


def first_level(config):
    """Level 1: the features themselves, tokens after their LSTM."""
    semantic, specific = {}, {}
    for modality in config.modalities:
        blocks = Blocks(config, modality)
        semantic[modality], specific[modality] = blocks.semantic(), blocks.specific()
    return Level(config, semantic, specific)


class Encoder(base.Encoder):
    """The LSTM of the text, and of other tokens, and the levels."""

    def __init__(self, config, levels):
        super().__init__(config)
        self.add_lstms()
        self.levels = nn.ModuleList(levels)

    @property
    def codebooks(self):
        return [level.codebook.embedding for level in self.levels]

    def features(self, batch):
        """`inputs` of all modalities; other entries of the batch are passed over."""
        return {m: self.inputs(m, batch[m]) for m in self.config.modalities}

    def forward(self, features, depth=None, with_cmcm=True, real=None, joint=()):
        """`features(batch)` -> a LevelOutput for each of the first `depth` levels (all by default)."""
        outputs = []
        for level in self.levels[:depth]:
            outputs.append(level(features, with_cmcm, real, joint))
            features = {m: s.pooled for m, s in outputs[-1].specific.items()}
        return outputs

    def embed_inputs(self, modality, inputs, real=None):
        vectors, indices = [], []
        for number, level in enumerate(self.levels):
            chosen, index = level.lookup(modality, inputs, real)
            vectors.append(chosen)
            indices.append(index)
            if number + 1 < len(self.levels):
                inputs = level.specific[modality](inputs).pooled
        return Codes(torch.cat(vectors, -1), torch.stack(indices, -1) if len(indices) > 1 else indices[0])


# ---------------------------------------------------------------------------------------------------------- the losses
class Objective(nn.Module):
    """The networks of one level that only its losses use: Cross-CPC, CLUB and the decoders."""

    def __init__(self, config, decoder, accuracy_over="targets"):
        super().__init__()
        width = config.code_dim
        self.together = ALONE
        self.cpc = CrossCPC(config.modalities, width, accuracy_over)
        self.club = nn.ModuleDict({m: Club(width, config.pooled_dim(m), config.club_hidden) for m in config.modalities})
        self.decoders = nn.ModuleDict({m: decoder(config, m) for m in config.modalities})

    @property
    def club_order(self):
        return in_order(self.club, CLUB_ORDER)

    def clubs(self):
        """The CLUB networks side by side, in `club_order`."""
        return Clubs([self.club[m] for m in self.club_order], self.together)

    def evidence(self, output):
        """What the CLUB networks are fitted to: Evidence, without gradient."""
        quantized = output.quantized
        return Evidence.of(quantized.codes, self._stacked(quantized.indices), self._pooled(output).detach(),
                           output.real)

    def reconstruct(self, output):
        """modality -> reconstruction of the level's inputs."""
        return {m: self.decoders[m](output.quantized.vectors[m], output.specific[m].full) for m in self.decoders}

    def forward(self, output, reconstructed, draws, with_club, with_cpc, detach_targets=False, clubs=None):
        """`Losses` of the level (NeurIPS 2023, section 3); `clubs()` if they are there already."""
        vectors, recon, terms = output.quantized.vectors, {}, {}
        for m, y in reconstructed.items():
            target = output.inputs[m].to(vectors[m].dtype)
            error = squared_error(y.to(target.dtype), target.detach() if detach_targets else target, output.real)
            recon[m] = self.together.average(error, output.real)
        terms = {"recon": recon, "commit": output.quantized.commitment}
        if with_club:
            codes = self._stacked(vectors)
            whole = self.together.clips(codes[0])
            orders = torch.stack([draws.permutation(whole) for _ in codes]).to(codes.device, non_blocking=True)
            bounds = (clubs or self.clubs()).upper_bounds(codes, self._pooled(output), orders, output.real)
            terms["mi"] = dict(zip(self.club_order, bounds))
        metrics = output.quantized.metrics
        if with_cpc:
            seconds = min(z.shape[1] for z in output.semantic.values())
            prediction = self.cpc(output.semantic, draws.second(seconds), output.real)
            terms["cpc"] = prediction.loss
            metrics |= prediction.metrics
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


def collect(clubs, together):
    """Gradients of a step's `Clubs`, any key -> Clubs, are from now on those of their networks."""
    for side_by_side in clubs.values():
        side_by_side.collect_gradients()
        together.add_gradients(side_by_side.tensors)


def fit_clubs(clubs, evidence, groups, adam, iterations, together):
    """Adam steps of CLUB networks: likelihood of the specific features given what they are predicted from.

    The last iteration's gradients stay and join those of the bound in the main backward pass, so that the norms before
    clipping are the published ones; the next iteration clears them.

    Args:
        clubs, evidence, groups: any key -> Clubs, Evidence, names of the groups of its networks in their order.
        adam, iterations: see `System.inner_step`.
    Returns:
        group -> its log-likelihood in the last iteration, before its update.
    """
    likelihoods = {}
    for _ in range(iterations if clubs else 0):
        for key, side_by_side in clubs.items():
            side_by_side.zero_gradients()
            likelihoods[key] = side_by_side.log_likelihoods(evidence[key])
        (-sum(values.sum() for values in likelihoods.values())).backward()
        together.finish_gradients()
        adam([name for names in groups.values() for name in names])
        for side_by_side in clubs.values():
            side_by_side.refresh()
    if not together.is_first:           # what has been added up over the processes counts once
        for side_by_side in clubs.values():
            side_by_side.zero_gradients()
    return {name: value for key, values in likelihoods.items() for name, value in zip(groups[key], values.detach())}


def first_decoder(config, modality):
    """Decoder of level 1: it reconstructs the features themselves, tokens after their LSTM."""
    return Blocks(config, modality).decoder()


class DCID(base.System):
    """One level of alignment."""

    name, title, FILE = "dcid", "DCID", "DCID-model-{}.pt"
    Options, PARTS = Options, dcid.PARTS
    TERMS = {"recon": Term(title="reconstruction"), "commit": Term(title="commitment"),
             "mi": Term(switch="club", title="CLUB"), "cpc": Term(title="CPC"), "cmcm": Term(title="CMCM")}
    SWITCHES = {"mm_ema": "MM-EMA", "reset": "reset"}
    ORDER = CLUB_ORDER
    GROUPS = {
        "encoder.{m}_lstm.": LSTMS,
        "encoder.": ENCODER,
        "objectives.0.cpc.": "CPC_parameters",
        "objectives.0.decoders.": DECODER,
        "objectives.0.club.{m}.": "{M}_mi_net_parameters",
    }
    AUXILIARY = {"{M}_mi_net_parameters": "optimizer_{m}_mi_net"}
    # They differ from task to task without a rule: they were chosen on the evaluation data.
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
        self.started = [False] * len(self.encoder.levels)
        self._clubs = {}                # of the running step: level -> its CLUB networks side by side

    def levels(self):
        return [first_level(self.config)]

    def level_objectives(self):
        return [Objective(self.config, first_decoder)]

    def features(self, batch):
        return base.to_seconds(self.encoder.features(batch), self.config, batch.get("real"))

    def depth(self, epoch):
        """How many levels are computed at an epoch."""
        return 1

    def encode(self, features, epoch):
        return self._levels(features, self.depth(epoch), self.is_on("cmcm"))

    def _levels(self, features, depth, with_cmcm):
        with self.autocast():
            return self.encoder(features, depth, with_cmcm, features.real, self.options.together(self.config))

    def start_codebooks(self, features, epoch, draws):
        if self.options.codebook_init == "released":
            self.started = [True] * len(self.started)
        for number in range(self.depth(epoch)):
            if not self.started[number]:
                with self.evaluating():
                    outputs = self._levels(features, number + 1, False)
                self.encoder.levels[number].codebook.start_from(outputs[number].semantic, draws, features.real)
                self.started[number] = True

    def update_codebooks(self, outputs, draws):
        teacher = self.options.mm_ema if self.is_on("mm_ema") else "own"
        reset = self.options.reset(self.is_on("reset"))
        for level, output in zip(self.encoder.levels, outputs):
            level.codebook.ema_step(output.semantic, output.quantized.indices, teacher, output.real)
            level.codebook.count_and_reset(self.counted(output.quantized.indices), draws, reset,
                                           {m: output.semantic[m] for m in with_seconds(self.config)}, output.real)

    def counted(self, indices):
        """Codes that are in use, modality -> (B, T), of those that a pass chose."""
        return indices

    def training_pass(self, features, epoch, draws, adam):
        """One pass, with five Adam steps of the CLUB networks on its outputs; mi_forward="released": five passes with
        one such step each, and one for the losses, so that the codebooks move six times."""
        trained = [n for n in range(self.depth(epoch)) if self.is_trained(n, epoch)] if self.is_on("club") else []
        self._clubs = {number: self.objectives[number].clubs() for number in trained}
        collect(self._clubs, self.together)
        figures, passes = {}, MI_ITERATIONS if trained and self.options.mi_forward == "released" else 0
        for _ in range(passes):
            figures = self.inner_step(self._pass(features, epoch, draws), adam, 1)
        outputs = self._pass(features, epoch, draws)
        if not passes:
            figures = self.inner_step(outputs, adam, MI_ITERATIONS)
        return outputs, figures

    def is_trained(self, level, epoch):
        """Do the losses of a level count at an epoch?"""
        return True

    def _pass(self, features, epoch, draws):
        outputs = self.encode(features, epoch)
        self.update_codebooks(outputs, draws)
        return outputs

    def inner_step(self, outputs, adam, iterations):
        """Fit the CLUB networks: likelihood of the specific features given the codes."""
        evidence = {number: self.objectives[number].evidence(outputs[number]) for number in self._clubs}
        groups = {number: [_mi_group(m, number) for m in self.objectives[number].club_order] for number in self._clubs}
        return fit_clubs(self._clubs, evidence, groups, adam, iterations, self.together)

    def losses(self, outputs, draws):
        """Losses of all levels that `outputs` holds; kinds of the second end in _2."""
        terms, metrics = {}, {}
        for number, output in enumerate(outputs):
            objective, suffix = self.objectives[number], _suffix(number)
            with self.autocast():
                reconstructed = objective.reconstruct(output)
            level = objective(output, reconstructed, draws, self.is_on("club"), self.is_on("cpc"),
                              self.detaches_targets(number), self._clubs.pop(number, None))
            terms |= {kind + suffix: value for kind, value in level.terms.items()}
            metrics |= {name + suffix: value for name, value in level.metrics.items()}
        if self.contrast:
            terms["contrast"] = self._contrast_of_clips(outputs[0])
        return Losses(terms, metrics)

    @property
    def contrast(self):
        """Weight of the contrast of clips."""
        return self.options.contrast

    def weights(self, epoch):
        return super().weights(epoch) | {"contrast": self.contrast}

    def _contrast_of_clips(self, output):
        """`clip_pairs` of the mean semantic features of the batch's clips."""
        semantic = torch.stack(list(output.semantic.values()))                          # (M, B, T, D)
        with precise(semantic):
            means = self.together.gather(mean_of_clips(semantic, output.real).transpose(0, 1)).transpose(0, 1)
            return clip_pairs(means, means)

    def detaches_targets(self, level):
        """Do the targets of a level's reconstruction get no gradient?"""
        return False

    @property
    def codebooks(self):
        return {_suffix(number): level.codebook for number, level in enumerate(self.encoder.levels)}

    def chosen(self, outputs):
        return {_suffix(number): only_real(output.quantized.indices, output.real)
                for number, output in enumerate(outputs)}


def _suffix(level):
    return f"_{level + 1}" if level else ""


def _mi_group(modality, level):
    return f"{modality.capitalize()}_mi_net{_suffix(level)}_parameters"
