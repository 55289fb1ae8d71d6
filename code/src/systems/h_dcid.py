"""H-DCID: a second level of alignment on the specific features of the first (arXiv 2403.05168; h_dcid_toc.md A)."""

from model.encoders import LinearSpecificEncoder, TemporalEncoder
from systems.dcid import DCID, Level, first_level


def second_level(config):
    """Level 2: the pooled specific features of level 1 as if they were raw inputs."""
    return Level(config, {m: TemporalEncoder(config, config.input_dim(m, 1)) for m in config.modalities},
                 {m: LinearSpecificEncoder(config.input_dim(m, 1), config.pooled_dim(m)) for m in config.modalities})


LEVELS = (first_level, second_level)


def build(config):
    """A DCID or H-DCID system with fresh weights from torch's global generator."""
    return DCID(config, [LEVELS[number](config) for number in range(config.num_levels)])
