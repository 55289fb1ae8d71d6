"""Calls in our sources that write or read files, found in the syntax tree: the rows that the tables of
tests/test_every_file.py must have."""

import ast

from broken_disk import CODE, module

# By the last part of a call's name. With a mode ("open", "File", "ZipFile", ...) that decides between both.
WRITES = {"output_file", "whole_file", "alone", "to_csv", "to_json", "to_excel", "write_text",
          "write_bytes", "savefig", "savez", "savez_compressed", "savetxt", "tofile", "save_file", "symlink", "link",
          "hardlink_to", "symlink_to", "copy", "copyfile", "copy2", "copytree", "move", "mkdtemp", "mkstemp",
          "NamedTemporaryFile", "TemporaryDirectory", "replace", "rename", "mkdir", "makedirs", "touch",
          "SummaryWriter", "FileHandler", "fdopen", "imsave", "imwrite", "save", "dump", "truncate", "ftruncate"}
READS = {"read_text", "read_bytes", "read_csv", "read_table", "read_json", "fromfile", "memmap", "load", "load_file",
         "safe_open", "loadtxt", "genfromtxt", "loadmat", "from_file"}
MODES = {"open": 1, "File": 1, "ZipFile": 1, "GzipFile": 1, "FileIO": 1}        # place of the mode, "r" where it is not
OURS = {"save": {"torch", "np", "image", "figure"}, "load": {"torch", "np", "json", "pickle"},
        "dump": {"json", "pickle", "torch"}, "copy": {"shutil"}, "replace": {"os"}, "rename": None, "link": {"os"},
        "move": {"shutil"}, "read_table": {"pd"}, "truncate": None}


def calls():
    """({"<module>:<function>"} that write, {the same} that read) of all our sources."""
    writing, reading = set(), set()
    for folder in ("src", "cmg", "AVSBench_downstream"):
        for path in sorted((CODE / folder).rglob("*.py")):
            if not path.is_relative_to(CODE / "cmg" / "_src"):
                _Visitor(module(path), writing, reading).visit(ast.parse(path.read_text(encoding="utf-8")))
    return writing, reading


class _Visitor(ast.NodeVisitor):
    def __init__(self, module, writing, reading):
        self.module, self.writing, self.reading, self.function = module, writing, reading, "<module>"

    def visit_FunctionDef(self, node):
        before, self.function = self.function, node.name
        self.generic_visit(node)
        self.function = before

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(node.func, "value", None)
        of = getattr(owner, "id", "") if owner is not None else None
        where = f"{self.module}:{self.function}"
        if name in MODES and not (name == "open" and of in ("Image", "wave", "tarfile", "av", "gzip")):
            if of is None or name != "open" or of in ("io", "os") or _mode(node, 0):
                mode = _mode(node, 0 if name == "open" and of not in (None, "io", "os") else MODES[name])
                (self.writing if mode is None or set(mode) & set("wax+") else self.reading).add(where)
        elif name == "open" and of in ("Image", "av", "gzip"):
            self.reading.add(where)
        elif name == "save" and isinstance(owner, ast.Call) and getattr(owner.func, "attr", "") in (
                "fromarray", "convert"):
            self.writing.add(where)
        elif name in WRITES and _is_ours(name, of):
            self.writing.add(where)
        elif name in READS and _is_ours(name, of):
            self.reading.add(where)


def _is_ours(name, of):
    if name in ("read_text", "read_bytes", "read_table", "write_text") and of is None:
        return False                    # functions of ours with these names
    return name not in OURS or OURS[name] is None or of in OURS[name]


def _mode(node, place):
    """The mode of a call that opens; "r" where it gives none, None where it is computed."""
    given = next((keyword.value for keyword in node.keywords if keyword.arg == "mode"), None)
    if given is None:
        given = node.args[place] if len(node.args) > place else ast.Constant("" if place == 0 else "r")
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None
