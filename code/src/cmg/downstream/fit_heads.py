"""Train heads on the codes of one modality and evaluate them on the codes of others, all heads of a task in one
pass."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from cmg.downstream.encode import EncodedSplit
from cmg.utils.errors import InputError
from cmg.utils.signals import stop_on_signals

MILESTONES = (10, 20, 30)        # epochs at which the learning rate is halved
CHUNK = 512                      # clips per prediction of all heads; limits memory


@dataclass
class HeadRun:
    """Training of one head: its data, seed, and results."""

    train: EncodedSplit
    targets: Tensor                                      # (N, ...) targets of the head's loss
    seed: int
    measured: dict[Any, EncodedSplit]
    held: EncodedSplit | None = None                     # labeled clips held out from training (`Task.training`)
    curves: dict[Any, dict[str, list[float]]] = field(default_factory=dict)     # key -> metric -> value of each epoch
    losses: list[float] = field(default_factory=list)    # mean training loss of each epoch
    head: Any = None                                     # cmg/models/heads.py; None before the training


def build_head(make, seed, like):
    """The head `make()` with weights initialized from `seed`, in the dtype and on the device of the tensor `like`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make()
    return head.to(device=like.device, dtype=like.dtype)


def stacked(heads):
    """Stacked parameters of several heads with the same shapes: name -> (E, ...), differentiable."""
    named = [dict(head.named_parameters()) for head in heads]
    return {name: torch.stack([parameters[name] for parameters in named]) for name in named[0]}


