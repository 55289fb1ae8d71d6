"""Heads in training, kept in a file every few seconds, so that a call that was killed goes on where it was."""

import logging
import time
from pathlib import Path

from engine import checkpoint
from errors import InputError

log = logging.getLogger(__name__)
SECONDS = 20                    # between two saves; most tasks are done before


class Progress:
    """State of `transfer.fit` between epochs.

    Args:
        path: file to keep; its name must tell the call apart from others (downstream.py: options, data, checkpoint).
        seconds: between two saves.
    """

    def __init__(self, path, seconds=SECONDS):
        self.path, self.seconds, self.saved = Path(path), seconds, time.monotonic()

    def restore(self, state):
        """Put a kept state into `state`; returns the epochs that are behind, 0 without a file.

        Args:
            state: FitState of engine/transfer/fit_heads.py.
        """
        if not self.path.is_file():
            return 0
        try:
            kept = checkpoint.read(self.path)
            state.load(kept)
            epoch = kept["epoch"]
        except (InputError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise InputError(f"{self.path}: is no state of these heads ({type(error).__name__}); remove it to train "
                             "them from the beginning") from error
        log.warning("%s: going on after epoch %d of a call that was killed", self.path, epoch)
        return epoch

    def keep(self, state, epoch):
        """Save, unless that was done a moment ago; `epoch`: how many are behind."""
        if time.monotonic() - self.saved >= self.seconds:
            checkpoint.save(self.path, state.contents() | {"epoch": epoch})
            self.saved = time.monotonic()

    def finish(self):
        """The heads are trained and measured, the results are written: the file is not needed any more."""
        self.path.unlink(missing_ok=True)
