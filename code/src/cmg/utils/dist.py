"""Distributed training with torchrun, on one or several machines, with the same results as a single process.

A global batch is split over the processes in order. Each process computes every loss in full, with gradients only for
its own clips; summed over all processes, the parameter gradients equal those of one process with the whole batch. The
functions below exchange what a step needs from the whole batch: features for the contrastive losses and CLUB's
permutation, sums for the codebook's moving averages, and parameter gradients, which are reduced during the backward
pass. Random draws use generators with the same seed in all processes (cmg/models/random.py), dropout uses a generator
per process. Weights, optimizer states and codebooks therefore stay equal in all processes without being sent.

Without a process group every function is the identity.
"""

import os
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.autograd import Function

from cmg.utils.errors import InputError, launched_processes

STEPS = 10_000_019          # more than the steps of a run, so that the dropout seeds of two runs do not overlap
ALIKE_SECONDS = 5           # time that the other processes give the first one to print the differences
SHOWN = 3                   # differences shown
BUCKET_BYTES = 25 << 20     # of gradients per message, so that messages are few but start early in the backward pass


class _Group:
    """The processes of a torchrun, and this process's part of the current batch.

    Attributes:
        rank, size: rank of this process, and number of processes.
        counts: clips of the current batch in each process.
        complete, sent: gradients ready to be sent, and pending messages (work, flat buffer, its gradients).
    """

    def __init__(self):
        self.rank, self.size, self.seed, self.counts = dist.get_rank(), dist.get_world_size(), 0, None
        self.complete, self.sent = [], []

    def cut(self, clips):
        """Number of `clips` for each process."""
        return [clips // self.size + (rank < clips % self.size) for rank in range(self.size)]

    @property
    def span(self):
        """Start and end of this process's clips in the batch."""
        start = sum(self.counts[:self.rank])
        return start, start + self.counts[self.rank]

    def share(self, x, mask):
        """Weight of this process in a mean over the batch's clips, or over their seconds: a scalar like `x`."""
        if mask is None:
            return self.counts[self.rank] / sum(self.counts)
        own = local(mask).sum().to(x.dtype)
        return own / all_reduce(own)


_group = None


def is_main():
    """Whether this process logs and saves."""
    return _group is None or _group.rank == 0


def world_size():
    """Number of processes that share a batch."""
    return 1 if _group is None else _group.size


def shard(order, batch_size):
    """The clips of a global order (N,) that this process reads, and its batch size.

    All global batches except the last give each process a fixed number of clips. If the last batch has none for this
    process, it reads that batch's first clip, which is ignored.

    Raises:
        InputError: a batch has fewer clips than there are processes.
    """
    if _group is None:
        return order, batch_size
    if batch_size < _group.size:
        raise InputError(f"--batch_size {batch_size}: expected at least one clip for each of {_group.size} processes; "
                         "increase it")
    parts = []
    for batch in order.split(batch_size):
        counts = _group.cut(len(batch))
        start = sum(counts[:_group.rank])
        parts.append(batch[start:start + counts[_group.rank]] if counts[_group.rank] else batch[:1])
    return torch.cat(parts) if parts else order, _group.cut(batch_size)[_group.rank]


def begin_step(clips, step):
    """Start a step whose batch has `clips` clips in all processes together. Dropout depends only on seed, step and
    process, so a resumed run does not need the random states of all processes."""
    if _group is not None:
        _group.counts = _group.cut(clips)
        torch.manual_seed(((_group.seed * STEPS + step) * _group.size + _group.rank) % 2 ** 63)


def local(x):
    """The valid entries of (B, ...): a process without clips computes on a placeholder."""
    return x if _group is None else x[:_group.counts[_group.rank]]


def global_batch_size(x):
    """Number of clips in the whole batch; `x` (B, ...) has those of this process."""
    return len(x) if _group is None else sum(_group.counts)


def all_gather(x):
    """Gather the whole batch (B, ...) from all processes; backward keeps this process's part."""
    return x if _group is None else _Gather.apply(x)


def mean(x, mask=None):
    """Mean over the batch from each process's mean over its clips, or over their seconds in the mask (B, T); backward
    gives each process its share."""
    return x if _group is None else _Mean.apply(x, _group.share(x, mask))


def pooled_mean(x, mask=None):
    """Like `mean`, for values that affect every clip, such as batch statistics: backward sums the gradients of all
    processes."""
    return x if _group is None else _PooledMean.apply(x, _group.share(x, mask))


@torch.no_grad()
def all_reduce(x):
    """Sum over all processes, without gradient."""
    if _group is None:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def all_max(value):
    """Maximum of an integer over all processes; waits for the processes, but not for the device."""
    if _group is None:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def sum_gradients(tensors):
    """Register hooks that sum the gradients of these leaves over all processes, in messages of BUCKET_BYTES sent during
    the backward pass."""
    if _group is not None:
        for tensor in tensors:
            tensor.register_post_accumulate_grad_hook(_add)


def wait_gradients():
    """Wait until all gradients are summed."""
    if _group is None:
        return
    if _group.complete:
        _send()
    for work, numbers, gradients in _group.sent:
        work.wait()
        if len(gradients) > 1:
            torch._foreach_copy_(gradients, list(numbers.split([len(gradient) for gradient in gradients])))
    _group.sent.clear()


def _add(tensor):
    gradient = tensor.grad                  # convolution kernels are channels last: view them in memory order
    flat = gradient.permute(0, 2, 3, 1) if gradient.ndim == 4 and not gradient.is_contiguous() else gradient
    _group.complete.append(flat.reshape(-1))
    if sum(each.nbytes for each in _group.complete) >= BUCKET_BYTES:
        _send()


def _send():
    gradients, _group.complete = _group.complete, []
    numbers = torch.cat(gradients) if len(gradients) > 1 else gradients[0]
    _group.sent.append((dist.all_reduce(numbers, async_op=True), numbers, gradients))


class _Gather(Function):
    @staticmethod
    @torch.no_grad()
    def forward(ctx, x):
        ctx.shape = x.shape
        padded = x.new_zeros(max(_group.counts), *x.shape[1:])
        padded[:_group.counts[_group.rank]] = local(x)
        parts = [torch.empty_like(padded) for _ in _group.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, _group.counts)])

    @staticmethod
    def backward(ctx, grad):
        start, end = _group.span
        return grad[start:end] if end > start else grad.new_zeros(ctx.shape)


