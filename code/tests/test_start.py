"""What a program imports before it does anything: `--help`, a wrong argument, a missing checkpoint and the first line
of its work must not wait for PyTorch or for libraries that few programs need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from start_time import CHECKPOINT, SCRIPTS, first_words

from cmg.downstream.tasks import TASKS
from cmg.programs.entry import announce

CODE = Path(__file__).resolve().parents[1]
AVS = CODE / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
MODULES = ("cmg.checkpoints", "cmg.report", "cmg.results")
FORBIDDEN = {"av", "huggingface_hub", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "torch", "torchvision",
             "transformers"}
# Arguments of a script, and what it must say.
WRONG = {"pretrain.py": (["--weights", "nothing=1"], "DCID has no such loss"),
         "ave.py": (["--checkpoint", "absent.pt"], "absent.pt: no such file"),
         "evaluate.py": (["absent.pt"], "absent.pt: no such file"),
         "toc.py": (["absent.pt"], "absent.pt: no such file")}
# Each main in one process, first with --help, then with wrong arguments: what they print, and all that is imported.
CALLS = """
import contextlib, io, json, runpy, sys
scripts, modules, wrong = map(json.loads, sys.argv[1:])
def said(main, words):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        try:
            main(words)
        except SystemExit:
            pass
        except ValueError as error:
            print(error)
    return text.getvalue()
mains = {script: runpy.run_path(script, run_name="script")["main"] for script in scripts}
mains |= {module: runpy.run_module(module, run_name="module")["main"] for module in modules}
print(json.dumps({"help": {name: said(main, ["--help"])[:6] for name, main in mains.items()},
                  "wrong": {name: said(mains[name], words) for name, words in wrong.items()},
                  "imported": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


# Each main in one process, up to its first line or the first import of a large library, whichever comes first. Every
# line of standard input is a script and its arguments; the answer is what happened: a line, an import, or an error.
STARTS = """
import io, json, runpy, sys
class End(BaseException):
    pass
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise End(f"imports {name}")
class Screen(io.StringIO):
    def write(self, text):
        super().write(text)
        if "\\n" in self.getvalue():
            raise End(f"prints {self.getvalue()}")
forbidden, starts = map(json.loads, sys.argv[1:])
sys.meta_path.insert(0, Refused())
screen = sys.stdout
for script, words in starts:
    main = runpy.run_path(script, run_name="script")["main"]
    sys.stdout = Screen()
    try:
        main(words)
        happened = f"ends after {sys.stdout.getvalue()}"
    except End as end:
        happened = str(end)
    except (SystemExit, ValueError) as error:
        happened = f"fails: {error}"
    print(json.dumps(happened), file=screen)
"""
WORK = [(name, first_words(name)) for name in SCRIPTS if first_words(name) is not None]
WORK += [("pretrain.py", ["--gpu", "0", "--precision", "bf16"]), ("ave.py", ["--checkpoint", CHECKPOINT, "--gpu", "0"]),
         ("demo.py", ["--gpu", "0"]), ("pretrain.py", ["--evaluate", "--resume", CHECKPOINT]),
         ("prepare.py", ["text"]), ("prepare.py", ["text", "--manifest", "clips.csv"]),
         ("prepare.py", ["pack", "vggsound.audio"]), ("prepare.py", ["features", "videos", "--out", "out"])]


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """What each script of WORK does first, in a folder of its own."""
    folder = tmp_path_factory.mktemp("start")
    (folder / CHECKPOINT).touch()
    roots = {f"CMG_{name}": str(folder / name.lower()) for name in ("DATA", "CHECKPOINTS", "RUNS")}
    ran = subprocess.run([sys.executable, "-c", STARTS, json.dumps(sorted(FORBIDDEN)),
                          json.dumps([(str(SCRIPTS[name]), words) for name, words in WORK])], text=True, cwd=folder,
                         capture_output=True, env=os.environ | roots | {
                             "PYTHONPATH": f"{CODE / 'src'}{os.pathsep}{AVS}", "COLUMNS": "300"})
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT}
    return list(map(json.loads, ran.stdout.splitlines()))


def test_every_script_prints_a_line_before_it_imports_a_large_library(starts):
    assert len(starts) == len(WORK) > len(TASKS) + 8
    assert not [(work, found) for work, found in zip(WORK, starts) if not found.startswith("prints ")]


def test_the_first_line_says_what_and_where(starts):
    said = {(name, *words): found.removeprefix("prints ").strip() for (name, words), found in zip(WORK, starts)}
    assert said["pretrain.py",] == "pretrain.py: DCID on vggsound_AVT in data; checkpoints in checkpoints, log in " + \
        os.path.join("runs", "pretrain")
    assert said["pretrain.py", "--evaluate", "--resume", CHECKPOINT] == \
        f"pretrain.py: losses of {CHECKPOINT} on vggsound_AVT in data"
    for name, words in WORK:
        line = said[name, *words]
        if CHECKPOINT in words:
            assert CHECKPOINT in line and os.path.basename(name) in line
        if name.removesuffix(".py") in TASKS:
            assert "->" in line and os.path.join(name.removesuffix(".py"), "results.jsonl") in line
    assert "audio->video" in said["custom.py", *first_words("custom.py")] and "clips.csv" in said[
        "custom.py", *first_words("custom.py")]


def test_of_several_processes_the_first_one_says_it(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("MASTER_ADDR", "here"), ("MASTER_PORT", "1")):
            monkeypatch.setenv(name, value)
        announce("pretrain.py", "DCID")
        assert capsys.readouterr().out.count("pretrain.py: DCID\n") == lines


def test_help_and_wrong_arguments_need_no_large_library():
    scripts = [str(path) for path in (*sorted((CODE / "src").glob("*.py")), AVS / "train.py", AVS / "test.py")]
    assert len(scripts) > 10
    wrong = {str(CODE / "src" / name): words for name, (words, _) in WRONG.items()}
    ran = subprocess.run([sys.executable, "-c", CALLS, *map(json.dumps, (scripts, MODULES, wrong))], text=True,
                         capture_output=True, env=os.environ | {"PYTHONPATH": f"{CODE / 'src'}{os.pathsep}{AVS}"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["help"] == dict.fromkeys((*scripts, *MODULES), "usage:")
    for name, (_, text) in WRONG.items():
        assert text in found["wrong"][str(CODE / "src" / name)]
    assert not FORBIDDEN & set(found["imported"])
