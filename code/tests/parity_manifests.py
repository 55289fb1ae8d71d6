"""The published manifests: names, shapes and order of every section; and a bit-equal round trip through a file."""

import tempfile
from pathlib import Path

import torch

from cmg.checkpoints import checkpoint
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts import rules
from golden_io import Check
from parity_dcid import filled, manifest


def check_shapes(folder, name):
    """Sections of the published sizes, each tensor with numbers of its own, come back bit-equal and in their order."""
    generator = torch.Generator().manual_seed(0)
    sections = {section: {key: torch.rand(shape, generator=generator) for key, shape in keys.items()}
                for section, keys in manifest(folder, name).items()}
    kind, config = rules.infer_config(sections, list(SYSTEMS.values()))
    tensors = rules.layout(kind, config)
    state, unused = rules.from_published(sections, tensors, sections)
    absent = {key: torch.zeros(x.shape) for key, x in rules.meta(kind, config).state_dict().items() if key not in state}
    again = rules.to_published(state | absent, tensors, unused, torch.float32)
    return compared(name, "names, shapes and order", sections, again)


def check_file(folder, name):
    """A checkpoint built from the manifest of a small run loads, is saved again, and is bit-equal."""
    sections = {section: content for section, content in filled(manifest(folder, name)).items()
                if not section.startswith("Jigsaw")}        # of the small run alone: the published file has none
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "published.pt"
        checkpoint.save(path, sections | {"epoch": 4, "total_step": 2555})
        loaded = checkpoint.open_file(path, torch.float64)
    tensors = rules.layout(type(loaded.system), loaded.system.config)
    again = rules.to_published(loaded.system.state_dict(), tensors, loaded.unused, torch.float64)
    return compared(name, "bit-equal round trip", sections, again)


def compared(name, group, sections, again):
    same = all(list(again[section]) == list(sections[section]) for section in sections) and all(
        torch.equal(again[section][key], value) for section in sections for key, value in sections[section].items())
    return [Check(name, group, 0.0 if same else float("inf"), 0)]


CHECKS = {name: (lambda folder, name=name, check=check: check(folder, name))
          for size, check in (("published", check_shapes), ("small", check_file))
          for name in (f"{system}_{size}_manifest"
                       for system in ("dcid", "h_dcid", "fcid", "micu", "codaar", "codaar_av"))}
