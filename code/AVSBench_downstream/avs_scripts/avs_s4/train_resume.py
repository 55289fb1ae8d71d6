"""Resume training that was killed or stopped: the folder of an unfinished run contains the state after the last epoch,
or after the step at which it was stopped."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from network.avs import AVSNetwork
from query import Adapter
from torch.utils.data import Sampler

from cmg.checkpoints import checkpoint
from cmg.training.run_logger import RunLogger, random_state, set_random_state
from cmg.training.run_state import differences
from cmg.utils.errors import InputError

FILE = Path("checkpoints") / "resume.pt"


@dataclass
class Unfinished:
    """A run that can be resumed."""

    folder: Path
    records: dict               # RunLogger.position of its last saved epoch


def find(resume, folders, settings):
    """The unfinished run of --resume, or None for a new run.

    Args:
        resume: "auto" for the newest one, a run folder, or "" for a new run.
        folders: builders.RunFolders.
        settings: settings that must agree, as plain values (settings.affects_results).

    Raises:
        InputError: the folder has no unfinished run, one with other settings, or a damaged state.
    """
    folder = folders.newest(FILE) if resume == "auto" else Path(resume) if resume else None
    if folder is None:
        return None
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder}: no {FILE}; expected the folder of a run that was killed after its first epoch; "
                         "omit --resume, or choose another folder")
    state = checkpoint.read(path, mmap=True)
    if not isinstance(state.get("settings"), dict) or not isinstance(state.get("records"), dict):
        raise InputError(f"{path}: not a state of train.py; delete it, or omit --resume")
    others = differences(state["settings"], settings)
    if others:
        raise InputError(f"{folder}: trained with other settings ({'; '.join(others)}); pass the same ones, or omit "
                         "--resume")
    return Unfinished(folder, state["records"])


class Order(Sampler):
    """Sampler with a new random order of the clips in each epoch, independent of the number of workers.

    Args:
        clips: number of clips.
        seed: seed of the generator.

    Attributes:
        skip: number of clips to skip at the beginning of the next epoch, because they were processed before a stop.
        before: state of the generator before the current epoch.
    """

    def __init__(self, clips, seed):
        self.clips, self.generator, self.skip = clips, torch.Generator().manual_seed(seed), 0
        self.before = self.generator.get_state()

    def __len__(self):
        return self.clips

    def __iter__(self):
        self.before = self.generator.get_state()
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)    # as DataLoader(shuffle=True) draws
        order = torch.randperm(self.clips, generator=self.generator).tolist()
        skip, self.skip = self.skip, 0
        return iter(order[skip:])


@dataclass
class Means:
    """Running means of the losses."""

    steps: int = 0
    values: dict = field(default_factory=dict)

    def add(self, values):
        self.steps += 1
        for name, value in values.items():
            mean = self.values.get(name, 0.0)
            self.values[name] = mean + (value - mean) / self.steps


@dataclass
class Within:
    """Progress within an epoch."""

    steps: int = 0              # steps taken in the epoch
    grey: bool = False          # a warning of gray masks has been issued
    means: Means = field(default_factory=Means)         # since the last line of the log
    whole: Means = field(default_factory=Means)         # of the epoch


@dataclass
class TrainState:
    """Everything that changes during training, saved by cmg.downstream.resume.Progress."""

    settings: dict              # see `find`
    network: AVSNetwork
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    order: Order                # of the clips
    log: RunLogger
    within: Within = field(default_factory=Within)
    step: int = 0               # number of steps taken before the current epoch
    chosen: dict = field(default_factory=dict)      # kind of network_files.FILES -> {"epoch", "mIoU" of validation}

    def contents(self):
        """The state as plain data and tensors."""
        return {"settings": self.settings, "network": self.network.state_dict(), "adapter": self.adapter.state_dict(),
                "optimizer": self.optimizer.state_dict(), "random": random_state(self.order.generator),
                "records": self.log.position(self.step), "within": asdict(self.within), "before": self.order.before,
                "values": {"chosen": self.chosen}}

    def load(self, contents):
        """Load `contents()` exactly; raises KeyError, TypeError, ValueError or RuntimeError if it is invalid."""
        for name in ("network", "adapter", "optimizer"):
            getattr(self, name).load_state_dict(contents[name])
        set_random_state(contents["random"], self.order.generator)
        within = contents["within"]
        self.within = Within(**{**within, "means": Means(**within["means"]), "whole": Means(**within["whole"])})
        if self.within.steps:                   # restart the epoch without its first clips
            self.order.generator.set_state(contents["before"])
        self.chosen = {kind: {"epoch": int(choice["epoch"]), "mIoU": float(choice["mIoU"])}
                       for kind, choice in contents["values"]["chosen"].items()}
