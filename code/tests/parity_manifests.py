"""The published manifests: names, shapes and order of every section, and a bit-equal round trip of a filled file."""

import tempfile
from pathlib import Path

import torch

from cmg.checkpoints import checkpoint
from cmg.systems.state_dicts import rules
from golden_io import Check
from parity_dcid import filled, manifest


def check_manifest(folder, name):
    """A checkpoint built from the manifest loads, is saved again, and is bit-equal, its key order included."""
    sections = filled(manifest(folder, name))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "published.pt"
        checkpoint.save(path, sections | {"epoch": 4, "total_step": 2555})
        loaded = checkpoint.open_file(path, torch.float64)
    tensors = rules.layout(type(loaded.system), loaded.system.config)
    again = rules.to_published(loaded.system.state_dict(), tensors, loaded.unused, torch.float64)
    ordered = all(list(again[section]) == list(sections[section]) for section in sections)
    equal = all(torch.equal(again[section][key], value)
                for section in sections for key, value in sections[section].items())
    return [Check(name, "names, shapes and order", 0.0 if ordered else float("inf"), 0),
            Check(name, "bit-equal round trip", 0.0 if equal else float("inf"), 0)]


CHECKS = {name: (lambda folder, name=name: check_manifest(folder, name))
          for name in (f"{system}_published_manifest"
                       for system in ("dcid", "h_dcid", "fcid", "micu", "codaar", "codaar_av"))}
