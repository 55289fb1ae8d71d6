"""AVSBench-S4 from files to results: queries, data, training, testing, and what is said about wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import demo_scenes
import evaluation
import network_files
import numpy as np
import pytest
import settings
import torch
import train
from network import published
from network.avs import AVSNetwork, NetworkConfig
from PIL import Image
from query import Adapter, Query
from training import IOU, losses

from avs_test import test
from cmg.checkpoints import checkpoint
from cmg.data.layout import DATA_PATHS
from cmg.data.text import Sentence, write_text_features
from cmg.demos import dialled_clips
from cmg.models.config import Config
from cmg.models.toc import Selection, head_channels, select
from cmg.systems.base import FrozenEncoder
from cmg.systems.dcid import DCID
from cmg.utils import files
from cmg.utils.errors import InputError
from conftest import message, refused
from kill_resume import differences

NETWORK = ["--visual_backbone", "small", "--tpavi_stages", "2", "3", "--tpavi_va_flag", "--image_size", "32"]
RUN = ["--num_workers", "0", "--gpu", "cpu"]


def config(modalities=("audio", "text")):
    return Config.for_data(modalities, video_dim=8, num_codes=12, code_dim=16, text_hidden=8, feed_forward=16,
                           num_layers=1, num_heads=2)


def frozen(seed=0):
    torch.manual_seed(seed)
    encoder = DCID(config()).encoder
    for codes in encoder.codebooks:
        codes.normal_()
    return FrozenEncoder(encoder, DCID)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A small data root of scenes, and two pretrained checkpoints."""
    root = tmp_path_factory.mktemp("avs")
    rng = np.random.default_rng(0)
    sentences = [Sentence(p.split(), rng.standard_normal((len(p.split()), 768)), [1] * len(p.split()))
                 for p in dialled_clips.PROMPTS.values()]
    write_text_features(root / DATA_PATHS["vggsound.text"], dialled_clips.PROMPTS, sentences, "hashing")
    assert demo_scenes.build(root, DATA_PATHS, clips={"train": 12, "val": 4, "test": 7}, progress=False)
    for seed in (0, 1):
        torch.manual_seed(seed)
        checkpoint.save(root / f"encoder{seed}.pt", checkpoint.pack(DCID(config()), None, {}, 0, 0, {}))
    return root


def train_arguments(tree, out, direction="at", *more):
    return ["--checkpoint", str(tree / "encoder0.pt"), "--data_root", str(tree), "--log_dir", str(out), "--direction",
            direction, *NETWORK, "--channels", "8", "--tpavi_norm_start", "1", *RUN, *more]


def test_arguments(tree, out, *more):
    return ["--checkpoint", str(tree / "encoder0.pt"), "--data_root", str(tree), "--log_dir", str(out / "tests"),
            "--train_log_dir", str(out), "--figure_dir", str(out / "figs"), *RUN, *more]


test_arguments.__test__ = False


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    """Folder with one run in each direction, two epochs each."""
    out = tmp_path_factory.mktemp("runs")
    for direction in ("at", "ta"):
        train.main(train_arguments(tree, out, direction, "--max_epoches", "2", "--lr", "1e-3"))
    return out


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_train_and_test_leave_everything_behind(tree, trained, capsys):
    test.main(test_arguments(tree, trained, "--direction", "at", "--test_batch_size", "3", "--save_pred_mask",
                             "--results", str(trained / "one.jsonl")))
    run, = trained.glob("S4_at_*")
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"best.pth", "last.pth"}
    assert (run / "log" / "log.txt").read_text().count("validation with text") == 2
    rows = read_rows(trained / "one.jsonl")
    found = {(row["direction"], row["control"], row["metric"], row["selection"]) for row in rows}
    assert found == {(d, c, m, s) for d, c in (("audio->text", None), ("audio->audio", None), ("audio->text", "zero"),
                                               ("audio->text", "shuffled"))
                     for m in ("mIoU", "F") for s in ("last", "best")}
    assert {row["checkpoint_sha256"] for row in rows} == {files.sha256(tree / "encoder0.pt")}
    masks = sorted((trained / "tests").glob("S4_at_*/pred_masks/*/*/*.png"))
    assert len(masks) == 7 * 5 and {path.stem[-1] for path in masks} == set("12345")
    with Image.open(masks[0]) as image:
        assert image.mode == "L" and image.size == (32, 32) and set(np.unique(np.asarray(image))) <= {0, 255}
    with Image.open(trained / "figs" / "avs_S4_audio_to_text.png") as image:
        assert image.size[1] > image.size[0]                     # seven clips below each other, four columns
    assert "audio->text [shuffled]" in capsys.readouterr().out


