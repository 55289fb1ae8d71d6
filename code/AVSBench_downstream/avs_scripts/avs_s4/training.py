"""Training of network and adapter on one modality's queries, with a validation by both after every epoch."""

import logging
import time
from dataclasses import dataclass

import torch
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from avs_s4 import network_files
from avs_s4.evaluation import clip_codes, evaluate, loader
from avs_s4.network.losses import mask_loss, matching_loss
from avs_s4.scenes import warn_of_greys
from avs_s4.train_resume import Progress, settings
from errors import InputError

PRINT_STEPS = 100


@dataclass
class Means:
    """Running means of the losses since the last line of the log."""

    steps: int = 0
    iou_loss: float = 0.0
    sa_loss: float = 0.0

    def add(self, iou_loss, sa_loss):
        self.steps += 1
        self.iou_loss += (float(iou_loss) - self.iou_loss) / self.steps
        self.sa_loss += (float(sa_loss) - self.sa_loss) / self.steps


def losses(network, query, batch, opts):
    """Mask loss and matching loss (0 if off) of one training batch."""
    codes = query(opts.source, batch)
    out = network(batch["frames"], codes, first_frames=not opts.sa_loss_flag)
    logits = out.logits[::codes.shape[1]] if opts.sa_loss_flag else out.logits
    released = opts.protocol == "released"
    iou_loss = mask_loss(logits, batch["masks"], released)
    if not opts.sa_loss_flag:
        return iou_loss, iou_loss.new_zeros(())
    return iou_loss, matching_loss(out.logits, out.maps, out.queries, opts.sa_loss_stages, opts.mask_pooling_type)


def fit(network, query, train_set, val_set, opts, facts, folder, run, state=None):
    """Train for opts.max_epoches; write last.pth, best.pth and best_source.pth into the run folder.

    Args:
        facts: what network_files.save keeps beside the weights.
        folder: the run's folder.
        run: engine.runs.Run that takes the curves.
        state: of a run that goes on (train_resume.find).

    Returns:
        kind ("last", "best", "source") -> {"epoch", "mIoU"} on validation.
    """
    device, released = opts.device, opts.protocol == "released"
    groups = [{"params": list(network.parameters())}]
    if not released:
        groups.append({"params": list(query.adapter.parameters()), "lr": opts.adapter_lr})
    learning = [parameter for group in groups for parameter in group["params"]]
    for parameter in query.adapter.parameters():
        parameter.requires_grad_(not released)          # the published program never trains it
    optimizer = torch.optim.Adam(groups, lr=opts.lr, weight_decay=opts.wt_dec)
    order = torch.Generator().manual_seed(opts.seed)
    train_batches = loader(train_set, opts.train_batch_size, opts.num_workers, order)
    val_batches = loader(val_set, opts.val_batch_size, opts.num_workers)
    val_inputs = val_set.queries()
    best, chosen, grey = {"best": -1.0, "source": -1.0}, {}, False       # the first epoch is always kept
    kept = Progress(folder, settings(opts, facts["encoder_sha256"]), network, query, optimizer, order, run)
    behind, values = kept.restore(state) if state else (0, {})
    best, chosen = values.get("best", best), values.get("chosen", chosen)
    for epoch in range(behind + 1, opts.max_epoches + 1):
        began = time.time()
        network.train()
        query.train()
        means, whole = Means(), Means()
        bar = tqdm(train_batches, desc=f"epoch {epoch}/{opts.max_epoches}", unit="step", leave=False, disable=None)
        for step, batch in enumerate(bar, 1):
            grey = grey or warn_of_greys(train_set, batch, logging.warning)
            batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
            iou_loss, sa_loss = losses(network, query, batch, opts)
            total = iou_loss + opts.lambda_1 * sa_loss if opts.sa_loss_flag else iou_loss
            optimizer.zero_grad()
            total.backward()
            norm = get_total_norm([p.grad for p in learning if p.grad is not None])
            if not torch.isfinite(total) or not torch.isfinite(norm):
                raise InputError(f"epoch {epoch}, step {step}: loss {float(total)}, gradient norm {float(norm)}; "
                                 f"finite numbers are expected; lower --lr ({opts.lr})")
            optimizer.step()
            for mean in (means, whole):
                mean.add(iou_loss.detach(), sa_loss.detach())
            bar.set_postfix(loss=f"{whole.iou_loss:.4f}")
            if step % PRINT_STEPS == 0:
                logging.info(f"epoch {epoch} step {step}/{len(train_batches)}: iou_loss {means.iou_loss:.4f} "
                             f"sa_loss {means.sa_loss:.4f} lambda_1 {opts.lambda_1:g}")
                means = Means()
        trained = time.time() - began
        query.eval()
        codes = {m: clip_codes(query, m, val_inputs, device) for m in dict.fromkeys((opts.target, opts.source))}
        counted = evaluate(network, val_batches, codes, device, logging.warning, desc=f"validation {epoch}")
        scores = {modality: counted[modality].result(opts.protocol) for modality in codes}
        score = {"best": scores[opts.target]["mIoU"], "source": scores[opts.source]["mIoU"]}
        for kind in ("best", "source", "last"):
            if kind != "last" and not score[kind] > best[kind]:
                continue
            best[kind], value = score.get(kind), score.get(kind, score["best"])
            network_files.save(folder / "checkpoints" / network_files.FILES[kind], network, query.adapter, epoch=epoch,
                         score=value, **facts)
            chosen[kind] = {"epoch": epoch, "mIoU": value}
        line = " ".join(f"{m} mIoU {100 * s['mIoU']:.1f} F {100 * s['F']:.1f}" for m, s in scores.items())
        logging.info(f"epoch {epoch}: iou_loss {whole.iou_loss:.4f} | validation with {line}")
        run.scalars(epoch * len(train_batches), epoch,
                    {"iou_loss": whole.iou_loss, "sa_loss": whole.sa_loss, "lambda_1": opts.lambda_1},
                    {f"{m}_{name}": value for m, s in scores.items() for name, value in s.items()},
                    len(train_set) / trained)
        kept.save(epoch, epoch * len(train_batches), best=best, chosen=chosen)
    kept.finish()
    return chosen
