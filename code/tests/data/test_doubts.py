"""Numbers that lie: every warning of cmg/data/doubts.py provoked by a real run, once, in the log and for the report."""

import json
import os
import shutil

import h5py
import pytest
import torch

import ave
import evaluate
import ucf_vggsound
from cmg.checkpoints import checkpoint, hub
from cmg.cli import parse_pretrain
from cmg.data import origins
from cmg.data.layout import DATA_PATHS
from cmg.prepare import check
from cmg.prepare.pack import pack
from cmg.programs import pretrain
from cmg.report import export, run_files
from configs.opts import LOCAL
from conftest import refused
from tiny import train

pytestmark = pytest.mark.usefixtures("small_model")
VGG19 = {"network": "vgg19", "kind": "caffe", "recognised_by": "hash", "sha256": "ab", "width": 512}
PATCHES = {"network": "patches", "filters": "random", "width": 32}
LOGMEL = {"network": "logmel", "route": "native", "framing": "second", "resampler": "r022", "width": 128}
WORDS = {"backend": "transformers", "model": "bert-base-uncased", "unit": "words"}


def extracted(folder, source, place, sidecar, note=None):
    """Features of the demo tree as an extraction would have left them: a copy with a sidecar. Returns the place."""
    place = folder / place
    place.parent.mkdir(parents=True, exist_ok=True)
    copy = shutil.copytree if source.is_dir() else shutil.copyfile
    copy(source, place, **({"copy_function": os.link} if source.is_dir() else {}))
    (folder / origins.SIDECAR).write_text(json.dumps({"settings": sidecar, "notes": [note] if note else []}))
    return place


@pytest.fixture(scope="module")
def run(demo_data, small_model, tmp_path_factory):
    """Folder of a pretraining run on log-mel features, patches and hashed prompts, and its places."""
    folder = tmp_path_factory.mktemp("origin")
    sidecar = {"audio": LOGMEL, "video": PATCHES}
    flags = []
    for m in ("audio", "video"):
        place = extracted(folder, demo_data / DATA_PATHS[f"vggsound.{m}"], f"{m}/zip", sidecar)
        flags += ["--path", f"vggsound.{m}={place}"]
    assert train(demo_data, folder, "--max_steps", 3, *flags) == 0
    return folder


def file_of(run):
    return next((run / "checkpoints").glob("*.pt"))


def measure(script, data, file, out, *more):
    """A task script on one epoch of heads; returns the lines of warnings.jsonl."""
    script.main(["--data_root", str(data), "--checkpoint", str(file), "--gpu", "cpu", "--in_memory", "--n_epoch", "1",
                 "--no_control", "--snapshot_pref", str(out), *map(str, more)])
    return warnings_of(out)