def test_same_test_twice_gives_the_same_figures(tree, trained):
    for name in ("a", "b"):
        test.main(test_arguments(tree, trained, "--direction", "ta", "--overlays", "0", "--results",
                                 str(trained / f"{name}.jsonl")))
    one, two = (read_rows(trained / f"{name}.jsonl") for name in "ab")
    assert [row["value"] for row in one] == [row["value"] for row in two]
    assert one[0]["direction"] == "text->audio"


def test_released_protocol_numbers_masks_from_zero_and_trains_no_adapter(tree, tmp_path):
    train.main(train_arguments(tree, tmp_path, "ta", "--protocol", "released"))
    run, = tmp_path.glob("S4_ta_*")
    state = torch.load(run / "checkpoints" / "last.pth", weights_only=True)
    torch.manual_seed(123)
    assert torch.equal(state["adapter"]["weight"], Adapter("torch").weight)
    test.main(test_arguments(tree, tmp_path, "--direction", "ta", "--protocol", "released", "--save_pred_mask",
                             "--overlays", "0", "--test_batch_size", "4"))
    row = read_rows(next((tmp_path / "tests").glob("*/results.jsonl")))[0]
    assert row["protocol"] == "released" and row["test_batch_size"] == 4
    assert {path.stem[-1] for path in (tmp_path / "tests").glob("*/pred_masks/*/*/*.png")} == set("01234")


def test_bare_published_network_is_tested_and_its_adapter_missed(tree, trained, tmp_path, capsys):
    run, = trained.glob("S4_at_*")
    bare = tmp_path / "S4_pvt_best.pth"
    network = AVSNetwork(NetworkConfig("small", (2, 3), tpavi_va=True, code_dim=16))
    torch.save(published.to_published(network), bare)
    test.main(test_arguments(tree, tmp_path, "--weights", str(bare), "--direction", "ta", "--overlays", "0", *NETWORK))
    assert "has no adapter" in capsys.readouterr().out
    refused("a bare state dict without settings", test.main, test_arguments(tree, tmp_path, "--weights", str(bare)))


@pytest.mark.parametrize(("more", "message"), (
    (("--direction", "ta"), "trained with direction at, not --direction ta"),
    (("--tpavi_stages", "0"), "tpavi_stages"), (("--tpavi_vv_flag",), "tpavi_vv_flag False"),
    (("--visual_backbone", "pvt"), "visual_backbone small"), (("--protocol", "released"), "--protocol default"),
    (("--image_size", "64"), "image_size 32")))
def test_contradicting_flags_are_refused(tree, trained, more, message):
    run, = trained.glob("S4_at_*")
    refused(message, test.main, test_arguments(tree, trained, "--weights", str(run), *more))


def test_checkpoint_of_another_encoder_is_refused(tree, trained):
    run, = trained.glob("S4_at_*")
    with pytest.raises(InputError, match="trained with another encoder"):
        test.main([*test_arguments(tree, trained, "--weights", str(run)), "--checkpoint", str(tree / "encoder1.pt")])


def test_encoder_without_text_is_refused(tree, tmp_path):
    checkpoint.save(tmp_path / "av.pt", checkpoint.pack(DCID(config(("audio", "video"))), None, {}, 0, 0, {}))
    with pytest.raises(InputError, match="pretrained on audio, video, but text was requested"):
        train.main([*train_arguments(tree, tmp_path), "--checkpoint", str(tmp_path / "av.pt")])


