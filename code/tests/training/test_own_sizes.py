"""The values that own data gets by its size: the rule, what it leaves alone, and a run that prints and keeps them."""

import csv
import json
import math
from pathlib import Path

import own_data
import pytest

import pretrain
from cmg.checkpoints import checkpoint, hub
from cmg.cli import affects_results, own_data_sizes, parse_pretrain
from cmg.demos import own_example
from cmg.presets import OWN_SIZES, RECIPES, own_sizes
from cmg.systems.registry import SYSTEMS
from configs.opts import LOCAL
from tiny import run_once

DCID = (6, 400)         # epochs and codes, as published
FILES = ["--dataset_name", "custom", "--manifest", "c.csv", "--features", "audio=a", "--features", "video=v"]


def sizes(clips, seconds=10, epochs=DCID[0], codes=DCID[1], **given):
    return own_sizes(clips, seconds, epochs, codes, given)


@pytest.mark.parametrize("clips, seconds, batch, codes, epochs, lines, saves", [
    (1, 1, 2, 32, 150, 7, 25), (10, 10, 10, 32, 150, 7, 25), (13, 1, 12, 32, 75, 7, 12),
    (192, 5, 48, 64, 38, 7, 6), (192, 10, 48, 128, 38, 7, 6), (800, 5, 80, 256, 15, 7, 2),
    (2_400, 10, 80, 400, 15, 22, 2),
    (40_801, 10, 80, 400, 6, 50, 1), (10 ** 6, 10, 80, 400, 6, 50, 1), (10 ** 6, 1, 80, 400, 6, 50, 1)])
def test_the_rule(clips, seconds, batch, codes, epochs, lines, saves):
    assert sizes(clips, seconds) == {"batch_size": batch, "n_embeddings": codes, "n_epoch": epochs, "lr_drops": [],
                                     "print_freq": lines, "save_freq": saves}


@pytest.mark.parametrize("seconds", [1, 3, 10, 60])
def test_more_clips_never_get_less(seconds):
    """Steps, codes and clips a step grow with the data, from values that suit a single clip to the published ones."""
    counts = [*range(1, 400), *range(400, 50_000, 997), 10 ** 6]
    found = [sizes(clips, seconds) for clips in counts]
    for name in ("batch_size", "n_embeddings"):
        assert all(a[name] <= b[name] for a, b in zip(found, found[1:])), name
    for clips, one in zip(counts, found):
        an_epoch = math.ceil(clips / one["batch_size"])
        steps = an_epoch * one["n_epoch"]
        assert one["n_epoch"] == 6 or 150 <= steps < 600 + an_epoch
        assert 2 <= one["batch_size"] <= 80 and 2 <= one["n_embeddings"] <= 400
        assert 10 <= steps // one["print_freq"] and 6 <= one["n_epoch"] // one["save_freq"] <= 11


def test_what_is_set_wins_and_the_rest_follows():
    assert sizes(192, n_epoch=2) == sizes(192) | {"n_epoch": 2, "print_freq": 1, "save_freq": 1}
    assert sizes(192, max_steps=40) == sizes(192) | {"print_freq": 2, "save_freq": 1}
    assert sizes(192, batch_size=96)["n_epoch"] == 75
    for name, value in (("n_embeddings", 7), ("lr_drops", [3]), ("print_freq", 9), ("save_freq", 4)):
        assert sizes(192, **{name: value}) == sizes(192) | {name: value}


def settled(*flags, clips=192, seconds=10, stored=()):
    opts = parse_pretrain([*FILES, "--gpu", "cpu", *flags], LOCAL)
    own_data_sizes(opts, clips, seconds, dict(stored))
    return opts


def test_own_data_has_the_recipe_where_the_system_knows_it():
    for name, system in SYSTEMS.items():
        opts, plain = settled("--system", name), parse_pretrain(["--system", name], LOCAL)
        has_it = name in ("dcid", "h_dcid")
        assert opts.recipe == ("shared" if has_it else None) and opts.n_epoch == 38
        changed = {key for key, value in affects_results(opts).items() if value != affects_results(plain)[key]}
        recipe = {"weights", "code_choice", "reset_to", "reset_after"} if has_it else set()
        assert changed - {"n_embeddings"} == recipe | {"dataset_name", "splits", "standardize", "batch_size",
                                                       "lr_drops"}
        assert opts.n_embeddings <= system.Config().num_codes


def test_flags_win_over_the_recipe_of_own_data():
    opts = settled("--code_choice", "own", "--weights", "cpc=0.5", "--standardize", "none", "--b", "7")
    assert (opts.code_choice, opts.standardize, opts.batch_size) == ("own", "none", 7)
    assert opts.weights == [("contrast", 3.0), ("cpc", 0.5)] and opts.reset_after == 60
    assert settled("--recipe", "shared").weights == settled().weights == [("contrast", 3.0)]
    assert not {"code_choice", "weights", "standardize", "batch_size"} & set(opts.by_rule)


