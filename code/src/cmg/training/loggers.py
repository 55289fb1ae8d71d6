"""Loggers for a run's values in addition to metrics.jsonl: TensorBoard, trackio, Weights & Biases, or none (`--log`).

trackio and wandb are optional, and imported only on request. trackio keeps everything on this machine unless
TRACKIO_SPACE_ID names a space on the Hub; wandb sends it to its server, or keeps it with WANDB_MODE=offline.
"""

import secrets
from importlib import import_module
from pathlib import Path

import numpy as np

from cmg.utils.errors import InputError
from cmg.utils.files import atomic_write

PROJECT = "cmg"                 # project name of runs in the trackers
BINS = 512                      # maximum number of histogram bins in the trackers
WANDB_ID = "wandb-id"           # file in the run's folder, so that a resumed run continues its curves


class NoLogger:
    """Base class of the loggers, which logs nothing.

    Args:
        folder: Path of the run's folder.
        config: resolved options as JSON values.
        resumed_step: step of the checkpoint that the run resumes from; None for a new run.
    """

    def __init__(self, folder, config, resumed_step=None):
        pass

    def scalars(self, step, values):
        """Log values, name -> number; names have the form "group/name"."""

    def histogram(self, step, name, counts):
        """Log how often each of K codes was used, as counts (K,)."""

    def figure(self, step, name, figure):
        """Log a matplotlib Figure."""

    def close(self):
        """Flush buffered values."""


class TensorBoard(NoLogger):
    """Event files in the run's folder. TensorBoard hides the steps that a resumed run repeats."""

    def __init__(self, folder, config, resumed_step=None):
        from torch.utils.tensorboard import SummaryWriter  # imported here because it takes seconds
        self.writer = SummaryWriter(folder, purge_step=None if resumed_step is None else resumed_step + 1)

    def scalars(self, step, values):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def histogram(self, step, name, counts):
        codes = np.arange(len(counts))
        self.writer.add_histogram_raw(
            name, min=0, max=len(counts) - 1, num=int(counts.sum()), sum=float(counts @ codes),
            sum_squares=float(counts @ codes ** 2), bucket_limits=(codes + 0.5).tolist(),
            bucket_counts=counts.tolist(), global_step=step)

    def figure(self, step, name, figure):
        self.writer.add_figure(name, figure, step)

    def close(self):
        self.writer.close()


class Tracker(NoLogger):
    """Common base of trackio and wandb; the former has the interface of the latter.

    Runs are listed under the project `PROJECT`, named after system, data and seed, with all options as their config. A
    resumed run continues its curves; steps that it repeats give the same values as before.

    Raises:
        InputError: the package is not installed or fails to start, for example wandb without an account.
    """

    package = ""                # name for import and pip
    remedy = ""                 # advice if it fails to start

    def __init__(self, folder, config, resumed_step=None):
        try:
            self.module = import_module(self.package)
        except ImportError as error:
            raise InputError(f"--log {self.package}: this package cannot be imported ({error}); pip install "
                             f"{self.package}, or choose --log tensorboard") from error
        try:
            self.run = self.start(folder, run_name(folder, config), config, resumed_step is not None)
        except OSError:
            raise
        except Exception as error:      # noqa: BLE001   each tracker has errors of its own
            raise InputError(f"--log {self.package}: failed to start ({type(error).__name__}: {error}); "
                             f"{self.remedy}") from error

    def start(self, folder, name, config, is_resumed):
        """The package's run."""
        raise NotImplementedError

    def scalars(self, step, values):
        self.run.log(values, step=step)

    def histogram(self, step, name, counts):
        found = np.histogram(np.arange(len(counts)), min(len(counts), BINS), (-0.5, len(counts) - 0.5), weights=counts)
        self.run.log({name: self.module.Histogram(np_histogram=found)}, step=step)

    def figure(self, step, name, figure):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.run.log({name: self.module.Image(np.asarray(canvas.buffer_rgba()))}, step=step)

    def close(self):
        self.run.finish()


class Trackio(Tracker):
    """trackio; `trackio show` opens the dashboard. Runs with the same name and project are distinguished by their
    ids."""

    package, remedy = "trackio", "see its message, or choose --log tensorboard"

    def start(self, folder, name, config, is_resumed):
        return self.module.init(project=PROJECT, name=name, config=config, resume="allow" if is_resumed else "never",
                                embed=False)


class WandB(Tracker):
    """Weights & Biases. Its files are in the run's folder; `wandb sync` uploads those of an offline run."""

    package, remedy = "wandb", "log in with `wandb login`, or set WANDB_MODE=offline"

    def start(self, folder, name, config, is_resumed):
        known = folder / WANDB_ID
        if not is_resumed or not known.is_file():
            with atomic_write(known, "w") as file:
                file.write(secrets.token_hex(4) + "\n")
        return self.module.init(project=PROJECT, name=name, config=config, dir=folder,
                                id=known.read_text(encoding="utf-8").strip(), resume="allow")


LOGGERS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB, "none": NoLogger}


def run_name(folder, config):
    """Name of a run in the trackers: system, data and seed, as far as they are options, else its folder."""
    parts = [str(config[name]) for name in ("system", "dataset_name", "seed") if config.get(name) is not None]
    return "-".join(parts) or Path(folder).absolute().name
