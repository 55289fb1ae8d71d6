"""Wrong input ends in one clear line and exit code 2; everything else is our own mistake and keeps its traceback."""

import argparse
import logging
import os
import re
import sys
from contextlib import contextmanager

from cmg.utils.signals import Stopped, exit_now, handled

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class InputError(ValueError):
    """A file or setting that the user can mend. One line: what was found where, what was expected, what to do.

    Control characters, which names and cells of files may hold, become blanks: they could end the line or move the
    cursor of a terminal.
    """

    def __init__(self, message):
        super().__init__(CONTROL.sub(" ", str(message)))


@contextmanager
def readable(path, remedy="get or make the file again"):
    """Turn an OSError of the block, in which `path` is read, into one line.

    Raises:
        InputError: the file is absent, or the disk does not give it.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); a readable file is expected; check the "
                         f"disk and its permissions, or {remedy}") from error


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds an argument's default where there is one and its text does not tell it."""

    def _get_help_string(self, action):
        is_told = action.default is False or action.default in (None, "", [], ()) or "default" in (action.help or "")
        return action.help if is_told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and reports wrong use in one line."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", Help)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(main, several=False):
    """Run an entry point and turn `InputError` into one line on standard error and exit code 2.

    `--debug` anywhere on the command line shows the traceback as well. SIGTERM and Ctrl-C end with one line and exit
    code 128 + signal (cmg/utils/signals.py).

    Args:
        main: the entry point; returns an exit code or None.
        several: may several processes of torchrun do this together?
    """
    try:
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        if not alone and not several:
            raise InputError(f"{os.path.basename(sys.argv[0])}: {os.environ['WORLD_SIZE']} processes of torchrun; this "
                             "program is one process; start it without torchrun")
        if alone:
            with handled(exit_now):
                code = main()
        else:               # a signal must also end a process that waits for others within a library
            code = main()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        message = str(error).rsplit("InputError: ", 1)[-1]      # a DataLoader worker puts its traceback before it
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        if str(stopped) and not logging.getLogger().isEnabledFor(logging.INFO):      # else the log has said it
            print(stopped, file=sys.stderr)
        code = stopped.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
