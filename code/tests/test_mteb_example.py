"""docs/examples/mteb_encoder.py: MTEB itself evaluates an encoder of ours on a small task of made videos."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from cmg.checkpoints import checkpoint
from cmg.systems.dcid import DCID
from conftest import ROOT
from made_videos import make_video

mteb = pytest.importorskip("mteb", reason="mteb is not installed; the example needs it")
datasets = pytest.importorskip("datasets", reason="comes with mteb")
CLIPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The example's model over a small untrained encoder of log-mel vectors and patches."""
    path = ROOT / "code" / "docs" / "examples" / "mteb_encoder.py"
    spec = importlib.util.spec_from_file_location("mteb_encoder", path)
    example = sys.modules["mteb_encoder"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    system = DCID(DCID.Config.for_data({"audio": (128,), "video": (7, 7, 8)}, num_codes=64, feed_forward=64, seconds=3))
    for codes in system.encoder.codebooks:
        codes.normal_()
    file = tmp_path_factory.mktemp("mteb") / "model.pt"
    checkpoint.save(file, checkpoint.pack(system, None, {}, 0, 0, {}))
    return example.CMGEncoder(str(file), audio="logmel", video="patches")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Short videos; the sizes of the pictures differ, so that the clips do."""
    folder = tmp_path_factory.mktemp("clips")
    for k in range(CLIPS):
        make_video(folder / f"{k}.mp4", seconds=3, size=(64 + 16 * k, 48), audio="tone" if k % 2 else "silence")
    return [str(folder / f"{k}.mp4") for k in range(CLIPS)]


def task(files, category):
    """A retrieval task of MTEB between the sounds and the pictures of the same files, made here."""
    column = {"a": "audio", "v": "video"}
    kinds = {"audio": datasets.Audio, "video": datasets.Video}
    query, document = column[category[0]], column[category[-1]]

    class Made(mteb.abstasks.retrieval.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"Made{category.upper()}", description="made", dataset={"path": "made", "revision": "1"},
            type="Any2AnyRetrieval", category=category, modalities=["audio", "video"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", reference=None, date=None, domains=None,
            task_subtypes=None, license=None, annotations_creators=None, dialect=None, sample_creation=None,
            bibtex_citation=None)

        def load_data(self, **kwargs):
            names = [str(k) for k in range(CLIPS)]
            of = {role: datasets.Dataset.from_dict({"id": names, kind: files}).cast_column(
                kind, kinds[kind](decode=False)) for role, kind in (("queries", query), ("corpus", document))}
            self.dataset = {"default": {"test": {**of, "relevant_docs": {name: {name: 1} for name in names},
                                                 "top_ranked": None}}}
            self.data_loaded = True
    return Made()


@pytest.mark.parametrize("category", ["a2v", "v2a"])
def test_mteb_scores_are_those_of_our_vectors(model, files, category):
    result = mteb.evaluate(model, [task(files, category)], cache=None, encode_kwargs={"batch_size": 2})
    found = result[0].scores["test"][0]
    kinds = {"a": ("audio", "logmel"), "v": ("video", "patches")}
    vectors = []
    for letter in (category[0], category[-1]):
        modality, front_end = kinds[letter]
        x = np.concatenate([model.encoder.features_of(file, **{modality: front_end})[modality] for file in files])
        vectors.append(torch.nn.functional.normalize(model.encoder.embed_clips(modality, x), dim=-1))
    similarity = (vectors[0] @ vectors[1].T).numpy()
    assert np.unique(similarity.round(5)).size > CLIPS                  # no score is decided by a tie
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(np.eye(CLIPS), similarity, k=10), abs=1e-4)


def test_both_modalities_are_averaged(model, files):
    both = datasets.Dataset.from_dict({"audio": files, "video": files}).cast_column(
        "audio", datasets.Audio(decode=False)).cast_column("video", datasets.Video(decode=False))
    one = [model.encode(torch.utils.data.DataLoader(both.remove_columns(other)), task_metadata=None, hf_split="test",
                        hf_subset="default") for other in ("audio", "video")]
    found = model.encode(torch.utils.data.DataLoader(both), task_metadata=None, hf_split="test", hf_subset="default")
    assert found.shape == (CLIPS, model.encoder.head_dim) and torch.allclose(found, (one[0] + one[1]) / 2)
