"""Test whether the form of the features matters: the demo with 1024-wide audio and 768-wide video vectors against the
demo itself.

    python code/benchmarks/other_features.py [--seeds 0 1 2] [--json FILE]

In a copy of the demo's data, every second of audio (128 numbers) and of video (a 7 x 7 x 32 map) is replaced with a
random projection. `pretrain.py --preset demo` and `evaluate.py --preset demo` are run on both, in separate folders;
completed runs are not repeated. For every cross-modal cell (task and direction), the output shows the values after the
last epoch of the heads (percent, mean over seeds) and their difference. The exit code is 1 if the mean over the cells
of the papers' table (marked *) is more than five points below the demo's. A seed takes a few minutes.
"""

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path

import h5py
import numpy as np
from local_paths import LOCAL
from precision_equal import last_rows
from tqdm import tqdm

from cmg.data.archive import read_zip
from cmg.data.layout import DATA_PATHS
from cmg.demos import dialled
from cmg.report import tables
from cmg.utils.errors import Parser, run
from cmg.utils.files import atomic_folder

WIDTHS = {"audio": 1024, "video": 768}
TOLERANCE = 5.0         # points of the mean over the cells


def projector(modality):
    """Fixed random projection of a modality: (t, ...) features -> (t, width) vectors of the same scale."""
    matrices = {}

    def project(x):
        x = np.asarray(x, np.float32).reshape(len(x), -1)
        if x.shape[1] not in matrices:
            rng = np.random.default_rng(len(modality))
            matrices[x.shape[1]] = (rng.standard_normal((x.shape[1], WIDTHS[modality]), np.float32)
                                    / np.float32(x.shape[1]) ** 0.5)
        return x @ matrices[x.shape[1]]
    return project


def build(demo, out):
    """Create the projected copy of the demo tree in `out` unless it exists; other files are links."""
    if out.exists():
        return
    paths = {DATA_PATHS[name]: name.split(".")[1] for name in DATA_PATHS
              if name.split(".")[1] in WIDTHS and not name.startswith("avs.") and (demo / DATA_PATHS[name]).exists()}

    def skip(folder, names):
        inside = Path(folder).relative_to(demo)
        return [name for name in names if str(inside / name) in paths]
    with atomic_folder(out) as partial:
        shutil.copytree(demo, partial, ignore=skip, dirs_exist_ok=True,
                        copy_function=lambda source, copy: os.symlink(Path(source).resolve(), copy))
        for path, modality in paths.items():
            project = projector(modality)
            if (demo / path).is_dir():
                (partial / path).mkdir(parents=True)
                for clip in tqdm(sorted((demo / path).glob("*.zip")), path, unit="clip", disable=None, leave=False):
                    dialled.write_zip(partial / path, clip.stem, project(read_zip(clip)))
            else:
                with h5py.File(demo / path) as file:
                    rows = np.stack([project(row) for row in file["avadataset"]])
                dialled.write_h5(partial / path, "avadataset", rows)


def measure(data, folder, seed, opts):
    """Cell -> percent for one pretraining run on the data, trained and tested in `folder` unless already done."""
    limits = ["--max_steps", opts.max_steps] if opts.max_steps else []
    heads = ["--n_epoch", opts.head_epochs] if opts.head_epochs else []
    rows = last_rows(folder, ["--data_root", data, "--seed", seed, *limits], ["--data_root", data, *heads])
    return {f"{row['task']} {row['direction']} {row['metric']}{' *' if tables.column_of(row) else ''}": row["value"]
            for row in rows if row["metric"] == tables.main_metric(row["task"], rows)}


def main(argv=None):
    """Build, train, test, and print the rows; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the pretraining")
    parser.add_argument("--max_steps", type=int, default=None, help="pretraining steps (default: the preset's)")
    parser.add_argument("--head_epochs", type=int, default=None, help="epochs of the heads (default: as published)")
    parser.add_argument("--data_root", type=Path, default=LOCAL.data / "demo", help="the demo's data; built if missing")
    parser.add_argument("--clips", type=int, default=2400, help="number of pretraining clips if the data is built")
    parser.add_argument("--folder", type=Path, default=LOCAL.runs / "demo" / "other_features",
                        help="folder for the projected data and the runs; completed runs are reused")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    demo, folder = opts.data_root.resolve(), opts.folder.resolve()
    dialled.build(demo, DATA_PATHS, clips=opts.clips)
    build(demo, folder / "data")
    metrics = {name: [measure(data, folder / f"{name}-{seed}", seed, opts) for seed in opts.seeds]
               for name, data in (("demo", demo), ("projected", folder / "data"))}
    means = {name: {cell: statistics.fmean(of[cell] for of in seeds) for cell in seeds[0]}
             for name, seeds in metrics.items()}
    print(f"{'':44}{'demo':>9}{'projected':>11}{'difference':>12}")
    for cell, value in means["demo"].items():
        other = means["projected"][cell]
        print(f"{cell:44}{value:9.1f}{other:11.1f}{other - value:+12.1f}")
    overall = {name: statistics.fmean(value for cell, value in cells.items() if cell.endswith("*"))
               for name, cells in means.items()}
    difference = overall["projected"] - overall["demo"]
    print(f"{'mean of the cells with *':44}{overall['demo']:9.1f}{overall['projected']:11.1f}{difference:+12.1f}")
    if opts.json:
        opts.json.write_text(json.dumps({"seeds": opts.seeds, "max_steps": opts.max_steps, "cells": means,
                                         "means": overall, "difference": difference}, indent=1) + "\n",
                             encoding="utf-8")
    return 0 if difference >= -TOLERANCE else 1


if __name__ == "__main__":
    run(main)
