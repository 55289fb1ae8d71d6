"""Dialled Digits scenes, the demo of segmentation, in the published layout of AVSBench-S4: images with several
handwritten digits, where the tone of a telephone key, or a sentence that names it, determines which one to segment.

    python demo_scenes.py --out ../../../../data/demo            # about 10 s

Audio and sentences are those of cmg/demos/dialled_clips.py, on which the demo's encoder is pretrained. Digits in
training, validation and test images are from different writers. The same seed always gives the same images.
"""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from cmg.data.layout import DATA_PATHS
from cmg.data.sets.avs_s4 import SECONDS
from cmg.demos import dialled_clips
from cmg.demos.tree import Tree, write_prompts, write_zip
from cmg.utils.errors import InputError, Parser, readable, run
from cmg.utils.files import as_input_error
from cmg.utils.settings import natural

NAME, VERSION = "Dialled Digits scenes", 2
MARKER = "AVSBench/demo_scenes.json"        # written last, so that scenes with it are complete
SIDE, CELL, CANVAS, DIGIT = 64, 32, 28, 25  # sides in pixels: image, cell of the 2 x 2 grid, canvas of a digit, digit
PER_SCENE = 3                               # digits per image; the fourth cell is empty
INK = 0.3                                   # brightness above which a pixel belongs to the mask of a digit
STYLE = dialled_clips.Style(turn=8, zoom=(0.9, 1.05), shift=0.0, ink=(1.0, 1.0), noise=(0.0, 0.0), thickness=0.3)
CLIPS = {"train": 900, "val": 40, "test": 150}
CATEGORIES = [name.replace(" ", "_") for name in dialled_clips.CLASSES]


