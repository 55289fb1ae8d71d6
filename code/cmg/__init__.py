"""Audio, video and text as codes of one codebook, from Python.

    encoder = cmg.load("DCID-model-5.pt")
    codes = encoder.embed("audio", x)                           # vectors (B, T, D), indices (B, T)
    head = cmg.fit_head(encoder, "audio", x, classes)           # learns from sounds ...
    scores = head.predict("video", y)                           # ... and classifies videos

`load` reads checkpoints, published ones too, exported folders, and names on the Hugging Face hub. Wrong input raises
`InputError`, a ValueError of one line.
"""

from cmg import _loading  # noqa: F401  before anything of cmg._src
from cmg._api import (
    Encoder,
    Found,
    Head,
    Transfer,
    build_demo,
    export,
    fit_head,
    load,
    open_task,
    pretrain,
    retrieve,
    transfer,
)
from cmg._src.dataset.labels import clip_class
from cmg._src.errors import InputError
from cmg._src.systems.base import Codes

__all__ = ["Codes", "Encoder", "Found", "Head", "InputError", "Transfer", "build_demo", "clip_class", "export",
           "fit_head", "load", "open_task", "pretrain", "retrieve", "transfer"]
