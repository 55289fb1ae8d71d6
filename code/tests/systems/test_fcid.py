"""FCID: sizes, the bound of whole clips, codes of seconds and clips, modality sets, files, what is trained."""

import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.cli import parse_pretrain
from cmg.losses.club import CLUB, BatchedCLUB
from cmg.programs import pretrain
from cmg.systems.base import FrozenEncoder
from cmg.systems.fcid import FCID
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from test_dcid import TINY, batch_of
from tiny import step_for

ALL = ("audio", "video", "text")
SHAPES = dict(FCID.Config.for_data(ALL, **TINY).shapes)


def trainer_of(modalities=ALL, seed=0, **settings):
    torch.manual_seed(seed)
    return step_for(FCID(FCID.Config.for_data(modalities, **TINY)).train(), seed=seed, **settings)


def test_the_bound_of_clips_is_that_of_clips_of_one_second():
    torch.manual_seed(0)
    clubs = BatchedCLUB([CLUB(8, 8, 6).double()])
    codes, specific = torch.randn(7, 1, 8).double(), torch.randn(7, 1, 8).double()
    order = torch.randperm(7)
    of_seconds = clubs.upper_bounds(codes.unsqueeze(0), specific.unsqueeze(0), order.unsqueeze(0))
    torch.testing.assert_close(clubs.upper_bounds_of_clips(codes, specific, order), of_seconds[0])
    released = clubs.upper_bounds_of_clips(codes, specific, order, "released")
    mean, log_variance = (x[0] for x in clubs.gaussians(codes[:, 0].unsqueeze(0)))
    by_hand = [((mean - y) ** 2).mean(1) / log_variance.mean(1).exp() for y in (specific[:, 0], specific[order, 0])]
    torch.testing.assert_close(released, (by_hand[1] - by_hand[0]).sum() / 2)


def test_rows_of_two_modalities_are_stacked_video_first():
    torch.manual_seed(0)
    clubs = BatchedCLUB([CLUB(8, 8, 6).double()])
    codes, specific = torch.randn(3, 2, 8).double(), torch.randn(3, 2, 8).double()
    order = torch.tensor([1, 0, 2, 5, 3, 4])
    stacked = [x.transpose(0, 1).reshape(6, 1, 8) for x in (codes, specific)]
    torch.testing.assert_close(clubs.upper_bounds_of_clips(codes, specific, order),
                               clubs.upper_bounds_of_clips(*stacked, order))


@pytest.mark.parametrize("modalities", [ALL, ("audio", "video"), ("audio", "text"), ("video", "text")])
def test_every_modality_set_trains_and_is_saved(modalities, tmp_path):
    trainer = trainer_of(modalities)
    before = {name: p.detach().clone() for name, p in trainer.system.named_parameters()}
    report = trainer.step(batch_of(modalities), 0)
    assert report.losses["total"].isfinite()
    still = {name for name, p in trainer.system.named_parameters() if torch.equal(p, before[name])}
    unread = {name for name in before if name.split(".")[-2] in ("average_attention", "place_attention", "attention")}
    asleep = {name for name in before if "squeeze" in name or "excite" in name}     # one unit: its ReLU may be dead
    assert unread & still == unread and still <= unread | asleep
    assert ("cpc" in report.losses) == ({"audio", "video"} <= set(modalities))
    assert ("video_infonce" in report.losses) == ({"video", "text"} <= set(modalities))
    checkpoint.save(tmp_path / "f.pt", checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 1, {}))
    loaded = checkpoint.open_file(tmp_path / "f.pt")
    assert loaded.complete and loaded.system.config == trainer.system.config
    load_optimizers(loaded, step_for(loaded.system.train()).optimizers)


def test_a_published_file_is_known_by_its_names_and_gives_codes_only(tmp_path):
    trainer = trainer_of()
    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 1, {})
    checkpoint.save(tmp_path / "FCID.pt", {name: contents[name] for name in ("Encoder_parameters", "epoch",
                                                                             "total_step")})
    loaded = checkpoint.open_file(tmp_path / "FCID.pt")
    assert isinstance(loaded.system, FCID) and loaded.missing and loaded.system.config.num_layers == 1
    with pytest.raises(InputError, match="lacks CPC_parameters"):
        pretrain.open_system(parse_pretrain(["--gpu", "cpu", "--system", "fcid", "--n_embeddings",
                                             str(TINY["num_codes"])], LOCAL), tmp_path / "FCID.pt", SHAPES)
    with pytest.raises(InputError, match="a fcid checkpoint of audio, video, text; expected --system dcid"):
        pretrain.open_system(parse_pretrain(["--gpu", "cpu"], LOCAL), tmp_path / "FCID.pt", SHAPES)


def test_a_clip_of_one_second_has_the_code_of_its_second():
    torch.manual_seed(0)
    encoder = FrozenEncoder(FCID(FCID.Config.for_data(ALL, **TINY)).encoder, FCID)
    encoder.encoder.codebook.embedding.uniform_(0, 1)
    for m, x in batch_of(ALL).items():
        codes = encoder.embed(m, x)
        assert codes.vectors.shape == (*x.shape[:2], encoder.head_dim) and codes.indices.shape == x.shape[:2]
        one = x[:, :1]
        torch.testing.assert_close(encoder.embed_clips(m, one), encoder.embed(m, one).vectors[:, 0])
        assert encoder.embed_clips(m, x).shape == (len(x), encoder.head_dim)


def test_codes_of_a_trained_pass_are_not_negative():
    trainer = trainer_of()
    report = trainer.step(batch_of(ALL), 0)
    assert all((g >= 0).all() for g in report.outputs.general.values())
    assert (trainer.system.encoder.codebook.embedding >= 0).all()


@pytest.mark.parametrize("switch, gone", [("club", "_club"), ("cpc", "cpc")])
def test_left_out_parts_are_not_computed(switch, gone):
    report = trainer_of(without=(switch,)).step(batch_of(ALL), 0)
    assert not any(name.endswith(gone) for name in report.losses)
