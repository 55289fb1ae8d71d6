"""The same data means the same content: names out of files, processes that compare notes, fingerprints of data, and
what identifies a measurement."""

import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cmg.checkpoints import checkpoint
from cmg.data import fingerprint as fingerprints
from cmg.data.sets.custom import Custom
from cmg.prepare import pack as packing
from cmg.report import pictures, tables
from cmg.results import provenance
from cmg.results import rows as results
from cmg.utils import dist, files
from cmg.utils.errors import InputError
from conftest import refused
from data_trees import write_zips
from kill_resume import fork_server, narrowed, start, train

SECONDS_TO_END = 10


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Twelve clips of a user's own: clips.csv, audio/, video/ as .npy, changed a while ago."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rows = ["id,split,label"]
    for number in range(12):
        label, name = "abc"[number % 3], f"clip{number}"
        for kind, shape in (("audio", (10, 16)), ("video", (10, 5, 5, 4))):
            (folder / kind).mkdir(exist_ok=True)
            np.save(folder / kind / f"{name}.npy", (rng.normal(size=shape) + "abc".index(label)).astype("float32"))
            os.utime(folder / kind / f"{name}.npy", (1e9, 1e9))
        rows.append(f"{name},{('train', 'train', 'test')[number // 4]},{label}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def copied(clips, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(clips, tmp_path / "clips"))


def data_of(folder):
    return ["--manifest", str(folder / "clips.csv"), "--features", f"audio={folder / 'audio'}", "--features",
            f"video={folder / 'video'}"]


def pretraining(folder, out, *more):
    return ["--dataset_name", "custom", *data_of(folder), "--model_save_path", str(out / "checkpoints"),
            "--snapshot_pref", str(out / "run"), "--n_embeddings", "8", "--batch_size", "4", "--print_freq", "1",
            "--workers", "0", "--gpu", "cpu", *map(str, more)]


def pretrain(folder, out, *more):
    """A small pretraining run in this process; returns its last checkpoint."""
    from cmg.cli import LocalPaths
    from cmg.programs import entry
    from cmg.training.run_logger import restored_log
    with narrowed(), restored_log():
        return entry.pretrain(pretraining(folder, out, *more), LocalPaths())


def change(folder, scale=50):
    """Other features under the same ids."""
    for path in folder.glob("*.npy"):
        np.save(path, np.load(path) * scale)


@pytest.fixture(scope="session")
def pretrained(clips, tmp_path_factory):
    """Folder of a run of two epochs: checkpoints/DCID-model-{0,1}.pt."""
    out = tmp_path_factory.mktemp("pretrained")
    pretrain(clips, out, "--n_epoch", 2)
    return out


# ------------------------------------------------------------------------------------------------ names out of files
@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../x.pt", "a/b", "a\\b", "a\0", "x" * 256, None, 3])
def test_what_is_no_plain_name_is_refused(name):
    refused("file.pt: the name .* is not a plain file name", files.safe_name, name, "file.pt")


@pytest.mark.parametrize("name", ["DCID-model-5.pt", "clip 1", "..b", "ä" * 100, "-x", "a:b"])
def test_plain_names_pass(name):
    assert files.safe_name(name, "file.pt") == name


def named(path, saved):
    """The file `path` with other names of earlier checkpoints."""
    contents = checkpoint.read(path)
    contents["run"]["saved"] = saved
    checkpoint.save(path, contents)


def test_resuming_removes_no_file_that_a_checkpoint_names_and_the_run_did_not_save(clips, pretrained, tmp_path, caplog):
    out, home = tmp_path / "out", tmp_path / "home"
    shutil.copytree(pretrained, out)
    home.mkdir()
    folder = out / "checkpoints"
    shutil.copy(folder / "DCID-model-0.pt", folder / "DCID-model-7.pt")         # of another run: later, other options
    other = checkpoint.read(folder / "DCID-model-7.pt")
    other["run"]["options"]["lr"] = 1.0
    checkpoint.save(folder / "DCID-model-7.pt", other)
    strange = [home / "thesis-step1.tex", home / "keys.txt", folder / "notes.txt", folder / "DCID-model-8.pt"]
    for path in strange:
        path.write_text("precious")
    (folder / "DCID-model-9.pt").symlink_to(home / "keys.txt")
    names = [str(strange[0]), "../../home/keys.txt", "notes.txt", "DCID-model-8.pt", "DCID-model-9.pt",
             "DCID-model-7.pt", "DCID-model-0.pt", "DCID-model-1.pt"]
    named(folder / "DCID-model-1.pt", names)
    pretrain(clips, out, "--n_epoch", 3, "--keep", 1, "--resume", folder / "DCID-model-1.pt")
    assert all(path.read_text() == "precious" for path in strange) and (folder / "DCID-model-7.pt").exists()
    assert (folder / "DCID-model-9.pt").is_symlink()
    assert not (folder / "DCID-model-0.pt").exists() and not (folder / "DCID-model-1.pt").exists()      # its own
    assert (folder / "DCID-model-2.pt").exists()
    assert "lists 6 files as checkpoints of its run that are not" in caplog.text


@pytest.mark.parametrize("saved", ["DCID-model-0.pt", [3], [["a"]]])
def test_a_list_of_checkpoints_of_other_things_is_one_line(clips, pretrained, tmp_path, saved):
    path = tmp_path / "DCID-model-1.pt"
    shutil.copy(pretrained / "checkpoints" / "DCID-model-1.pt", path)
    named(path, saved)
    refused("entry 'run' is not a valid run state", pretrain, clips, tmp_path / "out", "--resume", path)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "provenance/../../x.json", "provenance/aa.json"])
