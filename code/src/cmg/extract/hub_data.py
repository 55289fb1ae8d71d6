"""Convert datasets on the Hugging Face hub, or saved in a folder by `datasets`, to files and labels for extraction.

`hf:NAME`, `hf:NAME/SPLIT`: every row with audio, video or an image becomes a file in the output folder. An image
becomes a still video, with the row's audio if there is any.
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
KINDS = {"audio": "Audio", "video": "Video", "image": "Image"}          # our names -> feature types of `datasets`
CELLS = ("split", "prompt", "onset", "offset")                          # columns copied to the table unchanged
KEYS = ("id", "label", *CELLS, *KINDS)
SPLITS = {"train": "train", "valid": "val", "val": "val", "dev": "val", "test": "test"}     # by prefix of the name
SAVED = ("dataset_dict.json", "state.json")
STILL_RATE = 2                      # frames per second of a still video
FRAME = 1024                        # samples per audio packet
BEST = {"qmin": "2", "qmax": "2"}   # MPEG-4 quantizer: 2 is the finest, 31 the coarsest


def read_columns(text):
    """Parse --hf-columns id=clip,label=class,...: our name -> column."""
    pairs = dict(part.partition("=")[::2] for part in text.split(","))
    wrong = [key for key, column in pairs.items() if key not in KEYS or not column]
    if wrong:
        raise InputError(f"--hf-columns {text[:60]}: '{wrong[0][:20]}' is not one of {', '.join(KEYS)} followed by = "
                         "and a column; expected, for example, id=clip,label=class; correct it")
    return pairs


# ---------------------------------------------------------------------------------------------------- reading
def _is_saved(folder):
    return any((Path(folder) / file).exists() for file in SAVED)


def _open(name):
    """Split -> dataset; the split of a dataset that was saved without splits is ""."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{PREFIX}{name}: the package datasets is required; install it, or the extra 'datasets' of "
                         "this package") from None
    source, split = name, None
    folder, _, last = name.rpartition("/")
    if not Path(name).is_dir() and (_is_saved(folder) or name.count("/") == 2 and not name.startswith("/")):
        source, split = folder, last
    try:
        found = datasets.load_from_disk(source) if _is_saved(source) else datasets.load_dataset(source)
    except Exception as error:      # noqa: BLE001   `datasets` raises OSError, ValueError, errors of the hub ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{PREFIX}{name}: cannot be loaded ({reason[:150]}); expected the name of a dataset on the "
                         "Hugging Face hub or a folder saved by `datasets`; check the name") from None
    found = dict(found) if isinstance(found, dict) else {"": found}
    if split and split not in found:
        raise InputError(f"{PREFIX}{name}: no split {split[:40]!r}; expected one of "
                         f"{', '.join(filter(None, found))[:99] or 'none'}; correct it, or omit it for all splits")
    return {split: found[split]} if split else found


def _choose(data, given, name):
    """Our name -> column of a dataset: as given, else chosen by the column's type or name."""
    kinds = {column: type(feature).__name__ for column, feature in data.features.items()}
    for key, column in given.items():
        if column not in kinds:
            raise InputError(f"{PREFIX}{name}: no column {column[:40]!r} for --hf-columns {key}; expected one of "
                             f"{', '.join(kinds)[:99]}; correct it")
        if key in KINDS and kinds[column] != KINDS[key]:
            raise InputError(f"{PREFIX}{name}: column {column} has type {kinds[column]}; expected {KINDS[key]} for "
                             f"--hf-columns {key}; choose another column")
    chosen = dict(given)
    for key, kind in KINDS.items():
        columns = [column for column, of in kinds.items() if of == kind]
        if key not in given and columns:
            if len(columns) > 1:
                raise InputError(f"{PREFIX}{name}: {len(columns)} columns of type {kind}, "
                                 f"{', '.join(columns)[:99]}; expected one; pass --hf-columns {key}=COLUMN")
            chosen[key] = columns[0]
    if not chosen.keys() & KINDS.keys():
        raise InputError(f"{PREFIX}{name}: columns {', '.join(kinds)[:150]}; expected one of type Audio, Video or "
                         "Image; cast it in `datasets`")
    for key, names in (("id", IDS), ("label", LABELS), *((cell, (cell,)) for cell in CELLS)):
        column = next((column for column in names if column in kinds and kinds[column] not in KINDS.values()), None)
        if column:
            chosen.setdefault(key, column)
    return chosen


