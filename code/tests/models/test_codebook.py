"""The codebook: which calls change its state, what a reset leaves, and its losses at all scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmg.models.codebook import Codebook, Reset, cmcm_pair, lowest_equal, nearest_codes, squared_distance
from cmg.models.config import RESET_AFTER
from cmg.models.random import StepRandom

F64 = torch.float64


def make(num_codes=7, width=5, seed=0):
    torch.manual_seed(seed)
    codebook = Codebook(num_codes, width).double()
    rng = StepRandom(torch.Generator().manual_seed(seed))
    z = {m: torch.randn(4, 6, width, dtype=F64) for m in ("audio", "video", "text")}
    codebook.init_from_data(z, rng)
    return codebook, z, rng


def test_lookup_changes_nothing_and_an_ema_step_does():
    codebook, z, _ = make()
    before = {name: buffer.clone() for name, buffer in codebook.named_buffers()}
    quantized = codebook(z)
    codebook.lookup(z["audio"])
    assert all(torch.equal(before[name], buffer) for name, buffer in codebook.named_buffers())
    codebook.update_ema(z, quantized.indices)
    assert not torch.equal(before["embedding"], codebook.embedding)
    assert not list(codebook.parameters())


def test_the_straight_through_gradient_is_one():
    codebook, z, _ = make()
    x = z["audio"].clone().requires_grad_()
    codebook({**z, "audio": x}).vectors["audio"].sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("mode, survives", [("full", True), ("released", False)])
def test_a_reset_code_after_the_next_step(mode, survives):
    codebook, z, rng = make()
    buried = 3
    codebook.embedding[buried] = 1e3
    codebook.ema_weight[buried] = 1e3
    codebook.unactivated_count[buried] = RESET_AFTER
    indices = codebook(z).indices
    codebook.expire_codes(indices, rng, Reset(mode))
    born = codebook.embedding[buried].clone()
    assert codebook.unactivated_count[buried] == 0 and born.abs().max() < 10
    nobody = {m: torch.where(i == buried, (buried + 1) % 7, i) for m, i in indices.items()}
    codebook.update_ema(z, nobody)
    assert torch.allclose(codebook.embedding[buried], born, rtol=1e-3) == survives


def test_off_counts_without_a_reset():
    codebook, z, rng = make()
    codebook.unactivated_count.fill_(10 * RESET_AFTER)
    before = codebook.embedding.clone()
    codebook.expire_codes({"audio": torch.zeros(1, 1, dtype=torch.int64)}, rng, Reset("off"))
    assert torch.equal(before, codebook.embedding)
    assert codebook.unactivated_count[0] == 0 and codebook.unactivated_count[1] == 10 * RESET_AFTER + 1


def test_cmcm_gradient():
    p, q = (torch.rand(4, 6, dtype=F64).softmax(1).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(cmcm_pair, (p, q))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 1e2, 1e4])
def test_cmcm_is_finite_at_every_scale(dtype, scale):
    torch.manual_seed(0)
    codebook = Codebook(20, 32)
    z = {m: (scale * torch.randn(6, 10, 32)).to(dtype).float().requires_grad_() for m in ("audio", "video")}
    codebook.init_from_data(z, StepRandom(torch.Generator().manual_seed(0)))     # some features lie exactly on codes
    loss = codebook(z).cmcm
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(x.grad).all() for x in z.values())
    chances = torch.softmax(scale * torch.randn(6, 20), 1).to(dtype)
    assert torch.isfinite(cmcm_pair(chances, chances.flip(0)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 8))
def test_lookup_finds_the_nearest_code(seed, num_codes, rows):
    torch.manual_seed(seed)
    x, codes = torch.randn(rows, 3, dtype=F64), torch.randn(num_codes, 3, dtype=F64)
    distance = squared_distance(x, codes)
    assert torch.allclose(distance, torch.cdist(x, codes, compute_mode="donot_use_mm_for_euclid_dist") ** 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_codes_tie_to_the_lowest_index(dtype, other_rounding):
    """Whatever the last bit of a distance is, for every number of rows, in training and downstream."""
    torch.manual_seed(0)
    codebook = Codebook(40, 16).to(dtype)
    codebook.embedding.copy_(torch.randn(10, 16).repeat(4, 1))
    codebook.embedding[:, 0].zero_()
    codebook.embedding[10:, 0] *= -1                        # -0.0 equals 0.0
    z = {m: torch.randn(7, 6, 16).to(dtype) for m in ("audio", "video")}
    for _ in range(5):                                      # roundings
        assert all((i < 10).all() for i in codebook(z).indices.values())
        for rows in range(1, 8):
            part = z["audio"][:rows]
            vectors, indices = codebook.lookup(part)
            assert (indices < 10).all() and torch.equal(vectors, codebook.embedding[indices])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_lowest_equal_is_the_first_of_the_rows_alike(seed, num_codes, dtype):
    torch.manual_seed(seed)
    codes = torch.randint(-1, 2, (num_codes, 2)).to(dtype) * torch.tensor([1e-3, -7.0], dtype=dtype)
    rows = codes.tolist()                                   # -0.0 == 0.0 in Python, too
    assert lowest_equal(codes).tolist() == [rows.index(row) for row in rows]


def test_rows_that_collide_or_hold_nan_keep_their_own_index(monkeypatch):
    monkeypatch.setattr("cmg.models.codebook.HASH_BASE", 0)      # every row has the same hash
    codes = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [float("nan"), 0.0]])
    assert lowest_equal(codes).tolist() == [0, 1, 0, 3]


def test_nearest_equals_distances_taken_pair_by_pair():
    """For rows whose best two different codes are further apart than rounding."""
    torch.manual_seed(0)
    codes = torch.randn(30, 16)
    codes[20:] = codes[[3, 19, 3, 0, 1, 7, 7, 7, 12, 5]]
    rows = torch.cat([torch.randn(200, 16), codes])
    pairs = (rows.double().unsqueeze(1) - codes.double()).square().sum(2)
    best, second = pairs[:, :20].topk(2, largest=False).values.unbind(1)
    is_clear = second - best > 1e-3
    found = nearest_codes(squared_distance(rows, codes), codes)
    assert is_clear.float().mean() > 0.9
    assert torch.equal(found[is_clear], pairs[:, :20].argmin(1)[is_clear])


def test_attention_teacher_and_own_vectors():
    """With one second a clip attention has no choice and equals the mean; without teachers others are unused."""
    codebook, _, _ = make()
    twin, _, _ = make()
    z = {m: torch.randn(9, 1, 5, dtype=F64) for m in ("audio", "video", "text")}
    indices = codebook(z).indices
    codebook.update_ema(z, indices, "attention")
    twin.update_ema(z, indices, "mean")
    assert torch.allclose(codebook.embedding, twin.embedding)
    alone, _, _ = make()
    alone.update_ema(z, indices, "own")
    assert not torch.allclose(alone.embedding, twin.embedding)


def test_modalities_choose_a_code_together():
    codebook, z, _ = make()
    own, joint = codebook(z).indices, codebook(z, joint=("audio", "video")).indices
    assert torch.equal(joint["audio"], joint["video"]) and torch.equal(joint["text"], own["text"])
    assert not torch.equal(own["audio"], own["video"])
    sums = sum(squared_distance(z[m].flatten(0, 1), codebook.embedding) for m in ("audio", "video"))
    assert torch.equal(joint["audio"].flatten(), sums.argmin(1))
    midway = (z["audio"] + z["video"]) / 2
    assert torch.equal(joint["audio"], codebook.lookup(midway)[1])                  # the same thing
    assert torch.equal(codebook(z, joint=("audio",)).indices["audio"], own["audio"])


@pytest.mark.parametrize("after", [30, RESET_AFTER])
def test_a_code_is_due_after_its_age_and_drawn_from_those_of_a_third_of_it(after):
    codebook, _, rng = make()
    codebook.unactivated_count.copy_(torch.tensor([after, after - 1, 0, after // 3 - 2, after // 3, after // 3, 0]))
    before = codebook.embedding.clone()
    codebook.expire_codes({"audio": torch.tensor([[2, 6]])}, rng, Reset(after=after))
    assert torch.equal(before[1:], codebook.embedding[1:]) and codebook.unactivated_count[0] == 0
    distance = (codebook.embedding[0] - before).abs().amax(1)
    assert distance.argmin() in (2, 3, 6) and 0 < distance.min() <= 1 / 1024


def test_a_reset_to_a_second_lies_between_its_modalities():
    codebook, z, rng = make()
    codebook.unactivated_count[3] = RESET_AFTER
    pair = {m: z[m] for m in ("audio", "video")}
    codebook.expire_codes({"audio": torch.tensor([[0]])}, rng, Reset(to="second"), pair)
    midway = ((z["audio"] + z["video"]) / 2).flatten(0, 1)
    assert (codebook.embedding[3] - midway).abs().amax(1).min() <= 1 / 1024
    assert torch.allclose(codebook.ema_weight[3], codebook.embedding[3]) and codebook.ema_count[3] == 1
