"""Adam with the gradient clipping of named sections folded into its pass over the weights."""

import torch


def flat(tensor):
    """A tensor's numbers as one row in the order of memory: a view of dense tensors, also channels last."""
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def total_norm(parameters):
    """Norm of all gradients of a section together; a tensor on their device. None where there is no gradient."""
    norms = [torch.linalg.vector_norm(flat(p.grad)) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


class ClippedAdam(torch.optim.Adam):
    """torch.optim.Adam, fused, whose step takes a factor for the gradients of each section.

    120 M float32 weights make the step a matter of memory traffic: scaling the gradients beforehand would read and
    write them once more. The fused kernel takes the scale as float32, so float64 gradients are scaled beforehand.
    """

    def __init__(self, parameters, lr, weight_decay=0.0):
        super().__init__(parameters, lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step_sections(self, sections):
        """One step; `sections` are pairs (parameters, factor tensor) that together hold this optimiser's parameters."""
        group = self.param_groups[0]
        whole = group["params"]
        try:
            for parameters, factor in sections:
                group["params"], self.grad_scale = parameters, None
                if factor.dtype == torch.float64:
                    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
                else:
                    self.grad_scale = 1 / factor
                self.step()
        finally:
            group["params"] = whole
            self.grad_scale = None
