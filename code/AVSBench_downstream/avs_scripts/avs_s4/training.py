"""Training of network and adapter with queries of one modality, and validation with both after every epoch."""

import logging
import math
import time
from dataclasses import replace
from functools import partial

import network_files
import torch
from evaluation import clip_codes, evaluate, loader
from network.losses import mask_loss, matching_loss
from torch.nn.utils import get_total_norm
from tqdm import tqdm
from train_resume import FILE, Means, Order, TrainState, Within

from cmg.data.sets.avs_s4 import warn_of_greys
from cmg.downstream.resume import Progress
from cmg.utils.errors import InputError
from cmg.utils.signals import stop_on_signals

log = logging.getLogger(__name__)
PRINT_STEPS = 100
SECONDS = 600                           # time between saves within an epoch
IOU, SA = "iou_loss", "sa_loss"         # published names of mask loss and matching loss in the log


def losses(network, query, modality, batch, learning):
    """Mask loss and matching loss (0 if off) of one training batch.

    Args:
        network, query: AVSNetwork and Query.
        modality: modality of the queries.
        batch: batch of a loader of S4, on the network's device.
        learning: settings.Learning.

    Returns:
        {IOU, SA} -> scalar.
    """
    codes, matched = query(modality, batch), learning.sa_loss_flag
    out = network(batch["frames"], codes, first_frames=not matched)
    logits = out.logits[::codes.shape[1]] if matched else out.logits
    found = {IOU: mask_loss(logits, batch["masks"], learning.released)}
    found[SA] = matching_loss(out.logits, out.maps, out.queries, learning.sa_loss_stages,
                              learning.mask_pooling_type) if matched else found[IOU].new_zeros(())
    return found


def fit(trained, query, train_set, val_set, modalities, learning, settings, folder, log_folder):
    """Train the network and write last.pth, best.pth and best_source.pth to the run folder.

    A run that was stopped or killed is resumed from the state in its folder (train_resume.py).

    Args:
        trained: network_files.Trained, whose network and adapter are trained.
        query: Query with this adapter.
        train_set, val_set: S4.
        modalities: modalities of the queries in (training, testing).
        learning: settings.Learning.
        settings: settings that must agree in a resumed run, as plain values.
        folder: the run folder.
        log_folder: cmg.training.run_logger.RunLogger for the curves.

    Returns:
        kind ("last", "best", "source") -> {"epoch", "mIoU"} in validation.

    Raises:
        Stopped: stopped by a signal; the state after the current step is saved.
        InputError: a loss or gradient that is not finite; the weights are those before the step.
    """
    network, adapter, (source, target) = trained.network, trained.adapter, modalities
    groups = [{"params": list(network.parameters())}]
    if not learning.released:
        groups.append({"params": list(adapter.parameters()), "lr": learning.adapter_lr})
    adapter.requires_grad_(not learning.released)           # the published program does not train it
    optimizer = torch.optim.Adam(groups, lr=learning.lr, weight_decay=learning.wt_dec)
    order = Order(len(train_set), learning.seed)
    train_batches = loader(train_set, learning.train_batch_size, learning.num_workers, order)
    val_batches, val_inputs = loader(val_set, learning.val_batch_size, learning.num_workers), val_set.queries()
    state = TrainState(settings, network, adapter, optimizer, order, log_folder)
    progress = Progress(folder / FILE, seconds=0)
    with stop_on_signals() as stop:
        for epoch in range(progress.restore(state) + 1, learning.max_epoches + 1):
            def pause(*_, kept=None, epoch=epoch):
                stop.save_and_exit(lambda: progress.save(kept or state.contents(), epoch - 1),
                          f"after step {state.within.steps} of {len(train_batches)} in epoch {epoch}",
                          "resume with --resume auto")
                if time.monotonic() - progress.saved >= SECONDS:
                    progress.save(kept or state.contents(), epoch - 1)

            began = time.time()
            _train_epoch(state, query, source, train_batches, learning, f"epoch {epoch}", pause)
            seconds, whole = time.time() - began, state.within.whole
            before = state.contents()                       # validation may draw random numbers: dropout if released
            query.eval()
            codes = {m: clip_codes(query, m, val_inputs) for m in dict.fromkeys((target, source))}
            counted = evaluate(network, val_batches, codes, partial(pause, kept=before), f"validation {epoch}")
            scores = {m: counted[m].result(learning.protocol) for m in codes}
            _save_networks(replace(trained, epoch=epoch), folder, state.chosen, scores[target]["mIoU"],
                           scores[source]["mIoU"])
            log.info("epoch %d: iou_loss %.4f | validation with %s", epoch, whole.values[IOU],
                     " ".join(f"{m} mIoU {100 * s['mIoU']:.1f} F {100 * s['F']:.1f}" for m, s in scores.items()))
            state.step, state.within = epoch * len(train_batches), Within(grey=state.within.grey)
            log_folder.scalars(state.step, epoch, {
                "losses": {**whole.values, "lambda_1": learning.lambda_1},
                "metrics": {f"{m}_{name}": value for m, s in scores.items() for name, value in s.items()},
                "clips_per_second": round(len(train_set) / seconds, 2)})
            progress.keep(state, epoch)
    progress.finish()
    return state.chosen


