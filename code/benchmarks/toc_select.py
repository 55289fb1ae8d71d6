"""Time of TOC's selection on one codebook of the published size, and of the published double loop over pairs.

    python code/benchmarks/toc_select.py [--runs 50]

Both give the same channels; the loop sums the K (K - 1) products of code vectors one by one, as in the published
program (in float32, before every head training).
"""

import statistics
import time

import torch

from cmg.models import toc
from cmg.utils.errors import Parser, run

CODES, WIDTH = 400, 256


def double_loop(codes):
    """Channels in descending order of the criterion, by the straightforward slow loop."""
    total = torch.zeros(WIDTH, dtype=codes.dtype)
    for i in range(CODES):
        for j in range(CODES):
            if i != j:
                total += codes[i] * codes[j]
    value = 0.3 * codes.var(0) - 0.7 * total / (CODES * (CODES - 1))
    return value.argsort(descending=True)


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="number of selections to time; the median counts")
    runs = parser.parse_args(argv).runs
    codes = torch.randn(CODES, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    selection, times = toc.Selection(196), []
    for _ in range(runs):
        start = time.perf_counter()
        chosen = toc.select(codes, selection)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    slow = double_loop(codes)[:len(chosen)]
    loop = time.perf_counter() - start
    print(f"{CODES} x {WIDTH} codes, float64, {torch.get_num_threads()} thread(s): closed form "
          f"{1000 * statistics.median(times):.2f} ms (slowest of {runs}: {1000 * max(times):.2f} ms), "
          f"double loop {1000 * loop:.0f} ms, same channels: {torch.equal(chosen, slow)}")


if __name__ == "__main__":
    run(main)
