"""The program's modules as parts of this package, without their top-level names.

The scripts in code/src import each other as `engine`, `model`, `dataset`. Here the same files are `cmg._src.engine` and
so on: a module below `cmg._src` gets an `__import__` of its own, to which these names mean its neighbours. A program
that uses `cmg` may have its own `model` or `evaluate`, installed ones too; nothing is added to sys.path.
"""

import builtins
import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

SOURCE = Path(__file__).with_name("_src")
PREFIX = f"{__package__}._src."
OWN = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}


def import_neighbour(name, globals=None, locals=None, fromlist=(), level=0):
    """`__import__` of the modules below `cmg._src`."""
    top = name.partition(".")[0]
    if level or top not in OWN:
        return builtins.__import__(name, globals, locals, fromlist, level)
    if fromlist:
        return builtins.__import__(PREFIX + name, globals, locals, fromlist, 0)
    importlib.import_module(PREFIX + name)
    return sys.modules[PREFIX + top]            # `import a.b` binds a


class Loader(SourceFileLoader):
    """Runs a module with `import_neighbour`."""

    def exec_module(self, module):
        module.__builtins__ = {**vars(builtins), "__import__": import_neighbour}
        super().exec_module(module)


class Finder(MetaPathFinder):
    """Finds the modules below `cmg._src` and gives them `Loader`."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name.startswith(PREFIX) else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