def test_same_modality_reference_needs_that_modality_alone(tree, tmp_path):
    checkpoint.save(tmp_path / "av.pt", checkpoint.pack(DCID(config(("audio", "video"))), None, {}, 0, 0, {}))
    train.main([*train_arguments(tree, tmp_path, "aa"), "--checkpoint", str(tmp_path / "av.pt")])
    test.main([*test_arguments(tree, tmp_path, "--direction", "aa", "--overlays", "0"), "--checkpoint",
               str(tmp_path / "av.pt")])
    rows = read_rows(next((tmp_path / "tests").glob("S4_aa_*/results.jsonl")))
    assert {(row["direction"], row["control"]) for row in rows} == {
        ("audio->audio", control) for control in (None, "zero", "shuffled")}
    assert all(row["value"] == row["same_modality"] for row in rows if row["control"] is None)


def test_network_sees_the_channels_that_toc_keeps(tree, tmp_path):
    train.main(train_arguments(tree, tmp_path, "at", "--choose_channel", "12", "--toc_max_num", "2", "--toc_min_num",
                               "1"))
    state = torch.load(next(tmp_path.glob("S4_at_*")) / "checkpoints" / "last.pth", weights_only=True)
    assert state["toc"] == [12, 2, 1, "both"] and state["network"]["tpavi_b3.align_channel.weight"].shape[1] == 12
    test.main(test_arguments(tree, tmp_path, "--direction", "at", "--overlays", "0"))
    rows = read_rows(next((tmp_path / "tests").glob("S4_at_*/results.jsonl")))
    assert {row["variant"] for row in rows} == {"TOC 12,2,1"}
    encoder, batch = frozen(), {"audio": torch.randn(2, 5, 128), "category": torch.zeros(2, dtype=torch.int64)}
    selection, adapter = Selection(12, 2, 1), Adapter("tied")
    kept = Query(encoder, adapter, channels=head_channels(encoder.codebooks, selection)).eval()
    torch.testing.assert_close(kept("audio", batch), Query(encoder, adapter).eval()("audio", batch)[
        ..., select(encoder.codebooks[0], selection)])
    assert kept.width == 12


def test_toc_that_the_codes_cannot_give_is_refused_before_work(tree, tmp_path):
    refused("nearest valid value is 15", train.main,
            train_arguments(tree, tmp_path, "at", "--choose_channel", "16", "--toc_max_num", "2", "--toc_min_num", "1"))
    assert not list(tmp_path.iterdir())


