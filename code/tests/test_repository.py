"""What people expect of a repository: citation, changelog, a workflow made of the project's own commands."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface_hub")


def test_the_citation_names_the_version_of_the_package_and_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "code" / "pyproject.toml").read_text(encoding="utf-8")
    assert cited["version"] == re.search(r'^version = "(.+)"', project, re.MULTILINE).group(1)
    assert cited["cff-version"] and cited["authors"] and len(cited["references"]) == 5
    assert f"## {cited['version']}" in (ROOT / "code" / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_runs_the_commands_of_the_project():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    tests, lint = workflow["jobs"]["tests"], workflow["jobs"]["lint"]
    commands = [step["run"] for job in (tests, lint) for step in job["steps"] if "run" in step]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash code/tests/run.sh" in commands and "bash code/tests/run.sh" in readme
    assert all((ROOT / word).exists() for command in commands for word in command.split() if word.startswith("code/"))
    least, most = re.findall(r"Python (3\.\d+) to (3\.\d+)", readme)[0]
    assert tests["strategy"]["matrix"]["python"][0] == least and tests["strategy"]["matrix"]["python"][-1] == most


def test_the_sources_are_as_the_linter_wants_them():
    ruff = pytest.importorskip("ruff", reason="ruff is not installed; the workflow runs it")
    from ruff.__main__ import find_ruff_bin
    done = subprocess.run([find_ruff_bin(), "check", "--no-cache", ROOT / "code"], capture_output=True, text=True)
    assert ruff and done.returncode == 0, done.stdout[-2000:]


def test_the_environment_of_a_bug_report():
    done = subprocess.run([sys.executable, "-m", "cmg.report", "--environment"], capture_output=True, text=True,
                          cwd=ROOT / "code" / "src", check=True)
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert {"commit", "python", "torch", "cmg", "encoding"} <= lines.keys()
    assert lines["python"] == sys.version.split()[0] and str(ROOT) not in done.stdout
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.md").read_text(encoding="utf-8")
    assert "python -m cmg.report --environment" in template
