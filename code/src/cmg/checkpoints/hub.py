"""Load an encoder from a checkpoint, from an exported folder (safetensors and config.json, written by
cmg/report/export.py), or from the Hugging Face Hub."""

import json
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmg.checkpoints import checkpoint
from cmg.checkpoints.paths import CARD, CONFIG, WEIGHTS, path_or_name, require
from cmg.data import origins
from cmg.systems.base import FrozenEncoder
from cmg.systems.state_dicts import rules
from cmg.utils import files
from cmg.utils.errors import InputError
from cmg.utils.files import read_text_input
from cmg.utils.limits import LIMITS

FORMAT = 1                      # of config.json
EARLIER_NAMES = {".residual.spread.": ".residual.conv3x3.", ".residual.mix.": ".residual.conv1x1."}


def locate(source: str | PathLike[str], revision: str | None = None) -> Path:
    """The local file with the weights of an encoder.

    Args:
        source: a checkpoint, a folder of checkpoints (the one with the most steps is used), an exported folder or its
            weights file, or a name on the Hub such as "somebody/dcid", which is downloaded once.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: it was not found.
    """
    path = path_or_name(source)
    if path.is_dir():
        require(path)
        saved = [] if (path / WEIGHTS).exists() else sorted(path.glob("*.pt"))
        return max(saved, key=_steps, default=path / WEIGHTS)
    if path.is_absolute():
        return path
    from huggingface_hub import snapshot_download  # imported here because it takes a second
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG])) / WEIGHTS
    except Exception as error:              # several libraries raise: no network, no such name, no permission
        raise InputError(f"{source}: no such file or folder, and not available on the Hub ({type(error).__name__}: "
                         f"{str(error).splitlines()[0][:120]}); check the name, the network and your token") from error


def _steps(file: Path) -> int:
    """Number of steps of the run that saved a checkpoint; -1 if unknown."""
    step = checkpoint.read(file, mmap=True).get("total_step")
    return step if type(step) is int else -1


def upload(folder: str | Path, name: str, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face Hub, using the token from `hf auth login` or HF_TOKEN.

    Args:
        folder: exported by cmg/report/export.py.
        name: such as "somebody/dcid"; the repository is created if it does not exist.
        private: visible only to its owner; a repository that is already public is refused.

    Returns:
        URL of the repository.

    Raises:
        InputError: there is no token, permission or network, or the name cannot be used.
    """
    from huggingface_hub import HfApi  # imported here because it takes a second
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        is_public = private and not api.repo_info(address.repo_id).private
        if not is_public:
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, allow_patterns=[WEIGHTS, CONFIG, CARD],
                              commit_message="Upload an encoder")
    except Exception as error:              # several libraries raise, as above
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"{name}: the Hub rejected the upload ({type(error).__name__}: {reason}); check the name, the "
                         "network and your token (hf auth login)") from error
    if is_public:
        raise InputError(f"{name}: this repository is public on the Hub, but private=True was requested; nothing was "
                         "uploaded; choose another name, or pass private=False")
    return str(address)


def load_encoder(source: str | PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 zero_code0: bool = False, revision: str | None = None) -> FrozenEncoder:
    """Load a FrozenEncoder (cmg/systems/base.py).

    Args:
        source, revision: see `locate`.
        device, dtype: device and dtype of the encoder.
        zero_code0: see FrozenEncoder.

    Raises:
        InputError: it was not found, or is damaged.
    """
    path = locate(source, revision)
    if path.suffix == ".safetensors":
        return _read(path, dtype, zero_code0).to(device)
    return checkpoint.load_encoder(path, device, dtype, zero_code0)


def _read(path, dtype, zero_code0):
    """The FrozenEncoder of an exported folder, given its weights file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a folder with {WEIGHTS} and {CONFIG}, as written by python "
                         "-m cmg.checkpoints export")
    about = _config(path.with_name(CONFIG))
    if files.sha256(path) != about["weights_sha256"]:
        raise InputError(f"{path}: does not match {CONFIG} (the SHA-256 differs); download or export both again")
    try:
        kind, config = checkpoint.config_of({"config": about["config"]})
        checkpoint.require_sizes(config)
    except InputError as error:
        raise InputError(f"{path.with_name(CONFIG)}: {error}") from None
    try:
        state = {_current_name(name): value for name, value in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a safetensors file ({error}); download or export it again") from error
    with torch.device("meta"):
        encoder = kind(config).encoder
    expected = encoder.state_dict()
    for name in {**expected, **state}:
        try:
            if name not in expected:
                raise InputError(f"it has an unknown tensor {name}")
            rules.require_shape(name, state.get(name), expected[name].shape)
            rules.require_numbers(name, state[name], not expected[name].is_floating_point())
        except InputError as error:
            raise InputError(f"{path}: {error}; the file is damaged or from another version of this program") from None
    encoder.load_state_dict({name: value.to(dtype if value.is_floating_point() else value.dtype)
                             for name, value in state.items()}, assign=True)
    return FrozenEncoder(encoder, kind, about["epoch"], zero_code0, about.get("features"))


def _current_name(name):
    """Current name of a tensor, given its name in an exported folder of any version."""
    for earlier, current in EARLIER_NAMES.items():
        name = name.replace(earlier, current)
    return name


def _config(path):
    """The validated contents of config.json."""
    try:
        if path.stat().st_size > LIMITS.record_bytes:
            raise ValueError("larger than any that this program writes")
        about = json.loads(read_text_input(path, LIMITS.record_bytes))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r:.20}, this program reads {FORMAT}")
        if not isinstance(about["config"], dict) or not isinstance(about["epoch"], int):
            raise ValueError("config or epoch has the wrong type")
        about["weights_sha256"]
        origins.require_descriptions(about.get("features"), path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a config of an exported encoder ({type(error).__name__}: "
                         f"{str(error)[:100]}); export or download it again") from error
    return about
