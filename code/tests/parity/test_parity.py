"""The golden numbers of the published programs, one test per file (the same functions as parity.py)."""

import json

import numpy as np
import pytest
import torch

import parity
from cmg.models import toc
from conftest import ROOT

GOLDEN = ROOT / "code" / "tests" / "golden"
# Checks of a file in which every array has one.
COUNTS = {"avs_tpavi": 18, "avs_blocks": 5, "avs_decoder_pvt": 8, "avs_decoder_pvt_switches": 13,
          "avs_decoder_resnet": 1, "avs_full_pvt": 5, "avs_full_resnet": 5, "avs_losses": 28, "avs_manifest_pvt": 2,
          "avs_manifest_resnet": 2, "avs_metrics": 10}


@pytest.mark.parametrize("stem", [stem for stem in parity.stems(GOLDEN) if stem in parity.CHECKS])
def test_golden(stem):
    results = parity.compare(GOLDEN, stem)
    assert results and all(result.passed for result in results), "\n".join(map(str, results))
    assert len(results) == COUNTS.get(stem, len(results))


@pytest.mark.parametrize("stem", ["dcid_spread", "fcid_small", "codaar_small"])
def test_golden_resets_onto_active_codes_with_other_rounding(stem, other_rounding):
    """Codes that a reset has put exactly on active ones are never chosen, whatever a processor rounds."""
    test_golden(stem)


def test_every_known_file_is_here():
    assert set(parity.CHECKS) <= set(parity.stems(GOLDEN))


def test_a_wrong_number_fails(tmp_path, capsys):
    (tmp_path / "toc.json").write_text((GOLDEN / "toc.json").read_text().replace("[91, 197", "[197, 91"))
    (tmp_path / "toc.npz").write_bytes((GOLDEN / "toc.npz").read_bytes())
    (tmp_path / "later_system.json").write_text("{}")
    assert parity.main(["--golden", str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "0 passed, 1 failed" and "FAIL" in printed[-2]
    assert any(line.startswith("later_system") for line in printed)


def test_channels_of_equal_criterion_may_be_swapped(tmp_path):
    arrays, setting = dict(np.load(GOLDEN / "toc.npz")), "choose_channel=8 toc_max_num=1 toc_min_num=0"
    arrays["codebook"][:, 5] = arrays["codebook"][:, 91] * (1 + 1e-6)       # 91 is the best
    np.savez(tmp_path / "toc.npz", **arrays)
    first, second, third, *others = toc.select(torch.from_numpy(arrays["codebook"]), toc.Selection(8)).tolist()
    assert {first, second} == {5, 91}
    for chosen, passes in (([second, first, third], True), ([first, third, second], False),
                           ([first, first, third], False)):
        (tmp_path / "toc.json").write_text(json.dumps({setting: chosen + others}))
        assert all(result.passed for result in parity.compare(tmp_path, "toc")) == passes


def test_a_known_file_that_cannot_be_read_fails(tmp_path, capsys):
    (tmp_path / "dcid_spread.npz").write_bytes(b"PK broken")
    assert parity.main(["--golden", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"
