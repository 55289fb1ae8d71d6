"""--padding mask: padded seconds take part in nothing. Whatever lies in them, a padded batch is its clips alone."""

import shutil

import h5py
import numpy as np
import pytest
import torch

import clip_retrieval
import evaluate
from cmg.checkpoints import checkpoint
from cmg.data.archive import read_zip
from cmg.data.clips import Clips
from cmg.data.layout import DATA_PATHS
from cmg.demos import dialled
from cmg.downstream import metrics
from cmg.losses.club import CLUB, BatchedCLUB
from cmg.losses.cross_cpc import CrossCPC
from cmg.models.config import Config
from cmg.models.heads import ClipHead, RetrievalHead, SegmentHead
from cmg.models.masking import first_rows
from cmg.models.random import StepRandom
from cmg.prepare.pack import pack
from cmg.systems.base import FrozenEncoder, to_seconds
from cmg.systems.registry import SYSTEMS
from cmg.training.batches import Resident, Streamed
from cmg.utils.errors import InputError
from tiny import step_for, train

SMALL = dict(video_dim=4, num_codes=11, audio_dim=6, text_dim=9, text_hidden=8, code_dim=16, feed_forward=24,
             num_heads=2, club_hidden=12, dropout=0.0)
ALL = ("audio", "video", "text")
F64 = torch.float64


class Fixed(StepRandom):
    """Draws that are the same for clips alone and for the same clips padded: the last second that may be chosen, the
    first rows, one pattern of kept seconds."""

    def __init__(self, last=True):
        super().__init__(torch.Generator().manual_seed(0))
        self.last = last

    def second(self, num_seconds):
        super().second(num_seconds)
        return num_seconds - 2 if self.last else 1

    def rows(self, num_rows, num_codes):
        return torch.arange(num_codes) % num_rows

    def normal(self, like):
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=like.dtype)

    def kept(self, num_clips, num_seconds, masked):
        pattern = torch.rand(num_clips, 40, generator=torch.Generator().manual_seed(2))
        return (pattern[:, :num_seconds] >= masked).float()


def system_of(name, modalities=ALL, seed=3, **sizes):
    torch.manual_seed(seed)
    kind = SYSTEMS[name]
    return kind(kind.Config.for_data(modalities, padding="mask", **SMALL | sizes)).double().train()


