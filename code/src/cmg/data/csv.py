"""Annotation tables and class lists: csv files as people have them (BOM, CRLF, tabs, gaps), read strictly.

Valid Python 3.7 with the standard library alone: the text exporter for old environments uses it.
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
# Published lists that have no header: (cells of the first row, their names).
HEADERLESS = (
    ((r"[\w-]{11}", r"\d+", r".+", r"train|val|test"), ("video_id", "start", "category", "split")),    # vggsound.csv
    ((r"[\w-]{11}_\d{6}\.mp4", r".+"), ("file", "label")))                       # VGGSound's train.csv and test.csv


def read_bytes(path, flag="--path"):
    """A text file as bytes.

    Args:
        path: file to read.
        flag: command line option that names this file, for messages.
    Raises:
        InputError: the file is missing, unreadable or larger than 256 MB.
    """
    try:
        return read_input(path, LIMITS.list_bytes)
    except OSError as error:
        source = "get it from the data package, or set its path with --path" if flag == "--path" else f"check {flag}"
        raise InputError(f"{path}: cannot be read ({error.strerror}); a text file is expected; {source}") from None


def read_text(path, flag="--path"):
    """A text file without its byte order mark.

    Raises:
        InputError: as `read_bytes`; text that is not UTF-8.
    """
    data = read_bytes(path, flag)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; a text file is expected; save it as "
                         "UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: zero bytes in it; a text file is expected; get it again")
    return text


def _records(path, separator, flag):
    """(line number, cells) of every line.

    One line is one record: a quoted cell may not contain a line break. Otherwise a quotation mark that is never closed,
    or closed some rows below, would silently turn all rows in between into one cell.
    """
    for number, line in enumerate(io.StringIO(read_text(path, flag), newline=None), 1):
        try:
            yield number, next(csv.reader([line.rstrip("\n")], delimiter=separator, strict=True), [])
        except csv.Error as error:
            is_open = "end of data" in str(error)
            reason = "a quotation mark that is not closed in this line" if is_open else error
            raise InputError(f"{path}: line {number} cannot be read as csv ({reason}); one row in each line is "
                             f"expected, with cells separated by {'tabs' if separator == chr(9) else 'commas'}; close "
                             "or remove the quotation mark, write one within a quoted cell twice, and put a cell with "
                             "line breaks on one line") from None


def _table(path, separator, names, flag):
    """(column names, iterator of (line number, cells)) of a table; `names`: of one without a header."""
    records = _records(path, separator, flag)
    number, first = next(records, (1, []))
    for patterns, known in () if names else HEADERLESS:
        if len(first) == len(patterns) and all(map(re.fullmatch, patterns, (cell.strip() for cell in first))):
            names = known
    return (list(names), itertools.chain([(number, first)], records)) if names else (
        [name.strip() for name in first], records)


def read_header(path, separator=",", names=None, flag="--path"):
    """Column names of a table; those of VGGSound's own lists, which have no header, are known.

    Args:
        path: csv file.
        separator: "," or a tab.
        names: the column names of a table without a header.
        flag: command line option that names this file, for messages.
    """
    return _table(path, separator, names, flag)[0]


def read_rows(path, columns, separator=",", optional=(), names=None, flag="--path"):
    """Rows of a table with a header line, every cell as text without surrounding blanks.

    Args:
        path: csv file.
        columns: names that must be there, with a value in each row.
        separator: "," or a tab.
        optional: names of columns that may be absent, and whose cells may be empty.
        names: the column names of a table without a header.
        flag: command line option that names this file, for messages.
    Yields:
        (line number, dict column -> str) for each row; other columns of the file are not read. An empty cell is "".
    Raises:
        InputError: with the line number if the defect is in one line.
    """
    form = f"the columns {', '.join(columns)}"
    header, records = _table(path, separator, names, flag)
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header)[:80] or "an empty file"
        raise InputError(f"{path}: no column '{missing[0]}' in the header ({found}); {form} separated by "
                         f"{'tabs' if separator == chr(9) else 'commas'} are expected; check that this is the right "
                         "file")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: a column name occurs twice in the header; {form} are expected; rename one")
    wanted = [(header.index(name), name) for name in (*columns, *optional) if name in header]
    for number, row in records:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: line {number} has {len(row)} cells; {len(header)} are expected; correct the "
                             "line")
        cells = {name: row[k].strip() for k, name in wanted}
        for name, cell in cells.items():
            if cell.lower() in ("", "nan"):
                if name in columns:
                    raise InputError(f"{path}: line {number} has no {name}; a value is expected; correct or remove the "
                                     "line")
                cells[name] = ""
        yield number, cells


def read_table(path, columns, separator=",", flag="--path"):
    """Columns of a table: dict column -> list of str, all of one length and none empty; see `read_rows`."""
    table = {name: [] for name in columns}
    for _, cells in read_rows(path, columns, separator, flag=flag):
        for name in table:
            table[name].append(cells[name])
    if not table[columns[0]]:
        raise InputError(f"{path}: no rows; the columns {', '.join(columns)} are expected; get the file again")
    return table


def read_classes(path):
    """A class list: one name per line, the label is the line number.

    A tab ends the name, with a warning: line 11 of the published UCF list contains one.

    Raises:
        InputError: an empty or repeated name.
    """
    names = [line.strip() for line in read_text(path).splitlines()]
    for k, name in enumerate(names):
        if "\t" in name:
            names[k] = name.split("\t")[0].strip()
            log.warning("%s: line %d has a tab; the class name is taken as '%s'", path, k + 1, names[k])
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError(f"{path}: no class names; one name per line is expected; get the file again")
    first = {}
    for k, name in enumerate(names):
        if not name:
            raise InputError(f"{path}: line {k + 1} is empty; one class name per line is expected; remove the line")
        if first.setdefault(name, k) < k:
            raise InputError(f"{path}: line {k + 1} repeats the class '{name}'; different names are expected; remove "
                             "one")
    return names


def class_indices(path, names, classes, source):
    """Class index of each name; InputError names the unknown class and where the known ones are listed."""
    index = {name: k for k, name in enumerate(classes)}
    unknown = sorted(set(names) - set(index))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(f"{path}: unknown class '{unknown[0][:60]}'{more}; the {len(classes)} classes of {source} are "
                         "expected; correct the name or use the matching class list")
    return [index[name] for name in names]


def first_rows(path, ids, on_bad_clip):
    """Row numbers of the first row of each id.

    Args:
        path: the list, for messages.
        ids: id of each row.
        on_bad_clip: "error" refuses repeated ids, "skip" skips the later rows with a warning.
    Raises:
        InputError: with the number of repeated rows and the first of them.
    """
    first = {}
    for row, name in enumerate(ids):
        first.setdefault(name, row)
    if len(first) < len(ids):
        repeated = next(name for row, name in enumerate(ids) if first[name] != row)
        found = f"{len(ids) - len(first)} repeated ids, first {repeated}"
        if on_bad_clip == "error":
            raise InputError(f"{path}: {found}; each clip once is expected; remove the rows, or keep the first of each "
                             "with --on_bad_clip skip")
        log.warning("%s: %s; the first row of each is kept (--on_bad_clip skip)", path, found,
                    extra={"skipped": "rows"})
    return list(first.values())
