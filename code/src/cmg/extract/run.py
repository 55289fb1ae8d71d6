"""Run `prepare.py features`: turn a folder of videos into features, report, lists and sidecar."""

import errno
import os
import sys
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cmg.data.csv import read_bytes
from cmg.data.loader import ClipLoader
from cmg.extract import lists, output, video
from cmg.extract.build import find_device, front_ends_of, picture_encoder, sound_encoder
from cmg.extract.clip import BAD_START, Row, Timing, extract
from cmg.extract.encoders import BATCH, CPU_BATCH, IN_PROCESSES
from cmg.extract.layouts import SOUNDS, AVSBench, Zips
from cmg.extract.output import write_whole
from cmg.prepare.lists import read_annotations
from cmg.utils.console import clean
from cmg.utils.cores import usable_cores
from cmg.utils.errors import InputError
from cmg.utils.files import as_input_error, remove_leftovers, safe_name
from cmg.utils.signals import stop_on_signals

SUFFIXES = {f".{name}" for name in (
    "mp4 m4v mov mkv webm avi mpg mpeg mpe vob ts mts m2ts flv f4v wmv asf 3gp 3g2 ogv mxf divx gif "  # videos
    "wav mp3 m4a aac flac ogg oga opus wma aif aiff").split()}                                         # audio only
SHOWN = 5                           # names shown in a message
NAME_ERRORS = errno.ENAMETOOLONG, errno.EILSEQ      # the file system rejects a file name
YOUTUBE_ID = 11                     # characters
GPU_WORKERS = 8                     # clips decoded at a time while a GPU computes
TORCHVISION = ("video features of torchvision's VGG-19 differ from the published ones in values and scale; never use "
               "them with a published checkpoint or together with published features")
APPROXIMATE = "averaging {} instead of 16 frames per second gives an approximation of the published features"


# ---------------------------------------------------------------------------------------------------- input
def find_videos(paths, out=None):
    """Find audio and video files, given as files or in folders (including subfolders and linked folders), sorted.

    Args:
        paths: folders and files.
        out: the output folder; the wavs that `--preset avsbench` writes there are not input.
    Returns:
        (files, [(path, why it was skipped)]).
    Raises:
        InputError: a path does not exist, or there is no video.
    """
    files, skipped, visited = [], [], set()
    own = out and (out / SOUNDS).resolve()
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; expected videos; check the path")
        for found in [path] if path.is_file() else _walk(path, own, visited, skipped):
            if not found.name.startswith("."):
                if found.suffix.lower() in SUFFIXES:
                    files.append(found)
                else:
                    skipped.append((found, "files that are not videos"))
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no video ({len(skipped)} other files); expected files such as "
                         ".mp4, .webm or .wav; check the folder")
    return sorted(set(files)), sorted(set(skipped))


def _walk(folder, own, visited, skipped):
    """Files below a folder. Each real folder is visited once, because links may form a loop."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=lambda error: skipped.append(
            (Path(error.filename), "folders that cannot be read"))):
        real = Path(parent).resolve()
        if real in visited or real == own:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file():
                yield path
            elif path.is_symlink():
                skipped.append((path, "links to files that do not exist"))


def _counted(names, what):
    """"7 clips without a video: a, b, c, d, e, ..."."""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def clip_id(name, form):
    """A clip's id from its file name, with or without a video suffix; normalized to NFC, because file systems and
    tables may encode the same letters differently."""
    path = Path(unicodedata.normalize("NFC", str(name)))
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    stem = stem.encode("utf-8", "backslashreplace").decode()        # bytes that are not UTF-8: see `_name_problem`
    return stem[:YOUTUBE_ID] if form == "youtube" else stem


def by_id(files, form):
    """id -> file, sorted; InputError if two files have the same id."""
    clips = {}
    for path in files:
        name = clip_id(path.name, form)
        if name in clips:
            raise InputError(f"{path}: has the same id {name} as {clips[name]}; expected one file per clip; rename or "
                             f"remove one{', or omit --id youtube' if form == 'youtube' else ''}")
        clips[name] = path
    return dict(sorted(clips.items()))


def _name_problem(name, path):
    """Why a clip's name cannot be used in the lists; None if it can."""
    try:
        safe_name(name, path)
    except InputError as error:
        return str(error)
    is_plain = clean(name) == name and not set(name) & set("\t\n")
    return None if is_plain else f"{path}: control characters in the name; rename the file"


