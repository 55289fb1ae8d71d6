"""How programs end: invalid input with one clear line and exit code 2, a signal with one line after the current work is
saved, a closed output pipe silently. Everything else is a bug and keeps its traceback.

Must run on Python 3.7 with only the standard library.
"""

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from cmg.utils.console import OUTPUT_NAME, clean, one_line, open_console
from cmg.utils.signals import Stopped, exit_now, handled

LAUNCHED = ("RANK", "MASTER_ADDR", "MASTER_PORT")       # required besides WORLD_SIZE for several processes


class InputError(ValueError):
    """An error in a file or setting that the user can fix. One line: what was found where, what was expected, what to
    do.

    Control characters, which may come from names and cells in files, become blanks, because they could end the line or
    move the cursor of a terminal.
    """

    def __init__(self, message: object) -> None:
        super().__init__(clean(str(message).replace("\n", " ").replace("\t", " ")))


@contextmanager
def readable(path, remedy="download or create the file again"):
    """Convert an OSError of the block, which reads `path`, to an InputError.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a readable file; check the "
                         f"disk and its permissions, or {remedy}") from error


def absolute(path):
    """Make a path absolute, without "..", so that messages, records and results identify the file. Relative paths start
    at the current folder; "~" is the home folder, also after "=" and within quotes, where shells do not expand it;
    symbolic links are kept."""
    path = os.path.expanduser(str(path))
    plain = os.path.abspath(path)
    return Path(plain if os.path.realpath(plain) == os.path.realpath(path) else os.path.join(os.getcwd(), path))


def did_you_mean(name, known):
    """", did you mean ...?" with the known name closest to a misspelled one; empty if none is close."""
    near = [] if name in known else get_close_matches(name, known, 1)
    return f", did you mean {near[0]}?" if near else ""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds an argument's default if it has one that its help text does not state."""

    def _get_help_string(self, action):
        is_stated = action.default is False or action.default in (None, "", [], ()) or "default" in (action.help or "")
        return action.help if is_stated else super()._get_help_string(action)


class _Store(argparse._StoreAction):
    """Stores values, and adds those of a repeated flag that takes several: --without club --without cpc."""

    def __call__(self, parser, namespace, values, option_string=None):
        known = getattr(namespace, self.dest, None)
        if self.nargs in ("+", "*") and isinstance(known, list) and known is not self.default:
            values = known + values
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts no abbreviations, reports errors in one line, makes Path arguments absolute, and
    joins the values of repeated flags."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", Help)
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.register("type", Path, absolute)
        self.register("action", None, _Store)

    def error(self, message):
        try:
            self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
        except SystemExit as end:
            raise end from InputError(message)          # for who calls a program from Python


# ------------------------------------------------------------------------------------------- processes started together
def launched_processes():
    """Number of processes that were started together: the environment variable WORLD_SIZE, 1 if it is unset or empty.

    Raises:
        InputError: WORLD_SIZE is not a number, or there are several processes and the environment lacks this one's
            rank.
    """
    size = _environment_number("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE") else 1
    if size > 1:
        missing = [name for name in LAUNCHED if not os.environ.get(name)]
        if missing:
            raise InputError(f"WORLD_SIZE={size} in the environment without {', '.join(missing)}; expected all "
                             "variables that torchrun sets; use torchrun, or unset WORLD_SIZE to run one process")
        for name in ("MASTER_PORT", "LOCAL_RANK"):
            if os.environ.get(name):
                _environment_number(name, 0)
        if _environment_number("RANK", 0) >= size:
            raise InputError(f"RANK={os.environ['RANK']} in the environment of {size} processes; expected a number "
                             "below WORLD_SIZE; use torchrun")
    return size


def is_first_process():
    """Whether this is the first, or the only, process of the run."""
    return launched_processes() == 1 or int(os.environ["RANK"]) == 0


def _environment_number(name, least):
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < least:
        raise InputError(f"{name}={text[:40]!r} in the environment; expected an integer of at least {least}, as set by "
                         f"torchrun; unset {name} to run one process")
    return int(text)


# ------------------------------------------------------------------------------------------------------------- programs
def run(main, several=False, survives=False):
    """Run an entry point as a program and exit.

    `InputError` becomes one line on standard error and exit code 2; `--debug` anywhere on the command line shows the
    traceback as well. Signals end the program with one line and exit code 128 + signal (cmg/utils/signals.py). Output
    is cleaned, and may go to a closed pipe (cmg/utils/console.py).

    Args:
        main: the entry point; returns an exit code or None.
        several: whether the program supports several processes of torchrun.
        survives: whether the program continues, like training, when output can no longer be written.
    """
    open_console(survives)
    try:
        size = launched_processes()
        if size > 1 and not several:
            raise InputError(f"{os.path.basename(sys.argv[0])}: {size} processes of torchrun; expected one process; "
                             "run this program without torchrun")
        if size == 1:
            with handled(exit_now):
                code = main()
        else:               # keep the default, which also ends a process that waits for others in a library
            code = main()
        sys.stdout.flush()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        message = str(error).rsplit("InputError: ", 1)[-1]      # after the traceback of a DataLoader worker
        print(f"error: {one_line(message)}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        if str(stopped) and not logging.getLogger().isEnabledFor(logging.INFO):      # otherwise it was logged
            print(stopped, file=sys.stderr)
        code = stopped.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.filename != OUTPUT_NAME:
            raise
        print(f"error: {OUTPUT_NAME}: cannot be written ({error.strerror}); free some space, or redirect it elsewhere",
              file=sys.stderr)
        code = 2
    sys.exit(code or 0)
