"""Lists and class lists: in their usual variants, and the messages for broken ones."""

import pytest

from cmg.data.csv import read_classes
from cmg.data.sets.avvp import read_events
from cmg.data.sets.vggsound import read_list
from conftest import message

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
    assert "1 repeated ids, first aaaaaaaaaaa; the first row of each is kept" in caplog.text


@pytest.mark.parametrize("content, finding", [
    ("", "no class names"), ("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "line 3 repeats the class 'a'")])
def test_class_lists(write, caplog, content, finding):
    assert finding in message(read_classes, write(content))
    assert read_classes(write("\ufeffa, b\r\nc\r\n\r\n")) == ["a, b", "c"]
    assert read_classes(write("a\nBowling\tbowling\nc")) == ["a", "Bowling", "c"]
    assert "line 2 has a tab; the class name is taken as 'Bowling'" in caplog.text


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
