"""Prove that work is never lost: kill a program at random moments, start it again each time, and compare what it leaves
with what a run leaves that was never stopped.

Kills are SIGKILLs; one in four is a SIGTERM, after which the program must end by itself with exit code 143 and one line
that says how to go on. The runs are real processes; a fork server has imported the program, so that a start costs no
import. A run that ends before it is killed is compared, and another one is begun, until all kills are spent. With two
processes one of them is killed, and the other must end within 30 seconds, with one line.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

SOURCE = Path(__file__).resolve().parents[1] / "src"
AVS = SOURCE.parent / "AVSBench_downstream" / "avs_scripts" / "avs_s4"
PATHS = [str(Path(__file__).parent), str(SOURCE), str(AVS)]
SETTINGS = {"--batch_size": 8, "--n_epoch": 3, "--save_every_steps": 3, "--print_freq": 1, "--n_embeddings": 24,
            "--gpu": "cpu", "--log": "none"}
WIDTHS = {"code_dim": 32, "feed_forward": 64, "text_hidden": 16, "club_hidden": 16, "num_layers": 1}
MAP_WIDTHS = {"hidden": 32, "specific": 64, "pool_hidden": 32}
GENTLE = 0.25                   # share of SIGTERMs among the kills
ALONE = 30                      # seconds in which a process must notice that the other one is gone
OFFLINE = ["--audio-encoder", "logmel", "--video-encoder", "patches", "--seconds", "2"]


def narrow(config):
    """A config with networks a hundredth of the demo's size."""
    maps = tuple((m, widths._replace(**MAP_WIDTHS)) for m, widths in config.map_widths)
    return dataclasses.replace(config, map_widths=maps, **WIDTHS)


@contextmanager
def narrowed():
    """Within the block, configs for data are `narrow`."""
    from cmg.models.config import Config
    full = Config.for_data.__func__
    small = classmethod(lambda cls, *args, **more: narrow(full(cls, *args, **more)))
    with mock.patch.object(Config, "for_data", small):
        yield


# ------------------------------------------------------------------------------------------------- in the new process
def process(main, log, several=False):
    """Do the work of one process as a script does, its output in the file `log`; never returns."""
    import torch

    from cmg.utils import errors
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    errors.run(main, several)


def train(arguments, log, is_tiny, rank=None, port=None):
    """One process of pretraining; tiny: a model a hundredth of the demo's size. `rank`, `port`: of two processes."""
    import pretrain
    if rank is not None:
        join_run(rank, port)
    with narrowed() if is_tiny else nullcontext():
        process(lambda: pretrain.main(arguments), log, several=True)


def join_run(rank, port):
    """The environment of one of two processes, as torchrun sets it."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}


def prepare(arguments, log, batch=None):
    """prepare.py; `batch`: clips of a pack between two flushes."""
    import prepare as script
    from cmg.prepare import pack as packing
    packing.BATCH = batch or packing.BATCH
    process(lambda: script.main(arguments), log)


# ---------------------------------------------------------------------------------------------------------- comparing
def differences(a, b, place=""):
    """Places at which two checkpoints are not bit-equal; the paths in `run.records` may differ, and so may the names
    in `run.saved`: a stop leaves a file of its own, and so may how the clips were compared."""
    import numpy as np
    import torch
    if place in (".run.records", ".run.saved", ".run.clips.checked"):
        return []
    if type(a) is not type(b):
        return [place]
    if isinstance(a, dict):
        return [f"{place}.{key}" for key in a.keys() ^ b.keys()] + [
            found for key in a.keys() & b.keys() for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, (list, tuple)):
        return [place] if len(a) != len(b) else [
            found for k, pair in enumerate(zip(a, b)) for found in differences(*pair, f"{place}[{k}]")]
    if isinstance(a, np.ndarray):
        return [] if a.dtype == b.dtype and a.tobytes() == b.tobytes() and a.shape == b.shape else [place]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [place]


SPEED = ("clips_per_second", "remaining_seconds")


def figures(folder):
    """Lines of metrics.jsonl without the speed, which no two runs share, and without the time that is left."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in lines]


