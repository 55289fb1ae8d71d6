"""Wrong input ends in one clear line and exit code 2; everything else is our own mistake and keeps its traceback."""

import argparse
import sys


class InputError(ValueError):
    """A file or setting that the user can mend. One line: what was found where, what was expected, what to do."""


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and reports wrong use in one line."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(main):
    """Run an entry point and turn `InputError` into one line on standard error and exit code 2.

    `--debug` anywhere on the command line shows the traceback as well. Ctrl-C ends with exit code 130.
    """
    try:
        code = main()
    except InputError as error:
        if "--debug" in sys.argv:
            raise
        message = str(error).rsplit("InputError: ", 1)[-1]      # a DataLoader worker puts its traceback before it
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
