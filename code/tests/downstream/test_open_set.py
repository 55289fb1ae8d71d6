"""Open-set tasks: figures by hand, what is trained and kept back, bad input, lists of the real annotations."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import ave_oscmg
import ucf_oscmg
import ucf_vggsound_oscmg
from cmg.data.csv import read_classes
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.ucf51 import CLASSES
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.open_set import OpenSet, Scores, fixed_threshold
from cmg.downstream.settings import OpenSetSettings
from cmg.models.heads import ClipHead
from cmg.prepare.lists import write_lists
from cmg.report import pictures as figures
from cmg.results import rows as results
from cmg.utils.errors import InputError
from conftest import refused
from test_tasks import arguments, tree, write_checkpoint  # noqa: F401  (tree is a fixture)


def logits_of(confidences, wrong=()):
    """Two-class logits with these largest probabilities, class 0; class 1 for the clips `wrong`."""
    p = torch.tensor(confidences, dtype=torch.float64)
    logits = torch.stack([torch.log(p), torch.log1p(-p)], 1)
    logits[list(wrong)] = logits[list(wrong)].flip(1)
    return logits


SIX = logits_of([.98, .90, .65, .53, .60, .80], wrong=[2]), torch.tensor([0, 0, 0, 2, 3, 2])


def test_six_clips_by_hand():
    scores = Scores.of(*SIX)
    thresholds = scores.thresholds()
    assert thresholds[0] == scores.confidence.min() and thresholds[-1] == scores.confidence.max()
    best = scores.rates(thresholds).best()
    torch.testing.assert_close(torch.stack([best.os, best.unk, best.hos]),
                               torch.tensor([2 / 3, 1, .8], dtype=torch.float64))
    assert scores.rates(thresholds).hos[0] == 0             # the lowest threshold rejects nobody
    torch.testing.assert_close(float(scores.auroc()), 8 / 9)
    torch.testing.assert_close(float(scores.closed_accuracy()), 2 / 3)


def test_many_heads_at_once_are_each_alone_and_auroc_is_the_librarys():
    torch.manual_seed(0)
    logits, classes = torch.randn(3, 50, 4).double().round(decimals=1), torch.randint(7, (50,))
    together = Scores.of(logits, classes)
    rates = together.rates(together.thresholds()).best()
    for number in range(3):
        alone = Scores.of(logits[number], classes)
        found = alone.rates(alone.thresholds()).best()
        assert (rates.os[number], rates.unk[number], rates.hos[number]) == (found.os, found.unk, found.hos)
        torch.testing.assert_close(float(together.auroc()[number]), roc_auc_score(classes < 4, alone.confidence))


def test_what_does_not_exist_is_nan_and_no_hos_is_zero():
    nobody = Scores.of(SIX[0], torch.zeros(6, dtype=torch.int64))
    rates = nobody.rates(nobody.thresholds())
    assert rates.unk.isnan().all() and rates.best().hos.isnan() and nobody.auroc().isnan()
    wrong = Scores.of(SIX[0], torch.tensor([1, 1, 0, 2, 2, 2]))
    best = wrong.rates(wrong.thresholds()).best()
    assert (best.os, best.unk, best.hos) == (0, 0, 0)


def test_the_fixed_threshold_is_numpys_quantile():
    confidence = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(float(fixed_threshold(confidence)), float(np.quantile(confidence, .05)))


# ------------------------------------------------------------------------------------------------------------ the task
class Some:
    """Clips of 4 classes: `numbers` are theirs."""

    name, classes = "some clips", ["a", "b", "c", "d"]

    def __init__(self, numbers):
        labels = np.zeros((len(numbers), 2, 5), np.float32)
        labels[np.arange(len(numbers)), :, numbers] = 1
        self.labels = labels

    def part(self):
        count = len(self.labels)
        rows = torch.arange(2 * count).view(count, 2)
        return EncodedSplit(torch.randn(2 * count, 3), rows.flatten(), rows, torch.from_numpy(self.labels))


def task_of(known, train=(0, 1, 2, 3) * 10, test=(0, 1, 2, 3), protocol="default"):
    parts = {"audio": Some(list(train))}, {"video": Some(list(test))}
    return OpenSet("open", ClipHead, "hos", *parts, settings=OpenSetSettings(known, protocol))


def test_unknown_clips_are_not_trained_on_and_a_tenth_is_kept_back():
    task = task_of(2)
    part = task.train["audio"].part()
    trained, held = task.training(part)
    assert len(trained) == 18 and len(held) == 2 and set(held.clip_classes.tolist()) == {0, 1}
    assert (trained.clip_classes < 2).all() and (trained.rows.flatten().diff()[::2] > 0).all()
    assert task.make(3)(trained.table, trained.rows).shape == (18, 2)
    assert not set(trained.rows[:, 0].tolist()) & set(held.rows[:, 0].tolist())
    released, nothing = task_of(2, protocol="released").training(part)
    assert len(released) == 20 and nothing is None
    assert task.at_end(task.make(3), part, None) == {}
    assert set(task.at_end(task.make(3), part, held)) == {"hos_fixed", "os_fixed", "unk_fixed"}


def test_half_of_the_classes_is_the_default():
    assert task_of(None).known == 2 and task_of(3).known == 3


@pytest.mark.parametrize("settings, words", [
    ({"known": 4}, "--source_class_num 4: open has 4 classes; 1 to 3 of them can be known"),
    ({"known": 0}, "--source_class_num 0: "),
    ({"known": 3, "test": (0, 1, 2)}, "some clips: no test clip is of the unknown classes"),
    ({"known": 1, "test": (1, 2, 3)}, "some clips: no test clip is of the known classes")])
def test_bad_numbers_are_one_line(settings, words):
    refused(words, task_of, **settings)


def test_too_few_training_clips_are_one_line():
    task = task_of(1, train=(0, 1, 2))
    refused("1 training clips of known classes", task.training, task.train["audio"].part())


# ---------------------------------------------------------------------------------------------------------- the scripts
@pytest.mark.parametrize("script, name", [(ave_oscmg, "ave_oscmg"), (ucf_oscmg, "ucf_oscmg"),
                                          (ucf_vggsound_oscmg, "ucf_vggsound_oscmg")])
def test_a_script_gives_all_figures_and_pictures(tree, tmp_path, script, name):     # noqa: F811
    more = () if name == "ave_oscmg" else ("--source_class_num", "3")
    script.main(arguments(tree, tmp_path, "--no_control", *more))
    rows = results.read(tmp_path / "results.jsonl")
    metrics = {row["metric"] for row in rows}
    assert metrics == {"hos", "os", "unk", "auroc", "closed_accuracy", "hos_fixed", "os_fixed", "unk_fixed"}
    assert {row["selection"] for row in rows if row["metric"].endswith("_fixed")} == {"last"}
    assert {row["task"] for row in rows} == {name} and len({row["direction"] for row in rows}) == 2
    drawn = [path.name for kept in tmp_path.glob(f"predictions/{name}-*.npz")  # codes, heads: test_pictures.py
             for path in figures._draw_file(figures.read_predictions(kept), kept.stem, tmp_path, "")]
    assert len(drawn) == 2 and all(path.startswith(f"open-{name}") for path in drawn)


def test_the_released_protocol_trains_on_everything(tree, tmp_path):                # noqa: F811
    ucf_oscmg.main(arguments(tree, tmp_path, "--no_control", "--protocol", "released", "--dataset_name", "ucf_av"))
    assert not any(row["metric"].endswith("_fixed") for row in results.read(tmp_path / "results.jsonl"))


@pytest.mark.parametrize("system", ["fcid", "micu"])
def test_the_new_systems_are_measured_as_all_others(tree, tmp_path, system):       # noqa: F811
    path = write_checkpoint(tmp_path / f"{system}.pt", system=system)
    ave_oscmg.main(["--checkpoint", str(path), *arguments(tree, tmp_path, "--no_control", "--toc_preset", "fixed")[4:],
                    "--data_root", str(tree / "data")])
    assert {row["variant"] for row in results.read(tmp_path / "results.jsonl")} == {"TOC 196,1,0"}


def test_zero_code0_has_lines_of_its_own(tree, tmp_path):                          # noqa: F811
    for more in ((), ("--zero_code0",)):
        ucf_oscmg.main(arguments(tree, tmp_path, "--no_control", "--dataset_name", "ucf_av", *more))
    assert {row["variant"] for row in results.read(tmp_path / "results.jsonl")} == {"", "zero_code0"}


@pytest.mark.parametrize("number", ["0", "-1", "10", "x"])
def test_a_wrong_number_ends_the_script_with_code_2(tree, tmp_path, number):       # noqa: F811
    with pytest.raises((SystemExit, InputError)) as end:
        ucf_oscmg.main(arguments(tree, tmp_path, "--source_class_num", number))
    assert isinstance(end.value, InputError) or end.value.code == 2


# ------------------------------------------------------------------------------------------------------- lists, counts
def test_lists_are_made_from_the_features_that_are_there(tmp_path):
    def place(name):
        return tmp_path / DATA_PATHS[name]
    for kind, names in (("video", ("v_Typing_g01_c01", "v_Archery_g02_c01", "v_Skiing_g01_c01", "v_Typing_g01_c02")),
                        ("audio", ("v_Archery_g02_c01", "v_Typing_g01_c02", "v_Skiing_g01_c01"))):
        place(f"ucf51.{kind}").mkdir(parents=True)
        for name in names:
            (place(f"ucf51.{kind}") / f"{name}.zip").touch()
    written = dict(write_lists(place))
    assert written[place("ucf51.csv")] == "written"
    assert pd.read_csv(place("ucf51.csv")).values.tolist() == [["Typing", "v_Typing_g01_c02"],
                                                               ["Archery", "v_Archery_g02_c01"]]
    assert read_classes(place("ucf51.categories")) == list(CLASSES)


def test_classes_and_counts_are_the_published_ones(annotations):
    folder = annotations / "ucf51_open_set"
    assert read_classes(folder / "UCF51Categories.txt") == list(CLASSES)
    table = pd.read_csv(folder / "ucf51checked.csv")
    index = table["category"].map(list(CLASSES).index)
    assert [len(table), int((index < 17).sum()), int((index < 34).sum())] == [6831, 2289, 4623]
    for number in (17, 34):
        assert read_classes(folder / f"UCF51Categories_{number}.txt") == list(CLASSES[:number])
        assert (table["video_id"][index < number].tolist()
                == pd.read_csv(folder / f"ucf51checked_{number}.csv")["video_id"].tolist())
    released = annotations / "released" / "UCF101"
    for side, file, counts in (("UCF101sameVGGSound", "ucf2vggsound", (1160, 1556)),
                               ("VGGSoundsameUCF101", "vggsound2ucf", (2390, 3518))):
        names = read_classes(released / f"{side}.txt")
        rows = pd.read_csv(released / f"{file}.csv")["category"]
        assert tuple(int(rows.isin(names[:n]).sum()) for n in (8, 12)) == counts


def test_ave_counts_are_the_published_ones(annotations, tmp_path):
    from cmg.data.labels import clip_class
    from cmg.data.sets.ave import read_order
    from cmg.prepare.lists import ave_labels
    source = annotations / "ave"
    for name, file in (("ave.annotations", "Annotations.txt"), ("ave.train_list", "trainSet.txt")):
        (tmp_path / DATA_PATHS[name]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, tmp_path / DATA_PATHS[name])
    write_lists(lambda name: tmp_path / DATA_PATHS[name])
    labels = ave_labels(tmp_path / DATA_PATHS["ave.annotations"])
    order = read_order(tmp_path / DATA_PATHS["ave.train"], len(labels))
    classes = clip_class(labels[order])
    for number, count in ((14, 1857), (21, 2628)):
        assert int((classes < number).sum()) == count
        published = read_order(annotations / "ave_open_set" / f"train_order_{number}class.h5", len(labels))
        assert sorted(order[classes.numpy() < number]) == sorted(published)
