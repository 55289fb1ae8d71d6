"""Train heads on the codes of one modality, measure them on the codes of others: all heads of a task in one pass."""

import math
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

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
CHUNK = 512                      # clips that all heads predict at once; bounds memory, changes no figure


@dataclass
class HeadRun:
    """One head: what it is trained on, with which seed, on what it is measured after every epoch."""

    train: EncodedSplit
    targets: Tensor                                      # (N, ...) what the head's loss takes with the codes
    seed: int
    measured: dict                                       # key -> CodeSet
    held: EncodedSplit = None                                 # labelled clips that are not trained on (`Task.training`)
    curves: dict = field(default_factory=dict)           # key -> metric -> list of figures, one an epoch
    losses: list = field(default_factory=list)           # mean training loss of each epoch
    head: nn.Module = None


def build_head(make, seed, like):
    """`make()` with weights drawn from `seed` alone, in the dtype and on the device of the tensor `like`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make()
    return head.to(device=like.device, dtype=like.dtype)


def stacked(heads):
    """Parameters of several heads of one shape: name -> (E, ...); gradients flow back to each head's own."""
    named = [dict(head.named_parameters()) for head in heads]
    return {name: torch.stack([parameters[name] for parameters in named]) for name in named[0]}


class _Loss(nn.Module):
    """A head whose call is its loss: functional_call replaces the parameters of calls only."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, targets, codes, rows, mask=None):
        return self.head.loss(targets, codes, rows, mask)


def _losses(heads, *batch):
    """Loss of each head on its own batch: targets (E, B, ...), codes (E, U, D), rows (E, B, T), mask (E, B, T) if there
    is one -> (E,)."""
    whole = _Loss(heads[0])

    def loss(parameters, *batch):
        return functional_call(whole, {f"head.{name}": value for name, value in parameters.items()}, batch)
    return vmap(loss)(stacked(heads), *batch)


@torch.no_grad()
def predict(heads, part):
    """Outputs of several heads on the same codes: (E, N, C) or (E, N, T, C + 1)."""
    outputs = vmap(lambda parameters, rows, mask: functional_call(heads[0], parameters, (part.table, rows, mask)),
                   in_dims=(0, None, None))
    parameters, rows = stacked(heads), part.rows.split(CHUNK)
    masks = [None] * len(rows) if part.mask is None else part.mask.split(CHUNK)
    return torch.cat([outputs(parameters, *chunk) for chunk in zip(rows, masks)], 1)


@dataclass
class FitState:
    """Everything that training heads changes, between two epochs."""

    trials: list
    heads: list
    shuffles: list               # generators of the orders
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def contents(self):
        """As plain data and tensors."""
        return {"heads": [head.state_dict() for head in self.heads], "shuffles": [g.get_state() for g in self.shuffles],
                "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "trials": [(trial.curves, trial.losses) for trial in self.trials]}

    def load(self, contents):
        """Take over `contents`; KeyError, TypeError, ValueError or RuntimeError if they are of other heads."""
        for head, kept in zip(self.heads, contents["heads"], strict=True):
            head.load_state_dict(kept)
        for generator, kept in zip(self.shuffles, contents["shuffles"], strict=True):
            generator.set_state(kept)
        self.optimizer.load_state_dict(contents["optimizer"])
        self.schedule.load_state_dict(contents["schedule"])
        for trial, (curves, losses) in zip(self.trials, contents["trials"], strict=True):
            trial.curves, trial.losses = curves, losses


def fit(trials, make, measure, *, epochs, batch_size=80, lr=4e-4, clip_gradient=0.5, weight_decay=0.0, refresh=None,
        title="heads", progress=None):
    """Train the heads of all trials, side by side, and measure each of them after every epoch.

    Every head has its own weights, order of clips (a generator seeded by the trial's seed), gradient clipping and Adam
    state, so that it becomes exactly what it would become alone (tests/test_transfer.py): only the matrix products are
    shared. A head whose epoch has fewer steps waits for the others; at any step the heads are put together by the
    size of their batch, the length of their clips (a sentence has its own) and the width of their codes.

    Args:
        trials: list of Trial; their `head`, `curves` and `losses` are filled.
        make: width of the codes -> a new head, a module with `loss(targets, codes, rows)` (cmg/models/heads.py).
        measure: (heads, CodeSet) -> {metric: (E,) figures}.
        epochs: passes over each trial's training clips.
        batch_size, lr, clip_gradient, weight_decay: clips a step, Adam's learning rate (halved at MILESTONES), largest
            gradient norm of a head, Adam's weight decay.
        refresh: called with the epoch before it starts; may replace the trials' `train` (protocol="released").
        title: of the progress bar.
        progress: head_resume.Progress that keeps the state between epochs, and may have one to resume from. With it, a
            signal ends the training after the running epoch.

    Raises:
        Stopped: so it was; the state is kept.
        InputError: a gradient that is not finite, with the head's seed and the numbers of the clips.
    """
    widths = [t.train.table.shape[1] for t in trials]
    heads = [build_head(partial(make, width), t.seed, t.train.table) for t, width in zip(trials, widths)]
    shuffles = [torch.Generator().manual_seed(t.seed) for t in trials]
    optimizer = torch.optim.Adam([p for head in heads for p in head.parameters()], lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES, gamma=0.5)
    state = FitState(trials, heads, shuffles, optimizer, schedule)
    first = progress.restore(state) if progress else 0
    bar = tqdm(range(first, epochs), initial=first, total=epochs, desc=title, unit="epoch", leave=False, disable=None)
    with stop_on_signals() if progress else nullcontext() as stop:
        for epoch in bar:
            if refresh:
                refresh(epoch)
            _train_epoch(state, widths, batch_size, clip_gradient, f"{title}, epoch {epoch}")
            _measure(trials, heads, measure)
            if progress:
                progress.keep(state, epoch + 1)
                stop.save_and_exit(lambda done=epoch + 1: progress.save(state.contents(), done),
                                   f"after epoch {epoch + 1} of {epochs} of the heads", "repeat the call to continue")
            bar.set_postfix(loss=f"{sum(t.losses[-1] for t in trials) / len(trials):.3f}")
    for trial, head in zip(trials, heads):
        trial.head = head.eval()


def _train_epoch(state, widths, batch_size, clip_gradient, where):
    """One pass of every head over its own clips; `where`: for messages."""
    trials, heads = state.trials, state.heads
    batches = [torch.randperm(len(t.train), generator=g).to(t.train.rows.device).split(batch_size)
               for t, g in zip(trials, state.shuffles)]
    figures = [[] for _ in trials]                      # of each step: loss, gradient norm; read when the epoch ends
    for step in range(max(map(len, batches))):
        sizes = defaultdict(list)
        for number, parts in enumerate(batches):
            if step < len(parts):
                part = trials[number].train
                sizes[len(parts[step]), part.rows.shape[1], part.mask is None, widths[number]].append(number)
        state.optimizer.zero_grad()
        for members in sizes.values():
            picked = [(trials[n], batches[n][step]) for n in members]
            losses = _losses([heads[n] for n in members], *_batch(picked))
            losses.sum().backward()
            for n, loss in zip(members, losses.detach()):
                norm = clip_grad_norm_(heads[n].parameters(), clip_gradient)
                figures[n].append(torch.stack([loss, norm.to(loss.dtype)]))
        state.optimizer.step()                          # a head without a batch has no gradient and is left as it is
    state.schedule.step()
    for trial, steps, clips in zip(trials, figures, batches):
        trial.losses.append(_mean_loss(torch.stack(steps).tolist(), clips, f"{where}, seed {trial.seed}"))


def _mean_loss(figures, clips, where):
    """Mean training loss over an epoch's clips, from (loss, gradient norm) and the clips of every step; InputError at
    the first gradient that is not finite."""
    for (loss, norm), numbers in zip(figures, clips):
        if not math.isfinite(norm):
            raise InputError(f"{where}: the gradient is not finite (loss {loss}) with the training clips number "
                             f"{', '.join(map(str, numbers[:5].tolist()))}...; finite numbers are expected; lower "
                             "--lr, or look at the checkpoint (cmg.checkpoints FILE)")
    return sum(loss * len(numbers) for (loss, _), numbers in zip(figures, clips)) / sum(map(len, clips))


def _batch(picked):
    """Targets, codes, rows and mask (if any) of one step, from (trial, clips) of each head. Where a set has more
    different codes than the step has seconds, only the codes of these seconds are taken."""
    targets = torch.stack([trial.targets[clips] for trial, clips in picked])
    rows = torch.stack([trial.train.rows[clips] for trial, clips in picked])                    # (E, B, T)
    is_masked = picked[0][0].train.mask is not None                     # of all: `fit` puts them together so
    masks = [torch.stack([trial.train.mask[clips] for trial, clips in picked])] if is_masked else []
    tables = [trial.train.table for trial, _ in picked]
    if max(map(len, tables)) <= rows[0].numel():
        return targets, pad_sequence(tables, batch_first=True), rows, *masks
    numbers = torch.arange(rows[0].numel(), device=rows.device).view(rows[0].shape)
    return targets, torch.stack([table[r.flatten()] for table, r in zip(tables, rows)]), numbers.expand(
        rows.shape), *masks


def _measure(trials, heads, measure):
    """Append the figures of this epoch; all heads that are measured on one set are measured in one call."""
    users = defaultdict(list)
    for number, trial in enumerate(trials):
        for key, part in trial.measured.items():
            users[id(part)].append((number, key, part))
    for group in users.values():
        part = group[0][2]
        for metric, values in measure([heads[number] for number, _, _ in group], part).items():
            for (number, key, _), value in zip(group, values.tolist()):
                trials[number].curves.setdefault(key, {}).setdefault(metric, []).append(value)
