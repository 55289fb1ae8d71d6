"""Figures against scikit-learn, hand-made cases and the golden numbers."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from cmg.data.labels import clip_class
from cmg.downstream import metrics
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
