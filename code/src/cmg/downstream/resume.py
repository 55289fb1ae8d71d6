"""State of a training, kept in a file every few seconds or after every epoch, so that a killed call can be resumed."""

import logging
import time
from pathlib import Path

from cmg.checkpoints import checkpoint
from cmg.utils.errors import InputError
from cmg.utils.files import as_input_error, remove_leftovers

log = logging.getLogger(__name__)
SECONDS = 20                    # between two saves; most tasks are done before


class Progress:
    """State of a training between epochs: of heads (`fit_heads.fit`), of a segmentation network.

    Args:
        path: file to keep; its name must tell the call apart from others (options, data, checkpoint).
        seconds: between two saves.
    """

    def __init__(self, path, seconds=SECONDS):
        self.path, self.seconds, self.saved = Path(path), seconds, time.monotonic()

    def restore(self, state):
        """Put a kept state into `state`; returns how many epochs are done, 0 without a file.

        Args:
            state: has `contents()` and `load(contents)`, as fit_heads.FitState.
        """
        remove_leftovers(self.path.parent, self.path.name)
        if not self.path.is_file():
            return 0
        try:
            kept = checkpoint.read(self.path)
            state.load(kept)
            epoch = kept["epoch"]
        except (InputError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise InputError(f"{self.path}: is no state of this training ({type(error).__name__}); remove it to "
                             "start again") from error
        log.warning("%s: resuming after epoch %d of a call that was killed", self.path, epoch)
        return epoch

    def keep(self, state, epoch):
        """Save, unless that was done a moment ago; `epoch`: how many are done."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save(state.contents(), epoch)

    def save(self, contents, epoch):
        """Save now what a state gave as `contents()`."""
        checkpoint.save(self.path, contents | {"epoch": epoch})
        self.saved = time.monotonic()

    def finish(self):
        """The training is done and its results are written: the file is not needed any more."""
        with as_input_error(self.path, "choose another path with --results"):
            self.path.unlink(missing_ok=True)
