"""Lists and class lists: in their usual variants, and the messages for broken ones; labels against plain loops;
published lists that were cut; lists made from the official annotation files."""

import random
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare
from cmg.data.csv import read_classes
from cmg.data.labels import clip_class, multi_event, parse_times, single_event
from cmg.data.layout import DATA_PATHS
from cmg.data.sets import known_lists
from cmg.data.sets.avvp import read_events
from cmg.data.sets.known_lists import Sketch, row_hash, warn_of_cut
from cmg.data.sets.vggsound import read_list
from conftest import message, refused

GOOD = ("category,video_id,split\ndog,aaaaaaaaaaa,train\ncat,-bbbbbbbbbb,test\ndog,ccccccccccc,val\n"
        "cat,ddddddddddd,train\n")
EVENTS = "filename\tonset\toffset\tevent_labels\naaaaaaaaaaa_0_10\t0,3\t2,10\tdog,cat\nbbbbbbbbbbb_0_10\t5\t5\tdog\n"


@pytest.fixture
def write(tmp_path):
    def function(content, name="list.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name
    return function


@pytest.mark.parametrize("content", [
    GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD.replace("\n", "\r\n"), GOOD.rstrip("\n"),
    GOOD.replace("\n", "\n\n"), GOOD.replace(",", " , "), GOOD.replace("dog", '"dog"'),
    "\n".join(",".join((line.split(",") + ["x"])[::-1]) for line in GOOD.splitlines())],
    ids="plain BOM CRLF both no-last-newline blank-lines blanks quotes more-columns".split())
def test_the_forms_people_have(write, content):
    ids, categories = read_list(write(content))
    assert ids == ["aaaaaaaaaaa", "ddddddddddd", "-bbbbbbbbbb", "ccccccccccc"]          # train, then test, then val
    assert categories == ["dog", "cat", "cat", "dog"]
    assert read_list(write(content), ("train",))[0] == ["aaaaaaaaaaa", "ddddddddddd"]


def test_list_of_file_names(write):
    path = write("id\naaaaaaaaaaa.mp4\nbbbbbbbbbbb.mp4\n")
    assert read_list(path) == (["aaaaaaaaaaa", "bbbbbbbbbbb"], [])


@pytest.mark.parametrize("content, finding", [
    (GOOD.replace("video_id", "id_of_video"), "no column 'video_id'"),
    (GOOD.replace(",", "\t"), "no column 'category'"),
    (GOOD.replace("split\n", "category\n"), "no column 'split'"),
    (GOOD.replace("category,", "split,"), "no column 'category'"),
    ("", "an empty file"), ("category,video_id,split\n", "no rows"),
    (GOOD.replace("cat,-b", ",-b"), "line 3 has no category"),
    (GOOD.replace("cat,-b", "NaN,-b"), "line 3 has no category"),
    (GOOD.replace("-bbbbbbbbbb", ""), "line 3 has no video_id"),
    (GOOD.replace(",test", ""), "line 3 has 2 cells"), (GOOD.replace(",test", ",test,1"), "line 3 has 4 cells"),
    (GOOD.replace(",test", ",tset"), "-bbbbbbbbbb has the split 'tset'"),
    (GOOD.replace("ccccccccccc", "aaaaaaaaaaa"), "1 repeated ids, first aaaaaaaaaaa"),
    (GOOD.encode("utf-16"), "not UTF-8"), (b"\x89HDF\r\n", "not UTF-8"), (GOOD.replace("dog", "d\0g"), "zero bytes"),
    (GOOD.replace("dog,a", '"dog,a') + "x" * 200_000, "cannot be read as csv"),
    (GOOD.replace("video_id,", "video_id,video_id,"), "a column name occurs twice")])
def test_each_defect_of_a_list_is_named(write, content, finding):
    path = write(content)
    text = message(read_list, path)
    assert str(path) in text and finding in text and "expected" in text


def test_absent_parts_and_files(write, tmp_path):
    assert "no clips in val" in message(read_list, write(GOOD.replace("val", "train")), ("val",))
    assert "cannot be read" in message(read_list, tmp_path / "absent.csv")
    assert "cannot be read" in message(read_list, tmp_path)


def test_repeated_ids_can_be_skipped(write, caplog):
    path = write(GOOD.replace("ccccccccccc", "aaaaaaaaaaa"))
    assert read_list(path, on_bad_clip="skip")[0] == ["aaaaaaaaaaa", "ddddddddddd", "-bbbbbbbbbb"]
    assert "1 repeated ids, first aaaaaaaaaaa; keeping the first row of each" in caplog.text


@pytest.mark.parametrize("content, finding", [
    ("", "no class names"), ("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "line 3 repeats the class 'a'")])
def test_class_lists(write, caplog, content, finding):
    assert finding in message(read_classes, write(content))
    assert read_classes(write("\ufeffa, b\r\nc\r\n\r\n")) == ["a, b", "c"]
    assert read_classes(write("a\nBowling\tbowling\nc")) == ["a", "Bowling", "c"]
    assert "line 2 has a tab; using 'Bowling' as the class name" in caplog.text


@pytest.mark.parametrize("content, finding", [
    (EVENTS.replace("\t", ","), "no column 'filename'"), (EVENTS.replace("dog,cat", "dog,cow"), "unknown class 'cow'"),
    (EVENTS.replace("0,3", "0"), "aaaaaaaaaaa_0_10 has 2 events, 1 onsets and 2 offsets"),
    (EVENTS.replace("0,3", "0,x"), "aaaaaaaaaaa_0_10 has the times '0,x'"),
    (EVENTS.replace("dog,cat", "dog,"), "unknown class ''"), (EVENTS.replace("\t5\t5\t", "\t\t5\t"), "has no onset")])
def test_each_defect_of_an_event_list_is_named(write, content, finding):
    path = write(content)
    text = message(read_events, path, ["cat", "dog"])
    assert str(path) in text and finding in text and "expected" in text


def test_events_of_a_list(write):
    names, labels = read_events(write("\ufeff" + EVENTS.replace("\n", "\r\n")), ["cat", "dog"])
    assert names == ["aaaaaaaaaaa_0_10", "bbbbbbbbbbb_0_10"]
    assert labels[0].argmax(1).tolist() == [1, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert labels[1].argmax(1).tolist() == [2] * 10         # onset = offset adds nothing


DRAWN = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 12), st.integers(-2, 12)), max_size=6)


def by_hand(events, num_classes, seconds):
    """Second by second: which classes, and is it background?"""
    result = np.zeros((seconds, num_classes + 1))
    for t in range(seconds):
        active = {index for index, onset, offset in events if onset <= t < offset}
        for index in active:
            result[t, index] = 1
        if not active:
            result[t, num_classes] = 1
    return result


@settings(max_examples=300, deadline=None)
@given(DRAWN, st.integers(1, 12))
def test_events_overlap_repeat_and_touch(events, seconds):
    found = multi_event(events, 4, seconds)
    assert found.dtype == np.float32 and np.array_equal(found, by_hand(events, 4, seconds))
    assert np.array_equal(found, multi_event(events[::-1], 4, seconds))                 # order does not matter
    assert np.array_equal(found, multi_event(events + events[:1], 4, seconds))          # nor does repetition


@pytest.mark.parametrize("events, foreground", [
    ([(0, 2, 4), (1, 4, 6)], [2, 3, 4, 5]),             # touching borders: second 4 belongs to the later one alone
    ([(0, 2, 5), (1, 3, 4)], [2, 3, 4]),                # one inside the other
    ([(0, 0, 1), (0, 9, 10)], [0, 9]),                  # the same class twice, at both ends
    ([(0, 3, 3)], []), ([(0, 9, 0)], []), ([], []),     # empty, reversed (both occur in the official lists), none
    ([(0, 8, 20)], [8, 9]), ([(0, 0, 10)], list(range(10)))])
def test_background_is_what_no_event_covers(events, foreground):
    found = multi_event(events, 2, 10)
    assert np.flatnonzero(found[:, -1] == 0).tolist() == foreground
    if events == [(0, 2, 4), (1, 4, 6)]:
        assert found[3].tolist() == [1, 0, 0] and found[4].tolist() == [0, 1, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 2 ** 31))
def test_single_event(label, seconds, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (len(label), seconds))
    found = single_event(np.array(label), mask, 5)
    for n, index in enumerate(label):
        events = [(index, t, t + 1) for t in range(seconds) if mask[n, t]]
        assert np.array_equal(found[n], by_hand(events, 5, seconds))
        assert np.array_equal(found[n], single_event(index, mask[n], 5))


def test_clip_class_takes_the_higher_index_and_zero_for_none():
    labels = np.stack([multi_event(events, 4, 10) for events in (
        [(2, 0, 1)], [(1, 0, 5), (3, 6, 7)], [], [(1, 0, 9), (2, 0, 9)])])
    assert clip_class(labels).tolist() == [2, 3, 0, 1]      # in the last, each second's arg max is the lower index


@pytest.mark.parametrize("text", ["a", "1,,2", "nan", "inf", "1;2", ""])
def test_times_that_are_no_seconds(text):
    refused("list.csv: clip has the times", parse_times, "list.csv", "clip", text)
    assert parse_times("list.csv", "clip", "0, 2.5,10") == [0, 2.5, 10]


ROWS = [(f"class {n % 141}", f"{n:011d}") for n in range(20_000)]
OTHERS = [(name, f"x{video[1:]}") for name, video in ROWS]
SKETCH = Sketch("small", len(ROWS), frozenset(sorted(row_hash(*row) for row in ROWS)[:128]))
SHUFFLED = random.Random(0).sample(ROWS, len(ROWS))
LISTS = {"whole": (ROWS, False), "in another order": (SHUFFLED, False), "first half": (ROWS[:10_000], True),
         "last quarter": (ROWS[15_000:], True), "half of every class": (SHUFFLED[:10_000], True),
         "a few clips missing": (SHUFFLED[:-100], False), "a hundred clips": (ROWS[:100], False),
         "other clips": (OTHERS, False), "with as many others": (ROWS + OTHERS, False),
         "half of it with as many others": (ROWS[:10_000] + OTHERS[:10_000], False)}


@pytest.mark.parametrize("name", LISTS)
def test_a_part_of_a_known_list_is_told(name):
    rows, is_cut = LISTS[name]
    line = warn_of_cut(*map(list, zip(*rows)), known=(SKETCH,))
    assert bool(line) == is_cut, line
    assert not line or f"a part of the published small list: {len(rows):,} of its 20,000 clips" in line


@pytest.mark.parametrize("file", ["vggsound-avel40k.csv", "vggsound-avel90k-new.csv"])
def test_the_published_lists_are_whole(annotations, file):
    ids, categories = read_list(annotations / "released" / "vggsound40k" / file)
    assert warn_of_cut(categories, ids) is None
    sketch = known_lists.published()["90k" in file]
    assert len(ids) == sketch.rows and len(sketch.hashes) == 128
    assert f"20,000 of its {sketch.rows:,} clips" in warn_of_cut(categories[:20_000], ids[:20_000])


@pytest.fixture(scope="module")
def derived(tmp_path_factory, annotations):
    """A data root with the official annotation files alone, after `prepare.py lists`."""
    root = tmp_path_factory.mktemp("official")
    sources = {"ave.annotations": "ave/Annotations.txt", "vggsound.csv": "released/vggsound40k/vggsound-avel40k.csv",
               "avvp.official_visual": "avvp/AVVP_eval_visual.csv",
               "avvp.official_audio": "avvp/AVVP_eval_audio.before_2024_fix.csv"}
    sources |= {f"ave.{split}_list": f"ave/{split}Set.txt" for split in ("train", "val", "test")}
    for name, source in sources.items():
        (root / DATA_PATHS[name]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(annotations / source, root / DATA_PATHS[name])
    prepare.main(["lists", "--data_root", str(root)])
    return root


@pytest.mark.parametrize("name, source", [
    *[(f"{place}.{side}_csv", f"{folder}/{folder}_eval_{side}_checked_combined.csv")
      for place, folder in (("avvp", "AVVP"), ("ave_avvp", "AVE_AVVP")) for side in ("audio", "visual")],
    ("avvp.categories", "AVVP/AVVP_Categories.txt"), ("ave_avvp.categories", "AVE_AVVP/AVE_AVVP_Categories.txt"),
    ("ucf_vggsound.vggsound_csv", "UCF101/vggsound2ucf.csv")])
def test_derived_lists_equal_the_released_to_the_byte(derived, annotations, name, source):
    assert (derived / DATA_PATHS[name]).read_bytes() == (annotations / "released" / source).read_bytes()


@pytest.mark.parametrize("name, source, key", [
    ("ave.label", "ave/labels_reconstructed.h5", "avadataset"), ("ave.train", "ave/train_order.h5", "order"),
    ("ave.val", "ave/val_order.h5", "order"), ("ave.test", "ave/test_order.h5", "order"),
    ("ave_avvp.label", "released/AVE_AVVP/ave_avvp_labels.h5", "avadataset"),
    ("ave_avvp.order", "released/AVE_AVVP/ave_avvp_order.h5", "order")])
def test_derived_arrays_equal_the_released(derived, annotations, name, source, key):
    with h5py.File(derived / DATA_PATHS[name]) as ours, h5py.File(annotations / source) as theirs:
        assert ours[key].dtype == theirs[key].dtype and np.array_equal(ours[key][:], theirs[key][:])


def test_lists_of_the_user_stay(derived, tmp_path, annotations, capsys):
    root = shutil.copytree(derived, tmp_path / "copy")
    path = root / DATA_PATHS["avvp.categories"]
    path.write_text("mine\n")
    prepare.main(["lists", "--data_root", str(root)])
    assert path.read_text() == "mine\n" and f"{path}: exists, not changed" in capsys.readouterr().out
    prepare.main(["lists", "--data_root", str(root), "--overwrite"])
    assert path.read_text() != "mine\n"
    refused("no official annotation file", prepare.main, ["lists", "--data_root", str(tmp_path / "none")])
    with_header = annotations / "ave" / "Annotations.with_header.txt"
    shutil.copy(with_header, root / DATA_PATHS["ave.annotations"])
    prepare.main(["lists", "--data_root", str(root), "--overwrite"])
    test_derived_arrays_equal_the_released(root, annotations, "ave.train", "ave/train_order.h5", "order")
    path = root / DATA_PATHS["ave.train_list"]
    path.write_text(path.read_text().replace("&good&", "&fine&", 1))
    refused("row 1 is not in", prepare.main, ["lists", "--data_root", str(root), "--overwrite"])
