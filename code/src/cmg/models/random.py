"""The random choices of a training step, all from the run's sampling generator."""

import torch

RESET_NOISE = 1 / 1024
LEAST_SECONDS = 3               # of a clip: Cross-CPC predicts the last from those before


class StepRandom:
    """CPC second, CLUB permutations, code resets, masks and blocks. Dropout keeps torch's own generator.

    A test replaces this object by one that repeats recorded choices.
    """

    def __init__(self, generator):
        self.generator = generator

    def second(self, num_seconds):
        """Last second that the CPC context sees: uniform over 1..T-2, as published."""
        if num_seconds < LEAST_SECONDS:
            raise ValueError(f"Cross-CPC needs clips of at least {LEAST_SECONDS} seconds, these have {num_seconds}")
        return 1 + int(torch.randint(num_seconds - 2, (), generator=self.generator))

    def permutation(self, num_clips):
        """A permutation of the clips, (B,) int64."""
        return torch.randperm(num_clips, generator=self.generator)

    def reset_positions(self, due, num_active):
        """For every code a uniform position in the list of active codes, (K,) int64; used where `due` (K,) is true."""
        uniform = torch.rand(len(due), generator=self.generator).to(due.device, non_blocking=True)
        return torch.minimum((uniform * num_active).long(), num_active - 1)

    def reset_noise(self, codes):
        """Uniform noise of +-1/1024 for every code, like `codes` (K, D)."""
        uniform = torch.rand(codes.shape, generator=self.generator).to(codes, non_blocking=True)
        return (2 * uniform - 1) * RESET_NOISE

    def normal(self, like):
        """Standard normal numbers like a tensor. They are made on its device, from one draw of the run's generator."""
        made = torch.Generator(like.device)
        made.manual_seed(int(torch.randint(2 ** 62, (), generator=self.generator)))
        return torch.randn(like.shape, generator=made, dtype=like.dtype, device=like.device)

    def kept(self, num_clips, num_seconds, masked):
        """1 for every second that is kept, 0 with probability `masked`: (B, T) float32."""
        return (torch.rand(num_clips, num_seconds, generator=self.generator) >= masked).float()

    def modalities(self, num_blocks, num_modalities):
        """Number of the modality that each block is taken from, (num_blocks,) int64."""
        return torch.randint(num_modalities, (num_blocks,), generator=self.generator)

    def sentences(self, counts):
        """Which of its `counts` (N,) sentences each clip of a data set shows in a step, uniform, (N,) int64. One number
        of the run's generator whatever the batch, so that processes which share a batch agree."""
        made = torch.Generator()
        made.manual_seed(int(torch.randint(2 ** 62, (), generator=self.generator)))
        uniform = torch.rand(len(counts), generator=made, dtype=torch.float64)
        return torch.minimum((uniform * counts).long(), counts - 1)

    def rows(self, num_rows, num_codes):
        """Which of `num_rows` features start the codes, (K,) int64; without repetition where there are enough."""
        if num_rows >= num_codes:
            return torch.randperm(num_rows, generator=self.generator)[:num_codes]
        return torch.randint(num_rows, (num_codes,), generator=self.generator)
