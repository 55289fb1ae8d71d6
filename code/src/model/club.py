"""CLUB: an upper bound of the mutual information of codes and specific features (dcid.md 5; paper eq. 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.together import ALONE


def _mlp(widths, last=None):
    layers = []
    for here, there in zip(widths, widths[1:]):
        layers += [nn.Linear(here, there), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


@dataclass
class Evidence:
    """What a batch says about q: R groups of seconds, each with one code, and their specific features."""

    codes: Tensor       # (R, D)
    share: Tensor       # (R, 1) of all seconds
    mean: Tensor        # (R, S) of the group's features
    spread: Tensor      # (R, S) mean squared deviation from it

    @classmethod
    def each(cls, codes, specific):
        """Every second a group of its own: codes (N, D), specific (N, S)."""
        share = specific.new_full((len(specific), 1), 1 / len(specific))
        return cls(codes, share, specific, torch.zeros_like(specific))

    @classmethod
    @torch.no_grad()
    def of(cls, codes, indices, specific):
        """Seconds grouped by code: codes (K, D), indices (B, T), specific (B, T, S).

        A Gaussian's likelihood needs only number, mean and spread of the features of each code, so that the iterations
        of a step cost K rows instead of B*T. Where there are more codes than seconds, every second is a group.
        """
        rows, chosen = specific.flatten(0, 1), indices.flatten()
        if len(codes) >= len(rows):
            return cls.each(codes[chosen], rows)
        hits = F.one_hot(chosen, len(codes)).to(rows.dtype)                     # (N, K)
        number = hits.sum(0).unsqueeze(1)
        mean = hits.T @ rows / number.clamp_min(1)
        spread = hits.T @ (rows - mean[chosen]) ** 2 / number.clamp_min(1)
        return cls(codes, number / len(rows), mean, spread)


class Club(nn.Module):
    """q(specific | code), a Gaussian with mean and log-variance from two MLPs."""

    def __init__(self, code_dim, specific_dim, hidden):
        super().__init__()
        widths = (code_dim, hidden, hidden, hidden, specific_dim)
        self.mean = _mlp(widths)
        self.log_variance = _mlp(widths, nn.Tanh())
        self.together = ALONE

    def log_likelihood(self, evidence):
        """Mean log-likelihood of a second, up to a constant: scalar, in nats."""
        mean, log_variance = self.mean(evidence.codes), self.log_variance(evidence.codes)
        error = (mean - evidence.mean) ** 2 + evidence.spread
        value = (evidence.share * (-error / log_variance.exp() - log_variance)).sum() / 2
        return self.together.average(value)

    def upper_bound(self, codes, specific, permutation):
        """The bound on I(code; specific): clips against clips in the order of `permutation` (B,); scalar, in nats."""
        everything = torch.cat([self.mean(codes), specific, self.log_variance(codes).mean(1, keepdim=True)], 1)
        everything = self.together.gather(everything)
        mean, specific, variance = everything.split([codes.shape[1], specific.shape[1], 1], 1)
        variance = variance.squeeze(1).exp()                                                # (B, S)
        matched = ((mean - specific) ** 2).mean(1) / variance
        shuffled = ((mean - specific[permutation]) ** 2).mean(1) / variance
        return (shuffled - matched).sum(-1).mean() / 2
