"""The state of a run in a checkpoint, besides the weights: its position, random states, clips and options."""

import hashlib
import logging
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

import torch

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import NO_OPTIMIZER, is_optimizer
from cmg.data.fingerprint import how_checked
from cmg.training.monitors import CodebookMonitor
from cmg.training.run_logger import set_random_state
from cmg.utils.errors import InputError
from cmg.utils.files import safe_name

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Position of a run."""

    epoch: int = 0              # the current epoch
    clips: int = 0              # clips of this epoch that have been processed
    step: int = 0               # number of steps taken


@dataclass
class RunState:
    """State of a run, stored as `run` in a checkpoint, under the names of the fields."""

    position: Position
    started: list               # System.initialized
    random: dict                # run_logger.random_state
    clips: dict                 # of `identify`
    options: dict               # options that affect results, as plain values
    saved: list = field(default_factory=list)       # names of the checkpoints of this run, oldest first
    records: dict = field(default_factory=dict)     # RunLogger.position
    health: dict = field(default_factory=dict)      # CodebookMonitor.state
    processes: int | None = None    # processes that share a batch; None in files of earlier versions

    def to_dict(self):
        """The state as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, loaded):
        """The state stored in a checkpoint, None for a published file.

        Raises:
            InputError: `run` is damaged.
        """
        stored = loaded.contents.get("run") or None
        if stored is None:
            return None
        try:
            state = cls(**{**stored, "position": Position(**stored["position"])})
            numbers = [*asdict(state.position).values(), state.clips["number"], state.processes or 0,
                       *(state.records[name] for name in ("bytes", "step") if state.records)]
            kinds = (state.started, list), (state.saved, list), (state.options, dict), (state.records, dict), (
                state.health, dict), (state.random, dict)
            if not is_identity(state.clips) or not all(type(n) is int and n >= 0 for n in numbers) or (
                    len(state.started) != len(loaded.system.codebooks)) or not all(
                    isinstance(value, kind) for value, kind in kinds) or not all(
                    type(flag) is bool for flag in state.started) or not all(
                    isinstance(name, str) for name in (*state.saved, state.records.get("folder", ""))):
                raise ValueError("values of other types")
            set_random_state(state.random, torch.Generator())
            CodebookMonitor(**state.health)
        except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, AttributeError, IndexError) as error:
            raise InputError(f"{loaded.path}: its entry 'run' is not a valid run state ({type(error).__name__}: "
                             f"{str(error)[:80]}); the file is damaged; use another checkpoint, or remove this entry "
                             "and resume at the epoch") from error
        return state


def identify(data, contents=None):
    """Values that identify the clips of a run, as plain data.

    Args:
        data: the dataset.
        contents: dotted name -> Fingerprint of what it was opened from (cmg/data/fingerprint.py).

    Returns:
        {"number", "ids_sha256": of their ids in order, "content": dotted name -> SHA-256, "checked": "full" if every
        byte was read, "quick" if the cache was used, "origin": see `Clips`}; older files have only the first two.
    """
    found = {"number": len(data), "ids_sha256": hashlib.sha256("\n".join(data.ids).encode()).hexdigest(),
             "origin": data.origin}
    if contents:
        found |= {"content": {name: of_path.sha256 for name, of_path in contents.items()},
                  "checked": how_checked(contents.values())}
    return found


def is_identity(clips):
    """Whether a value read from a file is a valid result of `identify`."""
    content = clips.get("content", {}) if isinstance(clips, dict) else None
    return isinstance(content, dict) and type(clips.get("number")) is int and all(isinstance(text, str) for text in (
        clips.get("ids_sha256"), clips.get("checked", ""), clips.get("origin", ""), *content, *content.values()))


def other_clips(stored, own):
    """Differences between two results of `identify`, as a list of texts; entries that only one of them has are
    ignored."""
    if any(stored.get(name) != own[name] for name in ("number", "ids_sha256")):
        return [f"a different list of clips ({stored.get('number')} there, {own['number']} here)"]
    there, here = stored.get("content", {}), own.get("content", {})
    return [f"different content of {name}" for name in here if name in there and there[name] != here[name]]


def differences(stored, own):
    """Differences between two dicts of options, as a list of texts."""
    return [f"{name} {stored[name]} there, {own[name]} here" for name in own if name in stored
            and stored[name] != own[name]]


def find_newest(folder, pattern, own):
    """The newest resumable checkpoint of a run, None if the folder contains no checkpoints.

    Damaged or published files and those of runs with other options are skipped with a warning, as are files without
    optimizer state if no newer file has one.

    Args:
        folder, pattern: folder to search, and glob pattern of file names.
        own: the run's options that affect results.

    Raises:
        InputError: there are only such files, which a new run would replace.
    """
    found, skipped = [], []
    for path in sorted(folder.glob(pattern)):
        is_whole = False
        try:
            stored = checkpoint.read(path, mmap=True)
            is_whole, run = True, stored.get("run") or {}
            if not run:
                raise InputError(f"{path}: contains no run state")
            other = differences(run["options"], own)
            if other:
                raise InputError(f"{path}: belongs to another run ({'; '.join(other)})")
            found.append((int(run["position"]["step"]), any(map(is_optimizer, stored)), path))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            skipped.append((is_whole, str(error) or path))
    step, _, newest = max((one for one in found if one[1]), default=(-1, True, None))
    skipped += [(True, f"{path}: {NO_OPTIMIZER}") for after, _, path in found if after > step]
    for is_whole, reason in skipped:
        if is_whole and not newest:
            raise InputError(f"{reason}; expected checkpoints of this run, because a new run would replace the others; "
                             "resume one with --resume FILE, or choose another --model_save_path")
        log.warning("--resume auto skips: %s", reason)
    return newest


def checkpoints_of_run(loaded, state):
    """Names of a run's earlier checkpoints, oldest first, which `--keep` may remove later.

    The names come from a file that cannot be trusted. A name is accepted only if it is the plain name of such a
    checkpoint, and the file with that name in the same folder was saved by the same run, no later than this one.

    Args:
        loaded: checkpoint.Loaded of the resumed file.
        state: its RunState.
    """
    system, folder, found, others = loaded.system, loaded.path.parent, [], []
    pattern = system.file(system.config.modalities, "*")
    for name in dict.fromkeys(state.saved):
        try:
            path = folder / safe_name(name, loaded.path)
            if not fnmatchcase(name, pattern) or path.is_symlink():
                raise InputError(f"{path}: not a checkpoint of {system.name}")
            if path.is_file():
                run = checkpoint.read(path, mmap=True)["run"]
                if run["options"] != state.options or run["position"]["step"] > state.position.step:
                    raise InputError(f"{path}: belongs to another run")
                found.append(name)
        except (InputError, KeyError, TypeError):
            others.append(name)
    if others:
        log.warning("warning: %s: lists %d files as checkpoints of its run that are not (%s); they are not touched",
                    loaded.path, len(others), ", ".join(name[:60] for name in others[:3]))
    return found
