"""Properties of CoDAAR: what its table promises, which gradients flow, what evaluation leaves alone, its options."""


import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import OWN_OPTIMIZER
from cmg.cli import parse_evaluate, parse_pretrain
from cmg.data.sets.vggsound import read_list
from cmg.downstream import encode, metrics
from cmg.downstream import toc as toc_variants
from cmg.downstream.settings import TocSettings
from cmg.downstream.tasks import TASKS
from cmg.models import toc
from cmg.models.heads import DeepSegmentHead
from cmg.models.random import StepRandom
from cmg.programs.downstream import head_settings
from cmg.systems.base import FrozenEncoder
from cmg.systems.codaar import CoDAAR
from cmg.systems.settings import SEGMENTS, CoDAARConfig, CoDAAROptions
from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import refused
from tiny import checkpoints, step_for, train

F64 = torch.float64
ALL = ("audio", "video", "text")
SETS = [ALL, ("audio", "video"), ("audio", "text"), ("video", "text")]
TINY = {"video_dim": 4, "num_codes": 48, "code_dim": 16, "feed_forward": 24, "text_hidden": 8, "dropout": 0.0}
ORDER = ("text", "audio", "video")


def batch_of(modalities, clips=5, seconds=10, dtype=F64):
    shapes = {"audio": (128,), "video": (7, 7, 4), "text": (768,)}
    return {m: torch.rand(clips, seconds, *shapes[m], dtype=dtype) for m in modalities}


def trainer_of(modalities=ALL, seed=0, sizes=TINY, **settings):
    torch.manual_seed(seed)
    return step_for(CoDAAR(CoDAARConfig.for_data(modalities, **sizes)).double().train(), seed=seed, **settings)


def means_of(table):
    """modality -> weight / count of its segment."""
    return {m: weight / count.unsqueeze(1)
            for m, weight, count in zip(table.segments, table.split(table.ema_weight), table.counts)}


def buffers_of(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("modalities", SETS)
def test_the_embedding_is_the_cascade_of_the_means(modalities):
    trainer = trainer_of(modalities)
    for _ in range(3):
        trainer.step(batch_of(modalities), 0)
    table = trainer.system.encoder.table
    mean, n = means_of(table), len(modalities)
    expected = {}
    for m in [m for m in ORDER if m in modalities]:
        expected[m] = sum((mean | expected).values()) / n
    for m, segment in zip(table.segments, table.split(table.embedding)):
        assert torch.allclose(segment, expected[m], rtol=1e-12)
    assert torch.equal(table.ema_count, sum(table.counts))
    if modalities == ALL:           # in closed form
        v, a, t = (mean[m] for m in SEGMENTS)
        closed = torch.cat([(16 * v + 7 * a + 4 * t) / 27, (12 * v + 12 * a + 3 * t) / 27, (v + a + t) / 3], 1)
        assert torch.allclose(table.embedding, closed, rtol=1e-12)
    if modalities == ("audio", "video"):
        closed = torch.cat([(3 * mean["video"] + mean["audio"]) / 4, (mean["video"] + mean["audio"]) / 2], 1)
        assert torch.allclose(table.embedding, closed, rtol=1e-12)


def test_a_permutation_of_rows_changes_no_loss():
    batch, order = batch_of(ALL), torch.randperm(48, generator=torch.Generator().manual_seed(1))
    figures = []
    for permuted in (False, True):
        trainer = trainer_of(sizes=TINY)
        trainer.step(batch, 0)
        table = trainer.system.encoder.table
        if permuted:
            for buffer in table.buffers():
                buffer.copy_(buffer[order])
        figures.append([trainer.step(batch, 0).losses for _ in range(2)])
    for ours, theirs in zip(*figures):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)


def test_audios_reconstruction_reaches_the_features_of_every_modality():
    trainer = trainer_of()
    system = trainer.system
    trainer.step(batch_of(ALL), 0)
    output = system.encode(system.features(batch_of(ALL)), 0)
    loss = system.losses(output, trainer.rng).terms["recon"]["audio"]
    for gradient in torch.autograd.grad(loss, [output.semantic[m] for m in ALL]):
        assert gradient.abs().max() > 0


