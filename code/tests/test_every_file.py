"""Every file that the program writes or reads, one fault each: a full disk, a bad sector in its middle. One line, exit
code 2, nothing left behind, and the same call, repeated when the disk is whole, leaves what an unbroken one leaves.

The tables name each function of our sources that writes or reads a file; a function that they do not name fails a test
(file_calls.py finds them), and so does one that its case does not reach. What fails where: broken_disk.py.
"""

import contextlib
import io
import re
import shutil
import traceback

import h5py
import pytest

import file_calls
import file_cases
from broken_disk import Disk, broken
from cmg.utils import errors
from file_cases import CASES, Tools

WORKS = "test_full_disk.py"             # the five works of kill_resume.py, write by write
MEMORY = "in memory; what is made there is written by another row"
TREE = "below whole_folder, as the case demo; needs the recordings"
PRIMITIVE = "is what the others call"

WRITERS = {
    "ablation.py:main": "ablation", "avs_s4/builders.py:create": WORKS, "avs_s4/demo_scenes.py:_beside": "scenes",
    "avs_s4/demo_scenes.py:_write": "scenes", "avs_s4/demo_scenes.py:build": "scenes",
    "avs_s4/report.py:write": "avs_test", "avs_s4/train.py:main": WORKS,
    "cmg/utils/files.py:_sync_folder": PRIMITIVE, "cmg/utils/files.py:alone": PRIMITIVE,
    "cmg/utils/files.py:append_lines": PRIMITIVE, "cmg/utils/files.py:output_file": PRIMITIVE,
    "cmg/utils/files.py:whole_file": PRIMITIVE, "cmg/utils/files.py:whole_folder": PRIMITIVE,
    "cmg/prepare/lists.py:_write": "lists", "cmg/prepare/lists.py:_write_array": MEMORY,
    "cmg/prepare/pack.py:_lay_out": WORKS, "cmg/prepare/pack.py:pack": WORKS,
    "cmg/data/text.py:write_text_features": "text",
    **{f"cmg/demos/dialled.py:{name}": "demo" for name in (
        "captions", "folder", "place", "pretraining", "ucf51", "ucf_vggsound",
        "write_annotations", "write_events", "write_h5", "write_lines", "write_marker", "write_prompts", "write_zip")},
    "cmg/demos/own_example.py:_save": MEMORY, "cmg/demos/own_example.py:_write": "own_example",
    "downstream.py:measure": "evaluated", "cmg/checkpoints/checkpoint.py:save": WORKS, "cmg/report/export.py:export": "exported",
    "cmg/results/provenance.py:write": "evaluated", "cmg/report/page.py:_image": MEMORY,
    "cmg/report/page.py:write": "report", "cmg/report/style.py:save": "table_pictures",
    "cmg/results/rows.py:_append_line": "evaluated", "cmg/results/rows.py:append": "evaluated",
    "cmg/training/run_logger.py:__init__": WORKS, "cmg/training/run_logger.py:_cut": "discarded",
    "cmg/downstream/run.py:_save": "evaluated",
    "evaluate.py:main": "evaluated", "cmg/extract/build.py:pca_filters": MEMORY, "cmg/extract/lists.py:link_places": WORKS,
    "cmg/extract/output.py:__init__": WORKS, "cmg/extract/output.py:_locked": WORKS,
    "cmg/extract/output.py:write_ave": "ave_arrays", "cmg/extract/output.py:write_pictures": MEMORY,
    "cmg/extract/output.py:write_whole": WORKS, "cmg/extract/output.py:zip_bytes": MEMORY, "cmg/extract/run.py:run": "ave_arrays",
    "prepare.py:vocabulary": "vocabulary", "pretrain.py:_alone": WORKS, "cmg/demos/spoken_sources.py:fetch": "recordings",
    "cmg/demos/spoken.py:build": TREE, "cmg/demos/spoken.py:pretraining": TREE,
    "cmg/demos/spoken.py:ucf_vggsound": TREE, "toc.py:draw": "channels",
}
OWN_SOURCE = "a file of the program itself"
RUST = "read by a library that no fault in Python reaches; truncated files: test_sharing.py, test_extract_hub.py"
CUT = "of weights; truncated files: test_extract_weights.py"
READERS = {
    "cmg/utils/files.py:remove_leftovers": PRIMITIVE, "avs_s4/demo_scenes.py:_is_whole": "scenes_again",
    "avs_s4/demo_scenes.py:build": "scenes", "avs_s4/network/published.py:read_state": "avs_test",
    "cmg/data/csv.py:read_bytes": "lists", "cmg/data/archive.py:read_counts": "readers",
    "cmg/data/archive.py:read_npy": "readers", "cmg/data/archive.py:read_zip": "check",
    "cmg/data/sets/avs_s4.py:read_image": "avs_test", "cmg/data/hdf5.py:_require_texts": "evaluated",
    "cmg/data/hdf5.py:open_hdf5": "evaluated", "cmg/data/archive.py:require_stored": "exported",
    "cmg/data/origins.py:read_sidecar": "ave_arrays",
    "cmg/prepare/pack.py:pack": WORKS,
    "cmg/data/text.py:read_vocabulary": "vocabulary", "cmg/data/text_backends.py:find_vocabulary": "readers",
    **{f"cmg/demos/dialled.py:{name}": "demo" for name in ("captions", "ucf51", "ucf_vggsound", "write_shared")},
    "cmg/demos/dialled.py:parts_there": "demo_again",
    "cmg/checkpoints/checkpoint.py:read": "exported", "cmg/checkpoints/checkpoint.py:sha256": "exported",
    "cmg/report/pictures.py:read_predictions": "readers", "cmg/report/pictures.py:read_text": "report",
    "cmg/training/precision.py:cpu_features": "of the system", "cmg/results/provenance.py:fingerprint": "evaluated",
    "cmg/results/provenance.py:read": "report", "cmg/report/page.py:_image": "report",
    "cmg/report/page.py:build": OWN_SOURCE, "cmg/results/rows.py:read": "report",
    "cmg/checkpoints/hub.py:_config": "config.json; damaged ones: test_sharing.py", "cmg/checkpoints/hub.py:_read": RUST,
    "cmg/extract/build.py:pca_filters": "readers", "cmg/extract/hub.py:_hash_of_weights": "readers",
    "cmg/extract/media.py:_open": "ave_arrays", "cmg/extract/media.py:_read_through": "after an error of FFmpeg alone",
    "cmg/extract/output.py:__init__": "ave_arrays", "cmg/extract/output.py:finish": "ave_arrays",
    "cmg/extract/output.py:read_rows": "ave_arrays", "cmg/extract/output.py:versions": OWN_SOURCE,
    "cmg/extract/tf_checkpoint.py:read": f"a memory map {CUT}", "cmg/extract/weights.py:_digests": "readers",
    "cmg/extract/weights.py:_require_small": "readers", "cmg/extract/weights.py:_from_torch": "readers",
    "cmg/extract/weights.py:_state": "readers", "cmg/extract/weights.py:read_pca": "readers",
    "cmg/demos/spoken_sources.py:_unpacked": "readers", "cmg/demos/spoken.py:is_there": TREE,
    "cmg/demos/spoken.py:ucf_vggsound": TREE,
}