def _is_done(row, layout):
    """Whether an earlier run finished this clip: it has a line in the report and all features that it should have."""
    if row is None or row.status in output.RETRIED:
        return False
    excused = output.EXCUSED.get(row.status, layout.modalities)
    return all(modality in excused or layout.is_there(modality, row.id) for modality in layout.modalities)


# ---------------------------------------------------------------------------------------------------- the run
def run(opts):
    """Run the extraction with the completed options of `command.add_arguments`; returns 1 if a clip failed, else 0."""
    files, skipped = find_videos(opts.videos, opts.out)
    for reason in dict.fromkeys(reason for _, reason in skipped):
        print(f"skipped: {_counted([path.name for path, why in skipped if why == reason], reason)}")
    clips = by_id(files, opts.id)
    column = opts.start if isinstance(opts.start, str) else None
    _check_options(opts, column)
    labels = opts.labels and lists.read_labels(opts.labels, lambda name: clip_id(name, opts.id), column, opts.prompts,
                                                   opts.columns)
    clips = _labeled_only(clips, labels, opts, column)
    device = find_device(opts.device_name)
    with as_input_error(opts.out, output.OTHER):
        opts.out.mkdir(parents=True, exist_ok=True)
    mine = list(clips)[opts.shard[0] - 1::opts.shard[1]]
    workers = opts.workers or (GPU_WORKERS if device.type == "cuda" else usable_cores())
    with _cores_shared(max(1, min(workers, len(mine)))) as workers:
        failed = _run(opts, clips, mine, labels, column, device, workers)
    return 1 if failed else 0


