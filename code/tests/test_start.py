"""What a program imports before it does anything: `--help`, a wrong argument or a missing checkpoint must not wait for
PyTorch or for libraries that few programs need."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