def clips_of(own, modalities=ALL, seed=5, words=7, dtype=F64):
    """A batch of clips of `own` seconds each: list of dicts modality -> (own, ...)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"audio": (6,), "video": (7, 7, 4)}
    return [{m: torch.rand(words, 9, generator=draw, dtype=dtype) if m == "text" else
             torch.rand(seconds, *shapes[m], generator=draw, dtype=dtype) for m in modalities} for seconds in own]


def padded(clips, seconds, seed=0):
    """The clips as one batch of `seconds` seconds, noise in those that they have not, with its mask."""
    draw = torch.Generator().manual_seed(seed)
    batch, own = {}, torch.tensor([len(next(x for m, x in clip.items() if m != "text")) for clip in clips])
    for m in clips[0]:
        if m == "text":
            batch[m] = torch.stack([clip[m] for clip in clips])
        else:
            batch[m] = torch.stack([torch.cat([clip[m], torch.rand(
                seconds - len(clip[m]), *clip[m].shape[1:], generator=draw, dtype=clip[m].dtype)]) for clip in clips])
    batch["mask"] = torch.arange(seconds) < own.unsqueeze(1)
    return batch


def alone(clips):
    """Clips of one length as a batch without padding."""
    return {m: torch.stack([clip[m] for clip in clips]) for m in clips[0]}


def steps(name, batches, epoch, last=True, modalities=ALL, **settings):
    """Some steps of a fresh system; (figures of each, state in the end)."""
    system = system_of(name, modalities)
    trainer = step_for(system, rng=Fixed(last), **settings)
    found = []
    for batch in batches:
        for codebook in system.codebooks.values():
            codebook.unactivated_count[:3] = 300                        # the unused ones among them are due
        report = trainer.step(batch, epoch)
        found.append({key: value.detach().double() for key, value in {
            **report.losses, **report.metrics, **report.likelihoods,
            **{f"norm {group}": norm for group, norm in report.grad_norms.items()}}.items()})
        chosen = {f"{suffix}{m}": x.flatten() for suffix, of in system.assigned_codes(report.outputs).items()
                  for m, x in of.items()}
        found[-1] |= {f"codes {name}": x for name, x in chosen.items()}
    return found, system.state_dict()


def assert_same(ours, theirs):
    for number, (one, other) in enumerate(zip(ours[0], theirs[0], strict=True)):
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-7, atol=1e-9,
                                       msg=lambda text, at=(number, key): f"{at}: {text}")
    for key, value in theirs[1].items():
        torch.testing.assert_close(ours[1][key], value, rtol=1e-7, atol=1e-8, msg=lambda text, at=key: f"{at}: {text}")


RUNS = {"dcid": ("dcid", {}), "dcid released": ("dcid", {"mi_forward": "released", "mm_ema": "attention"}),
        "h_dcid": ("h_dcid", {"weights": (("contrast", 0.5),)}), "fcid": ("fcid", {}),
        "micu": ("micu", {"encoder_passes": "released"}),
        "codaar": ("codaar", {})}


@pytest.mark.parametrize("own, seconds, clips", [(4, 10, 3), (3, 4, 2)])
@pytest.mark.parametrize("run", RUNS)
def test_a_padded_batch_equals_its_clips_alone(run, own, seconds, clips):
    """Three steps, the last with one clip: losses, gradient norms, metrics, codes, codebooks, weights."""
    name, settings = RUNS[run]
    made = [clips_of([own] * n, seed=seed) for seed, n in ((5, clips), (6, clips), (7, 1))]
    ours = steps(name, [padded(of, seconds) for of in made], 3, **settings)
    assert_same(ours, steps(name, [alone(of) for of in made], 3, **settings))


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "text"), ("video", "text")])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_pair_of_modalities(name, modalities):
    made = [clips_of([5, 5], modalities, seed) for seed in (5, 6)]
    ours = steps(name, [padded(of, 9) for of in made], 3, False, modalities)
    assert_same(ours, steps(name, [alone(of) for of in made], 3, False, modalities))


@pytest.mark.parametrize("run", RUNS)
def test_what_lies_in_padded_seconds_and_how_many_there_are_changes_nothing(run):
    """Clips of all lengths, one and two seconds among them."""
    name, settings = RUNS[run]
    made = [clips_of(own, seed=seed) for seed, own in ((5, [1, 4, 7, 10, 2]), (6, [3, 9]), (7, [2]))]
    results = [steps(name, [padded(of, max(10, seconds), seed) for of in made], 3, False, **settings)
               for seconds, seed in ((10, 0), (10, 1), (16, 2))]
    assert all(torch.isfinite(value).all() for figures in results[0][0] for value in figures.values())
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("name", SYSTEMS)
def test_codes_of_mixed_lengths_are_those_of_each_clip_alone(name):
    system = system_of(name)
    encoder = FrozenEncoder(system.encoder, type(system))
    for codes in encoder.codebooks:
        codes.normal_()
    clips = clips_of([1, 4, 10, 7])
    batch = padded(clips, 12)
    for m in ("audio", "video"):
        codes, means = encoder.embed(m, batch[m], batch["mask"]), encoder.embed_clips(m, batch[m], batch["mask"])
        for k, clip in enumerate(clips):
            single, own = encoder.embed(m, clip[m].unsqueeze(0)), len(clip[m])
            assert torch.equal(codes.indices[k, :own], single.indices[0])
            torch.testing.assert_close(codes.vectors[k, :own], single.vectors[0])
            torch.testing.assert_close(means[k], encoder.embed_clips(m, clip[m].unsqueeze(0))[0])


@pytest.mark.parametrize("name", ["dcid", "h_dcid", "micu", "codaar"])
def test_losses_of_mixed_lengths_are_the_clips_own_weighted_by_their_seconds(name):
    """Reconstruction, commitment and the codebook's counts, in evaluation mode, clip by clip in a loop."""
    system = system_of(name).eval()
    own = [1, 4, 10, 7]
    clips = clips_of(own)

    def losses_of(batch):
        with torch.no_grad():
            outputs = system.encode(system.features(batch), 0)
            return {key: value for _, key, value in system.losses(outputs, Fixed()).named()
                    if key.endswith(("recon", "commit"))}
    system.options = type(system).Options(without=("cpc",))
    whole = losses_of(padded(clips, 12))
    singles = [losses_of(alone([clip])) for clip in clips]
    for key, value in whole.items():
        mean = sum(seconds * of[key] for seconds, of in zip(own, singles)) / sum(own)
        torch.testing.assert_close(value, mean, msg=lambda text, at=key: f"{at}: {text}")


