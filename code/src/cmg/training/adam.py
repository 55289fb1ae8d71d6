"""Adam on many weights at once, with the clipping of their gradients folded into its pass over memory."""

import torch
from torch.nn.utils import get_total_norm
from torch.optim.adam import adam


def flat(tensor):
    """A view of a dense tensor in the order of memory: kernels (4 dimensions), which are channels last, as one row.

    Others lie in that order already, and views of all of them cost the host several percent of a small step.
    """
    return tensor.permute(0, 2, 3, 1).view(-1) if tensor.ndim == 4 else tensor


def total_norm(parameters):
    """Norm of all gradients of a section together; a tensor on their device. None where there is no gradient."""
    gradients = [flat(p.grad) for p in parameters if p.grad is not None]
    return get_total_norm(gradients) if gradients else None


def start_state(optimizer, parameters):
    """Give these parameters the state with which torch.optim.Adam starts."""
    for parameter in parameters:
        if not optimizer.state[parameter]:
            optimizer.state[parameter].update(step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                                              exp_avg=torch.zeros_like(parameter),
                                              exp_avg_sq=torch.zeros_like(parameter))


@torch.no_grad()
def adam_step(parts, factor=None, found_inf=None):
    """One step of torch.optim.Adam in one fused call.

    120 M float32 weights make the step a matter of memory traffic: scaling the gradients beforehand would read and
    write them once more, and on a CPU the fused kernel takes twice as long for kernels that lie channels last as for
    the same numbers in a row. It takes the scale as float32, so float64 gradients are scaled beforehand.

    Args:
        parts: pairs (optimiser, those of its parameters that take a step); the optimisers have the same settings.
        factor: scalar tensor, of the gradients.
        found_inf: scalar float32 tensor; where it is 1 nothing changes.
    """
    parameters, states = [], []
    for optimizer, chosen in parts:
        chosen = [parameter for parameter in chosen if parameter.grad is not None]
        start_state(optimizer, chosen)
        parameters += chosen
        states += [optimizer.state[parameter] for parameter in chosen]
    gradients = [flat(p.grad) for p in parameters]
    if factor is not None and factor.dtype == torch.float64:
        torch._foreach_mul_(gradients, factor)
        factor = None
    group = parts[0][0].param_groups[0]
    beta1, beta2 = group["betas"]
    adam([flat(p) for p in parameters], gradients, [flat(state["exp_avg"]) for state in states],
         [flat(state["exp_avg_sq"]) for state in states], [], [state["step"] for state in states], fused=True,
         grad_scale=None if factor is None else 1 / factor, found_inf=found_inf, amsgrad=False, beta1=beta1,
         beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)
