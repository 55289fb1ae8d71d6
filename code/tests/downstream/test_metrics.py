"""Metrics against scikit-learn, hand-made cases and the golden numbers; retrieval of the same class, in lines and from
Python."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, ndcg_score, precision_recall_fscore_support

import cmg
from cmg.checkpoints import checkpoint
from cmg.data.labels import clip_class
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.vggsound import VGGSound
from cmg.downstream import metrics, retrieval
from cmg.downstream.settings import HeadSettings, TocSettings
from cmg.downstream.task import Pretrained
from cmg.downstream.toc import variants
from cmg.report.tables import main_metric
from cmg.results import rows as results
from cmg.results.rows import Output
from cmg.systems.dcid import DCID
from conftest import refused
from parity_parts import CHECKS


def test_golden_parts(golden):
    for check in CHECKS["parts"](golden):
        assert check.passed, str(check)


def random_cells(seed, clips=23, seconds=5, columns=4, heads=3):
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(clips, seconds, columns, generator=g) < 0.3).float()
    return torch.randn(heads, clips, seconds, columns, generator=g), labels


def oracle(logits, labels):
    predicted = torch.sigmoid(logits).numpy().ravel() > 0.5
    figures = precision_recall_fscore_support(labels.numpy().ravel() > 0.5, predicted, average="binary",
                                              zero_division=0)
    return 100 * np.array(figures[:3])


def test_pooled_figures_are_scikit_learns():
    logits, labels = random_cells(0)
    scores = metrics.segment_scores(logits, labels)
    for head in range(len(logits)):
        ours = [float(scores[name][head]) for name in ("precision", "recall", "f1")]
        np.testing.assert_allclose(ours, oracle(logits[head], labels), rtol=1e-12)


@pytest.mark.parametrize("logit, label, expected", [
    (-1.0, 1.0, (0, 0, 0)),              # nothing predicted
    (1.0, 0.0, (0, 0, 0)),               # nothing labeled
    (-1.0, 0.0, (0, 0, 0)),              # neither
    (0.0, 1.0, (0, 0, 0)),               # sigmoid is exactly 0.5: not above it
    (1.0, 1.0, (100, 100, 100)),
])
def test_uniform_cells(logit, label, expected):
    scores = metrics.segment_scores(torch.full((1, 2, 3, 1), logit), torch.full((2, 3, 1), label))
    assert tuple(float(value[0]) for value in scores.values()) == expected
    np.testing.assert_allclose(oracle(torch.full((2, 3, 1), logit), torch.full((2, 3, 1), label)), expected)


def test_released_averages_batches_and_depends_on_their_size():
    logits, labels = random_cells(1)
    released = metrics.segment_scores(logits, labels, batch=10)
    for head in range(len(logits)):
        parts = [(len(y), oracle(x, y)) for x, y in zip(logits[head].split(10), labels.split(10))]
        precision, recall = (sum(n * f[i] for n, f in parts) / 23 for i in (0, 1))
        assert float(released["precision"][head]) == pytest.approx(precision, rel=1e-12)
        assert float(released["recall"][head]) == pytest.approx(recall, rel=1e-12)
        assert float(released["f1"][head]) == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    pooled = metrics.segment_scores(logits, labels)
    assert not torch.allclose(released["precision"], pooled["precision"], rtol=1e-3)
    torch.testing.assert_close(metrics.segment_scores(logits, labels, batch=23), pooled)


def test_counts_of_parts_add_up():
    logits, labels = random_cells(2)
    whole = metrics.count_cells(logits, labels)
    parts = metrics.count_cells(logits[:, :9], labels[:9]) + metrics.count_cells(logits[:, 9:], labels[9:])
    torch.testing.assert_close(parts.f1, whole.f1)


def test_permuting_clips_changes_no_pooled_figure():
    logits, labels = random_cells(3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(metrics.segment_scores(logits[:, order], labels[order]),
                               metrics.segment_scores(logits, labels))


def test_accuracy_with_ties_and_one_class():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 3.0]])      # ties go to the lowest class
    targets = torch.tensor([0, 2, 2])
    assert float(metrics.accuracy(scores, targets)) == pytest.approx(100 * 2 / 3)
    assert accuracy_score(targets, scores.argmax(-1)) == pytest.approx(2 / 3)
    assert float(metrics.accuracy(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))) == 100
    both = metrics.accuracy(torch.stack([scores, -scores]), targets)
    assert both.shape == (2,) and float(both[1]) == 0


def test_clip_classes_by_hand():
    labels = torch.zeros(4, 3, 4)
    labels[:, :, 3] = 1                                                 # background throughout
    labels[1, 1] = torch.tensor([0.0, 0.0, 1.0, 0.0])                   # one second of class 2
    labels[2, 0], labels[2, 2] = torch.eye(4)[0], torch.eye(4)[1]       # classes 0 and 1: the higher wins
    labels[3, 0] = torch.tensor([1.0, 1.0, 0.0, 0.0])                   # two at once: the first arg max of the second
    assert clip_class(labels).tolist() == clip_class(labels.numpy()).tolist() == [0, 2, 1, 0]


def test_chance_of_segments_is_the_best_constant_column():
    labels = torch.zeros(2, 5, 3)
    labels[:, :3, 2] = 1
    labels[0, 4, 0] = 1
    chance = metrics.segment_chance(labels)
    assert chance["precision"] == pytest.approx(60) and chance["recall"] == pytest.approx(100 * 6 / 7)


def test_recall_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.1], [0.3, 0.4, 0.2]])          # ranks 1, 2, 3
    assert metrics.recall_at(similarity, (1, 2)) == {"r@1": pytest.approx(100 / 3), "r@2": pytest.approx(200 / 3),
                                                     "median_rank": 2.0}


def test_retrieval_ties_are_worth_their_chance():
    constant = metrics.recall_at(torch.zeros(20, 20), (1, 5, 10))
    chance = metrics.recall_chance(20, (1, 5, 10))
    assert {name: pytest.approx(value) for name, value in constant.items()} == chance
    assert chance["r@5"] == 25 and metrics.recall_chance(3, (5,))["r@5"] == 100


TIES = {"none": None, "some": 3, "all": 1}         # distinct similarities


def of_scikit_learn(similarity, queries, candidates):
    """The same of scikit-learn, query by query."""
    right = queries[:, None] == candidates
    return {"map": 100 * np.mean([average_precision_score(r, s) for r, s in zip(right, similarity)]),
            "ndcg@10": 100 * ndcg_score(right, similarity, k=10)}


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("shape", [(40, 40), (7, 25), (30, 4)])
def test_values_are_those_of_scikit_learn(shape, ties, monkeypatch):
    rng = np.random.default_rng(0)
    similarity = rng.random(shape) if TIES[ties] is None else rng.integers(0, TIES[ties], shape) / 4
    candidates = np.arange(shape[1]) % 4
    queries = rng.permutation(np.arange(shape[0]) % 4)
    monkeypatch.setattr(metrics, "ROWS", 16)            # in several parts, the last one shorter
    found = metrics.class_retrieval(*map(torch.from_numpy, (similarity, queries, candidates)))
    assert found == pytest.approx(of_scikit_learn(similarity, queries, candidates), abs=1e-9)
    if ties == "all":
        assert found == pytest.approx(metrics.class_retrieval_chance(*map(torch.from_numpy, (queries, candidates))))


def test_class_retrieval_by_hand():
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.5]])
    found = metrics.class_retrieval(similarity, torch.tensor([0, 1]), torch.tensor([0, 1, 0]))
    first = (1 + 2 / 3) / 2, (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))        # right, wrong, right
    second = 1, 1                                                              # right, wrong, wrong
    assert found == pytest.approx({"map": 50 * (first[0] + second[0]), "ndcg@10": 50 * (first[1] + second[1])})


def test_it_separates_where_recall_has_a_ceiling():
    """Thirty clips share a prompt. A perfect encoder and one that confuses two classes have the same R@5 of clips by
    prompts, the ceiling, and differ here."""
    classes = torch.arange(10).repeat_interleave(30)
    perfect = (classes[:, None] == classes).double()
    merged = (classes[:, None] // 2 == classes // 2).double() * 0.9 + perfect * 0.1
    confused = torch.where(classes[:, None] < 2, (classes[:, None] // 2 == classes // 2).double(), merged)
    ceiling = metrics.recall_at(perfect, (5,))["r@5"]
    assert ceiling == pytest.approx(100 * 5 / 30)
    assert metrics.recall_at(merged, (5,))["r@5"] == pytest.approx(ceiling)
    assert metrics.class_retrieval(perfect, classes, classes) == pytest.approx({"map": 100, "ndcg@10": 100})
    assert metrics.class_retrieval(confused, classes, classes) == pytest.approx({"map": 90, "ndcg@10": 90})


@pytest.fixture(scope="module")
def clips(demo_data):
    """Test part of the demo's list, and an untrained encoder that takes it."""
    paths = {name: demo_data / DATA_PATHS[f"vggsound.{name}"] for name in ("csv", "audio", "video", "text")}
    data = VGGSound(paths, splits=("test",))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        system = DCID(DCID.Config.for_data(data.shapes, num_codes=24, feed_forward=64))
        for codes in system.encoder.codebooks:
            codes.normal_()
    return data, system


