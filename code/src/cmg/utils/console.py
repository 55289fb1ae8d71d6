"""Standard output and standard error of all scripts, installed by `errors.run`.

Printed text may come from untrusted files (class names, ids, paths), and may go to a full disk or a closed pipe:

* control characters become blanks, so that no text can move the cursor or set the title of a terminal; characters
  missing from the locale's encoding are escaped;
* a closed pipe (`| head`) ends the program silently, like other tools; a training run continues without output;
* a full disk ends the program with one line; a training run continues.

Must run on Python 3.7 with only the standard library.
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

# C0 and C1 except tab and line feed, bidirectional control characters, and Unicode's line separators.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
INPUT, OUTPUT, ERRORS = 0, 1, 2         # descriptors
NARROWEST, ELSEWHERE = 40, 100          # columns: minimum, and default without a terminal
OUTPUT_NAME = "standard output"         # `filename` of its OSErrors


def clean(text):
    """Replace control characters except tabs and line feeds with blanks, and escape file name bytes that are not UTF-8.
    """
    return CONTROL.sub(" ", text).encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text):
    """Text without control characters, on one line."""
    return " ".join(clean(str(text)).split())


def width():
    """Columns for printed text: those of the terminal, or the environment variable COLUMNS."""
    return max(shutil.get_terminal_size((ELSEWHERE, 24)).columns, NARROWEST)


def fill(text, columns=None, indent=""):
    """Wrap text to `columns` (default: `width`), only at blanks, so that paths and names are not broken.

    Args:
        indent: indentation of all lines except the first.
    """
    return textwrap.fill(text, columns or width(), subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)


def short_path(path):
    """The shorter of a path's relative and absolute form, as text."""
    path = os.path.abspath(path)
    return min(os.path.relpath(path), path, key=len)


class Console(io.TextIOWrapper):
    """A standard stream.

    Args:
        descriptor: 1 or 2.
        encoding: encoding of the terminal.
        survives: whether the program continues when output can no longer be written.
    """

    def __init__(self, descriptor, encoding, survives):
        self.raw_output = _Descriptor(descriptor, survives)
        super().__init__(io.BufferedWriter(self.raw_output), encoding, errors="backslashreplace", newline="",
                         line_buffering=True)

    def write(self, text):
        """Write cleaned text. On standard error a leading carriage return is kept, for progress bars."""
        start = "\r" if self.fileno() == ERRORS and text[:1] == "\r" else ""
        super().write(start + clean(text[len(start):]))
        return len(text)


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor until it fails permanently."""

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
                return len(data)                # the next write may succeed
            self.is_lost = True
            if is_pipe:
                raise Stopped(signal.SIGPIPE) from None
            raise OSError(error.errno, error.strerror, OUTPUT_NAME) from None

    def close(self):
        """Keep the descriptor open, because C libraries write to it as well."""
        if not self.closed:
            io.RawIOBase.close(self)


def open_console(survives):
    """Replace `sys.stdout` and `sys.stderr` with `Console`s, and ensure that no file gets their descriptors.

    Args:
        survives: whether the program continues when output can no longer be written.
    """
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:                         # closed by the caller: the next file would get this descriptor
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", OUTPUT), ("stderr", ERRORS)):
        old = getattr(sys, name)
        if old is None or _is_standard(old, descriptor):
            with suppress(OSError, AttributeError):
                old.flush()
            setattr(sys, name, Console(descriptor, getattr(old, "encoding", None) or "utf-8", survives))


def _is_standard(stream, descriptor):
    """Whether a stream is the interpreter's own, not captured by a test or notebook."""
    try:
        return stream.fileno() == descriptor and not isinstance(stream, Console)
    except (AttributeError, OSError, ValueError):
        return False