def test_a_result_names_records_beside_it_alone(tmp_path, name):
    refused("names the record", provenance.record_of, {"provenance": name}, tmp_path)
    (_, problems), = provenance.verify([{"checkpoint": None, "provenance": name}], tmp_path)
    assert len(problems) == 1 and "names the record" in problems[0]
    assert provenance.record_of({"provenance": "provenance/0123456789ab.json"}, tmp_path).parent.parent == tmp_path


# ----------------------------------------------------------------------------------------- processes that compare notes
class FakeGroup:
    """The first of three processes; `others`: notes of the second and third."""

    rank, size = 0, 3

    def __init__(self, monkeypatch, *others):
        monkeypatch.setattr(dist, "_group", self)
        monkeypatch.setattr(dist.dist, "all_gather_object", lambda found, notes: found.__setitem__(
            slice(None), [notes, *others]))


@dataclass
class Ended:
    """How two processes ended."""

    codes: list
    lines: list
    apart: float


NOTES = {"--lr": "0.0004", "list of clips": b"a", "start": "after step 3", "weights": b"b"}


def test_equal_notes_pass_and_every_difference_is_named(monkeypatch):
    dist.require_equal(NOTES)                           # one process
    FakeGroup(monkeypatch, NOTES, NOTES)
    dist.require_equal(NOTES)
    for changed, text in (({"--lr": "0.1"}, "process 2 has --lr 0.1, the first 0.0004"),
                          ({"list of clips": b"c"}, "process 2 differs from the first in its list of clips"),
                          ({"start": "after step 0"}, "process 2 has start after step 0, the first after step 3"),
                          ({"weights": b"d"}, "process 2 differs from the first in its weights")):
        FakeGroup(monkeypatch, NOTES, NOTES | changed)
        refused(f"the 3 processes of this run differ: {text}", dist.require_equal, NOTES)
    FakeGroup(monkeypatch, dict.fromkeys(NOTES, "x"), {"--lr": "0.0004"})      # of another version of the program
    refused("process 1 has --lr x.* and 4 more; expected the same options", dist.require_equal, NOTES)


def run_two(folder, *arguments):
    """Two processes of one run, started without torchrun, outputs in the files 0.txt and 1.txt of `folder`.

    Returns:
        exit codes, lines of errors of each, and the seconds between their ends.
    """
    logs = [folder / f"{rank}.txt" for rank in range(2)]
    started = start(fork_server(), train, *((of_rank, log, True) for of_rank, log in zip(arguments, logs)))
    try:
        ended = {}
        while len(ended) < 2:
            ended |= {rank: time.monotonic() for rank, process in enumerate(started)
                      if rank not in ended and process.exitcode is not None}
            time.sleep(0.05)
        lines = [[line for line in log.read_text().splitlines() if "error:" in line or "Traceback" in line]
                 for log in logs]
        return Ended([process.exitcode for process in started], lines, abs(ended[0] - ended[1]))
    finally:
        for process in started:
            process.kill()
            process.join()


