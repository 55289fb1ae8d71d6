"""Settings, each declared once as a dataclass field with its default, its help, and whether it affects results.

    @dataclass(frozen=True)
    class Learning:
        lr: float = setting(4e-4, "Adam's learning rate")

`add_arguments` adds the fields of such a class to the command line, `read` creates an instance from the parsed
arguments, and `affects_results` returns the values that two runs must share for their results to be comparable.
"""

import argparse
import json
import math
from dataclasses import field, fields

from cmg.utils.limits import LIMITS

DIGITS = 20                     # longer integers are rejected without parsing


def setting(default, help, *, flags=(), affects_results=True, **argument):
    """A dataclass field that is also a command-line argument.

    Args:
        default: value without the flag. False declares a switch; a tuple accepts one or more values.
        help: text for --help.
        flags: all flags; default: --<name of the field>.
        affects_results: whether results depend on it: True, False, or a function of the parsed arguments.
        argument: other arguments of argparse's add_argument: type, choices, nargs, metavar.
    """
    return field(default=default, metadata={
        "help": help, "flags": flags, "affects_results": affects_results, "argument": argument})


def whole(text):
    """Argument type: an integer, such as a seed, that fits into int64 when multiplied by a million."""
    try:
        number = int(text) if len(text) < DIGITS else None
    except ValueError:
        number = None
    if number is None or abs(number) >= LIMITS.seed:
        raise argparse.ArgumentTypeError(f"'{text[:DIGITS]}' is not an integer between {-LIMITS.seed:,} and "
                                         f"{LIMITS.seed:,}")
    return number


def natural(text):
    """Argument type: like `whole`, 0 or more."""
    if whole(text) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is below 0")
    return whole(text)


def positive(text):
    """Argument type: an integer of at least 1."""
    if not text.isdecimal() or len(text) > DIGITS or not 1 <= int(text) < LIMITS.seed:
        raise argparse.ArgumentTypeError(f"'{text[:DIGITS]}' is not a positive integer")
    return int(text)


def not_negative(text):
    """Argument type: a finite number, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number of at least 0")
    return number


def _argument(declared, default):
    """(flags, keyword arguments) of argparse's add_argument for a field."""
    made = dict(declared.metadata["argument"], dest=declared.name, help=declared.metadata["help"], default=default)
    if default is False:
        made["action"] = "store_true"
    elif isinstance(default, tuple):
        made |= {"nargs": made.get("nargs", "+"), "default": list(default)}
    if "type" not in made and type(default) in (int, float):
        made["type"] = natural if type(default) is int else not_negative
    return declared.metadata["flags"] or (f"--{declared.name}",), made


def add_arguments(parser, cls, title=None, **defaults):
    """Add the fields of `cls` to a parser or argument group, except those that it already has.

    Args:
        parser: argparse parser.
        cls: dataclass of settings.
        title: title of a separate group in --help.
        defaults: field -> default that differs in this program.
    """
    known = {action.dest for action in parser._actions}
    group = parser.add_argument_group(title) if title else parser
    for declared in fields(cls):
        if declared.metadata and declared.name not in known:
            flags, made = _argument(declared, defaults.get(declared.name, declared.default))
            group.add_argument(*flags, **made)


def read(cls, namespace, **values):
    """Create an instance of `cls` from the arguments in `namespace`; `values` override them."""
    for declared in fields(cls):
        if declared.name not in values and hasattr(namespace, declared.name):
            value = getattr(namespace, declared.name)
            values[declared.name] = tuple(value) if isinstance(declared.default, tuple) else value
    return cls(**values)


def affects_results(namespace, *classes):
    """Name -> plain value of every argument that affects results, in the order of declaration."""
    found = {}
    for declared in (declared for cls in classes for declared in fields(cls)):
        counts = declared.metadata.get("affects_results", False)
        if counts(namespace) if callable(counts) else counts:
            found[declared.name] = getattr(namespace, declared.name)
    return json.loads(json.dumps(found, default=str))


def settings(cls):
    """Name -> default, as in parsed arguments, of the fields of `cls` that are arguments."""
    return {declared.name: _argument(declared, declared.default)[1]["default"] for declared in fields(cls)
            if declared.metadata}
