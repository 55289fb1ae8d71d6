"""Several processes that compute together what one would: torchrun on one machine or many.

A global batch is cut over the processes in order. What a step needs of the whole batch goes through `Ranks`, the
counterpart of cmg/utils/collectives.py: gathered features for the contrastive terms and for CLUB's permutation, sums for
the codebook's moving averages, and parameter gradients, added up while the backward pass still runs. Random draws come
from generators with the same seed everywhere (cmg/models/random.py), dropout from one of each process's own. Weights,
optimiser states and codebooks therefore stay equal on all processes without ever being sent.
"""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.autograd import Function

from cmg.training.adam import flat
from cmg.utils.collectives import ALONE
from cmg.utils.errors import InputError

STEPS = 10_000_019      # more than a run has: the dropout seeds of two runs do not meet
BUCKET_BYTES = 25 << 20     # of gradients in one message: few messages, and the first leave early in the backward pass


class _Gather(Function):
    @staticmethod
    def forward(ctx, x, ranks):
        ctx.ranks, ctx.shape = ranks, x.shape
        return ranks.collect(x)

    @staticmethod
    def backward(ctx, grad):
        start, end = ctx.ranks.span
        if end > start:
            return grad[start:end], None
        return grad.new_zeros(ctx.shape), None


class _Average(Function):
    @staticmethod
    def forward(ctx, x, ranks, share):
        ctx.share = share
        return ranks.total(x * share)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.share, None, None


class _Pool(Function):
    @staticmethod
    def forward(ctx, x, ranks, share):
        ctx.ranks, ctx.share = ranks, share
        return ranks.total(x * share)

    @staticmethod
    def backward(ctx, grad):
        return ctx.ranks.total(grad) * ctx.share, None, None


class Ranks:
    """The processes of a torchrun and the part of the batch that this one holds.

    Attributes:
        rank, size: number of this process, and of all.
        counts: clips of the running batch on every process; `expect` sets them.
    """

    def __init__(self, seed):
        self.rank, self.size, self.seed, self.counts = dist.get_rank(), dist.get_world_size(), seed, None
        self.complete, self.under_way = [], []      # gradients, and messages: (work, numbers, gradients they are of)

    @property
    def is_first(self):
        """Whether this process logs and saves."""
        return self.rank == 0

    def cut(self, clips):
        """How many of `clips` each process takes."""
        return [clips // self.size + (rank < clips % self.size) for rank in range(self.size)]

    def part(self, order, batch_size):
        """Clips that this process reads, of a global order (N,), and its batch size.

        All global batches but the last give it equally many; where the last one has none left for it, it reads that
        batch's first clip, which counts nowhere.

        Raises:
            InputError: fewer clips a batch than processes.
        """
        if batch_size < self.size:
            raise InputError(f"--batch_size {batch_size}: {self.size} processes share a batch; give at least one clip "
                             "to each")
        parts = []
        for batch in order.split(batch_size):
            counts = self.cut(len(batch))
            start = sum(counts[:self.rank])
            parts.append(batch[start:start + counts[self.rank]] if counts[self.rank] else batch[:1])
        return torch.cat(parts) if parts else order, self.cut(batch_size)[self.rank]

    def expect(self, clips, step):
        """The next step's batch has `clips` clips over all processes. Its dropout is a function of seed, step and
        process, so that a resumed run needs no other process's random state."""
        self.counts = self.cut(clips)
        torch.manual_seed(((self.seed * STEPS + step) * self.size + self.rank) % 2 ** 63)

    @property
    def span(self):
        """First and last + 1 of the own clips in the batch."""
        start = sum(self.counts[:self.rank])
        return start, start + self.counts[self.rank]

    def share(self, x, real):
        """Share of this process in a mean over the batch's clips, or over their real seconds: a scalar like `x`."""
        if real is None:
            return self.counts[self.rank] / sum(self.counts)
        own = self.own(real).sum().to(x.dtype)
        return own / self.total(own)

    def own(self, x):
        return x[:self.counts[self.rank]]

    def clips(self, x):
        return sum(self.counts)

    def gather(self, x):
        return _Gather.apply(x, self)

    def average(self, x, real=None):
        return _Average.apply(x, self, self.share(x, real))

    def pool(self, x, real=None):
        return _Pool.apply(x, self, self.share(x, real))

    @torch.no_grad()
    def collect(self, x):
        """The whole batch without gradient."""
        padded = x.new_zeros(max(self.counts), *x.shape[1:])
        padded[:self.counts[self.rank]] = self.own(x)
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts)])

    @torch.no_grad()
    def total(self, x):
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    def agree(self, value):
        """The largest of the processes' whole numbers; waits for all of them, but not for the device."""
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def add_gradients(self, tensors):
        """From now on the gradients of these leaves are added up over the processes, in messages of BUCKET_BYTES that
        leave while the backward pass still computes the others."""
        for tensor in tensors:
            tensor.register_post_accumulate_grad_hook(self._add)

    def _add(self, tensor):
        self.complete.append(flat(tensor.grad).view(-1))
        if sum(gradient.nbytes for gradient in self.complete) >= BUCKET_BYTES:
            self._send()

    def _send(self):
        gradients, self.complete = self.complete, []
        numbers = torch.cat(gradients) if len(gradients) > 1 else gradients[0]
        self.under_way.append((dist.all_reduce(numbers, async_op=True), numbers, gradients))

    def finish_gradients(self):
        if self.complete:
            self._send()
        for work, numbers, gradients in self.under_way:
            work.wait()
            if len(gradients) > 1:
                torch._foreach_copy_(gradients, list(numbers.split([len(gradient) for gradient in gradients])))
        self.under_way.clear()


def local_number():
    """Number of this process on its machine as torchrun gave it, as text; None without torchrun."""
    return os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None


@contextmanager
def ranks(device, seed):
    """`Ranks` under torchrun, else `ALONE`; the process group ends with the block.

    Args:
        device: of this process.
        seed: of the run.

    Raises:
        InputError: another process of the run has ended, so that this one waits in vain.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_lost, kind = False, "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(kind, timeout=timedelta(minutes=30))
        yield Ranks(seed)
    except RuntimeError as error:
        is_lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not is_lost:
            raise
        raise InputError(f"process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: another process of this run "
                         f"has ended or cannot be reached ({str(error).splitlines()[0][-60:]}); its own message says "
                         "why; start all again, with --resume auto") from error
    finally:
        if not is_lost and dist.is_initialized():
            dist.destroy_process_group()
