"""AVS training that is killed between epochs resumes bit-exactly, and only with the same settings."""

import logging

import network_files
import pytest
import torch
import train as training_script
import train_resume

from cmg.downstream.resume import Progress
from cmg.utils.errors import InputError
from conftest import refused
from kill_resume import differences
from test_avs_run import train_arguments, tree  # noqa: F401


def run(root, out, *more):
    """Train two epochs below `out`; returns the run folder."""
    training_script.main(train_arguments(root, out, "at", "--max_epoches", "2", "--lr", "1e-3", *more))
    folder, = out.glob("S4_at_*")
    return folder


def test_training_resumes_after_its_last_epoch(tree, tmp_path, monkeypatch, caplog):  # noqa: F811
    whole, keep = run(tree, tmp_path / "whole"), Progress.keep
    assert not (whole / train_resume.FILE).exists()

    def killed_after(self, state, epoch):
        keep(self, state, epoch)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "keep", killed_after)
        run(tree, tmp_path / "broken")
    with pytest.raises(InputError, match="trained with other settings .lr 0.001 there, 0.0002 here"):
        run(tree, tmp_path / "broken", "--resume", "auto", "--lr", "2e-4")
    caplog.set_level(logging.INFO)
    broken = run(tree, tmp_path / "broken", "--resume", "auto")
    assert "resuming after epoch 1" in caplog.text and not (broken / train_resume.FILE).exists()
    for name in network_files.FILES.values():
        one, other = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (whole, broken))
        assert differences(one, other) == []
    lines = [[line.split('"clips_per_second"')[0] for line in open(folder / "log" / "metrics.jsonl")]
             for folder in (whole, broken)]
    assert lines[0] == lines[1] and len(lines[0]) == 2


def test_auto_without_a_run_starts_and_a_folder_needs_one(tree, tmp_path):  # noqa: F811
    folder = run(tree, tmp_path / "new", "--resume", "auto")
    refused("no checkpoints/resume.pt", run, tree, tmp_path / "new", "--resume", str(folder))
    (folder / train_resume.FILE).write_bytes(b"not a checkpoint")
    refused("resume.pt: ", run, tree, tmp_path / "new", "--resume", "auto")
