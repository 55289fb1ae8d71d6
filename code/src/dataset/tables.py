"""Annotation tables and class lists: csv files as people have them (BOM, CRLF, tabs, gaps), read strictly.

Valid Python 3.7 with the standard library alone: the text exporter for old environments uses it.
"""

import csv
import io

from errors import InputError

MAX_BYTES = 256 << 20           # the largest published list is 3 MB


def read_text(path):
    """A text file without byte order mark. Raises InputError where it is missing, not UTF-8 or above 256 MB."""
    try:
        with open(str(path), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError("{}: cannot be read ({}); a text file is expected; get it from the data package, or set its "
                         "place with --path".format(path, error.strerror)) from None
    if len(data) > MAX_BYTES:
        raise InputError("{}: more than {:,} bytes; an annotation file is expected; check which file this is"
                         .format(path, MAX_BYTES))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("{}: byte {} is not UTF-8; a text file is expected; save it as UTF-8"
                         .format(path, error.start)) from None
    if "\0" in text:
        raise InputError("{}: zero bytes in it; a text file is expected; get it again".format(path))
    return text


def read_header(path, separator=","):
    """Column names of a table."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator)
    return [name.strip() for name in next(rows, [])]


def read_table(path, columns, separator=","):
    """Columns of a table with a header line, every cell as text without surrounding blanks.

    Args:
        path: csv file.
        columns: names that must be there, with a value in each row.
        separator: "," or a tab.
    Returns:
        dict column -> list of str, all of one length; other columns of the file are left out.
    Raises:
        InputError: with the line number where there is one.
    """
    form = "the columns {}".format(", ".join(columns))
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError("{}: no column '{}' in the header ({}); {} separated by {} are expected; check that this "
                             "is the right file".format(path, missing[0], ", ".join(header)[:80] or "empty file", form,
                                                        "tabs" if separator == "\t" else "commas"))
        if len(set(header)) != len(header):
            raise InputError("{}: a column name stands twice in the header; {} are expected; rename one"
                             .format(path, form))
        wanted = [(header.index(name), name) for name in columns]
        table = {name: [] for _, name in wanted}
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise InputError("{}: line {} has {} cells; {} are expected; mend the line"
                                 .format(path, rows.line_num, len(row), len(header)))
            for k, name in wanted:
                cell = row[k].strip()
                if cell.lower() in ("", "nan"):
                    raise InputError("{}: line {} has no {}; a value is expected; mend or remove the line"
                                     .format(path, rows.line_num, name))
                table[name].append(cell)
    except csv.Error as error:
        raise InputError("{}: line {} cannot be read as csv ({}); {} are expected; mend the line"
                         .format(path, rows.line_num, error, form)) from None
    if not table[columns[0]]:
        raise InputError("{}: no rows; {} are expected; get the file again".format(path, form))
    return table


def read_classes(path):
    """A class list: one name a line, the label is the line number. Raises InputError for empty or repeated names."""
    names = [line.strip() for line in read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError("{}: no class names; one name a line is expected; get the file again".format(path))
    for k, name in enumerate(names):
        if not name:
            raise InputError("{}: line {} is empty; one class name a line is expected; remove the line"
                             .format(path, k + 1))
        if name in names[:k]:
            raise InputError("{}: line {} repeats the class '{}'; different names are expected; remove one"
                             .format(path, k + 1, name))
    return names


def class_indices(path, names, classes, source):
    """Class index of each name; InputError names the unknown class and where the known ones are listed."""
    index = {name: k for k, name in enumerate(classes)}
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise InputError("{}: unknown class '{}'{}; the {} classes of {} are expected; correct the name or use the "
                         "matching class list".format(path, unknown[0][:60], " and {} more".format(len(unknown) - 1)
                                                      if len(unknown) > 1 else "", len(classes), source))
    return [index[name] for name in names]
