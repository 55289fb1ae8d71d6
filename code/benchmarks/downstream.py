"""Time of training downstream heads: eight heads on cached codes, in parallel and one by one.

    python code/benchmarks/downstream.py [--clips 3000] [--epochs 3] [--json FILE]

Codes like those of a frozen encoder of the published widths (K = 400, D = 256, 10 seconds) are drawn at random, since
only their shapes matter. Eight clip heads with eight seeds are trained by cmg/downstream/fit_heads.py in one pass, as
in the scripts, then each alone; both ways produce the same weights (tests/downstream/test_transfer.py).
"""

import argparse
import json
from pathlib import Path

import torch
from timing import add_device, seconds

from cmg.cli import device as device_of
from cmg.downstream.encode import EncodedSplit
from cmg.downstream.fit_heads import HeadRun, fit
from cmg.models.heads import ClipHead
from cmg.utils.errors import Parser, run

HEADS, CLASSES, CODES, WIDTH, SECONDS = 8, 28, 400, 256, 10


def random_codes(clips, device):
    """An EncodedSplit of random codes and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(clips, SECONDS, CLASSES + 1)
    labels[torch.arange(clips), :, torch.randint(CLASSES, (clips,), generator=generator)] = 1
    rows = torch.randint(CODES, (clips, SECONDS), generator=generator)
    return EncodedSplit(torch.randn(CODES, WIDTH, generator=generator).to(device), torch.arange(CODES, device=device),
                        rows.to(device), labels.to(device))


def train(seeds, codes, epochs):
    """Train a head for each seed, without evaluation, so that only training is timed."""
    runs = [HeadRun(codes, codes.clip_classes, seed, {}) for seed in seeds]
    fit(runs, lambda width: ClipHead(width, CLASSES), lambda heads, part: {}, epochs=epochs)


def main(argv=None):
    """Time both ways, print and, if asked, write JSON."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000, help="clips of the training set")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, default=None, help="write the values to this file")
    opts = parser.parse_args(argv)
    torch.set_num_threads(opts.threads)
    device = device_of(opts.device)
    codes = random_codes(opts.clips, device)
    train(range(HEADS), codes, 1)
    side_by_side = seconds(lambda: train(range(HEADS), codes, opts.epochs), device) / opts.epochs
    alone = seconds(lambda: [train([seed], codes, opts.epochs) for seed in range(HEADS)], device) / opts.epochs
    metrics = {"heads": HEADS, "clips": opts.clips, "device": str(device), "seconds_per_epoch": side_by_side,
               "alone_seconds_per_epoch": alone, "ratio": alone / side_by_side,
               "clips_per_second": HEADS * opts.clips / side_by_side}
    print("{heads} heads, {clips} clips on {device}: {seconds_per_epoch:.3f} s per epoch in parallel, "
          "{alone_seconds_per_epoch:.3f} s one by one ({ratio:.1f} times), {clips_per_second:.0f} clips/s"
          .format(**metrics))
    if opts.json:
        opts.json.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
