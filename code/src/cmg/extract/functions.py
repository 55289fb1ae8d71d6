"""Encoders given by the user as a function: `module:function` or `file.py:function`.

A function takes a batch and returns an array; `docs/features.md` has an example. Only the file or module named by the
user is executed.

| modality | batch | result |
| --- | --- | --- |
| audio | (N, rate) float32, one second per row, full scale 1; with a front end, its patches | (N, D) |
| video | (N, H, W, 3) uint8; with mean and std, float32 | (N, D), or a map with `output_layout` |
| text | N lists of words | N arrays (words, D) |
"""

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from pathlib import Path

import numpy as np

from cmg.utils.errors import InputError, absolute, readable
from cmg.utils.files import open_input

SPEC = re.compile(r"(?P<source>.+):(?P<name>[A-Za-z_]\w*)")


class Failed(Exception):
    """A network or function failed on an input."""


def is_spec(name):
    """Whether a name has the form `module:function` or `file.py:function`."""
    found = SPEC.fullmatch(str(name))
    return bool(found) and (found["source"].endswith(".py") or all(
        part.isidentifier() for part in found["source"].split(".")))


def _load(spec):
    """Import `module:function` or `file.py:function`; returns the function and its source file or None."""
    source, name = SPEC.fullmatch(spec).groups()
    try:
        if source.endswith(".py"):
            path = absolute(source)
            if not path.is_file():
                raise InputError(f"{path}: no such file; expected a file with the function {name}; check the path")
            found = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(found)
            sys.modules.setdefault(path.stem, module)           # dataclasses look up their module there
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except InputError:
        raise
    except Exception as error:      # noqa: BLE001   the user's code may raise anything
        raise InputError(f"{spec}: cannot be imported ({type(error).__name__}: {str(error)[:120]}); expected a module "
                         f"with the function {name}; import it on its own to see the full error") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{spec}: no function {name} in this module; check the name")
    return function, getattr(module, "__file__", None)


def as_array(result, name):
    """Convert a function's result, an array or a tensor, to a float32 array.

    Raises:
        InputError: the result is neither.
    """
    try:
        return np.asarray(result.detach().cpu() if hasattr(result, "detach") else result, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: returned {type(result).__name__} ({str(error)[:80]}); expected an array of numbers; "
                         "fix the function") from None


class FunctionNetwork:
    """A function of the user; a lock keeps calls from overlapping.

    Args:
        function: `module:function`, `file.py:function`, or a callable.
    Attributes:
        inputs: None, because a function does not declare its inputs.
        source: JSON values for the record of a run, with the hash of the function's file.
    Raises:
        InputError: no such file, module or function.
    """

    inputs = None

    def __init__(self, function):
        self.path, self.lock = str(function), threading.Lock()
        file = None
        if callable(function):
            owner = function if hasattr(function, "__qualname__") else type(function)           # a callable object
            self.path = f"{owner.__module__}:{owner.__qualname__}"
            file = getattr(sys.modules.get(owner.__module__), "__file__", None)
        else:
            function, file = _load(self.path)
        digest = ""
        if file and Path(file).is_file():
            with readable(file), open_input(file) as source:
                digest = hashlib.sha256(source.read()).hexdigest()
        self.function = function
        self.source = {"network": "function", "model": Path(self.path).name, "sha256": digest}

    def run(self, batch):
        """Call the function on a batch.

        Raises:
            Failed: the function raised an exception.
        """
        with self.lock:
            try:
                return self.function(batch)
            except Exception as error:      # noqa: BLE001   the user's code may raise anything
                given = f"{batch.shape} {batch.dtype}" if isinstance(batch, np.ndarray) else f"{len(batch)} sentences"
                reason = f"{type(error).__name__}: {str(error)[:120]}"
                raise Failed(f"{self.path}: fails on a batch of {given} ({reason})") from error

    def __call__(self, batch):
        """Call the function and convert its result to an array."""
        return as_array(self.run(batch), self.path)
