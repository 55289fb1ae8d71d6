"""Sizes of a system. A new one takes them from its data, a loaded one from its file."""

from dataclasses import asdict, dataclass

from declare import positive, setting

MODALITIES = ("audio", "video", "text")     # always in this order: the EMA of the codebook depends on it


def seconds_or_auto(text):
    """Argument type of --seconds; `auto` is left for who opens the clips."""
    return text if text == "auto" else positive(text)


@dataclass(frozen=True)
class Config:
    """Sizes that the systems share; the defaults are the published ones. A system may add fields in a subclass.

    `modalities` is a subset of MODALITIES in that order. The video widths follow the published ratios to
    `video_dim` when a config is made by `for_data`.
    """

    modalities: tuple = MODALITIES
    num_codes: int = 400                # K
    code_dim: int = 256                 # D, also the specific width of audio and text
    audio_dim: int = 128
    text_dim: int = 768                 # word vectors
    text_hidden: int = 128              # each direction of the text LSTM
    video_dim: int = 512                # V
    video_hidden: int = 1024            # between the two 3x3 convolutions, and in the decoder
    video_specific_dim: int = 2048
    video_pool_hidden: int = 1024       # MLP of the pooled specific feature
    squeeze_dim: int = 64
    attention_dim: int = 256            # spatial attention (dead in the published form)
    feed_forward: int = 1024
    num_layers: int = 2
    num_heads: int = 4
    club_hidden: int = 128
    dropout: float = 0.1
    spatial_attention: str = "sum"      # or "softmax"
    seconds: int = setting(10, "seconds of a clip (T): longer ones are cut, shorter ones padded; auto: the longest of "
                           "the list", type=seconds_or_auto, metavar="N|auto")
    padding: str = setting("repeat", "seconds that a clip does not have: its last one again, as published, or a mask: "
                           "no loss, code, attention or head sees them", choices=("repeat", "mask"))

    def __post_init__(self):
        assert self.spatial_attention in ("sum", "softmax") and self.padding in ("repeat", "mask")
        assert self.modalities == tuple(m for m in MODALITIES if m in self.modalities), self.modalities

    def feature_dim(self, modality):
        """Width of the features of a modality in the data."""
        return getattr(self, f"{modality}_dim")

    def input_dim(self, modality):
        """Width of what the semantic encoder of a modality reads (text: after the LSTM)."""
        return 2 * self.text_hidden if modality == "text" else self.feature_dim(modality)

    def pooled_dim(self, modality):
        """Width of the specific feature that the MI term sees."""
        return self.video_dim if modality == "video" else self.code_dim

    @property
    def reading(self):
        """How clips are read for this system: keyword arguments of dataset.clips.Clips."""
        return {"seconds": self.seconds, "padding": self.padding}

    def to_dict(self):
        return asdict(self)

    @classmethod
    def for_data(cls, modalities, video_dim=512, **widths):
        """Sizes for data with `video_dim` channels, in the published ratios (512: 1024, 2048, 64, 256)."""
        return cls(modalities=tuple(modalities), video_dim=video_dim, video_hidden=2 * video_dim,
                   video_specific_dim=4 * video_dim, video_pool_hidden=2 * video_dim,
                   squeeze_dim=max(1, video_dim // 8), attention_dim=max(1, video_dim // 2), **widths)
