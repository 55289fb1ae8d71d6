"""`prepare.py new`: a dozen synthetic clips in the format of a user's own dataset, as a starting point.

There are three classes: a moving red ball, green square or blue cross, with a low, middle or high tone that swells and
fades.
"""

import io
import shlex
from pathlib import Path

import numpy as np

from cmg.data.text import write_text_features
from cmg.data.text_backends import hashing_sentences
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_folder, atomic_output

SECONDS, BANDS, CHANNELS, CELLS, PIXELS = 10, 128, 8, 7, 8
SENTENCES = {"ball": ("a ball rolls and hums", "a low hum of a ball"),
             "square": ("a square slides and whistles", "a square with a steady whistle"),
             "cross": ("a cross spins and squeaks", "a high squeak of a cross")}
SPLITS = ("train", "train", "val", "test")          # splits of the clips in each class
TEMPLATES = {name: Path(__file__).with_name(f"own_example_{name}.txt") for name in ("readme", "run", "commands")}


def clips():
    """The clips of the example: (id, class, index within its class)."""
    return [(f"{name}-{k}", name, k) for name in SENTENCES for k in range(len(SPLITS))]


def sound(kind, k):
    """Audio features (T, BANDS) float32: a tone in the band of the class, which is loudest at second `k`."""
    band = (20, 60, 100)[kind] + 2 * k
    height = np.exp(-0.5 * ((np.arange(BANDS) - band) / 4) ** 2)
    loudness = 0.6 + 0.4 * np.cos(2 * np.pi * (np.arange(SECONDS) - k) / SECONDS)
    return (loudness[:, None] * height).astype(np.float32)


def picture(kind, k):
    """Video features (T, CELLS, CELLS, CHANNELS) float32: the shape of the class, moving from left to right."""
    side, color = CELLS * PIXELS, np.eye(3)[kind]
    y, x = np.mgrid[:side, :side]
    filters = np.abs(np.random.default_rng(0).standard_normal((PIXELS * PIXELS * 3, CHANNELS))) / PIXELS
    seconds = []
    for t in range(SECONDS):
        dx, dy = np.abs(x - (8 + 4 * t)), np.abs(y - (20 + 5 * k))
        shape = (dx ** 2 + dy ** 2 < 100, np.maximum(dx, dy) < 9, (np.minimum(dx, dy) < 3) & (np.maximum(dx, dy) < 12))
        pixels = (shape[kind][..., None] * color).reshape(CELLS, PIXELS, CELLS, PIXELS, 3)
        cells = pixels.swapaxes(1, 2).reshape(CELLS, CELLS, -1)
        seconds.append(cells @ filters)
    return np.stack(seconds).astype(np.float32)


def write(folder, src):
    """Write the example.

    Args:
        folder: a new or empty folder.
        src: folder of the scripts, for the commands.

    Returns:
        The files and folders in it.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; expected a new or empty folder; choose another")
    with atomic_folder(folder, remedy="choose another DIR") as partial:
        _fill(partial, folder, src)
    return sorted(folder.iterdir())


def _fill(partial, folder, src):
    """Write the files into `partial`, which will be renamed to `folder`."""
    rows = ["id,split,label,prompt"]
    for name, of, k in clips():
        kind = list(SENTENCES).index(of)
        rows.append(f"{name},{SPLITS[k]},{of},{'|'.join(SENTENCES[of])}")
        _save(partial / "audio" / f"{name}.npy", sound(kind, k))
        _save(partial / "video" / f"{name}.npy", picture(kind, k))
    sentences = [sentence for of_class in SENTENCES.values() for sentence in of_class]
    _write(partial / "clips.csv", "\n".join(rows) + "\n")
    write_text_features(partial / "prompts.h5", {sentence: sentence for sentence in sentences},
                        hashing_sentences(sentences), "hashing", prompts_file=folder / "clips.csv")
    readme, run, commands = (path.read_text(encoding="utf-8") for path in TEMPLATES.values())
    dir_, src = shlex.quote(str(folder)), shlex.quote(str(src))
    _write(partial / "README.md", readme.format(
        clips=len(clips()), seconds=SECONDS, bands=BANDS, cells=CELLS, channels=CHANNELS,
        commands=f"cd {src}\nDIR={dir_}\n{commands.format(python='python').rstrip()}"))
    _write(partial / "run.sh", run.format(folder=dir_, src=src, commands=commands.format(python='"$PYTHON"')))


def _save(path, array):
    content = io.BytesIO()
    np.save(content, array)
    _write(path, content.getvalue())


def _write(path, data):
    with atomic_output(path, remedy="choose another folder") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
