"""What people expect of a repository: citation, changelog, a workflow made of the project's own commands, versions that
are declared once."""

import ast
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

CODE = ROOT / "code"
# Module -> package. None: used only where somebody has it (OpenCV), or on the Python 3.7 of the published program.
MODULES = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": None, "bert_embedding": None}
yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface_hub")


def test_the_citation_names_the_version_of_the_package_and_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "code" / "pyproject.toml").read_text(encoding="utf-8")
    assert cited["version"] == re.search(r'^version = "(.+)"', project, re.MULTILINE).group(1)
    assert cited["cff-version"] and cited["authors"] and len(cited["references"]) == 5
    assert f"## {cited['version']}" in (ROOT / "code" / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")


# Steps that need the network or would run these tests again; every other step of the workflow runs here.
LEFT_OUT = {"bash code/setup.sh": "code/setup.sh", "bash code/tests/run.sh": "code/tests/run.sh",
            ".venv/bin/python -m pip install trackio wandb mteb": None, "python -m pip install ruff build": None}


def workflow_steps():
    """Job, and the commands of its steps."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    return workflow, {name: [step["run"] for step in job["steps"] if "run" in step]
                      for name, job in workflow["jobs"].items()}


def test_the_workflow_runs_the_commands_of_the_project():
    workflow, commands = workflow_steps()
    readme, local = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    assert "bash code/tests/run.sh" in commands["tests"] and "bash code/tests/run.sh" in readme
    assert "code/tests/run.sh" in local.replace('"$(dirname "$0")/../', "")         # the same tests as ours
    least, *_, most = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert re.findall(r"Python (3\.\d+) to (3\.\d+)", readme)[0] == (least, most)
    assert f'requires-python = ">={least}"' in (CODE / "pyproject.toml").read_text(encoding="utf-8")


def test_the_steps_of_the_workflow_run(tmp_path):
    """Each of them as it stands, but for programs, which this environment may have elsewhere, and the output folder."""
    steps = sum(workflow_steps()[1].values(), [])
    assert set(LEFT_OUT) <= set(steps)
    assert all((ROOT / path).is_file() for path in filter(None, LEFT_OUT.values()))
    for command in steps:
        program, *rest = shlex.split(command)
        if command in LEFT_OUT:
            continue
        name = rest[1] if program == "python" else program
        assert name in ("ruff", "build"), f"{command}: a step that no test runs; run it here, or name it in LEFT_OUT"
        if not find_spec(name):
            continue
        call = {"ruff": [sys.executable, "-m", "ruff", *rest, "--no-cache"],
                "build": [sys.executable, *rest, "--no-isolation"]}[name]           # isolation downloads setuptools
        call = [str(tmp_path) if word == "dist" else word for word in call]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------------------- versions
def requirements():
    """Package -> Requirement of requirements.txt, as far as it is meant for this Python."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found if not one.marker or one.marker.evaluate()}


def declared():
    """Package -> Requirement of pyproject.toml; and of its extras."""
    text = (CODE / "pyproject.toml").read_text(encoding="utf-8")
    needed = ast.literal_eval(re.search(r"\ndependencies = (\[.+?\])\n", text, re.DOTALL).group(1))
    extras = re.search(r"\[project.optional-dependencies\]\n(.+?)\n\n", text, re.DOTALL).group(1)
    extras = sum((ast.literal_eval(line.split(" = ")[1]) for line in extras.splitlines()), [])
    return tuple({canonicalize_name(Requirement(one).name): Requirement(one) for one in part}
                 for part in (needed, extras))


def test_what_is_declared_stands_in_the_requirements():
    """requirements.txt holds the versions that are tested; pyproject.toml names what is needed, and admits each of
    them."""
    tested, (needed, extras) = requirements(), declared()
    assert needed.keys() <= tested.keys() and "av" in extras.keys() & tested.keys()
    for name in tested:
        installed = version(name)
        assert tested[name].specifier.contains(installed), f"{name} {installed} is not what requirements.txt asks for"
        assert name not in needed or needed[name].specifier.contains(installed)


def test_what_is_imported_is_declared():
    needed, extras = declared()
    ours = {path.stem for path in (CODE / "src").iterdir()}
    imported = {}
    for path in (CODE / "src" / "cmg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
                node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.split(".")[0]: path for name in names}
    foreign = {MODULES.get(name, name): path for name, path in imported.items()
               if name not in sys.stdlib_module_names and name not in ours}
    missing = {name: str(path) for name, path in foreign.items()
               if name and canonicalize_name(name) not in needed | extras}
    assert not missing, missing


def test_the_lock_holds_the_requirements():
    """code/requirements.lock: a version with hashes for every requirement; CONTRIBUTING.md names the command that makes
    it, which stands in its head."""
    text = (CODE / "requirements.lock").read_text(encoding="utf-8")
    command = text.splitlines()[1].lstrip("# ")
    assert command in (CODE / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    locked = {}
    for entry in re.split(r"\n(?=\S)", text):
        if not entry.startswith("#"):
            one = Requirement(entry.split("\\\n")[0])
            assert "--hash=sha256:" in entry, one
            locked.setdefault(canonicalize_name(one.name), []).append(one.specifier)
    for name, one in requirements().items():
        assert name in locked, f"{name}: not in the lock; {command}"
        assert all(one.specifier.contains(str(spec).removeprefix("==")) for spec in locked[name]), name


# ------------------------------------------------------------------------------------------------------- a bug report
def test_the_environment_of_a_bug_report():
    done = subprocess.run([sys.executable, "-m", "cmg.report", "--environment"], capture_output=True, text=True,
                          cwd=ROOT / "code" / "src", check=True)
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert {"commit", "python", "torch", "cmg", "encoding"} <= lines.keys()
    assert lines["python"] == sys.version.split()[0] and str(ROOT) not in done.stdout
    template = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.md").read_text(encoding="utf-8")
    assert "python -m cmg.report --environment" in template


def test_an_unsupported_python_is_one_line_before_anything_is_made(tmp_path):
    """The set-up names the version that it found and how to choose another."""
    root = tmp_path / "clone"
    (root / "code").mkdir(parents=True)
    for name in ("requirements.txt", "code/pyproject.toml", "code/setup.sh"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.9.18" ;; *) echo 3.9 ;; esac\n')
    old.chmod(0o755)
    for python, found in ((old, "is Python 3.9.18"), (tmp_path / "absent", "is not there")):
        environment = {"PATH": "/usr/bin:/bin", "PYTHON3": str(python)}
        done = subprocess.run(["bash", root / "code" / "setup.sh"], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (root / ".venv").exists()
        assert "Python 3.10 to 3.13 is needed" in done.stderr and found in done.stderr
