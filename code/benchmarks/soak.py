"""Kill programs many times at random moments, and compare the results of their resumed runs with those of an
uninterrupted run. The tests include a few such kills; studies/soak.md has the results.

    export PYTHONPATH=code/tests:code/src:code/AVSBench_downstream/avs_scripts/avs_s4
    python code/benchmarks/soak.py --kills 20                           pretraining of the demo
    python code/benchmarks/soak.py --what all --tiny --kills 5          every kind of program, five kills each
    python code/benchmarks/soak.py --what all --tiny --kills 50 --log soak.jsonl        continues where the log ends
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import kill_resume
from kill_resume import Work, equal


def measure(arguments, log):
    """AVE's heads, with their state saved after every epoch."""
    import ave
    from cmg.downstream import resume as head_resume
    from cmg.downstream import run as run_task
    run_task.Progress = lambda path: head_resume.Progress(path, 0)
    kill_resume.process(lambda: ave.main(arguments), log)


def segment(arguments, log):
    """Training of a segmentation network, with its state saved after every step."""
    import train as script
    import training
    training.SECONDS = 0
    kill_resume.process(lambda: script.main(arguments), log)


def heads_left(folder):
    """Result lines and saved predictions of a task."""
    import numpy as np

    from cmg.results import rows as results
    rows = [{key: value for key, value in row.items() if key not in ("seconds", "provenance")}
            for row in results.read(folder / "run" / "results.jsonl")]
    kept = {path.name: dict(np.load(path)) for path in sorted(folder.rglob("*.npz"))}
    return {"rows": rows, "predictions": kept, "states": [path.name for path in folder.rglob("heads-*.pt")]}


def pack_left(folder):
    """Content of a pack, with no other files next to it."""
    import h5py
    with h5py.File(folder / "pack.h5") as file:
        arrays = {name: file[name][()].tobytes() for name in file}
        return {"arrays": arrays, "attributes": dict(file.attrs),
                "files": sorted(path.name for path in folder.iterdir() if path.name != "output.txt")}


def heads(work, data):
    """Work: AVE's heads on a checkpoint with random weights."""
    import torch

    from cmg.checkpoints import checkpoint
    from cmg.systems.dcid import DCID
    torch.manual_seed(0)
    model = DCID(DCID.Config.for_data(("audio", "video"), video_dim=32, num_codes=24, **WIDTHS_OF_HEADS))
    checkpoint.save(work / "model.pt", checkpoint.pack(model, None, {}, 0, 0, {}))
    return Work(measure, lambda folder: (["--data_root", str(data), "--checkpoint", str(work / "model.pt"), "--gpu",
                                          "cpu", "--in_memory", "--n_epoch", "40", "--seeds", "0", "1",
                                          "--snapshot_pref", str(folder / "run")], folder / "output.txt"),
                equal(heads_left))


WIDTHS_OF_HEADS = {"code_dim": 32, "feed_forward": 64, "num_layers": 1}


def avs(work, data):
    """Work: segmentation on the demo's scenes."""
    import demo_scenes
    import torch

    from cmg.checkpoints import checkpoint
    from cmg.data.layout import DATA_PATHS
    from cmg.systems.dcid import DCID
    demo_scenes.build(data, DATA_PATHS, clips={"train": 12, "val": 4, "test": 1}, progress=False)
    torch.manual_seed(0)
    model = DCID(DCID.Config.for_data(("audio", "text"), num_codes=12, code_dim=16, text_hidden=8, feed_forward=16,
                                      num_layers=1, num_heads=2))
    checkpoint.save(work / "encoder.pt", checkpoint.pack(model, None, {}, 0, 0, {}))
    return Work(segment, lambda folder: (
        ["--checkpoint", str(work / "encoder.pt"), "--data_root", str(data), "--log_dir", str(folder), "--direction",
         "at", "--visual_backbone", "small", "--tpavi_stages", "2", "3", "--tpavi_va_flag", "--image_size", "32",
         "--num_workers", "0", "--gpu", "cpu", "--channels", "8", "--tpavi_norm_start", "1", "--max_epoches", "4",
         "--lr", "1e-3", "--train_batch_size", "2", "--resume", "auto"], folder / "output.txt"),
        equal(kill_resume.networks_left))


def packing(work, data):
    """Work: packing the demo's audio, with a flush every eight clips."""
    return Work(kill_resume.prepare, lambda folder: (["pack", "vggsound.audio", "--data_root", str(data), "--out",
                                          str(folder / "pack.h5")], folder / "output.txt", 2), equal(pack_left))


EPOCHS = {"h_dcid": 5}          # pretraining epochs; level 2 starts at epoch 3


def kinds():
    """Name for --what -> function (folder, demo tree, tiny) that returns the `Work`."""
    from cmg.systems.registry import SYSTEMS

    def of_system(system, processes):
        settings = {"--system": system, "--n_epoch": EPOCHS.get(system, 3)}
        return lambda work, data, is_tiny: kill_resume.pretraining(data, settings, is_tiny, processes)
    found = {"pretrain" + ("" if name == "dcid" else f":{name}") + "x2" * (n == 2): of_system(name, n)
             for name in SYSTEMS for n in (1, 2)}
    return found | {name: lambda work, data, is_tiny, make=make: make(work, data) for name, make in (
        ("heads", heads), ("avs", avs), ("extract", kill_resume.extraction), ("pack", packing))}


def soak(names, kills, seed, is_tiny, clips, log=None):
    """Run `prove` for some kinds of work; returns the number of failures. `log`: file of lines {"what", "kills",
    "seed", ...}; logged work is skipped."""
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    known = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        demo_tree.build(data, DATA_PATHS, clips=clips, progress=False)
        for name in names:
            if any(line["what"] == name and line["seed"] == seed and line["kills"] >= kills for line in known):
                continue
            place, began, said = Path(folder) / name, time.monotonic(), []
            place.mkdir()

            def report(line, name=name, said=said):
                said.append(line)
                print(f"{name}: {line}", flush=True)
            found = kill_resume.prove(place, kinds()[name](place, data, is_tiny), kills, seed, report)
            for difference in found:
                print(f"{name}: {difference}", flush=True)
            failed += bool(found)
            if log:
                with open(log, "a") as file:
                    file.write(json.dumps({"what": name, "kills": kills, "seed": seed, "differences": found, "seconds":
                                           round(time.monotonic() - began), "last": said[-1]}) + "\n")
    return failed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("all", *kinds()), default=["pretrain"],
                        help="programs to kill")
    parser.add_argument("--kills", type=int, default=20, help="number of kills of each program")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kill times")
    parser.add_argument("--tiny", action="store_true", help="pretrain a model a hundredth of the demo's size")
    parser.add_argument("--clips", type=int, default=80, help="number of clips in the demo tree")
    parser.add_argument("--log", type=Path, default=None, help="append a line per kind of work; skip logged ones")
    options = parser.parse_args(argv)
    names = list(kinds()) if "all" in options.what else options.what
    return 1 if soak(names, options.kills, options.seed, options.tiny, options.clips, options.log) else 0


if __name__ == "__main__":
    sys.exit(main())