def compare(whole, broken, last):
    """What differs between two finished runs: entries of the last checkpoint, or "metrics.jsonl"."""
    import torch
    found = differences(*(torch.load(folder / "checkpoints" / last, weights_only=True) for folder in (whole, broken)))
    return found + (["metrics.jsonl"] if figures(whole) != figures(broken) else [])


def networks_left(folder):
    """Networks and figures of the finished run of segmentation."""
    import torch
    done = [path.parents[1] for path in folder.glob("S4_*/checkpoints/last.pth")
            if not (path.parent / "resume.pt").exists()]
    log = [json.loads(line) for line in (done[-1] / "log" / "metrics.jsonl").read_text().splitlines()]
    return {"networks": {path.name: torch.load(path, weights_only=True)
                         for path in (done[-1] / "checkpoints").glob("*.pth")},
            "figures": [{key: value for key, value in line.items() if key not in SPEED} for line in log]}


def features_left(folder):
    """Bytes of every file of an extraction; none is hidden any more."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "output.txt" and path.suffix != ".lock"}


# ------------------------------------------------------------------------------------------------------ kinds of work
@dataclass
class Work:
    """A program that is killed.

    Attributes:
        target: function of this module that a new process calls.
        arguments: folder of a run -> its arguments.
        compare: (folder of the whole run, folder of a broken one) -> places that differ.
        processes: how many work together.
    """

    target: object
    arguments: object
    compare: object
    processes: int = 1


def arguments(folder, data, settings):
    """Command line of a pretraining run that keeps everything in `folder`."""
    options = {"--data_root": data, "--model_save_path": folder / "checkpoints", "--snapshot_pref": folder / "run"}
    return ["--in_memory", *(str(x) for pair in {**settings, **options}.items() for x in pair)]


def pretraining(data, settings=None, is_tiny=False, processes=1):
    """Work: pretraining; `settings`: flag -> value."""
    from cmg.models.config import MODALITIES
    from cmg.systems.registry import SYSTEMS
    settings = SETTINGS | (settings or {})
    last = SYSTEMS[settings.get("--system", "dcid")].file(MODALITIES, int(settings["--n_epoch"]) - 1)
    return Work(train, lambda folder: ([*arguments(folder, data, settings), "--resume", "auto"],
                                       folder / "output.txt", is_tiny),
                lambda whole, broken: compare(whole, broken, last), processes)


def equal(left):
    """`Work.compare` from what a run leaves: folder -> nested dicts of values."""
    return lambda whole, broken: differences(left(whole), left(broken))


def extraction(work, data):
    """Work: features of twelve made videos."""
    from made_videos import make_video
    (work / "videos").mkdir()
    for k in range(12):
        make_video(work / "videos" / f"clip{k}.mp4", seconds=2 + k / 8, audio=None if k == 3 else "tone",
                   size=(160 + 16 * k, 120))
    return Work(prepare, lambda folder: (["features", str(work / "videos"), "--out", str(folder), *OFFLINE,
                                          "--silence-for-missing"],
                                         folder / "output.txt"), equal(features_left))


# ------------------------------------------------------------------------------------------------------------ killing
class Run:
    """The processes of one start."""

    def __init__(self, work, folder, context):
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        if work.processes == 2:
            self.output.unlink(missing_ok=True)                     # of the start before
        self.started = len(self.output.read_text()) if self.output.exists() else 0
        self.processes = start(context, work.target, *[work.arguments(folder)] * work.processes)

    def wait(self, seconds=None):
        """Until all have ended; True if they did within the time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for one in self.processes:
            one.join(deadline and max(0, deadline - time.monotonic()))
        return all(one.exitcode is not None for one in self.processes)

    def kill(self, gentle, draw):
        """Kill or stop; returns what is wrong with how the program ended, or None."""
        if gentle:
            for one in self.processes:
                one.terminate()
            if not self.wait(ALONE):
                return f"it has not ended {ALONE} seconds after SIGTERM"
            codes = {one.exitcode for one in self.processes}
            if codes <= {0, -signal.SIGTERM} or codes == {2, -signal.SIGTERM}:
                return None                     # it was done, or (one of them) had not begun: nothing to say
            if codes != {128 + signal.SIGTERM}:
                return f"SIGTERM ends with exit codes {codes}"
            said = self.said("stopped by SIGTERM")
            return None if len(said) == 1 and ("resume" in said[0] or "again" in said[0] or "repeat" in said[0]) else (
                f"SIGTERM leaves {len(said)} lines")
        victim = draw.choice(self.processes)
        victim.kill()
        victim.join()
        if len(self.processes) == 1:
            return None
        other, = (one for one in self.processes if one is not victim)
        if not self.wait(ALONE / 3):        # before it met the killed one it knows nothing; torchrun ends it
            other.terminate()
        if not self.wait(2 * ALONE / 3):
            return f"the other process still waits after {ALONE} seconds"
        if other.exitcode == -signal.SIGTERM:
            return None
        if other.exitcode not in (0, 2):
            return f"the other process ends with exit code {other.exitcode}"
        said = self.said("error: ")
        return None if other.exitcode == 0 or len(said) == 1 else f"the other process leaves {len(said)} lines"

    def said(self, words):
        """Lines with these words since the start."""
        text = self.output.read_text()[self.started:]
        return [line for line in text.splitlines() if words in line]

    def end(self):
        """Kill what is left."""
        for one in self.processes:
            one.kill()
            one.join()


