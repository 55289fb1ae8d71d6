"""docs/anatomy.md names only what exists: functions, flags, and names in the log."""

import ast
import json
import re

import pytest

from cmg.cli import downstream_parser, pretrain_parser
from cmg.systems.registry import SYSTEMS
from configs.opts import LOCAL
from conftest import ROOT
from tiny import train

PAGE = (ROOT / "code" / "docs" / "anatomy.md").read_text(encoding="utf-8")
SOURCE = ROOT / "code" / "src"


def defined(path):
    """Qualified names of the functions, methods, and classes of a file."""
    found = set()
    for node in ast.parse((SOURCE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in getattr(node, "body", [])
                      if isinstance(node, ast.ClassDef) and isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("path, name", sorted(set(re.findall(r"`(cmg/[\w/]+\.py):([\w.]+)`", PAGE))))
def test_functions_exist(path, name):
    assert name in defined(path)


def test_flags_exist():
    known = {flag for parser in (pretrain_parser(LOCAL), downstream_parser("ave", LOCAL))
             for action in parser._actions for flag in action.option_strings}
    assert set(re.findall(r"`?(--[a-z_]+)", PAGE)) <= known


@pytest.fixture(scope="module")
def logged_run(demo_data, small_model, tmp_path_factory):
    """A line of metrics.jsonl of a run of one step with the contrast of clips."""
    folder = tmp_path_factory.mktemp("logged")
    assert train(demo_data, folder, "--max_steps", 1, "--weights", "contrast=1") == 0
    return json.loads((folder / "run" / "metrics.jsonl").read_text())


def test_names_in_the_log_are_those_of_a_run(logged_run):
    names = set().union(*(logged_run[kind] for kind in ("losses", "metrics", "likelihoods")))
    modalities = ("audio", "video", "text")
    rows = [row.split("|") for row in PAGE.splitlines() if row.startswith("| ")]
    wanted = {name for row in rows[2:] for name in re.findall(r"`([{}\w]+)`", row[3])}
    assert wanted and all(name.format(m=m) in names for name in wanted for m in modalities), wanted


def test_the_losses_of_dcid_are_in_the_table():
    assert all(f"`{kind}`" in PAGE or f"_{kind}`" in PAGE for kind in SYSTEMS["dcid"].TERMS)
