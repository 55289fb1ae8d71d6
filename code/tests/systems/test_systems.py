"""The contract of a system: a student's layer and loss, steps that are not finite, files with one tensor wrong."""

import re

import pytest
import torch
from torch import nn

from cmg.checkpoints import checkpoint
from cmg.cli import parse_pretrain
from cmg.models.blocks import Blocks
from cmg.models.config import Config
from cmg.models.encoders import TemporalEncoder
from cmg.programs import ablation as ablation_program
from cmg.programs import pretrain
from cmg.systems import registry
from cmg.systems.dcid import DCID
from cmg.systems.registry import SYSTEMS
from cmg.systems.settings import DECLARED, Term
from cmg.systems.state_dicts import rules
from cmg.systems.state_dicts.rules import ENCODER, EXTRA_SECTION, layout, meta
from cmg.training.monitors import FiniteCheck, NonFiniteError
from cmg.training.optim import Optimizers
from cmg.training.run_state import Position
from cmg.training.settings import OptimConfig
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from conftest import refused
from other_device import DEVICES
from parity_dcid import manifest
from test_dcid import TINY, batch_of
from tiny import assert_goes_on_bit_exactly, step_for

ALL = ("audio", "video", "text")
SHAPES = dict(Config.for_data(ALL, **TINY).shapes)


class Student(DCID):
    """DCID with one more layer and one more loss, as a student would add them."""

    TERMS = DCID.TERMS | {"spread": Term(0.5, label="spread")}

    def __init__(self, config):
        super().__init__(config)
        self.judge = nn.Linear(config.code_dim, 1)

    def losses(self, outputs, rng):
        found = super().losses(outputs, rng)
        found.terms["spread"] = {m: self.judge(z).square().mean() for m, z in outputs[0].semantic.items()}
        return found


@pytest.fixture
def student(monkeypatch):
    monkeypatch.setitem(registry.SYSTEMS, "dcid", Student)
    monkeypatch.setitem(DECLARED, "dcid", Student)


def test_a_layer_that_is_added_is_trained_clipped_saved_and_resumed(student, tmp_path):
    torch.manual_seed(0)
    trainer = step_for(Student(Config.for_data(ALL, **TINY)).train())
    before = trainer.system.judge.weight.detach().clone()
    report = trainer.step(batch_of(ALL), 0)
    assert not torch.equal(trainer.system.judge.weight, before)
    assert report.grad_norms["own_parameters"] > 0 and {"audio_spread", "text_spread"} <= report.losses.keys()

    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 1, {})
    assert contents["own_parameters"].keys() == {"judge.weight", "judge.bias"}
    assert not any("judge" in key for name, section in contents.items() if name.endswith("_parameters")
                   and name != "own_parameters" for key in section)
    checkpoint.save(tmp_path / "s.pt", contents)
    loaded = checkpoint.open_file(tmp_path / "s.pt")
    assert loaded.complete and type(loaded.system) is Student
    assert_goes_on_bit_exactly(trainer, loaded, batch_of(ALL))


def test_a_file_without_the_added_layer_is_evaluated_and_not_resumed(monkeypatch, tmp_path):
    checkpoint.save(tmp_path / "old.pt", checkpoint.pack(DCID(Config.for_data(ALL, **TINY)), None, {}, 0, 1, {}))
    monkeypatch.setitem(registry.SYSTEMS, "dcid", Student)
    loaded = checkpoint.open_file(tmp_path / "old.pt")
    assert loaded.missing == ["own_parameters.judge.weight", "own_parameters.judge.bias"]
    with pytest.raises(InputError, match="lacks own_parameters.judge.weight"):
        pretrain.open_system(parse_pretrain(["--gpu", "cpu", "--n_embeddings", str(TINY["num_codes"])], LOCAL),
                             tmp_path / "old.pt", SHAPES)


