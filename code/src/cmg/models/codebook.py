"""The shared codebook: lookup, commitment loss, CMCM, MM-EMA update and code reset (NeurIPS 2023, section 3.2)."""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmg.models.config import RESET_AFTER
from cmg.models.masking import first_rows, gathered, mean_of_clips, mean_of_seconds
from cmg.utils import dist

DECAY, EPSILON = 0.99, 1e-5             # of the EMA and of its Laplace smoothing
ACTIVE_BELOW = 100                      # a code unused for RESET_AFTER passes is reset to one unused for fewer
COMMITMENT = 0.25                       # weight of the commitment loss
HASH_BASE = 6364136223846793005         # odd multiplier of Knuth's 64-bit linear congruential generator
INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16,
            torch.float16: torch.int16}


class Pass:
    """Mixin for results of a quantization pass that have `perplexity` and `equal_num`."""

    @property
    def metrics(self):
        """Name in the log -> scalar tensor."""
        return {f"{m}_perplexity": value for m, value in self.perplexity.items()} | {"equal_num": self.equal_num}


@dataclass
class Quantized(Pass):
    """Result of one pass through the codebook; every dict is keyed by modality."""

    codes: Tensor       # (K, D) code vectors used in this pass
    vectors: dict       # (B, T, D) nearest codes, with a straight-through gradient to the features
    indices: dict       # (B, T) int64 assigned codes
    commitment: dict    # scalar losses
    cmcm: Tensor        # scalar loss
    perplexity: dict    # scalars, 1..K
    equal_num: Tensor   # number of clips whose most frequent code is the same in all modalities


def squared_distance(rows, codes):
    """Squared Euclidean distances (..., N, K) between rows (..., N, D) and codes (..., K, D), clamped at 0."""
    squares = (rows ** 2).sum(-1, keepdim=True) + (codes ** 2).sum(-1).unsqueeze(-2)
    return (squares - 2 * rows @ codes.mT).clamp_min(0)


def lowest_equal(codes):
    """For each row of `codes` (K, D), the lowest index of an equal row: (K,) int64, without a device synchronization.

    Rows are grouped by an integer hash of their bits, which does not depend on the order of summation, and then
    compared. If different rows share a hash (probability about 2^-64 per pair), some of them keep their own index.
    """
    bits = (codes + 0.0).view(INTEGERS[codes.dtype]).long()                     # -0.0 equals 0.0
    bits = bits ^ (bits >> 32)                                                  # the sign affects the lower bits, too
    hashes = (bits * torch.full_like(bits[0], HASH_BASE).cumprod(0)).sum(1)     # modulo 2^64
    ordered, order = hashes.sort(stable=True)
    first = order[torch.searchsorted(ordered, hashes)]
    return torch.where((codes[first] == codes).all(1), first, torch.arange(len(codes), device=codes.device))


def nearest_codes(distance, codes):
    """Index (N,) int64 of the nearest of `codes` (K, D), given the distances (N, K) to them.

    Among equal codes the lowest index wins, although a matrix product may give equal columns distances that differ in
    the last bit. Between different codes whose distances differ by less than rounding, the choice may depend on the
    processor.
    """
    return lowest_equal(codes)[distance.detach().argmin(1)]


def cmcm_pair(p_x, p_y):
    """Cross-modal code matching loss (CMCM) of two modalities (NeurIPS 2023, eq. 9).

    mean_i -log( exp(S_ii - m) / (sum_j exp(S_ij - m) + 1e-5) ) with m = min S, computed in the log domain.

    Args:
        p_x, p_y: (..., B, K) distributions over the codes, one per clip.

    Returns:
        Loss of shape (...).
    """
    scores = p_x @ torch.log(p_y + 1e-10).mT + p_y @ torch.log(p_x + 1e-10).mT      # (..., B, B)
    scores = scores - scores.amin((-2, -1), keepdim=True)
    floor = scores.new_full((), math.log(1e-5))         # torch.tensor would synchronize with a GPU
    return (torch.logaddexp(scores.logsumexp(-1), floor) - scores.diagonal(dim1=-2, dim2=-1)).mean(-1)


