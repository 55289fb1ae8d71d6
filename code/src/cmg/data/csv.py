"""Annotation tables and class lists: csv files as people have them (BOM, CRLF, tabs, gaps), read strictly.

Valid Python 3.7 with the standard library alone: the text exporter for old environments uses it.
"""

import csv
import io
import logging

from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

log = logging.getLogger(__name__)


def read_bytes(path):
    """A text file as it is. Raises InputError where it is missing, unreadable or above 256 MB."""
    try:
        with open(str(path), "rb") as file:
            data = file.read(LIMITS.list_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); a text file is expected; get it from the data "
                         "package, or set its place with --path") from None
    if len(data) > LIMITS.list_bytes:
        raise InputError(f"{path}: more than {LIMITS.list_bytes:,} bytes; an annotation file is expected; check "
                         "which file this is")
    return data


def read_text(path):
    """A text file without byte order mark. Raises InputError where it is missing, not UTF-8 or above 256 MB."""
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; a text file is expected; save it as "
                         "UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: zero bytes in it; a text file is expected; get it again")
    return text


def read_header(path, separator=","):
    """Column names of a table."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator)
    return [name.strip() for name in next(rows, [])]


def read_rows(path, columns, separator=",", optional=()):
    """Rows of a table with a header line, every cell as text without surrounding blanks.

    Args:
        path: csv file.
        columns: names that must be there, with a value in each row.
        separator: "," or a tab.
        optional: names of columns that may be absent, and whose cells may be empty.
    Yields:
        (line number, dict column -> str) for each row; other columns of the file are not read. An empty cell is "".
    Raises:
        InputError: with the line number where there is one.
    """
    form = f"the columns {', '.join(columns)}"
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            found = ", ".join(header)[:80] or "an empty file"
            raise InputError(f"{path}: no column '{missing[0]}' in the header ({found}); {form} separated by "
                             f"{'tabs' if separator == chr(9) else 'commas'} are expected; check that this is the "
                             "right "
                             "file")
        if len(set(header)) != len(header):
            raise InputError(f"{path}: a column name occurs twice in the header; {form} are expected; rename one")
        wanted = [(header.index(name), name) for name in (*columns, *optional) if name in header]
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise InputError(f"{path}: line {rows.line_num} has {len(row)} cells; {len(header)} are expected; mend "
                                 "the line")
            cells = {name: row[k].strip() for k, name in wanted}
            for name, cell in cells.items():
                if cell.lower() in ("", "nan"):
                    if name in columns:
                        raise InputError(f"{path}: line {rows.line_num} has no {name}; a value is expected; mend or "
                                         "remove the line")
                    cells[name] = ""
            yield rows.line_num, cells
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num} cannot be read as csv ({error}); {form} are expected; mend the "
                         "line") from None


def read_table(path, columns, separator=","):
    """Columns of a table: dict column -> list of str, all of one length and none empty; see `read_rows`."""
    table = {name: [] for name in columns}
    for _, cells in read_rows(path, columns, separator):
        for name in table:
            table[name].append(cells[name])
    if not table[columns[0]]:
        raise InputError(f"{path}: no rows; the columns {', '.join(columns)} are expected; get the file again")
    return table


def read_classes(path):
    """A class list: one name per line, the label is the line number.

    A tab in a line is a slip (line 11 of the released UCF list): the name ends there, and a warning says so.

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
    for k, name in enumerate(names):
        if not name:
            raise InputError(f"{path}: line {k + 1} is empty; one class name per line is expected; remove the line")
        if name in names[:k]:
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
