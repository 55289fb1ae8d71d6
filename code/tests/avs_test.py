"""The script test.py of segmentation as the module `test`; `import test` would be a package of Python's own."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "avs_test_script", Path(__file__).parents[1] / "AVSBench_downstream" / "avs_scripts" / "avs_s4" / "test.py")
test = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(test)
