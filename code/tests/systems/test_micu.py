"""MICU: masked contrast and jigsaw by hand, what is trained, what is saved, code 0, options."""

import math

import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.cli import parse_pretrain
from cmg.losses.info_nce import info_nce, masked_pairs
from cmg.losses.jigsaw import Jigsaw, sample_permutations
from cmg.systems.base import FrozenEncoder
from cmg.systems.micu import MICU
from configs.opts import LOCAL
from conftest import refused
from test_dcid import TINY, batch_of
from tiny import step_for

ALL = ("audio", "video", "text")


def system_of(modalities=ALL, seed=0, **sizes):
    torch.manual_seed(seed)
    return MICU(MICU.Config.for_data(modalities, **TINY, **sizes))


def test_identical_one_hot_rows():
    rows = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(float(info_nce(rows, rows)), -math.log(math.e ** 10 / (math.e ** 10 + 3)))


def test_identical_modalities_cost_nine_times_one_and_a_masked_row_log_t():
    torch.manual_seed(0)
    z = torch.randn(2, 1, 5, 8, dtype=torch.float64).expand(2, 3, 5, 8)
    fine, coarse = masked_pairs(z, torch.ones(2, 5))
    torch.testing.assert_close(fine, 9 * torch.stack([info_nce(z[b, 0], z[b, 0]) for b in range(2)]).mean())
    torch.testing.assert_close(coarse, 9 * info_nce(z[:, 0].mean(1), z[:, 0].mean(1)))
    gone, _ = masked_pairs(z, torch.zeros(2, 5))
    torch.testing.assert_close(gone, torch.tensor(9 * math.log(5), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_second_has_no_gradient_and_a_lost_clip_no_nan(dtype):
    torch.manual_seed(0)
    z = torch.randn(3, 2, 4, 6, dtype=dtype, requires_grad=True)
    kept = torch.ones(3, 4)
    kept[0] = 0
    sum(masked_pairs(z, kept)).backward()
    assert z.grad.isfinite().all() and z.grad[0].abs().max() < 10       # as keys only


def test_two_blocks_have_the_identity_and_the_swap_with_balanced_classes():
    torch.manual_seed(0)
    jigsaw = Jigsaw(6, 2, 2, 4)
    assert sorted(jigsaw.permutations.tolist()) == [[0, 1], [1, 0]]
    vectors = torch.randn(3, 2, 5, 6)
    expected = []
    for label, order in enumerate(jigsaw.permutations.tolist()):
        blocks = [vectors[2, ..., :3], vectors[0, ..., 3:]]             # block 0 from text, block 1 from audio
        scores = jigsaw.classify(torch.relu(jigsaw.hidden(torch.cat([blocks[b] for b in order], -1)))).flatten(0, 1)
        expected.append(torch.nn.functional.cross_entropy(scores, torch.full((10,), label)))
    torch.testing.assert_close(jigsaw(vectors, torch.tensor([2, 0])), torch.stack(expected).mean())


def test_permutations_are_different_and_leave_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found = sample_permutations(4, 24)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(row) for row in found.tolist()}) == 24
    assert all(sorted(row) == [0, 1, 2, 3] for row in found.tolist())


@pytest.mark.parametrize("arguments, words", [((3, 2), "--jigsaw_blocks 3: expected a divisor of the 16"),
                                              ((2, 3), "--jigsaw_permutations 3: 2 blocks have only 2")])
def test_a_jigsaw_that_cannot_be_is_one_line(arguments, words):
    refused(words, system_of, jigsaw_blocks=arguments[0], jigsaw_permutations=arguments[1])


