"""Settings for pretraining. This module does not import PyTorch, so `--help` appears immediately."""

import math
from dataclasses import dataclass

from cmg.training.loggers import LOGGERS
from cmg.utils.settings import natural, not_negative, positive, setting, whole

LEARNING_RATE_DROPS = (10, 20, 30)      # epochs, as published
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}     # name for --optimizer -> class of torch.optim


def _is_paced(opts):
    """Whether all learning rates depend on the length of the run."""
    return opts.schedule == "cosine"


@dataclass(frozen=True)
class RunSettings:
    """Length of a run, order of its clips, and checkpoints."""

    seed: int = setting(43, "random seed (published: 43)", type=whole)
    batch_size: int = setting(80, "clips per step, over all processes (own data: depends on the number of clips)",
                              flags=("-b", "--b", "--batch_size"), type=positive)
    n_epoch: int | None = setting(
        None, "number of epochs (default: as published; own data: depends on the number of clips)", type=positive,
        affects_results=_is_paced)
    max_steps: int | None = setting(None, "stop after this many steps", type=positive, affects_results=_is_paced)
    start_epoch: int = setting(0, "number of the first epoch", affects_results=False)
    print_freq: int = setting(50, "steps between lines of the log (own data: about 20 lines in total)", type=positive,
                              affects_results=False)
    save_freq: int = setting(1, "epochs between checkpoints (own data: at least 6 checkpoints)", type=positive,
                             affects_results=False)
    save_every_steps: int | None = setting(
        None, "also save a checkpoint within the epoch every N steps (default: off)", type=positive,
        affects_results=False)
    keep: int | None = setting(
        None, "number of newest checkpoints of this run to keep (default: one per epoch, and the last two within "
        "epochs)", type=positive, affects_results=False)
    keep_optimizer: str = setting("newest", "checkpoints that keep the optimizer state, which resuming requires and "
                                  "which takes two thirds of a file: only the newest, or all",
                                  choices=("newest", "all"), affects_results=False)
    on_save_error: str = setting("stop", "what to do if a checkpoint cannot be written, for example on a full disk: "
                                 "stop, or continue and save the next one", choices=("stop", "continue"),
                                 affects_results=False)
    save_dtype: str = setting("float32", "dtype of saved tensors; published files have float64. At least the "
                              "--precision of the run is used", choices=("float32", "float64"), affects_results=False)
    log: str = setting("tensorboard", "logger for losses and code use in addition to metrics.jsonl; trackio and wandb "
                       "require their packages", choices=tuple(LOGGERS), affects_results=False)


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer."""

    optimizer: str = setting("adam", "optimizer of all parameters except the CLUB networks, which always use Adam",
                             choices=tuple(OPTIMIZERS))
    lr: float = setting(4e-4, "learning rate")
    schedule: str = setting("drops", "learning rate schedule: halved at the epochs --lr_drops, cosine decay to 0 at "
                            "the end of the run, or constant", choices=("drops", "cosine", "constant"))
    lr_drops: tuple[int, ...] = setting(
        LEARNING_RATE_DROPS, "epochs at which --schedule drops halves the rate (own data: none)", type=natural)
    warmup: int = setting(0, "steps of linear learning rate warmup", metavar="STEPS")
    weight_decay: float | None = setting(
        None, "weight decay (default: 0; adamw: 0.01)", flags=("--weight_decay", "--wd"), type=not_negative)
    clip_gradient: float = setting(0.5, "maximum gradient norm of each parameter group", type=float)
    mi_lr: float = setting(1e-3, "learning rate of the auxiliary networks (CLUB)", type=not_negative)

    def learning_rate(self, epoch, step, total_steps):
        """Learning rate of a step. It depends only on the position in the run, so that a resumed run continues it.

        Args:
            epoch: the current epoch.
            step: number of steps taken before this one.
            total_steps: steps of the whole run; used only by the cosine schedule.
        """
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "drops":
            return warm * self.lr * 0.5 ** sum(epoch >= drop for drop in self.lr_drops)
        if self.schedule == "cosine":
            done = max(step - self.warmup, 0) / max(total_steps - self.warmup, 1)
            return warm * self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return warm * self.lr


def default_decay(optimizer):
    """Default weight decay of an optimizer in OPTIMIZERS: that of torch for AdamW, else 0."""
    return 0.01 if optimizer == "adamw" else 0.0


@dataclass(frozen=True)
class StepConfig:
    """Settings of how a step is computed."""

    recompute: bool = setting(False, "save memory: recompute the convolutions over maps in the backward pass",
                              affects_results=False)
    bf16: bool = False
    compile: bool = False               # apply torch.compile to the classes COMPILED
