"""SIGTERM and SIGINT in every program: the step is finished and saved, exit code 128 + signal, one line; and kills at
random moments (kill_resume.py), of which CI makes a few."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import train as avs_train
from network.avs import AVSNetwork

import kill_resume
from cmg.downstream import fit_heads
from cmg.downstream.resume import Progress
from cmg.extract import output
from cmg.prepare.pack import pack
from cmg.utils import signals
from conftest import ROOT
from kill_resume import differences, networks_left
from test_avs_run import train_arguments, tree  # noqa: F401
from test_extract_command import OFFLINE, contents, features, videos  # noqa: F401
from test_transfer import train_trials


def test_a_killed_extraction_ends_as_an_unbroken_one(tmp_path):
    """As pretraining does (test_resume.py, test_distributed.py) and packing (test_data_packing.py); benchmarks/soak.py
    kills the other programs."""
    work = kill_resume.extraction(tmp_path, None)
    assert kill_resume.prove(tmp_path / "runs", work, kills=2) == []


def calling(monkeypatch, place, name, at, action):
    """Call `action` before the call number `at` of a function."""
    mask, calls = getattr(place, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            action()
        return mask(*args, **kwargs)
    monkeypatch.setattr(place, name, counted)


def send(number=signal.SIGTERM):
    return lambda: os.kill(os.getpid(), number)


def stopped(main, number=signal.SIGTERM):
    """The line of a program that a signal ends."""
    before = [signal.getsignal(name) for name in signals.SIGNALS]
    with pytest.raises(signals.Stopped) as caught:
        main()
    assert caught.value.code == 128 + number and signal.Signals(number).name in str(caught.value)
    assert [signal.getsignal(name) for name in signals.SIGNALS] == before
    return str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_heads(tmp_path, monkeypatch, number):
    whole = train_trials()
    with monkeypatch.context() as patch:
        calling(patch, fit_heads, "_train_epoch", 5, send(number))
        line = stopped(lambda: train_trials(Progress(tmp_path / "heads.pt")), number)
    assert line.endswith("after epoch 5 of 14 of the heads; run the command again to continue")
    for one, other in zip(whole, train_trials(Progress(tmp_path / "heads.pt"))):
        assert one.curves == other.curves and one.losses == other.losses
        assert differences(dict(one.head.state_dict()), dict(other.head.state_dict())) == []


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("calls", [3, 6])           # four training steps, then validation in two batches
def test_segmentation_within_an_epoch(tree, tmp_path, monkeypatch, calls, released):  # noqa: F811
    more = ["--max_epoches", "2", "--lr", "1e-3", "--val_batch_size", "2", "--train_batch_size", "3",
            *(["--protocol", "released"] if released else [])]
    avs_train.main(train_arguments(tree, tmp_path / "whole", "at", *more))
    with monkeypatch.context() as patch:
        made, init = [], AVSNetwork.__init__

        def counting(self, *args, **kwargs):
            init(self, *args, **kwargs)
            backbone = self.backbone.forward

            def one(*inputs):
                made.append(1)
                if len(made) == calls:
                    send()()
                return backbone(*inputs)
            self.backbone.forward = one
        patch.setattr(AVSNetwork, "__init__", counting)
        line = stopped(lambda: avs_train.main(train_arguments(tree, tmp_path / "broken", "at", *more)))
    assert f"after step {min(calls, 4)} of 4 in epoch 1; resume with --resume auto" in line
    avs_train.main(train_arguments(tree, tmp_path / "broken", "at", *more, "--resume", "auto"))
    assert differences(*(networks_left(tmp_path / name) for name in ("whole", "broken"))) == []


def test_orders_of_segmentation_do_not_depend_on_workers(tree, tmp_path):  # noqa: F811
    more = ["--max_epoches", "3", "--lr", "1e-3"]
    for workers in "02":
        avs_train.main(train_arguments(tree, tmp_path / workers, "at", *more, "--num_workers", workers))
    assert differences(*(networks_left(tmp_path / workers) for workers in "02")) == []


@pytest.mark.parametrize("workers", ["1", "3"])
def test_extraction_keeps_the_clips_that_were_under_way(videos, tmp_path, monkeypatch, workers):  # noqa: F811
    more = [*OFFLINE, "--seconds", "2", "--workers", workers]
    features(videos, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        calling(patch, output.Report, "add", 2, send())
        line = stopped(lambda: features(videos, tmp_path / "broken", *more))
    assert line.endswith("after the clips in progress; run the command again to continue")
    journal, = (tmp_path / "broken").glob(".report*.journal")
    kept = [line.split(",")[:2] for line in journal.read_text().splitlines()]
    made = {path.stem for path in (tmp_path / "broken" / "audio" / "zip").glob("*.zip")}
    assert len(kept) >= 2 and made == {name for name, status in kept if status == "ok"}
    features(videos, tmp_path / "broken", *more)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_packing(demo_data, tmp_path, monkeypatch):
    from cmg.data.layout import DATA_PATHS
    from cmg.prepare import pack as packing
    source = demo_data / DATA_PATHS["vggsound.audio"]
    with monkeypatch.context() as patch:
        patch.setattr(packing, "BATCH", 8)
        calling(patch, packing, "_save", 2, send())
        line = stopped(lambda: pack(source, tmp_path / "a.h5", "audio"))
    assert line.endswith("with 16 of 80 clips packed; run again to continue")
    with monkeypatch.context() as patch:
        calling(patch, packing, "_verify", 1, send(signal.SIGINT))
        assert "not all verified" in stopped(lambda: pack(source, tmp_path / "a.h5", "audio"), signal.SIGINT)
    assert pack(source, tmp_path / "a.h5", "audio").resumed == 80


def test_a_real_process_says_it_on_one_line_and_a_second_signal_kills(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "code" / "src")!r})
from cmg.utils.errors import run
from cmg.utils.signals import stop_on_signals
def main():
    with stop_on_signals() as stop:
        for times in range(int(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.save_and_exit(lambda: print("saved"), "after step 3", "resume with --resume auto")
    os.kill(os.getpid(), signal.SIGINT)
run(main)
"""
    ended = [subprocess.run([sys.executable, "-c", code, times], capture_output=True, text=True) for times in "012"]
    assert [one.returncode for one in ended] == [130, 143, -signal.SIGTERM]
    assert ended[0].stderr == ("stopped by SIGINT; files already written are kept; run the command again to continue\n")
    assert ended[1].stderr == "stopped by SIGTERM after step 3; resume with --resume auto\n"
    assert ended[1].stdout == "saved\n" and ended[2].stdout == ended[2].stderr == ""


def test_a_thread_cannot_listen_and_works_all_the_same():
    found = []

    def work():
        with signals.stop_on_signals() as stop:
            found.append(stop.signal)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
