"""The folder of a run, with its log, resolved options and metrics over time; and the random state of a run."""

import json
import logging
import random
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cmg.training.loggers import LOGGERS
from cmg.utils import console
from cmg.utils.console import clean
from cmg.utils.errors import InputError
from cmg.utils.files import append_lines, atomic_write, read_text_input, remove_leftovers
from cmg.utils.limits import LIMITS

log = logging.getLogger(__name__)
OPTIONS = "options.json"        # in a run's folder
WARNINGS = "warnings.jsonl"     # in a run's folder, and next to results
GROUPS = {"losses": "loss", "metrics": "metric", "likelihoods": "likelihood", "grad_norms": "grad_norm"}


def seed_everything(seed):
    """Seed Python, NumPy and torch, and return the run's sampling generator."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def random_state(generator: torch.Generator) -> dict[str, Any]:
    """State of all generators as plain values and tensors: Python, NumPy, torch, GPUs, and the run's sampling
    generator."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, keys.tolist(), *rest],
            "torch": torch.get_rng_state(), "run": generator.get_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any], generator: torch.Generator) -> None:
    """Restore the result of `random_state`. GPUs that are not part of the state keep theirs.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError, OverflowError: this is not a valid state.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    generator.set_state(state["run"])
    for device, of_device in zip(range(torch.cuda.device_count()), state["cuda"]):
        torch.cuda.set_rng_state(of_device, device)


class _Console(logging.Handler):
    """Prints log lines without breaking a progress bar. If a line cannot be printed, it is dropped and the run
    continues."""

    def emit(self, record):
        text = clean(self.format(record))
        with suppress(OSError, ValueError):     # ValueError: the stream is closed
            if sys.stdout is not None:          # None: there never was a console
                encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
                tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)


class _File(logging.FileHandler):
    """A log file of clean text. Continuation lines of a message are indented, so that a message does not look like
    several. Lines that cannot be written are dropped; the console still shows them."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8", errors="backslashreplace")

    def format(self, record):
        return clean(super().format(record)).replace("\n", "\n  ")

    def handleError(self, record):
        pass

    def close(self):
        with suppress(OSError):         # the last line did not fit on the disk
            super().close()


class _Warnings(logging.Handler):
    """Appends warnings and errors to a file, one JSON object {"time", "level", "message"} per line. The file is created
    with the first one."""

    def __init__(self, file):
        super().__init__(logging.WARNING)
        self.file = Path(file).absolute()

    def format(self, record):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return json.dumps({"time": when, "level": record.levelname.lower(), "message": clean(record.getMessage())})

    def emit(self, record):
        with suppress(OSError):         # as for the log
            append_lines(self.file, self.format(record).encode() + b"\n")


