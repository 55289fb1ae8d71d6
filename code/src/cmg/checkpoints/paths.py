"""Where the weights of an encoder are: a checkpoint, an exported folder, or a name on the Hugging Face hub."""

import re
from os import PathLike
from pathlib import Path

from cmg.utils.errors import InputError, absolute

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SUFFIXES = (".pt", ".pth", ".safetensors")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _is_local(source: str | PathLike[str]) -> bool:
    """Whether a source is a path, and not a name on the hub."""
    path = Path(source)
    return path.exists() or path.suffix in SUFFIXES or not HUB_NAME.fullmatch(str(source))


def path_or_name(source: str | PathLike[str]) -> Path:
    """A path, absolute; a name on the hub, such as "somebody/dcid", as it is unless a file or folder has it."""
    return absolute(source) if _is_local(source) else Path(source)


def no_checkpoint(path: str | PathLike[str]) -> InputError:
    """The error for a checkpoint that is not there."""
    return InputError(f"{path}: no such file; expected a checkpoint, make one with pretrain.sh or name another "
                      "(--checkpoint)")


def require(source: str | PathLike[str]) -> None:
    """Raise InputError if a checkpoint is not there; folders, and names on the hub, are not looked up."""
    if _is_local(source) and not Path(source).is_dir() and not Path(source).is_file():
        raise no_checkpoint(source)


def locate(source: str | PathLike[str], revision: str | None = None) -> Path:
    """The local file with the weights of an encoder.

    Args:
        source: a checkpoint, a folder of checkpoints, of which the one with the most steps is taken, an exported
            folder, its file of weights, or a name on the hub such as "somebody/dcid", which is downloaded once.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: not found.
    """
    path = path_or_name(source)
    if path.is_dir():
        files = [] if (path / WEIGHTS).exists() else sorted(path.glob("*.pt"))
        return max(files, key=_steps, default=path / WEIGHTS)
    if _is_local(source):
        return path
    from huggingface_hub import snapshot_download  # here, because importing it takes a second
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG])) / WEIGHTS
    except Exception as error:              # errors of several libraries: no network, no such name, no permission
        raise InputError(f"{source}: no such file or folder, and not available on the hub ({type(error).__name__}: "
                         f"{str(error).splitlines()[0][:120]}); check the name, the network and your token") from error


def _steps(file: Path) -> int:
    """Number of steps of the run that saved a checkpoint; -1 if it does not say so."""
    from cmg.checkpoints import checkpoint  # here, because it imports PyTorch
    step = checkpoint.read(file, mmap=True).get("total_step")
    return step if type(step) is int else -1
