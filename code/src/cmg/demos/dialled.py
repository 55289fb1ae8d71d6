"""Write Dialled Digits, the demo data, in the published on-disk formats.

    python -m cmg.demos.dialled --out ../../data/demo            # from code/src; about 20 s

The folder has the structure of the real data package: lists and feature zips of VGGSound-AVEL for pretraining, AVE's h5
files, lists of AVVP and AVE_AVVP, the UCF-101/VGGSound pair, and text features of the prompts. The same loaders read
it. Test digits are from different writers than the digits for pretraining and AVE's training rows. The same seed always
gives the same bytes.
"""

import json
from copy import deepcopy
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cmg.data.layout import DATA_PATHS
from cmg.demos import dialled_clips
from cmg.demos.tree import (
    SECONDS,
    Events,
    Tree,
    build_parser,
    one_hot,
    print_built,
    video_ids,
    write_annotations,
    write_avvp,
    write_captions,
    write_h5,
    write_lines,
    write_originals,
    write_text,
    write_zip,
)
from cmg.utils.errors import InputError, run
from cmg.utils.files import as_input_error, atomic_folder, atomic_output

VERSION = 4                             # version of the contents; a change makes existing trees unusable
MARKER = "demo.json"                    # written last, so that a folder with it is complete
LEAST_SECONDS = 3                       # minimum length of a clip
BLOCK = 80                              # clips generated at a time
SHARED = (8, 7, 6, 4, 3, 2, 1, 0)        # keys that AVE and AVVP share in the AVE -> AVVP task, in label order
AVVP_SHARE = 4                          # pretraining clips for each clip of AVVP
UCF_SHARE = 80                          # pretraining clips for each clip of a UCF-101 class
LEAST_CLIPS, MOST_CLIPS = 80, 100_000   # with 80, every part has all ten classes


