"""Heads trained side by side are the heads trained alone; codes come from a frozen encoder, each dataset read once;
heads whose training was killed resume bit-exactly."""

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from cmg.checkpoints import checkpoint
from cmg.downstream import encode, fit_heads, resume
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.fit_heads import HeadRun
from cmg.downstream.task import Task
from cmg.models.config import Config
from cmg.models.heads import ClipHead, SegmentHead
from cmg.results import rows as results
from conftest import refused
from tiny import Waiting

F64 = torch.float64
WIDTH, CLASSES, SECONDS = 6, 3, 4


def code_set(clips, seed, codes=12, many=False):
    """Random codes that carry the class; `many` gives every second its own code."""
    g = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (clips,), generator=g)
    labels = torch.zeros(clips, SECONDS, CLASSES + 1, dtype=F64)
    labels[torch.arange(clips), :, classes] = 1
    labels[::3, 0] = torch.eye(CLASSES + 1, dtype=F64)[-1]
    if many:
        codes = clips * SECONDS
        indices = torch.arange(codes).view(clips, SECONDS)
    else:
        indices = 4 * classes[:, None] + torch.randint(4, (clips, SECONDS), generator=g)
    table = torch.randn(codes, WIDTH, generator=torch.Generator().manual_seed(7), dtype=F64)
    return EncodedSplit.of(table[indices], indices, labels)


def trial_of(part, make, seed, test):
    return HeadRun(part, part.clip_classes if make.clipwise else part.labels, seed, {"test": test})


def fit(trials, make, **options):
    fit_heads.fit(trials, lambda width: make(width, CLASSES), Task("t", make, "accuracy", {}, {}).measure, **options)


def train_alone(trial, make, epochs, batch, lr=4e-3, clip=0.02):
    """The plain program for one head: one loop, whole vectors, no table."""
    head = fit_heads.build_head(lambda: make(WIDTH, CLASSES), trial.seed, trial.train.table)
    vectors, targets = trial.train.table[trial.train.rows], trial.targets
    shuffle = torch.Generator().manual_seed(trial.seed)
    optimizer = torch.optim.Adam(head.parameters(), lr)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 ** sum(epoch >= milestone for milestone in (10, 20, 30))
        for rows in torch.randperm(len(vectors), generator=shuffle).split(batch):
            optimizer.zero_grad()
            head.loss(targets[rows], vectors[rows]).backward()
            clip_grad_norm_(head.parameters(), clip)
            optimizer.step()
    return head


@pytest.mark.parametrize("make", [ClipHead, SegmentHead])
@pytest.mark.parametrize("many", [False, True])
def test_together_is_alone(make, many):
    # Sets of different sizes: other numbers of steps, other last batches; a clip norm that bites; past a milestone.
    test = code_set(9, 99, many=many)
    sets = [code_set(23, 0), code_set(17, 1, many=many), code_set(40, 2)]
    trials = [trial_of(part, make, seed, test) for part in sets for seed in (0, 5)]
    fit(trials, make, epochs=12, batch_size=8, lr=4e-3, clip_gradient=0.02)
    for trial in trials:
        alone = train_alone(trial, make, 12, 8)
        for (name, ours), theirs in zip(trial.head.named_parameters(), alone.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)
        with torch.no_grad():
            expected = alone(test.table[test.rows])
        torch.testing.assert_close(fit_heads.predict([trial.head], test)[0], expected, rtol=1e-8, atol=1e-10)
        final = Task("t", make, "accuracy", {}, {}).measure([alone], test)
        assert {name: values[-1] for name, values in trial.curves["test"].items()} == pytest.approx(
            {name: float(value) for name, value in final.items()})
        assert all(len(values) == 12 for values in trial.curves["test"].values())
    assert not torch.equal(trials[0].head.linear.weight, trials[1].head.linear.weight)


def test_an_epoch_reads_its_figures_once():
    """A GPU is not waited for at every step: as many reads with twelve steps an epoch as with two."""
    numbers = []
    for batch_size in (20, 120):
        trial = trial_of(code_set(240, 3), ClipHead, 0, code_set(30, 4))
        with Waiting() as waiting:
            fit([trial], ClipHead, epochs=2, batch_size=batch_size)
        numbers.append(len([line for line in waiting.lines if "optimizer.step()" not in line]))     # counted on a CPU
    assert numbers[0] == numbers[1] > 0


def test_training_learns_and_repeats():
    def go():
        trial = trial_of(code_set(60, 3), ClipHead, 0, code_set(30, 4))
        fit([trial], ClipHead, epochs=15, batch_size=20, lr=1e-2)
        return trial
    first, second = go(), go()
    assert first.curves["test"]["accuracy"][-1] > 90 and first.losses[-1] < 0.5 * first.losses[0]
    assert first.losses == second.losses and first.curves == second.curves


