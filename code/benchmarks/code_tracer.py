"""Run a script under a tracer that counts the executed code. trace_step.py starts this program, which imports none of
our modules.

Arguments: output file, folder code/src, script in it, arguments of the script.
"""

import inspect
import json
import os
import runpy
import sys
from collections import defaultdict
from pathlib import Path

RESULTS = "results.jsonl"
STEP_FILES = ("cmg/training/step.py", "engine/trainer.py")      # contain the function `step`; the latter up to 1a801fc


class Code:
    """Executed code: file -> its functions, and its lines."""

    def __init__(self):
        self.functions, self.lines = defaultdict(set), defaultdict(set)

    def to_dict(self):
        return {file: {"functions": len(self.functions[file]), "lines": len(self.lines[file])} for file in self.lines}


class Tracer:
    """Counts the executed code below a folder.

    Attributes:
        whole, step: Code of the program, and of the last training step.
        stacks: name of an event -> (file, function) of our frames, outermost first, when it last happened.
    """

    def __init__(self, source):
        self.root, self.whole, self.step, self.stacks = f"{source}{os.sep}", Code(), Code(), {}
        self.step_frame = None

    def start(self):
        sys.addaudithook(self._audit)
        sys.settrace(self._call)

    def _file(self, frame):
        """Path of a frame's code below the folder, None for other code."""
        path = frame.f_code.co_filename
        return path[len(self.root):] if path.startswith(self.root) else None

    def _stack(self, frame):
        found = []
        while frame:
            if self._file(frame):
                found.append((self._file(frame), frame.f_code.co_name))
            frame = frame.f_back
        return found[::-1]

    def _audit(self, event, arguments):
        if event == "open" and str(arguments[0]).endswith(f"{os.sep}{RESULTS}") and arguments[2] & os.O_APPEND:
            self.stacks["append"] = self._stack(sys._getframe())

    def _call(self, frame, event, argument):
        file, code = self._file(frame), frame.f_code
        if file is None:
            is_optimizer = f"{os.sep}torch{os.sep}optim{os.sep}" in code.co_filename
            if is_optimizer and self.step_frame and frame.f_back and self._file(frame.f_back):
                self.stacks["step"] = self._stack(frame)        # the last one of a step updates the main weights
            return None
        if not code.co_flags & inspect.CO_OPTIMIZED:            # a module or a class body, run by an import
            return None
        if file in STEP_FILES and code.co_name == "step":
            self.step, self.step_frame = Code(), frame
        if not code.co_name.startswith("<"):
            for counted in self._counted():
                counted.functions[file].add((code.co_name, code.co_firstlineno))
        return self._line

    def _line(self, frame, event, argument):
        if event == "line":
            for counted in self._counted():
                counted.lines[self._file(frame)].add(frame.f_lineno)
        elif event == "return" and frame is self.step_frame:
            self.step_frame = None
        return self._line

    def _counted(self):
        return (self.whole, self.step) if self.step_frame else (self.whole,)


def trace(out, source, script, *arguments):
    """Run a script of the folder `source` under a Tracer and write the result to the file `out`."""
    sys.argv = [script, *arguments]
    tracer = Tracer(source)
    tracer.start()
    try:
        runpy.run_path(os.path.join(source, script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.settrace(None)
    Path(out).write_text(json.dumps({"stacks": tracer.stacks, "step": tracer.step.to_dict(),
                               "whole": tracer.whole.to_dict()}), encoding="utf-8")


if __name__ == "__main__":
    trace(*sys.argv[1:])
