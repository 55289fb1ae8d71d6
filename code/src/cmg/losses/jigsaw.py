"""Cross-modal jigsaw (CUJP of MICU): classify the permutation of channel blocks that come from random modalities."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from cmg.models.masking import mean_of_seconds
from cmg.utils import dist
from cmg.utils.errors import InputError


def sample_permutations(blocks, number):
    """`number` distinct permutations of `blocks` elements, (number, blocks) int64, in random order.

    The state of torch's generator is restored, so that building a system only for its names and shapes has no side
    effects.

    Raises:
        InputError: there are not that many permutations.
    """
    if number > math.factorial(blocks):
        raise InputError(f"--jigsaw_permutations {number}: {blocks} blocks have only {math.factorial(blocks)} "
                         "permutations; lower it, or raise --jigsaw_blocks")
    with torch.random.fork_rng(devices=[]):
        found = {}
        while len(found) < number:
            orders = torch.rand(2 * number, blocks, device="cpu").argsort(1)
            found |= dict.fromkeys(map(tuple, orders.tolist()))
    return torch.tensor(list(found)[:number], device="cpu")


class Jigsaw(nn.Module):
    """The classifier, and the permutations, which stay the same for the whole run.

    Args:
        code_dim: width D of the quantized vectors.
        blocks: number of equal blocks of channels (S).
        permutations: number of classes (P), a sample without repetition of the S! permutations.
        hidden: width of the classifier.
    """

    def __init__(self, code_dim, blocks, permutations, hidden):
        super().__init__()
        if code_dim % blocks:
            raise InputError(f"--jigsaw_blocks {blocks}: expected a divisor of the {code_dim} channels of a code")
        self.register_buffer("permutations", sample_permutations(blocks, permutations))
        self.hidden = nn.Linear(code_dim, hidden)
        self.classify = nn.Linear(hidden, permutations)

    def forward(self, vectors, modalities, mask=None):
        """Mean cross-entropy over permutations, clips and seconds.

        Args:
            vectors: (M, B, T, D) quantized, straight-through.
            modalities: (S,) index of the modality that each block is taken from.
            mask: mask of the seconds (cmg/models/masking.py).
        """
        number, blocks = self.permutations.shape
        parts = vectors.flatten(1, 2).unflatten(-1, (blocks, -1))                   # (M, N, S, D / S)
        mixed = parts[modalities, :, torch.arange(blocks, device=parts.device)]     # (S, N, D / S)
        shuffled = mixed[self.permutations].transpose(1, 2).flatten(2)              # (P, N, D)
        scores = self.classify(F.relu(self.hidden(shuffled)))
        classes = torch.arange(number, device=scores.device).repeat_interleave(scores.shape[1])
        if mask is None:
            return dist.mean(F.cross_entropy(scores.flatten(0, 1), classes))
        costs = F.cross_entropy(scores.flatten(0, 1), classes, reduction="none").view(number, *mask.shape)
        return dist.mean(mean_of_seconds(costs, mask).mean(), mask)
