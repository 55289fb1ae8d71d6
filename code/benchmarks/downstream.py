"""Time of the downstream heads: eight heads over cached codes, side by side and one after the other.

    python code/benchmarks/downstream.py [--clips 3000] [--epochs 3] [--json FILE]

Codes as a frozen encoder of the published widths gives them (K = 400, D = 256, 10 seconds) are drawn at random: only
their shapes matter. Eight clip heads with eight seeds are trained by cmg/downstream/fit_heads.py in one pass, as the
scripts do, then each alone; both ways end with the same weights (tests/test_transfer.py).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from timing import seconds  # noqa: E402

from cmg.cli import device as device_of  # noqa: E402
from cmg.downstream.encode import EncodedSplit  # noqa: E402
from cmg.downstream.fit_heads import HeadRun, fit  # noqa: E402
from cmg.models.heads import ClipHead  # noqa: E402
from cmg.utils.errors import Parser, run  # noqa: E402

HEADS, CLASSES, CODES, WIDTH, SECONDS = 8, 28, 400, 256, 10


def random_codes(clips, device):
    """A CodeSet of random codes and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(clips, SECONDS, CLASSES + 1)
    labels[torch.arange(clips), :, torch.randint(CLASSES, (clips,), generator=generator)] = 1
    rows = torch.randint(CODES, (clips, SECONDS), generator=generator)
    return EncodedSplit(torch.randn(CODES, WIDTH, generator=generator).to(device), torch.arange(CODES, device=device),
                   rows.to(device), labels.to(device))


def train(seeds, codes, epochs):
    """Train a head for each seed; nothing is measured, the training alone is timed."""
    trials = [HeadRun(codes, codes.clip_classes, seed, {}) for seed in seeds]
    fit(trials, lambda width: ClipHead(width, CLASSES), lambda heads, part: {}, epochs=epochs)


def main(argv=None):
    """Time both ways, print and, if asked, write JSON."""
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000, help="clips of the training set")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs")
    parser.add_argument("--device", default=None, help="number of the GPU, or cpu (default: GPU 0 if there is one)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    opts = parser.parse_args(argv)
    torch.set_num_threads(opts.threads)
    device = device_of(opts.device)
    codes = random_codes(opts.clips, device)
    train(range(HEADS), codes, 1)
    together = seconds(lambda: train(range(HEADS), codes, opts.epochs), device) / opts.epochs
    alone = seconds(lambda: [train([seed], codes, opts.epochs) for seed in range(HEADS)], device) / opts.epochs
    figures = {"heads": HEADS, "clips": opts.clips, "device": str(device), "seconds_per_epoch": together,
               "alone_seconds_per_epoch": alone, "ratio": alone / together,
               "clips_per_second": HEADS * opts.clips / together}
    print("{heads} heads, {clips} clips on {device}: {seconds_per_epoch:.3f} s an epoch side by side, "
          "{alone_seconds_per_epoch:.3f} s one after the other ({ratio:.1f} times), {clips_per_second:.0f} clips/s"
          .format(**figures))
    if opts.json:
        opts.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
