"""Python interface: encode audio, video and text with one shared codebook.

    encoder = cmg.load("DCID-model-5.pt")
    codes = encoder.embed("audio", x)                           # vectors (B, T, D), indices (B, T)
    head = cmg.fit_head(encoder, "audio", x, classes)           # learns from sounds ...
    scores = head.predict("video", y)                           # ... and classifies videos

`load` accepts checkpoints (published ones included), exported folders, and names on the Hugging Face Hub. Invalid input
raises `InputError`, a ValueError with a one-line message.
"""

import os
from typing import TYPE_CHECKING

# Let CPU threads that wait for each other spin only briefly before they sleep. With the default long spin, a step takes
# ten times as long next to another job; without any, 1.5 times as long on an idle machine
# (benchmarks/pretrain_step.py). PyTorch's OpenMP library reads the variable when it is loaded, so this works only if
# cmg is imported before torch.
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
    """Import a public name on first use, so that a script that needs one module does not load them all."""
    if name not in __all__:
        raise AttributeError(f"module 'cmg' has no attribute {name!r}")
    from importlib import import_module
    module = {"Codes": "cmg.systems.base", "InputError": "cmg.utils.errors", "clip_class": "cmg.data.labels"}
    value = getattr(import_module(module.get(name, "cmg.api")), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
