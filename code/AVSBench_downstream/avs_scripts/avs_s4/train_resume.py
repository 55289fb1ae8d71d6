"""Training that was killed goes on: the state after each epoch, in the run folder until the run is done."""

import logging
from pathlib import Path

from engine import checkpoint
from engine.run_folder import random_state, set_random_state
from errors import InputError

FILE = Path("checkpoints") / "resume.pt"
# Options that the numbers depend on: a run goes on only with the same.
DECISIVE = ("direction", "visual_backbone", "tpavi_stages", "tpavi_vv_flag", "tpavi_va_flag", "image_size", "channels",
            "tpavi_norm_start", "align_start", "adapter_start", "train_batch_size", "lr", "adapter_lr", "wt_dec",
            "sa_loss_flag", "lambda_1", "sa_loss_stages", "mask_pooling_type", "protocol", "seed", "weights",
            "backbone_weights", "choose_channel", "toc_max_num", "toc_min_num", "toc_terms")


def settings(opts, encoder_sha256):
    """The options that must agree, as plain values."""
    resolved = opts.resolved()
    return {name: resolved[name] for name in DECISIVE} | {"encoder_sha256": encoder_sha256}


def find(opts, encoder_sha256):
    """The unfinished run of --resume: (folder, its state), or None for a new run.

    Raises:
        InputError: a folder without an unfinished run, of other settings, or a damaged state.
    """
    if not opts.resume:
        return None
    if opts.resume == "auto":
        runs = sorted(Path(opts.log_dir).glob(f"{opts.session_name}_{opts.direction}_????????-??????"),
                      key=lambda folder: folder.name[-15:])
        folders = [folder for folder in runs if (folder / FILE).is_file()]
        if not folders:
            return None
        folder = folders[-1]
    else:
        folder = Path(opts.resume)
        if not (folder / FILE).is_file():
            raise InputError(f"{folder}: no {FILE}; the folder of a run that was killed after its first epoch is "
                             "expected; leave --resume out, or name another")
    state = checkpoint.read(folder / FILE)
    own, stored = settings(opts, encoder_sha256), state.get("settings")
    if not isinstance(stored, dict) or not isinstance(state.get("records"), dict):
        raise InputError(f"{folder / FILE}: no state of train.py; remove it, or leave --resume out")
    other = [f"{name} {stored.get(name)} there, {own[name]} here" for name in own if stored.get(name) != own[name]]
    if other:
        raise InputError(f"{folder}: trained with other settings ({'; '.join(other)}); pass the same, or leave "
                         "--resume out")
    return folder, state


class Progress:
    """Everything that training changes, between two epochs.

    Args:
        folder: of the run.
        own: `settings`.
        network, query, optimizer, order: as in training.fit; `order` is the generator of the batches.
        run: engine.runs.Run.
    """

    def __init__(self, folder, own, network, query, optimizer, order, run):
        self.path, self.own, self.run, self.order = folder / FILE, own, run, order
        self.parts = {"network": network, "adapter": query.adapter, "optimizer": optimizer}

    def save(self, epoch, step, **values):
        """Keep the state after an epoch; `values`: further plain values that `restore` gives back."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint.save(self.path, state | {
            "settings": self.own, "epoch": epoch, "values": values, "random": random_state(self.order),
            "records": self.run.position(step)})

    def restore(self, state):
        """Take over a state; returns (epochs that are behind, the further values)."""
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            set_random_state(state["random"], self.order)
            found = int(state["epoch"]), dict(state["values"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise InputError(f"{self.path}: is no state of this network ({type(error).__name__}); remove it, or leave "
                             "--resume out") from error
        logging.info(f"{self.path}: going on after epoch {found[0]}")
        return found

    def finish(self):
        """The run is done."""
        self.path.unlink(missing_ok=True)
