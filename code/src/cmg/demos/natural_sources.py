"""Recordings and photographs for Natural: read a folder of them, or download public ones.

A folder has `index.csv` with the columns file, label and split (train, val or test), recordings in `sounds/` and
photographs in `photos/`. Otherwise `fetch` downloads those of `CLASSES`:

* ESC-50 (K. J. Piczak, github.com/karolpiczak/ESC-50): field recordings of 5 s in five folds; CC BY-NC 3.0, its subset
  ESC-10 CC BY. Git verifies every file by the hash of the commit.
* Caltech 101 (Fei-Fei et al., data.caltech.edu/records/mzrjq-6wc02), CC BY 4.0; verified by SHA-256.

Folds 1 to 3 and the first seven tenths of each folder of photographs are for training, fold 4 and the next tenth for
validation, fold 5 and the rest for testing. Clips of the same recording are in the same fold. Photographs of a person
have consecutive numbers, so only people at the boundaries may be in two splits.
"""

import csv
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from cmg.data.csv import read_rows
from cmg.data.manifest import SPLITS
from cmg.demos.spoken_sources import download
from cmg.utils import files
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_folder, safe_name
from cmg.utils.limits import LIMITS

INDEX, KINDS = "index.csv", ("sounds", "photos")
REFUSED = set(",&\t\r\n")               # not allowed in class names, because they separate cells of the lists
LEAST_CLASSES = 4                       # so that tasks with unknown classes or background have enough classes

ESC50 = "https://github.com/karolpiczak/ESC-50"
COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"
CALTECH = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
CALTECH_BYTES, CALTECH_SHA256 = 137_414_764, "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91"
INNER = "caltech-101/101_ObjectCategories.tar.gz"
# class -> (class number in ESC-50, folders of photographs in Caltech 101)
CLASSES = {"airplane": (47, ("airplanes",)), "bird": (14, ("pigeon", "ibis")), "car": (43, ("car_side",)),
           "cat": (5, ("wild_cat",)), "clock": (38, ("watch",)), "dog": (0, ("dalmatian",)),
           "helicopter": (40, ("helicopter",)), "insect": (7, ("dragonfly", "butterfly")),
           "keyboard": (32, ("laptop",)), "motorbike": (44, ("Motorbikes",)), "rain": (10, ("umbrella",)),
           "rooster": (1, ("rooster",)), "sea": (11, ("ketch", "schooner")), "sneeze": (21, ("Faces",))}
FOLDS = {"1": "train", "2": "train", "3": "train", "4": "val", "5": "test"}
TERMS = ("sounds: ESC-50 by K. J. Piczak, CC BY-NC 3.0 (not for commercial use); its subset ESC-10 is CC BY; "
         "attributions of the clips: ESC-50_LICENSE",
         "photographs: Caltech 101 by F.-F. Li, M. Andreetto, M. Ranzato and P. Perona, CC BY 4.0")


@dataclass(frozen=True)
class Source:
    """A recording or photograph: kind ("sounds" or "photos"), file below the folder, class, and split."""

    kind: str
    file: str
    label: str
    split: str


def read_index(folder):
    """Read the sources of a folder.

    Args:
        folder: Path with `index.csv`.

    Returns:
        list of `Source`, in the order of the file.

    Raises:
        InputError: no list, a missing column or file, the same content in two splits, or a class without recordings or
            photographs in a split.
    """
    path, found, first = folder / INDEX, [], {}          # first: content -> Source
    if not path.is_file():
        raise InputError(f"{path}: not found; expected a list of recordings and photographs with the columns file, "
                         "label, split; pass their folder with --sources")
    for line, cells in read_rows(path, ("file", "label", "split"), flag="--sources"):
        source = _source(f"{path}: line {line}", **cells)
        file = folder / source.file
        if not file.is_file():
            raise InputError(f"{path}: line {line}: {file} does not exist; expected every file of the list; add it, or "
                             "remove the line")
        content = files.sha256(file)
        other = first.setdefault(content, source)
        if other.split != source.split:
            raise InputError(f"{path}: line {line}: {source.file} ({source.split}) has the content of {other.file} "
                             f"({other.split}); expected each recording or photograph in one split; remove one of the "
                             "lines")
        found.append(source)
    classes = sorted({source.label for source in found})
    there = {(source.kind, source.label, source.split) for source in found}
    for missing in ((kind, label, split) for label in classes for kind in KINDS for split in SPLITS):
        if missing not in there:
            raise InputError(f"{path}: no {missing[0]} of '{missing[1]}' in the split {missing[2]}; expected at "
                             "least one of each class in train, val and test; add some, or remove the class")
    require_classes(path, classes)
    return found