class _Loss(nn.Module):
    """Wrapper whose `forward` is the loss of a head, because functional_call only supports `forward`."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, targets, codes, rows, mask=None):
        return self.head.loss(targets, codes, rows, mask)


def _losses(heads, *batch):
    """Loss (E,) of each head on its own batch: targets (E, B, ...), codes (E, U, D), rows (E, B, T), and mask (E, B, T)
    if there is one."""
    whole = _Loss(heads[0])

    def loss(parameters, *batch):
        return functional_call(whole, {f"head.{name}": value for name, value in parameters.items()}, batch)
    return vmap(loss)(stacked(heads), *batch)


@torch.no_grad()
def predict(heads: Sequence[nn.Module], part: EncodedSplit) -> Tensor:
    """Outputs of several heads on the same codes: (E, N, C) or (E, N, T, C + 1)."""
    outputs = vmap(lambda parameters, rows, mask: functional_call(heads[0], parameters, (part.table, rows, mask)),
                   in_dims=(0, None, None))
    parameters, rows = stacked(heads), part.rows.split(CHUNK)
    masks = [None] * len(rows) if part.mask is None else part.mask.split(CHUNK)
    return torch.cat([outputs(parameters, *chunk) for chunk in zip(rows, masks)], 1)


@dataclass
class FitState:
    """All state that changes while heads are trained."""

    head_runs: list
    heads: list
    shuffles: list               # generators for the order of the clips
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def contents(self):
        """The state as plain data and tensors."""
        return {"heads": [head.state_dict() for head in self.heads], "shuffles": [g.get_state() for g in self.shuffles],
                "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "trials": [(one.curves, one.losses) for one in self.head_runs]}

    def load(self, contents):
        """Load `contents()`; raises KeyError, TypeError, ValueError or RuntimeError if they belong to other heads."""
        for head, kept in zip(self.heads, contents["heads"], strict=True):
            head.load_state_dict(kept)
        for generator, kept in zip(self.shuffles, contents["shuffles"], strict=True):
            generator.set_state(kept)
        self.optimizer.load_state_dict(contents["optimizer"])
        self.schedule.load_state_dict(contents["schedule"])
        for one, (curves, losses) in zip(self.head_runs, contents["trials"], strict=True):
            one.curves, one.losses = curves, losses


def fit(head_runs: list[HeadRun], make: Callable[[int], nn.Module],
        measure: Callable[[Sequence[nn.Module], EncodedSplit], dict[str, Tensor]], *, epochs: int, batch_size: int = 80,
        lr: float = 4e-4, clip_gradient: float = 0.5, weight_decay: float = 0.0,
        refresh: Callable[[int], None] | None = None, title: str = "heads", progress: Any = None) -> None:
    """Train the heads of all `head_runs` in parallel, and evaluate each of them after every epoch.

    Every head has its own weights, order of clips (a generator with the head's seed), gradient clipping and Adam state,
    so the result is exactly that of training it alone (test_transfer.py); only matrix products are batched. A head
    whose epoch has fewer steps waits for the others. In each step, heads with the same batch size, clip length
    (sentences have their own) and code width are batched.

    Args:
        head_runs: list of HeadRun; their `head`, `curves` and `losses` are filled in.
        make: width of the codes -> a new head, a module with `loss(targets, codes, rows)` (cmg/models/heads.py).
        measure: (heads, EncodedSplit) -> {metric: (E,) values}.
        epochs: number of epochs over each head's training clips.
        batch_size, lr, clip_gradient, weight_decay: clips per step, Adam's learning rate (halved at MILESTONES),
            maximum gradient norm of a head, Adam's weight decay.
        refresh: called with the epoch number before each epoch; may replace `train` of the runs (protocol="released").
        title: title of the progress bar.
        progress: cmg.downstream.resume.Progress, which saves the state between epochs and may contain a state to resume
            from. If given, a signal stops the training after the current epoch.

    Raises:
        Stopped: stopped by a signal; the state is saved.
        InputError: a gradient is not finite; the message gives the head's seed and the indices of the clips.
    """
    widths = [one.train.table.shape[1] for one in head_runs]
    heads = [build_head(partial(make, width), one.seed, one.train.table) for one, width in zip(head_runs, widths)]
    shuffles = [torch.Generator().manual_seed(one.seed) for one in head_runs]
    optimizer = torch.optim.Adam([p for head in heads for p in head.parameters()], lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES, gamma=0.5)
    state = FitState(head_runs, heads, shuffles, optimizer, schedule)
    first = progress.restore(state) if progress else 0
    bar = tqdm(range(first, epochs), initial=first, total=epochs, desc=title, unit="epoch", leave=False, disable=None)
    with stop_on_signals() if progress else nullcontext() as stop:
        for epoch in bar:
            if refresh:
                refresh(epoch)
            _train_epoch(state, widths, batch_size, clip_gradient, f"{title}, epoch {epoch}")
            _measure(head_runs, heads, measure)
            if progress and stop:
                progress.keep(state, epoch + 1)
                stop.save_and_exit(lambda done=epoch + 1: progress.save(state.contents(), done),
                                   f"after epoch {epoch + 1} of {epochs} of the heads",
                                   "run the command again to continue")
            bar.set_postfix(loss=f"{sum(one.losses[-1] for one in head_runs) / len(head_runs):.3f}")
    for one, head in zip(head_runs, heads):
        one.head = head.eval()


def _train_epoch(state, widths, batch_size, clip_gradient, where):
    """Train every head for one epoch on its own clips; `where` is used in messages."""
    head_runs, heads = state.head_runs, state.heads
    batches = [torch.randperm(len(one.train), generator=g).to(one.train.rows.device).split(batch_size)
               for one, g in zip(head_runs, state.shuffles)]
    values = [[] for _ in head_runs]                    # loss and gradient norm of each step, read after the epoch
    for step in range(max(map(len, batches))):
        sizes = defaultdict(list)
        for number, parts in enumerate(batches):
            if step < len(parts):
                part = head_runs[number].train
                sizes[len(parts[step]), part.rows.shape[1], part.mask is None, widths[number]].append(number)
        state.optimizer.zero_grad()
        for members in sizes.values():
            losses = _losses([heads[n] for n in members], *_batch([(head_runs[n], batches[n][step]) for n in members]))
            losses.sum().backward()
            for n, loss in zip(members, losses.detach()):
                norm = clip_grad_norm_(heads[n].parameters(), clip_gradient)
                values[n].append(torch.stack([loss, norm.to(loss.dtype)]))
        state.optimizer.step()                          # heads without a batch have no gradient and do not change
    state.schedule.step()
    for one, steps, clips in zip(head_runs, values, batches):
        one.losses.append(_mean_loss(torch.stack(steps).tolist(), clips, f"{where}, seed {one.seed}"))


def _mean_loss(values, clips, where):
    """Mean training loss over the clips of an epoch, given (loss, gradient norm) and the clips of every step. Raises
    InputError at the first non-finite gradient."""
    for (loss, norm), numbers in zip(values, clips):
        if not math.isfinite(norm):
            raise InputError(f"{where}: the gradient is not finite (loss {loss}) with training clips "
                             f"{', '.join(map(str, numbers[:5].tolist()))}...; expected finite numbers; lower --lr, or "
                             "check the checkpoint (python -m cmg.checkpoints FILE)")
    return sum(loss * len(numbers) for (loss, _), numbers in zip(values, clips)) / sum(map(len, clips))


def _batch(sample):
    """Targets, codes, rows and mask (if any) of one step, given (HeadRun, clips) for each head. If a set has more
    distinct codes than the step has seconds, only the codes of these seconds are included."""
    targets = torch.stack([one.targets[clips] for one, clips in sample])
    rows = torch.stack([one.train.rows[clips] for one, clips in sample])                        # (E, B, T)
    is_masked = sample[0][0].train.mask is not None                     # the same for all, see `_train_epoch`
    masks = [torch.stack([one.train.mask[clips] for one, clips in sample])] if is_masked else []
    tables = [one.train.table for one, _ in sample]
    if max(map(len, tables)) <= rows[0].numel():
        return targets, pad_sequence(tables, batch_first=True), rows, *masks
    numbers = torch.arange(rows[0].numel(), device=rows.device).view(rows[0].shape)
    return targets, torch.stack([table[r.flatten()] for table, r in zip(tables, rows)]), numbers.expand(
        rows.shape), *masks


def _measure(head_runs, heads, measure):
    """Append the metrics of this epoch, with one call for all heads that are evaluated on the same set."""
    users = defaultdict(list)
    for number, one in enumerate(head_runs):
        for key, part in one.measured.items():
            users[id(part)].append((number, key, part))
    for group in users.values():
        part = group[0][2]
        for metric, values in measure([heads[number] for number, _, _ in group], part).items():
            for (number, key, _), value in zip(group, values.tolist()):
                head_runs[number].curves.setdefault(key, {}).setdefault(metric, []).append(value)
