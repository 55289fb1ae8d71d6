"""Readers of files of others, in a process of their own with little memory: what kills it, hangs in it or fills it is a
failed test, not the end of all tests.

    python foreign_reader.py            # a line of JSON in, [what, path]; a line out, [outcome, text]
"""

import json
import os
import select
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOM = 1 << 30                      # bytes that reading may take
PATIENCE = 120                      # seconds for one file, on a busy machine
READ, REFUSED, FAILED = "read", "refused", "failed"


def readers():
    """name -> function of a path; each returns something or raises `InputError`."""
    import av
    import torch

    from cmg.checkpoints import checkpoint
    from cmg.checkpoints import hub as sharing
    from cmg.data import csv as annotation_csv
    from cmg.data import origins as origin
    from cmg.data.archive import read_counts, read_npy, read_zip
    from cmg.data.features import open_features
    from cmg.data.sets import ave, avs_s4, custom
    from cmg.data.text import TextFeatures
    from cmg.extract import audio, clip, encoders, video, weights
    from cmg.results import provenance
    from cmg.results import rows as results
    from cmg.utils.errors import InputError
    av.logging.set_level(av.logging.PANIC)
    torch.set_num_threads(1)
    pictures, sounds = encoders.PatchPictures(video.random_filters()), {
        route: encoders.LogMelSound(audio.FrontEnd(route)) for route in audio.ROUTES}

    def media(path, seconds, route="native", silence=False):
        made = clip.extract(path, "a", clip.Timing(seconds), sounds[route], pictures, silence_for_missing=silence)
        if made.row.status == "error":
            raise RuntimeError(made.row.warning)
        if made.audio is None and made.video is None:
            raise InputError(f"{path}: {made.row.status}: {made.row.warning}")

    def store(path, by_id=False):
        features = open_features(path, "audio", 3, by_id=by_id)
        for name in sorted(features.ids)[:5]:
            assert features.read(name).dtype == "float32"

    def text(path):
        custom.is_prompts_file(path)
        origin.describe(path, "text")
        return TextFeatures(path)

    return {"video": partial(media, seconds=1), "video, all": partial(media, seconds=None),
            "video, nearest": partial(media, seconds=1, route="nearest"),
            "video, silence": partial(media, seconds=None, silence=True),
            "rows": store, "pack": store, "ids": partial(store, by_id=True), "labels": ave.read_labels,
            "order": partial(ave.read_order, samples=4), "text": text, "zip": read_zip, "npy": read_npy,
            "counts": read_counts, "list": partial(annotation_csv.read_table, columns=("a",)),
            "vgg19": partial(weights.read, network="vgg19", kind="caffe"),
            "vggish": partial(weights.read, network="vggish", kind="audioset"), "pca": weights.read_pca,
            "checkpoint": checkpoint.open_file, "shared": sharing.load_encoder, "results": results.read,
            "record": provenance.read, "image": partial(avs_s4.read_image, mode="RGB", size=32)}


def attempt(read, path):
    """[outcome, line] of reading a file; a line that is no line, or does not name the file, is a failure."""
    from cmg.utils.errors import InputError
    try:
        read(Path(path))
        return [READ, ""]
    except InputError as error:
        line = str(error)
        return [REFUSED if "\n" not in line and Path(path).name in line else FAILED, line]
    except BaseException:           # noqa: B036   MemoryError, and whatever a library of C raises
        return [FAILED, traceback.format_exc()]


def answer():
    """The process: answers to the lines of standard input."""
    import resource
    if hasattr(os, "sched_setaffinity"):            # a decoder starts a thread, with a stack, for each processor
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                   # what libraries print is no answer
    known = readers()
    for name in ("video", "shared"):                # what is imported and made at the first use is not the file's
        attempt(known[name], "absent")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    for line in sys.stdin:
        what, path = json.loads(line)
        print(json.dumps(attempt(known[what], path)), file=out, flush=True)


class ReaderProcess:
    """The process, started when it is needed and again when it has died."""

    def __init__(self):
        self.process = None

    def read(self, what, path):
        """(outcome, text) of reading the file `path` by the reader `what`."""
        if self.process is None:
            sources = [str(HERE.parent / "src"), str(HERE)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources), "MALLOC_ARENA_MAX": "1",
                                        "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, env=environment, text=True)
        self.process.stdin.write(json.dumps([what, str(path)]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else None
        if not line:
            code = self.process.poll() if ready else "no answer"
            self.close()
            return FAILED, f"the reading process ended: {code}" if ready else f"no answer in {PATIENCE} s"
        return tuple(json.loads(line))

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


if __name__ == "__main__":
    answer()
