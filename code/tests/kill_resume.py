"""Prove that a run is never lost: kill a demo pretraining with SIGKILL at random moments, resume it each time, and
compare its last checkpoint and its figures with those of a run that was never stopped.

    python code/tests/kill_resume.py --kills 20

The runs are real processes; a fork server has imported the program, so that a start costs no import. A run that ends
before it is killed is compared, and another one is begun, until all kills are spent.
"""

import argparse
import dataclasses
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
SETTINGS = {"--batch_size": 8, "--n_epoch": 3, "--save_every_steps": 3, "--print_freq": 1, "--n_embeddings": 24}
WIDTHS = {"code_dim": 32, "feed_forward": 64, "text_hidden": 16, "club_hidden": 16, "num_layers": 1}
MAP_WIDTHS = {"hidden": 32, "specific": 64, "pool_hidden": 32}


def narrow(config):
    """A config with networks a hundredth of the demo's size."""
    maps = tuple((m, widths._replace(**MAP_WIDTHS)) for m, widths in config.map_widths)
    return dataclasses.replace(config, map_widths=maps, **WIDTHS)


def train(arguments, log, is_tiny):
    """One pretraining process, its output in the file `log`; tiny: a model a hundredth of the demo's size."""
    import torch

    import pretrain
    from model.config import Config
    torch.set_num_threads(1)
    if is_tiny:
        full = Config.for_data.__func__
        Config.for_data = classmethod(
            lambda cls, *args, **sizes: narrow(full(cls, *args, **sizes)))
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    sys.exit(pretrain.main(arguments))


def arguments(folder, data, settings):
    """Command line of a run that keeps everything in `folder`."""
    options = {"--data_root": data, "--model_save_path": folder / "checkpoints", "--snapshot_pref": folder / "run"}
    return ["--in_memory", *(str(x) for pair in {**settings, **options}.items() for x in pair)]


def differences(a, b, place=""):
    """Places at which two checkpoints are not bit-equal; the paths in `run.records` may differ."""
    import torch
    if place == ".run.records":
        return []
    if type(a) is not type(b):
        return [place]
    if isinstance(a, dict):
        return [f"{place}.{key}" for key in a.keys() ^ b.keys()] + [
            found for key in a.keys() & b.keys() for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, (list, tuple)):
        return [place] if len(a) != len(b) else [
            found for k, pair in enumerate(zip(a, b)) for found in differences(*pair, f"{place}[{k}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [place]


def figures(folder):
    """Lines of metrics.jsonl without the speed, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "clips_per_second"} for line in lines]


def compare(whole, broken, last):
    """What differs between two finished runs: entries of the last checkpoint, or "metrics.jsonl"."""
    import torch
    found = differences(*(torch.load(folder / "checkpoints" / last, weights_only=True) for folder in (whole, broken)))
    return found + (["metrics.jsonl"] if figures(whole) != figures(broken) else [])


def prove(work, data, kills, seed=0, settings=None, is_tiny=False, report=print):
    """Run once unbroken, then others with SIGKILLs; returns the list of differences, empty if all are the same.

    Args:
        work: folder for the runs.
        data: demo tree (demo_data.demo_tree).
        kills: how many; each after a uniformly random part, up to two thirds, of what an unbroken run takes.
        settings: flag -> value of the runs.
        report: called with a line of text now and then.
    """
    settings, draw = {**SETTINGS, **(settings or {})}, random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kill_resume", "pretrain"])
    system = "H-DCID" if settings.get("--system") == "h_dcid" else "DCID"
    last = f"{system}-model-{int(settings['--n_epoch']) - 1}.pt"

    def start(folder, *more):
        folder.mkdir(parents=True, exist_ok=True)
        line = [*arguments(folder, data, settings), *more]
        process = context.Process(target=train, args=(line, folder / "output.txt", is_tiny))
        process.start()
        return process

    warm = context.Process(target=int)                  # the server's imports are not timed
    warm.start()
    warm.join()
    began = time.monotonic()
    process = start(work / "whole")
    process.join()
    seconds = time.monotonic() - began
    if process.exitcode:
        return [f"the unbroken run failed; see {work / 'whole' / 'output.txt'}"]
    report(f"an unbroken run takes {seconds:.1f} s and writes {len(figures(work / 'whole'))} lines of figures")
    killed, within_write, runs = 0, 0, 0
    while killed < kills:
        folder, runs, own_kills, process = work / f"broken-{runs}", runs + 1, 0, None
        while process is None or process.exitcode != 0:
            process = start(folder, "--resume", "auto")
            process.join(draw.uniform(0, 2 / 3) * seconds if killed < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                killed, own_kills = killed + 1, own_kills + 1
                within_write += any((folder / "checkpoints").glob(".*.tmp"))
            elif process.exitcode > 0:
                return [f"a resumed run failed; see {folder / 'output.txt'}"]
        found = compare(work / "whole", folder, last)
        report(f"run {runs}, killed {own_kills} times: "
               f"{'bit-equal' if not found else 'DIFFERENT: ' + ', '.join(found[:5])}")
        if found:
            return found
    report(f"{killed} kills, {within_write} of them while a checkpoint was written; all runs end with the same "
           "weights, optimisers, codebooks, random states and figures")
    return []


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--system", choices=("dcid", "h_dcid"), default="dcid", help="what is pretrained")
    parser.add_argument("--tiny", action="store_true", help="a model a hundredth of the demo's size")
    parser.add_argument("--clips", type=int, default=80, help="clips of the demo tree")
    options = parser.parse_args(argv)
    from configs.opts import PLACES
    from demo_data import demo_tree
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        demo_tree.build(data, PLACES, clips=options.clips, progress=False)
        settings = {"--system": options.system, "--n_epoch": 3 if options.system == "dcid" else 5}
        found = prove(Path(work), data, options.kills, options.seed, settings, options.tiny)
    for difference in found:
        print(difference)
    return 1 if found else 0


sys.path.insert(0, str(SOURCE))         # also in the processes of the fork server, which import this file again
if __name__ == "__main__":
    sys.exit(main())