def code_matching(distance, mask=None):
    """CMCM loss of all modalities, a scalar: half the sum of `cmcm_pair` over the pairs of modalities.

    Args:
        distance: (M, B, T, K) squared distances of the features to the codes. A feature at distance 0 gets no gradient,
            because that of the square root is infinite there.
        mask: mask of the seconds (cmg/models/masking.py).
    """
    root = distance.clamp_min(torch.finfo(distance.dtype).tiny ** 0.5).sqrt()
    probabilities = mean_of_clips(torch.softmax(-root, -1), mask)                                   # (M, B, K)
    probabilities = dist.all_gather(probabilities.transpose(0, 1)).unbind(1)
    return 0.5 * cmcm_pair(*(torch.stack(side) for side in zip(*combinations(probabilities, 2)))).sum()


def code_metrics(indices, codes, mask=None):
    """Metrics of one pass: the perplexity (M,) of each modality, and the number of clips whose most frequent code is
    the same in all modalities (among equally frequent codes, the lowest index).

    Args:
        indices: (M, B, T) assigned codes.
        codes: (K, ...) code vectors.
        mask: mask of the seconds (cmg/models/masking.py).
    """
    counts = codes.new_zeros(*indices.shape[:-1], len(codes))                                       # (M, B, K)
    each = torch.ones_like(indices, dtype=codes.dtype) if mask is None else mask.to(codes.dtype).expand(indices.shape)
    counts.scatter_add_(-1, indices, each)
    most_frequent = dist.local(counts.argmax(2).T)                                                  # (B, M)
    usage = dist.mean(counts.sum(1) / (indices[0].numel() if mask is None else mask.sum()), mask)
    perplexity = torch.exp(-(usage * torch.log(usage + 1e-10)).sum(1))
    return perplexity, dist.all_reduce((most_frequent == most_frequent[:, :1]).all(1).sum())


def count_unused(counter, indices, mask=None):
    """Increment every code's count of passes without use, and reset it to 0 for codes that were assigned in this pass.

    Args:
        counter: (K,) counts, changed in place.
        indices: modality -> (B, T) assigned codes.
        mask: mask of the seconds (cmg/models/masking.py).
    """
    assigned = dist.local(torch.stack(list(indices.values()), 1)).flatten()
    used = torch.zeros_like(counter)
    if mask is None:
        used.index_fill_(0, assigned, 1)
    else:
        counts = dist.local(mask).to(used.dtype).unsqueeze(1).expand(-1, len(indices), -1)
        used.index_add_(0, assigned, counts.flatten())
    counter.add_(1).masked_fill_(dist.all_reduce(used) > 0, 0)


@torch.no_grad()
def code_perplexity(codebook):
    """Perplexity, 1..K, of the moving counts `codebook.ema_count` (..., K), summed over leading dimensions."""
    count = codebook.ema_count.double().clamp_min(0)
    count = count.reshape(-1, count.shape[-1]).sum(0)
    share = count / count.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * torch.log(share + 1e-10)).sum()))


@dataclass(frozen=True)
class Reset:
    """How unused codes are reset. The defaults are the published ones, except for the mode.

    Attributes:
        mode: "full" resets EMA weight and count along with the code, so that the next EMA update keeps it; "released"
            resets only the code, which that update mostly undoes; "off" only counts passes.
        after: a code is reset after more than this number of passes without use. Its replacement must have been used
            within the last third of that number.
        to: "code" resets to an active code, "second" to the mean of all modalities at a random second of the batch.
    """

    mode: str = "full"
    after: int = RESET_AFTER
    to: str = "code"


def replacements(counter, rng, after=RESET_AFTER):
    """Which codes are due for a reset, (K,) bool, and a random active code for each, (K,) int64."""
    due = counter > after
    active = (counter >= 0) & (counter < after * ACTIVE_BELOW / RESET_AFTER)
    in_order = torch.argsort((~active).to(torch.int8), stable=True)                 # active codes first, ascending
    return due, in_order[rng.reset_positions(due, active.sum())]