def test_processes_that_were_started_in_other_ways_end_with_one_line(clips, copied, tmp_path):
    change(copied / "audio")
    two = run_two(tmp_path, pretraining(clips, tmp_path / "0", "--max_steps", 2),
                  pretraining(copied, tmp_path / "1", "--max_steps", 2, "--lr", "0.1"))
    assert two.codes == [2, 2] and len(two.lines[0]) == 1 and two.lines[1] == [], two
    assert "--lr 0.1, the first 0.0004; process 1 differs from the first in its content of custom" in two.lines[0][0]
    assert two.apart < SECONDS_TO_END and not (tmp_path / "0" / "checkpoints" / "DCID-model-0.pt").exists()


def test_one_that_does_not_see_the_checkpoint_and_one_that_fails_before_it_starts(clips, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "0")
    two = run_two(tmp_path, *(pretraining(clips, tmp_path / str(rank), "--n_epoch", 3, "--resume", "auto")
                              for rank in range(2)))
    assert two.codes == [2, 2] and len(two.lines[0]) == 1, two
    assert "(--resume must find the same checkpoint in all) after step 0, epoch 0, the first after" in two.lines[0][0]
    assert two.apart < SECONDS_TO_END
    (tmp_path / "2").mkdir()
    two = run_two(tmp_path / "2", pretraining(clips, tmp_path / "2"), pretraining(clips, tmp_path / "2", "--lr", "x"))
    assert two.codes == [2, 2] and two.apart < SECONDS_TO_END
    assert len(two.lines[0]) == 1 and "another process of this run has ended" in two.lines[0][0]
    assert "--lr" in two.lines[1][0]


# ------------------------------------------------------------------------------------------- a run and its content
@pytest.fixture(scope="session")
def within_an_epoch(clips, tmp_path_factory):
    """Folder of a run that ended after one of its two steps of an epoch."""
    out = tmp_path_factory.mktemp("within")
    pretrain(clips, out, "--max_steps", 1)
    return out


def relabel(folder):
    path = folder / "clips.csv"
    path.write_text(path.read_text().replace("clip0,train,a", "clip0,train,b"))


CHANGES = {         # what is changed -> (how, what the line names)
    "features": (lambda folder: change(folder / "audio"), "different content of custom.audio"),
    "one value": (lambda folder: change_one(folder / "video" / "clip3.npy"), "different content of custom.video"),
    "a label": (relabel, "different content of custom.manifest"),
}


