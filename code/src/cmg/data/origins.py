"""Origin of features: the sidecar written by an extraction, and the attributes of packs and text files.

A description is a dict of plain values, {"network": "vgg19", "kind": "caffe", ...}, or None if the origin is unknown,
as for the published features. Checkpoints store the descriptions of their features, and `other_features` compares them.
"""

import json
from pathlib import Path

from cmg.data.hdf5 import ERRORS, open_hdf5
from cmg.utils.errors import InputError, readable
from cmg.utils.files import read_input, read_text_input
from cmg.utils.limits import LIMITS

SIDECAR = "features.json"
TREES = ("demo.json", "spoken.json", "natural.json")    # records in the roots of datasets that this project builds
ORIGIN = "origin"               # attribute of a pack: the description of its source, JSON
CONTENT = "content"             # attribute of a pack: SHA-256 of its source's content (cmg/data/fingerprint.py)
TEXT = ("backend", "model", "unit")         # attributes that describe a text file
MOST_LETTERS = 80               # maximum length of a dataset's name
CUTS = ("recognised_by", "route", "framing", "resampler")       # entries of a description that `difference` ignores
# Weights that give the published features, and the two programs that give the published word vectors.
PUBLISHED = (("vggish", "audioset"), ("vgg19", "caffe"), ("transformers", "bert-base-uncased"), ("bert-embedding", ""))


def read_sidecar(folder):
    """Read the sidecar of an extraction's folder; {} if there is none.

    Raises:
        InputError: the file is not a sidecar.
    """
    path = Path(folder) / SIDECAR
    try:
        content = json.loads(read_input(path, LIMITS.record_bytes))
        settings = content.get("settings", {})
        if not isinstance(settings, dict) or not all(isinstance(section, dict) for section in settings.values()):
            raise ValueError("its settings are not objects")
        if not isinstance(content.get("notes", []), list):
            raise ValueError("its notes are not a list")
        return content
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a valid record ({str(error)[:80]}); expected the record of an extraction; "
                         "extract the features to another folder (--out), or delete the file if you know their "
                         "origin") from None


def _sidecar(path, modality):
    """The sidecar that describes a modality's features at a path; {} if there is none.

    An extraction writes <folder>/<modality>/zip, with packs next to it, arrays in the folder itself, and with the
    preset avsbench, <folder>/AVSBench/feature/audio.
    """
    for level, folder in enumerate(Path(path).resolve().parents[:3]):
        settings = (found := read_sidecar(folder)).get("settings", {})
        if modality in settings and (level < 2 or settings.get("clips", {}).get("preset") == "avsbench"):
            return found
    return {}


def describe(path, modality):
    """Describe how the features at a path were made; None if that is unknown.

    Args:
        path: folder of zips, pack or AVE's array, or for "text" a file of word vectors.
        modality: "audio", "video" or "text".

    Raises:
        InputError: a damaged sidecar. Missing or damaged features are ignored here and reported when they are read.
    """
    path = Path(path)
    if path.is_file():
        try:
            with open_hdf5(path) as file:
                if modality == "text" and "backend" in file.attrs:
                    found = {name: str(file.attrs.get(name, "")) for name in TEXT}
                    return found | {"model": Path(found["model"]).name, "unit": found["unit"] or "words"}
                if ORIGIN in file.attrs:
                    found = json.loads(str(file.attrs[ORIGIN]))
                    return found if isinstance(found, dict) else None
        except (*ERRORS, RecursionError):
            return None
    return _sidecar(path, modality).get("settings", {}).get(modality)


def packed_content(path):
    """SHA-256 of the features that a pack was made from; None for anything else."""
    try:
        with open_hdf5(path) as file:
            found = file.attrs.get(CONTENT)
            return found.decode() if isinstance(found, bytes) else None
    except (*ERRORS, InputError):
        return None


def require_descriptions(found, where):
    """Raise InputError unless a checkpoint's entry is None or a dict modality -> description."""
    if found is not None and not (isinstance(found, dict) and all(
            isinstance(name, str) and (value is None or isinstance(value, dict) and all(
                isinstance(key, str) for key in value)) for name, value in found.items())):
        raise InputError(f"{where}: its entry 'features' is an invalid {type(found).__name__}; expected a description "
                         "of the features of each modality; remove the entry, or use another file")


