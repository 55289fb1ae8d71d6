"""Retrieval of the same class: mean average precision and nDCG@10 against scikit-learn; in lines and from Python."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

import cmg
from cmg.checkpoints import checkpoint
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

TIES = {"none": None, "some": 3, "all": 1}         # distinct similarities


def oracle(similarity, queries, candidates):
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
    assert found == pytest.approx(oracle(similarity, queries, candidates), abs=1e-9)
    if ties == "all":
        assert found == pytest.approx(metrics.class_retrieval_chance(*map(torch.from_numpy, (queries, candidates))))


def test_by_hand():
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
    guess, of_lines = oracle(compared[0], classes, classes), compared[1:]
    assert not compared[0].any()                                        # chance: everything is equally similar
    for pair, similarity in zip(permutations(("audio", "video", "text"), 2), of_lines, strict=True):
        wanted = oracle(similarity, classes, classes)
        lines = {row["metric"]: row for row in rows if row["direction"] == "->".join(pair)}
        for metric, value in wanted.items():
            assert lines[metric]["value"] == pytest.approx(value, abs=1e-6)
            assert lines[metric]["chance"] == pytest.approx(guess[metric])
        query, candidates = ((m, data.load(m).astype(np.float32), classes) for m in pair)
        found = cmg.retrieve(encoder, query, candidates, k=5)
        assert np.allclose(compared[-1], similarity, atol=1e-4)
        assert found.metrics == pytest.approx(oracle(compared[-1], classes, classes), abs=1e-6)
        assert found.indices.shape == (len(data), 5)
    assert cmg.retrieve(encoder, query[:2], candidates[:2]).metrics == {}
    for wrong in ((query, candidates[:2]), (query[:2], candidates), (query, (*candidates[:2], classes * 0 + 1)),
                  (query, (*candidates[:2], classes[:-1]))):
        refused("class", cmg.retrieve, encoder, *wrong)
