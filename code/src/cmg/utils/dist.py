"""Several processes that compute together what one would: torchrun on one machine or many.

A global batch is cut over the processes in order. Every loss is computed in full by each of them, its gradient flowing
into the clips that the process holds; the sum of all processes' parameter gradients is the gradient of one process with
the whole batch. What a step needs of the whole batch goes through the functions below: gathered features for the
contrastive losses and for CLUB's permutation, sums for the codebook's moving averages, and parameter gradients, added
up while the backward pass still runs. Random draws come from generators with the same seed everywhere
(cmg/models/random.py), dropout from a generator of each process. Weights, optimizer states and codebooks therefore stay
equal on all processes without ever being sent.

Without a process group every function is the identity.
"""

import os
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.autograd import Function

from cmg.utils.errors import InputError, launched_processes

STEPS = 10_000_019          # more than a run has: the dropout seeds of two runs do not meet
ALIKE_SECONDS = 5           # that the other processes give the first one to print what differs
SHOWN = 3                   # differences in that line
BUCKET_BYTES = 25 << 20     # of gradients in one message: few messages, and the first leave early in the backward pass


class _Group:
    """The processes of a torchrun, and the part of the running batch that this one holds.

    Attributes:
        rank, size: number of this process, and of all.
        counts: clips of the running batch on every process.
        complete, sent: gradients that are ready, and messages under way: (work, numbers, gradients they are of).
    """

    def __init__(self):
        self.rank, self.size, self.seed, self.counts = dist.get_rank(), dist.get_world_size(), 0, None
        self.complete, self.sent = [], []

    def cut(self, clips):
        """How many of `clips` each process takes."""
        return [clips // self.size + (rank < clips % self.size) for rank in range(self.size)]

    @property
    def span(self):
        """First and last + 1 of this process's clips in the batch."""
        start = sum(self.counts[:self.rank])
        return start, start + self.counts[self.rank]

    def share(self, x, mask):
        """Share of this process in a mean over the batch's clips, or over their seconds: a scalar like `x`."""
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
    """Clips that this process reads, of a global order (N,), and its batch size.

    All global batches but the last give it equally many; where the last one has none left for it, it reads that batch's
    first clip, which counts nowhere.

    Raises:
        InputError: fewer clips a batch than processes.
    """
    if _group is None:
        return order, batch_size
    if batch_size < _group.size:
        raise InputError(f"--batch_size {batch_size}: {_group.size} processes share a batch; give at least one clip "
                         "to each")
    parts = []
    for batch in order.split(batch_size):
        counts = _group.cut(len(batch))
        start = sum(counts[:_group.rank])
        parts.append(batch[start:start + counts[_group.rank]] if counts[_group.rank] else batch[:1])
    return torch.cat(parts) if parts else order, _group.cut(batch_size)[_group.rank]


def begin_step(clips, step):
    """Announce a step whose batch has `clips` clips over all processes. Its dropout is a function of seed, step and
    process, so that a resumed run needs no other process's random state."""
    if _group is not None:
        _group.counts = _group.cut(clips)
        torch.manual_seed(((_group.seed * STEPS + step) * _group.size + _group.rank) % 2 ** 63)


def local(x):
    """The entries (B, ...) that count here: a process without clips computes on a stand-in."""
    return x if _group is None else x[:_group.counts[_group.rank]]


def global_batch_size(x):
    """Clips of the whole batch of which `x` (B, ...) holds this process's."""
    return len(x) if _group is None else sum(_group.counts)


def all_gather(x):
    """The whole batch (B, ...) of what each process has for its clips; backward keeps this process's part."""
    return x if _group is None else _Gather.apply(x)


def mean(x, mask=None):
    """Mean over the batch from each process's mean over its clips, or over their seconds under the mask (B, T);
    backward gives each process its share."""
    return x if _group is None else _Mean.apply(x, _group.share(x, mask))


def pooled_mean(x, mask=None):
    """As `mean`, for what each clip is changed by, such as batch statistics: backward adds up all gradients."""
    return x if _group is None else _PooledMean.apply(x, _group.share(x, mask))


@torch.no_grad()
def all_reduce(x):
    """Sum over the processes, without gradient."""
    if _group is None:
        return x
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def all_max(value):
    """The largest of the processes' whole numbers; waits for all of them, but not for the device."""
    if _group is None:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def sum_gradients(tensors):
    """From now on the gradients of these leaves are added up over the processes, in messages of BUCKET_BYTES that leave
    while the backward pass still computes the others."""
    if _group is not None:
        for tensor in tensors:
            tensor.register_post_accumulate_grad_hook(_add)


def wait_gradients():
    """Wait until every gradient is added up."""
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
    gradient = tensor.grad                  # kernels are channels last: a view in the order of memory
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
    """Number of this process on its machine as torchrun gave it, as text; None without torchrun."""
    return os.environ.get("LOCAL_RANK") if launched_processes() > 1 else None


def is_lost(error):
    """Whether an error of a step says that another process has ended or cannot be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def process_group(device=None, seed=None):
    """Join the other processes of a torchrun, if this is one; the group ends with the block.

    Join before anything that can fail: the others then notice within moments that this process has ended, instead of
    waiting for it to join.

    Args:
        device, seed: see `use`, which a caller that does not know them yet calls later.

    Raises:
        InputError: another process of the run has ended, so that this one waits in vain.
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
                         "has ended or cannot be reached; its own message says why; start all again, with --resume "
                         "auto") from error
    finally:
        _group = None
        if not has_lost and dist.is_initialized():
            dist.destroy_process_group()


def use(device, seed):
    """Say on which device this process computes, and the run's seed, on which dropout depends."""
    if _group is not None:
        _group.seed = seed
        if device.type == "cuda":
            torch.cuda.set_device(device)


def require_equal(notes):
    """Go on only if the processes of a run were started alike.

    Args:
        notes: what must be equal, name -> text or number, or bytes for a hash, which no message shows. The most telling
            come first: a difference in one of them may cause all later ones.

    Raises:
        InputError: on the first process: what differs, and in which process.
        SystemExit: on all others, with exit code 2, when the first process has ended.
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
        with suppress(RuntimeError):            # torchrun ends all when one has ended: the first one's line comes first
            dist.irecv(torch.zeros(1), 0).wait(timedelta(seconds=ALIKE_SECONDS))
        raise SystemExit(2)
    texts = [_difference(name, rank, found[0].get(name), found[rank].get(name)) for name, rank in differing]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    raise InputError(f"the {_group.size} processes of this run differ: {'; '.join(texts[:SHOWN])}{more}; expected the "
                     "same options, program, data and checkpoint in all of them; start all again")


def _difference(name, rank, first, other):
    if isinstance(first, bytes):
        return f"process {rank} has another {name} than the first"
    return f"process {rank} has {name} {str(other)[:60]}, the first {str(first)[:60]}"
