"""Common code of Dialled Digits, Spoken Digits and Natural: a data tree being built, and writers for the published file
formats."""

import argparse
import io
import json
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cmg.data.sets.ave import ORIGINALS
from cmg.data.text import read_prompts, write_text_features
from cmg.data.text_backends import hashing_sentences
from cmg.utils.errors import InputError, Parser
from cmg.utils.files import atomic_folder, atomic_output
from cmg.utils.settings import natural

SECONDS = 10                            # length of a clip, as published
ID_LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")


@dataclass
class Tree:
    """A tree being built: its root, the paths of its files, and the settings for its random choices."""
    root: Path
    paths: dict             # dotted name -> path relative to the root, as cmg.data.layout.DATA_PATHS
    seed: int
    clips: int              # pretraining clips; the other parts are proportional
    bar: tqdm
    seconds: int = SECONDS

    def path(self, name):
        """Absolute path of a file, by its dotted name; its folder is created."""
        path = self.root / self.paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folder(self, name):
        """Absolute path of a folder, by its dotted name; it is created."""
        path = self.root / self.paths[name]
        path.mkdir(parents=True, exist_ok=True)
        return path

    def encode(self, sentences):
        """(word vectors of sentences, their "backend" and "model"); uses hashed character n-grams, which need no
        download."""
        return hashing_sentences(sentences), {"backend": "hashing"}

    def rng(self, part):
        """The random generator of a part; the contents of other parts do not depend on it."""
        return np.random.default_rng([self.seed, *part.encode()])


@dataclass
class Events:
    """One event per clip: its start and end (exclusive) in seconds (N,), and whether each second is inside (N, T)."""

    start: np.ndarray
    end: np.ndarray
    inside: np.ndarray

    @classmethod
    def draw(cls, count, whole, shortest, rng, seconds=SECONDS):
        """Draw events: a fraction `whole` of them fill the clip, the others are at least `shortest` seconds long."""
        length = np.where(rng.random(count) < whole, seconds, rng.integers(shortest, seconds + 1, count))
        start = (rng.random(count) * (seconds + 1 - length)).astype(int)
        second = np.arange(seconds)
        inside = (second >= start[:, None]) & (second < (start + length)[:, None])
        return cls(start, start + length, inside)


class Deck:
    """Deals items of given classes in random order; none is repeated before all of its class have been used."""

    def __init__(self, classes, rng):
        self.classes, self.rng, self.queues = np.asarray(classes), rng, {}

    def next(self, key):
        """Index of the next item of a class."""
        if not self.queues.get(key):
            self.queues[key] = list(self.rng.permutation(np.flatnonzero(self.classes == key)))
        return self.queues[key].pop()


# ---------------------------------------------------------------------------------------------------- formats
def video_ids(count, rng):
    """Distinct names of 11 characters, in lower case for case-insensitive file systems."""
    names = set()
    while len(names) < count:
        names.update("".join(row) for row in rng.choice(ID_LETTERS, (count - len(names), 11)))
    return np.array(sorted(names))


def one_hot(second_keys, classes):
    """Labels of second keys (N, T), negative for background: (N, T, classes + 1) float32, last column background."""
    return np.eye(classes + 1, dtype=np.float32)[np.where(second_keys < 0, classes, second_keys)]


