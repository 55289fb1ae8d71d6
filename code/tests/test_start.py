"""What every script imports before it does anything: `--help` must not wait for libraries that few programs need."""

import json
import os
import subprocess
import sys
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
AVS = CODE / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
FORBIDDEN = ("av", "huggingface_hub", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "torchvision",
             "transformers")
# Each script's main(["--help"]) in one process; what is imported by then, where it was not before.
HELP = """
import contextlib, io, json, runpy, sys
found = {}
for script in sys.argv[2:]:
    before = set(sys.modules)
    main = runpy.run_path(script, run_name="script")["main"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(["--help"])
    found[script] = {"usage": printed.getvalue()[:6], "imported": sorted(
        {name.partition(".")[0] for name in set(sys.modules) - before} & set(json.loads(sys.argv[1])))}
print(json.dumps(found))
"""


def test_help_needs_no_large_library():
    scripts = [*sorted((CODE / "src").glob("*.py")), AVS / "train.py", AVS / "test.py"]
    assert len(scripts) > 10
    ran = subprocess.run([sys.executable, "-c", HELP, json.dumps(FORBIDDEN), *map(str, scripts)], text=True,
                         capture_output=True, env=os.environ | {"PYTHONPATH": f"{CODE / 'src'}{os.pathsep}{AVS}"})
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found == {str(script): {"usage": "usage:", "imported": []} for script in scripts}
