"""Types where people meet them: complete signatures of the public classes, types of settings that admit their defaults,
and mypy over all of it, strict for `cmg.api`."""

import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import cmg
from cmg.data import sets
from cmg.data.clips import Clips
from cmg.data.sets.avs_s4 import S4
from cmg.downstream.task import Pretrained, Task
from cmg.downstream.tasks import Split, TaskEntry
from cmg.models.config import Config
from cmg.systems.base import Codes, Encoder, FrozenEncoder, Group, Losses, System
from cmg.systems.settings import Options
from conftest import ROOT

DATASETS = [thing for found in iter_modules(sets.__path__) if found.name != "avs_s4"
            for thing in vars(import_module(f"cmg.data.sets.{found.name}")).values()
            if inspect.isclass(thing) and issubclass(thing, Clips)]
PUBLIC = [S4, Codes, Config, Encoder, FrozenEncoder, Group, Losses, Options, Pretrained, Split, System, Task, TaskEntry,
          *dict.fromkeys(DATASETS), *(getattr(cmg, name) for name in cmg.__all__ if name != "clip_class")]


def functions_of(thing):
    """(name, function) of a public function, or of the public methods that a class defines itself."""
    if inspect.isfunction(thing):
        yield thing.__name__, thing
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        is_own = inspect.isfunction(member) and member.__module__ == thing.__module__
        if is_own and (not name.startswith("_") or name == "__init__") and member.__qualname__ != "__create_fn__":
            yield f"{thing.__name__}.{name}", inspect.unwrap(member)


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_signatures_are_complete(thing):
    for name, function in functions_of(thing):
        signature = inspect.signature(function)
        open_ones = [parameter.name for parameter in signature.parameters.values()
                     if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")]
        assert not open_ones and signature.return_annotation is not signature.empty, (name, open_ones)


def admits(hint, value):
    """Whether a value is of a declared type."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(admits(part, value) for part in get_args(hint))
    if origin is tuple:
        kind, *rest = get_args(hint)
        return isinstance(value, tuple) and all(admits(kind, part) for part in value) and rest == [...]
    return hint is Any or isinstance(value, origin or hint) or hint is float and isinstance(value, int)


def settings_classes():
    """Every dataclass of the package with a field that is a setting."""
    for name in ("cli", "own_data", "models.config", "systems.settings", "training.settings", "downstream.settings"):
        for thing in vars(import_module(f"cmg.{name}")).values():
            if is_dataclass(thing) and any("affects_results" in field.metadata for field in fields(thing)):
                yield thing


@pytest.mark.parametrize("kind", dict.fromkeys(settings_classes()), ids=lambda kind: kind.__qualname__)
def test_the_type_of_a_setting_admits_its_default(kind):
    hints = get_type_hints(kind)
    wrong = [field.name for field in fields(kind) if "affects_results" in field.metadata
             and not admits(hints[field.name], field.default)]
    assert not wrong, wrong


def test_mypy_finds_nothing(tmp_path):
    """As `mypy` in the folder code does it; what is checked is listed in pyproject.toml. A user's program as well."""
    (tmp_path / "user.py").write_text("""
import cmg
import torch
encoder = cmg.load("DCID-model-5.pt")
codes: cmg.Codes = encoder.embed("audio", torch.zeros(1, 10, 128))
head = cmg.fit_head(encoder, "audio", torch.zeros(1, 10, 128), torch.zeros(1, dtype=torch.long))
score: float = head.score("video", torch.zeros(1, 10, 7, 7, 512), torch.zeros(1))["accuracy"]
reveal_type(cmg.retrieve(encoder, ("audio", torch.zeros(1, 10, 128)), ("text", torch.zeros(1, 10, 768))).indices)
encoder.embed(3, torch.zeros(1))
""")
    configuration = (ROOT / "code" / "pyproject.toml").read_text(encoding="utf-8")
    listed = [part.strip().strip('"') for part in configuration.split("\nfiles = [")[1].split("]")[0].split(",")]
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", tmp_path,
                           *listed, tmp_path / "user.py"], cwd=ROOT / "code", capture_output=True, text=True)
    lines = [line.split("user.py:")[-1] for line in done.stdout.splitlines()]
    assert [line for line in lines if not line.startswith(("8: note", "Found 1 error"))] == [
        '9: error: Argument 1 to "embed" of "Encoder" has incompatible type "int"; expected "str"  [arg-type]'], done
    assert any("torch._tensor.Tensor" in line for line in lines)
