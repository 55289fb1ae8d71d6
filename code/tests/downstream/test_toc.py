"""TOC: the closed form, the published selections, what is refused, and heads of several widths in one pass."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ave
import toc as script
from cmg.checkpoints import checkpoint
from cmg.cli import parse_downstream
from cmg.downstream import run
from cmg.downstream import toc as toc_variants
from cmg.downstream.settings import HeadSettings, TocSettings
from cmg.downstream.task import Pretrained
from cmg.downstream.tasks import TASKS
from cmg.models import toc
from cmg.models.config import Config
from cmg.models.heads import ClipHead
from cmg.programs import downstream
from cmg.results import rows as results
from cmg.systems.registry import SYSTEMS
from cmg.utils.errors import InputError
from cmg.utils.settings import read
from configs.opts import LOCAL
from conftest import refused
from test_transfer import Clips, Task, code_set, fit, train_alone, trial_of

F64 = torch.float64
WIDTHS = {"video_dim": 2, "num_codes": 12, "code_dim": 16, "feed_forward": 8, "club_hidden": 4,
          "text_hidden": 4, "text_dim": 6, "audio_dim": 5}


def codebook(number=50, width=16, seed=0):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=F64)


def double_loop(codes):
    """The published program's two terms: products of all ordered pairs, added one by one; variance of each channel."""
    number, width = codes.shape
    similarity = np.zeros(width)
    for i in range(number):
        for j in range(number):
            if i != j:
                similarity += codes[i] * codes[j]
    return similarity / (number * (number - 1)), codes.var(0, ddof=1)


# ------------------------------------------------------------------------------------------------ the criterion
def test_closed_form_is_the_double_loop():
    codes = codebook()
    similarity, variance = double_loop(codes.numpy())
    for terms, expected in (("both", -0.7 * similarity + 0.3 * variance), ("similarity", -0.7 * similarity),
                            ("variance", 0.3 * variance)):
        assert np.abs(toc.criterion(codes, terms).numpy() - expected).max() < 1e-12


@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_mean_and_variance_say_it_all(number, width, seed):
    codes = codebook(number, width, seed) + 2
    expected = (0.3 + 0.7 / number) * codes.var(0) - 0.7 * codes.mean(0) ** 2
    assert torch.allclose(toc.criterion(codes), expected, rtol=1e-12, atol=1e-12)


def test_float32_codes_are_summed_in_float64():
    codes = codebook(400, 8).float()
    assert torch.equal(toc.criterion(codes), toc.criterion(codes.double()))


def test_one_code_has_no_pairs():
    refused("this codebook has 1", toc.criterion, torch.ones(1, 4))


def test_published_selections_order_included(golden):
    codes = torch.from_numpy(np.load(golden / "toc.npz")["codebook"])
    for setting, theirs in json.loads((golden / "toc.json").read_text()).items():
        numbers = {key: int(value) for key, value in (pair.split("=") for pair in setting.split())}
        assert toc.select(codes, toc.Selection(**numbers)).tolist() == theirs, setting


def test_best_descend_and_worst_ascend():
    codes = torch.zeros(3, 4, dtype=F64)
    codes[0], codes[1] = torch.tensor([1.0, 3, 2, 0]), -torch.tensor([1.0, 3, 2, 0])      # criterion by size
    assert toc.select(codes, toc.Selection(4, 1, 1)).tolist() == [1, 2, 3, 0]
    assert toc.select(codes, toc.Selection(3, 1, 0)).tolist() == [1, 2, 0]
    assert toc.select(codes, toc.Selection(2, 0, 1)).tolist() == [3, 0]


# ------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("numbers, nearest", [
    ((225, 1, 1), "224"), ((257, 1, 0), "256"), ((0, 1, 0), "1"), ((-3, 2, 1), "3"), ((130, 3, 1), "128"),
    ((300, 3, 0), "255"), ((196, -1, 1), "0 and 1"), ((196, 1, -1), "1 and 0"), ((196, 0, 0), "1 and 0"),
    ((196, 300, 1), "256 and 0")])
def test_bad_settings_name_the_nearest_valid_value(numbers, nearest):
    with pytest.raises(InputError, match=f"nearest valid (value|setting) is {nearest}$"):
        toc.Selection(*numbers).counts(256)


