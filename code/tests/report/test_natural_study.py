"""The page of the natural study is what its command makes from the study's lines."""

import json

import natural_tables
import numpy as np
import pytest
from defaults import read
from natural_tables import CROSS, Study, difference, page

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
