"""Standard output and standard error as every script uses them: `errors.run` puts them in place.

What is printed may come from files of others (class names, ids, paths), and where it goes may be a full disk or a pipe
whose reader has left:

* control characters become blanks, so that no text moves the cursor or sets the title of a terminal, and what the
  locale's encoding does not have is written as an escape;
* a reader that leaves (`| head`) ends the program silently, as usual tools; a training continues without output;
* a full disk ends the program with one line; a training continues.

Valid Python 3.7, standard library alone.
"""

import io
import os
import re
import shutil
import signal
import sys
import textwrap
from contextlib import suppress

from cmg.utils.signals import Stopped

# C0 and C1 but tab and line end, marks that turn the direction of a text, and Unicode's own line ends.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
INPUT, OUTPUT, ERRORS = 0, 1, 2         # descriptors
NARROWEST, ELSEWHERE = 40, 100          # columns: least that texts are fitted to, and those where there is no terminal
OUTPUT_NAME = "standard output"         # the `filename` of an OSError of it


def clean(text):
    """A text without control characters; tabs and line ends stay. Bytes of file names that are no UTF-8 are escaped."""
    return CONTROL.sub(" ", text).encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text):
    """A text without control characters, on one line."""
    return " ".join(clean(str(text)).split())


def width():
    """Columns that printed text may take: those of the terminal, or COLUMNS of the environment."""
    return max(shutil.get_terminal_size((ELSEWHERE, 24)).columns, NARROWEST)


def fill(text, columns=None, indent=""):
    """A text on lines of at most `columns` (default: `width`), broken at blanks alone: paths and names stay whole.

    Args:
        indent: of all lines but the first.
    """
    return textwrap.fill(text, columns or width(), subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)


def short_path(path):
    """The shorter form of a path as text: relative to the current folder, or absolute."""
    path = os.path.abspath(path)
    return min(os.path.relpath(path), path, key=len)


class Console(io.TextIOWrapper):
    """A standard stream.

    Args:
        descriptor: 1 or 2.
        encoding: of the terminal.
        survives: whether the program continues when nothing can be written any more.
    """

    def __init__(self, descriptor, encoding, survives):
        self.raw_output = _Descriptor(descriptor, survives)
        super().__init__(io.BufferedWriter(self.raw_output), encoding, errors="backslashreplace", newline="",
                         line_buffering=True)

    def write(self, text):
        """Write a text, cleaned. Progress bars, on standard error, begin with a carriage return."""
        start = "\r" if self.fileno() == ERRORS and text[:1] == "\r" else ""
        super().write(start + clean(text[len(start):]))
        return len(text)


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor until that fails for good."""

    def __init__(self, descriptor, survives):
        self.descriptor, self.survives, self.is_lost = descriptor, survives, False

    def fileno(self):
        return self.descriptor

    def writable(self):
        return True

    def isatty(self):
        return os.isatty(self.descriptor)

    def write(self, data):
        if self.is_lost:
            return len(data)
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            raise
        except OSError as error:
            is_pipe = isinstance(error, BrokenPipeError)
            if self.survives or self.descriptor == ERRORS and not is_pipe:
                return len(data)                # the next line may fit again
            self.is_lost = True
            if is_pipe:
                raise Stopped(signal.SIGPIPE) from None
            raise OSError(error.errno, error.strerror, OUTPUT_NAME) from None

    def close(self):
        """Leave the descriptor open: what C libraries have to say goes there as well."""
        if not self.closed:
            io.RawIOBase.close(self)


def open_console(survives):
    """Make `sys.stdout` and `sys.stderr` a `Console`, and see to it that no file takes their descriptors.

    Args:
        survives: whether the program continues when nothing can be written any more.
    """
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:                         # closed by the caller: the next file would get this number
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", OUTPUT), ("stderr", ERRORS)):
        old = getattr(sys, name)
        if old is None or _is_standard(old, descriptor):
            with suppress(OSError, AttributeError):
                old.flush()
            setattr(sys, name, Console(descriptor, getattr(old, "encoding", None) or "utf-8", survives))


def _is_standard(stream, descriptor):
    """Whether a stream is the interpreter's own: neither captured by a test nor by a notebook."""
    try:
        return stream.fileno() == descriptor and not isinstance(stream, Console)
    except (AttributeError, OSError, ValueError):
        return False
