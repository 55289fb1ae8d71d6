"""Data sets of the Hugging Face hub, or saved by `datasets` in a folder, as files and labels for an extraction.

`hf:NAME`, `hf:NAME/SPLIT`: every row with a sound, a video or an image becomes a file below the output folder; a
photograph becomes a still video, with the row's sound where there is one.
"""

import csv
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cmg.extract.lists import IDS, LABELS
from cmg.extract.media import Media, Unreadable
from cmg.extract.output import write_whole
from cmg.extract.run import SUFFIXES, clip_id
from cmg.utils.errors import InputError
from cmg.utils.files import safe_name
from cmg.utils.limits import LIMITS

PREFIX, FOLDER = "hf:", "hub"
KINDS = {"audio": "Audio", "video": "Video", "image": "Image"}          # our names -> features of `datasets`
CELLS = ("split", "prompt", "onset", "offset")                          # columns that go into the table as they are
KEYS = ("id", "label", *CELLS, *KINDS)
SPLITS = {"train": "train", "valid": "val", "val": "val", "dev": "val", "test": "test"}     # by the start of a name
SAVED = ("dataset_dict.json", "state.json")
STILL_RATE = 2                      # frames a second of a photograph
FRAME = 1024                        # samples of a packet of sound
BEST = {"qmin": "2", "qmax": "2"}   # quantizer of MPEG-4, from 2, the finest, to 31


def read_columns(text):
    """--hf-columns id=clip,label=class,...: our name -> column."""
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    wrong = [key for key, column in pairs.items() if key not in KEYS or not column]
    if wrong:
        raise InputError(f"--hf-columns {text[:60]}: '{wrong[0][:20]}' is none of {', '.join(KEYS)}, with a column "
                         "after =; id=clip,label=class is an example; correct it")
    return pairs


# ---------------------------------------------------------------------------------------------------- reading
def _is_saved(folder):
    return any((Path(folder) / file).exists() for file in SAVED)


def _open(name):
    """Split -> data set; the split of a data set saved alone is ""."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{PREFIX}{name}: the package datasets is expected; install it, or the extra 'datasets' of "
                         "this package") from None
    source, split = name, None
    folder, _, last = name.rpartition("/")
    if not Path(name).is_dir() and (_is_saved(folder) or name.count("/") == 2 and not name.startswith("/")):
        source, split = folder, last
    try:
        found = datasets.load_from_disk(source) if _is_saved(source) else datasets.load_dataset(source)
    except Exception as error:      # noqa: BLE001   `datasets` raises OSError, ValueError, errors of the hub ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{PREFIX}{name}: no data set ({reason[:150]}); its name on the Hugging Face hub, or a folder "
                         "that `datasets` saved, is expected; check the name") from None
    found = dict(found) if isinstance(found, dict) else {"": found}
    if split and split not in found:
        raise InputError(f"{PREFIX}{name}: no split {split[:40]!r}; {', '.join(filter(None, found))[:99] or 'none'} "
                         "are there; name one of them, or none for all")
    return {split: found[split]} if split else found


def _choose(data, given, name):
    """Our name -> column of a data set: those that are given, else by the kind of a column or by its name."""
    kinds = {column: type(feature).__name__ for column, feature in data.features.items()}
    for key, column in given.items():
        if column not in kinds:
            raise InputError(f"{PREFIX}{name}: no column {column[:40]!r} for --hf-columns {key}; "
                             f"{', '.join(kinds)[:99]} are there; name one of them")
        if key in KINDS and kinds[column] != KINDS[key]:
            raise InputError(f"{PREFIX}{name}: the column {column} is {kinds[column]}; one of the kind {KINDS[key]} is "
                             f"expected for --hf-columns {key}; name another")
    chosen = dict(given)
    for key, kind in KINDS.items():
        columns = [column for column, of in kinds.items() if of == kind]
        if key not in given and columns:
            if len(columns) > 1:
                raise InputError(f"{PREFIX}{name}: {len(columns)} columns of the kind {kind}, "
                                 f"{', '.join(columns)[:99]}; one is expected; choose: --hf-columns {key}=COLUMN")
            chosen[key] = columns[0]
    if not chosen.keys() & KINDS.keys():
        raise InputError(f"{PREFIX}{name}: columns {', '.join(kinds)[:150]}; one of the kind Audio, Video or Image is "
                         "expected; cast it in `datasets`")
    for key, names in (("id", IDS), ("label", LABELS), *((cell, (cell,)) for cell in CELLS)):
        column = next((column for column in names if column in kinds and kinds[column] not in KINDS.values()), None)
        if column:
            chosen.setdefault(key, column)
    return chosen


def _content(cell):
    """(bytes, name) of a cell of sound, video or image that was not decoded; None where it is empty."""
    if not cell:
        return None
    name = str(cell.get("path") or "")
    if cell.get("bytes"):
        return cell["bytes"], name
    return (Path(name).read_bytes(), name) if Path(name).is_file() else None


def _value(feature, value):
    """Text of a cell; the name of a class that is stored as a number."""
    if value is None or hasattr(feature, "int2str") and value < 0:
        return ""
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value)


# ---------------------------------------------------------------------------------------------------- writing
def still_video(picture, sound=None, seconds=1.0, lossy=False):
    """A video of one picture, in memory; its sound is stored without loss.

    Args:
        picture: (H, W, 3) uint8.
        sound: (samples (N, channels) int16, rate), or None for a silent video.
        seconds: its length; at least that of a frame.
        lossy: store the picture, whose sides are even, in a twentieth of the space.
    Returns:
        bytes of a Matroska file.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        codec, pixels, options = ("mpeg4", "yuv420p", BEST) if lossy else ("ffv1", "bgr0", {})
        pictures = out.add_stream(codec, rate=STILL_RATE, options=options)
        pictures.width, pictures.height, pictures.pix_fmt = picture.shape[1], picture.shape[0], pixels
        if sound is not None:
            samples, rate = sound
            layout = {1: "mono", 2: "stereo"}.get(samples.shape[1])
            if layout is None:
                samples, layout = samples.mean(1, keepdims=True).astype(np.int16), "mono"
            heard = out.add_stream("pcm_s16le", rate=rate, layout=layout)
        for k in range(max(1, round(seconds * STILL_RATE))):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = k, Fraction(1, STILL_RATE)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        for k in range(0, len(samples) if sound is not None else 0, FRAME):
            frame = av.AudioFrame.from_ndarray(samples[k:k + FRAME].reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), k
            out.mux(heard.encode(frame))
        if sound is not None:
            out.mux(heard.encode(None))
    return buffer.getvalue()


