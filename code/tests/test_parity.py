"""The golden numbers of the published programs, one test per file (the same functions as parity.py)."""

import pytest

import parity
from conftest import ROOT

GOLDEN = ROOT / "code" / "tests" / "golden"


@pytest.mark.parametrize("stem", [stem for stem in parity.stems(GOLDEN) if stem in parity.CHECKS])
def test_golden(stem):
    results = parity.compare(GOLDEN, stem)
    assert results and all(result.passed for result in results), "\n".join(map(str, results))


@pytest.mark.parametrize("stem", ["dcid_spread", "h_dcid_spread"])
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


def test_a_known_file_that_cannot_be_read_fails(tmp_path, capsys):
    (tmp_path / "dcid_spread.npz").write_bytes(b"PK broken")
    assert parity.main(["--golden", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"