# ---------------------------------------------------------------------------------------------------- the parts
def pretraining(tree):
    """VGGSound-AVEL: each clip shows one key, with another digit and noise in each second.

    In two thirds of the clips it lasts only 2 to 10 seconds, and the rest is noise and an empty image, so that codes
    depend on the second. Every twentieth audio file is one or two seconds short, like some published ones. All digits
    are from the training pool, because the published loader concatenates the three splits.
    """
    rng = tree.rng("vggsound")
    keys = np.arange(tree.clips) % len(dialled_clips.CLASSES)
    splits = np.array(["train", "train", "train", "val", "test"])
    split = splits[np.arange(tree.clips) // len(dialled_clips.CLASSES) % 5]
    ids = video_ids(tree.clips, rng)
    table = pd.DataFrame({"category": np.array(dialled_clips.CLASSES)[keys], "video_id": ids, "split": split})
    table.to_csv(tree.path("vggsound.csv"), index=False)
    write_text(tree, "vggsound", dialled_clips.PROMPTS)
    write_lines(tree.path("vggsound.csv").with_name("VggsoundAVEL40kCategories.txt"), dialled_clips.CLASSES)
    missing = np.where(np.arange(tree.clips) % 20 == 7, rng.integers(1, 3, tree.clips), 0)
    event = Events.draw(tree.clips, 1 / 3, 2, rng, tree.seconds)
    folders = {kind: tree.folder(f"vggsound.{kind}") for kind in ("audio", "video", "label")}
    for block in blocks(np.arange(tree.clips)):
        second_keys = np.where(event.inside[block], keys[block, None], dialled_clips.EMPTY)
        audio, video = dialled_clips.audio_clips(second_keys, rng), dialled_clips.video_clips(second_keys, "train", rng)
        for i, k in enumerate(block):
            write_zip(folders["audio"], ids[k], audio[i, :tree.seconds - missing[k]])
            write_zip(folders["video"], ids[k], video[i])
            write_zip(folders["label"], ids[k], event.inside[k].astype(np.float32))
        tree.bar.update(len(block))


def ave(tree):
    """AVE: one event per clip, from `start` to before `end`; the other seconds are noise and an empty image.

    Like the official annotations, rows are grouped by class, in the order of the class list. Training, validation and
    test rows (4 : 1 : 2) show digits of different writers.
    """
    rng = tree.rng("ave")
    split, keys = ave_rows(tree.clips)
    count = len(split)
    event = Events.draw(count, 1 / 3, 2, rng, tree.seconds)
    second_keys = np.where(event.inside, keys[:, None], dialled_clips.EMPTY)
    write_annotations(tree, dialled_clips.CLASSES, keys, event, rng)
    write_text(tree, "ave", dialled_clips.PROMPTS)

    audio = np.empty((count, tree.seconds, dialled_clips.BANDS))               # float64, as published
    video = np.empty((count, tree.seconds, dialled_clips.GRID, dialled_clips.GRID, dialled_clips.CHANNELS))
    originals = []                      # of the test rows
    for pool in ("train", "val", "test"):
        rows = np.flatnonzero(split == pool)
        write_h5(tree.path(f"ave.{pool}"), "order", rows)
        for block in blocks(rows):
            if pool == "test":
                originals += dialled_clips.originals(second_keys[block], pool, deepcopy(rng))
            audio[block] = dialled_clips.audio_clips(second_keys[block], rng)
            video[block] = dialled_clips.video_clips(second_keys[block], pool, rng)
            tree.bar.update(len(block))
    write_h5(tree.path("ave.audio"), "avadataset", audio)
    write_h5(tree.path("ave.video"), "avadataset", video)
    write_h5(tree.path("ave.label"), "avadataset", one_hot(second_keys, len(dialled_clips.CLASSES)))
    write_originals(tree, originals)


def ave_rows(clips, shares=(6, 24, 12)):
    """(split names, keys) of all AVE rows, ordered by key. `shares` gives the number of pretraining clips per clip of
    train, val and test."""
    counts = [clips // share for share in shares]
    split = np.repeat(["train", "val", "test"], counts)
    position = np.concatenate([np.arange(n) for n in counts])
    keys = position % len(dialled_clips.CLASSES)
    order = np.argsort(keys, kind="stable")
    return split[order], keys[order]


def avvp(tree):
    """AVVP, and the test side of AVE -> AVVP: one or two events per clip, most of them both audible and visible.

    All digits are from the test pool. Clips without an event in one modality are not on that modality's list. Every
    twentieth audio file has an eleventh second, which loaders must cut. AVE_AVVP's lists have the shared classes only.
    """
    rng = tree.rng("avvp")
    ids, keys = avvp_lists(tree, tree.clips // AVVP_SHARE, rng)
    keys["audio"] = np.pad(keys["audio"], ((0, 0), (0, 1)), constant_values=dialled_clips.EMPTY)
    folders = {kind: tree.folder(f"avvp.{kind}") for kind in ("audio", "video")}
    for block in blocks(np.arange(len(ids))):
        audio = dialled_clips.audio_clips(keys["audio"][block], rng)
        video = dialled_clips.video_clips(keys["visual"][block], "test", rng)
        for i, k in enumerate(block):
            write_zip(folders["audio"], ids[k], audio[i, :tree.seconds + (k % 20 == 7)])
            write_zip(folders["video"], ids[k], video[i])
        tree.bar.update(len(block))


def avvp_lists(tree, count, rng):
    """Draw the events of `count` AVVP clips and write the lists of AVVP and of AVE -> AVVP.

    Returns:
        (ids, {"audio", "visual"} -> (count, T) digit of each second, EMPTY between events).
    """
    names = np.array([f"digit_{word}" for word in dialled_clips.WORDS])       # AVVP spells with underscores
    ids, events = write_avvp(tree, count, rng, names, names[list(SHARED)], draw_events)
    keys = {modality: np.full((count, tree.seconds), dialled_clips.EMPTY) for modality in ("audio", "visual")}
    for modality, digits in keys.items():
        for event in events[events[modality]].itertuples():
            digits[event.row, event.onset:event.offset] = event.key
    return ids, keys


def draw_events(rng, seconds):
    """Draw the events of one clip, in temporal order: tuples (key, onset, offset, is_audible, is_visible), each key
    once.

    There is one event of 7 to 10 seconds, or, in a tenth of the clips, two of 4 or 5 seconds each. Codes also depend on
    neighboring seconds, so that an encoder that was pretrained for minutes misses much shorter events.
    """
    count = 2 if rng.random() < 1 / 10 else 1
    lengths = (rng.integers(7 * seconds // 10, seconds + 1, 1) if count == 1 else
               rng.integers(2 * seconds // 5, seconds // 2 + 1, 2))
    free = seconds - lengths.sum()
    onsets = np.sort(rng.integers(0, free + 1, count)) + np.cumsum(lengths) - lengths
    only = rng.random(count)                    # one event in ten is only audible, one in ten only visible
    keys = rng.permutation(len(dialled_clips.WORDS))[:count]
    return list(zip(keys, onsets, onsets + lengths, only < 0.9, only >= 0.1))


def ave_avvp(tree):
    """The training side of AVE -> AVVP: labels of the shared classes for all AVE rows, and the rows that have one.

    As in the published files, the list covers all AVE splits, and rows of other classes keep their background labels.
    """
    write_shared(tree, ave_rows(tree.clips)[1])


def write_shared(tree, keys):
    """`ave_avvp`, given the digit of every AVE row."""
    with h5py.File(tree.path("ave.label")) as file:
        labels = file["avadataset"][:]
    write_h5(tree.path("ave_avvp.label"), "avadataset", labels[..., [*SHARED, len(dialled_clips.CLASSES)]])
    write_h5(tree.path("ave_avvp.order"), "order", np.flatnonzero(np.isin(keys, SHARED)))


def ucf_vggsound(tree):
    """UCF-101 (video, with bolder and noisier strokes of writers in the test pool) and VGGSound (audio).

    The two class lists are aligned by line, in another order than the other lists. Clips last 6 to 12 seconds.
    """
    rng = tree.rng("ucf_vggsound")
    names = np.array([f"Digit{word.capitalize()}" for word in dialled_clips.WORDS])
    order = np.argsort(names)                                           # alphabetical
    write_lines(tree.path("ucf_vggsound.ucf_categories"), names[order])
    write_lines(tree.path("ucf_vggsound.vggsound_categories"), np.array(dialled_clips.CLASSES)[order])
    write_text(tree, "ucf_vggsound", dialled_clips.PROMPTS)
    clips = pd.read_csv(tree.path("vggsound.csv"))
    clips["line"] = clips["category"].map(dict(zip(dialled_clips.CLASSES, np.argsort(order))))
    clips["part"] = clips["split"].map({"train": 0, "val": 1, "test": 2})
    clips = clips[clips.index % 60 < 10].sort_values(["line", "part"], kind="stable")     # a sixth of each class
    clips[["category", "video_id", "split"]].to_csv(tree.path("ucf_vggsound.vggsound_csv"), index=False)

    count = tree.clips // UCF_SHARE
    keys, number = np.repeat(order, count), np.tile(np.arange(count), len(order))
    ids = [f"v_{names[key]}_g{n // 4 + 1:02d}_c{n % 4 + 1:02d}" for key, n in zip(keys, number)]
    table = pd.DataFrame({"category": names[keys], "video_id": ids})
    table.to_csv(tree.path("ucf_vggsound.ucf_csv"), index=False)
    folder, shortest, longest = tree.folder("ucf_vggsound.video"), 6 * tree.seconds // 10, 12 * tree.seconds // 10
    for block in blocks(np.arange(len(keys))):
        length = rng.integers(shortest, longest + 1, len(block))
        video = dialled_clips.video_clips(np.repeat(keys[block, None], longest, 1), "test", rng, dialled_clips.BOLD)
        for i, k in enumerate(block):
            write_zip(folder, ids[k], video[i, :length[i]])
        tree.bar.update(len(block))


def ucf51(tree):
    """The open-set list of UCF-101: the clips of `ucf_vggsound` with audio, and a list of classes, of which the first
    half is known, as in every open-set task."""
    rng = tree.rng("ucf51")
    clips = pd.read_csv(tree.path("ucf_vggsound.ucf_csv"))
    clips[["category", "video_id"]].to_csv(tree.path("ucf51.csv"), index=False)
    names = [f"Digit{word.capitalize()}" for word in dialled_clips.WORDS]
    write_lines(tree.path("ucf51.categories"), names)
    keys, folder = clips["category"].map(names.index).to_numpy(), tree.folder("ucf51.audio")
    shortest, longest = 6 * tree.seconds // 10, 12 * tree.seconds // 10
    for block in blocks(np.arange(len(keys))):
        length = rng.integers(shortest, longest + 1, len(block))
        audio = dialled_clips.audio_clips(np.repeat(keys[block, None], longest, 1), rng)
        for i, k in enumerate(block):
            write_zip(folder, clips["video_id"][k], audio[i, :length[i]])


def captions(tree):
    """Test clips of `vggsound` with two captions each, one row per caption."""
    clips = pd.read_csv(tree.path("vggsound.csv"))
    clips = clips[clips["split"] == "test"].head(max(tree.clips // 24, 10))
    word = dict(zip(dialled_clips.CLASSES, dialled_clips.WORDS))
    write_captions(tree, [(clip, (dialled_clips.PROMPTS[name], f"{word[name]} once more"))
                          for name, clip in zip(clips["category"], clips["video_id"])])


def blocks(rows):
    """Row numbers, in blocks of at most BLOCK."""
    return np.array_split(rows, -(-len(rows) // BLOCK))


# A part reads only earlier parts and writes only its own files, so parts can be added to trees built without them.
PARTS = {"vggsound": pretraining, "ave": ave, "avvp": avvp, "ave_avvp": ave_avvp, "ucf_vggsound": ucf_vggsound,
         "ucf51": ucf51, "captions": captions}


# ---------------------------------------------------------------------------------------------------- the command
def settings(seed, clips, seconds):
    """Contents of the marker of a complete tree."""
    return {"name": "Dialled Digits", "version": VERSION, "seed": seed, "clips": clips, "seconds": seconds,
            "parts": list(PARTS), "video_channels": dialled_clips.CHANNELS}


def parts_there(out, seed, clips, seconds):
    """Names of the parts of this tree in `out`, () if `out` is empty; InputError if it contains anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return ()
    marker = out / MARKER
    if not marker.is_file():
        raise InputError(f"{out}: exists and is not a demo tree (no {MARKER}); choose another folder with --out")
    try:
        found = {"seconds": SECONDS} | json.loads(marker.read_text(encoding="utf-8"))   # missing in earlier trees
        wanted = settings(seed, clips, seconds)
    except (OSError, ValueError, TypeError):
        raise InputError(f"{marker}: not the JSON object of a build; delete {out} and build it again") from None
    there = found.get("parts")
    if not isinstance(there, list):
        raise InputError(f"{marker}: lists no parts; delete {out} and build it again")
    differing = [f"{key} {found.get(key)}, not {wanted[key]}" for key in wanted
                 if key != "parts" and found.get(key) != wanted[key]]
    if differing:
        raise InputError(f"{out}: contains another demo tree ({'; '.join(differing)}); delete it or choose another "
                         "--out")
    return tuple(there)


def build(out, paths, seed=0, clips=2400, progress=True, seconds=SECONDS):
    """Build the demo tree atomically. A complete tree is not changed; missing parts are added.

    Args:
        out: folder to create, the data root of the demo.
        paths: dotted name -> path relative to the root (cmg.data.layout.DATA_PATHS).
        seed: seed of all random choices.
        clips: number of pretraining clips; the other parts are proportional.
        progress: show a progress bar.
        seconds: seconds per clip, at least 3.

    Returns:
        True if the tree or a part of it was built, False if it was complete.

    Raises:
        InputError: `out` contains something else or a tree of another seed, size or version, or cannot be created.
    """
    out = Path(out).absolute()
    if not LEAST_CLIPS <= clips <= MOST_CLIPS:
        raise InputError(f"--clips {clips}: expected {LEAST_CLIPS} to {MOST_CLIPS}; 2400 is the default")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    if seconds < LEAST_SECONDS:
        raise InputError(f"--seconds {seconds}: expected {LEAST_SECONDS} or more; 10 is the default")
    there = parts_there(out, seed, clips, seconds)
    if there:
        return add_parts(out, paths, seed, clips, seconds, [name for name in PARTS if name not in there], progress)
    with atomic_folder(out, lambda: parts_there(out, seed, clips, seconds)) as partial:
        total = clips + len(ave_rows(clips)[0]) + clips // AVVP_SHARE + clips // UCF_SHARE * len(dialled_clips.CLASSES)
        with tqdm(total=total, unit="clip", desc="demo data",
                  disable=None if progress else True) as bar, threadpool_limits(1):   # sums depend on the threads
            tree = Tree(partial, paths, seed, clips, bar, seconds)
            for part in PARTS.values():
                part(tree)
        write_marker(partial, seed, clips, seconds)
    return True


def add_parts(out, paths, seed, clips, seconds, names, progress):
    """Add the parts `names` to a complete tree and to its marker; returns whether there are any."""
    if names:
        with tqdm(unit="clip", desc=f"demo data, {', '.join(names)}", disable=None if progress else True) as bar, \
                threadpool_limits(1), as_input_error(out, "choose another --out"):
            tree = Tree(out, paths, seed, clips, bar, seconds)
            for name in names:
                PARTS[name](tree)
        write_marker(out, seed, clips, seconds)
    return bool(names)


def write_marker(root, seed, clips, seconds):
    with atomic_output(root / MARKER, "w", "choose another --out") as file:
        file.write(json.dumps(settings(seed, clips, seconds), indent=1) + "\n")


def main(argv=None):
    parser = build_parser("cmg.demos.dialled", __doc__)
    parser.add_argument("--clips", type=int, default=2400,
                        help="number of pretraining clips; the other parts are proportional (default 2400, 130 MB)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of a clip (default 10)")
    options = parser.parse_args(argv)
    print_built(options.out, build(options.out, DATA_PATHS, options.seed, options.clips, seconds=options.seconds))


if __name__ == "__main__":
    run(main)
