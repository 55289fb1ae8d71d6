"""Checkpoints, compatible with published files in both directions, and complete for resuming a run.

A file is a dict of the published sections (cmg/systems/state_dicts/rules.py), the published optimizer sections, `epoch`
and `total_step`. Only our program reads the rest: `config` (system and sizes), tensors without a published name and
their optimizer state, `features` (origins of the features: cmg/data/origins.py), and `run` (random state, position,
options). `python -m cmg.checkpoints FILE` describes a file.
"""

import pickle
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from cmg.checkpoints.optimizer_state import is_optimizer, optimizer_sections
from cmg.checkpoints.paths import no_checkpoint
from cmg.data import origins
from cmg.data.archive import require_stored
from cmg.models.codebook import code_perplexity
from cmg.models.config import numbers
from cmg.systems.base import FrozenEncoder
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts import rules
from cmg.systems.state_dicts.rules import EXTRA_SECTION
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_write
from cmg.utils.limits import LIMITS

HASHES = "clip_hashes"               # entry: name_hashes (cmg/data/clips.py) of the clips of pretraining


@dataclass
class Loaded:
    """A pretraining checkpoint, read and checked."""

    path: Path
    system: object              # cmg.systems.base.System, in the requested dtype
    unused: dict                # unused published tensors, kept for rewriting the file
    contents: dict              # the raw contents of the file
    epoch: int = -1
    total_step: int = 0
    missing: list = field(default_factory=list)     # sections and tensors that training needs but the file lacks

    @property
    def complete(self):
        """Whether training can resume from this file."""
        return not self.missing

    @property
    def feature_origins(self):
        """Modality -> origin of its features (cmg/data/origins.py), None for every modality of a published file. For
        files of our earlier versions, which do not contain it, the property itself is None."""
        if "config" not in self.contents:
            return dict.fromkeys(self.system.config.modalities)
        return self.contents.get("features")

    @property
    def pretraining(self):
        """{"options", "clips", "hashes"} of the run that saved the file, as far as known; see FrozenEncoder."""
        run, hashes = self.contents.get("run"), self.contents.get(HASHES)
        found = {name: run[name] for name in ("options", "clips") if isinstance(run.get(name), dict)} if isinstance(
            run, dict) else {}
        is_known = rules.is_plain(hashes) and hashes.dtype == torch.int64 and hashes.ndim == 1
        return found | ({"hashes": hashes.numpy()} if is_known else {})


