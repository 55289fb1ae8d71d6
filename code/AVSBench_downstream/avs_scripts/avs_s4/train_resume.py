"""Resuming training that was killed: its state after each epoch lies in the run folder until the run is done."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from avs_s4.network.avs import AVSNetwork
from avs_s4.query import Adapter
from engine import checkpoint
from engine.run_folder import Run, random_state, set_random_state
from engine.run_loop import differences
from errors import InputError

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
        settings: what must agree, as plain values (settings.decisive).

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


@dataclass
class TrainState:
    """Everything that training changes; engine.transfer.head_resume.Progress keeps it between two epochs."""

    settings: dict              # see `find`
    network: AVSNetwork
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    order: torch.Generator      # of the batches
    log: Run
    step: int = 0               # steps taken in all
    chosen: dict = field(default_factory=dict)      # kind of network_files.FILES -> {"epoch", "mIoU" of validation}

    def contents(self):
        """As plain data and tensors."""
        return {"settings": self.settings, "network": self.network.state_dict(), "adapter": self.adapter.state_dict(),
                "optimizer": self.optimizer.state_dict(), "random": random_state(self.order),
                "records": self.log.position(self.step), "values": {"chosen": self.chosen}}

    def load(self, contents):
        """Take over `contents` bit for bit. Raises KeyError, TypeError, ValueError, RuntimeError if it is of others."""
        for name in ("network", "adapter", "optimizer"):
            getattr(self, name).load_state_dict(contents[name])
        set_random_state(contents["random"], self.order)
        self.chosen = {kind: {"epoch": int(choice["epoch"]), "mIoU": float(choice["mIoU"])}
                       for kind, choice in contents["values"]["chosen"].items()}
