"""How programs end: wrong input in one clear line and exit code 2, a signal in one line once what is under way is
saved, a lost reader of the output quietly. Everything else is our own mistake and keeps its traceback.

Valid Python 3.7, standard library alone.
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

LAUNCHED = ("RANK", "MASTER_ADDR", "MASTER_PORT")       # what several processes need beside WORLD_SIZE


class InputError(ValueError):
    """A file or setting that the user can fix. One line: what was found where, what was expected, what to do.

    Control characters, which names and cells of files may hold, become blanks: they could end the line or move the
    cursor of a terminal.
    """

    def __init__(self, message: object) -> None:
        super().__init__(clean(str(message).replace("\n", " ").replace("\t", " ")))


@contextmanager
def readable(path, remedy="get or make the file again"):
    """Turn an OSError of the block, which reads `path`, into one line.

    Raises:
        InputError: the file is absent, or cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a readable file; check the "
                         f"disk and its permissions, or {remedy}") from error


def absolute(path):
    """A path as an absolute one, without "..", so that messages, records and results name the file from everywhere.
    Relative paths count from the current folder; "~" is the home folder, which shells replace neither after "=" nor
    within quotes; symbolic links stay."""
    path = os.path.expanduser(str(path))
    plain = os.path.abspath(path)
    return Path(plain if os.path.realpath(plain) == os.path.realpath(path) else os.path.join(os.getcwd(), path))


def did_you_mean(name, known):
    """", did you mean ...?" with the known name that a misspelled one is nearest to; empty where none is near."""
    near = [] if name in known else get_close_matches(name, known, 1)
    return f", did you mean {near[0]}?" if near else ""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds an argument's default where there is one and its text does not state it."""

    def _get_help_string(self, action):
        is_stated = action.default is False or action.default in (None, "", [], ()) or "default" in (action.help or "")
        return action.help if is_stated else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts no abbreviations, reports wrong use in one line, and makes arguments of type Path
    absolute."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", Help)
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.register("type", Path, absolute)

    def error(self, message):
        try:
            self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
        except SystemExit as end:
            raise end from InputError(message)          # for who calls a program from Python


# ------------------------------------------------------------------------------------------- processes started together
def launched_processes():
    """Number of processes that were started together: WORLD_SIZE of the environment, 1 where it is not set or empty.

    Raises:
        InputError: WORLD_SIZE is no number; or there are several processes, and the environment does not say which one
            this is.
    """
    size = _environment_number("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE") else 1
    if size > 1:
        missing = [name for name in LAUNCHED if not os.environ.get(name)]
        if missing:
            raise InputError(f"WORLD_SIZE={size} in the environment without {', '.join(missing)}; expected all that "
                             "torchrun sets; start with torchrun, or unset WORLD_SIZE to run one process")
        for name in ("MASTER_PORT", "LOCAL_RANK"):
            if os.environ.get(name):
                _environment_number(name, 0)
        if _environment_number("RANK", 0) >= size:
            raise InputError(f"RANK={os.environ['RANK']} in the environment of {size} processes; expected a number "
                             "below WORLD_SIZE; start with torchrun")
    return size


def is_first_process():
    """Whether this is the first of the processes that were started together, or the only one."""
    return launched_processes() == 1 or int(os.environ["RANK"]) == 0


def _environment_number(name, least):
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < least:
        raise InputError(f"{name}={text[:40]!r} in the environment; expected a whole number from {least} on, as "
                         f"torchrun sets it; unset {name} to run one process")
    return int(text)


# ------------------------------------------------------------------------------------------------------------- programs
def run(main, several=False, survives=False):
    """Run an entry point as a program and exit.

    `InputError` becomes one line on standard error and exit code 2; `--debug` anywhere on the command line shows the
    traceback as well. Signals end with one line and exit code 128 + signal (cmg/utils/signals.py). What is printed is
    clean, and its reader may leave (cmg/utils/console.py).

    Args:
        main: the entry point; returns an exit code or None.
        several: whether several processes of torchrun may do this together.
        survives: whether the program continues when nothing can be printed any more, as a training does.
    """
    open_console(survives)
    try:
        size = launched_processes()
        if size > 1 and not several:
            raise InputError(f"{os.path.basename(sys.argv[0])}: {size} processes of torchrun; this program is one "
                             "process; start it without torchrun")
        if size == 1:
            with handled(exit_now):
                code = main()
        else:               # a signal must also end a process that waits for others within a library
            code = main()
        sys.stdout.flush()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        message = str(error).rsplit("InputError: ", 1)[-1]      # a DataLoader worker puts its traceback first
        print(f"error: {one_line(message)}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        if str(stopped) and not logging.getLogger().isEnabledFor(logging.INFO):      # else it was logged
            print(stopped, file=sys.stderr)
        code = stopped.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.filename != OUTPUT_NAME:
            raise
        print(f"error: {OUTPUT_NAME}: cannot be written ({error.strerror}); free space, or send it elsewhere",
              file=sys.stderr)
        code = 2
    sys.exit(code or 0)