class _Collected(logging.Handler):
    """Collects distinct warnings and errors for the end of a program."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = {}

    def emit(self, record):
        self.lines[clean(record.getMessage())] = None


@contextmanager
def kept_warnings(folder):
    """Append the warnings of the block to WARNINGS in a folder, and print them at the end, wrapped to the terminal. If
    the surrounding program has a log, they go there instead of the terminal."""
    _reset_logging()            # from an earlier pretraining, as in demo.py
    logger, handler, collected = logging.getLogger(), _Warnings(Path(folder) / WARNINGS), _Collected()
    handlers = [handler] if logger.handlers else [handler, collected]
    for each in handlers:
        logger.addHandler(each)
    try:
        yield
    finally:
        for each in handlers:
            logger.removeHandler(each)
        handler.close()
        for line in collected.lines:
            print(console.fill(line, indent="  "), file=sys.stderr)


def setup_logging(file=None, verbose=False):
    """Send log lines to the console and, with timestamps, to the end of `file`; warnings also go to the file WARNINGS
    next to it. Earlier destinations are removed.

    Args:
        file: the log, which also includes our details (level DEBUG).
        verbose: whether the console shows them as well.

    Raises:
        OSError: the file cannot be written.
    """
    _reset_logging()
    logger = logging.getLogger()
    logging.getLogger("cmg").setLevel(logging.DEBUG)
    shown = _Console()
    shown.setLevel(logging.DEBUG if verbose else logging.INFO)
    handlers = [(shown, "%(message)s")]
    if file:
        handlers.append((_File(file), "%(asctime)s %(message)s"))
        handlers.append((_Warnings(Path(file).with_name(WARNINGS)), ""))
    for handler, form in handlers:
        handler.of_run = True
        handler.setFormatter(logging.Formatter(form, datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _reset_logging():
    """Undo `setup_logging`."""
    logger = logging.getLogger()
    for handler in [handler for handler in logger.handlers if getattr(handler, "of_run", False)]:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(logging.WARNING)


@contextmanager
def restored_log():
    """Restore the logging setup of the surrounding program after the block."""
    levels = {name: logging.getLogger(name).level for name in ("root", "cmg")}
    try:
        yield
    finally:
        _reset_logging()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def beginning(folder):
    """Position of a run with records in `folder` that starts again from its first step."""
    return {"folder": str(Path(folder).absolute()), "bytes": 0, "step": 0}


def earlier_options(folder):
    """Options of the run in this folder, {} if they cannot be read."""
    try:
        found = json.loads(read_text_input(Path(folder) / OPTIONS, LIMITS.record_bytes))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


class RunLogger:
    """One run's folder with `log.txt`, `options.json`, `metrics.jsonl`, and the output of its logger.

    Args:
        folder: created if it does not exist; files of an earlier run are appended to, not replaced.
        options: resolved options as JSON values.
        position: for a resumed run, the result of `position` when its checkpoint was saved, or `beginning` if it ended
            before its first one; later lines of metrics.jsonl, whose steps are repeated, move to discarded.jsonl. None
            for a new run.
        backend: additional logger for the values, one of cmg.training.loggers.LOGGERS.
    """

    def __init__(self, folder, options, position=None, backend="tensorboard"):
        self.folder, self.is_full = Path(folder), False
        self._hook, threading.excepthook = threading.excepthook, self._on_thread_error
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            with atomic_write(self.folder / OPTIONS, "w") as file:
                file.write(json.dumps(options, indent=1) + "\n")
            setup_logging(self.folder / "log.txt", bool(options.get("verbose")))
            if position and position["folder"] == str(self.folder.absolute()):
                self._truncate_metrics(position["bytes"])
            self.logger = LOGGERS[backend](self.folder, options, position["step"] if position else None)
        except InputError:
            threading.excepthook = self._hook
            raise
        except OSError as error:
            threading.excepthook = self._hook
            raise InputError(f"{self.folder}: the run's folder cannot be written ({error.strerror}); choose another "
                             "with --snapshot_pref") from error

    @property
    def metrics_file(self):
        return self.folder / "metrics.jsonl"

    def position(self, step):
        """Current end of this folder's records, for a checkpoint saved after `step` steps."""
        size = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        return beginning(self.folder) | {"bytes": size, "step": step}

    def _truncate_metrics(self, size):
        """Move the part of metrics.jsonl beyond `size` bytes to discarded.jsonl."""
        if self.metrics_file.exists() and self.metrics_file.stat().st_size > size:
            with open(self.metrics_file, "r+b") as file:
                file.seek(size)
                append_lines(self.folder / "discarded.jsonl", file.read(), flushed=True)     # before they are removed
                file.truncate(size)

    def code_use(self, step, chosen, figures=None):
        """Log which codes a batch uses.

        Args:
            chosen: suffix of a codebook -> modality -> (K,) how often each of its codes was used.
            figures: suffix -> matplotlib figure of it.
        """
        try:
            for suffix, of_modalities in chosen.items():
                for modality, counts in of_modalities.items():
                    self.logger.histogram(step, f"codes{suffix}/{modality}", counts)
            for suffix, figure in (figures or {}).items():
                self.logger.figure(step, f"codes{suffix}/by modality", figure)
        except OSError as error:
            self._disk_is_full(error)

    def scalars(self, step, epoch, values):
        """Append one line of values to metrics.jsonl, and log them.

        On a full disk the values are lost, but the run continues; one warning is logged.

        Args:
            values: name -> plain number, or name of a group ("losses", "grad_norms") -> name -> plain number.
        """
        try:
            append_lines(self.metrics_file, json.dumps({"epoch": epoch, "step": step} | values).encode() + b"\n")
            shown = {}
            for name, value in values.items():
                shown |= {f"{GROUPS.get(name, name)}/{part}": number for part, number in value.items()} if isinstance(
                    value, dict) else {name: value}
            self.logger.scalars(step, shown)
        except OSError as error:
            self._disk_is_full(error)

    def _on_thread_error(self, failed):
        """TensorBoard writes in its own thread. An error there would only print a traceback, so it is suppressed; the
        next call raises the same error."""
        if not issubclass(failed.exc_type, OSError):
            self._hook(failed)

    def _disk_is_full(self, error):
        if not self.is_full:
            log.error("%s: metrics cannot be written (%s); training continues without them; free space", self.folder,
                      error.strerror)
        self.is_full = True

    def close(self):
        try:
            self.logger.close()
        except OSError as error:
            self._disk_is_full(error)
        threading.excepthook = self._hook
