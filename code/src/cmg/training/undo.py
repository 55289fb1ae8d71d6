"""Undo the part of a step that precedes its last synchronization, in case another process is lost in between."""

from copy import deepcopy

import torch


@torch.no_grad()
def undo_of(train_step):
    """A function that undoes a step interrupted while it waited for other processes.

    Before the last communication of a step, only the buffers (codebooks), the CLUB networks with their optimizer, and
    the random states change; all other weights change after it.

    Args:
        train_step: TrainStep, before the step.

    Returns:
        a function without arguments.
    """
    system, auxiliary, generator = train_step.system, train_step.optimizers.auxiliary, train_step.rng.generator
    groups = auxiliary.param_groups if auxiliary else []
    tensors = [*system.buffers(), *(parameter for group in groups for parameter in group["params"])]
    kept, state, initialized = [x.clone() for x in tensors], generator.get_state(), list(system.initialized)
    optimizer = deepcopy(auxiliary.state_dict()) if auxiliary else None

    @torch.no_grad()
    def undo():
        for tensor, before in zip(tensors, kept):
            tensor.copy_(before)
        if auxiliary:
            auxiliary.load_state_dict(optimizer)
        generator.set_state(state)
        system.initialized = initialized
    return undo
