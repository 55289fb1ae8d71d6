"""Undo the part of a step that is done before all processes of a run have answered: one may be lost within it."""

from copy import deepcopy

import torch


@torch.no_grad()
def undo_of(train_step):
    """What takes back a step that broke off while it waited for other processes.

    Up to the last message of a step the buffers (codebooks), the CLUB networks with their optimizer, and the random
    draws change; all other weights change after it.

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
