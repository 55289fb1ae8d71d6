"""Time of reading random clips: published zips against a pack created by `prepare.py pack`, in one run.

    python code/benchmarks/read_clips.py [--clips 2000] [--json FILE]

Clips of the published shapes are written to a temporary folder: audio (10, 128), video (10, 7, 7, 512), float32,
non-negative with three quarters zeros like VGG-19's pool5, deflated as `zip` does. They are packed in float16 by the
project's own command. The same clips are then read in the same random order through the same stores from both paths,
from the page cache, so that the comparison does not depend on the disk.
"""

import argparse
import io
import json
import pickle
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from cmg.data.features import open_features
from cmg.prepare.pack import pack
from cmg.utils.errors import Parser, run

SHAPES = {"audio": (10, 128), "video": (10, 7, 7, 512)}
DIFFERENT = 50                  # clips with distinct contents; the others are copies in separate files


def zip_of(rng, shape):
    """Bytes of a zip with one pickled clip, with values like VGGish and VGG-19 features."""
    clip = np.maximum(rng.standard_normal(shape, np.float32) - 0.67, 0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.pkl", pickle.dumps(clip, protocol=4))
    return buffer.getvalue()


def seconds_per_clip(store, ids):
    """Mean seconds to read a clip as float32, over all `ids`."""
    store.read(ids[0])
    start = time.perf_counter()
    for name in ids:
        store.read(name)
    return (time.perf_counter() - start) / len(ids)


def main(argv=None):
    """Write, pack and read; print a table and, if requested, write JSON."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000, help="number of clips per modality")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="dtype of the pack")
    parser.add_argument("--folder", type=Path, default=None, help="folder to write to (default: a temporary folder)")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    torch.set_num_threads(1)                # as in a DataLoader worker
    rng, metrics = np.random.default_rng(0), {"clips": opts.clips, "dtype": opts.dtype}
    folder = Path(tempfile.mkdtemp(dir=opts.folder))
    try:
        for modality, shape in SHAPES.items():
            zips = folder / modality / "zip"
            zips.mkdir(parents=True)
            contents = [zip_of(rng, shape) for _ in range(min(DIFFERENT, opts.clips))]
            for k in range(opts.clips):
                (zips / f"clip{k:07d}.zip").write_bytes(contents[k % len(contents)])
            start = time.perf_counter()
            pack(zips, folder / modality / "pack.h5", modality, opts.dtype)
            packing = time.perf_counter() - start
            paths = {"zips": zips, "pack": folder / modality / "pack.h5"}
            stores = {name: open_features(path, modality) for name, path in paths.items()}
            ids = [f"clip{k:07d}" for k in rng.permutation(opts.clips)]
            times = {name: seconds_per_clip(store, ids) for name, store in stores.items()}
            metrics[modality] = {"zips_ms": 1e3 * times["zips"], "pack_ms": 1e3 * times["pack"],
                                 "ratio": times["zips"] / times["pack"],
                                 "packing_clips_per_second": opts.clips / packing}
    finally:
        shutil.rmtree(folder)
    total = {name: sum(metrics[m][f"{name}_ms"] for m in SHAPES) for name in ("zips", "pack")}
    metrics["both"] = {"zips_ms": total["zips"], "pack_ms": total["pack"], "ratio": total["zips"] / total["pack"]}
    print(f"{opts.clips} random clips, pack in {opts.dtype}\n{'':8}{'zips':>12}{'pack':>12}{'ratio':>8}")
    for name in (*SHAPES, "both"):
        row = metrics[name]
        print(f"{name:8}{row['zips_ms']:9.3f} ms{row['pack_ms']:9.3f} ms{row['ratio']:8.1f}")
    if opts.json:
        opts.json.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