def scenes(count, split, rng):
    """The clips of one split: three different digits in three cells of a 2 x 2 grid, with a small drift.

    Returns:
        (frames (N, 5, 64, 64, 3) uint8, masks (N, 5, 64, 64) uint8 of 0 and 255, keys (N,) of the digits to segment).
    """
    keys = np.arange(count) % 10
    others = rng.permuted(np.tile(np.arange(1, 10), (count, 1)), axis=1)[:, :PER_SCENE - 1]
    shown = np.concatenate([keys[:, None], (keys[:, None] + others) % 10], 1)               # (N, 3) different keys
    samples = np.repeat(dialled_clips.pick(shown.ravel(), split, rng), SECONDS, 0)
    strokes = dialled_clips.draw(samples, rng, STYLE, CANVAS, DIGIT)
    strokes = strokes.reshape(count, PER_SCENE, SECONDS, CANVAS, CANVAS)
    cells = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)[:, :PER_SCENE]
    start = rng.integers(-2, 3, (count, PER_SCENE, 1, 2))
    drift = np.cumsum(rng.integers(-1, 2, (count, PER_SCENE, SECONDS, 2)), 2)
    corner = np.stack([cells // 2, cells % 2], -1)[:, :, None] * CELL + (CELL - CANVAS) // 2 + start + drift
    corner = corner.clip(0, SIDE - CANVAS)
    color = rng.uniform(0.45, 1.0, (count, PER_SCENE, 3)).astype(np.float32)
    ground = rng.uniform(0.0, 0.35, (count, 1, 1, 1, 3)).astype(np.float32)
    pictures = np.broadcast_to(ground, (count, SECONDS, SIDE, SIDE, 3)).copy()
    masks = np.zeros((count, SECONDS, SIDE, SIDE), np.uint8)
    for i, j, k in np.ndindex(count, PER_SCENE, SECONDS):
        top, left = corner[i, j, k]
        area = (slice(top, top + CANVAS), slice(left, left + CANVAS))
        ink = strokes[i, j, k, :, :, None]
        pictures[i, k][area] += ink * (color[i, j] - pictures[i, k][area])
        masks[i, k][area][strokes[i, j, k] > INK] = 255 if j == 0 else 0            # later digits hide earlier ones
    pictures += 0.04 * rng.standard_normal(pictures.shape, dtype=np.float32)
    return (pictures.clip(0, 1) * 255).astype(np.uint8), masks, keys


def build(root, paths, seed=0, clips=None, progress=True):
    """Write the scenes to a data root atomically; complete ones are not changed.

    Args:
        root: data root of the demo.
        paths: dotted name -> path relative to the root (cmg.data.layout.DATA_PATHS).
        seed: seed of all random choices.
        clips: split -> number of clips, CLIPS by default.
        progress: show a progress bar.

    Returns:
        True if they were built, False if they were complete.

    Raises:
        InputError: the root contains something else or scenes of other settings, or the demo's pretraining data, whose
            word vectors are used, is missing.
    """
    root, clips = Path(root), dict(clips or CLIPS)
    settings = {"name": NAME, "version": VERSION, "seed": seed, "clips": clips}
    top = Path(paths["avs.csv"]).parts[0]
    if _is_whole(root, top, settings):
        return False
    words = root / paths["vggsound.text"]
    if not words.is_file():
        raise InputError(f"{words}: not found; expected the word vectors of the demo's sentences; run code/src/demo.sh "
                         "first")
    with readable(words):
        vectors = words.read_bytes()
    with as_input_error(root, "choose another data root"), _beside(root) as partial:
        partial.chmod(0o755)            # mkdtemp makes private folders
        with tqdm(total=sum(clips.values()), unit="scene", desc="demo scenes",
                  disable=None if progress else True) as bar:
            tree = Tree(partial, paths, seed, clips, bar)
            _write(tree)
        tree.path("avs.text").write_bytes(vectors)
        (partial / MARKER).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        try:
            (partial / top).rename(root / top)
        except OSError:
            if not _is_whole(root, top, settings):          # unless another build was first
                raise
            return False
    return True


@contextmanager
def _beside(root):
    """A temporary folder in the data root, removed at the end of the block."""
    partial = Path(tempfile.mkdtemp(prefix="AVSBench.", suffix=".tmp", dir=root))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(root, top, settings):
    """Whether these scenes exist; InputError if there is anything else."""
    if not (root / top).exists():
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{root / top}: exists and is not a demo ({MARKER} is missing or damaged); delete it or "
                         "choose another --data_root") from None
    if found != settings:
        raise InputError(f"{root / top}: contains other scenes ({json.dumps(found)[:200]}); delete it or choose "
                         "another --data_root")
    return True


def _write(tree):
    rows = []
    for split, count in tree.clips.items():
        rng = tree.rng(split)
        frames, masks, keys = scenes(count, split, rng)
        sounds = dialled_clips.audio_clips(np.repeat(keys[:, None], SECONDS, 1), rng)               # (N, 5, 128)
        short = np.arange(count) % 20 == 7                      # some audio ends early, as in some published clips
        for i in range(count):
            category, name = CATEGORIES[keys[i]], f"{split}_{i:05d}"
            rows.append((name, 0, category, split))
            for kind, pictures in (("frames", frames[i]), ("masks", masks[i, :1] if split == "train" else masks[i])):
                folder = tree.folder(f"avs.{kind}") / split / category / name
                folder.mkdir(parents=True)
                for k, picture in enumerate(pictures, 1):
                    Image.fromarray(picture).save(folder / f"{name}_{k}.png", compress_level=1)
            folder = tree.folder("avs.audio") / split / "zip" / category
            folder.mkdir(parents=True, exist_ok=True)
            write_zip(folder, name, sounds[i, :SECONDS - int(short[i])])
            tree.bar.update()
    pd.DataFrame(rows, columns=["name", "start", "category", "split"]).to_csv(tree.path("avs.csv"), index=False)
    write_prompts(tree.path("avs.prompts"), dict(zip(CATEGORIES, dialled_clips.PROMPTS.values(), strict=True)))


def main(argv=None):
    parser = Parser(prog="demo_scenes.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="data root of the demo")
    parser.add_argument("--seed", type=natural, default=0, help="seed of all random choices")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    opts = parser.parse_args(argv)
    built = build(opts.out, DATA_PATHS, opts.seed)
    print(f"{opts.out}: scenes {'built' if built else 'already complete, not changed'}")


if __name__ == "__main__":
    run(main)