def test_cross_cpc_of_mixed_lengths_equals_a_loop():
    torch.manual_seed(0)
    cpc = CrossCPC(("audio", "video"), 5).double()
    own, seconds, second = [2, 3, 6, 8, 1], 8, 4
    z = {m: torch.randn(len(own), seconds, 5, dtype=F64) for m in ("audio", "video")}
    found = cpc(z, second, torch.arange(seconds) < torch.tensor(own).unsqueeze(1))
    last = {i: 1 + (second - 1) * (n - 2) // (seconds - 2) for i, n in enumerate(own) if n >= 3}
    loss = 0
    for source in z:
        predicted = {i: cpc.predictor[source](cpc.lstm[source](z[source][i:i + 1, :t + 1])[0][0, -1])
                     for i, t in last.items()}
        for target in z:
            futures = {i: z[target][i, t + 1] for i, t in last.items()}
            costs = [torch.logsumexp(torch.stack([futures[i] @ predicted[k] for k in last]), 0)
                     - futures[i] @ predicted[i] for i in last]
            loss = loss + sum(costs) / len(last) * (0.1 if source == target else 1)
    torch.testing.assert_close(found.loss, loss)


def test_club_of_mixed_lengths_equals_a_loop():
    torch.manual_seed(0)
    club = CLUB(6, 4, 5).double()
    own, seconds = [2, 5, 1, 4], 6
    codes, specific = torch.randn(1, 4, seconds, 6, dtype=F64), torch.randn(1, 4, seconds, 4, dtype=F64)
    order = torch.tensor([[2, 0, 1, 3]])
    mask = torch.arange(seconds) < torch.tensor(own).unsqueeze(1)
    found = BatchedCLUB([club]).upper_bounds(codes, specific, order, mask)[0]
    mean, log_variance = club.mean(codes[0]), club.log_variance(codes[0])
    bounds = []
    for i, n in enumerate(own):
        other, both = int(order[0, i]), min(n, own[order[0, i]])
        variance = log_variance[i, :n].mean(0).exp()
        matched = ((mean[i, :n] - specific[0, i, :n]) ** 2).mean(0) / variance
        shuffled = ((mean[i, :both] - specific[0, other, :both]) ** 2).mean(0) / variance
        bounds.append((shuffled - matched).sum() / 2)
    torch.testing.assert_close(found, sum(bounds) / len(bounds))


def test_tokens_are_those_of_the_clip_alone():
    own, text = torch.tensor([1, 4, 10]), torch.arange(10.0).expand(3, 10).unsqueeze(2)
    found = to_seconds({"audio": torch.zeros(3, 10, 2), "text": text}, Config(), torch.arange(10) < own.unsqueeze(1))
    for row, n in zip(found["text"][..., 0].tolist(), own.tolist()):
        assert row[:n] == [j * 10 // n for j in range(n)]


def test_codes_start_from_real_seconds():
    mask = torch.tensor([True, False, True, False, False, True])
    for wanted in (2, 3, 8):
        rows = first_rows(StepRandom(torch.Generator().manual_seed(0)), 6, wanted, mask)
        assert set(rows.tolist()) <= {0, 2, 5} and len(rows) == wanted
        assert len(set(rows[:3].tolist())) == min(wanted, 3)


# ----------------------------------------------------------------------------------------------------------- the heads
@pytest.mark.parametrize("kind", [ClipHead, SegmentHead, RetrievalHead])
def test_a_head_sees_real_seconds_only(kind):
    torch.manual_seed(0)
    own, seconds = 4, 9
    head = (kind(6, 5) if kind is RetrievalHead else kind(6, 3)).double()
    codes = torch.randn(2, seconds, 6, dtype=F64) + 5
    mask = torch.arange(seconds).expand(2, seconds) < own
    short = codes[:, :own]
    targets = {ClipHead: torch.tensor([0, 2]), RetrievalHead: torch.randn(2, own, 5, dtype=F64),
               SegmentHead: torch.randint(2, (2, seconds, 4)).double()}[kind]
    cut = targets[:, :own] if kind is SegmentHead else targets
    torch.testing.assert_close(head.loss(targets, codes, mask=mask), head.loss(cut, short))
    ours = head(codes, mask=mask)
    torch.testing.assert_close(ours[:, :own] if kind is SegmentHead else ours, head(short))


# -------------------------------------------------------------------------------------------- from the data to results
@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A demo tree whose AVVP, UCF and pretraining clips have any length up to their own."""
    root = tmp_path_factory.mktemp("varied") / "data"
    dialled.build(root, DATA_PATHS, clips=80, progress=False, seconds=6)
    draw = np.random.default_rng(0)
    for dotted in ("vggsound.video", "avvp.video", "avvp.audio"):
        for path in sorted((root / DATA_PATHS[dotted]).glob("*.zip")):
            dialled.write_zip(path.parent, path.stem, read_zip(path)[:draw.integers(2, 7)])
    return root


def test_loaders_give_the_seconds_that_all_modalities_have(varied):
    place = {m: varied / DATA_PATHS[f"vggsound.{m}"] for m in ("audio", "video")}
    ids = sorted(path.stem for path in place["video"].glob("*.zip"))
    own = [min(6, *(len(read_zip(place[m] / f"{name}.zip")) for m in place)) for name in ids]
    data, repeated = (Clips("x", tuple(place), ids, place, seconds=6, padding=padding)
                      for padding in ("mask", "repeat"))
    assert len(set(own)) > 3 and data.real_seconds.tolist() == own and "mask" not in repeated[0]
    assert all(data[i]["mask"].tolist() == [t < own[i] for t in range(6)] for i in range(len(ids)))
    order = torch.randperm(len(ids))
    device = torch.device("cpu")
    streamed = list(Streamed(data, tuple(place), device, torch.float32, 0)(order, 32))
    resident = list(Resident.of(data, tuple(place), device, torch.float32, torch.float32)(order, 32))
    for one, other in zip(streamed, resident, strict=True):
        assert one.keys() == other.keys() == {"audio", "video", "mask"}
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert "mask" not in next(iter(Streamed(repeated, tuple(place), device, torch.float32, 0)(order, 32)))


def test_packs_know_how_long_clips_are_and_old_ones_are_refused(varied, tmp_path):
    source, out = varied / DATA_PATHS["avvp.audio"], tmp_path / "audio.h5"
    pack(source, out, "audio", seconds=6)
    ids = sorted(path.stem for path in source.glob("*.zip"))
    data, packed = (Clips("x", ("audio",), ids, {"audio": path}, seconds=6, padding="mask") for path in (source, out))
    assert np.array_equal(data.real_seconds, packed.real_seconds)
    assert all(np.array_equal(data[i]["mask"], packed[i]["mask"]) for i in range(len(ids)))
    old = shutil.copyfile(out, tmp_path / "old.h5")
    with h5py.File(old, "r+") as file:
        del file["seconds"]
    assert len(Clips("x", ("audio",), ids, {"audio": old}, seconds=6)) == len(ids)
    with pytest.raises(InputError, match="pack of an earlier version.*--padding mask"):
        Clips("x", ("audio",), ids, {"audio": old}, seconds=6, padding="mask")


@pytest.mark.parametrize("name, precision", [(name, "float32" if name == "dcid" else "bf16") for name in SYSTEMS])
def test_a_masked_run_trains_resumes_and_is_kept_in_the_file(varied, small_model, tmp_path, name, precision):
    more = ["--seconds", 6, "--padding", "mask", "--system", name, "--precision", precision]
    assert train(varied, tmp_path / "whole", *more, "--n_epoch", 1) == 0
    if name == "dcid":
        train(varied, tmp_path / "broken", *more, "--n_epoch", 1, "--max_steps", 4)
        train(varied, tmp_path / "broken", *more, "--n_epoch", 1, "--resume", "auto")
    folders = [tmp_path / "whole"] + [tmp_path / "broken"] * (name == "dcid")
    files = [max((folder / "checkpoints").glob("*.pt"), key=lambda path: "step" not in path.name) for folder in folders]
    loaded = [checkpoint.open_file(path) for path in files]
    assert loaded[0].system.config.padding == "mask" and loaded[0].contents["run"]["options"]["padding"] == "mask"
    assert all(torch.equal(value, loaded[-1].system.state_dict()[key])
               for key, value in loaded[0].system.state_dict().items())
    if name == "dcid":
        with pytest.raises(InputError, match="pretrained with --padding mask, not repeat"):
            train(varied, tmp_path / "other", "--seconds", 6, "--resume", files[0])


def test_every_task_runs_masked(varied, small_model, tmp_path):
    assert train(varied, tmp_path, "--seconds", 6, "--padding", "mask", "--max_steps", 1) == 0
    path = next((tmp_path / "checkpoints").glob("*.pt"))
    common = ["--data_root", str(varied), "--gpu", "cpu", "--workers", "0", "--no_control",
              "--snapshot_pref", str(tmp_path / "results")]
    evaluate.main([*common, "--n_epoch", "1", str(path)])
    clip_retrieval.main([*common, "--checkpoint", str(path)])
    found = np.load(tmp_path / "results" / "predictions" / "avvp-video-audio.npz")
    own = [min(6, len(read_zip(varied / DATA_PATHS["avvp.audio"] / f"{name[:11]}.zip"))) for name in found["ids"]]
    assert all(not labels[n:].any() and labels[:n].any(1).all() and np.isneginf(cross[n:]).all()
               for n, labels, cross in zip(own, found["labels"], found["cross"]))


def test_padded_seconds_are_neither_right_nor_wrong():
    """Precision, recall and F1 of masked sets are those of the seconds alone, pooled and batch by batch."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, 5, 4), torch.randint(2, (7, 5, 4)).float()
    own = torch.tensor([1, 5, 3, 2, 4, 5, 1])
    mask = torch.arange(5) < own.unsqueeze(1)
    nothing = torch.where(mask.unsqueeze(2), logits, -9.0), torch.where(mask.unsqueeze(2), labels, 0.0)
    for batch in (None, 3):
        found, expected = metrics.segment_scores(logits, labels, batch, mask), metrics.segment_scores(*nothing, batch)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    flat = labels[mask].unsqueeze(0)
    assert metrics.segment_chance(labels, None, mask) == pytest.approx(metrics.segment_chance(flat))


@pytest.mark.parametrize("seconds", [4, 30])
def test_avs_takes_an_encoder_of_any_length(seconds):
    from query import Adapter, Query
    system = system_of("dcid", seconds=seconds).float()
    encoder = FrozenEncoder(system.encoder, type(system))
    query = Query(encoder, Adapter("tied"), torch.randn(3, 10, 9)).train()
    batch = {"audio": torch.randn(2, 5, 6), "category": torch.tensor([0, 1])}
    assert all(query(m, batch).shape == (2, 5, encoder.head_dim) for m in ("audio", "text"))