def warnings_of(folder):
    path = folder / "warnings.jsonl"
    return [json.loads(line)["message"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_checkpoint_says_what_it_was_pretrained_on(run, demo_data):
    kept = checkpoint.read(file_of(run))["features"]
    assert kept["audio"] == LOGMEL and kept["video"] == PATCHES
    assert kept["text"]["backend"] == "hashing" and kept["text"]["unit"] == "words"
    export.export(file_of(run), run / "shared")
    assert hub.load_encoder(run / "shared").features == checkpoint.load_encoder(file_of(run)).features == kept


def test_features_of_another_kind_are_said_once(run, demo_data, tmp_path, caplog):
    places = {m: extracted(tmp_path / "other", demo_data / DATA_PATHS[f"ave.{m}"], name,
                           {"audio": LOGMEL | {"network": "vggish", "kind": "audioset"}, "video": PATCHES})
              for m, name in (("audio", "audio_feature.h5"), ("video", "visual_feature.h5"))}
    flags = [x for m, place in places.items() for x in ("--path", f"ave.{m}={place}")]
    found = [line for line in measure(ave, demo_data, file_of(run), tmp_path / "run", *flags)
             if "pretrained on" in line]
    assert len(found) == 1 and "pretrained on audio features of logmel;" in found[0]
    assert f"{places['audio']} has features of vggish audioset: " in found[0] and "with the same encoder" in found[0]
    assert found[0] in [line["message"] for _, line in run_files.read_run(tmp_path / "run").warnings]
    caplog.clear()
    evaluate.main([str(file_of(run)), "--data_root", str(demo_data), "--gpu", "cpu", "--in_memory", "--n_epoch", "1",
                   "--tasks", "ave", "ave_avvp", "--no_control", "--no_text", "--snapshot_pref", str(tmp_path / "all"),
                   *flags])
    assert caplog.text.count(f"{places['audio']} has features of") == 1


def test_features_of_the_same_kind_are_no_news(run, demo_data, tmp_path):
    places = [x for m, name in (("audio", "audio_feature.h5"), ("video", "visual_feature.h5")) for x in (
        "--path", f"ave.{m}=" + str(extracted(tmp_path / "same", demo_data / DATA_PATHS[f"ave.{m}"], name, {
            "audio": LOGMEL | {"route": "nearest"}, "video": PATCHES})))]
    assert not [line for line in measure(ave, demo_data, file_of(run), tmp_path / "run", *places)
                if "pretrained on" in line]


def test_words_of_another_encoder_are_said(run, demo_data, tmp_path):
    text = tmp_path / "prompts.h5"
    shutil.copy(demo_data / DATA_PATHS["ucf_vggsound.text"], text)
    with h5py.File(text, "r+") as file:
        file.attrs["backend"], file.attrs["model"] = "transformers", "/models/bert-base-uncased"
    more = ["--source", "video", "--target", "text"]
    found = measure(ucf_vggsound, demo_data, file_of(run), tmp_path / "a", *more, "--path", f"ucf_vggsound.text={text}")
    lines = [line for line in found if "text features" in line]
    assert len(lines) == 1 and "text features of hashing words;" in lines[0] and "--backend and --model" in lines[0]
    assert f"{text} has features of transformers bert-base-uncased words" in lines[0]
    assert not [line for line in measure(ucf_vggsound, demo_data, file_of(run), tmp_path / "b", *more)
                if "text features" in line]


def test_a_resumed_run_on_other_features_is_said(run, demo_data, tmp_path, caplog):
    train(demo_data, tmp_path, "--resume", file_of(run), "--max_steps", 4)
    assert caplog.text.count("pretrained on audio features of logmel; ") == 1
    assert checkpoint.read(next((tmp_path / "checkpoints").glob("*step4.pt")))["features"]["audio"] is None


@pytest.mark.parametrize("one, other, says", [
    (None, None, None), (VGG19, None, None), (None, PATCHES, "no features.json"), (PATCHES, PATCHES, None),
    (VGG19, VGG19 | {"sha256": "cd"}, None), (VGG19 | {"recognised_by": "name given"}, VGG19, "with sha256"),
    (VGG19, VGG19 | {"kind": "torchvision"}, "vgg19 torchvision"), (VGG19, VGG19 | {"width": 64}, "with width 64"),
    ({"network": "vggish", "kind": "audioset", "pca": True}, None, "vggish audioset"),
    (WORDS, WORDS | {"backend": "bert-embedding", "model": ""}, None), (WORDS, WORDS | {"unit": "pieces"}, "pieces"),
    (None, WORDS, None), (WORDS, WORDS | {"model": "roberta-base"}, "roberta-base")])
def test_which_descriptions_go_together(one, other, says):
    for pair in ((one, other), (other, one)):
        found = origins.difference(*pair)
        assert (found is None) == (says is None) and (says is None or says in " ".join(found))


def test_packs_and_avsbench_keep_what_they_were_made_with(run, tmp_path):
    pack(run / "audio" / "zip", tmp_path / "elsewhere.h5", "audio")
    assert origins.describe(tmp_path / "elsewhere.h5", "audio") == LOGMEL
    for folder, preset, expected in (("a", "avsbench", LOGMEL), ("b", None, None)):
        place = tmp_path / folder / "AVSBench" / "feature" / "audio"
        place.mkdir(parents=True)
        (tmp_path / folder / origins.SIDECAR).write_text(json.dumps({"settings": {"audio": LOGMEL,
                                                                                 "clips": {"preset": preset}}}))
        assert origins.describe(place, "audio") == expected


@pytest.mark.parametrize("content", ["[1]", "{", '{"settings": 3}', '{"settings": {"audio": 1}}', '{"notes": 7}',
                                     "[" * 5000, '"' + "x" * (1 << 21)])
def test_a_damaged_sidecar_is_one_line(tmp_path, content):
    (tmp_path / origins.SIDECAR).write_text(content)
    refused("features.json: not a valid record", origins.describe, tmp_path / "audio" / "zip", "audio")


def test_a_damaged_description_in_a_checkpoint_is_one_line(run, tmp_path):
    contents = checkpoint.read(file_of(run))
    checkpoint.save(tmp_path / "x.pt", contents | {"features": {"audio": 3}})
    refused("entry 'features' is an invalid dict", checkpoint.open_file, tmp_path / "x.pt")
    checkpoint.save(tmp_path / "old.pt", {name: value for name, value in contents.items() if name != "features"})
    assert checkpoint.open_file(tmp_path / "old.pt").feature_origins is None          # of before this was kept: silent
    published = {name: value for name, value in contents.items() if name not in ("features", "config", "run")}
    checkpoint.save(tmp_path / "published.pt", published)
    assert checkpoint.open_file(tmp_path / "published.pt").feature_origins == dict.fromkeys(("audio", "video", "text"))


def test_check_reads_the_notes_of_an_extraction(demo_data, tmp_path):
    place = extracted(tmp_path, demo_data / DATA_PATHS["vggsound.audio"], "audio/zip", {"audio": LOGMEL},
                      "never use them")
    report = check.check("x", {"vggsound.audio": place}, "", [])
    assert report.warnings == ["vggsound.audio: never use them"] and "warning: vggsound.audio: never" in str(report)


def test_a_run_of_too_few_steps_is_said_in_log_and_report(run):
    found = [line for line in warnings_of(run / "run") if "far fewer" in line]
    assert len(found) == 1 and "3 steps are far fewer than the 3,066 of the published run" in found[0]
    assert found[0] in [line["message"] for _, line in run_files.read_run(run / "run").warnings]
    assert found[0] in (run / "run" / "log.txt").read_text()


# ------------------------------------------------------------------------------------------------- nothing is shared
def apart(file, data, path):
    """A checkpoint of which code 0 is the mean of all sounds, code 1 that of all pictures, and the rest far away."""
    contents = checkpoint.read(file)
    clips = pretrain.open_data(parse_pretrain(["--data_root", str(data)], LOCAL))
    level = checkpoint.open_file(file).system.eval().encoder.levels[0]
    codes = contents["Encoder_parameters"]["Cross_quantizer.embedding"].fill_(1e3)
    with torch.no_grad():
        for code, modality in enumerate(("audio", "video")):
            codes[code] = level.encode_semantic(modality, torch.as_tensor(clips.load(modality))).mean((0, 1))
    checkpoint.save(path, contents)
    return path


def test_codes_that_no_modality_shares_are_said(run, demo_data, tmp_path):
    file = apart(file_of(run), demo_data, tmp_path / "apart.pt")
    found = [line for line in measure(ave, demo_data, file, tmp_path / "run") if "shares no code with" in line]
    assert len(found) == 1 and "warning: in 2 of " in found[0] and "ave audio->video" in found[0]


def test_levels_are_judged_one_by_one():
    one, other = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[2, 5], [9, 7]])
    assert (origins.apart(one, other), origins.apart(one, one)) == ([2], [])
    assert (origins.apart(one[:, 0], one[:, 1]), origins.apart(one[:, 0], one[1:, 0])) == ([1], [])


def test_a_short_run_that_shares_nothing_says_so_at_its_end(demo_data, tmp_path, monkeypatch):
    from cmg.training import monitors
    monkeypatch.setattr(monitors, "code_usage", lambda *args: monitors.CodeUsage(
        codes_used=20, codes_shared=0, seconds=80, perplexity=10.0))
    train(demo_data, tmp_path, "--max_steps", 3)
    found = [line for line in warnings_of(tmp_path / "run") if "is used by all modalities" in line]
    assert len(found) == 1 and "keep cmcm" in found[0]