def test_lines_and_python_agree_with_scikit_learn(clips, tmp_path, monkeypatch):
    """Every ordered pair of modalities: the lines of retrieval.sh, `cmg.retrieve`, and scikit-learn on the same
    similarities."""
    data, system = clips
    checkpoint.save(tmp_path / "model.pt", checkpoint.pack(system, None, {}, 0, 0, {}))
    encoder, classes = cmg.load(tmp_path / "model.pt"), np.unique(data.categories, return_inverse=True)[1]
    compared, plain = [], metrics.class_retrieval
    monkeypatch.setattr(metrics, "class_retrieval", lambda similarity, *classes: (
        compared.append(similarity.double().numpy()), plain(similarity, *classes))[1])
    rows = retrieval.training_free(
        data, Pretrained.load(tmp_path / "model.pt", "cpu", "float32"),
        variants(TocSettings(), "retrieval", [("video", "text")], 256, None),
        HeadSettings(no_control=True, workers=0), Output(tmp_path / "results.jsonl", "record.json"))
    assert rows == results.read(tmp_path / "results.jsonl")
    assert [row["metric"] for row in rows[:2]] == ["map", "ndcg@10"]
    assert main_metric("retrieval_free", rows) == "map"                 # of the report and of model cards
    guess, of_lines = of_scikit_learn(compared[0], classes, classes), compared[1:]
    assert not compared[0].any()                                        # chance: everything is equally similar
    for pair, similarity in zip(permutations(("audio", "video", "text"), 2), of_lines, strict=True):
        wanted = of_scikit_learn(similarity, classes, classes)
        lines = {row["metric"]: row for row in rows if row["direction"] == "->".join(pair)}
        for metric, value in wanted.items():
            assert lines[metric]["value"] == pytest.approx(value, abs=1e-6)
            assert lines[metric]["chance"] == pytest.approx(guess[metric])
        query, candidates = ((m, data.load(m).astype(np.float32), classes) for m in pair)
        found = cmg.retrieve(encoder, query, candidates, k=5)
        assert np.allclose(compared[-1], similarity, atol=1e-4)
        assert found.metrics == pytest.approx(of_scikit_learn(compared[-1], classes, classes), abs=1e-6)
        assert found.indices.shape == (len(data), 5)
    assert cmg.retrieve(encoder, query[:2], candidates[:2]).metrics == {}
    for wrong in ((query, candidates[:2]), (query[:2], candidates), (query, (*candidates[:2], classes * 0 + 1)),
                  (query, (*candidates[:2], classes[:-1]))):
        refused("class|labels of shape", cmg.retrieve, encoder, *wrong)
