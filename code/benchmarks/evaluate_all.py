"""Time of evaluating one checkpoint on AVE, AVVP, AVE>AVVP and UCF/VGG at their published sizes.

    python code/benchmarks/evaluate_all.py [--system dcid] [--share 0.02] [--json FILE]

Features are random and kept in memory, with 64 different clips; an untrained encoder of the published widths replaces
the checkpoint. Everything else is as in `evaluate.py`: all directions of audio and video, the untrained control, the
published number of epochs, heads trained in parallel, result lines and predictions written to a temporary folder.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from timing import add_device

from cmg.cli import device as device_of
from cmg.downstream import toc
from cmg.downstream.settings import HeadSettings, TocSettings
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS
from cmg.results.rows import Output
from cmg.systems.base import FrozenEncoder
from cmg.systems.registry import SYSTEMS
from cmg.training.runtime import has_bf16_units
from cmg.utils.errors import Parser, run

DIFFERENT, SECONDS = 64, 10
CLIPS = {           # task -> (classes, {role: {modality: clips}}); counts of the official lists
    "ave": (28, {"train": {"audio": 3339, "video": 3339}, "val": {"audio": 402, "video": 402},
                 "test": {"audio": 402, "video": 402}}),
    "avvp": (25, {"train": {"audio": 1848, "video": 1665}, "test": {"audio": 1848, "video": 1665}}),
    "ave_avvp": (12, {"train": {"audio": 1831, "video": 1831}, "test": {"audio": 1848, "video": 1665}}),
    "ucf_vggsound": (16, {"train": {"audio": 4813, "video": 2003}, "test": {"audio": 4813, "video": 2003}}),
}


class RandomClips(torch.utils.data.Dataset):
    """Clips of one modality with labels; each clip has one class in some of its seconds."""

    def __init__(self, name, modality, clips, classes, config):
        self.name, self.modalities, self.classes = name, (modality,), [str(c) for c in range(classes)]
        rng = np.random.default_rng(clips)
        self.ids = [str(i) for i in range(clips)]
        self.features = rng.standard_normal((DIFFERENT, SECONDS, *config.shape(modality)), np.float32)
        chosen = np.where(rng.random((clips, SECONDS)) < 0.7, rng.integers(classes, size=(clips, 1)), classes)
        chosen[:, 0] = chosen[:, 0].clip(max=classes - 1)
        self.labels = np.eye(classes + 1, dtype=np.float32)[chosen]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {self.modalities[0]: self.features[i % DIFFERENT], "label": self.labels[i]}


def open_task(name, config, share):
    """A task of the table over random clips."""
    entry, (classes, roles) = TASKS[name], CLIPS[name]
    parts = {role: {m: RandomClips(f"{name} {role}", m, max(2, round(share * clips)), classes, config)
                    for m, clips in modalities.items()} for role, modalities in roles.items()}
    return entry, entry.method.task(name, entry.method.head, entry.best_by, **parts)


def main(argv=None):
    """Evaluate, print seconds per task and, if asked, write JSON."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the published clips")
    add_device(parser)
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    device, kind = device_of(opts.device), SYSTEMS[opts.system]
    torch.manual_seed(0)
    config = kind.Config.for_data(("audio", "video", "text"))
    encoder = FrozenEncoder(kind(config).encoder, kind, epoch=5).to(device)
    pretrained = Pretrained(Path("random.pt"), encoder, "0" * 64)
    precision, times = "bf16" if has_bf16_units(device) else "float32", {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CLIPS:
            start = perf_counter()
            entry, task = open_task(name, config, opts.share)
            chosen = toc.variants(TocSettings(), name, list(entry.directions.values()), pretrained.code_dim,
                                  kind.TOC_RELEASED)
            settings = HeadSettings(n_epoch=entry.epochs, precision=precision, in_memory=True)
            output = Output(Path(folder) / "results.jsonl", "none.json")
            entry.method.evaluate(task, pretrained, chosen, settings, output)
            times[name] = perf_counter() - start
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{kind.label}, {opts.share:g} of the published clips, {precision} on {name}")
    for task, time in (times | {"all": sum(times.values())}).items():
        print(f"{task:14} {time:8.1f} s")
    if opts.json:
        opts.json.write_text(json.dumps({"device": name, "share": opts.share, "seconds": times}, indent=1) + "\n",
                             encoding="utf-8")


if __name__ == "__main__":
    run(main)