def test_training_moves_buffers_and_evaluation_moves_none():
    trainer = trainer_of()
    batch = batch_of(ALL)
    trainer.step(batch, 0)
    system = trainer.system.eval()
    before = buffers_of(system)
    report = trainer.evaluate(batch, 0)
    assert "segment_alignment" not in report.metrics and torch.isfinite(report.losses["total"])
    assert all(torch.equal(before[name], buffer) for name, buffer in system.named_buffers())
    trainer.system.train()
    trainer.step(batch, 0)
    moved = {name for name, buffer in system.named_buffers() if not torch.equal(before[name], buffer)}
    assert {"encoder.table.embedding", "encoder.specific.video.norm1.running_mean"} <= moved


def test_downstream_leaves_the_encoder_as_it_is_to_the_bit():
    """Also in the training mode of the released protocol; heads get rows, without the convolutions being run."""
    system = trainer_of().system
    before = {name: value.clone() for name, value in system.encoder.state_dict().items()}
    encoder = FrozenEncoder(system.encoder, CoDAAR)
    encoder.train()
    system.encoder.specific["video"].forward = None                # calling it would fail
    vectors = {m: encoder.embed(m, x) for m, x in batch_of(ALL).items()}
    table = system.encoder.table.embedding
    for m in ALL:
        assert vectors[m].vectors.shape == (5, 10, 48) and encoder.head_dim == 48
        assert torch.equal(vectors[m].vectors, table[vectors[m].indices])
    assert [tuple(codes.shape) for codes in encoder.codebooks] == [(48, 16)] * 3
    after = encoder.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    part = encode.EncodedSplit.of(vectors["audio"].vectors, vectors["audio"].indices, torch.ones(5, 10, 3))
    assert torch.equal(part.table[part.rows], vectors["audio"].vectors)


def test_the_gradient_passes_straight_through_the_own_segment():
    system = trainer_of().system
    x = torch.rand(2, 10, 128, dtype=F64, requires_grad=True)
    codes = system.encoder.embed_inputs("audio", x)
    torch.testing.assert_close(codes.vectors, system.encoder.table.embedding[codes.indices])
    assert torch.autograd.grad(codes.vectors[..., 16:32].square().sum(), x, retain_graph=True)[0].abs().max() > 0
    assert torch.autograd.grad(codes.vectors[..., :16].sum(), x)[0].abs().max() == 0       # video's segment


def test_identical_features_stay_identical():
    """Equal means of all modalities, equal segments, and every modality picks the same row."""
    system = trainer_of().system
    table, rng = system.encoder.table, StepRandom(torch.Generator().manual_seed(0))
    x = torch.randn(6, 10, 16, dtype=F64)
    z = dict.fromkeys(ALL, x)
    table.init_from_data(z, ORDER, rng)
    for _ in range(5):
        indices = table(z).indices
        table.update_ema(z, indices, ORDER)
        assert torch.equal(indices["video"], indices["audio"]) and torch.equal(indices["video"], indices["text"])
    mean, (video, audio, text) = means_of(table), table.split(table.embedding)
    chosen = indices["video"].unique()
    for other in (audio, text, mean["video"], mean["audio"], mean["text"]):
        assert torch.allclose(video[chosen], other[chosen], rtol=1e-10)


def test_the_data_start_is_one_second_a_row():
    system = trainer_of().system
    table, rng = system.encoder.table, StepRandom(torch.Generator().manual_seed(0))
    z = {m: torch.randn(6, 10, 16, dtype=F64) for m in ALL}
    seconds = torch.cat([z[m].flatten(0, 1) for m in SEGMENTS], 1)
    table.init_from_data(z, ORDER, rng)                               # 60 seconds, 48 rows
    assert all(int((seconds == row).all(1).sum()) == 1 for row in table.ema_weight)
    assert all((count == 1).all() for count in table.counts) and (table.unactivated_count == -1).all()
    few = {m: x[:2] for m, x in z.items()}                          # 20 seconds: repeated, with noise
    table.init_from_data(few, ORDER, rng)
    distance = torch.cdist(table.ema_weight, seconds)
    assert 0 < distance.amin(1).max() < 0.02 and len(table.ema_weight.unique(dim=0)) == 48


def test_released_start_leaves_the_table_to_the_first_update():
    table = trainer_of(codebook_init="released").system.encoder.table
    assert table.embedding.abs().max() <= 1 / 48 and torch.equal(table.embedding, table.ema_weight)
    assert not any(count.any() for count in table.counts)


