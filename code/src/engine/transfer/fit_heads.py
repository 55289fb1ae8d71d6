"""Train heads on the codes of one modality, measure them on the codes of others: all heads of a task in one pass."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.transfer import metrics
from errors import InputError

MILESTONES = (10, 20, 30)        # epochs at which the learning rate is halved
CHUNK = 512                      # clips that all heads predict at once; bounds memory, changes no figure


@dataclass
class CodeSet:
    """One part of a dataset, in one modality, as the frozen encoder gives it: few different codes, many seconds."""

    table: Tensor                # (U, D) the different codes that occur
    numbers: Tensor              # (U,) int64, their places in the codebook; (U, 2) where there are two codebooks
    rows: Tensor                 # (N, T) int64, which row of the table each second has
    labels: Tensor               # (N, T, C + 1) of 0 and 1, last column background; retrieval: sounds (N, T, 128)

    def __len__(self):
        return len(self.rows)

    @classmethod
    def of(cls, vectors, indices, labels):
        """From every second's quantised vector (N, T, D) and code number (N, T) or (N, T, 2)."""
        numbers, rows = indices.flatten(0, 1).unique(dim=0, return_inverse=True)
        flat = vectors.flatten(0, 1)
        table = flat.new_empty(len(numbers), flat.shape[-1])
        table[rows] = flat                      # all seconds of one code have one vector, but for rounding
        assert torch.allclose(table[rows], flat, rtol=1e-3, atol=1e-4), "vectors are no function of the code numbers"
        return cls(table, numbers, rows.view(vectors.shape[:2]), labels)

    def select(self, channels):
        """The same seconds with some channels of their codes, (S,) int64; None keeps all."""
        return self if channels is None else replace(self, table=self.table[:, channels])

    @property
    def indices(self):
        """(N, T) or (N, T, 2) code numbers."""
        return self.numbers[self.rows]

    @cached_property
    def targets(self):
        """(N,) int64 clip classes."""
        return metrics.clip_targets(self.labels)


def check_modality(encoder, modality, checkpoint):
    """InputError unless the encoder was pretrained on a modality."""
    if modality not in encoder.config.modalities:
        raise InputError(f"{checkpoint}: pretrained on {', '.join(encoder.config.modalities)}; {modality} is asked "
                         "for; choose other directions or a checkpoint with this modality")


def check_fit(encoder, dataset, modality, checkpoint):
    """InputError unless the encoder takes what the dataset holds; one clip is read.

    Args:
        encoder: a frozen encoder (engine/checkpoint.py).
        dataset: items are dicts of arrays.
        modality: "audio", "video" or "text".
        checkpoint: name for the message.
    """
    check_modality(encoder, modality, checkpoint)
    found, expected = dataset[0][modality].shape[-1], getattr(encoder.config, f"{modality}_dim")
    if found != expected:
        raise InputError(f"{checkpoint}: takes {modality} features {expected} wide, {dataset.name} has {found}; use a "
                         "checkpoint that was pretrained on features of this kind")


@torch.no_grad()
def codes(encoders, dataset, modalities, *, labels="label", batch=80, workers=0, precision="float32", training=False):
    """Codes of a dataset, read once for all encoders and modalities.

    Args:
        encoders: name -> frozen encoder, for example {None: pretrained, "untrained": control}, all on one device.
        dataset: items are dicts of arrays with the modalities and the labels.
        modalities: those to encode.
        labels: which entry of an item goes with the codes as it is.
        batch, workers: of the DataLoader; they change no figure.
        precision: "bf16" runs the encoders under autocast.
        training: leave dropout on (protocol="released"); the codebooks never change.

    Returns:
        {(name, modality): CodeSet} on the encoders' device.
    """
    device = next(iter(encoders.values())).codebooks[0].device
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers)
    vectors, indices, answers = defaultdict(list), defaultdict(list), []
    for encoder in encoders.values():
        encoder.train(training)                        # of all its parts only dropout knows the difference
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for item in tqdm(loader, desc=f"codes of {dataset.name}", unit="batch", leave=False, disable=None):
            answers.append(item[labels].to(device))
            for modality in modalities:
                x = item[modality].to(device)
                for name, encoder in encoders.items():
                    got = encoder.embed(modality, x)
                    vectors[name, modality].append(got.vectors)
                    indices[name, modality].append(got.indices)
    for encoder in encoders.values():
        encoder.eval()
    answers, sets = torch.cat(answers), {}
    for key, parts in vectors.items():
        parts = torch.cat(parts)
        parts = parts.float() if parts.dtype == torch.bfloat16 else parts
        sets[key] = CodeSet.of(parts, torch.cat(indices[key]), answers.to(parts.dtype))
    return sets


@dataclass
class Trial:
    """One head: what it is trained on, with which seed, on what it is measured after every epoch."""

    train: CodeSet
    answers: Tensor                                      # (N, ...) what the head's loss takes with the codes
    seed: int
    measured: dict                                       # name -> CodeSet
    curves: dict = field(default_factory=dict)           # name -> metric -> list of figures, one an epoch
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

    def forward(self, answers, codes, rows):
        return self.head.loss(answers, codes, rows)


def _losses(heads, answers, codes, rows):
    """Loss of each head on its own batch: answers (E, B, ...), codes (E, U, D), rows (E, B, T) -> (E,)."""
    whole = _Loss(heads[0])

    def loss(parameters, *batch):
        return functional_call(whole, {f"head.{name}": value for name, value in parameters.items()}, batch)
    return vmap(loss)(stacked(heads), answers, codes, rows)


