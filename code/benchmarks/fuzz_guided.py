"""Coverage-guided fuzzing of the readers of untrusted files (atheris, libFuzzer). This is not part of the tests,
because it needs atheris and runs for as long as requested.

    pip install atheris                                             # in a separate environment
    export PYTHONPATH=code/tests:code/tests/extract:code/tests/models
    python code/benchmarks/fuzz_guided.py --minutes 10 --what all   # prints a line per reader, writes findings to --out
    python code/benchmarks/fuzz_guided.py --what zip --one FILE     # reproduces a finding

An input is a complete file. Any exception other than `InputError` is a finding, as is using more than 2 GiB or a minute
for one file. Coverage includes our own modules, zipfile and pickle, but not C libraries.
"""

import argparse
import importlib.util
import io
import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MODULES = ["cmg", "zipfile", "pickle", "json"]
WHAT = ("list", "results", "zip", "npy", "counts", "config", "shared", "checkpoint", "vgg19", "vggish", "pca", "rows",
        "ids", "pack", "text", "image", "video")
SECONDS, MEGABYTES = 60, 2048           # per input


def seeds(what, folder):
    """Valid files of a kind, as a list of bytes."""
    import foreign_files as good
    from cmg.checkpoints import hub as sharing
    if what in ("config", "shared", "checkpoint"):
        shared = good.exported_folder(folder)
        return [{"config": shared / sharing.CONFIG, "shared": shared / sharing.WEIGHTS,
                 "checkpoint": folder / "x.pt"}[what].read_bytes()]
    if what in ("rows", "ids", "pack", "text"):
        return [good.hdf5_files(folder / "hdf5")[what].read_bytes()]
    if what in ("vgg19", "vggish", "pca"):
        return [path.read_bytes() for name, path in good.weight_files(folder / "weights").items()
                if name.startswith(what) and not name.endswith(".npz")]
    if what in ("image", "video"):
        make = good.images if what == "image" else good.videos
        (folder / "media").mkdir() if what == "video" else None
        return [path.read_bytes() for path in make(folder / "media").values()]
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    if what == "zip":
        return [good.zip_of(folder / "a.zip", ("a.pkl", pickle.dumps(array, k))).read_bytes() for k in (2, 4)]
    if what == "npy":
        buffer = io.BytesIO()
        np.save(buffer, array)
        return [buffer.getvalue()]
    from test_results import row
    return [{"list": b'a,b\r\n1,"x ""y"""\r\n2,\xc3\xa9\r\n', "counts": pickle.dumps({1: 2, 300: 4}, 2),
             "results": (json.dumps(row()) + "\n").encode()}[what]]


def target(what, folder, known):
    """Function that reads an input; InputError is a valid outcome, anything else is a finding."""
    from cmg.checkpoints import hub as sharing
    from cmg.utils.errors import InputError
    from foreign_files import exported_folder, write_shared
    path = folder / "input"
    if what in ("config", "shared"):
        shared = exported_folder(folder)
        about = json.loads((shared / sharing.CONFIG).read_text())
        path = shared

    def read(data):
        if what == "shared":
            write_shared(path, data, about)
        else:
            (path / sharing.CONFIG if what == "config" else path).write_bytes(data)
        try:
            known["shared" if what == "config" else what](path)
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error), error

    return read


def fuzz(what, seconds, out, corpus, one):
    """Process for one kind of file, terminated by libFuzzer."""
    import atheris

    from foreign_reader import readers
    with atheris.instrument_imports(include=MODULES):
        known = readers()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    read = target(what, folder, known)
    if one:
        read(Path(one).read_bytes())
        return
    for k, data in enumerate(seeds(what, folder)):
        (corpus / f"seed{k}").write_bytes(data)
    largest = 2 * max(path.stat().st_size for path in corpus.iterdir())
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}",
                   f"-max_len={largest}", "-print_final_stats=1", f"-artifact_prefix={out}/{what}-", "-seed=1",
                   str(corpus)], read)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="total time for all kinds")
    parser.add_argument("--what", nargs="+", choices=("all", *WHAT), default=["all"])
    parser.add_argument("--out", type=Path, default=Path("findings"), help="output folder for findings")
    parser.add_argument("--one", help="read this file and stop")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)      # passed to the process of one kind
    opts = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.exit(2, "atheris is not installed; pip install atheris in a separate environment and try again\n")
    if opts.corpus or opts.one:
        fuzz(opts.what[0], int(60 * opts.minutes), opts.out, opts.corpus, opts.one)
        return
    opts.out.mkdir(exist_ok=True)
    kinds = WHAT if "all" in opts.what else opts.what
    print("| files | executions | lines reached, at the start and at the end | findings |\n|---|---|---|---|")
    for what in kinds:
        before = set(opts.out.iterdir())
        with tempfile.TemporaryDirectory() as corpus:
            ended = subprocess.run([sys.executable, __file__, "--what", what, "--minutes",
                                    str(opts.minutes / len(kinds)), "--out", str(opts.out), "--corpus", corpus],
                                   capture_output=True, text=True, errors="replace")
        (opts.out / f"{what}.log").write_text(ended.stderr)
        runs = re.findall(r"stat::number_of_executed_units:\s+(\d+)", ended.stderr) or ["?"]
        covered = re.findall(r"cov: (\d+)", ended.stderr) or ["?"]
        found = [path.name for path in sorted(set(opts.out.iterdir()) - before) if not path.name.endswith(".log")]
        print(f"| {what} | {runs[-1]} | {covered[0]}, {covered[-1]} | {', '.join(found) or 'none'} |", flush=True)


if __name__ == "__main__":
    main()
