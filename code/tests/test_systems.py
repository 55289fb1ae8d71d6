"""The contract of a system: a student's layer and loss, steps that are not finite, files with one tensor wrong."""

import json
import re

import pytest
import torch
from torch import nn

from cmg.checkpoints import checkpoint
from cmg.cli import parse_pretrain
from cmg.models.config import Config
from cmg.programs import ablation as ablation_program
from cmg.programs import pretrain
from cmg.systems import registry
from cmg.systems.base import Term
from cmg.systems.dcid import DCID
from cmg.systems.fcid import FCID
from cmg.systems.h_dcid import HDCID
from cmg.systems.micu import MICU
from cmg.systems.registry import SYSTEMS
from cmg.systems.state_dicts import rules
from cmg.training.monitors import StepMetrics
from cmg.utils.errors import InputError
from configs.opts import LOCAL
from other_device import DEVICES
from test_dcid import TINY, batch_of
from tiny import assert_goes_on_bit_exactly, checkpoints, trainer_for

ALL = ("audio", "video", "text")
SHAPES = dict(Config.for_data(ALL, **TINY).shapes)


class Student(DCID):
    """DCID with one more layer and one more loss, as a student would add them."""

    TERMS = DCID.TERMS | {"spread": Term(0.5, title="spread")}

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


def test_a_layer_that_is_added_is_trained_clipped_saved_and_resumed(student, tmp_path):
    torch.manual_seed(0)
    trainer = trainer_for(Student(Config.for_data(ALL, **TINY)).train())
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
    checkpoint.save(tmp_path / "old.pt", checkpoint.pack(DCID(Config.for_data(ALL, **TINY)), {}, {}, 0, 1, {}))
    monkeypatch.setitem(registry.SYSTEMS, "dcid", Student)
    loaded = checkpoint.open_file(tmp_path / "old.pt")
    assert loaded.missing == ["own_parameters.judge.weight", "own_parameters.judge.bias"]
    with pytest.raises(InputError, match="has no own_parameters.judge.weight"):
        pretrain.open_system(parse_pretrain(["--gpu", "cpu", "--n_embeddings", str(TINY["num_codes"])], LOCAL),
                             tmp_path / "old.pt", SHAPES)


def test_an_added_loss_has_its_weight_can_be_left_out_and_is_in_the_ablation(student):
    torch.manual_seed(0)
    system = Student(Config.for_data(ALL, **TINY)).train()
    losses = {name: float(value.detach()) for name, value in trainer_for(system).step(batch_of(ALL), 0).losses.items()}
    total = losses.pop("total")
    spread = sum(value for name, value in losses.items() if name.endswith("_spread"))
    assert total == pytest.approx(sum(losses.values()) - 0.5 * spread, rel=1e-5)
    trainer = trainer_for(Student(Config.for_data(ALL, **TINY)).train(), without=("spread",))
    trainer.step(batch_of(ALL), 0)
    assert trainer.system.judge.weight.grad is None
    assert parse_pretrain(["--without", "spread", "--gpu", "cpu"], LOCAL).without == ["spread"]
    rows = ablation_program.rows_of("3", Student)
    assert ["--without", "spread"] in rows and len(rows) == 8 and rows[-1] == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_settings_of_another_system_are_refused_and_their_defaults_are_not(name, capsys):
    assert parse_pretrain(["--gpu", "cpu", "--system", name], LOCAL).system == name
    for wrong, named in ((["--system", "dcid", "--layer2_start", "data"], "--layer2_start is a setting of H-DCID"),
                         (["--system", "dcid", "--cascade_order", "video", "audio", "text"],
                          "--cascade_order is a setting of CoDAAR"),
                         (["--system", "h_dcid", "--without", "nothing"], "--without")):
        with pytest.raises(SystemExit) as end:
            parse_pretrain(["--gpu", "cpu", *wrong], LOCAL)
        assert end.value.code == 2 and named in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- not finite
def everything(trainer):
    """Name -> copy of every tensor of a trainer's state, generators included."""
    found = {name: value.clone() for name, value in trainer.system.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for number, state in enumerate(optimizer.state.values()):
            found |= {f"{name}.{number}.{key}": value.clone() for key, value in state.items()}
    return found | {"rng": trainer.rng.generator.get_state(), "dropout": torch.get_rng_state(),
                    "started": torch.tensor(trainer.system.started)}


@pytest.mark.parametrize("device", ["cpu", *DEVICES], ids=str)
@pytest.mark.parametrize("system, epoch, settings", [
    (DCID, 0, {}), (DCID, 0, {"mi_forward": "released", "code_reset": "released"}), (HDCID, 3, {}),
    (FCID, 0, {}), (MICU, 0, {"encoder_passes": "released"})])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(system, epoch, settings, steps, device):
    """An infinite feature in a step: every tensor is what it was, and training continues with the next batch."""
    torch.manual_seed(0)
    trainer = trainer_for(system(system.Config.for_data(ALL, **TINY)).to(device).train(), **settings)
    batch = {m: x.to(device) for m, x in batch_of(ALL).items()}
    for codebook in trainer.system.codebooks.values():
        codebook.unactivated_count[:40] = 301                         # resets are due in the step
    for _ in range(steps):
        trainer.step(batch, epoch)
    before = everything(trainer)
    bad = {m: x.clone() for m, x in batch.items()}
    bad["video"][1, 2, 3, 3, 0] = float("inf")
    report = trainer.step(bad, epoch)
    assert not report.losses["total"].isfinite()
    if device != "cpu":
        trainer.step(batch, epoch)                  # the host has not noticed yet
        trainer.rollback.forget(1)
    after = everything(trainer)
    assert before.keys() <= after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not after[name].any() for name in after.keys() - before.keys())      # Adam's own start
    if device == "cpu":
        assert trainer.step(batch, epoch).losses["total"].isfinite()
        name = next(name for name in before if name.endswith("codebook.embedding"))
        assert not torch.equal(before[name], trainer.system.state_dict()[name])


