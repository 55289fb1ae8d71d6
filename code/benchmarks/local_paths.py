"""Paths of this checkout and the constants of code/src/configs/opts.py, which belongs to the scripts, not to `cmg`."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "code" / "src"
LOCAL = runpy.run_path(str(SOURCE / "configs" / "opts.py"))["LOCAL"]


def separate(name):
    """Command that runs a file of this folder without adding the folder to the module search path, because its names
    and the package installed here would hide modules of another checkout."""
    return [sys.executable, "-c", f"import runpy; runpy.run_path({str(HERE / name)!r}, run_name='__main__')"]
