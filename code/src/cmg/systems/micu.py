"""MICU: DCID's network, trained with masked contrast of fine and coarse features and a cross-modal jigsaw (ICCV
2025)."""

from dataclasses import dataclass

import torch

from cmg.losses.info_nce import masked_pairs
from cmg.losses.jigsaw import Jigsaw
from cmg.models.masking import gathered
from cmg.systems import settings
from cmg.systems.base import full_precision
from cmg.systems.dcid import DCID, Objective, first_decoder
from cmg.utils import dist

MASKED = 0.3                            # probability that a second is masked in the queries
JIGSAW = "Jigsaw_parameters"


@dataclass
class TwoPassOutput:
    """DCID's outputs of the two passes of a step; the same object twice if there is only one pass."""

    contrasted: list
    reconstructed: list


class MICU(settings.MICU, DCID):
    """DCID with other losses. CPC, CLUB and CMCM are computed only for the log; their networks are not trained."""

    GROUPS = {**DCID.GROUPS, "jigsaw.": JIGSAW}
    UNCLIPPED, AUXILIARY, TOC_RELEASED = (JIGSAW,), {}, {}

    def __init__(self, config):
        super().__init__(config)
        self.jigsaw = Jigsaw(config.code_dim, config.jigsaw_blocks, config.jigsaw_permutations, config.jigsaw_hidden)

    def level_objectives(self):
        return [Objective(self.config, first_decoder, accuracy_over="predictions")]

    def encode(self, features, epoch):
        outputs = super().encode(features, epoch)
        return TwoPassOutput(outputs, outputs)

    def update_codebooks(self, outputs, rng):
        super().update_codebooks(outputs.reconstructed, rng)

    def codes_in_use(self, indices):
        if self.options.reset_counter == "released":
            return {m: assigned for m, assigned in indices.items() if self.config.kind(m) != "tokens"}
        return indices

    def training_pass(self, features, epoch, rng, auxiliary):
        outputs = self._pass(features, epoch, rng)
        if self.options.encoder_passes == "released":
            outputs = TwoPassOutput(outputs.reconstructed, self._pass(features, epoch, rng).reconstructed)
        return outputs, {}

    def losses(self, outputs, rng):
        found = super().losses(outputs.reconstructed, rng)
        output = outputs.contrasted[0]
        semantic = torch.stack(list(output.semantic.values()), 1)                       # (B, M, T, D)
        with full_precision(semantic):
            whole = dist.all_gather(semantic)
            kept = rng.kept(len(whole), whole.shape[2], MASKED).to(whole.device, non_blocking=True)
            found.terms["fcmi_fine"], found.terms["fcmi_coarse"] = masked_pairs(
                whole, kept, gathered(output.mask, whole))
            blocks = rng.modalities(self.config.jigsaw_blocks, semantic.shape[1])
            found.terms["cujp"] = self.jigsaw(torch.stack(list(output.quantized.vectors.values())),
                                              blocks.to(whole.device, non_blocking=True), output.mask)
        return found

    def level_outputs(self, outputs):
        return super().level_outputs(outputs.reconstructed)

    def assigned_codes(self, outputs):
        return super().assigned_codes(outputs.reconstructed)
