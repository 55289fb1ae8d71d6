"""Published files load here, ours load there: names, dtypes, partial files, optimizer sections, wrong files."""

import pickle
import zipfile

import pytest
import torch

from cmg.checkpoints import __main__ as checkpoints_program
from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.models.random import StepRandom
from cmg.systems.dcid import DCID
from cmg.systems.state_dicts import rules
from cmg.utils.errors import InputError
from conftest import ROOT
from parity_dcid import filled, manifest
from test_dcid import batch_of, trainer_of
from tiny import step_for

GOLDEN = ROOT / "code" / "tests" / "golden"


@pytest.fixture(scope="module")
def small():
    """Sections of a small published tri-modal file, filled by the golden rule."""
    return filled(manifest(GOLDEN, "dcid_small_manifest"))


def write(path, contents):
    torch.save(contents, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_dtype_loads_and_widths_are_read_from_the_tensors(small, tmp_path, dtype):
    cast = {s: {k: v.to(dtype) for k, v in tensors.items()} for s, tensors in small.items()}
    encoder = checkpoint.load_encoder(write(tmp_path / "x.pt", cast | {"epoch": 2}))
    config = encoder.config
    assert (config.modalities, config.num_codes, encoder.epoch) == (("audio", "video", "text"), 48, 2)
    assert (config.shape("video"), config.widths("video").specific) == ((7, 7, 16), 32)
    codes = encoder.embed("video", torch.rand(2, 10, 7, 7, 16))
    assert codes.vectors.shape == (2, 10, 256) and codes.vectors.dtype == torch.float32
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


def test_a_file_with_encoder_and_lstm_only(small, tmp_path):
    part = {name: small[name] for name in (rules.ENCODER, rules.LSTM)} | {"epoch": 4}
    loaded = checkpoint.open_file(write(tmp_path / "part.pt", part))
    assert not loaded.complete and "CPC_parameters" in loaded.missing and loaded.epoch == 4


def test_the_optimizer_section_fits_the_published_parameter_order(tmp_path):
    """An Adam over LSTM, encoder, CPC and decoder, as the published program makes it, takes our state, and back."""
    trainer = trainer_of(("audio", "video", "text"))
    for _ in range(2):
        trainer.step(batch_of(("audio", "video", "text")), 0)
    contents = checkpoint.pack(trainer.system, trainer.optimizers, {}, 0, 2, {}, torch.float64)
    main = (rules.LSTM, rules.ENCODER, "CPC_parameters", rules.DECODER)
    order = [(s, k) for s in main for k in contents[s] if not k.startswith("Cross_quantizer.")]
    theirs = torch.optim.Adam([torch.nn.Parameter(contents[s][k]) for s, k in order], lr=1)
    theirs.load_state_dict(contents["optimizer"])
    assert theirs.param_groups[0]["lr"] == pytest.approx(4e-4)
    ours = dict(trainer.system.named_parameters())
    checked = 0
    for (_, key), parameter in zip(order, theirs.param_groups[0]["params"]):
        if key == "audio_self_att.encoder.layers.1.linear2.weight":
            own = trainer.optimizers.main.state[ours["encoder.levels.0.semantic.audio.layers.1.linear2.weight"]]
            assert torch.equal(theirs.state[parameter]["exp_avg"], own["exp_avg"].double())
            checked += 1
        if "encoder_layer" in key or "semantic_decoder" in key:
            assert parameter not in theirs.state
            checked += 1
    assert checked > 1
    assert {name for name in contents if name.startswith("optimizer_")} == {
        f"optimizer_{m}_mi_net" for m in ("video", "text", "audio")}

    checkpoint.save(tmp_path / "run.pt", contents)
    loaded = checkpoint.open_file(tmp_path / "run.pt")
    resumed = step_for(loaded.system, seed=1)
    load_optimizers(loaded, resumed.optimizers)
    resumed.system.initialized, trainer.rng = [True], StepRandom(torch.Generator().manual_seed(1))
    batch = batch_of(("audio", "video", "text"))
    for one in (trainer, resumed):
        torch.manual_seed(5)
        one.step(batch, 0)
    assert all(torch.equal(a, b) for a, b in zip(trainer.system.parameters(), resumed.system.parameters()))


def test_unused_tensors_are_for_published_programs_alone(tmp_path, capsys):
    """A run's file lacks them, loads, and is exported with every name and shape of the published one."""
    trainer = trainer_of(("audio", "video", "text"))
    trainer.step(batch_of(("audio", "video", "text")), 0)
    checkpoint.save(tmp_path / "run.pt", checkpoint.pack(trainer.system, trainer.optimizers, None, 0, 1, {}))
    tensors = rules.layout(DCID, trainer.system.config)
    unused = {(tensor.section, tensor.key) for tensor in tensors if not tensor.ours}
    kept = checkpoint.read(tmp_path / "run.pt")
    assert len(unused) > 20 and not any(key in kept[section] for section, key in unused)
    ours = trainer.system.state_dict()
    assert all(torch.equal(ours[name], x)
               for name, x in checkpoint.open_file(tmp_path / "run.pt").system.state_dict().items())
    checkpoints_program.main(["export", str(tmp_path / "run.pt"), "--out", str(tmp_path / "out"), "--published"])
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'run.pt'}\n"
    found = checkpoint.read(tmp_path / "out" / "run.pt")
    assert [(s, key, tuple(x.shape)) for s in dict.fromkeys(t.section for t in tensors) for key, x in found[s].items()
            ] == [(t.section, t.key, t.shape) for t in tensors]
    assert all(torch.equal(found[section][key], x) for section, keys in kept.items() if section.endswith("_parameters")
               for key, x in keys.items()) and not any(found[s][key].any() for s, key in unused)
    assert found["optimizer"]["state"].keys() == kept["optimizer"]["state"].keys()


def test_a_hostile_checkpoint_does_not_run(tmp_path):
    flag = tmp_path / "owned"

    class Hostile:
        def __reduce__(self):
            return open, (str(flag), "w")

    torch.save({rules.ENCODER: Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Hostile()))
    assert zipfile.is_zipfile(tmp_path / "hostile.pt")
    for name in ("hostile.pt", "bare.pt"):
        with pytest.raises(InputError):
            checkpoint.open_file(tmp_path / name)
    assert not flag.exists()


def test_describe_names_the_facts(small, tmp_path, capsys):
    write(tmp_path / "last.pt", small | {"epoch": 3, "total_step": 99})
    write(tmp_path / "earlier.pt", small | {"epoch": 2, "total_step": 66})
    checkpoints_program.main([str(tmp_path)])               # of a folder, the one with the most steps
    printed = capsys.readouterr().out
    for fact in ("dcid", "audio, video, text", "K = 48, D = 256", "3, 99", "float64", "unused tensors  54",
                 "codes used"):
        assert fact in printed, printed