def fork_server():
    """The context of a fork server that has imported the programs, so that no import is timed."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)       # else the server does not find what it is to import
    context.set_forkserver_preload(["kill_resume", "pretrain", "ave", "prepare", "train", "cmg.extract.run"])
    warm = context.Process(target=int)
    warm.start()
    warm.join()
    return context


def start(context, target, *arguments):
    """Start a process for each of `arguments`; several are one run, and each gets its rank and their port as well."""
    more = [()]
    if len(arguments) > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            more = [(rank, free.getsockname()[1]) for rank in range(len(arguments))]
    processes = [context.Process(target=target, args=(*given, *extra)) for given, extra in zip(arguments, more)]
    for one in processes:
        one.start()
    return processes


def prove(folder, work, kills, seed=0, report=print):
    """Run once unbroken, then others with kills; returns the list of differences, empty if all are the same.

    Args:
        folder: for the runs.
        work: `PlannedTask`.
        kills: how many; each after a uniformly random part, up to two thirds, of what an unbroken run takes.
        report: called with a line of text now and then.
    """
    draw, context = random.Random(f"{folder.name} {seed}"), fork_server()
    began, counted = time.monotonic(), Counter()
    run = Run(work, folder / "whole", context)
    run.wait()
    seconds = time.monotonic() - began
    if any(one.exitcode for one in run.processes):
        return [f"the unbroken run failed; see {run.output}"]
    report(f"an unbroken run takes {seconds:.1f} s")
    while counted["kills"] < kills:
        counted["runs"] += 1
        place, own_kills = folder / f"broken-{counted['runs']}", 0
        while True:
            run = Run(work, place, context)
            done = run.wait(draw.uniform(0, 2 / 3) * seconds if counted["kills"] < kills else None)
            if done and all(one.exitcode == 0 for one in run.processes):
                break
            if done:
                return [f"a resumed run failed; see {run.output}"]
            gentle = draw.random() < GENTLE
            wrong = run.kill(gentle, draw)
            counted["kills"], own_kills = counted["kills"] + 1, own_kills + 1
            counted["SIGTERM" if gentle else "SIGKILL"] += 1
            counted["within a write"] += any(place.rglob(".*.tmp"))
            if wrong:
                run.end()
                return [f"{wrong}; see {run.output}"]
        found = work.compare(folder / "whole", place)
        found += [f"left behind: {path.name}" for path in place.rglob(".*.tmp")]
        report(f"run {counted['runs']}, killed {own_kills} times: "
               f"{'bit-equal' if not found else 'DIFFERENT: ' + ', '.join(found[:5])}")
        if found:
            return found
    report(f"{counted['kills']} kills ({counted['SIGKILL']} SIGKILL, {counted['SIGTERM']} SIGTERM), "
           f"{counted['within a write']} of them while a file was written; {counted['runs']} runs end as the unbroken "
           "one, to the last bit")
    return []


sys.path[:0] = PATHS                    # also in the processes of the fork server, which import this file again