def _train_epoch(state, query, modality, batches, learning, title, pause):
    """Train the rest of an epoch.

    Args:
        modality: modality of the queries.
        batches: loader in the order `state.order`.
        title: name of the epoch, such as "epoch 3".
        pause: called after every step; may raise Stopped.
    """
    network, within, optimizer = state.network, state.within, state.optimizer
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    network.train()
    query.train()
    state.order.skip = within.steps * learning.train_batch_size
    bar = tqdm(batches, desc=f"{title}/{learning.max_epoches}", initial=within.steps, unit="step", leave=False,
               disable=None)
    for batch in bar:
        within.grey = within.grey or warn_of_greys(batches.dataset, batch)
        batch = {name: x.to(network.device, non_blocking=True) for name, x in batch.items()}
        found = losses(network, query, modality, batch, learning)
        total = found[IOU] + learning.lambda_1 * found[SA] if learning.sa_loss_flag else found[IOU]
        optimizer.zero_grad()
        total.backward()
        norm = get_total_norm([p.grad for p in learned if p.grad is not None])
        *values, loss, norm = torch.stack([*(x.detach() for x in found.values()), total.detach(), norm]).tolist()
        within.steps += 1
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise InputError(f"{title}, step {within.steps}: loss {loss}, gradient norm {norm}; expected finite "
                             f"numbers; lower --lr ({learning.lr})")
        optimizer.step()
        for mean in (within.means, within.whole):
            mean.add(dict(zip(found, values)))
        bar.set_postfix(loss=f"{within.whole.values[IOU]:.4f}")
        if within.steps % PRINT_STEPS == 0:
            log.info("%s step %d/%d: %s lambda_1 %g", title, within.steps, len(batches),
                     " ".join(f"{name} {value:.4f}" for name, value in within.means.values.items()), learning.lambda_1)
            within.means = Means()
        pause()


def _save_networks(trained, folder, chosen, by_target, by_source):
    """Write the network of an epoch for every kind that it is chosen for, and record this in `chosen`.

    Args:
        by_target, by_source: validation mIoU with the queries of the test modality and of the training modality.
    """
    for kind, score in (("best", by_target), ("source", by_source), ("last", by_target)):
        if kind == "last" or kind not in chosen or score > chosen[kind]["mIoU"]:        # the first is always kept
            network_files.save(folder / "checkpoints" / network_files.FILES[kind], replace(trained, score=score))
            chosen[kind] = {"epoch": trained.epoch, "mIoU": score}