def data_set(paths):
    """Names of the datasets that contain some paths, from the record in the root of each (`TREES`), joined by " and ".

    Empty for published data and anything else without a record.
    """
    records = [folder / name for path in paths for folder in list(Path(path).resolve().parents)[:4] for name in TREES]
    found = [_name_of(record) for record in dict.fromkeys(records) if record.is_file()]
    return " and ".join(dict.fromkeys(filter(None, found)))


def _name_of(record):
    """The name in a record; None if it is damaged, which the programs that build such data report.

    Raises:
        InputError: the record cannot be read.
    """
    try:
        with readable(record):
            name = json.loads(read_text_input(record, LIMITS.record_bytes))["name"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and len(name) <= MOST_LETTERS else None


def notes(path, modality):
    """Remarks in the sidecar for the users of the features."""
    return [str(note) for note in _sidecar(path, modality).get("notes", [])]


def is_published(description):
    """Whether a description matches the published features."""
    if any(description.get(name) for name in ("pre_relu", "pca", "bytes", "hop")):
        return False
    names = description.get("network", description.get("backend")), description.get("kind", description.get("model"))
    return names in PUBLISHED


def difference(one, other):
    """How two descriptions differ, as (text of one, text of the other); None if their features are compatible.

    Weights recognized by their hash are compared by kind, because a network comes in files of several formats. The
    framing of the audio is ignored, because the published features of AVE and AVSBench differ in it. Features of
    unknown origin are assumed to be the published ones.
    """
    if one is None or other is None:
        return None if one == other or is_published(one or other) else (_title(one), _title(other))
    ours, theirs = _essence(one), _essence(other)
    if ours == theirs:
        return None
    titles = _title(one), _title(other)
    if titles[0] != titles[1]:
        return titles
    key = next(key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    return tuple(f"{title} with {key} {str(has.get(key))[:20]}" for title, has in zip(titles, (ours, theirs)))


def _essence(description):
    if "backend" in description and is_published(description):
        return {"unit": description.get("unit")}
    return {name: value for name, value in description.items()
            if name not in CUTS and not (name == "sha256" and description.get("recognised_by") == "hash")}


def _title(description):
    if description is None:
        return f"unknown origin (no {SIDECAR})"
    names = [str(description.get(name)) for name in ("network", "backend", "kind", "model", "filters", "unit")
             if description.get(name)]
    return " ".join(names)[:120] or "another kind"


def other_features(checkpoint, recorded, paths):
    """Warnings about features of another kind than a checkpoint was pretrained on.

    Args:
        checkpoint: name of the checkpoint.
        recorded: modality -> description stored in the checkpoint; None if it has none.
        paths: (modality, path) of the data.

    Returns:
        one line per incompatible path.
    """
    lines = []
    for modality, path in paths:
        if recorded is None or modality not in recorded or not path.exists():
            continue
        differ = difference(recorded[modality], describe(path, modality))
        if differ:
            made_with = "--backend and --model" if modality == "text" else "encoder"
            lines.append(f"warning: {checkpoint}: pretrained on {modality} features of {differ[0]}; {path} has "
                         f"features of {differ[1]}: codes and results are meaningless for another kind of features; "
                         f"extract features with the same {made_with}")
    return lines


def apart(labeled, tested):
    """Codebooks, numbered from 1, in which two sets of clips share no code: a head trained on one set never saw the
    codes of the other.

    Args:
        labeled, tested: (U,) or (U, L) distinct code numbers that occur (EncodedSplit.numbers).
    """
    columns = zip(*(numbers.reshape(len(numbers), -1).T.tolist() for numbers in (labeled, tested)))
    return [level for level, (ours, theirs) in enumerate(columns, 1) if not set(ours) & set(theirs)]


def feature_paths(modalities, names, path_of):
    """(modality, path) of the dotted names that are features of these modalities; `path_of`: dotted name -> Path."""
    return [(name.split(".")[1], path_of(name)) for name in names if name.split(".")[1] in modalities]
