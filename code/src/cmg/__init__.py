"""Audio, video and text as codes of one codebook, from Python.

    encoder = cmg.load("DCID-model-5.pt")
    codes = encoder.embed("audio", x)                           # vectors (B, T, D), indices (B, T)
    head = cmg.fit_head(encoder, "audio", x, classes)           # learns from sounds ...
    scores = head.predict("video", y)                           # ... and classifies videos

`load` reads checkpoints, published ones too, exported folders, and names on the Hugging Face hub. Wrong input raises
`InputError`, a ValueError of one line.
"""

import os
from typing import TYPE_CHECKING

# CPU threads wait for each other in a short spin, then asleep: the usual long spin makes a step ten times slower beside
# another job, none at all makes it half as long again on a quiet machine (benchmarks/pretrain_step.py). PyTorch's
# OpenMP library reads the variable when it is loaded, so that this has an effect only if torch is imported after cmg.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from cmg.api import (
        Encoder,
        Head,
        RetrievalResult,
        Transfer,
        build_demo,
        export,
        fit_head,
        load,
        open_task,
        pretrain,
        push,
        retrieve,
        transfer,
    )
    from cmg.data.labels import clip_class
    from cmg.systems.base import Codes
    from cmg.utils.errors import InputError

__all__ = ["Codes", "Encoder", "Head", "InputError", "RetrievalResult", "Transfer", "build_demo", "clip_class",
           "export", "fit_head", "load", "open_task", "pretrain", "push", "retrieve", "transfer"]


def __getattr__(name):
    """The public names, imported when they are first used: a script that needs one module does not load them all."""
    if name not in __all__:
        raise AttributeError(f"module 'cmg' has no attribute {name!r}")
    from importlib import import_module
    module = {"Codes": "cmg.systems.base", "InputError": "cmg.utils.errors", "clip_class": "cmg.data.labels"}
    value = getattr(import_module(module.get(name, "cmg.api")), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