def change_one(path):
    """One number in the middle of a file, size and time of change as before."""
    x, status = np.load(path), path.stat()
    x[x.shape[0] // 2].flat[3] += 1
    np.save(path, x)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("what", CHANGES)
def test_other_content_under_the_same_ids_is_refused_within_an_epoch(within_an_epoch, copied, tmp_path, what):
    out = Path(shutil.copytree(within_an_epoch, tmp_path / "out"))
    how, text = CHANGES[what]
    how(copied)
    with pytest.raises(InputError, match=f"saved after 4 of 8 clips of an epoch.*{text}"):
        pretrain(copied, out, "--resume", "auto", "--max_steps", 2)


def test_a_copy_of_the_data_is_the_same_data(within_an_epoch, copied, tmp_path, caplog):
    out = Path(shutil.copytree(within_an_epoch, tmp_path / "out"))
    shutil.copy(copied / "audio" / "clip0.npy", copied / "audio" / "of_no_list.npy")
    os.utime(copied / "audio" / "clip1.npy")
    assert pretrain(copied, out, "--resume", "auto", "--max_steps", 2).name == "DCID-model-0.pt"
    assert "content" not in caplog.text


def test_between_epochs_other_content_is_a_warning_and_old_files_say_nothing(pretrained, copied, tmp_path, caplog):
    out = Path(shutil.copytree(pretrained, tmp_path / "out"))
    change(copied / "audio")
    pretrain(copied, out, "--resume", "auto", "--n_epoch", 3)
    assert caplog.text.count("different content of custom.audio") == 1
    path = out / "checkpoints" / "DCID-model-2.pt"
    old = checkpoint.read(path)
    del old["run"]["clips"]["content"], old["run"]["clips"]["checked"]
    checkpoint.save(path, old)
    caplog.clear()
    pretrain(copied, out, "--resume", path, "--n_epoch", 4)
    assert "content" not in caplog.text


# ------------------------------------------------------------------------------------ what a measurement depends on
def heads(folder, pretrained, out, *more):
    """Result lines of custom.py, audio to video, in the results file of `out`."""
    from cmg.cli import LocalPaths
    from cmg.programs.entry import downstream
    downstream("custom", [*data_of(folder), "--checkpoint", str(pretrained / "checkpoints" / "DCID-model-1.pt"),
                          "--snapshot_pref", str(out), "--source", "audio", "--target", "video", "--workers", "0",
                          "--gpu", "cpu", "--n_epoch", "1", *map(str, more)], LocalPaths())
    return results.read(out / "results.jsonl")


@pytest.fixture(scope="session")
def measured(clips, pretrained, tmp_path_factory):
    """Folder of results and predictions of one call."""
    out = tmp_path_factory.mktemp("heads")
    heads(clips, pretrained, out)
    return out


def arrays_of(path):
    """Content of kept predictions, without the name of the folder of the clips."""
    with np.load(path) as kept:
        return {name: kept[name].tobytes() for name in kept.files if name != "origin"}


@pytest.mark.parametrize("what, more, text", [
    ("features", (), "data [0-9a-f]{6} "), ("labels", (), "data [0-9a-f]{6} "), ("", ("--lr", 0.1), "lr 0.1 "),
    ("", ("--n_epoch", 2), "n_epoch 2 "), ("", ("--batch_size", 3), "batch_size 3 ")])
def test_what_was_measured_on_other_data_or_with_other_heads_is_a_row_of_its_own(
        measured, copied, pretrained, tmp_path, what, more, text):
    out = Path(shutil.copytree(measured, tmp_path / "out"))
    {"features": lambda folder: change(folder / "audio"), "labels": relabel}.get(what, lambda folder: None)(copied)
    before, kept = results.read(out / "results.jsonl"), sorted((out / "predictions").iterdir())
    old = [arrays_of(path) for path in kept]
    rows = heads(copied, pretrained, out, *more)
    assert len(rows) == 2 * len(before) and rows[:len(before)] == before
    table = [line for line in results.summary(rows).splitlines() if "audio->video  " in line and " accuracy " in line]
    assert len(table) == 2 and re.search(text, table[1]) and table[0] != table[1]
    paper = [row.name for row in tables.all_rows(rows) if row.name.endswith(" (last)")]
    assert all(f" + {text.split()[0]} " in name for name in paper) and len(set(paper)) == len(paper) == 6
    assert [arrays_of(path) for path in kept] == old                    # codes do not depend on heads: the same file
    assert len(list((out / "predictions").iterdir())) == (4 if what else 3)
    for path in (out / "predictions").iterdir():
        assert pictures.read_predictions(path)["checkpoint"] == "DCID-model-1.pt"


def test_the_same_measurement_again_replaces_and_a_copy_of_the_data_is_the_same(measured, copied, pretrained, tmp_path):
    out = Path(shutil.copytree(measured, tmp_path / "out"))
    before = results.read(out / "results.jsonl")
    rows = heads(copied, pretrained, out)
    assert [results.identity(row) for row in rows] == [results.identity(row) for row in before]
    assert len(list((out / "predictions").iterdir())) == 2 and "differs" not in results.summary(rows)
    assert {row["data_checked"] for row in before} <= {"full", "quick"}
    text = np.load(out / "predictions" / "custom-audio-video.npz")
    assert text["data"] == before[0]["data"] and len(str(text["checkpoint_sha256"])) == 64


def test_rows_of_before_stand_beside_new_ones(measured):
    rows = results.read(measured / "results.jsonl")
    old = [{key: value for key, value in row.items() if key not in ("data", "data_checked", "settings", "first_seed")}
           for row in rows]
    assert "differs" not in results.summary(old) and results.summary(old) == results.summary(rows)
    both = results.summary(old + rows)
    assert both.count("data and settings not recorded") == len(results.tabulate(old))


def test_verify_reads_the_features_and_the_report_their_sizes_and_samples(copied, pretrained, tmp_path):
    out = tmp_path / "heads"
    rows = heads(copied, pretrained, out, "--no_control")
    assert all(not problems for full in (True, False) for _, problems in provenance.verify(rows, out, full))
    change_one(copied / "video" / "clip9.npy")
    for full in (True, False):
        assert all(len(problems) == 1 and "custom.video" in problems[0] and "is no longer the same" in problems[0]
                   for _, problems in provenance.verify(rows, out, full))
    shutil.rmtree(copied / "audio")
    assert all("custom.audio" in problems[0] and "is missing" in problems[0]
               for _, problems in provenance.verify(rows, out))


def test_an_exported_encoder_says_what_it_was_pretrained_on(pretrained, clips, tmp_path):
    from cmg.report.export import export
    export(pretrained / "checkpoints" / "DCID-model-1.pt", tmp_path / "out")
    data = json.loads((tmp_path / "out" / "config.json").read_text())["data"]
    assert data["number"] == 8 and data["content"]["custom.manifest"] == files.sha256(clips / "clips.csv")
    assert data["checked"] in ("full", "quick")


# ------------------------------------------------------------------------------------------------- fingerprints
def touched(path):
    """A change of content that keeps size and time of change."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_second_fingerprint_reads_only_what_changed_and_is_the_same(copied, tmp_path, monkeypatch):
    read, looked = [], fingerprints._look
    monkeypatch.setattr(fingerprints, "_look", lambda path, kept, bar: _noted(read, path, looked(path, kept, bar)))
    of = partial(fingerprints.fingerprint, copied / "video", cache=tmp_path / "cache", quiet=True)
    first = of()
    assert (first.checked, first.files, len(read)) == ("full", 12, 12)
    read.clear()
    second = of()
    assert (second.sha256, second.checked, read) == (first.sha256, "quick", [])
    change_one(copied / "video" / "clip3.npy")
    assert of().sha256 != first.sha256 and [Path(path).name for path in read] == ["clip3.npy"]
    read.clear()
    assert of(full=True).checked == "full" and len(read) == 12
    (copied / "video" / "clip3.npy").rename(copied / "video" / "clip99.npy")
    assert of().sha256 not in (first.sha256, second.sha256)                     # a name counts as well


def _noted(read, path, found):
    if not found[1]:
        read.append(path)
    return found


def test_content_under_the_same_size_and_time_is_seen_in_zips_and_by_a_full_reading(tmp_path):
    rng = np.random.default_rng(0)
    write_zips(tmp_path / "zips", {"a": rng.normal(size=(10, 2000)), "b": rng.normal(size=(10, 2000))})
    (tmp_path / "large.h5").write_bytes(rng.bytes(40_000))
    for path in (*(tmp_path / "zips").iterdir(), tmp_path / "large.h5"):
        os.utime(path, (1e9, 1e9))
    of = partial(fingerprints.fingerprint, cache=tmp_path / "cache", quiet=True)
    before = of(tmp_path / "zips"), of(tmp_path / "large.h5")
    write_zips(tmp_path / "zips", {"a": rng.normal(size=(10, 2000))})
    os.utime(tmp_path / "zips" / "a.zip", (1e9, 1e9))
    touched(tmp_path / "large.h5")
    assert of(tmp_path / "zips").sha256 != before[0].sha256             # a zip ends with the checksum of its content
    assert of(tmp_path / "large.h5").sha256 == before[1].sha256         # what "quick" cannot see ...
    assert of(tmp_path / "large.h5", full=True).sha256 != before[1].sha256


def test_any_cache_is_none_or_right(copied, tmp_path, caplog):
    of = partial(fingerprints.fingerprint, copied / "audio", cache=tmp_path / "cache", quiet=True)
    first = of()
    file, = (tmp_path / "cache").iterdir()
    for content in (b"", b"[]", b"{", b"\xff", b'{"format": 1, "files": {"clip0.npy": [1]}}',
                    b'{"format": 1, "files": 3}'):
        file.write_bytes(content)
        assert of().sha256 == first.sha256
    (tmp_path / "file").write_text("")
    with caplog.at_level("INFO"):
        for _ in range(2):                                                                              # not writable
            assert fingerprints.fingerprint(copied / "audio", cache=tmp_path / "file", quiet=True) == first
    assert caplog.text.count("fingerprints cannot be cached") == 1


def test_what_is_no_file_is_one_line_and_what_is_absent_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "x.npy")
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        refused("not a regular file", fingerprints.fingerprint, path, cache=tmp_path)
    assert fingerprints.fingerprint(tmp_path / "absent") is None


def test_clips_of_a_list_alone_count_and_packs_are_data_like_any_other(clips, tmp_path):
    packing.pack(clips / "audio", tmp_path / "pack.h5", "audio", "float32")
    for audio in (clips / "audio", tmp_path / "pack.h5"):
        paths = {"custom.manifest": clips / "clips.csv", "custom.audio": audio, "custom.video": clips / "video"}
        data = Custom({name.split(".")[1]: path for name, path in paths.items()}, ("audio", "video"))
        found = fingerprints.of_clips(data, paths, quiet=True)
        assert {name: of_path.files for name, of_path in found.items()} == {
            "custom.manifest": 1, "custom.audio": 8 if audio.is_dir() else 1, "custom.video": 8}
