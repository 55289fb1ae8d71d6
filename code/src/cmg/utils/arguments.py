"""Validate arguments of the Python interface before anything is computed or allocated: each function converts a value
to the type used internally, or raises `InputError`."""

import math
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmg.utils.errors import InputError, absolute
from cmg.utils.limits import LIMITS

NUMBERS = "biuf"                # NumPy's kinds: bool, integers, floating point


def tensor(value: Any, what: str) -> Tensor:
    """Convert a tensor, or anything that NumPy can convert to an array, to a tensor; byte order, strides and
    writability do not matter. Shares memory if possible.

    Args:
        value: the numbers.
        what: name for messages.

    Raises:
        InputError: not an array of real numbers.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_complex() or value.is_meta or value.is_quantized:
            raise InputError(f"{what}: a tensor of {str(value.dtype).removeprefix('torch.')}, {value.layout}; expected "
                             "a dense tensor of real numbers")
        return value.detach()
    if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
        raise InputError(f"{what}: the array has masked values; expected an array without them; fill them, or remove "
                         "these clips")
    array = _array(value, what)
    if array.dtype.kind not in NUMBERS:
        raise InputError(f"{what}: {_described(value, array)}; expected an array of real numbers")
    if array.dtype.kind == "u" and array.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{what}: integers too large for int64; expected smaller ones")
    native = {"u": np.uint8 if array.itemsize == 1 else np.int64,       # older PyTorch lacks other types
              "f": array.dtype.newbyteorder("=") if array.itemsize <= 8 else np.float64}
    array = array.astype(native.get(array.dtype.kind, array.dtype.newbyteorder("=")), copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # noqa: BLE001   whatever an object's own __array__ raises
        raise InputError(f"{what}: {_described(value)} that NumPy cannot convert to an array "
                         f"({str(error).splitlines()[0][:80] if str(error) else type(error).__name__}); expected an "
                         "array or tensor") from None


def _described(value: Any, array: np.ndarray | None = None) -> str:
    if array is None or array.ndim == 0:
        return f"a value of type {type(value).__name__}"
    return f"an array of {array.dtype}"


def names(value: Any) -> list[str] | None:
    """The strings in a list or array of strings; None if it contains anything else."""
    if isinstance(value, (Tensor, str, bytes)) or isinstance(value, (list, tuple)) and not all(
            isinstance(name, str) for name in value):           # NumPy would convert numbers among them to strings
        return None
    try:
        array = np.asarray(value)
    except Exception:  # noqa: BLE001   `tensor` reports the problem
        return None
    if array.ndim != 1 or not array.size or not (
            array.dtype.kind == "U" or array.dtype.kind in "OT" and all(isinstance(name, str) for name in array)):
        return None
    return [str(name) for name in array]


def integer(value: Any, what: str, least: int = -LIMITS.seed, most: int = LIMITS.seed) -> int:
    """Check that a value is an integer between `least` and `most`: a Python or NumPy integer or a tensor with one.

    Raises:
        InputError: anything else.
    """
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):
        number = None
    if number is None or isinstance(value, (bool, np.bool_)) or not least <= number <= most:
        raise InputError(f"{what}: {_shown(value)}; expected a whole number from {least:,} to {most:,}")
    return number


def not_negative(value: Any, what: str) -> float:
    """Check that a value is a finite number of at least 0.

    Raises:
        InputError: anything else.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes, bool, np.bool_)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{what}: {_shown(value)}; expected a finite number of at least 0")
    return number


def path(value: Any, what: str) -> Path:
    """Convert a value to an absolute path.

    Raises:
        InputError: neither a string nor a path, empty, or with a zero byte.
    """
    if not isinstance(value, (str, os.PathLike)) or str(value) == "" or "\0" in str(value):
        raise InputError(f"{what}: {_shown(value)}; expected a path, str or pathlib.Path")
    return absolute(value)


def paths(value: Any, what: str) -> list[Path]:
    """Convert a path or a list of paths to a list of absolute paths.

    Raises:
        InputError: something else is among them.
    """
    if isinstance(value, (str, os.PathLike)):
        return [path(value, what)]
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{what}: {_shown(value)}; expected a list of paths")
    return [path(each, what) for each in value]


def _shown(value: Any) -> str:
    text = f"{value!r:.60}" if isinstance(value, (str, bytes, int, float, type(None), np.generic)) else ""
    return text or f"a value of type {type(value).__name__}"
