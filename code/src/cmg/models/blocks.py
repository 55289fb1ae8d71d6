"""Networks of one modality, chosen by the kind of its features (cmg/models/config.py): vectors, maps or tokens."""

from torch import nn

from cmg.models.decoders import LinearDecoder, MapDecoder
from cmg.models.encoders import LinearSpecificEncoder, MapSemanticEncoder, MapSpecificEncoder, TemporalEncoder


class Blocks:
    """Builds the networks of one modality.

    Every method creates a new network, so the order of the calls determines the initial weights. Maps use convolutions;
    vectors, and tokens after their LSTM, use linear layers.

    Args:
        config: cmg.models.config.Config.
        modality: one of its modalities.
    """

    def __init__(self, config, modality):
        self.config, self.modality = config, modality
        self.width = config.input_dim(modality)
        self.maps = config.widths(modality) if config.kind(modality) == "map" else None

    def lstm(self):
        """Bidirectional LSTM over tokens: (B, L, W) -> (B, L, 2 * text_hidden)."""
        return nn.LSTM(self.config.feature_dim(self.modality), self.config.text_hidden, 2, batch_first=True,
                       bidirectional=True)

    def semantic(self):
        """Semantic encoder: (B, T, ...) -> (B, T, D)."""
        if self.maps:
            return MapSemanticEncoder(self.config, self.width, self.maps)
        return TemporalEncoder(self.config, self.width)

    def specific(self, map_encoder=MapSpecificEncoder):
        """Specific encoder: (B, T, ...) -> `Specific`; maps use the class `map_encoder`."""
        if self.maps:
            return map_encoder(self.width, self.maps)
        return LinearSpecificEncoder(self.width, self.config.code_dim)

    def decoder(self):
        """Decoder: code vectors and specific features -> the inputs of the encoders."""
        code = self.config.code_dim
        return MapDecoder(code, self.width, self.maps) if self.maps else LinearDecoder(code, code, code, self.width)
