"""MICU: DCID's network, trained by masked contrast of fine and coarse features and a cross-modal jigsaw (ICCV 2025)."""

from dataclasses import dataclass

import torch

from cmg.losses.info_nce import masked_pairs
from cmg.losses.jigsaw import Jigsaw
from cmg.models import config as sizes
from cmg.models.masking import gathered
from cmg.systems import dcid
from cmg.systems.base import Term, precise
from cmg.systems.dcid import DCID, Objective, first_decoder
from cmg.systems.state_dicts import micu
from cmg.utils.settings import positive, setting

MASKED = 0.3                            # probability of a second to be left out of the queries
JIGSAW = "Jigsaw_parameters"


@dataclass(frozen=True)
class Config(sizes.Config):
    """Sizes of MICU: DCID's, and the jigsaw's."""

    jigsaw_blocks: int = setting(2, "MICU: blocks of channels in the jigsaw (ICCV 2025, S)", type=positive)
    jigsaw_permutations: int = setting(2, "MICU: permutations to tell apart (P)", type=positive)
    jigsaw_hidden: int = setting(512, "MICU: width of the jigsaw's classifier", type=positive)


@dataclass(frozen=True)
class Options(dcid.CodebookOptions):
    """How MICU is trained."""

    encoder_passes: str = setting("once", "MICU: encoder passes per step: one, or two as published: features of the "
                                  "first are contrasted, the second is reconstructed", choices=("once", "released"))
    reset_counter: str = setting("all", "MICU: a code that text alone chooses is in use, or ages as published",
                                 choices=("all", "released"))


@dataclass
class Passes:
    """DCID's outputs of the passes of a step; one and the same where there is one pass."""

    contrasted: list
    reconstructed: list


class MICU(DCID):
    """CPC, CLUB and CMCM are computed for the log only: their networks keep their start values."""

    name, title, FILE, EPOCHS = "micu", "MICU", "MICU-model-{}.pt", 5
    Config, Options, PARTS = Config, Options, micu.PARTS
    TERMS = {kind: Term(term.weight if kind in ("recon", "commit") else 0.0, term.switch, term.title)
             for kind, term in DCID.TERMS.items()} | {
        "fcmi_fine": Term(title="FCMI, seconds"), "fcmi_coarse": Term(title="FCMI, clips"), "cujp": Term(title="CUJP")}
    GROUPS = {**DCID.GROUPS, "jigsaw.": JIGSAW}
    UNCLIPPED, AUXILIARY, TOC_RELEASED = (JIGSAW,), {}, {}
    contrast = 0.0                      # it has one of its own

    def __init__(self, config):
        super().__init__(config)
        self.jigsaw = Jigsaw(config.code_dim, config.jigsaw_blocks, config.jigsaw_permutations, config.jigsaw_hidden)

    def level_objectives(self):
        return [Objective(self.config, first_decoder, accuracy_over="predictions")]

    def encode(self, features, epoch):
        outputs = super().encode(features, epoch)
        return Passes(outputs, outputs)

    def update_codebooks(self, outputs, draws):
        super().update_codebooks(outputs.reconstructed, draws)

    def counted(self, indices):
        if self.options.reset_counter == "released":
            return {m: chosen for m, chosen in indices.items() if self.config.kind(m) != "tokens"}
        return indices

    def training_pass(self, features, epoch, draws, adam):
        outputs = self._pass(features, epoch, draws)
        if self.options.encoder_passes == "released":
            outputs = Passes(outputs.reconstructed, self._pass(features, epoch, draws).reconstructed)
        return outputs, {}

    def losses(self, outputs, draws):
        found = super().losses(outputs.reconstructed, draws)
        output = outputs.contrasted[0]
        semantic = torch.stack(list(output.semantic.values()), 1)                       # (B, M, T, D)
        with precise(semantic):
            whole = self.together.gather(semantic)
            kept = draws.kept(len(whole), whole.shape[2], MASKED).to(whole.device, non_blocking=True)
            found.terms["fcmi_fine"], found.terms["fcmi_coarse"] = masked_pairs(
                whole, kept, gathered(output.real, self.together, whole))
            blocks = draws.modalities(self.config.jigsaw_blocks, semantic.shape[1])
            found.terms["cujp"] = self.jigsaw(torch.stack(list(output.quantized.vectors.values())),
                                              blocks.to(whole.device, non_blocking=True), output.real)
        return found

    def chosen(self, outputs):
        return super().chosen(outputs.reconstructed)
