"""Heads whose training was killed resume bit-exactly, and end with the same result lines."""

import pytest
import torch

from cmg.checkpoints import checkpoint
from cmg.downstream import encode, fit_heads, resume
from cmg.models.heads import ClipHead
from cmg.results import rows
from conftest import refused


def trials():
    """Three heads over random codes, of sets of different sizes."""
    draw, made = torch.Generator().manual_seed(0), []
    for seed, clips in enumerate((30, 17, 30)):
        labels = torch.zeros(clips, 4, 6)
        labels[torch.arange(clips), :, torch.randint(5, (clips,), generator=draw)] = 1
        part = encode.EncodedSplit(torch.randn(12, 8, generator=draw), torch.arange(12),
                                 torch.randint(12, (clips, 4), generator=draw), labels)
        made.append(fit_heads.HeadRun(part, part.clip_classes, seed, {"test": part}))
    return made


def accuracy(heads, part):
    return {"accuracy": (fit_heads.predict(heads, part).argmax(-1) == part.clip_classes).double().mean(1)}


def train(keep=None, fail_at=None):
    """The trained trials; with an error after some epochs."""
    made, looks = trials(), []

    def measure(heads, part):
        looks.append(part)
        if fail_at and len(looks) > 3 * fail_at:
            raise KeyboardInterrupt
        return accuracy(heads, part)
    fit_heads.fit(made, lambda width: ClipHead(width, 5), measure, epochs=14, batch_size=8, progress=keep)
    return made


def test_heads_resume_bit_exactly(tmp_path, caplog):
    whole, file = train(), tmp_path / "heads.pt"
    with pytest.raises(KeyboardInterrupt):
        train(resume.Progress(file, seconds=0), fail_at=11)
    resumed = train(resume.Progress(file))
    assert "resuming after epoch 11" in caplog.text or "resuming after epoch 10" in caplog.text
    for one, other in zip(whole, resumed):
        assert one.curves == other.curves and one.losses == other.losses and len(one.losses) == 14
        for name, value in one.head.state_dict().items():
            assert torch.equal(value, other.head.state_dict()[name])


@pytest.mark.parametrize("damage", [lambda kept: kept.pop("epoch"), lambda kept: kept["heads"].pop(),
                                    lambda kept: kept.update(optimizer=3), lambda kept: kept["trials"].append(1)])
def test_a_state_of_other_heads_is_refused(tmp_path, damage):
    file = tmp_path / "heads.pt"
    with pytest.raises(KeyboardInterrupt):
        train(resume.Progress(file, seconds=0), fail_at=2)
    kept = checkpoint.read(file)
    damage(kept)
    checkpoint.save(file, kept)
    refused("is no state of this training", train, resume.Progress(file))


def test_a_task_goes_on_and_gives_the_same_lines(demo_data, small_model, tmp_path, monkeypatch, capsys):
    import ave
    from cmg.downstream import run as run_task
    from cmg.downstream.task import Task
    from tiny import train as pretrain
    pretrain(demo_data, tmp_path, "--max_steps", 2)
    file = next((tmp_path / "checkpoints").glob("*.pt"))

    def run(folder):
        ave.main(["--data_root", str(demo_data), "--checkpoint", str(file), "--snapshot_pref", str(tmp_path / folder),
                  "--in_memory", "--gpu", "cpu", "--n_epoch", "4"])
        return [{key: value for key, value in row.items() if key not in ("seconds", "provenance")}
                for row in rows.read(tmp_path / folder / "results.jsonl")]
    whole = run("whole")
    monkeypatch.setattr(run_task, "Progress", lambda path: resume.Progress(path, 0))
    measure, calls = Task.measure, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return measure(self, *args)
    monkeypatch.setattr(Task, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert len(list((tmp_path / "broken").glob("heads-*.pt"))) == 1
    assert run("broken") == whole
    assert not list((tmp_path / "broken").glob("heads-*.pt"))


def test_a_gradient_that_is_not_finite_is_one_line(monkeypatch):
    monkeypatch.setattr(ClipHead, "loss", lambda self, *args: super(ClipHead, self).parameters().__next__().sum() / 0)
    refused("seed 0: the gradient is not finite .* clips number .*lower --lr", train)