@pytest.mark.parametrize("mode", ["full", "released"])
def test_a_reset_row_survives_the_next_update_only_in_full(mode):
    trainer = trainer_of()
    trainer.step(batch_of(ALL), 0)
    table, rng = trainer.system.encoder.table, trainer.rng
    z = {m: torch.randn(5, 10, 16, dtype=F64) for m in ALL}
    indices = table(z).indices
    used = torch.zeros(48, dtype=torch.bool)
    for picked in indices.values():
        used[picked.flatten()] = True
    due = ~used
    assert due.any()
    table.unactivated_count[due] = 300
    table.expire_codes(indices, ORDER, rng, mode)
    assert (table.unactivated_count == 0).all()
    fresh = table.embedding[due].clone()
    active = table.embedding[used]
    assert torch.cdist(fresh, active).amin(1).max() < 0.1           # the whole row, all segments, of an active one
    table.update_ema(z, indices, ORDER)
    is_kept = torch.allclose(table.embedding[due], fresh, rtol=1e-3)
    assert is_kept == (mode == "full")
    assert torch.equal(table.ema_count, sum(table.counts))


def test_the_cascades_order_is_an_option():
    outcomes = {}
    for order in (ORDER, ("video", "audio", "text")):
        trainer = trainer_of(cascade_order=order)
        trainer.step(batch_of(ALL), 0)
        table = trainer.system.encoder.table
        outcomes[order] = table.split(table.embedding), means_of(table)
    (video, _, text), mean = outcomes["video", "audio", "text"]
    torch.testing.assert_close(video, sum(mean.values()) / 3)       # the first in order is the plain mean
    (_, _, text), mean = outcomes[ORDER]
    torch.testing.assert_close(text, sum(mean.values()) / 3)
    refused("--cascade_order video video text", CoDAAROptions, cascade_order=("video", "video", "text"))


@pytest.mark.parametrize("without, share", [((), 0.6), (("dta",), 1.0)])
def test_components_can_be_left_out(without, share):
    trainer = trainer_of(without=(*without, "csa"))
    trainer.step(batch_of(ALL), 0)
    table = trainer.system.encoder.table
    torch.testing.assert_close(torch.cat(list(means_of(table).values()), 1), table.embedding)
    before, z = table.ema_weight.clone(), {m: torch.randn(1, 1, 16, dtype=F64) for m in ALL}
    indices = {m: torch.full((1, 1), 7) for m in ALL}
    table.update_ema(z, indices, ORDER, "dta" not in without, False)
    moved = (table.ema_weight - 0.99 * before)[7, :16] / 0.01
    rest = (1 - share) / 2
    torch.testing.assert_close(moved, share * z["video"][0, 0] + rest * (z["audio"] + z["text"])[0, 0])


@pytest.mark.parametrize("modalities, dtype", [(ALL, torch.float64), (("video", "text"), torch.float32)])
def test_a_file_comes_back_with_its_buffers(modalities, dtype, tmp_path):
    trainer = trainer_of(modalities)
    trainer.step(batch_of(modalities), 0)
    path = tmp_path / "CoDAAR-model-0.pt"
    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 1, {}, dtype)
    assert OWN_OPTIMIZER not in contents and rules.EXTRA_SECTION not in contents     # all are published
    checkpoint.save(path, contents)
    loaded = checkpoint.open_file(path, torch.float64)
    assert loaded.complete and loaded.system.config == trainer.system.config
    for name, value in trainer.system.state_dict().items():
        found = loaded.system.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found, value.to(dtype).to(value.dtype)), name
    if modalities == ("video", "text"):
        assert int(loaded.system.encoder.specific["video"].norm1.num_batches_tracked) == 1


def test_macro_precision_leaves_out_what_is_never_predicted():
    scores = torch.eye(4)[[0, 0, 1, 1, 1, 3]]
    targets = torch.tensor([0, 2, 1, 1, 2, 0])                     # class 2 is never predicted
    assert float(metrics.macro_precision(scores, targets)) == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    batches = (4 * 100 * (1 / 2 + 1) / 2 + 2 * 0) / 6
    assert float(metrics.macro_precision(scores, targets, 4)) == pytest.approx(batches)
    assert metrics.macro_precision(torch.stack([scores, -scores]), targets).shape == (2,)


def test_the_preset_gives_each_task_its_published_numbers():
    opts = parse_evaluate(["x.pt", "--preset", "codaar"], LOCAL)
    found = {name: head_settings(opts, TASKS[name]) for name in ("ave", "avvp", "ave_avvp", "ucf_vggsound")}
    assert [(s.n_epoch, s.batch_size, s.lr, s.segment_layers) for s in found.values()] == [
        (30, 256, 2.5e-4, 2), (50, 64, 4e-4, 4), (30, 80, 4e-4, 2), (30, 80, 4e-4, 2)]
    flags = parse_evaluate(["x.pt", "--preset", "codaar", "--lr", "4e-4", "--segment_layers", "2"], LOCAL)
    assert head_settings(flags, TASKS["ave"]).lr == 4e-4 and head_settings(flags, TASKS["ave"]).batch_size == 256
    assert head_settings(flags, TASKS["avvp"]).segment_layers == 2
    pretraining = parse_pretrain(["--preset", "codaar"], LOCAL)
    assert (pretraining.system, pretraining.n_embeddings, pretraining.n_epoch) == ("codaar", 800, 6)
    assert pretraining.data_path("vggsound.text").name == "prompts_pieces.h5"
    plain = parse_pretrain([], LOCAL)
    assert plain.n_embeddings == 400 and plain.data_path("vggsound.text").name == "prompts.h5"


def test_toc_selects_from_every_segment():
    """As from the levels of H-DCID; there are no published numbers, and asking for them says so."""
    codebooks = trainer_of().system.encoder.codebooks
    channels = toc.head_channels(codebooks, toc.Selection(4, 1, 1))
    assert len(channels) == 12 and all(int(((channels // 16) == n).sum()) == 4 for n in range(3))
    asked = TocSettings(toc_preset=("released",))
    with pytest.raises(InputError, match="no published setting for ave"):
        toc_variants.variants(asked, "ave", [("audio", "video")], 256, CoDAAR.TOC_RELEASED)


@pytest.mark.parametrize("settings", [{"bf16": True}, {"recompute": True}])
def test_cheaper_steps_learn_and_move_the_batch_statistics_once(settings):
    torch.manual_seed(0)
    trainer = step_for(CoDAAR(CoDAARConfig.for_data(ALL, **TINY)).train(), **settings)
    batch = batch_of(ALL, dtype=torch.float32)
    losses = [float(trainer.step(batch, 0).losses["total"].detach()) for _ in range(6)]
    assert losses[-1] < losses[0]
    norm = trainer.system.encoder.specific["video"].norm2
    assert int(norm.num_batches_tracked) == 6 and norm.running_var.dtype == torch.float32


def test_a_head_of_four_layers_takes_a_table_of_rows():
    head = DeepSegmentHead(48, 5)
    table, rows = torch.randn(7, 48), torch.randint(7, (3, 10))
    torch.testing.assert_close(head(table, rows), head(table[rows]))
    assert head(table, rows).shape == (3, 10, 6)


@pytest.mark.parametrize("file, number", [("vggsound-avel40k.csv", 40_801), ("vggsound-avel90k-new.csv", 87_323)])
def test_the_published_lists(annotations, file, number):
    ids, categories = read_list(annotations / "released" / "vggsound40k" / file)
    assert len(ids) == len(set(ids)) == number and len(set(categories)) == 141


@pytest.mark.parametrize("name", ["AVT_40k", "AV_90k", "AT_40k", "VT_90k"])
def test_a_set_of_pretraining_has_a_list_and_modalities(name):
    opts = parse_pretrain(["--system", "codaar", "--dataset_name", f"vggsound_{name}"], LOCAL)
    assert "".join(m[0].upper() for m in opts.modalities) == name[:-4]


# last: `small_model` changes every Config that is made after it in this file
def test_a_run_saves_under_its_modalities_and_goes_on(demo_data, tmp_path, small_model):
    for letters, more in (("AVT", ()), ("AV", ("--dataset_name", "vggsound_AV_40k"))):
        folder = tmp_path / letters
        assert train(demo_data, folder, "--system", "codaar", *more, "--max_steps", 13) == 0
        assert checkpoints(folder)[0] == f"CoDAAR-model-{letters}-0.pt"
        assert train(demo_data, folder, "--system", "codaar", *more, "--resume", "auto") == 0
        found = torch.load(folder / "checkpoints" / f"CoDAAR-model-{letters}-1.pt", weights_only=True)
        assert found["total_step"] == 20 and found["run"]["options"]["codebook_init"] == "data"
