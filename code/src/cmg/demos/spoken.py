"""Write Spoken Digits, a dataset of real recordings, in the published on-disk formats.

    python -m cmg.demos.spoken --out ../../data/spoken --recordings DIR       # from code/src; about a minute

The folder has the structure of the real data package, like the demo (cmg/demos/dialled.py). Recordings and images are
split in three: for pretraining and AVE's training rows, for AVE's validation rows, and for testing, with the official
test split of the recordings. The pretraining list contains all three, so pretrain with `--splits train`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cmg.data.layout import DATA_PATHS
from cmg.demos import spoken_sources
from cmg.demos.dialled import ave_rows, avvp_lists, write_shared
from cmg.demos.dialled_clips import CLASSES, EMPTY, WORDS
from cmg.demos.spoken_clips import CHANNELS, OFFICIAL, Casting, audio_features, filters, originals, pool, video_features
from cmg.demos.tree import (
    SECONDS,
    Events,
    Tree,
    build_parser,
    one_hot,
    print_built,
    video_ids,
    write_annotations,
    write_h5,
    write_lines,
    write_originals,
    write_text,
    write_zip,
)
from cmg.demos.tree import build as build_tree
from cmg.extract.video import GRID
from cmg.utils.errors import InputError, run

VERSION = 1                             # version of the contents
MARKER = "spoken.json"                  # written last, so that a folder with it is complete
PROMPTS = {name: f"A voice says {word} and a hand writes it" for name, word in zip(CLASSES, WORDS)}
WHOLE, SHORTEST = 1 / 3, 4              # fraction of events that fill the clip; shortest event in seconds
# Pretraining clips per clip of AVE's splits, of val and test in the pretraining list, of AVVP and of UCF-101.
AVE_SHARES, HELD_SHARE, AVVP_SHARE, UCF_SHARE = (4, 8, 8), 8, 6, 8
LEAST_CLIPS, MOST_CLIPS = 80, 100_000   # with 80, every part has all ten classes


class Writer(Tree):
    """A tree being built from three pools of recordings; subclasses may use other features or cuts."""

    name, cut, channels = "Spoken Digits", OFFICIAL, CHANNELS

    def start(self, speech, images):
        """Set the recordings and images."""
        self.pools = {part: pool(part, speech, images, self.cut) for part in ("train", "val", "test")}
        self.filters = filters(self.pools["train"])
        return self

    def cast(self, heard, seen, part, rng):
        """Yield a `Clip` for each row of the digits heard and seen (N, T), or NONE, from the pool `part`."""
        casting = Casting(self.pools[part], rng, self.cut.hold)
        for one in zip(heard, seen):
            yield casting.clip(*one)
            self.bar.update()

    def audio(self, clip, part):
        return audio_features(clip, self.pools[part])

    def video(self, clip, part):
        return video_features(clip, self.pools[part], self.filters)


def pretraining(tree):
    """VGGSound-AVEL: `tree.clips` training clips, and an eighth of that number each for validation and test."""
    rng = tree.rng("vggsound")
    held = tree.clips // HELD_SHARE
    split = np.repeat(["train", "val", "test"], [tree.clips, held, held])
    keys = np.concatenate([np.arange(n) for n in (tree.clips, held, held)]) % len(WORDS)
    ids = rng.permutation(video_ids(len(keys), rng))
    pd.DataFrame({"category": np.array(CLASSES)[keys], "video_id": ids, "split": split}).to_csv(
        tree.path("vggsound.csv"), index=False)
    write_text(tree, "vggsound", PROMPTS)
    write_lines(tree.path("vggsound.categories"), CLASSES)
    event = Events.draw(len(keys), WHOLE, SHORTEST, rng)
    digits = np.where(event.inside, keys[:, None], EMPTY)
    folders = {kind: tree.folder(f"vggsound.{kind}") for kind in ("audio", "video", "label")}
    for part in tree.pools:
        rows = np.flatnonzero(split == part)
        for row, clip in zip(rows, tree.cast(digits[rows], digits[rows], part, rng)):
            write_zip(folders["audio"], ids[row], tree.audio(clip, part))
            write_zip(folders["video"], ids[row], tree.video(clip, part))
            write_zip(folders["label"], ids[row], event.inside[row].astype(np.float32))


def ave(tree):
    """AVE: one event per clip; like the official annotations, rows are grouped by class."""
    rng = tree.rng("ave")
    split, keys = ave_rows(tree.clips, AVE_SHARES)
    event = Events.draw(len(keys), WHOLE, SHORTEST, rng)
    digits = np.where(event.inside, keys[:, None], EMPTY)
    write_annotations(tree, CLASSES, keys, event, rng)
    write_text(tree, "ave", PROMPTS)
    audio = np.empty((len(keys), SECONDS, 128))                                 # float64, as published
    video = np.empty((len(keys), SECONDS, GRID, GRID, tree.channels))
    shown = []
    for part in tree.pools:
        rows = np.flatnonzero(split == part)
        write_h5(tree.path(f"ave.{part}"), "order", rows)
        for row, clip in zip(rows, tree.cast(digits[rows], digits[rows], part, rng)):
            audio[row] = tree.audio(clip, part)
            video[row] = tree.video(clip, part)
            if part == "test":
                shown.append(originals(clip, tree.pools[part]))
    write_h5(tree.path("ave.audio"), "avadataset", audio)
    write_h5(tree.path("ave.video"), "avadataset", video)
    write_h5(tree.path("ave.label"), "avadataset", one_hot(digits, len(CLASSES)))
    write_originals(tree, shown)
    write_shared(tree, keys)


def avvp(tree):
    """AVVP, and the test side of AVE -> AVVP: one or two events per clip, some of them only audible or only visible."""
    rng = tree.rng("avvp")
    ids, digits = avvp_lists(tree, tree.clips // AVVP_SHARE, rng)
    folders = {kind: tree.folder(f"avvp.{kind}") for kind in ("audio", "video")}
    for name, clip in zip(ids, tree.cast(digits["audio"], digits["visual"], "test", rng)):
        write_zip(folders["audio"], name, tree.audio(clip, "test"))
        write_zip(folders["video"], name, tree.video(clip, "test"))


def ucf_vggsound(tree):
    """UCF-101: videos of 6 to 12 seconds with one digit; VGGSound: the test clips of the pretraining list.

    The two class lists are aligned by line, in another order than the other lists.
    """
    rng = tree.rng("ucf_vggsound")
    names = np.array([f"Digit{word.capitalize()}" for word in WORDS])
    order = np.argsort(names)
    write_lines(tree.path("ucf_vggsound.ucf_categories"), names[order])
    write_lines(tree.path("ucf_vggsound.vggsound_categories"), np.array(CLASSES)[order])
    write_text(tree, "ucf_vggsound", PROMPTS)
    clips = pd.read_csv(tree.path("vggsound.csv"))
    clips[clips["split"] == "test"].to_csv(tree.path("ucf_vggsound.vggsound_csv"), index=False)
    keys = np.sort(np.arange(tree.clips // UCF_SHARE) % len(WORDS))
    number = np.arange(len(keys)) - np.searchsorted(keys, keys)
    ids = [f"v_{names[key]}_g{n // 4 + 1:02d}_c{n % 4 + 1:02d}" for key, n in zip(keys, number)]
    pd.DataFrame({"category": names[keys], "video_id": ids}).to_csv(tree.path("ucf_vggsound.ucf_csv"), index=False)
    folder, longest = tree.folder("ucf_vggsound.video"), 12
    seen = np.repeat(keys[:, None], longest, 1)
    for name, clip in zip(ids, tree.cast(np.full_like(seen, EMPTY), seen, "test", rng)):
        write_zip(folder, name, tree.video(clip, "test")[:rng.integers(6, longest + 1)])


PARTS = (pretraining, ave, avvp, ucf_vggsound)      # a part only reads the parts before it


def build(out, paths, recordings, seed=0, clips=2400, progress=True, writer=Writer):
    """Build the tree atomically; a complete one is not changed.

    Args:
        out: folder to create, the data root.
        paths: dotted name -> path relative to the root (cmg.data.layout.DATA_PATHS).
        recordings: folder of the archives (cmg/demos/spoken_sources.py).
        seed: seed of all random choices.
        clips: number of pretraining clips; the other parts are proportional.
        progress: show a progress bar.
        writer: `Writer` or a subclass.

    Returns:
        True if it was built, False if it was complete.

    Raises:
        InputError: `out` contains something else or a tree of other settings, or the archives are missing or not the
            published ones.
    """
    if not LEAST_CLIPS <= clips <= MOST_CLIPS:
        raise InputError(f"--clips {clips}: expected {LEAST_CLIPS} to {MOST_CLIPS}; 2400 is the default")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    settings = {"name": writer.name, "version": VERSION, "seed": seed, "clips": clips}

    def write(partial):
        speech, images = spoken_sources.read_speech(recordings), spoken_sources.read_images(recordings)
        total = sum(clips // share for share in (1, HELD_SHARE, HELD_SHARE, *AVE_SHARES, AVVP_SHARE, UCF_SHARE))
        with tqdm(total=total, unit="clip", desc="spoken digits", disable=None if progress else True) as bar:
            tree = writer(partial, paths, seed, clips, bar).start(speech, images)
            for part in PARTS:
                part(tree)

    return build_tree(out, MARKER, settings, write)


def main(argv=None):
    parser = build_parser("cmg.demos.spoken", __doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--clips", type=int, default=2400,
                        help="number of pretraining clips; the other parts are proportional")
    options = parser.parse_args(argv)
    print_built(options.out, build(options.out, DATA_PATHS, options.recordings, options.seed, options.clips))


if __name__ == "__main__":
    run(main)