def test_an_added_loss_has_its_weight_can_be_left_out_and_is_in_the_ablation(student):
    torch.manual_seed(0)
    system = Student(Config.for_data(ALL, **TINY)).train()
    losses = {name: float(value.detach()) for name, value in step_for(system).step(batch_of(ALL), 0).losses.items()}
    total = losses.pop("total")
    spread = sum(value for name, value in losses.items() if name.endswith("_spread"))
    assert total == pytest.approx(sum(losses.values()) - 0.5 * spread, rel=1e-5)
    trainer = step_for(Student(Config.for_data(ALL, **TINY)).train(), without=("spread",))
    trainer.step(batch_of(ALL), 0)
    assert trainer.system.judge.weight.grad is None
    assert parse_pretrain(["--without", "spread", "--gpu", "cpu"], LOCAL).without == ["spread"]
    rows = ablation_program.rows_of("3", Student)
    assert ["--without", "spread"] in rows and len(rows) == 8 and rows[-1] == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_settings_of_another_system_are_refused_and_their_defaults_are_not(name, capsys):
    assert parse_pretrain(["--gpu", "cpu", "--system", name], LOCAL).system == name
    for wrong, named in ((["--system", "dcid", "--cascade_order", "video", "audio", "text"],
                          "--cascade_order is a setting of CoDAAR"),
                         (["--system", "h_dcid", "--without", "nothing"], "--without")):
        with pytest.raises(SystemExit) as end:
            parse_pretrain(["--gpu", "cpu", *wrong], LOCAL)
        assert end.value.code == 2 and named in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("device", ["cpu", *DEVICES], ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_that_is_not_finite_moves_no_weight(name, device):
    """An infinite feature: the step is refused and its loss named before the main optimizer moves anything; on a GPU
    the host notices when the values have arrived."""
    if device != "cpu" and name == "codaar":
        pytest.skip("the test's device has no random numbers")
    torch.manual_seed(0)
    system = SYSTEMS[name]
    trainer = step_for(system(system.Config.for_data(ALL, **TINY)).to(device).train())
    batch = {m: x.to(device) for m, x in batch_of(ALL).items()}
    trainer.step(batch, 3)
    main = {key: value for key, value in trainer.system.named_parameters()
            if not any(key in group.parameters for group in trainer.optimizers.groups.values() if group.auxiliary)}
    before = {key: value.detach().clone() for key, value in main.items()}
    check = FiniteCheck([f"clip{k}" for k in range(len(batch["audio"]))])
    trainer.before_update = check.check
    batch["video"][1, 2, 3, 3, 0] = float("inf")
    check.begin(torch.arange(len(batch["audio"])), batch, Position(epoch=3, step=1))
    with pytest.raises(NonFiniteError, match="step 2: .* is (nan|inf).* expected finite numbers.* features of clip1;"):
        trainer.step(batch, 3)
        check.flush()
    assert device != "cpu" or all(torch.equal(value, before[key]) for key, value in main.items())


# ------------------------------------------------------------------------------------------------------------- files
def translate(sections):
    """What loading does with names and shapes."""
    kind, config = rules.infer_config(sections, list(SYSTEMS.values()))
    return rules.from_published(sections, rules.layout(kind, config), sorted(sections))


@pytest.mark.parametrize("name", ["dcid", "h_dcid", "fcid", "codaar", "codaar_av"])          # MICU's names are DCID's
def test_a_published_file_is_a_system_with_its_defaults(golden, name):
    """It is recognized; its sections, keys in their order and shapes are those of our map."""
    shapes = manifest(golden, f"{name}_published_manifest")
    sections = {section: {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}
                for section, keys in shapes.items()}
    kind, config = rules.infer_config(sections, list(SYSTEMS.values()))
    assert kind is SYSTEMS[name.removesuffix("_av")]
    assert config == kind.Config.for_data(ALL[:2] if name.endswith("_av") else ALL)
    ours = {}
    for tensor in rules.layout(kind, config):
        ours.setdefault(tensor.section, []).append((tensor.key, list(tensor.shape)))
    assert all(ours[section] == [*keys.items()] for section, keys in shapes.items())


@pytest.mark.parametrize("name", ["h_dcid_published_manifest", "fcid_published_manifest"])
def test_whichever_tensor_of_a_published_file_is_wrong_is_named(golden, name, monkeypatch):
    sections = {section: {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}
                for section, keys in manifest(golden, name).items()}
    monkeypatch.setattr(rules, "require_numbers", lambda *args: None)       # 200 MB of zeros, 2,000 times
    translate(sections)
    unused = {(tensor.section, tensor.key) for tensor in rules.layout(*rules.infer_config(
        sections, list(SYSTEMS.values()))) if not tensor.ours}
    for section, content in sections.items():
        for number, (key, value) in enumerate(content.items()):         # each in one way, all ways in every section
            wider = torch.zeros(()).expand([size + 1 for size in value.shape] or [1])
            flat = torch.zeros(()).expand(value.numel(), 1, 1)
            without = {k: v for k, v in content.items() if k != key}
            cases = [({key: wider}, f"{section}.{key} has shape"), ({key: flat}, f"{section}.{key} has")]
            if (section, key) in unused:                    # our checkpoints leave them out
                translate(sections | {section: without})
                cases.append(({key + "_x": value}, f"unknown key {key}_x"))
            else:
                cases += [({}, f"{section} has no key {key}; "), ({key + "_x": value}, f"no key {key}, but an ")]
            wrong, words = cases[number % len(cases)]
            refused(re.escape(words), translate, sections | {section: without | wrong})


def test_a_config_of_a_file_is_believed_only_where_it_fits(tmp_path):
    contents = checkpoint.pack(DCID(Config.for_data(ALL, **TINY)), None, {}, 0, 1, {})
    for damage, words in (({"system": "another"}, "names the system 'another'"),
                          ({"num_codes": True}, "num_codes = True"),
                          ({"surprise": 3}, "surprise = 3"), ({"num_codes": 7}, "embedding has shape"),
                          ({"modalities": ["text", "audio"]}, "is not valid for DCID")):
        checkpoint.save(tmp_path / "c.pt", contents | {"config": contents["config"] | damage})
        refused(words, checkpoint.open_file, tmp_path / "c.pt")


def test_another_number_of_codes_is_refused_on_resume(demo_data, small_model, tmp_path):
    from tiny import train
    assert train(demo_data, tmp_path, "--max_steps", 2) == 0
    with pytest.raises(InputError, match="pretrained with --n_embeddings 24, not 50; pass the same"):
        train(demo_data, tmp_path, "--resume", tmp_path / "checkpoints" / "DCID-model-0-step2.pt", "--n_embeddings", 50)


def test_spatial_attention_comes_back_from_the_file(tmp_path):
    system = DCID(Config.for_data(ALL, spatial_attention="softmax", **TINY))
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack(system, None, {}, 0, 1, {}))
    assert checkpoint.load_encoder(tmp_path / "a.pt").config.spatial_attention == "softmax"


SMALL = {"num_codes": 6, "code_dim": 8, "text_hidden": 4, "feed_forward": 8, "num_layers": 1, "num_heads": 2,
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
        system = DCID(Config.for_data({"audio": (5,), "depth": (3,)}, **SMALL))
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
    system = DCID(Config.for_data({"audio": (5,), "depth": (3,)}, **SMALL))
    contents = checkpoint.pack(system, Optimizers(system, OptimConfig()), {}, 0, 0, {})
    assert [key for key in contents[ENCODER] if key.startswith("audio_self_att.")] and EXTRA_SECTION not in contents
