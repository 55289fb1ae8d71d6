"""--standardize channel: statistics of the training features, cached, stored in checkpoints, applied by encoders."""

import types

import numpy as np
import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.models.config import Config
from cmg.prepare.values import ChannelSums
from cmg.programs.entry import pretrain
from cmg.systems.dcid import DCID
from cmg.training import standardize
from configs.opts import LOCAL

T, MODALITIES = 5, ("audio", "video")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """24 clips of a user with a large offset: clips.csv, audio/, video/."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    features = {"audio": 40 + 5 * rng.random((24, T, 16)), "video": 3 + rng.random((24, T, 5, 5, 4))}
    features["audio"][..., 3] = 7.0                                                     # a constant channel
    for modality, x in features.items():
        (folder / modality).mkdir()
        for k, clip in enumerate(x):
            np.save(folder / modality / f"c{k}.npy", clip.astype("f4"))
    (folder / "clips.csv").write_text("id,split,label\n" + "".join(
        f"c{k},{'train' if k < 18 else 'test'},{'ab'[k % 2]}\n" for k in range(24)))
    return folder, {m: x[:18].astype("f4").astype("f8") for m, x in features.items()}


def train(folder, out, *more):
    """A run of two steps; returns its checkpoint's system."""
    path = pretrain(["--dataset_name", "custom", "--manifest", str(folder / "clips.csv"), *(
        part for m in MODALITIES for part in ("--features", f"{m}={folder / m}")), "--seconds", str(T), "--gpu", "cpu",
        "--batch_size", "9", "--n_epoch", "1", "--n_embeddings", "8", "--log", "none", "--model_save_path",
        str(out / "checkpoint"), "--snapshot_pref", str(out / "run"), "--in_memory", *more], LOCAL)
    return checkpoint.open_file(path).system


def test_the_training_clips_mean_and_deviation_reach_the_checkpoint(own, tmp_path):
    folder, clips = own
    encoder = train(folder, tmp_path).encoder
    for modality, x in clips.items():
        rows = x.reshape(-1, x.shape[-1])
        wanted = rows.std(0)
        wanted[wanted < 1e-6] = 1                           # of a constant channel
        np.testing.assert_allclose(getattr(encoder, f"{modality}_mean"), rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(getattr(encoder, f"{modality}_deviation"), wanted, rtol=1e-5)
        seen = encoder.inputs(modality, torch.from_numpy(x).float())
        np.testing.assert_allclose(seen.numpy(), (x - rows.mean(0)) / wanted, atol=1e-3)
    raw = train(folder, tmp_path / "raw", "--standardize", "none").encoder
    assert torch.equal(raw.inputs("audio", torch.ones(1, T, 16)), torch.ones(1, T, 16))


def test_the_cache_answers_for_the_same_clips_alone(tmp_path, monkeypatch):
    config = Config.for_data({"audio": (16,), "video": (5, 5, 4)}, num_codes=8, seconds=T)
    batch = {"audio": torch.rand(6, T, 16), "video": torch.rand(6, T, 5, 5, 4)}
    clips = {"number": 6, "ids_sha256": "0", "content": {"custom.audio": "a", "custom.video": "b"}}
    first = standardize.cached_statistics(lambda *_: [batch], clips, config, tmp_path)

    def no_pass(*_):
        raise AssertionError("the features are read again")
    again = standardize.cached_statistics(no_pass, clips, config, tmp_path)
    for modality in MODALITIES:
        for one, other in zip(first[modality], again[modality], strict=True):
            assert torch.equal(one, other)
    for other in ({"ids_sha256": "1"}, {"content": {"custom.audio": "A", "custom.video": "b"}}):
        with pytest.raises(AssertionError, match="read again"):
            standardize.cached_statistics(no_pass, clips | other, config, tmp_path)
    next(tmp_path.glob("statistics-*.npz")).write_bytes(b"PK damaged")
    with pytest.raises(AssertionError, match="read again"):
        standardize.cached_statistics(no_pass, clips, config, tmp_path)


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path):
    config = Config.for_data({"audio": (16,), "video": (5, 5, 4)}, num_codes=8, seconds=T)
    batch = {"audio": torch.rand(6, T, 16), "video": torch.rand(6, T, 5, 5, 4)}
    (tmp_path / "file").write_text("")
    found = standardize.cached_statistics(lambda *_: [batch], {"number": 6, "ids_sha256": "0"}, config,
                                          tmp_path / "file" / "cache")
    assert torch.allclose(found["audio"][0], batch["audio"].double().mean((0, 1)))


def test_padded_seconds_do_not_count():
    x, mask = torch.rand(4, T, 16), torch.ones(4, T, dtype=torch.bool)
    x[0, 3:], mask[0, 3:] = 1000, False
    config = types.SimpleNamespace(modalities=("audio",), kind=lambda m: "vector", shape=lambda m: (16,))
    mean, deviation = standardize.channel_statistics(lambda *_: [{"audio": x, "mask": mask}], 4, config)["audio"]
    assert torch.allclose(mean, x[mask].double().mean(0))
    assert torch.allclose(deviation, x[mask].double().std(0, correction=0))


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_the_offset_is_the_norm_of_the_mean_in_deviations(mean):
    rng, sums = np.random.default_rng(0), ChannelSums()
    x = rng.normal(size=(500, 4, 6)) + mean
    for part in x:
        sums.add(part.astype("f4"))
    rows = x.reshape(-1, 6)
    wanted = np.linalg.norm(rows.mean(0)) / np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    assert sums.offset == pytest.approx(wanted, rel=1e-3)


def test_standardized_encoders_are_of_every_system_and_survive_a_round_trip(tmp_path):
    config = Config.for_data({"audio": (16,), "video": (5, 5, 4)}, num_codes=8, seconds=T, standardize="channel")
    system = DCID(config)
    system.encoder.standardize({"audio": (torch.full((16,), 2.0), torch.full((16,), 4.0))})
    other = DCID(config)
    other.load_state_dict(system.state_dict())
    assert torch.equal(other.encoder.inputs("audio", torch.full((1, T, 16), 6.0)), torch.ones(1, T, 16))
