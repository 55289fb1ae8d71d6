"""Run a script with --help and report which of our files first imports each large library. start_time.py starts this
program.

Arguments: output file, folder code, script. It imports none of our modules and uses the script's module search path.
"""

import json
import os
import runpy
import sys
from pathlib import Path

LIBRARIES = ("torch", "pandas", "h5py", "scipy", "sklearn", "matplotlib", "PIL", "tensorboard", "transformers",
             "huggingface_hub", "torchvision", "av")


class ImportLog:
    """Attributes: first: library -> our file, below a folder, that imported it first."""

    def __init__(self, folder):
        self.root, self.first = f"{folder}{os.sep}", {}
        sys.addaudithook(self._audit)

    def _audit(self, event, arguments):
        library = arguments[0].partition(".")[0] if event == "import" else None
        if library not in LIBRARIES or library in self.first:
            return
        frame = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(self.root):
            frame = frame.f_back
        if frame and frame.f_code.co_filename != __file__:
            self.first[library] = frame.f_code.co_filename[len(self.root):]


def main(out, folder, script):
    sys.argv = [script, "--help"]
    log = ImportLog(folder)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        pass
    first = {library: file for library, file in log.first.items() if library in sys.modules}    # ignore failed attempts
    Path(out).write_text(json.dumps(first), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
