"""The functions of `cmg`: thin wrappers around the package. All inputs are passed as arguments."""

from cmg.api.encoder import Encoder, export, load, push
from cmg.api.heads import Head, RetrievalResult, Transfer, fit_head, retrieve, transfer
from cmg.api.runs import build_demo, open_task, pretrain

__all__ = ["Encoder", "Head", "RetrievalResult", "Transfer", "build_demo", "export", "fit_head", "load", "open_task",
           "pretrain", "push", "retrieve", "transfer"]
