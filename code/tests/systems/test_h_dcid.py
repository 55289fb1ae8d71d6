"""H-DCID: published names and sizes, the warm start, six passes, files with three sections, training after a save."""


import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.cli import parse_pretrain
from cmg.models.config import Config
from cmg.models.random import StepRandom
from cmg.programs import pretrain
from cmg.systems.h_dcid import HDCID
from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import refused
from tiny import step_for

MODALITIES = ("audio", "video", "text")
TINY = {"video_dim": 4, "num_codes": 24, "code_dim": 16, "feed_forward": 24,
        "club_hidden": 8, "text_hidden": 4, "text_dim": 12, "audio_dim": 10}
SHAPES = dict(Config.for_data(MODALITIES, **TINY).shapes)
RELEASED = {"codebook_init": "released", "code_reset": "released", "mi_forward": "released"}


def batch_of(clips=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"audio": (10,), "video": (7, 7, 4), "text": (12,)}
    return {m: torch.rand(clips, 10, *shapes[m], generator=generator) for m in MODALITIES}


def trainer_of(seed=0, dropout=0.1, **settings):
    torch.manual_seed(seed)
    return step_for(HDCID(Config.for_data(MODALITIES, dropout=dropout, **TINY)).train(), seed=seed, **settings)


def second_level(model):
    """Name -> copy of every parameter of level 2: encoders and the networks of its objective."""
    return {name: p.detach().clone() for name, p in model.named_parameters()
            if name.startswith(("encoder.levels.1.", "objectives.1."))}


def buffers(codebook):
    return {name: value.clone() for name, value in codebook.named_buffers()}


def save(trainer, path, epoch=3, **run):
    checkpoint.save(path, checkpoint.pack(trainer.system, trainer.optimizers, {}, epoch, 7, run))
    return path


# ------------------------------------------------------------------------------------------------ the warm start
def test_released_warm_start_moves_the_second_codebook_and_no_parameter():
    trainer = trainer_of(**RELEASED)
    before, codes = second_level(trainer.system), buffers(trainer.system.encoder.levels[1].codebook)
    trainer.step(batch_of(), 2)
    assert all(torch.equal(before[name], value) for name, value in second_level(trainer.system).items())
    assert not torch.equal(codes["embedding"], trainer.system.encoder.levels[1].codebook.embedding)
    trainer.step(batch_of(), 3)
    moved = {name for name, value in second_level(trainer.system).items() if not torch.equal(before[name], value)}
    assert moved == set(before)


def test_total_is_the_first_level_plus_three_tenths_of_the_second():
    trainer = trainer_of()
    for epoch in (2, 3):
        losses = {name: float(value.detach()) for name, value in trainer.step(batch_of(), epoch).losses.items()}
        total = losses.pop("total")
        first = sum(value for name, value in losses.items() if not name.endswith("_2"))
        second = sum(value for name, value in losses.items() if name.endswith("_2"))
        assert total == pytest.approx(first + (0.3 * second if epoch == 3 else 0), rel=1e-5)
        assert losses["cmcm"] == 0 and (epoch == 2 or losses["cmcm_2"] == 0)


# ------------------------------------------------------------------------------------------------ passes of a step
@pytest.mark.parametrize("mi_forward, unused", [("released", 5), ("once", 0)])
def test_one_step_counts_its_passes(mi_forward, unused):
    trainer = trainer_of(**RELEASED | {"mi_forward": mi_forward})
    report = trainer.step(batch_of(), 3)
    for level, output in zip(trainer.system.encoder.levels, report.outputs):
        count = level.codebook.unactivated_count
        used = torch.cat([i.flatten() for i in output.quantized.indices.values()]).unique()
        assert (count[used] == 0).all() and count.max() == unused
        assert set(count.tolist()) <= set(range(unused + 1))
        assert (count == unused).sum() > 0 and len(used) < len(count)


# ------------------------------------------------------------------------------------------------ gradients
def test_second_level_losses_reach_the_first_levels_specific_encoders_and_the_lstm():
    trainer = trainer_of()
    trainer.step(batch_of(), 3)
    model = trainer.system.eval()
    outputs = model.encoder(model.encoder.features(batch_of()))

    terms = model.objectives[1](outputs[1], model.objectives[1].reconstruct(outputs[1]), trainer.rng, with_club=True,
                                with_cpc=True).terms
    wanted = [*model.encoder.levels[0].specific.parameters(), *model.encoder.text_lstm.parameters()]
    assert min(float(g.norm()) for g in torch.autograd.grad(sum(terms["recon"].values()), wanted)) > 0


