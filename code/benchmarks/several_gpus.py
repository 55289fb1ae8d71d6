"""Messages of a pretraining step on several GPUs: how many, how large, and the efficiency that follows.

    python code/benchmarks/several_gpus.py --step_seconds 0.03 [--system dcid] [--gigabytes 50 300] [--gpus 8 64]

The messages are counted in real steps of a gloo group of one process, whose messages are those of any process: at two
batch sizes, because what is sent of clips grows with them and what is sent of weights does not. The step of one GPU is
measured by pretrain_step.py and given here. The estimate: every GPU takes the same number of clips (the global batch
grows); a ring adds up n bytes in 2 (N - 1) / N n, and gathers n bytes of each in (N - 1) n; each message waits once
for the latency of the link. "exposed" takes nothing as hidden, "overlapped" hides gradients behind the backward pass
(two thirds of a step), all but the last message.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from pretrain_step import LATE_EPOCH, WIDTHS, random_data  # noqa: E402

from cmg.models.config import MODALITIES  # noqa: E402
from cmg.models.random import StepRandom  # noqa: E402
from cmg.systems.registry import SYSTEMS  # noqa: E402
from cmg.training.step import OptimConfig, TrainStep  # noqa: E402
from cmg.utils.dist import BUCKET_BYTES, Ranks  # noqa: E402
from cmg.utils.errors import Parser, run  # noqa: E402
from cmg.utils.settings import positive  # noqa: E402

BACKWARD = 2 / 3            # of a step's time
SMALL, LARGE = 2, 4         # clips of the counted steps


@dataclass
class Messages:
    """Of one process and step."""

    count: int
    sums: float             # bytes that are added up, without gradients
    gradients: float        # bytes of gradients
    gathers: float          # bytes that every process sends to all others


def count(step):
    """`Messages` of a call. Gradients are what is sent asynchronously."""
    found, inner = Messages(0, 0, 0, 0), (dist.all_reduce, dist.all_gather)

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
    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        step()
    finally:
        dist.all_reduce, dist.all_gather = inner
    return found


def messages(system, widths, clips):
    """`Messages` of a step with `clips` clips per process: exact at the counted sizes, on the line between them
    elsewhere."""
    config = SYSTEMS[system].Config.for_data(MODALITIES, **WIDTHS[widths])
    together, device = Ranks(seed=0), torch.device("cpu")
    model = SYSTEMS[system](config).train()
    trainer = TrainStep(model, StepRandom(torch.Generator().manual_seed(0)), OptimConfig(), together)
    resident = random_data(config, LARGE, 10, device, torch.float32, torch.float32)
    counted = {}
    for number, size in enumerate((SMALL, LARGE, SMALL, LARGE)):    # the first also starts codebooks
        batch = next(iter(resident(torch.arange(size), size)))
        together.expect(size, number)
        counted[size] = asdict(count(lambda batch=batch: trainer.step(batch, LATE_EPOCH)))
    slope = {name: (counted[LARGE][name] - counted[SMALL][name]) / (LARGE - SMALL) for name in counted[SMALL]}
    return Messages(**{name: value + slope[name] * (clips - SMALL) for name, value in counted[SMALL].items()})


def efficiency(sent, gpus, step_seconds, bytes_per_second, latency):
    """(exposed, overlapped) share of the time of `gpus` GPUs that is not spent on messages."""
    def ring(size):
        return 2 * (gpus - 1) / gpus * size / bytes_per_second
    small = ring(sent.sums) + (gpus - 1) * sent.gathers / bytes_per_second + sent.count * latency
    last = min(BUCKET_BYTES, sent.gradients)
    hidden = max(ring(sent.gradients - last) - BACKWARD * step_seconds, 0) + ring(last)
    return tuple(step_seconds / (step_seconds + small + rest) for rest in (ring(sent.gradients), hidden))


def main(argv=None):
    """Count, estimate, print a Markdown table."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--step_seconds", type=float, required=True, help="a step of one GPU, as pretrain_step.py says")
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid", help="which system")
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="published", help="sizes of the networks")
    parser.add_argument("-b", "--batch_size", type=positive, default=80, help="clips per step and GPU")
    parser.add_argument("--gpus", type=positive, nargs="+", default=[8, 64], help="how many")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[12.5, 50, 300],
                        help="per second and GPU of the slowest link: 100 Gbit Ethernet, 400 Gbit InfiniBand, NVLink")
    parser.add_argument("--latency", type=float, default=3e-5, help="seconds of a message of no bytes")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    opts = parser.parse_args(argv)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sent = messages(opts.system, opts.widths, opts.batch_size)
    finally:
        dist.destroy_process_group()
    print(f"{SYSTEMS[opts.system].title}, {opts.widths} widths, {opts.batch_size} clips per GPU and step: "
          f"{sent.count:.0f} messages; {sent.gradients / 1e6:.1f} MB of gradients and {sent.sums / 1e6:.2f} MB of sums "
          f"are added up, {sent.gathers / 1e6:.2f} MB are gathered from each GPU\n")
    print("| GPUs | link, GB/s | efficiency, messages exposed | gradients overlapped |\n| --- | --- | --- | --- |")
    table = [(gpus, speed, *efficiency(sent, gpus, opts.step_seconds, speed * 1e9, opts.latency))
             for gpus in opts.gpus for speed in opts.gigabytes]
    for gpus, speed, exposed, overlapped in table:
        print(f"| {gpus} | {speed:g} | {exposed:.0%} | {overlapped:.0%} |")
    if opts.json:
        opts.json.write_text(json.dumps(asdict(sent) | {"table": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