def write_zip(folder, name, array):
    """Write a feature zip with one member `<name>.pkl`, a pickled array, with a fixed date for reproducibility."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}.pkl"), pickle.dumps(np.ascontiguousarray(array)),
                         zipfile.ZIP_DEFLATED, compresslevel=1)


def write_h5(path, name, array):
    """Write an h5 file with one dataset, one chunk per row, and gzip compression; the output of lzf is not
    reproducible, because it uses uninitialized memory."""
    content = io.BytesIO()                  # h5py handles a full disk badly
    with h5py.File(content, "w") as file:
        file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]) if array.ndim > 1 else None,
                            compression=1 if array.ndim > 1 else None, shuffle=array.ndim > 1 or None)
    path.write_bytes(content.getvalue())


def write_originals(tree, originals):
    """Write the content of AVE's test rows for display in the report (`cmg.data.sets.ave.ORIGINALS`).

    Args:
        originals: {"audio": spectrogram (bands, frames), "video": image (H, W) or (H, W, 3)}, uint8, for each row.
    """
    for modality, name in ORIGINALS.items():
        write_h5(tree.path("ave.label").with_name(name), "originals", np.stack([row[modality] for row in originals]))


def write_events(path, events):
    """Write an AVVP list: one row per clip, with comma-separated onsets, offsets and labels, and tabs between
    columns."""
    joined = events.astype({"onset": str, "offset": str}).groupby("filename", sort=False)
    joined[["onset", "offset", "event_labels"]].agg(",".join).reset_index().to_csv(path, sep="\t", index=False)


def write_annotations(tree, classes, keys, event, rng):
    """Write AVE's list of clips, with random ids, and its classes.

    Args:
        classes: names (C).
        keys: (N,) class of each clip.
        event: `Events` of the clips.
    """
    table = pd.DataFrame({"category": np.array(classes)[keys], "video_id": video_ids(len(keys), rng),
                          "quality": "good", "start": event.start, "end": event.end})
    table.to_csv(tree.path("ave.label").with_name("Annotations.txt"), sep="&", index=False, header=False)
    write_lines(tree.path("ave.categories"), classes)


def write_avvp(tree, count, rng, names, shared, draw):
    """Draw the events of `count` AVVP clips and write the lists of AVVP and of AVE -> AVVP, which has only the shared
    classes.

    Args:
        names: classes (C).
        shared: names of the shared classes, in label order.
        draw: function (random generator, T) -> events of a clip: (key, onset, offset, is_audible, is_visible).

    Returns:
        (ids, table of all events: row of the clip, key, onset, offset, audio, visual).
    """
    events = [(name, *event) for name in video_ids(count, rng) for event in draw(rng, tree.seconds)]
    table = pd.DataFrame(events, columns=["id", "key", "onset", "offset", "audio", "visual"])
    ids = table["id"].unique()
    table["row"] = np.searchsorted(ids, table["id"])
    cut = rng.integers(0, 30, count) * tree.seconds
    table["filename"] = [f"{name}_{cut[row]}_{cut[row] + tree.seconds}" for name, row in zip(table["id"], table["row"])]
    table["event_labels"] = np.array(names)[table["key"]]
    for modality in ("audio", "visual"):
        chosen = table[table[modality]]
        write_events(tree.path(f"avvp.{modality}_csv"), chosen)
        write_events(tree.path(f"ave_avvp.{modality}_csv"), chosen[chosen["event_labels"].isin(shared)])
    write_lines(tree.path("avvp.categories"), names)
    write_lines(tree.path("ave_avvp.categories"), shared)
    return ids, table


def write_captions(tree, clips):
    """Write the list of captions, one row per caption, their word vectors, and copies of the features of `vggsound`.

    Args:
        clips: (id, sentences) of each clip.
    """
    rows = [(f"{clip}#{number}", sentence, clip) for clip, sentences in clips
            for number, sentence in enumerate(sentences)]
    path = tree.path("captions.csv")
    pd.DataFrame(rows, columns=["label", "prompt", "clip"]).to_csv(path, index=False)
    write_vectors(tree, "captions", path)
    for kind in ("audio", "video"):
        folder = tree.folder(f"captions.{kind}")
        for clip, _ in clips:
            shutil.copyfile(tree.folder(f"vggsound.{kind}") / f"{clip}.zip", folder / f"{clip}.zip")


def write_prompts(path, prompts):
    pd.DataFrame(prompts.items(), columns=["label", "prompt"]).to_csv(path, index=False)


def write_text(tree, name, prompts):
    """Write the prompts of a dataset and their word vectors."""
    write_prompts(tree.path(f"{name}.prompts"), prompts)
    write_vectors(tree, name, tree.path(f"{name}.prompts"))


def write_vectors(tree, name, path):
    """Write the word vectors of a list of prompts; see `Tree.encode`."""
    prompts = read_prompts(path)
    sentences, about = tree.encode(list(prompts.values()))
    write_text_features(tree.path(f"{name}.text"), prompts, sentences, **about,
                        prompts_file=path.relative_to(tree.root).as_posix())


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- the folder
def build_parser(module, doc):
    """The parser of a module that builds a tree, with --out and --seed."""
    parser = Parser(prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to create; pass it as --data_root")
    parser.add_argument("--seed", type=natural, default=0, help="seed of all random choices (default 0)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    return parser


def print_built(out, built):
    """Print whether `build` built the tree."""
    print(f"{out}: {'built' if built else 'already complete, not changed'}")


def is_there(out, marker, settings):
    """Whether `out` contains this tree; InputError if it contains anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != settings:
        raise InputError(f"{out}: contains something else ({marker} is {json.dumps(found)}; expected "
                         f"{json.dumps(settings)}); delete it or choose another folder")
    return True


def build(out, marker, settings, write):
    """Build a tree atomically; a complete one is not changed.

    Args:
        out: folder to create, the data root.
        marker: name of the file with `settings`, which is written last.
        settings: JSON values that determine the contents.
        write: function that writes the contents to a folder.

    Returns:
        True if it was built, False if it was complete.

    Raises:
        InputError: `out` contains something else, or cannot be written.
    """
    out = Path(out).absolute()
    if is_there(out, marker, settings):
        return False
    with atomic_folder(out, lambda: is_there(out, marker, settings)) as partial:
        with threadpool_limits(1):                                              # sums depend on the threads
            write(partial)
        with atomic_output(partial / marker, "w") as file:
            file.write(json.dumps(settings, indent=1) + "\n")
    return True