def require_classes(path, classes):
    """Raise InputError unless the class names fit into the published lists, and there are enough for every task."""
    if len(classes) < LEAST_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; expected {LEAST_CLASSES} or more; add some")
    for name in classes:
        if REFUSED & set(name):
            raise InputError(f"{path}: the class '{name[:60]}'; expected a name without commas, & and tabs; rename it")


def _source(where, file, label, split):
    parts = PurePosixPath(file).parts
    if len(parts) != 2 or parts[0] not in KINDS:
        raise InputError(f"{where}: the file '{file[:60]}'; expected sounds/NAME or photos/NAME; move it there")
    safe_name(parts[1], where)
    if split not in SPLITS:
        raise InputError(f"{where}: split '{split[:40]}'; expected train, val or test; correct the line")
    return Source(parts[0], file, label, split)


# ---------------------------------------------------------------------------------------------------- download
def fetch(folder):
    """Download the sources of `CLASSES` to a new folder; an existing one is not changed.

    Raises:
        InputError: no git or network, or the content differs from the published one.
    """
    if folder.exists():
        return
    print(f"{ESC50} (commit {COMMIT[:7]}, 250 MB) and Caltech 101 (137 MB) -> {folder}\n" + "\n".join(TERMS),
          flush=True)
    remedy = "pass a folder with your own recordings and photographs with --sources"
    with atomic_folder(folder.absolute(), folder.is_dir, remedy) as partial:
        rows = [*_sounds(partial, remedy), *_photos(partial, remedy)]
        with open(partial / INDEX, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "label", "split"), *rows])
        (partial / "TERMS.txt").write_text("\n".join(TERMS) + "\n", encoding="utf-8")


def _sounds(folder, remedy):
    """Check out the recordings of `CLASSES` from ESC-50's repository; yields rows of the index."""
    clone = folder / "ESC-50"
    patterns = ["/LICENSE", *(f"/audio/*-{number}.wav" for number, _ in CLASSES.values())]
    for step in (("init", "--quiet", str(clone)),
                 ("-C", str(clone), "sparse-checkout", "set", "--no-cone", *patterns),
                 ("-C", str(clone), "fetch", "--quiet", "--depth", "1", "--filter=blob:none", ESC50, COMMIT),
                 ("-C", str(clone), "remote", "add", "origin", ESC50),
                 ("-C", str(clone), "config", "remote.origin.promisor", "true"),
                 ("-C", str(clone), "checkout", "--quiet", COMMIT)):
        try:
            done = subprocess.run(["git", *step], capture_output=True, text=True)
        except OSError as error:
            raise InputError(f"git: cannot be started ({error.strerror}); it is needed to download {ESC50}; install "
                             f"it, or {remedy}") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{ESC50}: git {step[2] if step[0] == '-C' else step[0]} failed ({reason[:150]}); check "
                             f"the network, or {remedy}")
    (folder / "sounds").mkdir()
    label_of = {str(number): label for label, (number, _) in CLASSES.items()}
    for path in sorted((clone / "audio").glob("*.wav")):
        fold, *_, number = path.stem.split("-")
        path.rename(folder / "sounds" / path.name)
        yield f"sounds/{path.name}", label_of[number], FOLDS[fold]
    (clone / "LICENSE").rename(folder / "ESC-50_LICENSE")
    shutil.rmtree(clone)


def _photos(folder, remedy):
    """Download Caltech 101 and extract the photographs of `CLASSES`; yields rows of the index."""
    archive = folder / "caltech-101.zip"
    download(CALTECH, archive, remedy, CALTECH_BYTES)
    if files.sha256(archive) != CALTECH_SHA256:
        raise InputError(f"{CALTECH}: not the published file (its SHA-256 differs); try again, or {remedy}")
    label_of = {name: label for label, (_, names) in CLASSES.items() for name in names}
    found = {}
    (folder / "photos").mkdir()
    with zipfile.ZipFile(archive) as outer, outer.open(INNER) as inner, tarfile.open(fileobj=inner, mode="r|gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] in label_of and member.size <= LIMITS.recording_bytes:
                name = f"{parts[1]}_{safe_name(parts[2], CALTECH)}"
                (folder / "photos" / name).write_bytes(tar.extractfile(member).read())
                found.setdefault(parts[1], []).append(name)
    archive.unlink()
    for kind, names in sorted(found.items()):
        for k, name in enumerate(sorted(names)):
            share = 10 * k // len(names)
            yield f"photos/{name}", label_of[kind], "train" if share < 7 else "val" if share < 8 else "test"
