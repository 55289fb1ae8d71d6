"""An exported encoder is the checkpoint's, in another process too; and every damage of one is a line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ave
from cmg.checkpoints import __main__ as checkpoints_program
from cmg.checkpoints import checkpoint, hub
from cmg.checkpoints.paths import require
from cmg.results import rows as results
from cmg.utils import errors, files
from conftest import message, refused
from test_results import row
from tiny import checkpoints, train

PACKAGE = Path(errors.__file__).parents[1] / "cmg"


@pytest.fixture(scope="module")
def file(demo_data, small_model, tmp_path_factory):
    """A tiny H-DCID checkpoint: two codebooks, a clip's features go through both levels."""
    folder = tmp_path_factory.mktemp("sharing")
    assert train(demo_data, folder, "--system", "h_dcid", "--max_steps", "2") == 0
    return folder / "checkpoints" / checkpoints(folder)[-1]


@pytest.fixture(scope="module")
def shared(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "h_dcid"
    results.append(out.parent / "results.jsonl", row(checkpoint=str(file), checkpoint_sha256=files.sha256(file),
                                                     value=61.5, dataset="AVE <b>test</b>", origin="Digits"))
    checkpoints_program.main(["export", str(file), "--out", str(out), "--results", str(out.parent / "results.jsonl")])
    return out


@pytest.fixture
def copy(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "copy")


def clips(modality, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 10, *((7, 7) if modality == "video" else ()), width, generator=generator)


def code(*arguments):
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: checkpoints_program.main([str(x) for x in arguments]))
    return ended.value.code


def rewrite(folder, **changes):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))


def test_codes_are_those_of_the_checkpoint(file, shared, small_model):
    """By folder and by file, in float32 and float64; nothing of the training parts is shared."""
    for source in (shared, str(shared), shared / "model.safetensors"):
        for dtype in (torch.float32, torch.float64):
            there, here = checkpoint.load_encoder(file, dtype=dtype), hub.load_encoder(source, dtype=dtype)
            assert here.epoch == there.epoch and here.config == there.config and here.head_dim == there.head_dim
            for modality in there.config.modalities:
                x = clips(modality, there.config.feature_dim(modality)).to(dtype)
                one, other = there.embed(modality, x), here.embed(modality, x)
                assert torch.equal(one.indices, other.indices) and torch.equal(one.vectors, other.vectors)
    assert not any(name.startswith("objectives") for name in load_file(shared / "model.safetensors"))
    assert (shared / "model.safetensors").stat().st_size < file.stat().st_size / 2


def test_a_folder_that_an_earlier_version_exported_is_read(shared, copy):
    """Its residual blocks have other names."""
    before = {name.replace("conv3x3", "spread").replace("conv1x1", "mix"): value
              for name, value in load_file(copy / "model.safetensors").items()}
    assert any(".residual.spread." in name for name in before)
    save_file(before, copy / "model.safetensors")
    rewrite(copy, weights_sha256=files.sha256(copy / "model.safetensors"))
    now, then = (hub.load_encoder(folder).encoder.state_dict() for folder in (shared, copy))
    assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)