class _Mean(Function):
    @staticmethod
    def forward(ctx, x, share):
        ctx.share = share
        return all_reduce(x * share)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.share, None


class _PooledMean(_Mean):
    @staticmethod
    def backward(ctx, grad):
        return all_reduce(grad) * ctx.share, None


def local_rank():
    """Local rank set by torchrun, as text; None without torchrun."""
    return os.environ.get("LOCAL_RANK") if launched_processes() > 1 else None


def is_lost(error):
    """Whether an exception means that another process has ended or cannot be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def process_group(device=None, seed=None):
    """Join the process group of a torchrun, if there is one, for the duration of the block.

    Enter it before anything that can fail: the other processes then notice quickly that this one has ended, instead of
    waiting for it to join.

    Args:
        device, seed: see `use`, which can also be called later.

    Raises:
        InputError: another process of the run has ended.
    """
    global _group
    if launched_processes() == 1:
        yield
        return
    has_lost, backend = False, "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
        _group = _Group()
        if device is not None:
            use(device, seed)
        yield
    except RuntimeError as error:
        has_lost = is_lost(error)
        if not has_lost:
            raise
        raise InputError(f"process {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: another process of this run "
                         "has ended or cannot be reached; see its own message; start all processes again with --resume "
                         "auto") from error
    finally:
        _group = None
        if not has_lost and dist.is_initialized():
            dist.destroy_process_group()


def use(device, seed):
    """Set this process's device, and the run's seed for dropout."""
    if _group is not None:
        _group.seed = seed
        if device.type == "cuda":
            torch.cuda.set_device(device)


def require_equal(notes):
    """Require that all processes of a run were started with equal settings.

    Args:
        notes: settings that must be equal, name -> text or number, or bytes for a hash, which is not shown. Put the
            most informative ones first, because a difference in one may cause the later ones.

    Raises:
        InputError: in the first process, with the differences.
        SystemExit: in all others, with exit code 2, after the first process has ended.
    """
    if _group is None:
        return
    found = [None] * _group.size
    dist.all_gather_object(found, notes)
    differing = [(name, rank) for name in notes for rank in range(1, _group.size)
                 if found[rank].get(name) != found[0].get(name)]
    if not differing:
        return
    if _group.rank:
        with suppress(RuntimeError):            # torchrun ends all processes with one: let the first print its line
            dist.irecv(torch.zeros(1), 0).wait(timedelta(seconds=ALIKE_SECONDS))
        raise SystemExit(2)
    texts = [_difference(name, rank, found[0].get(name), found[rank].get(name)) for name, rank in differing]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    raise InputError(f"the {_group.size} processes of this run differ: {'; '.join(texts[:SHOWN])}{more}; expected the "
                     "same options, program, data and checkpoint in all; start all processes again")


def _difference(name, rank, first, other):
    if isinstance(first, bytes):
        return f"process {rank} differs from the first in its {name}"
    return f"process {rank} has {name} {str(other)[:60]}, the first {str(first)[:60]}"
