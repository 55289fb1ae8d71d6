"""Sources of encoder weights: a checkpoint, an exported folder, or a name on the Hugging Face Hub."""

import re
from os import PathLike
from pathlib import Path

from cmg.utils.errors import InputError, absolute

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SUFFIXES = (".pt", ".pth", ".safetensors")
SHOWN = 3                       # folders in a message
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _is_local(source: str | PathLike[str]) -> bool:
    """Whether a source is a path rather than a name on the Hub."""
    path = Path(source)
    return path.exists() or path.suffix in SUFFIXES or not HUB_NAME.fullmatch(str(source))


def path_or_name(source: str | PathLike[str]) -> Path:
    """Make a path absolute. A name on the Hub, such as "somebody/dcid", is returned unchanged unless a file or folder
    has this name."""
    return absolute(source) if _is_local(source) else Path(source)


def no_checkpoint(path: str | PathLike[str]) -> InputError:
    """The error for a missing checkpoint."""
    return InputError(f"{path}: no such file; expected a checkpoint; create one with pretrain.sh or choose another "
                      "(--checkpoint)")


def require(source: str | PathLike[str]) -> None:
    """Raise InputError if a checkpoint is missing or a folder contains none; names on the Hub are not looked up."""
    path = Path(source)
    if not path.is_dir():
        if _is_local(source) and not path.is_file():
            raise no_checkpoint(source)
    elif not any((path / name).exists() for name in (WEIGHTS, CONFIG)) and not any(path.glob("*.pt")):
        below = sorted({file.parent for pattern in ("*.pt", WEIGHTS) for file in path.glob(f"*/{pattern}")})
        where = " or ".join(map(str, below[:SHOWN])) or "another, or create one with pretrain.sh"
        raise InputError(f"{path}: no checkpoint in this folder; expected *.pt files of pretraining, or {WEIGHTS} with "
                         f"{CONFIG} of an exported encoder; choose {where}")
