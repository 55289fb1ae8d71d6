"""The rooms of the package: imports, lazy ones included, go downwards only; nothing edits the module search path."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter

from conftest import ROOT

SOURCE = ROOT / "code" / "src"
# From the bottom up; a module may import its own room and those before it.
ROOMS = ("utils", "presets", "models", "losses", "systems", "data", "results", "checkpoints", "training", "downstream",
         "report", "prepare", "extract", "demos", "own_data", "cli", "programs", "api")


def modules():
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in (SOURCE / "cmg").rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path, known):
    """Modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmg"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cmg"))


def room(name):
    return name.split(".")[1] if "." in name else "cmg"


def test_imports_go_downwards_and_have_no_cycle():
    known = modules()
    graph = {name: set(imports_of(path, known)) for name, path in known.items()}
    entries = {"cmg"} | {name for name in known if name.endswith(".__main__")}      # scripts, and the lazy front door
    upwards = [f"{name} imports {other}" for name in graph.keys() - entries for other in graph[name]
               if other == "cmg" or ROOMS.index(room(other)) > ROOMS.index(room(name))]
    assert not upwards, upwards
    list(TopologicalSorter({name: others for name, others in graph.items() if name != "cmg"}).static_order())


def test_every_room_has_its_place():
    assert {room(name) for name in modules()} - {"cmg"} <= set(ROOMS)


def test_nothing_edits_the_module_search_path():
    listed = subprocess.run(["git", "ls-files", "-s", "code"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("120000")], "a link"
    edits = re.compile(r"sys\.(path\b|meta_path)|__import__")
    for folder in ("src", "AVSBench_downstream", "benchmarks"):
        for path in (ROOT / "code" / folder).rglob("*.py"):
            assert not edits.search(path.read_text()), path
