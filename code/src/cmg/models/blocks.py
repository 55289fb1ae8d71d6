"""The networks of a modality, by the kind of its features (cmg/models/config.py): vectors, maps or tokens."""

from torch import nn

from cmg.models.decoders import LinearDecoder, MapDecoder
from cmg.models.encoders import LinearSpecificEncoder, MapSemanticEncoder, MapSpecificEncoder, TemporalEncoder


class Blocks:
    """Builds the networks of one modality, each when it is asked for: the order of building decides their weights.

    Maps go through convolutions; vectors, and tokens after their LSTM, through linear maps.
    """

    def __init__(self, config, modality):
        self.config, self.modality = config, modality
        self.width = config.input_dim(modality)
        self.maps = config.widths(modality) if config.kind(modality) == "map" else None

    def lstm(self):
        """Both directions over tokens: (B, L, W) -> (B, L, 2 * text_hidden)."""
        return nn.LSTM(self.config.feature_dim(self.modality), self.config.text_hidden, 2, batch_first=True,
                       bidirectional=True)

    def semantic(self):
        """(B, T, ...) -> (B, T, D)."""
        if self.maps:
            return MapSemanticEncoder(self.config, self.width, self.maps)
        return TemporalEncoder(self.config, self.width)

    def specific(self, of_maps=MapSpecificEncoder):
        """(B, T, ...) -> Specific; `of_maps`: the class that does it for maps."""
        return of_maps(self.width, self.maps) if self.maps else LinearSpecificEncoder(self.width, self.config.code_dim)

    def decoder(self):
        """Codes and specific features -> what the encoders read."""
        code = self.config.code_dim
        return MapDecoder(code, self.width, self.maps) if self.maps else LinearDecoder(code, code, code, self.width)
