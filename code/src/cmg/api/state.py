"""State of PyTorch that the functions of `cmg` do not take from the program that calls them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block, PyTorch computes as in the scripts, so that results do not depend on what the caller has set:
    gradients can be computed, autocast is off, new tensors are float32 on the CPU. Serves as a decorator as well."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.empty(0).device.type != "cpu":         # the context slows every call of a function down
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield
