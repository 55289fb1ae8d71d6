"""A disk that is full from any write on, for the five works of kill_resume.py."""

import pytest

import full_disk
import kill_resume


@pytest.mark.parametrize("name", full_disk.WORKS)
def test_every_place_at_which_a_run_writes(name, demo_data, tmp_path):
    """Each function that writes once, in one chain of calls; full_disk.py as a script breaks each write in a run of
    its own."""
    work = full_disk.short(name, tmp_path, demo_data)
    assert list(full_disk.chain(work, tmp_path, kill_resume.started())) == []