def attention_teacher(z, other, mask=None):
    """softmax(z other^T / sqrt(D)) other over the seconds of a clip, (B, T, D): our reading of NeurIPS 2023, eq. 7."""
    scores = z @ other.transpose(1, 2) / z.shape[-1] ** 0.5
    return torch.softmax(scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -torch.inf), -1) @ other


class Codebook(nn.Module):
    """K codes of width D, shared by all modalities.

    The state consists of four buffers, which change only in `init_from_data`, `update_ema` and `expire_codes`:
    `embedding` (K, D), `ema_count` (K,), `ema_weight` (K, D) and `unactivated_count` (K,). They are initialized as in
    the published program; `init_from_data` initializes them from features.
    """

    def __init__(self, num_codes, code_dim):
        super().__init__()
        embedding = torch.empty(num_codes, code_dim).uniform_(-1 / 400, 1 / 400)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.zeros(num_codes))
        self.register_buffer("ema_weight", embedding.clone())
        self.register_buffer("unactivated_count", torch.full((num_codes,), -1.0))

    def forward(self, z, with_cmcm=True, mask=None, joint=()):
        """Assign every second to its nearest code. No buffer changes.

        Args:
            z: modality -> (B, T, D) semantic features.
            with_cmcm: False leaves the CMCM loss at 0.
            mask: mask of the seconds (cmg/models/masking.py), here and below.
            joint: modalities that share one code per second, the one with the smallest sum of squared distances.

        Returns:
            Quantized.

        Raises:
            ValueError: the features and the codes differ in width.
        """
        for modality, x in z.items():
            if x.shape[-1] != self.embedding.shape[1]:
                raise ValueError(f"{modality} features have width {x.shape[-1]}, but the codes have width "
                                 f"{self.embedding.shape[1]}")
        codes = self.embedding.clone()          # the EMA rewrites the buffer before backward reads it
        x = torch.stack(list(z.values()))                                                           # (M, B, T, D)
        distance = squared_distance(x.flatten(0, 2), codes)
        indices = nearest_codes(self._joined(distance.detach().unflatten(0, x.shape[:3]), z, joint).flatten(0, 2),
                          codes).unflatten(0, x.shape[:3])
        quantized = codes[indices]
        cmcm = codes.new_zeros(())
        if with_cmcm and len(z) > 1:
            cmcm = code_matching(distance.unflatten(0, x.shape[:3]), mask)
        perplexity, equal_num = code_metrics(indices, codes, mask)
        commitment = dist.mean(self._commitment(x, quantized, mask), mask)
        vectors = x + (quantized - x).detach()
        return Quantized(
            codes=codes,
            vectors=dict(zip(z, vectors)),
            indices=dict(zip(z, indices)),
            commitment=dict(zip(z, commitment)),
            cmcm=cmcm,
            perplexity=dict(zip(z, perplexity)),
            equal_num=equal_num)

    @staticmethod
    def _joined(distance, modalities, joint):
        """Distances (M, B, T, K) that determine the codes: those of `joint` modalities are replaced with their mean."""
        members = [x for m, x in zip(modalities, distance) if m in joint]
        if len(members) < 2:
            return distance
        mean = sum(members) / len(members)
        return torch.stack([mean if m in joint else x for m, x in zip(modalities, distance)])

    @staticmethod
    def _commitment(x, quantized, mask):
        """Commitment losses (M,) of features (M, B, T, D): twice the mean squared error to a modality's own codes, plus
        the mean over the other modalities of that to theirs."""
        errors = (x.unsqueeze(1) - quantized) ** 2                          # (M, M, ...): features of, codes of
        errors = errors.mean((2, 3, 4)) if mask is None else mean_of_seconds(errors.mean(4), mask)
        others = max(len(x) - 1, 1)
        return COMMITMENT * (errors.sum(1) / others + (2 - 1 / others) * errors.diagonal())

    def lookup(self, z):
        """Nearest codes of one modality: z (B, T, D) -> vectors (B, T, D), straight-through, and indices (B, T)."""
        distance = squared_distance(z.detach().flatten(0, 1), self.embedding)
        indices = nearest_codes(distance, self.embedding).unflatten(0, z.shape[:2])
        codes = self.embedding[indices]         # exactly the codes if there is no gradient, not z + (codes - z)
        return (z + (codes - z).detach() if z.requires_grad else codes), indices

    @torch.no_grad()
    def init_from_data(self, z, rng, mask=None):
        """Initialize the codes with random features of the first batch, from all modalities, each with a count of 1.

        Args:
            z: modality -> (B, T, D) semantic features.
            rng: cmg.models.random.StepRandom.
        """
        rows = torch.cat([dist.all_gather(x.detach()).flatten(0, 1) for x in z.values()])
        mask = None if mask is None else gathered(mask, rows).flatten().repeat(len(z))
        sample = first_rows(rng, len(rows), len(self.embedding), mask).to(rows.device)
        self.embedding.copy_(rows[sample])
        self.ema_weight.copy_(self.embedding)
        self.ema_count.fill_(1)
        self.unactivated_count.fill_(-1)

    @torch.no_grad()
    def update_ema(self, z, indices, teacher="mean", mask=None):
        """One MM-EMA update (NeurIPS 2023, eq. 7), one modality after the other in the order of the dict.

        Args:
            z: modality -> (B, T, D) features before quantization.
            indices: modality -> (B, T) assigned codes.
            teacher: "mean" averages the other modalities at the same second, as published; "attention" attends over
                the seconds of the clip; "own" uses no other modality (ablation).
        """
        features = {m: x.detach() for m, x in z.items()}
        targets = []
        for modality, x in features.items():
            others = [other for name, other in features.items() if name != modality]
            if teacher == "attention":
                others = [attention_teacher(x, other, mask) for other in others]
            targets.append(0.5 * x + 0.5 * sum(others) / len(others) if others and teacher != "own" else x)
        rows = dist.local(torch.stack(targets, 1)).transpose(0, 1).flatten(1, 2)             # (M, N, D)
        assigned = dist.local(torch.stack(list(indices.values()), 1)).transpose(0, 1).flatten(1)
        hits = F.one_hot(assigned, len(self.embedding)).to(rows.dtype)                              # (M, N, K)
        if mask is not None:
            hits = hits * dist.local(mask).flatten().unsqueeze(1)
        sums = dist.all_reduce(torch.cat([hits.sum(1).unsqueeze(2), hits.mT @ rows], 2))
        for count, weight in zip(sums[..., 0], sums[..., 1:]):
            self.ema_count.mul_(DECAY).add_(count, alpha=1 - DECAY)
            total = self.ema_count.sum()
            self.ema_count.add_(EPSILON).mul_(total / (total + len(self.embedding) * EPSILON))
            self.ema_weight.mul_(DECAY).add_(weight, alpha=1 - DECAY)
            self.embedding.copy_(self.ema_weight / self.ema_count.unsqueeze(1))

    @torch.no_grad()
    def expire_codes(self, indices, rng, reset=Reset(), z=None, mask=None):
        """Count passes without use and reset the codes that have been unused for too long.

        Args:
            indices: modality -> (B, T) assigned codes.
            rng: cmg.models.random.StepRandom.
            reset: Reset.
            z: modality -> (B, T, D) features, for resets to seconds.
        """
        count_unused(self.unactivated_count, indices, mask)
        if reset.mode == "off":
            return
        due, source = replacements(self.unactivated_count, rng, reset.after)
        targets = self.embedding[source]
        if reset.to == "second":
            seconds = dist.all_gather(sum(x.detach() for x in z.values()) / len(z)).flatten(0, 1)
            whole = None if mask is None else gathered(mask, seconds).flatten()
            rows = first_rows(rng, len(seconds), len(targets), whole).to(seconds.device, non_blocking=True)
            targets = seconds[rows].to(targets.dtype)
        fresh = targets + rng.reset_noise(self.embedding)
        self.embedding.copy_(torch.where(due.unsqueeze(1), fresh, self.embedding))
        if reset.mode == "full":
            self.ema_weight.copy_(torch.where(due.unsqueeze(1), fresh, self.ema_weight))
            self.ema_count.masked_fill_(due, 1)
        self.unactivated_count.masked_fill_(due, 0)