def test_building_a_head_leaves_the_global_generator():
    before = torch.random.get_rng_state()
    fit_heads.build_head(lambda: ClipHead(4, 2), 0, torch.zeros(1))
    assert torch.equal(before, torch.random.get_rng_state())


class StandIn(torch.nn.Module):
    """An encoder of ten lines: nearest of eight codes to a linear map, with dropout."""

    def __init__(self):
        super().__init__()
        self.config, self.calls = Config.for_data({"audio": (5,), "video": (7, 7, 2)}), 0
        g = torch.Generator().manual_seed(0)
        self.codebooks = [torch.randn(8, WIDTH, generator=g)]
        self.maps = {"audio": torch.randn(5, WIDTH, generator=g), "video": torch.randn(2, WIDTH, generator=g)}
        self.dropout = torch.nn.Dropout(0.5)

    def set_dropout(self, on):
        self.train(on)

    def embed(self, modality, x, mask=None):
        self.calls += 1
        x = x.mean((2, 3)) if modality == "video" else x
        indices = torch.cdist(self.dropout(x @ self.maps[modality]), self.codebooks[0]).argmin(-1)
        return type("Codes", (), {"vectors": self.codebooks[0][indices], "indices": indices})


class Clips(torch.utils.data.Dataset):
    name, origin, modalities, classes = "clips", "", ("audio", "video"), ["a", "b", "c"]

    def __init__(self, clips=11):
        r = np.random.default_rng(0)
        self.ids = [str(i) for i in range(clips)]
        self.audio = r.standard_normal((clips, SECONDS, 5), np.float32)
        self.video = r.standard_normal((clips, SECONDS, 7, 7, 2), np.float32)
        self.label = np.eye(4, dtype=np.float32)[r.integers(0, 4, (clips, SECONDS))]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"audio": self.audio[i], "video": self.video[i], "label": self.label[i]}

    def original(self, modality, i):
        return None


def test_codes_are_the_encoders_whatever_the_batch():
    encoder, clips = StandIn().eval(), Clips()
    parts = encode.codes({None: encoder}, clips, ["audio", "video"], batch_size=4)
    for modality in ("audio", "video"):
        expected = encoder.embed(modality, torch.from_numpy(getattr(clips, modality)))
        part = parts[None, modality]
        assert torch.equal(part.indices, expected.indices) and torch.equal(part.table[part.rows], expected.vectors)
        assert torch.equal(part.labels, torch.from_numpy(clips.label))
        assert len(part.table) == len(expected.indices.unique()) and len(part) == 11


def test_dropout_only_when_asked_for():
    encoder, clips = StandIn().eval(), Clips()
    quiet = encode.codes({None: encoder}, clips, ["audio"])[None, "audio"].indices
    loud = encode.codes({None: encoder}, clips, ["audio"], training=True)[None, "audio"].indices
    assert not torch.equal(quiet, loud) and not encoder.training
    assert torch.equal(quiet, encode.codes({None: encoder}, clips, ["audio"])[None, "audio"].indices)


def test_two_codebooks_make_pairs():
    pairs = torch.tensor([[[0, 1], [0, 2], [0, 1]]])
    vectors = torch.randn(3, 4)[pairs].flatten(2)
    part = EncodedSplit.of(vectors, pairs, torch.zeros(1, 3, 2))
    assert len(part.table) == 2 and torch.equal(part.indices, pairs) and torch.equal(part.table[part.rows], vectors)


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


def train_trials(keep=None, fail_at=None):
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
    whole, file = train_trials(), tmp_path / "heads.pt"
    with pytest.raises(KeyboardInterrupt):
        train_trials(resume.Progress(file, seconds=0), fail_at=11)
    resumed = train_trials(resume.Progress(file))
    assert any(f"resuming an interrupted call after epoch {epoch}" in caplog.text for epoch in (10, 11))
    for one, other in zip(whole, resumed):
        assert one.curves == other.curves and one.losses == other.losses and len(one.losses) == 14
        for name, value in one.head.state_dict().items():
            assert torch.equal(value, other.head.state_dict()[name])


@pytest.mark.parametrize("damage", [lambda kept: kept.pop("epoch"), lambda kept: kept["heads"].pop(),
                                    lambda kept: kept.update(optimizer=3), lambda kept: kept["trials"].append(1)])
def test_a_state_of_other_heads_is_refused(tmp_path, damage):
    file = tmp_path / "heads.pt"
    with pytest.raises(KeyboardInterrupt):
        train_trials(resume.Progress(file, seconds=0), fail_at=2)
    kept = checkpoint.read(file)
    damage(kept)
    checkpoint.save(file, kept)
    refused("is not a state of this training", train_trials, resume.Progress(file))


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
        return [{key: value for key, value in row.items() if key not in ("seconds", "provenance", "data_checked")}
                for row in results.read(tmp_path / folder / "results.jsonl")]
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
    refused("seed 0: the gradient is not finite .* clips .*lower --lr", train_trials)