def read_sound(path):
    """((N, channels) int16, rate) of a file.

    Raises:
        Unreadable: no sound in it.
    """
    media = Media(path)
    if media.facts.audio_rate is None:
        raise Unreadable(f"{path}: no sound; one is expected")
    parts = list(media.seconds_of_sound(LIMITS.sound_seconds, False))
    if not parts:
        raise Unreadable(f"{path}: nothing of the sound can be decoded; a whole file is expected")
    return np.concatenate(parts), media.facts.audio_rate


def _file_of(row, chosen, path, seconds):
    """Write a row's content; returns the file, None for an empty row. What cannot be decoded is written as it is: the
    report of the extraction says so."""
    contents = {key: _content(row[chosen[key]]) for key in KINDS if key in chosen}
    main = next((key for key in ("video", "image", "audio") if contents.get(key)), None)
    if main is None:
        return None
    data, name = contents[main]
    if main == "image":
        suffix = ".mkv"
    else:
        suffix = Path(name).suffix.lower()
        suffix = suffix if suffix in SUFFIXES else ".wav" if main == "audio" else ".mp4"
    path = path.with_name(path.name + suffix)
    if path.exists():                                           # of an earlier run
        return path
    if main == "image":
        data = _still(data, contents.get("audio"), path, seconds)
    write_whole(path, data)
    return path


def _still(data, sound, path, seconds):
    """Bytes of the still video of an image, of the length of its sound or `seconds`; those of the image if it cannot be
    decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LIMITS.pixels:
                return data
            picture = np.asarray(image.convert("RGB"))
        if sound is None:
            return still_video(picture, None, seconds)
        hidden = path.with_name(f".{path.name}.sound")
        write_whole(hidden, sound[0])
        try:
            samples = read_sound(hidden)
        finally:
            hidden.unlink()
        return still_video(picture, samples, len(samples[0]) / samples[1])
    except (OSError, ValueError, Image.DecompressionBombError, Unreadable):
        return data


def fetch(path, folder, given=None, seconds=None):
    """Write the rows of a data set as files, and their labels as a table.

    Args:
        path: `hf:NAME` or `hf:NAME/SPLIT`.
        folder: to write to; files that are there are kept.
        given: our name (`KEYS`) -> column; others are found by their kind or name.
        seconds: of the still video of an image without sound.
    Returns:
        (files, table): the table is None for a data set without labels.
    Raises:
        InputError: no such data set, split or column, nothing to hear or see in it, or two rows of one id.
    """
    name, folder = str(path).removeprefix(PREFIX), Path(folder)
    rows, files, empty = [], {}, 0
    for split, data in _open(name).items():
        chosen = _choose(data, given or {}, name)
        for key in KINDS.keys() & chosen.keys():
            data = data.cast_column(chosen[key], type(data.features[chosen[key]])(decode=False))
        data = data.select_columns(list(dict.fromkeys(chosen.values())))
        for number, row in enumerate(data):
            where = f"{PREFIX}{name}: row {number}{f' of {split}' if split else ''}"
            clip = clip_id(Path(str(row[chosen["id"]])).name, "stem") if "id" in chosen else (
                f"{split or 'clip'}_{number:06d}")
            safe_name(clip, where)
            if clip in files:
                raise InputError(f"{where}: the id {clip[:60]!r} is that of a row before; one of its own is expected; "
                                 "name another column with --hf-columns id=COLUMN, or one split")
            files[clip] = _file_of(row, chosen, folder / clip, seconds or 1)
            empty += files[clip] is None
            cells = {key: _value(data.features[chosen[key]], row[chosen[key]])
                     for key in ("label", *CELLS) if key in chosen}
            if "label" in cells:
                cells["split"] = _split(cells.get("split", split), where)
                rows.append({"file": clip, **cells})
    if empty:
        print(f"{PREFIX}{name}: {empty} rows without sound and picture: left out")
    rows = [row for row in rows if row["label"] and files[row["file"]]]
    return [file for file in files.values() if file], _write_table(folder / "labels.csv", rows) if rows else None


def _split(name, where):
    found = next((ours for start, ours in SPLITS.items() if name.lower().startswith(start)), "" if not name else None)
    if found is None:
        raise InputError(f"{where}: the split {name[:40]!r}; train, validation or test is expected; take one split by "
                         "hf:NAME/SPLIT, or name a column of splits with --hf-columns split=COLUMN")
    return found


def _write_table(path, rows):
    columns = [key for key in rows[0] if any(row[key] for row in rows)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())
    return path