# Exit code 1 and a report: a clip that cannot be read is named, and the others go on.
PARTLY = ("check", "check_own", "ave_arrays", "avsbench", "labelled")


# --------------------------------------------------------------------------------------------------------- the tables
def test_no_function_writes_or_reads_that_the_tables_do_not_name():
    writing, reading = file_calls.calls()
    assert sorted(writing ^ set(WRITERS)) == []
    assert sorted(reading ^ set(READERS)) == []


# ----------------------------------------------------------------------------------------------------------- the runs
@pytest.fixture(scope="module")
def tools(demo_data, tmp_path_factory):
    return Tools(tmp_path_factory.mktemp("tools"), demo_data)


def call(case, tools, folder, fault=None):
    """(exit code, error lines or a traceback, Disk) of a case in a folder."""
    disk, output = Disk([folder, tools.folder, tools.data], fault), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with broken(disk):
                errors.run(lambda: CASES[case](tools, folder))
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            return 1, traceback.format_exc(), disk
    return code, "\n".join(line for line in output.getvalue().splitlines() if line.startswith("error: ")), disk


def prepared(case, tools, folder):
    folder.mkdir(parents=True)
    if case in file_cases.BEFORE:
        file_cases.BEFORE[case](tools, folder)
    return folder


def left(folder):
    """Relative path -> content of what a case has left, without times, the folder's own name and repeated lines."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not path.is_symlink() and "provenance" not in name and not (
                path.name.startswith("events.out") or path.name == "log.txt" or path.suffix == ".pdf"):
            data = arrays(path) if path.suffix == ".h5" else path.read_bytes()
            data = data.replace(str(folder).encode(), b"@" * 8)
            data = re.sub(rb'"(seconds|time|provenance|message)": ("[^"]*"|[\d.]+)', b"", data)
            found[re.sub(r"\d{8}-\d{6}", "#", name)] = b"".join(dict.fromkeys(data.splitlines()))
    return found


def arrays(path):
    """Content of an HDF5 file; what lies between its arrays is not the same in two files."""
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name.encode() + (
            repr(item[()].tolist()).encode() if isinstance(item, h5py.Dataset) and item.dtype == object else
            item[()].tobytes() if isinstance(item, h5py.Dataset) else b"")))
    return b"".join(found)


def faults(seen):
    """(Place, n): of each function one operation that writes, the first or the last, and one that reads."""
    chosen = {}
    for place in sorted(seen, key=lambda place: place.kind != "write"):
        chosen.setdefault((place.kind == "read", place.site), place)
    return [(place, seen[place] - 1 if k % 2 and place.kind == "write" else 0)
            for k, place in enumerate(chosen.values())]


def wrong(case, tools, folder, fault, unbroken, is_repeated=True):
    """What is wrong with how a case meets a fault, as text; None: nothing. `is_repeated`: repeat the call?"""
    prepared(case, tools, folder)
    code, said, disk = call(case, tools, folder, fault)
    if not disk.broken:
        return "the fault did not happen"
    if (code, said.count("\n") + bool(said)) not in {(2, 1), (0, 0), *([(1, 0)] if case in PARTLY else [])}:
        return f"exit code {code}: {said[-1500:]}"
    if code == 0 and left(folder) != unbroken:
        return "it ends well, but leaves something else"
    if not is_repeated:
        return None if case != "demo" or not any(folder.iterdir()) else "something is left behind"
    code, said, _ = call(case, tools, folder)
    if code:
        return f"the repeated call: exit code {code}: {said[-1500:]}"
    found = left(folder)
    return None if found == unbroken else "the repeated call leaves something else: " + ", ".join(
        sorted({*found} ^ {*unbroken} or {name for name in found if found[name] != unbroken[name]})[:5])


def problems(case, tools, folder, only=None):
    """(number of faults, what was wrong with them); `only`: sites of the faults, of writing and of reading."""
    call(case, tools, prepared(case, tools, folder / "first" / "run"))          # what cases share is made here
    code, said, disk = call(case, tools, prepared(case, tools, folder / "whole" / "run"))
    if code:
        return 0, [f"the unbroken call: exit code {code}: {said}"]
    chosen = [fault for fault in faults(disk.seen)
              if only is None or fault[0].site in only[fault[0].kind == "read"]]
    missed = set().union(*only or ()) - {fault[0].site for fault in chosen}
    found, unbroken = [f"{site} was not reached" for site in sorted(missed)], left(folder / "whole" / "run")
    for k, fault in enumerate(chosen):
        problem = wrong(case, tools, folder / f"{k:05}" / "run", fault, unbroken, case != "demo" or k % 8 == 0)
        found += [f"{fault[0]}, operation {fault[1]}: {problem}"] if problem else []
        shutil.rmtree(folder / f"{k:05}")
    return len(chosen), found


@pytest.mark.parametrize("case", sorted({*WRITERS.values(), *READERS.values()} & {*CASES}))
def test_the_rows_of_a_case(case, tools, tmp_path):
    """One fault a row; full_disk.py --what files goes on to what the tables leave to the works."""
    rows = [{site for site, name in table.items() if name == case} for table in (WRITERS, READERS)]
    assert problems(case, tools, tmp_path, rows)[1] == []