@torch.no_grad()
def predict(heads, part):
    """Outputs of several heads on the same codes: (E, N, C) or (E, N, T, C + 1)."""
    outputs = vmap(lambda parameters, rows: functional_call(heads[0], parameters, (part.table, rows)),
                   in_dims=(0, None))
    parameters = stacked(heads)
    return torch.cat([outputs(parameters, rows) for rows in part.rows.split(CHUNK)], 1)


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
        """Take over `contents`, to the bit. Raises KeyError, TypeError, ValueError, RuntimeError if it is of others."""
        for head, kept in zip(self.heads, contents["heads"], strict=True):
            head.load_state_dict(kept)
        for generator, kept in zip(self.shuffles, contents["shuffles"], strict=True):
            generator.set_state(kept)
        self.optimizer.load_state_dict(contents["optimizer"])
        self.schedule.load_state_dict(contents["schedule"])
        for trial, (curves, losses) in zip(self.trials, contents["trials"], strict=True):
            trial.curves, trial.losses = curves, losses


def fit(trials, make, measure, *, epochs, batch=80, lr=4e-4, clip=0.5, weight_decay=0.0, refresh=None, title="heads",
        progress=None):
    """Train the heads of all trials, side by side, and measure each of them after every epoch.

    Every head has its own weights, order of clips (a generator seeded by the trial's seed), gradient clipping and Adam
    state, so that it becomes exactly what it would become alone (tests/test_transfer.py): only the matrix products are
    shared. A head whose epoch has fewer steps waits for the others; at any step the heads are put together by the
    size of their batch and the width of their codes.

    Args:
        trials: list of Trial; their `head`, `curves` and `losses` are filled.
        make: width of the codes -> a new head, a module with `loss(answers, codes, rows)` (model/heads.py).
        measure: (heads, CodeSet) -> {metric: (E,) figures}.
        epochs: passes over each trial's training clips.
        batch, lr, clip, weight_decay: clips a step, Adam's learning rate (halved at MILESTONES), largest gradient norm
            of a head, Adam's weight decay.
        refresh: called with the epoch before it starts; may replace the trials' `train` (protocol="released").
        title: of the progress bar.
        progress: engine.progress.Progress that keeps the state between epochs, and may have one to go on from.

    Raises:
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
    for epoch in bar:
        if refresh:
            refresh(epoch)
        batches = [torch.randperm(len(t.train), generator=g).to(t.train.rows.device).split(batch)
                   for t, g in zip(trials, shuffles)]
        totals = [0.0] * len(trials)
        for step in range(max(map(len, batches))):
            sizes = defaultdict(list)
            for number, parts in enumerate(batches):
                if step < len(parts):
                    sizes[len(parts[step]), widths[number]].append(number)
            optimizer.zero_grad()
            for members in sizes.values():
                picked = [(trials[n], batches[n][step]) for n in members]
                losses = _losses([heads[n] for n in members], *_batch(picked))
                losses.sum().backward()
                for n, loss in zip(members, losses.tolist()):
                    totals[n] += loss * len(batches[n][step])
                    _clip(heads[n], clip, f"{title}, epoch {epoch}, seed {trials[n].seed}", loss, batches[n][step])
            optimizer.step()                            # a head without a batch has no gradient and is left as it is
        schedule.step()
        for trial, total in zip(trials, totals):
            trial.losses.append(total / len(trial.train))
        _measure(trials, heads, measure)
        if progress:
            progress.keep(state, epoch + 1)
        bar.set_postfix(loss=f"{sum(t.losses[-1] for t in trials) / len(trials):.3f}")
    for trial, head in zip(trials, heads):
        trial.head = head.eval()


def _clip(head, largest, where, loss, clips):
    """Clip a head's gradient; one that is not finite ends the training."""
    try:
        clip_grad_norm_(head.parameters(), largest, error_if_nonfinite=True)
    except RuntimeError:
        raise InputError(f"{where}: the gradient is not finite (loss {loss}) with the training clips number "
                         f"{', '.join(map(str, clips[:5].tolist()))}...; finite numbers are expected; lower --lr, or "
                         "look at the checkpoint (engine.checkpoint FILE)") from None


def _batch(picked):
    """Answers, codes and rows of one step, from (trial, clips) of each head. Where a set has more different codes than
    the step has seconds, only the codes of these seconds are taken."""
    answers = torch.stack([trial.answers[clips] for trial, clips in picked])
    rows = torch.stack([trial.train.rows[clips] for trial, clips in picked])                    # (E, B, T)
    tables = [trial.train.table for trial, _ in picked]
    if max(map(len, tables)) <= rows[0].numel():
        return answers, pad_sequence(tables, batch_first=True), rows
    places = torch.arange(rows[0].numel(), device=rows.device).view(rows[0].shape)
    return answers, torch.stack([table[r.flatten()] for table, r in zip(tables, rows)]), places.expand(rows.shape)


def _measure(trials, heads, measure):
    """Append the figures of this epoch; all heads that are measured on a set are measured together."""
    users = defaultdict(list)
    for number, trial in enumerate(trials):
        for name, part in trial.measured.items():
            users[id(part)].append((number, name, part))
    for group in users.values():
        part = group[0][2]
        for metric, values in measure([heads[number] for number, _, _ in group], part).items():
            for (number, name, _), value in zip(group, values.tolist()):
                trials[number].curves.setdefault(name, {}).setdefault(metric, []).append(value)
