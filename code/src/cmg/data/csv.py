"""Strict readers for annotation tables and class lists: csv files with BOM, CRLF, tabs or blank lines.

Must run on Python 3.7 with only the standard library, because the text exporter uses it in old environments.
"""

import csv
import io
import itertools
import logging
import re

from cmg.utils.errors import InputError
from cmg.utils.files import read_input
from cmg.utils.limits import LIMITS

log = logging.getLogger(__name__)
# Published lists without a header: (patterns of the cells, column names).
HEADERLESS = (
    ((r"[\w-]{11}", r"\d+", r".+", r"train|val|test"), ("video_id", "start", "category", "split")),    # vggsound.csv
    ((r"[\w-]{11}_\d{6}\.mp4", r".+"), ("file", "label")))                       # VGGSound's train.csv and test.csv


def read_bytes(path, flag="--path"):
    """Read a text file as bytes.

    Args:
        path: file to read.
        flag: command-line option that names this file, for messages.
    Raises:
        InputError: the file is missing, unreadable or larger than 256 MB.
    """
    try:
        return read_input(path, LIMITS.list_bytes)
    except OSError as error:
        source = ("download it with the data package, or set its path with --path" if flag == "--path"
                  else f"check {flag}")
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a text file; {source}") from None


def read_text(path, flag="--path"):
    """Read a text file without its byte order mark.

    Raises:
        InputError: see `read_bytes`; or the text is not UTF-8.
    """
    data = read_bytes(path, flag)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; expected a text file; save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: contains zero bytes; expected a text file; download it again")
    return text


def _records(path, separator, flag):
    """Yield (line number, cells) for every line.

    Each line is one record, so a quoted cell cannot contain a line break. Otherwise an unclosed quotation mark would
    silently merge all following rows into one cell.
    """
    for number, line in enumerate(io.StringIO(read_text(path, flag), newline=None), 1):
        try:
            yield number, next(csv.reader([line.rstrip("\n")], delimiter=separator, strict=True), [])
        except csv.Error as error:
            is_open = "end of data" in str(error)
            reason = "unclosed quotation mark" if is_open else error
            raise InputError(f"{path}: line {number} cannot be read as csv ({reason}); expected one row in each line, "
                             f"with cells separated by {'tabs' if separator == chr(9) else 'commas'}; close or remove "
                             "the quotation mark, write one within a quoted cell twice, and remove line breaks from "
                             "cells") from None


def _table(path, separator, names, flag):
    """(column names, iterator of (line number, cells)) of a table; `names` are those of a table without a header."""
    records = _records(path, separator, flag)
    number, first = next(records, (1, []))
    for patterns, known in () if names else HEADERLESS:
        if len(first) == len(patterns) and all(map(re.fullmatch, patterns, (cell.strip() for cell in first))):
            names = known
    return (list(names), itertools.chain([(number, first)], records)) if names else (
        [name.strip() for name in first], records)


def read_header(path, separator=",", names=None, flag="--path"):
    """Column names of a table; VGGSound's own lists, which have no header, are recognized.

    Args:
        path: csv file.
        separator: "," or a tab.
        names: the column names of a table without a header.
        flag: command-line option that names this file, for messages.
    """
    return _table(path, separator, names, flag)[0]


def read_rows(path, columns, separator=",", optional=(), names=None, flag="--path"):
    """Yield the rows of a table, with every cell as text without surrounding blanks.

    Args:
        path: csv file.
        columns: required columns, with a value in each row.
        separator: "," or a tab.
        optional: columns that may be missing or have empty cells.
        names: the column names of a table without a header.
        flag: command-line option that names this file, for messages.
    Yields:
        (line number, dict column -> str) for each row, without other columns. An empty cell is "".
    Raises:
        InputError: names the line if the error is in a single line.
    """
    form = f"the columns {', '.join(columns)}"
    header, records = _table(path, separator, names, flag)
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header)[:80] or "an empty file"
        raise InputError(f"{path}: no column '{missing[0]}' in the header ({found}); expected {form} separated by "
                         f"{'tabs' if separator == chr(9) else 'commas'}; check that this is the right file")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: a column name occurs twice in the header; expected {form}; rename one")
    wanted = [(header.index(name), name) for name in (*columns, *optional) if name in header]
    for number, row in records:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: line {number} has {len(row)} cells; expected {len(header)}; correct the line")
        cells = {name: row[k].strip() for k, name in wanted}
        for name, cell in cells.items():
            if cell.lower() in ("", "nan"):
                if name in columns:
                    raise InputError(f"{path}: line {number} has no {name}; expected a value; correct or remove the "
                                     "line")
                cells[name] = ""
        yield number, cells


def read_table(path, columns, separator=",", flag="--path"):
    """Read columns of a table: dict column -> list of non-empty str, all of the same length; see `read_rows`."""
    table = {name: [] for name in columns}
    for _, cells in read_rows(path, columns, separator, flag=flag):
        for name in table:
            table[name].append(cells[name])
    if not table[columns[0]]:
        raise InputError(f"{path}: no rows; expected the columns {', '.join(columns)}; download the file again")
    return table


def read_classes(path):
    """Read a class list: one name per line; the label is the line number.

    A name ends at a tab, with a warning, because line 11 of the published UCF list contains one.

    Raises:
        InputError: an empty or repeated name.
    """
    names = [line.strip() for line in read_text(path).splitlines()]
    for k, name in enumerate(names):
        if "\t" in name:
            names[k] = name.split("\t")[0].strip()
            log.warning("%s: line %d has a tab; using '%s' as the class name", path, k + 1, names[k])
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: no class names; expected one name per line; download the file again")
    first = {}
    for k, name in enumerate(names):
        if not name:
            raise InputError(f"{path}: line {k + 1} is empty; expected one class name per line; remove the line")
        if first.setdefault(name, k) < k:
            raise InputError(f"{path}: line {k + 1} repeats the class '{name}'; expected different names; remove one")
    return names


def class_indices(path, names, classes, source):
    """Class index of each name; InputError names an unknown class and the `source` of the known ones."""
    index = {name: k for k, name in enumerate(classes)}
    unknown = sorted(set(names) - set(index))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(f"{path}: unknown class '{unknown[0][:60]}'{more}; expected the {len(classes)} classes of "
                         f"{source}; correct the name or use the matching class list")
    return [index[name] for name in names]


def first_rows(path, ids, on_bad_clip):
    """Row numbers of the first row of each id.

    Args:
        path: the list, for messages.
        ids: id of each row.
        on_bad_clip: "error" rejects repeated ids, "skip" skips the later rows with a warning.
    Raises:
        InputError: gives the number of repeated ids and the first of them.
    """
    first = {}
    for row, name in enumerate(ids):
        first.setdefault(name, row)
    if len(first) < len(ids):
        repeated = next(name for row, name in enumerate(ids) if first[name] != row)
        found = f"{len(ids) - len(first)} repeated ids, first {repeated}"
        if on_bad_clip == "error":
            raise InputError(f"{path}: {found}; expected each clip once; remove the rows, or keep the first of each "
                             "with --on_bad_clip skip")
        log.warning("%s: %s; keeping the first row of each (--on_bad_clip skip)", path, found,
                    extra={"skipped": "rows"})
    return list(first.values())
