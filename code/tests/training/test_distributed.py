"""Two processes compute what one computes: losses, codebooks, parameters, norms; float64, gloo, on the CPU."""

import runpy
import shutil
import sys
from unittest.mock import DEFAULT, Mock

import pytest
import torch
import torch.distributed as dist

from cmg.systems.registry import SYSTEMS
from cmg.utils import dist as distributed
from conftest import refused
from kill_resume import SOURCE, differences, figures, fork_server, join_run, pretraining, prove, start
from kill_resume import train as tiny_pretraining
from tiny import command, step_for
from tiny import train as pretrain

SMALL = dict(video_dim=8, num_codes=11, audio_dim=6, text_dim=9, text_hidden=8, code_dim=16, feed_forward=24,
             num_heads=2, club_hidden=12, dropout=0.0)
ALL = ("audio", "video", "text")
SHARED = {"weights": (("contrast", 0.5),), "code_choice": "joint", "reset_to": "second"}
RUNS = {        # name -> (system, modalities, settings, epoch)
    "dcid": ("dcid", ALL, {}, 0),
    "released": ("dcid", ("audio", "text"),
                 {"mi_forward": "released", "code_reset": "released", "mm_ema": "attention"}, 0),
    "contrast": ("dcid", ALL, SHARED, 0),
    "contrast masked": ("h_dcid", ALL, SHARED, 3),
    "h_dcid": ("h_dcid", ALL, {}, 3),
    "codaar": ("codaar", ALL, {}, 0),
    "fcid": ("fcid", ALL, {}, 0),
    "fcid released": ("fcid", ALL, {"club_coarse": "released", "code_reset": "released"}, 0),
    "five": ("dcid", {"audio": (6,), "video": (7,), "text": (10, 9), "depth": (5, 6, 4), "eeg": (8,)}, {}, 0),
    "micu": ("micu", ALL, {"encoder_passes": "released", "reset_counter": "released"}, 0),
    **{f"{name} masked": (name, ALL, {}, 3) for name in ("h_dcid", "codaar", "fcid", "micu")},
    # Codes that lie on features would magnify rounding: CMCM's root, in clips of one second.
    "dcid masked": ("dcid", ALL, {"codebook_init": "released"}, 3),
}
OWN = (1, 4, 10, 7, 3, 2, 10, 5, 9)         # seconds of the clips of masked runs
CLIPS, BATCH = 9, 4         # steps of 4, 4 and 1 clips: the last leaves one process without any


def train(name):
    """Three steps on the part of the data that this process holds; what came out, as plain tensors."""
    system, modalities, settings, epoch = RUNS[name]
    config = SYSTEMS[system].Config.for_data(modalities, **SMALL)
    torch.manual_seed(3)
    model = SYSTEMS[system](config).double().train()
    trainer = step_for(model, **settings)
    generator = torch.Generator().manual_seed(5)
    shapes = {m: shape if config.kind(m) == "tokens" else (10, *shape) for m, shape in config.shapes}
    data = {m: torch.randn(CLIPS, *shapes[m], generator=generator, dtype=torch.float64) for m in config.modalities}
    if name.endswith("masked"):
        data["mask"] = torch.arange(10) < torch.tensor(OWN).unsqueeze(1)
    order, size = distributed.shard(torch.randperm(CLIPS, generator=generator), BATCH)
    results = []
    for number, chosen in enumerate(order.split(size)):
        distributed.begin_step(min(BATCH, CLIPS - number * BATCH), number)
        for codebook in model.codebooks.values():
            codebook.unactivated_count[:3] = 300                            # the unused ones among them are due
        report = trainer.step({m: x[chosen] for m, x in data.items()}, epoch)
        figures = report.losses | report.metrics | report.likelihoods | {
            f"norm {section}": norm for section, norm in report.grad_norms.items()}
        results.append({key: value.detach().double().clone() for key, value in figures.items()})
    return {"steps": results, "state": {key: value.clone() for key, value in model.state_dict().items()}}


def train_all(folder, rank, port):
    """One of two processes: writes name -> what `train` gives."""
    join_run(rank, port)
    torch.set_num_threads(1)
    distributed.BUCKET_BYTES = 2000                                         # several messages, some of one gradient
    with distributed.process_group(torch.device("cpu"), 0):
        torch.save({name: train(name) for name in RUNS}, folder / f"{rank}.pt")