def test_training_starts_from_a_trained_network(tree, trained, tmp_path):
    best = next(trained.glob("S4_at_*")) / "checkpoints" / "best.pth"
    train.main(train_arguments(tree, tmp_path, "at", "--weights", str(best), "--lr", "1e-9"))
    states = [torch.load(path, weights_only=True)["network"] for path in
              (best, next(tmp_path.glob("S4_at_*")) / "checkpoints" / "last.pth")]
    for key, x in states[0].items():
        if key.endswith("weight"):
            torch.testing.assert_close(x, states[1][key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("more", (
    ("--tpavi_stages", "1", "1"), ("--sa_loss_flag", "--lambda_1", "0.5"), ("--lr", "0"), ("--lambda_1", "1"),
    ("--sa_loss_flag", "--lambda_1", "0.5", "--sa_loss_stages", "0"), ("--image_size", "50"), ("--tpavi_stages", "4"),
    ("--visual_backbone", "pvt"), ("--gpu", "99"), ("--max_epoches", "0")))
def test_impossible_arguments_end_before_any_work(tree, tmp_path, more, capsys):
    with pytest.raises((SystemExit, InputError)) as caught:
        train.main([*train_arguments(tree, tmp_path), *more])
    assert isinstance(caught.value, InputError) or caught.value.code == 2
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_one_line_and_exit_code_two(tree, tmp_path):
    script, here = Path(train.__file__), Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", script.with_suffix(".sh")], capture_output=True, text=True, env=environment,
                          cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and "--checkpoint is required" in done.stderr and done.stderr.count("\n") == 1
    assert "csv" in message(train.main, ["--checkpoint", str(tree / "encoder0.pt"), *NETWORK, "--data_root",
                                         str(tmp_path)])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- queries
def test_adapter_is_the_stated_sum():
    adapter = Adapter("torch").double()
    x = torch.randn(2, 10, 3, dtype=torch.float64)
    y = torch.stack([sum(adapter.weight[s, t] * x[:, t] for t in range(10)) + adapter.bias[s] for s in range(5)], 1)
    torch.testing.assert_close(adapter(x), y)


def test_adapter_starts():
    tied, same = Adapter("tied"), Adapter("resample")
    assert torch.equal(tied.weight[:, :5], tied.weight[:, 5:])
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(same(x.repeat(1, 2, 1)), x)
    assert not torch.equal(Adapter("torch").weight[:, :5], Adapter("torch").weight[:, 5:])


@pytest.mark.parametrize("modality", ("audio", "text"))
def test_gradient_reaches_the_adapter_through_the_frozen_encoder(modality):
    encoder = frozen()
    before = {key: x.clone() for key, x in encoder.state_dict().items()}
    query = Query(encoder, Adapter("tied"), torch.randn(3, 10, 768)).train()
    batch = {"audio": torch.randn(4, 5, 128), "category": torch.tensor([0, 1, 2, 1])}
    network = AVSNetwork(NetworkConfig("small", (3,), tpavi_va=True, code_dim=16, channels=8, norm_start=1.0))
    pictures = {"frames": torch.randn(4, 5, 3, 32, 32), "masks": torch.ones(4, 1, 32, 32)}
    losses(network, query, modality, {**batch, **pictures}, settings.Learning())[IOU].backward()
    weight = query.adapter.weight
    assert weight.grad.abs().max() > 0
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(x, before[key]) for key, x in encoder.state_dict().items())
    if modality == "audio":             # the sound is repeated: equal gradients for both halves
        torch.testing.assert_close(weight.grad[:, :5], weight.grad[:, 5:])
    else:
        assert not torch.allclose(weight.grad[:, :5], weight.grad[:, 5:])


def test_only_the_released_protocol_keeps_the_dropout():
    batch = {"audio": 3 * torch.randn(40, 5, 128), "category": torch.zeros(40, dtype=torch.int64)}
    torch.manual_seed(1)
    adapter = Adapter("torch")
    for dropout in (False, True):
        query = Query(frozen(), adapter, None, dropout).eval()
        with torch.no_grad():
            assert torch.equal(query("audio", batch), query("audio", batch)) is not dropout


def test_clips_of_a_class_share_one_sentence():
    query = Query(frozen(), Adapter("tied"), torch.randn(3, 10, 768)).eval()
    codes = evaluation.clip_codes(query, "text", {"category": torch.tensor([0, 2, 0])})
    assert codes.shape == (3, 5, 16) and torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("count", (2, 3, 50))
def test_shuffled_codes_leave_no_clip_its_own(count):
    codes = torch.arange(count, dtype=torch.float32)[:, None, None].expand(-1, 5, 2)
    mixed = evaluation.shuffled(codes, 3)
    assert sorted(mixed[:, 0, 0].tolist()) == list(range(count)) and not (mixed == codes).any()
    assert torch.equal(mixed, evaluation.shuffled(codes, 3))


def test_matching_loss_trains_all_frames(tree, tmp_path):
    train.main([*train_arguments(tree, tmp_path), "--sa_loss_flag", "--lambda_1", "0.5", "--sa_loss_stages", "2", "3"])
    line = read_rows(next(tmp_path.glob("*/log/metrics.jsonl")))[0]["losses"]
    assert line["sa_loss"] > 0 and line["lambda_1"] == 0.5


def test_stored_network_is_the_trained_one(trained, tree):
    run, = trained.glob("S4_at_*")
    unknown = settings.Conditions(*[None] * 6)
    more = unknown, "default", files.sha256(tree / "encoder0.pt"), [torch.zeros(4, 16)]
    stored = network_files.load(run / "checkpoints" / "last.pth", *more)
    assert stored.epoch == 2 and stored.direction == "at" and stored.network.config.tpavi_stages == (2, 3)
    assert not torch.allclose(stored.adapter.weight, Adapter("tied").weight) and not stored.network.training
    network_files.save(run / "copy.pth", stored)
    again = network_files.load(run / "copy.pth", *more)
    assert all(torch.equal(x, again.network.state_dict()[key]) for key, x in stored.network.state_dict().items())
    first, second = (torch.load(run / name, weights_only=True) for name in ("checkpoints/last.pth", "copy.pth"))
    assert differences(first, second) == []


@pytest.mark.parametrize("entry, value", [("toc", toc) for toc in (
    [12, 1, 0, "both"], [17, 1, 0, "both"], [4.0, 1, 0, "both"], ["all", 1, 0, "both"], [16, 1, 0, "best"], 7, "16", [],
    0, {"choose_channel": 16}, [True, 1, 0, "both"], [[16], 1, 0, "both"], [10 ** 40, 1, 0, "both"],
    torch.tensor([16, 1, 0]), [16, 1, 0, None])] + [
    ("settings", {"backbone": "small", "tpavi_stages": 3}), ("settings", {"backbone": "none", "code_dim": 16}),
    ("settings", {"backbone": "small", "code_dim": 16, "channels": "many"}), ("direction", "xy")])
def test_a_file_edited_by_hand_is_refused_in_one_line(tree, trained, tmp_path, entry, value):
    edited = edit(trained, tmp_path, **{entry: value})
    refused(r"last.pth: invalid settings of a network \(.*a file of train.py", network_files.load, *edited,
            files.sha256(tree / "encoder0.pt"), [torch.zeros(4, 16)])


@pytest.mark.parametrize("entry, value, message", (
    ("settings", [1], "'settings' is a list"), ("epoch", None, "'epoch' is a NoneType"),
    ("adapter", {"weight": 1, "bias": torch.zeros(5)}, "adapter: weight is int; expected"),
    ("network", {7: torch.zeros(1)}, "tensors missing, 1 unknown")))
def test_an_entry_of_another_kind_is_refused(tree, trained, tmp_path, entry, value, message):
    edited = edit(trained, tmp_path, **{entry: value})
    refused(rf"last\.pth: .*{message}", network_files.load, *edited, files.sha256(tree / "encoder0.pt"),
            [torch.zeros(4, 16)])


def edit(trained, folder, **entries):
    """A copy of a trained file with other entries: (its path, Conditions that expect nothing, protocol)."""
    run, = trained.glob("S4_at_*")
    torch.save(torch.load(run / "checkpoints" / "last.pth", weights_only=True) | entries, folder / "last.pth")
    return folder / "last.pth", settings.Conditions(*[None] * 6), "default"


def test_decisive_settings_are_read_from_the_declarations():
    """Those of unfinished runs that exist, and the batch of validation where metrics are means over batches."""
    def names(*more):
        opts = settings.parse_train(["--checkpoint", "x", *NETWORK, *more])
        return set(settings.affects_results(opts, "sha"))
    known = set("""direction visual_backbone tpavi_stages tpavi_vv_flag tpavi_va_flag image_size channels
        tpavi_norm_start align_start adapter_start train_batch_size lr adapter_lr wt_dec sa_loss_flag lambda_1
        sa_loss_stages mask_pooling_type protocol seed weights backbone_weights choose_channel toc_max_num toc_min_num
        toc_terms encoder_sha256""".split())
    assert names() == known and names("--protocol", "released") == known | {"val_batch_size"}