def save(path, contents):
    """Write a file atomically. Tensors are moved to the CPU, so that machines without a GPU can read them.

    Raises:
        InputError: the file cannot be written; an existing one is unchanged.
    """
    path, contents = Path(path), tree_map_only(torch.Tensor, torch.Tensor.cpu, contents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(contents, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__     # torch hides that the disk is full
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0][:120]
        raise InputError(f"{path}: could not be written ({reason}); free space or choose another folder; existing "
                         "files are unchanged") from error


def _numpy_entry(path):
    """Describe where a torch.save file contains its first NumPy value, for messages; the pickle is only inspected, not
    executed."""
    last = None
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        for opcode, value, _ in pickletools.genops(archive.read(name)):
            if opcode.name == "GLOBAL" and value.startswith("numpy"):
                return f"at its entry '{last[:60]}'" if last else "at its top level"
            last = value if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE") else last
    return "next to its tensors"


def read(path, mmap=False):
    """Read the dict stored in a checkpoint file, with tensors on the CPU. Only plain data is unpickled.

    Args:
        path: the file.
        mmap: memory-map the tensors, to inspect a large file quickly.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or contains anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise no_checkpoint(path)
    require_stored(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            if "GLOBAL numpy" in str(error):
                raise InputError(f"{path}: contains a NumPy value {_numpy_entry(path)}; expected tensors and plain "
                                 "values; convert it before torch.save in the program that wrote the file: float(x), "
                                 "int(x), or torch.as_tensor(x) for an array") from error
            raise InputError(f"{path}: contains objects other than tensors and plain values, which could run code, and "
                             "was not loaded; use a file from a source that you trust") from error
        raise InputError(f"{path}: not a torch.save checkpoint; download or save it again") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError,
            SystemError) as error:              # SystemError: a read error under Python 3.13
        raise InputError(f"{path}: truncated or not a torch.save checkpoint ({type(error).__name__}); download or save "
                         "it again") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path}: contains a {type(contents).__name__}; expected a dict of sections such as "
                         f"{rules.ENCODER}")
    return contents


def open_file(path, dtype=torch.float32):
    """Read a pretraining checkpoint, published or ours, into a system. Parts that only training needs may be missing.

    Returns:
        Loaded.

    Raises:
        InputError: the file is damaged, or was written by another program.
    """
    contents = read(path)
    try:
        _require_sections(contents)
        kind, config = config_of(contents)
        require_sizes(config)
        _require_memory(kind, config)
        tensors = rules.layout(kind, config)
        required = {tensor.section for tensor in tensors if any(name.startswith("encoder.") for name in tensor.ours)}
        state, unused = rules.from_published(contents, tensors, sorted(required))
        state |= _own_tensors(contents, kind, config, state)
    except InputError as error:
        raise InputError(f"{path}: {error}; the file is damaged or was written by another program") from None
    with torch.device("meta"):
        system = kind(config)
    expected = system.state_dict()
    absent = [name for name in expected if name not in state]
    fresh = kind(config).state_dict() if absent else {}
    system.load_state_dict({
        name: state[name].to(dtype if value.is_floating_point() else value.dtype, copy=True)
        if name in state else fresh[name].to(dtype if value.is_floating_point() else value.dtype)
        for name, value in expected.items()}, assign=True)
    for parameter in system.parameters():
        parameter.requires_grad_(True)
    section_of = {name: tensor.section for tensor in tensors for name in tensor.ours}
    missing = list(dict.fromkeys(section_of.get(name, f"{EXTRA_SECTION}.{name}") for name in absent))
    epoch, step = contents.get("epoch", -1), contents.get("total_step", 0)
    if not isinstance(epoch, int) or not isinstance(step, int):
        raise InputError(f"{path}: epoch and total_step are {epoch!r} and {step!r}; expected integers")
    origins.require_descriptions(contents.get("features"), path)
    return Loaded(Path(path), system, unused, contents, epoch, step, missing)


def config_of(contents):
    """(class of the system, its config), as stored in the file or inferred from its tensors."""
    stored = contents.get("config")
    if stored is None:
        return rules.infer_config(contents, list(SYSTEMS.values()))
    if not isinstance(stored, dict) or stored.get("system") not in SYSTEMS:
        named = stored.get("system") if isinstance(stored, dict) else stored
        raise InputError(f"its config names the system {named!r:.60}; expected one of {', '.join(SYSTEMS)}")
    kind = SYSTEMS[stored["system"]]
    try:
        return kind, kind.Config.from_dict({name: value for name, value in stored.items() if name != "system"})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its config is not valid for {kind.label} ({error})") from None


def _own_tensors(contents, kind, config, state):
    """Check the tensors without a published name against the system, and return them."""
    own = contents.get(EXTRA_SECTION, {})
    expected = {name: value for name, value in rules.meta(kind, config).state_dict().items() if name not in state}
    known = {name for tensor in rules.layout(kind, config) for name in tensor.ours}
    for name, value in own.items():
        if name not in expected or name in known:
            raise InputError(f"{EXTRA_SECTION} has an unknown key {name}")
        rules.require_shape(f"{EXTRA_SECTION}.{name}", value, expected[name].shape)
        rules.require_numbers(f"{EXTRA_SECTION}.{name}", value, not expected[name].is_floating_point())
    return own


def _require_sections(contents):
    """Raise InputError unless every section of parameters is a dict from names to values, with plain tensors only."""
    for name, section in contents.items():
        if str(name).endswith("_parameters"):
            if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
                raise InputError(f"section {name} is not a dict from names to tensors")
            for key, value in section.items():
                if isinstance(value, torch.Tensor):
                    rules.require_plain(f"{name}.{key}", value)


def require_sizes(config):
    """Raise InputError for sizes that are impossible for a network, such as those inferred from damaged tensors."""
    sizes = numbers(config)
    least = min(sizes, key=sizes.get)
    if sizes[least] < 1 or config.code_dim % config.num_heads:
        raise InputError(f"{' '.join(map(str, least))} is {sizes[least]}, code_dim {config.code_dim}; expected at "
                         f"least 1, and a code_dim divisible by {config.num_heads}")
    most = max(sizes, key=sizes.get)
    if sizes[most] > LIMITS.width or config.num_layers > LIMITS.layers:
        raise InputError(f"{' '.join(map(str, most))} is {sizes[most]:,}, num_layers {config.num_layers:,}; at most "
                         f"{LIMITS.width:,} and {LIMITS.layers} are supported (cmg/utils/limits.py)")


def _require_memory(kind, config):
    """Raise InputError if a config results in more parameters than any system has."""
    with torch.device("meta"):
        count = sum(value.numel() for value in kind(config).state_dict().values())
    if count > LIMITS.parameters:
        raise InputError(f"its sizes give {count:,} parameters; at most {LIMITS.parameters:,} are supported "
                         "(cmg/utils/limits.py)")


def load_encoder(path, device="cpu", dtype=torch.float32, zero_code0=False):
    """The FrozenEncoder of a pretraining checkpoint, on `device`; see cmg.systems.base for `zero_code0`."""
    loaded = open_file(path, dtype)
    return FrozenEncoder(loaded.system.encoder, type(loaded.system), loaded.epoch, zero_code0,
                         loaded.feature_origins, loaded.pretraining).to(device)


def untrained_like(encoder: FrozenEncoder, seed: int) -> FrozenEncoder:
    """The control in every table: an encoder with the same shapes and untrained weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = encoder.system(encoder.config).encoder
        for codes in fresh.codebooks:      # on the scale of its features; otherwise all seconds would get the same code
            codes.normal_()
    like = encoder.codebooks[0]
    return FrozenEncoder(fresh.to(like), encoder.system, zero_code0=encoder.zero_code0).to(like.device)


def drop_optimizers(path):
    """Rewrite a file without its optimizer state, which is two thirds of its size; a file without one is not changed.

    Raises:
        InputError: it cannot be read or written; the file is then unchanged.
    """
    contents = read(path, mmap=True)
    kept = {name: value for name, value in contents.items() if not is_optimizer(name)}
    if len(kept) < len(contents):
        save(path, kept)


def pack(system, optimizers, unused, epoch, total_step, run_state, dtype=torch.float32, feature_origins=None,
         hashes=None):
    """The contents of a pretraining checkpoint.

    Args:
        system: cmg.systems.base.System.
        optimizers: cmg.training.optim.Optimizers, or None for a file with weights only.
        unused: unused published tensors, see rules.to_published.
        epoch, total_step: last completed epoch, and number of steps taken.
        run_state: plain data, stored as `run`.
        dtype: dtype of the tensors.
        feature_origins: modality -> origin of its features (cmg/data/origins.py); None if unknown.
        hashes: (N,) int64 hashes of the names of its clips (cmg.data.clips.name_hashes); None if unknown.
    """
    state = system.state_dict()
    contents = rules.to_published(state, rules.layout(type(system), system.config), unused, dtype)
    own = {name: rules.stored(state[name], dtype) for name in rules.own_names(system)}
    contents |= {EXTRA_SECTION: own} if own else {}
    contents |= optimizer_sections(system, optimizers) if optimizers else {}
    contents |= {"epoch": epoch, "total_step": total_step, "config": config_to_dict(system), "run": run_state}
    contents |= {} if hashes is None else {HASHES: torch.from_numpy(hashes)}
    return contents | ({} if feature_origins is None else {"features": feature_origins})


def config_to_dict(system):
    """The entry that `config_of` reads, as plain values."""
    return {"system": system.name} | system.config.to_dict()


def as_published(loaded):
    """The contents of a file with every tensor that the strict loading of the published programs expects."""
    return rules.with_unused(loaded.contents, rules.layout(type(loaded.system), loaded.system.config))


def describe(path):
    """Describe a checkpoint, as a list of lines."""
    loaded = open_file(path, torch.float64)
    system = loaded.system
    config, tensors = system.config, rules.layout(type(system), system.config)
    absent = {name for tensor in tensors if tensor.section in loaded.missing for name in tensor.ours}
    stored = [parameter.numel() for name, parameter in system.named_parameters()
              if name not in absent and f"{EXTRA_SECTION}.{name}" not in loaded.missing]
    dead = [*loaded.unused, *(name for module in system.modules() for name in getattr(module, "unread", ()))]
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for s in loaded.contents.values() if isinstance(s, dict)
                     for v in s.values() if isinstance(v, torch.Tensor)})
    own, lacking = rules.own_names(system), list(loaded.missing)
    lacking += [] if any(map(is_optimizer, loaded.contents)) else ["optimizer state"]
    lines = [f"file            {path}", f"system          {system.name} ({system.label})",
             f"modalities      {', '.join(config.modalities)}",
             f"codes           K = {config.num_codes}, D = {config.code_dim}",
             "features        " + ", ".join(f"{m} {config.kind(m)} {' x '.join(map(str, shape))}"
                                            for m, shape in config.shapes),
             f"layers          {config.num_layers} per temporal encoder",
             f"epoch, step     {loaded.epoch}, {loaded.total_step}",
             f"stored as       {', '.join(dtypes)}",
             f"parameters      {sum(stored):,}",
             f"missing         {', '.join(lacking) or 'nothing: training can resume from it'}",
             f"unused tensors  {len(dead)} (stored, without effect)"]
    if own:
        lines.append(f"own tensors     {', '.join(own)} (no published name)")
    for suffix, codebook in system.codebooks.items():
        recent = int(((codebook.unactivated_count >= 0) & (codebook.unactivated_count < 100)).sum())
        lines.append(f"codebook{suffix.replace('_', ' '):<8}{recent} of {len(codebook.embedding)} codes used or "
                     "reset in the last 100 passes, perplexity of the moving counts "
                     f"{code_perplexity(codebook):.1f}, "
                     f"{int((codebook.embedding.norm(dim=1) < 1e-6).sum())} codes at zero")
    return lines