def run_two(target, *arguments):
    """A function in two processes of one run."""
    started = start(fork_server(), target, arguments, arguments)
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0], arguments


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Results of two processes: list over processes of name -> what `train` gives."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two(train_all, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", list(RUNS))
def test_two_processes_equal_one(together, name):
    alone = train(name)
    assert len(alone["steps"]) == 3
    for rank, results in enumerate(together):
        for number, (ours, theirs) in enumerate(zip(results[name]["steps"], alone["steps"], strict=True)):
            assert ours.keys() == theirs.keys()
            for key in theirs:
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-8, atol=1e-8,
                                           msg=lambda text, at=(rank, number, key): f"{at}: {text}")
        for key, theirs in alone["state"].items():
            torch.testing.assert_close(results[name]["state"][key], theirs, rtol=0, atol=1e-8,
                                       msg=lambda text, at=(rank, key): f"{at}: {text}")


def test_a_killed_process_ends_the_other_and_both_go_on(demo_data, tmp_path):
    """Kills of one of two, until a run has ended; the other must end within 30 seconds with one line (kill_resume)."""
    work = pretraining(demo_data, {"--n_epoch": 2}, is_tiny=True, processes=2)
    assert prove(tmp_path, work, kills=1, seed=1) == []


def test_other_programs_refuse_torchrun(monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["toc.py", "x.pt"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SOURCE / "toc.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "run this program without torchrun" in error


def test_a_run_of_two_processes_is_resumed_by_two_and_by_one(demo_data, small_model, tmp_path, caplog):
    """By two it ends as one that never stopped; one process goes on with the same batches in the same order (that its
    metrics are those of two: `test_two_processes_equal_one`)."""
    few = "--batch_size", 20, "--n_epoch", 1                # four steps

    def run(name, *more):
        run_two(tiny_pretraining, command(demo_data, tmp_path / name, *few, *more), tmp_path / f"{name}.txt", True)
    run("whole")
    run("broken", "--max_steps", 2)
    shutil.copytree(tmp_path / "broken", tmp_path / "by one")
    run("broken", "--resume", "auto")
    whole, broken = (torch.load(tmp_path / name / "checkpoints" / "DCID-model-0.pt", weights_only=True)
                     for name in ("whole", "broken"))
    assert whole["total_step"] == 4 and differences(whole, broken) == []
    assert pretrain(demo_data, tmp_path / "by one", *few, "--resume", "auto") == 0
    assert caplog.text.count("saved by 2 processes, resumed by 1 with the same batches") == 1
    assert "not bit-identical; start 2 processes for that" in caplog.text
    assert [line["step"] for line in figures(tmp_path / "by one")] == [1, 2, 3, 4]


def process(rank, size):
    """`distributed._group` of one of `size` processes, without the others."""
    group = object.__new__(distributed._Group)
    group.rank, group.size, group.seed = rank, size, 0
    return group


@pytest.mark.parametrize("clips, batch", [(9, 4), (10, 5), (7, 7), (5, 3), (3, 3)])
def test_shards_are_the_batches(monkeypatch, clips, batch):
    """The processes' shards, put together batch by batch, are the global batches."""
    order, members = torch.randperm(clips), [process(rank, 3) for rank in range(3)]
    for number, whole in enumerate(order.split(batch)):
        pieces = []
        for member in members:
            monkeypatch.setattr(distributed, "_group", member)
            part, size = distributed.shard(order, batch)
            distributed.begin_step(len(whole), number)
            pieces.append(distributed.local(part.split(size)[number]))
        assert torch.cat(pieces).tolist() == whole.tolist()


@pytest.fixture
def one_of_one(monkeypatch):
    """A gloo group of one process: it sends what any process of a larger group would."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(distributed, "_group", distributed._Group())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_messages_of_a_step_are_few_whatever_its_sizes(one_of_one, monkeypatch, system):
    """As many for any number of codes, seconds and clips; at most 40, but gradients come in buckets."""
    counts, sent = [], []
    for name in ("all_reduce", "all_gather"):
        monkeypatch.setattr(dist, name, Mock(wraps=getattr(dist, name), side_effect=lambda *args, **_: sent.append(1)
                                             or DEFAULT))
    for codes, seconds, clips in ((11, 10, 3), (40, 25, 6)):
        config = SYSTEMS[system].Config.for_data(ALL, **SMALL | {"num_codes": codes})
        trainer = step_for(SYSTEMS[system](config).double().train())
        shapes = {m: shape[1:] if config.kind(m) == "tokens" else shape for m, shape in config.shapes}
        for step in range(2):
            sent.clear()
            distributed.begin_step(clips, step)
            trainer.step({m: torch.randn(clips, seconds, *shapes[m], dtype=torch.float64) for m in ALL}, 3)
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 40


def test_fewer_clips_than_processes_is_an_input_error(monkeypatch):
    monkeypatch.setattr(distributed, "_group", process(0, 3))
    refused("--batch_size 2", distributed.shard, torch.arange(4), 2)
