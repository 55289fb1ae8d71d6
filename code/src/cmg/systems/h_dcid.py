"""H-DCID: a second level of alignment on the specific features of the first (arXiv 2403.05168)."""

from cmg.models.decoders import LinearDecoder
from cmg.models.encoders import LinearSpecificEncoder, TemporalEncoder
from cmg.systems import settings
from cmg.systems.dcid import AUDIO_VIDEO, DCID, VIDEO_AUDIO, Level, Objective, first_decoder, first_level
from cmg.systems.state_dicts import h_dcid
from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS

SECOND_LEVEL_FROM = 3                   # epoch at which the losses of the second level start


def second_level(config):
    """Level 2, on the pooled specific features of level 1."""
    return Level(config, {m: TemporalEncoder(config, config.pooled_dim(m)) for m in config.modalities},
                 {m: LinearSpecificEncoder(config.pooled_dim(m), config.pooled_dim(m)) for m in config.modalities})


def second_decoder(config, modality):
    """Decoder of level 2, which reconstructs the level's inputs."""
    width = config.pooled_dim(modality)
    return LinearDecoder(config.code_dim, width, width, width)


class HDCID(settings.HDCID, DCID):
    """Two levels of alignment. There is no CMCM loss; it is logged as 0."""

    KEY_RULES = h_dcid.KEY_RULES
    GROUPS = {
        "encoder.{m}_lstm.": LSTMS,
        "encoder.": ENCODER,
        "objectives.0.cpc.": "CPC_parameters",
        "objectives.1.cpc.": "CPC_2_parameters",
        "objectives.0.decoders.": DECODER,
        "objectives.1.decoders.": DECODER,
        "objectives.0.club.{m}.": "{M}_mi_net_parameters",
        "objectives.1.club.{m}.": "{M}_mi_net_2_parameters",
    }
    AUXILIARY = DCID.AUXILIARY | {"{M}_mi_net_2_parameters": "optimizer_{m}_mi_net_2"}
    # By mistake, the published avvp_av trains in the other direction.
    TOC_RELEASED = {
        "ave": {VIDEO_AUDIO: (128, 1, 0), AUDIO_VIDEO: (196, 1, 0)},
        "avvp": {VIDEO_AUDIO: (224, 1, 0), AUDIO_VIDEO: (128, 1, 0)},
        "ave_avvp": {VIDEO_AUDIO: (196, 1, 1), AUDIO_VIDEO: (224, 3, 1)},
        "ucf_vggsound": {VIDEO_AUDIO: (196, 1, 0), AUDIO_VIDEO: (224, 1, 1)},
    }

    def levels(self):
        return [first_level(self.config), second_level(self.config)]

    def level_objectives(self):
        return [Objective(self.config, first_decoder), Objective(self.config, second_decoder)]

    def is_trained(self, level, epoch):
        return level == 0 or epoch >= SECOND_LEVEL_FROM

    def encode(self, features, epoch):
        return self._levels(features, with_cmcm=False)

    def weights(self, epoch):
        found = super().weights(epoch)
        if epoch < SECOND_LEVEL_FROM:
            found |= {kind: 0.0 for kind in found if kind.endswith("_2")}
        return found
