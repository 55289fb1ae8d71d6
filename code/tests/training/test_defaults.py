"""The study of defaults: what its figures say of codes that are known, and a tiny run that resumes where it was; the
page of the natural study is what its command makes from the study's lines."""

import json

import defaults
import natural_tables
import numpy as np
import pytest
import torch
from defaults import read
from natural_tables import CROSS, Study, difference, page

from cmg.cli import affects_results, parse_pretrain
from cmg.downstream.encode import EncodedSplit
from cmg.presets import RECIPES
from configs.opts import LOCAL


def part(indices, labels):
    return EncodedSplit.of(torch.eye(10)[indices], indices, labels)


def test_use_of_known_codes():
    labels = torch.zeros(2, 4, 3)
    labels[..., 0] = 1
    labels[0, 0] = torch.tensor([0, 0, 1.0])                        # background does not count
    audio = torch.tensor([[9, 1, 1, 1], [1, 1, 2, 3]])
    video = torch.tensor([[9, 1, 4, 4], [4, 4, 2, 5]])
    found = defaults.code_use(part(audio, labels), part(video, labels))
    assert found["codes_used"] == 5 and found["common_codes"] == 40                 # 1 and 2 of 1 to 5
    assert found["common_seconds"] == pytest.approx(50 * (6 / 7 + 2 / 7), abs=0.01)
    assert found["overlap"] == pytest.approx(100 * 2 / 7, abs=0.01)
    assert found["same_code"] == pytest.approx(100 * 2 / 7, abs=0.01)


def test_every_arm_is_a_pretraining_run_of_its_own():
    options = [affects_results(parse_pretrain(["--preset", "spoken", *flags], LOCAL))
               for flags in defaults.ARMS.values()]
    plain = [json.dumps(value, sort_keys=True) for value in options]
    assert len(set(plain)) == len(plain)


@pytest.mark.parametrize("recipe", ["shared"])
def test_a_recipe_changes_defaults_and_flags_win(recipe, capsys):
    plain = parse_pretrain(["--preset", "spoken"], LOCAL)
    chosen = parse_pretrain(["--preset", "spoken", "--recipe", recipe], LOCAL)
    assert affects_results(chosen) != affects_results(plain)
    assert affects_results(chosen) == affects_results(plain) | json.loads(json.dumps(RECIPES[recipe]))
    assert chosen.model_save_path.name == f"dcid-seed0-{recipe}"
    assert parse_pretrain(["--recipe", recipe, "--reset_after", "7"], LOCAL).reset_after == 7
    assert parse_pretrain(["--recipe", recipe, "--system", "h_dcid"], LOCAL).code_choice == chosen.code_choice
    for system in ("fcid", "micu", "codaar"):
        with pytest.raises(SystemExit):
            parse_pretrain(["--recipe", recipe, "--system", system], LOCAL)
        assert f"--recipe {recipe}: --" in capsys.readouterr().err


def test_a_run_is_one_line_and_is_not_repeated(spoken_data, tmp_path, small_model, monkeypatch, capsys):
    monkeypatch.setattr(defaults, "HEAD_EPOCHS", 1)
    arguments = ["--data_root", str(spoken_data), "--out", str(tmp_path / "study.jsonl"), "--only", "default",
                 "--seeds", "0", "--steps", "3", "--every", "2", "--batch_size", "8"]
    defaults.main(arguments)
    (line,) = defaults.read(tmp_path / "study.jsonl")
    assert list(line["curve"]) == ["2", "3"] and line["seed"] == 0 and line["flags"] == []
    assert {"val", "test", "test_distances"} == set(line["curve"]["3"])
    monkeypatch.setattr(defaults, "train_and_measure", lambda *_: pytest.fail("a run was repeated"))
    defaults.main(arguments)
    assert "| default | vggsound | 8 | 3 | 0 |" in defaults.table(defaults.read(tmp_path / "study.jsonl"), "val")
    capsys.readouterr()
    checkpoint, = (tmp_path / "study").rglob("*.pt")
    defaults.main(["--data_root", str(spoken_data), "--out", str(tmp_path / "study.jsonl"), "--measure",
                   str(checkpoint)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test"] == line["curve"]["3"]["test"]


FOLDER = natural_tables.Path(natural_tables.__file__).parent / "studies"


@pytest.fixture(scope="module")
def study():
    return Study(read(FOLDER / "natural.jsonl"))


def test_the_page_holds_the_tables_of_the_command(study):
    text = (FOLDER / "natural.md").read_text()
    assert page(text, study) == text
    assert set(natural_tables.TABLES) == set(natural_tables.re.findall(r"<!-- table ([\w ]+) -->", text))


def test_every_run_has_what_the_tables_read(study):
    keys = [(line["arm"], line["modalities"], line["seed"], line["steps"], line["clips"]) for line in study.runs]
    assert len(keys) == len(set(keys))
    for line in study.runs:
        assert line["arm"] in natural_tables.LABELS, line["arm"]
        right = np.mean([natural_tables.hits(study, line, d)[0].mean() for d in CROSS])
        assert 100 * right == pytest.approx(natural_tables.last(line)["transfer"], abs=0.02)


def made(answers, seed=0):
    """A study of 40 clips with 10 sources, and a run of this answer to all of them."""
    clips = {"kind": "clips", "classes": [0] * 40, "audio": [k % 10 for k in range(40)],
             "video": [k % 10 for k in range(40)]}
    line = {"arm": "dcid", "modalities": "av", "seed": seed, "steps": 390, "clips": None, "curve": {},
            "final": {"predictions": dict.fromkeys(CROSS, answers)}}
    return Study([clips, line]), {seed: line}


def test_an_interval_holds_the_difference_and_shrinks_to_it_where_sources_agree():
    study, half = made("ab" * 20)
    _, none = made("b" * 40)
    _, whole = made("a" * 40)
    assert difference(study, whole, none) == (100, 100, 100)
    mean, low, high = difference(study, half, none)
    assert mean == 50 and low < 50 < high and high - low > 30          # 10 sources, not 40 clips
    assert difference(study, half, {1: none[0]}) is None               # no common seed


def test_lines_are_plain_json():
    for line in (FOLDER / "natural.jsonl").read_text().splitlines():
        json.loads(line)
