"""Published tensor names belong to the published classes: another encoder with the same attribute names is ours."""

import torch

from cmg.checkpoints import checkpoint
from cmg.models.blocks import Blocks
from cmg.models.config import Config
from cmg.models.encoders import TemporalEncoder
from cmg.systems.dcid import DCID
from cmg.systems.state_dicts.rules import ENCODER, EXTRA_SECTION, layout, meta
from cmg.training.optim import Optimizers
from cmg.training.settings import OptimConfig

SIZES = {"num_codes": 6, "code_dim": 8, "text_hidden": 4, "feed_forward": 8, "num_layers": 1, "num_heads": 2,
         "club_hidden": 4, "seconds": 4}


class Backwards(TemporalEncoder):
    """The parts of a TemporalEncoder by the same names, used in another way."""

    def forward(self, x, mask=None):
        return super().forward(x.flip(1), mask)


def test_a_subclass_does_not_take_published_names(monkeypatch, tmp_path):
    published = Blocks.semantic
    monkeypatch.setattr(Blocks, "semantic", lambda self: Backwards(self.config, self.width)
                        if self.modality == "audio" else published(self))
    for cached in (layout, meta):
        cached.cache_clear()
    try:
        torch.manual_seed(0)
        system = DCID(Config.for_data({"audio": (5,), "depth": (3,)}, **SIZES))
        contents = checkpoint.pack(system, Optimizers(system, OptimConfig()), {}, 0, 0, {})
        assert any(name.startswith("encoder.levels.0.semantic.audio.affine") for name in contents[EXTRA_SECTION])
        assert not [key for key in contents[ENCODER] if key.startswith("audio_self_att.")]
        assert [key for key in contents[ENCODER] if key.startswith("depth_self_att.")]
        checkpoint.save(tmp_path / "model.pt", contents)
        again = checkpoint.open_file(tmp_path / "model.pt")
        assert again.complete
        x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
        both = [one.eval().encoder.levels[0].semantic["audio"](x) for one in (system, again.system)]
        assert torch.equal(*both)
    finally:
        for cached in (layout, meta):
            cached.cache_clear()


def test_the_published_classes_take_them():
    system = DCID(Config.for_data({"audio": (5,), "depth": (3,)}, **SIZES))
    contents = checkpoint.pack(system, Optimizers(system, OptimConfig()), {}, 0, 0, {})
    assert [key for key in contents[ENCODER] if key.startswith("audio_self_att.")] and EXTRA_SECTION not in contents
