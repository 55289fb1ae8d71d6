"""Gradient norm of each loss with respect to the semantic encoders, on natural sounds and photographs, as a table.

    python loss_gradients.py --data DIR [--system dcid] [--steps 90]

DIR holds clips.csv, audio.h5 and video.h5, as for natural_study.py. Audio and video are standardized by channel, with
80 clips per step and published settings. Norms are of the weighted losses, before clipping, over all semantic encoders
together.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from cmg.data.sets.custom import Custom
from cmg.models.random import StepRandom
from cmg.systems.registry import SYSTEMS
from cmg.training.batches import Resident
from cmg.training.settings import OptimConfig
from cmg.training.standardize import channel_statistics
from cmg.training.step import TrainStep
from cmg.utils.errors import Parser, run

MODALITIES = "audio", "video"
BATCH, SECONDS, EVERY = 80, 5, 15


def recorded(system, norms):
    """Wrap `system.losses` to append kind -> gradient norm of the weighted loss to `norms`."""
    losses = system.losses
    weights = [p for name, p in system.named_parameters() if ".semantic." in name]

    def measured(outputs, rng):
        found, sums = losses(outputs, rng), {}
        for kind, _, value in found.named():
            sums[kind] = sums.get(kind, 0) + system.weights(0)[kind] * value
        norms.append({kind: of_loss(value, weights) for kind, value in sums.items() if torch.is_tensor(value)})
        return found
    system.losses = measured


def of_loss(value, weights):
    """Norm of the gradient of a loss; 0 if it does not depend on the weights."""
    if not value.requires_grad:
        return 0.0
    found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    return float(torch.nn.utils.get_total_norm([g for g in found if g is not None]))


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--system", choices=tuple(SYSTEMS), default="dcid")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    opts = parser.parse_args(argv)
    paths = {"manifest": opts.data / "clips.csv"} | {m: opts.data / f"{m}.h5" for m in MODALITIES}
    clips, rng = Custom(paths, MODALITIES, seconds=SECONDS), torch.Generator().manual_seed(opts.seed)
    batches = Resident.of(clips, MODALITIES, torch.device("cpu"), torch.float32, torch.float32)
    torch.manual_seed(opts.seed)
    kind = SYSTEMS[opts.system]
    system = kind(kind.Config.for_data(clips.shapes, seconds=SECONDS, standardize="channel"))
    system.encoder.standardize(channel_statistics(batches, len(clips), system.config))
    step, norms = TrainStep(system.train(), StepRandom(rng), OptimConfig()), []
    recorded(system, norms)
    for number in trange(opts.steps, desc="steps", disable=None):
        chosen = torch.randint(len(clips), (BATCH,), generator=rng)
        step.step(next(batches(chosen, BATCH)), 0, number)
    kinds = [name for name in norms[-1] if any(found.get(name) for found in norms)]
    print(f"| {system.label}: steps | {' | '.join(kinds)} |\n|{' --- |' * (1 + len(kinds))}")
    for first in range(0, opts.steps, EVERY):
        part = norms[first:first + EVERY]
        print(f"| {first + 1} to {first + len(part)} | "
              f"{' | '.join(f'{np.median([found[k] for found in part]):.2g}' for k in kinds)} |")


if __name__ == "__main__":
    run(main)
