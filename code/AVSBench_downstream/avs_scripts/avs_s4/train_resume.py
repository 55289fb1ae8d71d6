"""Resuming training that was killed or stopped: its state after each epoch, or after the step at which a signal came,
lies in the run folder until the run is done."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from network.avs import AVSNetwork
from query import Adapter
from torch.utils.data import Sampler

from cmg.checkpoints import checkpoint
from cmg.training.run_logger import RunLogger, random_state, set_random_state
from cmg.training.trainer import differences
from cmg.utils.errors import InputError

FILE = Path("checkpoints") / "resume.pt"


@dataclass
class Unfinished:
    """A run that can be resumed."""

    folder: Path
    records: dict               # Run.position of its last saved epoch


def find(resume, folders, settings):
    """The unfinished run of --resume, or None for a new run.

    Args:
        resume: "auto" for the newest, a run folder, or "" for a new run.
        folders: builders.RunFolders.
        settings: what must agree, as plain values (settings.affects_results).

    Raises:
        InputError: a folder without an unfinished run, of other settings, or a damaged state.
    """
    folder = folders.newest(FILE) if resume == "auto" else Path(resume) if resume else None
    if folder is None:
        return None
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder}: no {FILE}; the folder of a run that was killed after its first epoch is expected; "
                         "leave --resume out, or name another")
    state = checkpoint.read(path, mmap=True)
    if not isinstance(state.get("settings"), dict) or not isinstance(state.get("records"), dict):
        raise InputError(f"{path}: no state of train.py; remove it, or leave --resume out")
    others = differences(state["settings"], settings)
    if others:
        raise InputError(f"{folder}: trained with other settings ({'; '.join(others)}); pass the same, or leave "
                         "--resume out")
    return Unfinished(folder, state["records"])


class Order(Sampler):
    """A new random order of the clips in each pass, from one generator, whatever the number of workers.

    Args:
        clips: how many there are.
        seed: of the generator.
    Attributes:
        skip: clips of the next pass that are left out at its beginning: those before a stop.
        before: state of the generator before the running pass.
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
    """Where a stop within an epoch left it."""

    steps: int = 0              # taken of the epoch
    grey: bool = False          # its masks have been warned of
    means: Means = field(default_factory=Means)         # since the last line of the log
    whole: Means = field(default_factory=Means)         # of the epoch


@dataclass
class TrainState:
    """Everything that training changes; cmg.downstream.resume.Progress keeps it."""

    settings: dict              # see `find`
    network: AVSNetwork
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    order: Order                # of the clips
    log: RunLogger
    within: Within = field(default_factory=Within)
    step: int = 0               # steps taken in all, when an epoch was finished last
    chosen: dict = field(default_factory=dict)      # kind of network_files.FILES -> {"epoch", "mIoU" of validation}

    def contents(self):
        """As plain data and tensors."""
        return {"settings": self.settings, "network": self.network.state_dict(), "adapter": self.adapter.state_dict(),
                "optimizer": self.optimizer.state_dict(), "random": random_state(self.order.generator),
                "records": self.log.position(self.step), "within": asdict(self.within), "before": self.order.before,
                "values": {"chosen": self.chosen}}

    def load(self, contents):
        """Take over `contents` bit for bit. Raises KeyError, TypeError, ValueError, RuntimeError if it is of others."""
        for name in ("network", "adapter", "optimizer"):
            getattr(self, name).load_state_dict(contents[name])
        set_random_state(contents["random"], self.order.generator)
        within = contents["within"]
        self.within = Within(**{**within, "means": Means(**within["means"]), "whole": Means(**within["whole"])})
        if self.within.steps:                   # the epoch is begun again, without its first clips
            self.order.generator.set_state(contents["before"])
        self.chosen = {kind: {"epoch": int(choice["epoch"]), "mIoU": float(choice["mIoU"])}
                       for kind, choice in contents["values"]["chosen"].items()}
