"""CLUB: an upper bound of the mutual information of codes and specific features (dcid.md 5; paper eq. 2)."""

import torch
from torch import nn

from model.together import ALONE


def _mlp(widths, last=None):
    layers = []
    for here, there in zip(widths, widths[1:]):
        layers += [nn.Linear(here, there), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


class Club(nn.Module):
    """q(specific | code), a Gaussian with mean and log-variance from two MLPs."""

    def __init__(self, code_dim, specific_dim, hidden):
        super().__init__()
        widths = (code_dim, hidden, hidden, hidden, specific_dim)
        self.mean = _mlp(widths)
        self.log_variance = _mlp(widths, nn.Tanh())
        self.together = ALONE

    def log_likelihood(self, codes, specific):
        """Mean log-likelihood of a second, up to a constant: (B, T, D), (B, T, S) -> scalar, in nats."""
        mean, log_variance = self.mean(codes), self.log_variance(codes)
        value = (-(mean - specific) ** 2 / log_variance.exp() - log_variance).sum(-1).mean() / 2
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
