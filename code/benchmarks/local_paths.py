"""Paths of this checkout and the constants of code/src/configs/opts.py, which belongs to the scripts, not to `cmg`."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "code" / "src"
LOCAL = runpy.run_path(str(SOURCE / "configs" / "opts.py"))["LOCAL"]