@pytest.mark.parametrize("modalities", [ALL, ("audio", "video"), ("audio", "text"), ("video", "text")])
def test_cpc_and_club_keep_their_start_and_the_jigsaw_learns(modalities):
    trainer = step_for(system_of(modalities).train())
    before = {name: p.detach().clone() for name, p in trainer.system.named_parameters()}
    report = trainer.step(batch_of(modalities), 0)
    still = {name for name, p in trainer.system.named_parameters() if torch.equal(p, before[name])}
    logged = {name for name in before if ".cpc." in name or ".club." in name}
    dead = {name for name in before if ".pool1." in name or ".pool2." in name or "attention." in name
            and "self_attn" not in name}
    asleep = {name for name in before if "squeeze" in name or "excite" in name}     # one unit: its ReLU may be dead
    assert still - asleep == logged | dead
    total = sum(value for name, value in report.losses.items()
                if name.endswith(("_recon", "_commit")) or name.startswith(("fcmi", "cujp")))
    torch.testing.assert_close(report.losses["total"], total)
    assert "cpc" in report.losses and f"{modalities[0]}_club" in report.losses


def test_the_jigsaw_is_not_clipped():
    """Its first Adam step is the learning rate whatever the gradient; the group's norm is reported as it is."""
    trainer = step_for(system_of().train(), clip_gradient=1e-12, lr=1e-3)
    before = trainer.system.jigsaw.classify.bias.detach().clone()
    trainer.step(batch_of(ALL), 0)
    moved = (trainer.system.jigsaw.classify.bias - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0.01, atol=0)
    other = trainer.optimizers.groups["Encoder_parameters"]
    assert other.clipped and not trainer.optimizers.groups["Jigsaw_parameters"].clipped


def test_jigsaw_and_its_permutations_are_saved_under_our_names(tmp_path):
    trainer = step_for(system_of(jigsaw_blocks=4, jigsaw_permutations=5).train())
    trainer.step(batch_of(ALL), 0)
    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 1, {})
    assert {name for name in contents["own_parameters"]} == {
        f"jigsaw.{name}" for name in ("permutations", "hidden.weight", "hidden.bias", "classify.weight",
                                      "classify.bias")}
    checkpoint.save(tmp_path / "m.pt", contents)
    loaded = checkpoint.open_file(tmp_path / "m.pt")
    assert isinstance(loaded.system, MICU) and loaded.complete
    assert torch.equal(loaded.system.jigsaw.permutations, trainer.system.jigsaw.permutations)
    load_optimizers(loaded, step_for(loaded.system.train()).optimizers)


def test_released_passes_move_the_codebook_twice():
    for passes, count in (("once", 1), ("released", 2)):
        trainer = step_for(system_of().train(), encoder_passes=passes, code_reset="released")
        outputs, unused = trainer.step(batch_of(ALL), 0).outputs, trainer.system.codebooks[""].unactivated_count
        assert (outputs.contrasted is outputs.reconstructed) == (count == 1)
        assert unused.max() == count - 1                    # from -1


def test_a_code_that_text_alone_chooses_ages_as_published():
    for counter, ages in (("all", False), ("released", True)):
        system = system_of().eval()
        trainer = step_for(system, reset_counter=counter)
        codebook = system.codebooks[""]
        codebook.unactivated_count.fill_(7)
        outputs = system.encode(system.features(batch_of(ALL)), 0)
        quantized = outputs.reconstructed[0].quantized
        quantized.indices = {m: torch.full_like(i, 5 if m == "text" else 2) for m, i in quantized.indices.items()}
        system.update_codebooks(outputs, trainer.rng)
        assert codebook.unactivated_count[[2, 5]].tolist() == [0, 8 if ages else 0]


def test_code_0_is_the_zero_vector_where_asked():
    system = system_of()
    system.codebooks[""].embedding.normal_()
    kept = system.codebooks[""].embedding.clone()
    assert torch.equal(FrozenEncoder(system.encoder, MICU).codebooks[0], kept)
    zeroed = FrozenEncoder(system.encoder, MICU, zero_code0=True)
    assert not zeroed.codebooks[0][0].any() and torch.equal(zeroed.codebooks[0][1:], kept[1:])
    assert checkpoint.untrained_like(zeroed, 0).zero_code0


def test_settings_of_micu_are_refused_by_others_and_must_be_the_files(capsys):
    for wrong in (["--jigsaw_blocks", "4"], ["--system", "fcid", "--encoder_passes", "released"]):
        with pytest.raises(SystemExit) as end:
            parse_pretrain(["--gpu", "cpu", *wrong], LOCAL)
        assert end.value.code == 2 and "is a setting of MICU" in capsys.readouterr().err