def _content(cell):
    """(bytes, name) of an undecoded audio, video or image cell; None if it is empty."""
    if not cell:
        return None
    name = str(cell.get("path") or "")
    if cell.get("bytes"):
        return cell["bytes"], name
    return (Path(name).read_bytes(), name) if Path(name).is_file() else None


def _value(feature, value):
    """A cell as text; class numbers become class names."""
    if value is None or hasattr(feature, "int2str") and value < 0:
        return ""
    return str(feature.int2str(value) if hasattr(feature, "int2str") else value)


# ---------------------------------------------------------------------------------------------------- writing
def still_video(picture, sound=None, seconds=1.0, lossy=False):
    """Encode a still image as a video in memory, with lossless audio.

    Args:
        picture: (H, W, 3) uint8.
        sound: (samples (N, channels) int16, rate), or None for a silent video.
        seconds: length of the video; at least one frame.
        lossy: compress the image, whose sides must be even, to a twentieth of the size.
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
    """Read a file's audio: ((N, channels) int16, rate).

    Raises:
        Unreadable: the file has no audio, or it cannot be decoded.
    """
    media = Media(path)
    if media.facts.audio_rate is None:
        raise Unreadable(f"{path}: no audio; expected a file with audio")
    parts = list(media.seconds_of_sound(LIMITS.sound_seconds, False))
    if not parts:
        raise Unreadable(f"{path}: the audio cannot be decoded; expected an intact file")
    return np.concatenate(parts), media.facts.audio_rate


def _file_of(row, chosen, path, seconds):
    """Write a row's content; returns the file, or None for an empty row. Content that cannot be decoded is written
    unchanged and shows up in the extraction's report."""
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
    if path.exists():                                           # from an earlier run
        return path
    if main == "image":
        data = _still(data, contents.get("audio"), path, seconds)
    write_whole(path, data)
    return path


def _still(data, sound, path, seconds):
    """Bytes of an image's still video, as long as its audio or `seconds`; the image's own bytes if it cannot be
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
    """Write the rows of a dataset as files, and their labels as a table.

    Args:
        path: `hf:NAME` or `hf:NAME/SPLIT`.
        folder: output folder; existing files are kept.
        given: our name (`KEYS`) -> column; others are chosen by their type or name.
        seconds: length of the still video of an image without audio.
    Returns:
        (files, table): the table is None for a dataset without labels.
    Raises:
        InputError: no such dataset, split or column, no audio, video or image column, or two rows with the same id.
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
                raise InputError(f"{where}: duplicate id {clip[:60]!r}; expected a different id in each row; choose "
                                 "another column with --hf-columns id=COLUMN, or a single split")
            files[clip] = _file_of(row, chosen, folder / clip, seconds or 1)
            empty += files[clip] is None
            cells = {key: _value(data.features[chosen[key]], row[chosen[key]])
                     for key in ("label", *CELLS) if key in chosen}
            if "label" in cells:
                cells["split"] = _split(cells.get("split", split), where)
                rows.append({"file": clip, **cells})
    if empty:
        print(f"{PREFIX}{name}: skipped {empty} rows without audio, video or image")
    rows = [row for row in rows if row["label"] and files[row["file"]]]
    return [file for file in files.values() if file], _write_table(folder / "labels.csv", rows) if rows else None


def _split(name, where):
    found = next((ours for start, ours in SPLITS.items() if name.lower().startswith(start)), "" if not name else None)
    if found is None:
        raise InputError(f"{where}: split {name[:40]!r}; expected train, validation or test; select one split with "
                         "hf:NAME/SPLIT, or a column with --hf-columns split=COLUMN")
    return found


def _write_table(path, rows):
    columns = [key for key in rows[0] if any(row[key] for row in rows)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())
    return path