@given(st.integers(-10, 600), st.integers(-3, 40), st.integers(-3, 40), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_counts_add_up_or_are_refused(choose, most, least, width):
    try:
        best, worst = toc.Selection(choose, most, least).counts(width)
    except InputError as error:
        nearest = str(error).split("nearest valid ")[1]
        if nearest.startswith("value"):                     # and following the advice works
            toc.Selection(int(nearest.split()[-1]), most, least).counts(width)
        else:
            most, least = (int(n) for n in nearest.removeprefix("setting is ").split(" and "))
            assert most >= 0 and least >= 0 and 0 < most + least <= width
    else:
        assert best + worst == choose <= width and best * least == worst * most


def test_released_numbers_suit_256_channels():
    assert {name for name, system in SYSTEMS.items() if system.TOC_RELEASED} >= {"dcid", "h_dcid"}
    for system, tasks in ((name, system.TOC_RELEASED) for name, system in SYSTEMS.items()):
        for task, pairs in tasks.items():
            assert 1 <= len(pairs) <= 2, (system, task)
            for numbers in pairs.values():
                assert sum(toc.Selection(*numbers).counts(256)) == numbers[0]
    assert SYSTEMS["dcid"].TOC_RELEASED["avvp"]["video", "audio"] == (128, 3, 1)
    assert SYSTEMS["h_dcid"].TOC_RELEASED["ucf_vggsound"]["audio", "video"] == (224, 1, 1)


# ------------------------------------------------------------------------------------------------ similarity of codes
def test_mean_cosine_is_the_mean_over_pairs_and_dead_codes_count_as_zero():
    codes = codebook(7, 5)
    codes[3] = 0
    pairs = [0.0 if i == 3 or j == 3 else float(torch.cosine_similarity(codes[i], codes[j], dim=0))
             for i in range(7) for j in range(7) if i != j]
    assert toc.mean_cosine(codes) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert toc.cosines(codes)[3].abs().max() == 0


# ------------------------------------------------------------------------------------------------ heads
def test_heads_of_several_widths_train_as_alone():
    part, test = code_set(23, 0), code_set(9, 99)
    chosen = [None, torch.tensor([4, 0, 2]), torch.tensor([1, 5, 3]), torch.tensor([5])]
    trials = [trial_of(part.select(c), ClipHead, 1, test.select(c)) for c in chosen]
    fit(trials, ClipHead, epochs=3, batch_size=8, lr=4e-3, clip_gradient=0.02)
    for trial, picked in zip(trials, chosen):
        width = 6 if picked is None else len(picked)
        alone = train_alone(trial, lambda _, classes, w=width: ClipHead(w, classes), 3, 8)
        for ours, theirs in zip(trial.head.parameters(), alone.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
        assert len(trial.curves["test"]["accuracy"]) == 3


def frozen(tmp_path, system="h_dcid", seed=0):
    """A checkpoint of tiny untrained weights with its codes among the features, as Pretrained."""
    torch.manual_seed(seed)
    model = SYSTEMS[system](Config.for_data(("audio", "video", "text"), **WIDTHS))
    for codes in model.encoder.codebooks:
        codes.normal_()
    path = tmp_path / f"{system}.pt"
    checkpoint.save(path, checkpoint.pack(model, None, {}, 3, 10, {}))
    return Pretrained.load(path, "cpu", "float32")


def options(folder, *arguments):
    return parse_downstream("ave", ["--gpu", "cpu", "--seeds", "0", "1", "--n_epoch", "2", "--b", "4", "--lr", "0.01",
                                    "--test_batch_size", "4", "--in_memory", "--snapshot_pref", str(folder),
                                    *arguments], LOCAL)


def evaluate(task, pretrained, opts):
    """Lines of a call with these options, as the script ave.py makes it."""
    variants = downstream.toc_choices(opts, TASKS["ave"], opts.directions, pretrained)
    output = results.Output(opts.results, "provenance/none.json")
    return run.evaluate(task, pretrained, variants, downstream.head_settings(opts, TASKS["ave"]), output)


def task_of(clips):
    parts = {"audio": clips, "video": clips}
    return Task("ave", ClipHead, "accuracy", train=parts, test=parts)


def figures(rows):
    return {(r["variant"], r["direction"], r["control"], r["seed"], r["selection"]): (r["value"], r["same_modality"])
            for r in rows}


@pytest.mark.parametrize("protocol", ["default", "released"])
def test_one_pass_over_several_settings_gives_what_each_gives_alone(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(toc_variants, "FIXED", (10, 1, 1))
    tiny = {("video", "audio"): (4, 1, 0), ("audio", "video"): (8, 3, 1)}
    monkeypatch.setitem(SYSTEMS["h_dcid"].TOC_RELEASED, "ave", tiny)
    pretrained, task = frozen(tmp_path), task_of(Clips())
    shared = ["--protocol", protocol, "--n_epoch", "6" if protocol == "released" else "2", "--precision", "float64"]
    together = figures(evaluate(task, pretrained, options(
        tmp_path, "--toc_preset", "off", "fixed", "released", "--choose_channel", "2", "6", *shared)))
    assert {name for name, *_ in together} == {"", "TOC 10,1,1", "TOC released", "TOC 2,1,0", "TOC 6,1,0"}
    alone = {}
    for asked in ("", "--toc_preset fixed", "--toc_preset released", "--choose_channel 2", "--choose_channel 6"):
        alone |= figures(evaluate(task, pretrained, options(tmp_path / "alone", *asked.split(), *shared)))
    assert together == alone
    assert len(together) == 5 * 2 * 2 * 2 * 2          # settings, directions, controls, seeds, selections
    assert results.read(tmp_path / "results.jsonl")


def test_all_channels_of_h_dcid_are_the_same_codes_in_another_order(tmp_path):
    encoder = frozen(tmp_path).encoder
    vectors = encoder.embed("audio", torch.rand(3, 10, 5)).vectors
    chosen = toc.head_channels(encoder.codebooks, toc.Selection(16, 1, 0))
    assert vectors.shape[-1] == encoder.head_dim == len(chosen) == 32
    assert sorted(chosen[:16].tolist()) == list(range(16)) and sorted(chosen[16:].tolist()) == list(range(16, 32))
    assert torch.equal(vectors[..., chosen][..., chosen.argsort()], vectors)
    assert toc.head_channels(encoder.codebooks, None) is None
    # of the published size, heads are 512 wide
    assert len(toc.head_channels([codebook(9, 256), codebook(9, 256, 1)], toc.Selection(256, 1, 0))) == 512


def test_each_level_is_selected_from_its_own_codebook():
    first, second = codebook(20, 16, 1), codebook(20, 16, 2)
    selection = toc.Selection(6, 2, 1)
    expected = toc.select(first, selection).tolist() + [16 + c for c in toc.select(second, selection).tolist()]
    assert toc.head_channels([first, second], selection).tolist() == expected


def test_variants_and_their_names(tmp_path):
    def variants(asked, task="ave", directions=None):
        opts = options(tmp_path, *asked.split())
        return toc_variants.variants(read(TocSettings, opts), task, directions or opts.directions, 256,
                                     SYSTEMS["dcid"].TOC_RELEASED)

    def names(*asked):
        return [v.name for v in variants(*asked)]
    assert names("") == [""] and names("--toc_preset off fixed released") == ["", "TOC 196,1,0", "TOC released"]
    assert names("--choose_channel 64 128") == ["TOC 64,1,0", "TOC 128,1,0"]
    assert names("--choose_channel 64 --toc_terms variance") == ["TOC 64,1,0 variance only"]
    assert names("--toc_preset fixed --choose_channel 196") == ["TOC 196,1,0"]
    released = variants("--toc_preset released", "avvp")[0].choices
    assert released["video", "audio"] == toc.Selection(128, 3, 1)
    # directions without published numbers are skipped, and where none is left there is nothing to do
    some = [("audio", "text"), ("audio", "video")]
    assert list(variants("--toc_preset released", "ave", some)[0].choices) == [("audio", "video")]
    assert names("--toc_preset off released", "retrieval") == [""]
    with pytest.raises(InputError, match="no published setting for retrieval with video->audio, audio->video"):
        names("--toc_preset released", "retrieval")
    assert read(HeadSettings, options(tmp_path)).seeds == (0, 1)


def test_settings_are_refused_before_any_data_is_read(tmp_path):
    with pytest.raises(InputError, match="--choose_channel 17: .* the nearest valid value is 16"):
        ave.main(["--data_root", "/nowhere", "--checkpoint", str(frozen(tmp_path).path), "--snapshot_pref",
                  str(tmp_path / "run"), "--gpu", "cpu", "--choose_channel", "4", "17"])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ toc.py
@pytest.mark.parametrize("system, pages", [("dcid", ["TOC_before_after"]),
                                           ("h_dcid", ["TOC_before_after", "TOC_before_after_2"])])
def test_script_prints_the_choice_and_draws_it(tmp_path, capsys, system, pages):
    pretrained = frozen(tmp_path, system)
    script.main([str(pretrained.path), "--choose_channel", "6", "--toc_max_num", "2", "--toc_min_num", "1",
                 "--snapshot_pref", str(tmp_path / "run")])
    blocks = capsys.readouterr().out.split("codebook ")[1:]
    assert len(blocks) == len(pages) == len(pretrained.encoder.codebooks)
    for block, page, codes in zip(blocks, pages, pretrained.encoder.codebooks):
        chosen = toc.select(codes, toc.Selection(6, 2, 1))
        assert f"{toc.mean_cosine(codes):.4f} before, {toc.mean_cosine(codes[:, chosen]):.4f} after" in block
        lines = block.split("criterion\n")[1].splitlines()[:6]
        assert [int(line.split()[0]) for line in lines] == chosen.tolist()
        printed = [float(line.split()[1]) for line in lines]
        assert printed == pytest.approx(toc.criterion(codes)[chosen].tolist(), rel=1e-3)
        pdf = (tmp_path / "run" / f"{page}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page ") == 1
        assert (tmp_path / "run" / f"{page}.png").read_bytes().startswith(b"\x89PNG")


def test_script_refuses_before_it_draws(tmp_path):
    with pytest.raises(InputError, match="nearest valid value is 8"):
        script.main([str(frozen(tmp_path).path), "--choose_channel", "7", "--toc_min_num", "1", "--snapshot_pref",
                     str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