@pytest.mark.parametrize("is_late", [False, True])
def test_a_run_that_ends_so_keeps_the_state_of_the_step_before(is_late, demo_data, small_model, tmp_path, monkeypatch):
    """Late: the figures arrive, as on a GPU, when the log waits for them."""
    from test_guards import poison
    from tiny import train
    poison(monkeypatch, 17, float("inf"))
    if is_late:
        monkeypatch.setattr(StepMetrics, "arrived", lambda self, wait=False: wait)
    with pytest.raises(InputError, match="everything about this step is in"):
        train(demo_data, tmp_path, "--save_every_steps", 1, "--keep", 100, "--print_freq", 1)
    bundle = torch.load(next((tmp_path / "run" / "debug").glob("*.pt")), weights_only=True)
    last = max((name for name in checkpoints(tmp_path)), key=lambda name: int(re.findall(r"step(\d+)", name)[0]))
    kept, contents = checkpoint.read(tmp_path / "checkpoints" / last), bundle["contents"]
    assert kept["run"]["position"]["step"] == bundle["step"] - 1
    assert kept["run"]["position"] == contents["run"]["position"]
    for section in (name for name in kept if name.endswith("_parameters")):
        assert all(torch.equal(value, contents[section][key]) for key, value in kept[section].items())
    for section in (name for name in kept if name.startswith("optimizer")):
        assert all(torch.equal(value, contents[section]["state"][number][key])
                   for number, state in kept[section]["state"].items() for key, value in state.items())
    assert torch.equal(kept["run"]["random"]["run"], contents["run"]["random"]["run"])
    assert torch.equal(kept["run"]["random"]["torch"], contents["run"]["random"]["torch"])


# ------------------------------------------------------------------------------------------------------------- files
def translate(sections):
    """What loading does with names and shapes."""
    kind, config = rules.infer_config(sections, list(SYSTEMS.values()))
    return rules.from_published(sections, rules.layout(kind, config), sorted(sections))


@pytest.mark.parametrize("name", ["dcid_published_manifest", "h_dcid_published_manifest", "fcid_published_manifest"])
def test_whichever_tensor_of_a_published_file_is_wrong_is_named(golden, name, monkeypatch):
    manifest = json.loads((golden / f"{name}.json").read_text())
    sections = {section: {key: torch.zeros(()).expand(shape) for key, shape in keys.items()}
                for section, keys in manifest.items() if isinstance(keys, dict)}
    monkeypatch.setattr(rules, "require_numbers", lambda *args: None)       # 200 MB of zeros, 2,000 times
    translate(sections)
    for section, content in sections.items():
        for key, value in list(content.items()):
            wider = torch.zeros(()).expand([size + 1 for size in value.shape] or [1])
            flat = torch.zeros(()).expand(value.numel(), 1, 1)
            for wrong, words in (({}, f"{section} has no key {key}; "), ({key + "_x": value}, f"no key {key}, but an "),
                                 ({key: wider}, f"{section}.{key} has shape"), ({key: flat}, f"{section}.{key} has")):
                damaged = sections | {section: {k: v for k, v in content.items() if k != key} | wrong}
                with pytest.raises(InputError, match=re.escape(words)):
                    translate(damaged)


def test_a_config_of_a_file_is_believed_only_where_it_fits(tmp_path):
    contents = checkpoint.pack(DCID(Config.for_data(ALL, **TINY)), {}, {}, 0, 1, {})
    for damage, words in (({"system": "another"}, "names the system 'another'"),
                          ({"num_codes": True}, "num_codes = True"),
                          ({"surprise": 3}, "surprise = 3"), ({"num_codes": 7}, "embedding has shape"),
                          ({"modalities": ["text", "audio"]}, "is of no DCID")):
        checkpoint.save(tmp_path / "c.pt", contents | {"config": contents["config"] | damage})
        with pytest.raises(InputError, match=words):
            checkpoint.open_file(tmp_path / "c.pt")


def test_another_number_of_codes_is_refused_on_resume(demo_data, small_model, tmp_path):
    from tiny import train
    assert train(demo_data, tmp_path, "--max_steps", 2) == 0
    with pytest.raises(InputError, match="pretrained with --n_embeddings 24, not 50; pass the same"):
        train(demo_data, tmp_path, "--resume", tmp_path / "checkpoints" / "DCID-model-0-step2.pt", "--n_embeddings", 50)


def test_spatial_attention_comes_back_from_the_file(tmp_path):
    system = DCID(Config.for_data(ALL, spatial_attention="softmax", **TINY))
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack(system, {}, {}, 0, 1, {}))
    assert checkpoint.load_encoder(tmp_path / "a.pt").config.spatial_attention == "softmax"