def test_published_values_are_untouched():
    """Those of the published data sets, and of own data with --recipe published."""
    published = affects_results(parse_pretrain(["--dataset_name", "vggsound"], LOCAL))
    assert affects_results(parse_pretrain(["--dataset_name", "vggsound", "--recipe", "published"], LOCAL)) == published
    opts = parse_pretrain([*FILES, "--recipe", "published"], LOCAL)
    assert affects_results(opts) == published | {"dataset_name": "custom", "splits": ["train"]}
    plain = parse_pretrain([], LOCAL)
    assert [getattr(plain, name) for name in OWN_SIZES] == [80, 400, 6, [10, 20, 30], 50, 1] == [
        getattr(opts, name) for name in OWN_SIZES]
    assert plain.by_rule == opts.by_rule == [] and (plain.weights, plain.code_choice) == ([], "own")


def test_a_resumed_run_keeps_its_values():
    stored = json.loads(json.dumps(affects_results(settled())))
    more = settled(clips=5_000, stored=stored)                      # there is more data now
    assert affects_results(more) == stored and more.n_epoch == 6
    assert settled("--b", "20", clips=5_000, stored=stored).batch_size == 20
    before = affects_results(parse_pretrain([*FILES, "--recipe", "published"], LOCAL))      # of an earlier version
    assert affects_results(settled(stored=before)) == before


def test_the_study_shows_its_runs():
    """The page has the table of its lines, none of them twice, of arms that there are."""
    file = Path(own_data.__file__).with_name("studies") / "own-data.jsonl"
    lines = own_data.read(file)
    assert own_data.table(lines) in file.with_suffix(".md").read_text(encoding="utf-8")
    assert len({line["run"] for line in lines}) == len(lines)
    assert {line["run"].split(":")[3] for line in lines} <= own_data.ARMS.keys()


def test_the_share_of_a_study_is_of_the_best_within_the_tested_modality():
    def line(arm, *values):
        names = ("audio->video", "video->audio", "audio->audio", "video->video", "codes_audio", "codes_video", "common")
        return {"run": f"spoken:200:AV:{arm}:0:75", "curve": {"75": dict(zip(names, values))}}
    rows = own_data.table([line("a", 40, 60, 60, 50, 3, 4, 9), line("b", 50, 20, 80, 40, 3, 4, 9)]).splitlines()[2:]
    assert [row.split(" | ")[10] for row in rows] == ["75", "25"]       # 60 of 80 (and 40 of 50); 20 of 80


@pytest.mark.usefixtures("small_model")
def test_a_run_says_its_values_and_resumes_with_them(tmp_path):
    """Six train clips in one step; then nine, which a new run would have in one step as well."""
    folder = tmp_path / "clips"
    own_example.write(folder, tmp_path)

    def run(*flags):
        assert run_once(["--dataset_name", "custom", "--manifest", str(folder / "clips.csv"), "--features",
                         f"audio={folder / 'audio'}", "--features", f"video={folder / 'video'}", "--gpu", "cpu",
                         "--workers", "0", "--model_save_path", str(tmp_path / "checkpoints"), "--snapshot_pref",
                         str(tmp_path / "run"), "--resume", "auto", *flags]) == 0
        return (tmp_path / "run" / "log.txt").read_text()
    assert ("6 clips: 2 steps of 6, K = 32, recipe shared; use --recipe published for the papers' values"
            in run("--max_steps", "2"))
    with open(folder / "clips.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (folder / "clips.csv").write_text("id,split\n" + "".join(
        f"{row['id']},{'train' if row['split'] == 'val' else row['split']}\n" for row in rows))
    text = run("--max_steps", "3", "--on_bad_clip", "skip")
    assert "9 clips: 3 steps of 6, K = 32" in text and "resuming in epoch 2" in text
    last = checkpoint.read(tmp_path / "checkpoints" / "DCID-model-2-step3.pt")["run"]
    assert last["position"]["step"] == 3 and last["options"]["lr_drops"] == []
    assert dict(last["options"]["weights"]) == dict(RECIPES["shared"]["weights"])
    assert hub.locate(tmp_path / "checkpoints").name == "DCID-model-2-step3.pt"
    text = run("--recipe", "published", "--max_steps", "1", "--n_embeddings", "8", "--b", "3", "--resume", "")
    assert "K = 8" in text and "1 steps are far fewer than the 3,066 of the published run" in text


def test_the_scripts_leave_own_data_to_the_rule():
    scripts = sorted(Path(pretrain.__file__).parent.glob("pretrain*.sh"))
    assert len(scripts) == 5
    for script in scripts:
        assert not {"--b", "-b", "--batch_size", "--n_embeddings", "--n_epoch", "--lr_drops", "--print_freq"} & set(
            script.read_text().split())
