"""A run's folder: the log, the resolved options, the figures over time; and the seeds of a run."""

import json
import logging
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from errors import InputError


def seed_everything(seed):
    """Seed Python, NumPy and torch, and return a generator of the run's own for its draws."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


class _Console(logging.Handler):
    """Prints log lines without tearing a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)


class Run:
    """One run's folder with `log.txt`, `options.json`, `metrics.jsonl` and TensorBoard events.

    Args:
        folder: made where it is absent; files of an earlier run in it are added to, not replaced.
        options: resolved options as JSON values.
    """

    def __init__(self, folder, options):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "options.json").write_text(json.dumps(options, indent=1) + "\n")
            file = logging.FileHandler(self.folder / "log.txt")
        except OSError as error:
            raise InputError(f"{self.folder}: the run's folder cannot be written ({error.strerror}); choose another "
                             "with --snapshot_pref") from error
        logger = logging.getLogger()
        for handler in list(logger.handlers):
            if getattr(handler, "of_run", False):
                logger.removeHandler(handler)
                handler.close()
        for handler, form in ((file, "%(asctime)s %(message)s"), (_Console(), "%(message)s")):
            handler.of_run = True
            handler.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%d %H:%M:%S"))
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        self.writer = SummaryWriter(self.folder)

    def scalars(self, step, epoch, losses, metrics, clips_per_second):
        """Add one line of figures to metrics.jsonl and to TensorBoard; values are plain numbers."""
        line = {"epoch": epoch, "step": step, "losses": losses, "metrics": metrics,
                "clips_per_second": round(clips_per_second, 2)}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        for group, values in (("loss", losses), ("metric", metrics)):
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)
        self.writer.add_scalar("clips_per_second", clips_per_second, step)

    def close(self):
        self.writer.close()
