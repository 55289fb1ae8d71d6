"""Training state, saved to a file every few seconds or after every epoch, so that an interrupted call can be
resumed."""

import logging
import time
from pathlib import Path

from cmg.checkpoints import checkpoint
from cmg.utils.errors import InputError
from cmg.utils.files import as_input_error, remove_leftovers

log = logging.getLogger(__name__)
SECONDS = 20                    # between saves; most tasks finish before the first


class Progress:
    """Training state between epochs, of heads (`fit_heads.fit`) or of a segmentation network.

    Args:
        path: file to save to; its name must identify the call (options, data, checkpoint).
        seconds: minimum time between saves.
    """

    def __init__(self, path, seconds=SECONDS):
        self.path, self.seconds, self.saved = Path(path), seconds, time.monotonic()

    def restore(self, state):
        """Load the saved state into `state`; returns the number of completed epochs, 0 without a file.

        Args:
            state: object with `contents()` and `load(contents)`, such as fit_heads.FitState.
        """
        remove_leftovers(self.path.parent, self.path.name)
        if not self.path.is_file():
            return 0
        try:
            kept = checkpoint.read(self.path)
            state.load(kept)
            epoch = kept["epoch"]
        except (InputError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            raise InputError(f"{self.path}: is not a state of this training ({type(error).__name__}); remove it to "
                             "start over") from error
        log.warning("%s: resuming an interrupted call after epoch %d", self.path, epoch)
        return epoch

    def keep(self, state, epoch):
        """Save unless the last save was recent; `epoch` is the number of completed epochs."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save(state.contents(), epoch)

    def save(self, contents, epoch):
        """Save the result of `contents()` now."""
        checkpoint.save(self.path, contents | {"epoch": epoch})
        self.saved = time.monotonic()

    def finish(self):
        """Remove the file, which is no longer needed once the results are written."""
        with as_input_error(self.path, "choose another path with --results"):
            self.path.unlink(missing_ok=True)
