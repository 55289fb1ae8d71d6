"""Golden numbers: how weights are drawn, how two results are compared (golden/README.md)."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmg.systems.state_dicts import rules

FORWARD, STEPPED = 1e-9, 1e-6           # relative tolerances: forward values and gradients; after optimiser steps
ABSOLUTE = 1e-12                        # numbers that are zero but for rounding


@dataclass
class Check:
    """One quantity group of one golden file: its worst relative error and the tolerance that it must keep."""

    file: str
    group: str
    error: float
    tolerance: float

    @property
    def passed(self):
        return self.error <= self.tolerance       # False for NaN, as it must be

    def __str__(self):
        verdict = "ok" if self.passed else "FAIL"
        return f"{self.file:24} {self.group:44} {self.error:10.3e} {self.tolerance:9.1e}  {verdict}"


def det(name, shape):
    """The tensor that stands under `name` ("section.key"), float64 (golden/README.md, the rule)."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    parts = name.split(".")
    if parts[-1] == "embedding":
        return torch.from_numpy(x)
    if parts[-1] == "weight" and parts[-2].startswith("norm"):
        return torch.from_numpy(1 + 0.1 * x)
    if len(shape) >= 2:
        return torch.from_numpy(1.5 * x / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(0.05 * x)


def relative_error(ours, theirs, floor=ABSOLUTE):
    """Largest |ours - theirs| over the largest |theirs|; 0 where both agree to `floor`, inf on other shapes."""
    ours = np.asarray(ours.detach().cpu() if isinstance(ours, torch.Tensor) else ours, dtype=np.float64)
    theirs = np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.size == 0:
        return 0.0
    difference = np.abs(ours - theirs).max()
    return 0.0 if difference <= floor else float(difference / max(np.abs(theirs).max(), floor))


def load(folder, name):
    """The arrays (npz) and the facts (json) of one golden run; absent parts are empty."""
    folder = Path(folder)
    arrays = dict(np.load(folder / f"{name}.npz", allow_pickle=False)) if (folder / f"{name}.npz").exists() else {}
    facts = json.loads((folder / f"{name}.json").read_text()) if (folder / f"{name}.json").exists() else {}
    return arrays, facts


def published_names(system, report):
    """Values of a step (StepOutput) under the names of the golden files: `audio_mi` is the CLUB bound, `lld_<section>`
    and `audio_lld` are minus the log-likelihood of a CLUB network."""
    ours = {name.replace("_club", "_mi"): value for name, value in {**report.losses, **report.metrics}.items()}
    for prefix, section in rules.expand(system.GROUPS, system.order).items():
        *path, modality = prefix.rstrip(".").split(".")
        value = report.likelihoods.get(f"{modality}_club{'_2' if '1' in path else ''}")
        if path[-1:] == ["club"] and value is not None:
            ours |= {f"lld_{section}": -value, f"{section.split('_')[0].lower()}_lld": -value}
    return ours
