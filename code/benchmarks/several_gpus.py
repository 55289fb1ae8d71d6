"""Messages of a pretraining step on several GPUs: their number, size, and the resulting efficiency.

    python code/benchmarks/several_gpus.py --step_seconds 0.03 [--system dcid] [--gigabytes 50 300] [--gpus 8 64]

The messages are counted in real steps of two gloo processes; a process of a larger group sends the same ones. Two batch
sizes are counted, because data about clips grows with them and data about weights does not. The step time of one GPU,
measured by pretrain_step.py, is an argument. The estimate assumes that every GPU has the same number of clips (the
global batch grows), that a ring reduces n bytes in 2 (N - 1) / N n and gathers n bytes from each in (N - 1) n, and that
each message adds the latency of the link once. "exposed" assumes no overlap; "overlapped" hides all gradient messages
except the last behind the backward pass (two thirds of a step).
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pretrain_step import LATE_EPOCH, WIDTHS, random_data
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cmg.models.config import MODALITIES
from cmg.models.random import StepRandom
from cmg.systems.registry import SYSTEMS
from cmg.training.settings import OptimConfig
from cmg.training.step import TrainStep
from cmg.utils import dist
from cmg.utils.errors import Parser, run
from cmg.utils.settings import positive

BACKWARD = 2 / 3            # fraction of a step's time
PROCESSES = 2
SMALL, LARGE = 2, 4         # clips per process in the counted steps


@dataclass
class Messages:
    """Messages of one process and step."""

    count: int
    sums: float             # bytes that are summed, without gradients
    gradients: float        # bytes of gradients
    gathers: float          # bytes that each process sends to all others


def count(step):
    """`Messages` of a call. Asynchronous messages are gradients."""
    found, inner = Messages(0, 0, 0, 0), (distributed.all_reduce, distributed.all_gather)

    def all_reduce(tensor, *args, **kwargs):
        found.count += 1
        if kwargs.get("async_op"):
            found.gradients += tensor.nbytes
        else:
            found.sums += tensor.nbytes
        return inner[0](tensor, *args, **kwargs)

    def all_gather(parts, tensor, *args, **kwargs):
        found.count += 1
        found.gathers += tensor.nbytes
        return inner[1](parts, tensor, *args, **kwargs)
    distributed.all_reduce, distributed.all_gather = all_reduce, all_gather
    try:
        step()
    finally:
        distributed.all_reduce, distributed.all_gather = inner
    return found


def count_steps(system, widths):
    """Clips per process -> `Messages` of a step; runs in a process started by `messages`."""
    config, device = SYSTEMS[system].Config.for_data(MODALITIES, **WIDTHS[widths]), torch.device("cpu")
    with dist.process_group(device, seed=0):
        train_step = TrainStep(SYSTEMS[system](config).train(), StepRandom(torch.Generator().manual_seed(0)),
                               OptimConfig())
        resident = random_data(config, LARGE, 10, device, torch.float32, torch.float32)
        counted = {}
        for number, clips in enumerate((SMALL, LARGE, SMALL, LARGE)):       # the first step also initializes codebooks
            batch = next(iter(resident(torch.arange(clips), clips)))
            dist.begin_step(PROCESSES * clips, number)
            counted[clips] = count(lambda batch=batch: train_step.step(batch, LATE_EPOCH))
    return counted


def messages(system, widths, clips):
    """`Messages` of a step with `clips` clips per process, by linear extrapolation from two measured sizes."""
    with tempfile.TemporaryDirectory() as folder:
        launch = LaunchConfig(1, 1, PROCESSES, run_id="messages", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                              start_method="spawn", logs_specs=DefaultLogsSpecs(folder))
        of_first = elastic_launch(launch, count_steps)(system, widths)[0]
        counted = {size: asdict(found) for size, found in of_first.items()}
    slope = {name: (counted[LARGE][name] - counted[SMALL][name]) / (LARGE - SMALL) for name in counted[SMALL]}
    return Messages(**{name: value + slope[name] * (clips - SMALL) for name, value in counted[SMALL].items()})


def efficiency(sent, gpus, step_seconds, bytes_per_second, latency):
    """(exposed, overlapped) fraction of the time of `gpus` GPUs that is not spent on messages."""
    def ring(size):
        return 2 * (gpus - 1) / gpus * size / bytes_per_second
    small = ring(sent.sums) + (gpus - 1) * sent.gathers / bytes_per_second + sent.count * latency
    last = min(dist.BUCKET_BYTES, sent.gradients)
    hidden = max(ring(sent.gradients - last) - BACKWARD * step_seconds, 0) + ring(last)
    return tuple(step_seconds / (step_seconds + small + rest) for rest in (ring(sent.gradients), hidden))


def main(argv=None):
    """Count, estimate, and print a Markdown table."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--step_seconds", type=float, required=True, help="step time of one GPU, from pretrain_step.py")
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="published", help="sizes of the networks")
    parser.add_argument("-b", "--batch_size", type=positive, default=80, help="clips per step and GPU")
    parser.add_argument("--gpus", type=positive, nargs="+", default=[8, 64], help="numbers of GPUs")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[12.5, 50, 300],
                        help="GB per second and GPU of the slowest link: 100 Gbit Ethernet, 400 Gbit InfiniBand, "
                             "NVLink")
    parser.add_argument("--latency", type=float, default=3e-5, help="latency of a message in seconds")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    sent = messages(opts.system, opts.widths, opts.batch_size)
    print(f"{SYSTEMS[opts.system].label}, {opts.widths} widths, {opts.batch_size} clips per GPU and step: "
          f"{sent.count:.0f} messages; {sent.gradients / 1e6:.1f} MB of gradients and {sent.sums / 1e6:.2f} MB of sums "
          f"are reduced, {sent.gathers / 1e6:.2f} MB are gathered from each GPU\n")
    print("| GPUs | link, GB/s | efficiency, messages exposed | gradients overlapped |\n| --- | --- | --- | --- |")
    table = [(gpus, speed, *efficiency(sent, gpus, opts.step_seconds, speed * 1e9, opts.latency))
             for gpus in opts.gpus for speed in opts.gigabytes]
    for gpus, speed, exposed, overlapped in table:
        print(f"| {gpus} | {speed:g} | {exposed:.0%} | {overlapped:.0%} |")
    if opts.json:
        opts.json.write_text(json.dumps(asdict(sent) | {"table": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
