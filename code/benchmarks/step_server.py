"""Take training steps of one checkout on request. compare_steps.py starts this program, which imports none of our
modules.

For every line on standard input, it takes a step at the published widths on a random batch and prints a line of JSON
with seconds, processor time, and losses. Arguments: folder code/src, system, clips, threads.
"""

import json
import sys
import time
from pathlib import Path

import torch

EPOCH, SECONDS = 3, 10                  # from this epoch on, every loss is used
SHAPES = {"audio": (SECONDS, 128), "video": (SECONDS, 7, 7, 512), "text": (SECONDS, 768)}


def training_step(source):
    """Objects that build a step: (SYSTEMS, keep_freed_memory, model -> its step function); up to 1a801fc in other
    modules."""
    generator = torch.Generator().manual_seed(0)
    if (Path(source) / "cmg" / "training").is_dir():
        from cmg.models.random import StepRandom
        from cmg.systems.registry import SYSTEMS
        from cmg.training.runtime import keep_freed_memory
        from cmg.training.settings import OptimConfig
        from cmg.training.step import TrainStep
        return SYSTEMS, keep_freed_memory, lambda model: TrainStep(model, StepRandom(generator), OptimConfig()).step
    from engine.malloc import keep_freed_memory
    from engine.trainer import Settings, Trainer
    from model.sampling import Draws
    from systems.registry import SYSTEMS
    return SYSTEMS, keep_freed_memory, lambda model: Trainer(model, Draws(generator), Settings()).step


def main(source, system, clips, threads):
    torch.set_num_threads(int(threads))
    systems, keep_freed_memory, step_of = training_step(source)
    keep_freed_memory()
    torch.manual_seed(0)
    step = step_of(systems[system](systems[system].Config.for_data(tuple(SHAPES))).train())
    generator = torch.Generator().manual_seed(1)
    for _ in sys.stdin:
        batch = {m: torch.rand(int(clips), *shape, generator=generator) for m, shape in SHAPES.items()}
        clock, begun = time.perf_counter(), time.process_time()
        losses = step(batch, EPOCH).losses
        found = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - begun}
        print(json.dumps(found | {"losses": [float(value.detach()) for value in losses.values()]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
