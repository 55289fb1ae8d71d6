"""Write Natural, field recordings and photographs, in the published on-disk formats.

    python -m cmg.demos.natural --features DIR --out ../../data/natural          # from code/src; about a minute

The input is a folder of clips with features of each second, in three splits that share no recording or photograph:
`clips.csv` (a manifest: id, split, label, prompt), `sources.csv` (id, split, class, sound, photo; clips without a
label, used only for pretraining, have a class as well), `audio.h5` and `video.h5` (or the folders `audio/zip` and
`video/zip` of an extraction) and `prompts.h5` (or `text/prompts.h5`). `natural_clips.make` creates such a folder.

VGGSound-AVEL, for pretraining (`--splits train`), has all clips unchanged; AVE has the labeled ones, with their class
in every second. UCF-101 and VGGSound are the video and the audio of the test clips; some of UCF-101 are cut short.

AVVP is composed of seconds from test clips: sounds and images begin and end within a clip, and each clip has one or two
events, which may overlap. Seconds without an event show classes that the task does not list, the last quarter in
alphabetical order; there is no silence, so this works with any encoder. Logmel and patches, like the published
encoders, encode each second separately, so combining features of seconds equals extracting a combined video. Where two
sounds overlap, the features are the larger of the two: for logmel, 5 % off the features of the mixed sounds (twenty
pairs of recordings, error relative to the norm; 24 % without the second sound). Two images fill half of the frame each,
which is exact for patches.

In AVE -> AVVP, the training side has the clips of the listed classes, and those of the others as background, which the
published list does not have.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cmg.data import origins
from cmg.data.csv import read_table
from cmg.data.layout import DATA_PATHS
from cmg.data.manifest import SPLITS, Manifest
from cmg.data.sets.custom import Custom
from cmg.data.text import TextFeatures, read_sentences
from cmg.demos.natural_clips import originals
from cmg.demos.natural_sources import require_classes
from cmg.demos.tree import (
    Deck,
    Events,
    Tree,
    build_parser,
    one_hot,
    print_built,
    write_annotations,
    write_avvp,
    write_captions,
    write_h5,
    write_lines,
    write_originals,
    write_text,
    write_zip,
)
from cmg.demos.tree import (
    build as build_tree,
)
from cmg.extract.output import write_sidecar
from cmg.utils.errors import InputError, run
from cmg.utils.files import sha256

NAME, VERSION, MARKER = "Natural", 1, "natural.json"
FILES = {"audio": ("audio.h5", "audio/zip"), "video": ("video.h5", "video/zip"),
         "text": ("prompts.h5", "text/prompts.h5")}
SHORTEST, TWO, ONE_SENSE = 2, 0.4, 0.2      # shortest event (s); fractions of clips with two, of events in one modality
UNLISTED, COMPOSED = 4, 3                   # AVVP: one in 4 classes is background; 3 clips are composed per test clip


@dataclass
class Clips:
    """The clips of a folder.

    Attributes:
        table: id, split, category, label ("" if there is none), prompt, sound, photo.
        classes: sorted names.
        features: "audio", "video" -> (N, T, ...).
        text: path of the sentences' word vectors.
        origins: modality -> description of the features, if known.
    """

    table: pd.DataFrame
    classes: list
    features: dict
    text: Path
    origins: dict


def located(folder, modality):
    """Path of the features of a modality: the first of its possible names that exists."""
    return next((folder / name for name in FILES[modality] if (folder / name).exists()), folder / FILES[modality][0])


def read_lists(folder):
    """Read (table, classes) of a folder; see `Clips`.

    Raises:
        InputError: invalid or contradictory lists, or a source in two splits.
    """
    clips, sources = folder / "clips.csv", folder / "sources.csv"
    for path in (clips, sources):
        if not path.is_file():
            raise InputError(f"{path}: not found; expected clips.csv, sources.csv, audio.h5, video.h5 and prompts.h5; "
                             "pass their folder with --features")
    manifest = Manifest(clips)
    table = pd.DataFrame(read_table(sources, ("id", "split", "class", "sound", "photo"), flag="--features"))
    table = table.rename(columns={"class": "category"})
    if list(table["id"]) != list(manifest.clips):
        extra = sorted(set(table["id"]) ^ set(manifest.clips)) or ["their order differs"]
        raise InputError(f"{sources}: the clips differ from {clips.name} ({extra[0][:60]}); expected the same clips in "
                         "the same order; create both lists again")
    known = list(manifest.clips.values())
    table["label"] = [clip.events[0][1] if clip.events else "" for clip in known]
    table["prompt"] = [clip.prompts[0] if clip.prompts else "" for clip in known]
    for line, (row, clip) in enumerate(zip(table.itertuples(), known), 2):
        if row.split != clip.split or row.label not in ("", row.category) or not row.prompt:
            raise InputError(f"{sources}: line {line}: {row.id} is '{row.category[:40]}' in {row.split}, but in "
                             f"{clips.name} '{row.label[:40]}' in {clip.split} with the prompt '{row.prompt[:40]}'; "
                             "expected the same class and split, and a prompt; correct one of the lists")
    for kind in ("sound", "photo"):
        splits = table.groupby(kind)["split"].unique()
        for name, found in splits[splits.str.len() > 1].items():
            raise InputError(f"{sources}: the {kind} '{name[:60]}' is in {' and '.join(sorted(found))}; expected each "
                             "source in one split; remove its clips from all but one")
    classes = sorted(table["category"].unique())
    require_classes(sources, classes)
    labeled = set(zip(table["category"][table["label"] != ""], table["split"][table["label"] != ""]))
    for name, split in ((name, split) for name in classes for split in SPLITS):
        if (name, split) not in labeled:
            raise InputError(f"{clips}: no labeled clip of '{name}' in {split}; expected at least one of each class in "
                             "train, val and test; add some, or remove the class")
    return table, classes


def read(folder):
    """Read the `Clips` of a folder.

    Raises:
        InputError: see `read_lists`; missing features, or clips of different lengths.
    """
    table, classes = read_lists(folder)
    paths = {m: located(folder, m) for m in FILES}
    TextFeatures(paths["text"]).indices(table["prompt"])               # reports a sentence without vectors
    paths["manifest"] = folder / "clips.csv"
    first = Custom(paths, ("audio", "video"), SPLITS, seconds=None).first_lengths["audio"]
    clips = Custom(paths, ("audio", "video"), SPLITS, seconds=first)
    features = {m: clips.load(m) for m in clips.modalities}
    found = {*clips.real_seconds.tolist(), *np.concatenate(list(clips.lengths.values())).tolist()}
    if len(found) > 1 or min(found) <= SHORTEST:
        raise InputError(f"{folder}: features of {min(found)} to {max(found)} seconds; expected equal lengths of at "
                         f"least {SHORTEST + 1} seconds; extract them again with --seconds")
    table = table.set_index("id").loc[clips.ids].reset_index()
    about = {m: found for m in features if (found := origins.describe(paths[m], m))}
    return Clips(table, classes, features, paths["text"], about)


# ---------------------------------------------------------------------------------------------------- composing
def draw_events(rng, seconds, count):
    """Draw the one or two events of an AVVP clip: tuples (key, onset, offset, is_audible, is_visible), with different
    classes out of `count`. Events may overlap, and none fills the clip."""
    number = 2 if rng.random() < TWO else 1
    lengths = rng.integers(SHORTEST, seconds, number)
    onsets = (rng.random(number) * (seconds + 1 - lengths)).astype(int)
    draw, half = rng.random(number), ONE_SENSE / 2
    return list(zip(rng.permutation(count)[:number], onsets, onsets + lengths, draw >= half,
                    (draw < half) | (draw >= ONE_SENSE)))


def together(one, other):
    """Features (T, ...) of two simultaneous sounds or images: the maximum of vectors; the left half of one map and the
    right half of the other."""
    if one.ndim == 2:
        return np.maximum(one, other)
    half = one.shape[2] // 2
    return np.concatenate([one[:, :, :half], other[:, :, half:]], 2)


class Composer:
    """Composes features of clips with events from the seconds of other clips.

    Args:
        features: (N, T, ...) of one modality.
        keys: (N,) class of each clip.
        background: classes for seconds without an event.
        rng: random generator.
    """

    def __init__(self, features, keys, background, rng):
        self.features, self.background, self.rng, self.deck = features, background, rng, Deck(keys, rng)

    def clip(self, events):
        """Features (T, ...) of (key, onset, offset) events."""
        seconds = self.features.shape[1]
        made, filled = self.piece(self.rng.choice(self.background), seconds), np.zeros(seconds, bool)
        for key, onset, offset in events:
            piece, inside = self.piece(key, offset - onset), np.arange(onset, offset)
            both = filled[inside]
            made[inside[both]] = together(made[inside[both]], piece[both])
            made[inside[~both]] = piece[~both]
            filled[inside] = True
        return made

    def piece(self, key, length):
        """`length` seconds of the next clip of a class, starting at a random one."""
        start = self.rng.integers(self.features.shape[1] - length + 1)
        return self.features[self.deck.next(key)][start:start + length].copy()


# ---------------------------------------------------------------------------------------------------- the parts
class Natural(Tree):
    """A tree that is being built from `clips`, a `Clips`."""

    def start(self, clips, sources=None):
        """Set the clips, and the folder of their recordings and photographs, if the report is to show them."""
        self.source, self.sources, self.prompts = clips, sources, {}
        self.keys = pd.Index(clips.classes).get_indexer(clips.table["category"])
        for name, part in clips.table[clips.table["split"] == "train"].groupby("category"):
            self.prompts[name] = Counter(part["prompt"]).most_common(1)[0][0]
        self.sentences, self.by = read_sentences(clips.text)
        return self

    def encode(self, sentences):
        """The word vectors stored in the folder."""
        return [self.sentences[text] for text in sentences], self.by

    def rows(self, *splits, labeled=False):
        """Row numbers of the clips in some splits."""
        table = self.source.table
        return np.flatnonzero(table["split"].isin(splits) & ((table["label"] != "") | (not labeled)))

    def write(self, modality, folder, row, name, seconds=None):
        """Write the features of the clip in a row as `name`."""
        write_zip(folder, name, self.source.features[modality][row][:seconds].astype(np.float32))


def pretraining(tree):
    """VGGSound-AVEL: all clips, with the prompt of their class; the event fills the clip."""
    table = tree.source.table
    table[["category", "id", "split"]].set_axis(["category", "video_id", "split"], axis=1).to_csv(
        tree.path("vggsound.csv"), index=False)
    write_text(tree, "vggsound", tree.prompts)
    write_lines(tree.path("vggsound.categories"), tree.source.classes)
    folders = {kind: tree.folder(f"vggsound.{kind}") for kind in ("audio", "video", "label")}
    for row, name in enumerate(table["id"]):
        for modality in ("audio", "video"):
            tree.write(modality, folders[modality], row, name)
        write_zip(folders["label"], name, np.ones(tree.seconds, np.float32))
        tree.bar.update()


def ave(tree):
    """AVE: the labeled clips; the event fills the clip. Like the official annotations, rows are grouped by class."""
    chosen = tree.rows(*SPLITS, labeled=True)
    chosen = chosen[np.argsort(tree.keys[chosen], kind="stable")]
    keys, split = tree.keys[chosen], tree.source.table["split"].to_numpy()[chosen]
    whole = Events(np.zeros(len(keys), int), np.full(len(keys), tree.seconds), np.ones((len(keys), tree.seconds), bool))
    write_annotations(tree, tree.source.classes, keys, whole, tree.rng("ave"))
    write_text(tree, "ave", tree.prompts)
    for part in SPLITS:
        write_h5(tree.path(f"ave.{part}"), "order", np.flatnonzero(split == part))
    for modality, array in tree.source.features.items():
        write_h5(tree.path(f"ave.{modality}"), "avadataset", array[chosen].astype(np.float32))
    test = tree.source.table.iloc[chosen[split == "test"]]
    if tree.sources:
        write_originals(tree, originals(tree.sources, test["sound"], test["photo"]))
    labels = one_hot(np.repeat(keys[:, None], tree.seconds, 1), len(tree.source.classes))
    write_h5(tree.path("ave.label"), "avadataset", labels)
    shared = labels[..., listed(tree)[::-1]]
    write_h5(tree.path("ave_avvp.label"), "avadataset", np.concatenate([shared, 1 - shared.sum(2, keepdims=True)], 2))
    write_h5(tree.path("ave_avvp.order"), "order", np.flatnonzero(split == "train"))


def listed(tree):
    """Indices of the classes that AVVP lists; the others are its background."""
    count = len(tree.source.classes)
    return np.arange(count - count // UNLISTED)


def avvp(tree):
    """AVVP, and the test side of AVE -> AVVP: `COMPOSED` clips for each test clip."""
    rng, known = tree.rng("avvp"), listed(tree)
    names, rows = np.array(tree.source.classes)[known], tree.rows("test")
    ids, events = write_avvp(tree, COMPOSED * len(rows), rng, names, names[::-1],
                             lambda rng, seconds: draw_events(rng, seconds, len(known)))
    background = np.arange(len(known), len(tree.source.classes))
    columns = {"audio": "audio", "video": "visual"}
    composers = {m: Composer(tree.source.features[m][rows], tree.keys[rows], background, rng) for m in columns}
    folders, of_row = {m: tree.folder(f"avvp.{m}") for m in columns}, dict(list(events.groupby("row")))
    for row, name in enumerate(ids):
        for modality, column in columns.items():
            there = of_row[row][of_row[row][column]]
            found = composers[modality].clip(zip(there["key"], there["onset"], there["offset"]))
            write_zip(folders[modality], name, found.astype(np.float32))
        tree.bar.update()


def ucf_vggsound(tree):
    """UCF-101: video of the test clips, some cut short, and their audio for the task with unknown classes.
    VGGSound: audio of the test clips."""
    rng, rows, table = tree.rng("ucf_vggsound"), tree.rows("test"), tree.source.table
    for name in ("ucf_vggsound.ucf_categories", "ucf_vggsound.vggsound_categories", "ucf51.categories"):
        write_lines(tree.path(name), tree.source.classes)
    write_text(tree, "ucf_vggsound", tree.prompts)
    clips = table.iloc[rows][["category", "id", "split"]].set_axis(["category", "video_id", "split"], axis=1)
    clips.to_csv(tree.path("ucf_vggsound.vggsound_csv"), index=False)
    clips = clips[["category", "video_id"]].assign(video_id="v_" + clips["video_id"])
    for name in ("ucf_vggsound.ucf_csv", "ucf51.csv"):
        clips.to_csv(tree.path(name), index=False)
    folders = {"video": tree.folder("ucf51.video"), "audio": tree.folder("ucf51.audio")}
    lengths = rng.integers((tree.seconds + 1) // 2, tree.seconds + 1, len(rows))
    for row, name, length in zip(rows, clips["video_id"], lengths):
        for modality, folder in folders.items():
            tree.write(modality, folder, row, name, length)


def captions(tree):
    """Test clips of `vggsound` with their own sentences."""
    rows = tree.source.table.iloc[tree.rows("test")]
    write_captions(tree, [(name, (prompt,)) for name, prompt in zip(rows["id"], rows["prompt"])])


PARTS = (pretraining, ave, avvp, ucf_vggsound, captions)      # a part only reads the parts before it


def build(out, paths, features, seed=0, progress=True, sources=None):
    """Build the tree atomically; a complete one is not changed.

    Args:
        out: folder to create, the data root.
        paths: dotted name -> path relative to the root (cmg.data.layout.DATA_PATHS).
        features: folder of clips with features.
        seed: seed of all random choices.
        progress: show a progress bar.
        sources: folder of the recordings and photographs in `sources.csv`, to be shown in the report.

    Returns:
        True if it was built, False if it was complete.

    Raises:
        InputError: `out` contains something else, or a tree of other clips; see also `read`.
    """
    features = Path(features)
    read_lists(features)
    found = {m: sha256(path) if (path := located(features, m)).is_file() else origins.describe(path, m) for m in FILES}
    settings = {"name": NAME, "version": VERSION, "seed": seed, "features": found, "originals": sources is not None,
                "clips": sha256(features / "clips.csv", features / "sources.csv")}

    def write(partial):
        clips = read(features)
        total, seconds = len(clips.table) + COMPOSED * (clips.table["split"] == "test").sum(), len(
            clips.features["audio"][0])
        with tqdm(total=total, unit="clip", desc="natural", disable=None if progress else True) as bar:
            tree = Natural(partial, paths, seed, len(clips.table), bar, seconds).start(clips, sources)
            for folder in (tree.path("ave.audio").parent, *(tree.folder(f"{name}.audio").parents[1] for name in (
                    "vggsound", "avvp", "ucf51", "captions"))):
                write_sidecar(folder, clips.origins, [])
            for part in PARTS:
                part(tree)

    return build_tree(out, MARKER, settings, write)


def main(argv=None):
    parser = build_parser("cmg.demos.natural", __doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder of clips with features")
    parser.add_argument("--sources", type=Path, default=None, help="folder of the recordings and photographs in "
                        "sources.csv, to be shown in reports")
    options = parser.parse_args(argv)
    print_built(options.out, build(options.out, DATA_PATHS, options.features, options.seed, sources=options.sources))


if __name__ == "__main__":
    run(main)
