"""CLUB: an upper bound on the mutual information between codes and specific features (NeurIPS 2023, eq. 2).

`CLUB` is the network of one modality, with its two equations in their plain form. Training uses `BatchedCLUB`, which
computes the same for all modalities with one matrix product per layer: `fit` takes the optimizer steps of q, and
`upper_bounds` returns the loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.models.masking import gathered, mean_of_clips
from cmg.utils import dist


def _mlp(widths, last=None):
    layers = []
    for input_dim, output_dim in zip(widths, widths[1:]):
        layers += [nn.Linear(input_dim, output_dim), nn.ReLU()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


class CLUB(nn.Module):
    """The variational distribution q(specific | code) of one modality: a Gaussian with mean and log-variance from two
    MLPs."""

    def __init__(self, code_dim, specific_dim, hidden):
        super().__init__()
        widths = (code_dim, hidden, hidden, hidden, specific_dim)
        self.mean = _mlp(widths)
        self.log_variance = _mlp(widths, nn.Tanh())

    def log_likelihood(self, codes, specific):
        """Mean over seconds of log q(specific | code), up to a constant, in nats: (B, T, D), (B, T, S) -> scalar."""
        mean, log_variance = self.mean(codes), self.log_variance(codes)
        return (-(mean - specific) ** 2 / log_variance.exp() - log_variance).sum(-1).mean() / 2

    def upper_bound(self, codes, specific, permutation):
        """The bound on I(code; specific), a scalar in nats, with negative pairs formed by the `permutation` (B,) of the
        clips.

        As published, errors and log-variances are averaged over the seconds of a clip before they are divided.
        """
        mean, variance = self.mean(codes), self.log_variance(codes).mean(1).exp()               # (B, T, S), (B, S)
        matched = ((mean - specific) ** 2).mean(1) / variance
        shuffled = ((mean - specific[permutation]) ** 2).mean(1) / variance
        return (shuffled - matched).sum(-1).mean() / 2


@dataclass
class SufficientStats:
    """Sufficient statistics of a batch for fitting q: for each modality, R groups of seconds that share a code."""

    codes: Tensor       # (M, R, D), or (1, R, D) if they are the same for all modalities
    share: Tensor       # (M, R, 1) fraction of all seconds
    mean: Tensor        # (M, R, S) of the specific features in a group
    variance: Tensor    # (M, R, S)
    mask: Tensor = None     # (B, T) mask of the seconds (cmg/models/masking.py)

    @classmethod
    def each(cls, codes, specific, mask=None):
        """One group per second: codes (M, N, D), specific (M, N, S), mask (B, T), N = B * T."""
        share = specific.new_full((*specific.shape[:2], 1), 1 / specific.shape[1])
        if mask is not None:
            share = (mask.flatten().to(specific.dtype) / mask.sum()).view(1, -1, 1).expand_as(share)
        return cls(codes, share, specific, torch.zeros_like(specific), mask)

    @classmethod
    @torch.no_grad()
    def of(cls, codes, indices, specific, mask=None):
        """One group per code: codes (K, D), indices (M, B, T), specific (M, B, T, S).

        A Gaussian's likelihood needs only count, mean and variance of the features of each code, so that an iteration
        costs K rows instead of B*T. If there are more codes than seconds, every second is a group.
        """
        rows, assigned = specific.flatten(1, 2), indices.flatten(1)
        if len(codes) >= rows.shape[1]:
            return cls.each(codes[assigned], rows, mask)
        hits = F.one_hot(assigned, len(codes)).to(rows.dtype)                   # (M, N, K)
        if mask is not None:
            hits = hits * mask.flatten().unsqueeze(1)
        number = hits.sum(1).unsqueeze(2)
        mean = hits.mT @ rows / number.clamp_min(1)
        deviation = rows - mean.gather(1, assigned.unsqueeze(2).expand_as(rows))
        return cls(codes.unsqueeze(0), number / (rows.shape[1] if mask is None else mask.sum()), mean,
                   hits.mT @ deviation ** 2 / number.clamp_min(1), mask)


class BatchedCLUB:
    """The CLUB networks of M modalities in parallel: one batched product per layer instead of one per network.

    It computes with copies of the networks' weights, which `refresh` updates. If the modalities' features differ in
    width, all are padded with zeros to the widest, S: the padded weights are zero, predict zero and affect no gradient.

    Args:
        clubs: list of CLUB.

    Attributes:
        tensors: the copies, as leaf tensors: (2M, out, in) and (2M, 1, out) per layer, the networks of all means before
            those of all log-variances.
    """

    def __init__(self, clubs):
        self.tensors, self._slots = [], []
        networks = [club.mean for club in clubs] + [club.log_variance for club in clubs]
        for layer in zip(*([part for part in network if isinstance(part, nn.Linear)] for network in networks)):
            weight, width = layer[0].weight, max(part.out_features for part in layer)
            for number, part in enumerate(layer):
                self._slots += [(part.weight, len(self.tensors), (number, slice(part.out_features))),
                                 (part.bias, len(self.tensors) + 1, (number, 0, slice(part.out_features)))]
            self.tensors += [weight.new_zeros(len(layer), width, part.in_features, requires_grad=True),
                             weight.new_zeros(len(layer), 1, width, requires_grad=True)]
        self._parameters = [parameter for parameter, *_ in self._slots]
        self._copies = self._views([tensor.detach() for tensor in self.tensors])
        self.refresh()

    def _views(self, tensors):
        return [tensors[number][index] for _, number, index in self._slots]

    @torch.no_grad()
    def refresh(self):
        """Copy the current weights of the networks."""
        torch._foreach_copy_(self._copies, self._parameters)

    def share_gradients(self):
        """Make the networks' gradients views of those of the copies, initially zero, so that the optimizer and the
        gradient norms see them."""
        for tensor in self.tensors:
            tensor.grad = torch.zeros_like(tensor)
        for parameter, gradient in zip(self._parameters, self._views([tensor.grad for tensor in self.tensors])):
            parameter.grad = gradient
        dist.sum_gradients(self.tensors)

    def zero_gradients(self):
        """Set the shared gradients to zero."""
        torch._foreach_zero_([tensor.grad for tensor in self.tensors])

    def gaussians(self, codes):
        """Mean and log-variance of the specific features, (M, R, S) each, given codes (M or 1, R, D)."""
        (weight, bias), *others = zip(self.tensors[::2], self.tensors[1::2])
        x = torch.baddbmm(bias, codes.expand(len(weight) // 2, -1, -1).repeat(2, 1, 1), weight.mT)
        for weight, bias in others:
            x = torch.baddbmm(bias, F.relu(x), weight.mT)
        mean, log_variance = x.chunk(2)
        return mean, log_variance.tanh()

    def log_likelihoods(self, stats):
        """Mean log-likelihood per second, up to a constant: (M,), in nats."""
        mean, log_variance = self.gaussians(stats.codes)
        error = (mean - stats.mean) ** 2 + stats.variance
        values = (stats.share * (-error / log_variance.exp() - log_variance)).sum((1, 2)) / 2
        return dist.mean(values, stats.mask)

    def upper_bounds(self, codes, specific, permutations, mask=None):
        """The bounds on I(code; specific), (M,), in nats.

        Args:
            codes: (M, B, T, D).
            specific: (M, B, T, S).
            permutations: (M, B) of the clips of the whole batch; negative pairs are compared over the seconds that both
                clips have.
            mask: mask of the seconds (cmg/models/masking.py).
        """
        mean, log_variance = (x.unflatten(1, codes.shape[1:3]) for x in self.gaussians(codes.flatten(1, 2)))
        everything = torch.cat([mean, specific, mean_of_clips(log_variance, mask).unsqueeze(2)], 2).transpose(0, 1)
        everything = dist.all_gather(everything).transpose(0, 1)
        mean, specific, variance = everything.split([codes.shape[2], specific.shape[2], 1], 2)
        variance = variance.squeeze(2).exp()                                                # (M, B, S)
        mask = gathered(mask, mean)
        matched = mean_of_clips((mean - specific) ** 2, mask) / variance
        other = specific.gather(1, permutations[:, :, None, None].expand_as(specific))
        shuffled = mean_of_clips((mean - other) ** 2, None if mask is None else mask & mask[permutations]) / variance
        return (shuffled - matched).sum(2).mean(1) / 2

    def upper_bounds_of_clips(self, codes, specific, permutation, form="intended"):
        """The bound of one network on rows without a time axis, such as the clip means of FCID: a scalar, in nats.

        Args:
            codes, specific: (B, G, D) and (B, G, S), G rows per clip.
            permutation: (G * B,) of the rows of the whole batch, ordered as the first rows of all clips, then their
                second rows.
            form: "intended" treats every row as a clip of one second; "released" averages errors and log-variances over
                the channels, as if they were seconds, and sums over the rows.
        """
        mean, log_variance = (x.view(*codes.shape[:2], -1) for x in self.gaussians(codes.flatten(0, 1).unsqueeze(0)))
        rows = dist.all_gather(torch.cat([mean, specific, log_variance], 2)).transpose(0, 1).flatten(0, 1)
        mean, specific, log_variance = rows.chunk(3, 1)
        matched, shuffled = (mean - specific) ** 2, (mean - specific[permutation]) ** 2
        if form == "released":
            return ((shuffled - matched).mean(1) / log_variance.mean(1).exp()).sum() / 2
        return ((shuffled - matched) / log_variance.exp()).sum(1).mean() / 2


def fit(clubs, stats, optimizer, iterations):
    """Fit CLUB networks by maximum likelihood.

    The gradients of the last iteration are kept and added to those of the bound in the main backward pass, so that
    gradient norms are the published ones; the next iteration clears them.

    Args:
        clubs: key -> BatchedCLUB whose gradients are shared (`share_gradients`).
        stats: the same keys -> SufficientStats of the batch, without gradient.
        optimizer: torch optimizer of the networks.
        iterations: number of optimizer steps.

    Returns:
        key -> (M,) log-likelihoods in the last iteration, before its update.
    """
    likelihoods = {}
    for _ in range(iterations if clubs else 0):
        for key, batched in clubs.items():
            batched.zero_gradients()
            likelihoods[key] = batched.log_likelihoods(stats[key])
        (-sum(values.sum() for values in likelihoods.values())).backward()
        dist.wait_gradients()
        optimizer.step()
        for batched in clubs.values():
            batched.refresh()
    if not dist.is_main():              # these gradients are already sums over all processes; count them once
        for batched in clubs.values():
            batched.zero_gradients()
    return {key: values.detach() for key, values in likelihoods.items()}