@contextmanager
def _cores_shared(workers):
    """Divide the cores among the workers while the block runs. NumPy's matrix products are too small for more than one
    thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, usable_cores() // workers)))
    try:
        with threadpool_limits(1, "blas"):
            yield workers
    finally:
        torch.set_num_threads(before)


def _run(opts, clips, mine, labels, column, device, workers):
    """`run` once its input is known: clips (id -> file), those of this shard, labels, and the column of starts. Returns
    the number of clips in the shard that failed."""
    sound, pictures = sound_encoder(opts, device), picture_encoder(opts, device, clips)
    timing = Timing(opts.seconds, opts.frames_per_second, opts.clock, opts.preset == "avsbench", opts.rows_per_second,
                    opts.hop)
    _check_clock(opts, timing)
    modalities = [name for name, encoder in (("audio", sound), ("video", pictures)) if encoder]
    layout = (AVSBench(opts.out, modalities, labels, opts.seconds) if opts.preset == "avsbench"
              else Zips(opts.out, modalities))
    text = None
    if opts.text_encoder:
        from cmg.extract.text import PromptText
        text = PromptText(opts.text_encoder, labels, device, front_ends_of(opts).get("text"))
    settings = {"clips": {**timing.record(), "start": column or opts.start, "id": opts.id, "preset": opts.preset,
                          "silence_for_missing": opts.silence_for_missing}}
    settings |= {name: encoder.record() | timing.rows_record() for name, encoder in (
        ("audio", sound), ("video", pictures)) if encoder} | ({"text": text.record()} if text else {})
    notes = _notes(opts, pictures)
    output.write_sidecar(opts.out, settings, notes)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    report = output.Report(opts.out, opts.shard)
    try:
        failed = _extract_all(opts, clips, mine, labels, report, layout, timing, sound, pictures, device, workers)
        report.finish(lambda rows: _finish(opts, rows, layout, labels, timing))
    finally:
        report.close()
    if text:
        text.write(opts.out, clips)
    absent = len(set(labels.ids) - set(clips)) if labels else 0
    _summary(opts, [report.rows[name] for name in clips if name in report.rows], len(clips), absent)
    return failed


def _check_options(opts, column):
    if column and not opts.labels:
        raise InputError(f"--start {column}: a column name requires --labels; pass --labels CSV, or seconds")
    if opts.columns and not opts.labels:
        raise InputError("--columns: names the columns of --labels, which is not given; pass --labels CSV")
    for flag in ("labels", "prompts"):
        path = getattr(opts, flag)
        if path and any(path.resolve() == (opts.out / name).resolve() for name in lists.WRITTEN):
            raise InputError(f"--{flag} {path}: this command would overwrite the file with its own list; expected a "
                             "file elsewhere; rename it, or choose another --out")
    if opts.text_encoder and not opts.labels:
        raise InputError("--text-encoder: encodes the prompts of --labels, which is not given; pass --labels CSV")
    if opts.preset == "avsbench" and (not opts.labels or opts.seconds is None):
        raise InputError("--preset avsbench: sorts clips by split and category; expected --labels with columns name, "
                         "category, split, and a number for --seconds")
    if opts.format == "ave":
        if not opts.order or opts.preset or opts.seconds is None:
            raise InputError("--format ave: writes arrays in the order of AVE's annotations; expected --order "
                             "Annotations.txt, a number for --seconds, and no --preset")
        read_annotations(opts.order, "--order")


def _check_clock(opts, timing):
    if timing.is_by_second:
        return
    if opts.preset or opts.audio_route != "native" or opts.framing != "second" or opts.uint8:
        raise InputError("--rows-per-second and --hop: expected --audio-route native and --framing second, without "
                         "--uint8 and --preset; omit one of them")
    if timing.rows == 0:
        raise InputError(f"--rows-per-second {opts.rows_per_second:g}: a row is {timing.length:g} s, but --seconds is "
                         f"{opts.seconds}; expected at least one row per clip; increase --seconds")


def _labeled_only(clips, labels, opts, column):
    """The clips of this run: with --start COLUMN or a preset, only those in the table. Prints which videos have no
    label and which labels have no video.

    Raises:
        InputError: no row matches a video; names that differ only in case; a column that the preset needs is missing.
    """
    if not labels:
        return clips
    named = set(labels.ids)
    without, absent = [n for n in clips if n not in named], sorted(named - set(clips))
    other_case = {name.casefold(): name for name in without}
    for name in absent:
        if name.casefold() in other_case:
            raise InputError(f"{opts.labels}: line {labels.lines[labels.ids.index(name)]}: no video '{name}', but "
                             f"'{other_case[name.casefold()]}'; names are case-sensitive; correct the line, or rename "
                             "the file")
    if absent:
        print(f"{opts.labels}: {_counted(absent, 'clips without a video')}")
    needed = column or opts.preset
    if without:
        print(f"{opts.labels}: {_counted(without, 'videos without a label')}" + (": skipped" if needed else ""))
    if len(without) == len(clips):
        raise InputError(f"{opts.labels}: none of its {len(absent)} clips, such as '{absent[0]}', matches a video, "
                         f"such as {next(iter(clips.values())).name}; expected file names; check the names and --id")
    if opts.preset == "avsbench":
        if "split" not in labels.columns:
            raise InputError(f"{opts.labels}: no column 'split'; expected name, category and split; add it")
        for line, name in zip(labels.lines, labels.columns["label"]):
            safe_name(name, f"{opts.labels}: line {line}")                      # it becomes a folder
    return {name: path for name, path in clips.items() if name in named} if needed else clips


def _notes(opts, pictures):
    notes = []
    if getattr(pictures, "published", True) is False:
        notes.append(TORCHVISION)
    if pictures and opts.frames_per_second < video.PER_SECOND and opts.video_encoder == "vgg19" and not opts.preset:
        notes.append(APPROXIMATE.format(opts.frames_per_second))
    return notes


class _Extraction(torch.utils.data.Dataset):
    """Dataset over clips. Getting an item writes the clip's features and returns its line of the report, or an
    InputError that ends the run."""

    def __init__(self, opts, names, clips, labels, layout, timing, sound, pictures, batch):
        self.names, self.clips, self.layout, self.batch = names, clips, layout, batch
        self.timing, self.sound, self.pictures = timing, sound, pictures
        self.starts, self.table = (labels.starts, labels.path) if labels else ({}, None)
        self.start, self.silence_for_missing = opts.start, opts.silence_for_missing

    def __len__(self):
        return len(self.names)

    def __getitem__(self, number):
        try:
            return self._extract(self.names[number])
        except InputError as error:             # returned, because a worker process would add its traceback
            return error

    def _extract(self, name):
        problem = _name_problem(name, self.clips[name])
        if problem:
            return Row(name, "error", warning=problem)
        line, start = self.starts[name] if self.starts else (None, self.start)
        made = extract(self.clips[name], name, self.timing, self.sound, self.pictures, start, self.silence_for_missing,
                       self.batch)
        if line and made.row.status == BAD_START:
            made.row.warning = f"{self.table}: line {line}: {made.row.warning}"
        try:
            self.layout.save(made, self.clips[name], start)
        except InputError as error:
            if getattr(error.__cause__, "errno", None) not in NAME_ERRORS:
                raise
            made.row.status, made.row.warning = "error", str(error)
        return made.row

    def rows(self, workers, stop):
        """Yield items in order, computed in parallel; after a signal (`stop`), only those already started.

        NumPy encoders run in processes, because threads would block each other between many short calls. Networks,
        which may be large or custom code, run in threads.
        """
        if workers > 1 and all(encoder is None or isinstance(encoder, IN_PROCESSES)
                               for encoder in (self.sound, self.pictures)):
            yield from ClipLoader(self, None, workers, alone=1,
                                  sampler=takewhile(lambda _: not stop.signal, range(len(self))))
            return
        with ThreadPoolExecutor(workers) as pool:
            futures = deque(pool.submit(self.__getitem__, number) for number in range(len(self)))
            try:
                while futures and not stop.signal:
                    yield futures.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
            yield from (future.result() for future in futures if not future.cancelled())


def _extract_all(opts, clips, mine, labels, report, layout, timing, sound, pictures, device, workers):
    """Extract all clips of this shard (`mine`) that are not done yet. Returns the number of clips that failed."""
    for name in layout.modalities:
        remove_leftovers(opts.out / name / "zip")
    batch = opts.batch or (BATCH if device.type == "cuda" else CPU_BATCH)
    todo = [name for name in mine if opts.overwrite or not _is_done(report.rows.get(name), layout)]
    extraction = _Extraction(opts, todo, clips, labels, layout, timing, sound, pictures, batch)
    with stop_on_signals() as stop, closing(extraction.rows(workers, stop)) as rows, tqdm(
            total=len(mine), initial=len(mine) - len(todo), desc="features", unit="clip", disable=None) as bar:
        for row in rows:
            if isinstance(row, InputError):
                raise row
            report.add(row)
            if row.status != "ok":
                bar.write(f"{row.id}: {row.status}: {row.warning}", file=sys.stderr)
            bar.update()
        stop.save_and_exit(lambda: None, "after the clips in progress", "run the command again to continue")
    return sum(report.rows[name].status != "ok" for name in mine)


def _finish(opts, rows, layout, labels, timing):
    """Write the lists derived from the report."""
    modalities = [m for m in ("audio", "video") if m in output.read_sidecar(opts.out)["settings"]]
    whole = [name for name, row in rows.items()
             if row.status == "ok" and all(layout.exists(modality, name) for modality in modalities)]
    if opts.preset == "avsbench":
        table = read_bytes(opts.labels)
        write_whole(opts.out / "AVSBench" / "Single-source" / "s4_meta_data.csv", table)
        return
    lists.write_checked(opts.out, whole)
    if labels:
        lists.write_lists(opts.out, labels, whole, timing.step)
        if "split" not in labels.columns:
            print(f"{opts.labels}: no column 'split': three fifths of each class are train, one test, one val, by id")
    failed = lists.link_paths(opts.out, lists.LINKS)
    if failed:
        print(f"{opts.out}: no links on this file system; pass --path vggsound.audio={opts.out / 'audio' / 'zip'} "
              f"--path vggsound.video={opts.out / 'video' / 'zip'} to the other scripts")
    if opts.format == "ave":
        _write_ave(opts, rows, modalities, timing.rows)


def _write_ave(opts, rows, modalities, length):
    order = [video_id for _, video_id, *_ in read_annotations(opts.order, "--order")]
    todo = [name for name in dict.fromkeys(order) if name not in rows]
    if todo and opts.shard != (1, 1):
        print(f"--format ave: {len(todo)} videos of {opts.order} are not extracted yet, starting with {todo[0]}; the "
              "last shard to finish will write the arrays")
        return
    links = {}
    for modality, name in (("audio", "audio_feature.h5"), ("video", "visual_feature.h5")):
        if modality in modalities:
            missing = output.write_ave(opts.out / name, order, opts.out / modality / "zip", length,
                                       opts.ave_dtype)
            links[f"AVE/data/{name}"] = f"../../{name}"
            if missing:
                print(f"{opts.out / name}: {len(missing)} rows of {len(set(missing))} videos have no features and are "
                      f"NaN: {', '.join(list(dict.fromkeys(missing))[:SHOWN])}")
    write_whole(opts.out / "AVE" / "data" / "Annotations.txt", read_bytes(opts.order))
    lists.link_paths(opts.out, links)


def _summary(opts, rows, videos, absent):
    """Print the status of all videos, and of the `absent` clips that the table of labels names without a video."""
    by_status = Counter(row.status for row in rows) | Counter({"without a video": absent})
    warned = sum(bool(row.warning) for row in rows if row.status == "ok")
    print(f"{opts.out}: {len(rows)} of {videos + absent} clips done: "
          + ", ".join(f"{number} {status}" for status, number in sorted(by_status.items()))
          + (f"; {warned} with a warning" if warned else "") + f"; see {opts.out / output.REPORT}")