def test_the_card_says_what_was_measured(shared):
    text = (shared / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: cmg\n") and "61.5" in text and "H-DCID" in text and "seed 43" in text
    assert "Digits as AVE &#60;b>test&#60;/b>" in text and "Data: Dialled Digits as vggsound_AVT, 80 clips" in text
    assert f"(B, T, 7, 7, {json.loads((shared / 'config.json').read_text())['config']['shapes']['video'][-1]})" in text


def test_another_process_loads_it_without_our_options(file, shared, tmp_path):
    """As a user of the package: only `cmg` is on the path, and the program's configuration is not imported."""
    (tmp_path / "cmg").symlink_to(PACKAGE)
    encoder = checkpoint.load_encoder(file)
    x = clips("audio", 128)
    torch.save(x, tmp_path / "x.pt")
    program = ("import sys, torch, cmg; e = cmg.load(sys.argv[1]); c = e.embed('audio', torch.load('x.pt'));"
               "assert not any('configs' in name for name in sys.modules);"
               "print(c.indices.flatten().tolist())")
    done = subprocess.run([sys.executable, "-c", program, str(shared)], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == encoder.embed("audio", x).indices.flatten().tolist()


def test_by_its_name_on_the_hub(shared, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(shared)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub.load_encoder("somebody/h_dcid", revision="v1").system.name == "h_dcid"
    assert asked == [("somebody/h_dcid", "v1", ["model.safetensors", "config.json"])]

    def refuse(*arguments, **more):
        raise ConnectionError("no network\nand more")
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    refused("^somebody/h_dcid: no such file or .* the Hub .*no network", hub.load_encoder, "somebody/h_dcid")
    refused("no such file", hub.load_encoder, "folder/absent.pt")                # a file's name is never looked up
    refused("no such file", hub.load_encoder, "../absent")


def test_a_folder_without_a_checkpoint_names_those_below(tmp_path):
    """They are not taken: which of several was meant is not known."""
    (tmp_path / "checkpoint").mkdir()
    assert "create one with pretrain.sh" in message(require, tmp_path)
    (tmp_path / "checkpoint" / "DCID-model-0.pt").touch()
    for call in (require, hub.locate):
        found = message(call, tmp_path)
        assert found.startswith(f"{tmp_path}: no checkpoint in this folder; ")
        assert found.endswith(f"choose {tmp_path / 'checkpoint'}")
    require(tmp_path / "checkpoint")


def test_scripts_take_it_as_a_checkpoint(shared, demo_data, tmp_path):
    ave.main(["--data_root", str(demo_data), "--checkpoint", str(shared), "--snapshot_pref", str(tmp_path),
              "--n_epoch", "1", "--gpu", "cpu", "--no_control", "--dataset_name", "ave_va"])
    rows = results.read(tmp_path / "results.jsonl")
    assert rows[0]["checkpoint"] == str(shared / "model.safetensors")
    assert rows[0]["checkpoint_sha256"] == files.sha256(shared / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_a_damaged_folder_is_one_line(copy, name, damage):
    path = copy / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[:-9], "flipped": content[:40] + b"\xff" + content[41:]}[damage])
    with pytest.raises(errors.InputError, match=str(path)) as found:
        hub.load_encoder(copy)
    assert "\n" not in str(found.value)


def test_what_a_config_may_not_say(copy):
    about = json.loads((copy / "config.json").read_text())
    for changes in ({"format": 99}, {"config": {**about["config"], "system": "other"}}, {"config": [1]}, {"epoch": "x"},
                    {"config": {**about["config"], "num_codes": -1}}, {"config": {**about["config"], "more": 1}}):
        (copy / "config.json").write_text(json.dumps(about | changes))
        refused(str(copy), hub.load_encoder, copy)
    (copy / "config.json").write_text("[" * 100_000)
    refused(str(copy), hub.load_encoder, copy)


@pytest.mark.parametrize("change, said", [
    (lambda state: state.pop(next(iter(state))), "expected"),
    (lambda state: state.update(more=torch.zeros(2)), "unknown tensor more"),
    (lambda state: state.update({next(iter(state)): torch.zeros(2, 3, 4)}), "has shape"),
    (lambda state: state.update({next(iter(state)): next(iter(state.values())) * float("nan")}), "not finite")])
def test_weights_of_another_shape_or_kind(copy, change, said):
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")
    rewrite(copy, weights_sha256=files.sha256(copy / "model.safetensors"))
    refused(said, hub.load_encoder, copy)


def test_bad_arguments(file, shared, tmp_path, capsys):
    results.append(tmp_path / "other.jsonl", row())
    (tmp_path / "file").write_text("")
    for arguments in (["export", file], ["export", tmp_path / "absent.pt", "--out", tmp_path / "a"],
                      ["export", file, "--out", tmp_path / "a", "--results", tmp_path / "other.jsonl"],
                      ["export", file, "--out", tmp_path / "file" / "a"], ["export", shared, "--out", tmp_path / "a"]):
        assert code(*arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "a").exists()
    checkpoints_program.main([str(file)])
    assert "H-DCID" in capsys.readouterr().out
