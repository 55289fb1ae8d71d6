"""Random choices of a training step, all drawn from the run's sampling generator."""

import torch

from cmg.models.config import MIN_SECONDS

RESET_NOISE = 1 / 1024          # largest value of the noise on reset codes


class StepRandom:
    """Draws CPC seconds, CLUB permutations, code resets, masks and jigsaw blocks. Dropout uses torch's own generator.

    Tests replace this object with one that replays recorded choices.

    Args:
        generator: torch.Generator of the run.
    """

    def __init__(self, generator):
        self.generator = generator

    def second(self, num_seconds):
        """Last second of the CPC context: uniform over 1..T-2, as published."""
        if num_seconds < MIN_SECONDS:
            raise ValueError(f"Cross-CPC needs clips of at least {MIN_SECONDS} seconds, but these have {num_seconds}")
        return 1 + int(torch.randint(num_seconds - 2, (), generator=self.generator))

    def permutation(self, num_clips):
        """A permutation of the clips, (B,) int64."""
        return torch.randperm(num_clips, generator=self.generator)

    def reset_positions(self, due, num_active):
        """A uniform random index into the list of active codes for every code, (K,) int64; used where `due` (K,) is
        true."""
        uniform = torch.rand(len(due), generator=self.generator).to(due.device, non_blocking=True)
        return torch.minimum((uniform * num_active).long(), num_active - 1)

    def reset_noise(self, codes):
        """Uniform noise in [-1/1024, 1/1024), of the shape of `codes` (K, D)."""
        uniform = torch.rand(codes.shape, generator=self.generator).to(codes, non_blocking=True)
        return (2 * uniform - 1) * RESET_NOISE

    def normal(self, like):
        """Standard normal noise of the shape, dtype and device of a tensor; takes one draw from the run's generator."""
        generator = torch.Generator(like.device)
        generator.manual_seed(int(torch.randint(2 ** 62, (), generator=self.generator)))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def kept(self, num_clips, num_seconds, masked):
        """Mask (B, T) float32: each second is 0 with probability `masked`, else 1."""
        return (torch.rand(num_clips, num_seconds, generator=self.generator) >= masked).float()

    def modalities(self, num_blocks, num_modalities):
        """Index of the modality that each jigsaw block is taken from, (num_blocks,) int64."""
        return torch.randint(num_modalities, (num_blocks,), generator=self.generator)

    def sentences(self, counts):
        """Which of its `counts` (N,) sentences each clip of a dataset uses in a step, uniform, (N,) int64.

        Takes a single draw from the run's generator regardless of the batch, so that processes that share a batch
        agree.
        """
        generator = torch.Generator()
        generator.manual_seed(int(torch.randint(2 ** 62, (), generator=self.generator)))
        uniform = torch.rand(len(counts), generator=generator, dtype=torch.float64)
        return torch.minimum((uniform * counts).long(), counts - 1)

    def rows(self, num_rows, num_codes):
        """Random row indices below `num_rows` for `num_codes` codes, (K,) int64, without repetition if there are enough
        rows."""
        if num_rows >= num_codes:
            return torch.randperm(num_rows, generator=self.generator)[:num_codes]
        return torch.randint(num_rows, (num_codes,), generator=self.generator)
