"""`prepare.py new`: a dozen drawn clips in the form of a user's own data set, to start from.

Three classes: a red ball, a green square or a blue cross that moves, with a low, a middle or a high tone
that swells and fades.
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
EPOCHS = 50
SENTENCES = {"ball": ("a ball rolls and hums", "a low hum of a ball"),
             "square": ("a square slides and whistles", "a square with a steady whistle"),
             "cross": ("a cross spins and squeaks", "a high squeak of a cross")}
SPLITS = ("train", "train", "val", "test")          # of the clips of a class
README = """# {clips} drawn clips, as a data set of your own

| file | what it is |
| --- | --- |
| `clips.csv` | the manifest: one row a clip; its columns are explained below |
| `audio/<id>.npy` | ({seconds}, {bands}): {bands} numbers a second |
| `video/<id>.npy` | ({seconds}, {cells}, {cells}, {channels}): a map of {channels} channels a second |
| `prompts.h5` | word vectors of all sentences of `clips.csv`, by `prepare.py text` |
| `run.sh` | the commands below |

| column | content |
| --- | --- |
| `id` | name of the clip's files, without folder and ending |
| `split` | `train`: pretraining and heads learn from it; `val`: chooses a head's epoch; `test`: is measured |
| `label` | class of the clip; empty in a train clip that serves pretraining alone |
| `prompt` | one sentence or several, separated by a bar; a step of pretraining draws one |
| `onset`, `offset` | not here: seconds of an event; with them a head classifies seconds, one row an event |

Only `id` and `split` are needed. Put your own rows and files in their place and run

```bash
bash run.sh
```

which checks the data, pretrains, trains and tests the heads, and writes a report:

```bash
{commands}
```

{clips} clips show the way, not a result. All about it: `code/docs/your-data.md`.
"""
RUN = """#!/usr/bin/env bash
# From the clips beside this file to a result. Every path may be another one.
set -euo pipefail
DIR={folder}
cd {src}
. ./python.sh
{commands}
"""
COMMANDS = """\
DATA=(--manifest "$DIR/clips.csv" --features audio="$DIR/audio" --features video="$DIR/video"
      --features text="$DIR/prompts.h5")
# 1. Is everything there, and of one form?
{python} prepare.py check --dataset custom "${{DATA[@]}}"
# 2. Pretrain on the train clips: {epochs} epochs of one step, few codes, because the clips are few. For real data leave
#    out the last line, and name DCID-model-5.pt in step 3.
./pretrain.sh --dataset_name custom "${{DATA[@]}}" \\
    --model_save_path "$DIR/checkpoint" --snapshot_pref "$DIR/pretraining" \\
    --n_embeddings 24 --n_epoch {epochs} --save_freq {epochs} --b 6 --print_freq {often} --workers 0
# 3. Train a head on each modality, test it on the others.
./custom.sh "${{DATA[@]}}" --checkpoint "$DIR/checkpoint/DCID-model-{last}.pt" --workers 0 --snapshot_pref "$DIR/heads"
# 4. Everything on one page: open report.html in a browser.
{python} -m cmg.report "$DIR/pretraining" "$DIR/heads" --out "$DIR/report.html\""""


def clips():
    """Rows (id, class, number in its class) of the example."""
    return [(f"{name}-{k}", name, k) for name in SENTENCES for k in range(len(SPLITS))]


def sound(kind, k):
    """(T, BANDS) float32: a tone of the class's band that swells and fades; `k` moves its loudest second."""
    band = (20, 60, 100)[kind] + 2 * k
    height = np.exp(-0.5 * ((np.arange(BANDS) - band) / 4) ** 2)
    loudness = 0.6 + 0.4 * np.cos(2 * np.pi * (np.arange(SECONDS) - k) / SECONDS)
    return (loudness[:, None] * height).astype(np.float32)


def picture(kind, k):
    """(T, CELLS, CELLS, CHANNELS) float32: the class's shape on its way from left to right, patch by patch."""
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
        folder: new or empty.
        src: folder of the scripts, for the commands.
    Returns:
        the files at its top.
    Raises:
        InputError: there is something in the folder, or it cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there is something already; a new or empty folder is expected; choose another")
    with atomic_folder(folder, remedy="choose another DIR") as partial:
        _fill(partial, folder, src)
    return sorted(path for path in folder.iterdir())


def _fill(partial, folder, src):
    """Write the files of `folder` into a folder that will be renamed to it."""
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
    place, own = shlex.quote(str(folder)), {"epochs": EPOCHS, "last": EPOCHS - 1, "often": max(1, EPOCHS // 5)}
    _write(partial / "README.md", README.format(
        clips=len(clips()), seconds=SECONDS, bands=BANDS, cells=CELLS, channels=CHANNELS, folder=folder,
        commands=f"cd {shlex.quote(str(src))}\nDIR={place}\n{COMMANDS.format(python='python', **own)}"))
    _write(partial / "run.sh", RUN.format(folder=place, src=shlex.quote(str(src)),
                                         commands=COMMANDS.format(python='"$PYTHON"', **own)))


def _save(path, array):
    content = io.BytesIO()
    np.save(content, array)
    _write(path, content.getvalue())


def _write(path, data):
    with atomic_output(path, remedy="choose another folder") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
