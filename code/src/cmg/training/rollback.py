"""Undoing a step that turns out not to be finite.

Codebooks, batch statistics and auxiliary networks move before the losses of a step are known. What they were is kept in
one row of memory for each dtype; the main weights change last, and Adam skips a step for which `found_inf` is set. On
a GPU nothing waits for that: the choice between old and new values is made there, and once a step was not finite every
later one is undone as well, until the host has noticed.
"""

from collections import deque

import torch

LATE = 16                       # steps by which the host may notice at most


class Rollback:
    """The state of before a step.

    Args:
        system: cmg.systems.base.System; its buffers and `started` are kept.
        auxiliary: pairs (Adam, its parameters), kept with their optimiser state.
        generator: of the run's draws, or None.

    Attributes:
        found_inf: scalar float32 tensor, 1 where the step is not finite, as fused Adam takes it.
    """

    def __init__(self, system, auxiliary, generator=None):
        self.system, self.auxiliary, self.generator = system, auxiliary, generator
        self._buffers = list(system.buffers())
        self.found_inf = torch.zeros((), device=next(system.parameters()).device)
        self._changing, self._rows, self._on_host = {}, {}, deque(maxlen=LATE)

    def _by_dtype(self):
        """dtype -> tensors that a step changes before it is judged."""
        tensors = list(self._buffers)
        for optimizer, parameters in self.auxiliary:
            for parameter in parameters:
                tensors += [parameter.detach(), *optimizer.state[parameter].values()]
        found = {}
        for tensor in tensors:
            found.setdefault(tensor.dtype, []).append(tensor)
        return found

    @torch.no_grad()
    def keep(self):
        """Before a step: remember the state."""
        if self.found_inf.device.type == "cpu":
            self.found_inf.zero_()
        self._changing = self._by_dtype()
        self._rows = {dtype: torch.cat([tensor.reshape(-1) for tensor in tensors])
                      for dtype, tensors in self._changing.items()}
        device = self.found_inf.device
        dropout_of_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._on_host.append((list(self.system.started), self.generator and self.generator.get_state(),
                              torch.get_rng_state(), dropout_of_gpu))

    @torch.no_grad()
    def judge(self, figures):
        """After the gradients of a step: put everything back where a figure, a list of scalar tensors, is not finite.

        Returns:
            True where the host knows by now that the step is not finite: on a CPU.
        """
        like = figures[0].detach()
        values = torch.stack([torch.as_tensor(value).detach().to(like) for value in figures])
        self.found_inf = torch.maximum(self.found_inf, (~values.isfinite().all()).to(self.found_inf))
        is_known = self.found_inf.device.type == "cpu" and bool(self.found_inf)
        if is_known or self.found_inf.device.type != "cpu":
            for dtype, tensors in self._changing.items():
                now = torch.cat([tensor.reshape(-1) for tensor in tensors])
                chosen = torch.where(self.found_inf > 0, self._rows[dtype], now)
                parts = chosen.split([tensor.numel() for tensor in tensors])
                torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors)])
        if is_known:
            self.forget(0)
        return is_known

    def forget(self, later):
        """Put back what the host keeps: the draws' and dropout's generators, which codebooks have started.

        Args:
            later: steps begun since the one that was not finite.
        """
        started, draws, dropout, dropout_of_gpu = self._on_host[-1 - later]
        self.system.started = list(started)
        if draws is not None:
            self.generator.set_state(draws)
        torch.set_rng_state(dropout)
        if dropout_of_gpu is not None:
            torch.cuda.set_rng_state(dropout_of_gpu, self.found_inf.device)