# ------------------------------------------------------------------------------------------------ files
def test_frozen_encoder_gives_both_levels_codes(tmp_path):
    trainer = trainer_of()
    trainer.step(batch_of(), 3)
    encoder = checkpoint.load_encoder(save(trainer, tmp_path / "h.pt"))
    assert (encoder.head_dim, encoder.epoch, len(encoder.codebooks)) == (32, 3, 2)
    # In float64 no two codes are equally near but for rounding, which differs between one modality and all together.
    batch = {m: x.double() for m, x in batch_of().items()}
    system, encoder = trainer.system.eval().double(), encoder.double()
    outputs = system.encoder(system.encoder.features(batch))
    for m in MODALITIES:
        codes = encoder.embed(m, batch[m])
        assert codes.vectors.shape == (4, 10, 32) and codes.indices.shape == (4, 10, 2)
        for number, output in enumerate(outputs):
            assert torch.equal(codes.indices[..., number], output.quantized.indices[m])
            part = codes.vectors[..., 16 * number:16 * (number + 1)]
            torch.testing.assert_close(part, encoder.codebooks[number][codes.indices[..., number]])


def test_published_files_of_three_sections_load_and_cannot_be_resumed(tmp_path):
    trainer = trainer_of()
    trainer.step(batch_of(), 3)
    whole = checkpoint.pack(trainer.system, trainer.optimizers, {}, 3, 7, {}, torch.float64)
    three = {key: whole[key] for key in (rules.ENCODER, rules.LSTM, "epoch")}
    path = tmp_path / "NoCode-warmstart3-MLVQ-AVT-deep2-model-3.pt"
    checkpoint.save(path, three)
    checkpoint.save(tmp_path / "whole.pt", whole)
    small, full = checkpoint.load_encoder(path), checkpoint.load_encoder(tmp_path / "whole.pt")
    assert small.epoch == 3 and small.system is HDCID
    for m in MODALITIES:
        ours, theirs = small.embed(m, batch_of()[m]), full.embed(m, batch_of()[m])
        assert torch.equal(ours.vectors, theirs.vectors) and torch.equal(ours.indices, theirs.indices)
    loaded = checkpoint.open_file(path)
    assert not loaded.complete and "CPC_2_parameters" in loaded.missing and rules.DECODER in loaded.missing
    with pytest.raises(InputError, match=f"{path}: lacks .*CPC_2_parameters"):
        opts = parse_pretrain(["--system", "h_dcid", "--gpu", "cpu", "--resume", str(path), "--n_embeddings",
                                        str(loaded.system.config.num_codes)], LOCAL)
        pretrain.open_system(opts, path, SHAPES)
    with pytest.raises(InputError, match="a h_dcid checkpoint of audio, video, text; expected --system dcid"):
        opts = parse_pretrain(["--gpu", "cpu", "--resume", str(path)], LOCAL)
        pretrain.open_system(opts, path, SHAPES)
    three[rules.ENCODER].pop("Video_encoder_2.input_linear.weight")
    checkpoint.save(path, three)
    refused("Encoder_parameters has no key Video_encoder_2.input_linear.weight", checkpoint.load_encoder, path)


def test_going_on_after_a_save_in_the_warm_start_equals_going_on_without(tmp_path):
    def go(trainer, epoch):
        return float(trainer.step(batch_of(seed=epoch), epoch).losses["total"].detach())

    def end(trainer):
        return go(trainer, 3), go(trainer, 4), trainer.system.state_dict()
    trainer = trainer_of(dropout=0.0)
    for epoch in (1, 2):
        go(trainer, epoch)
    loaded = checkpoint.open_file(save(trainer, tmp_path / "h.pt", 2))
    assert loaded.complete and loaded.epoch == 2
    rng = StepRandom(torch.Generator())
    rng.generator.set_state(trainer.rng.generator.get_state())
    again = step_for(loaded.system.train(), rng)
    again.system.mark_initialized()
    load_optimizers(loaded, again.optimizers)
    first, second = end(trainer), end(again)
    assert first[:2] == second[:2]
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())
