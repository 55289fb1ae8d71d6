"""Monitors of a run for non-finite values, and for codebooks that collapse or are not shared by the modalities."""

import logging
import math
from dataclasses import asdict, dataclass, field

import torch

from cmg.models.codebook import code_perplexity
from cmg.presets import has_recipe
from cmg.utils.errors import InputError

log = logging.getLogger(__name__)
COLLAPSED_SHARE = 0.1           # collapsed: a batch uses fewer codes than this fraction of K or of its seconds,
COLLAPSED_PERPLEXITY = 0.02     # or the perplexity is below this fraction of K, or below 4
CODEBOOK_CHECK_STEP = 200       # steps before codebooks are checked
MODALITY_CHECK_STEP = 100       # steps before modalities are checked
SINGLE_CODE = 2                 # a modality with a lower perplexity has collapsed
CPC_CHECK_STEP = 500            # steps before Cross-CPC is checked
ABOVE_CHANCE = 1.5              # an accuracy counts as learned above this multiple of chance
SHARING = "dcid", "h_dcid"      # systems of --recipe shared
ADVICE = {
    "used": "initialize the codes from data (--codebook_init data), keep --code_reset full, or use fewer codes "
            "(--n_embeddings) or larger batches",
    "perplexity": "lower --lr, keep --codebook_init data and --code_reset full, and check the *_commit losses",
    "shared": "keep cmcm, cpc and mm_ema (--without), and check that the features of a clip belong together",
    "chance": "check --lr, and that audio, video and text of a clip belong together",
}


def sharing_advice(system, options):
    """Advice for modalities that share no codes, given the name of a system and the options of its run; empty if the
    run already uses the recipe or the system has none."""
    helps = system in SHARING and not has_recipe("shared", options)
    return "try --recipe shared (docs/decisions.md), " if helps else ""


@dataclass
class StepMetrics:
    """The values of one step, copied asynchronously from the device to the host."""

    names: list                 # (kind, name) of each value; the kind is a field of StepOutput
    values: torch.Tensor        # on the CPU, valid once `arrived()`
    clips: object               # indices of the clips in the dataset
    batch: dict
    before: object              # run_state.Position before the step
    event: object = None        # marks the end of the copy on a GPU; None on a CPU

    def arrived(self, wait=False):
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or wait or self.event.query()

    @property
    def step(self):
        return self.before.step + 1

    def of_kind(self, kind):
        """The values of one kind, name -> number."""
        return {name: value for (of, name), value in zip(self.names, self.values.tolist()) if of == kind}

    losses = property(lambda self: self.of_kind("losses"))
    metrics = property(lambda self: self.of_kind("metrics"))
    likelihoods = property(lambda self: self.of_kind("likelihoods"))
    grad_norms = property(lambda self: self.of_kind("grad_norms"))

    def not_finite(self):
        """Name -> value of losses and gradient norms that are NaN or infinite."""
        judged = self.losses | {f"gradient of {name}": value for name, value in self.grad_norms.items()}
        return {name: value for name, value in judged.items() if not math.isfinite(value)}


class NonFiniteError(InputError):
    """Raised for a step whose loss or gradient is not finite; `values` are its StepMetrics."""

    def __init__(self, message, values):
        super().__init__(message)
        self.values = values


class FiniteCheck:
    """Checks that losses and gradient norms of every step are finite.

    On the CPU this happens before the weights change. On a GPU the values are copied asynchronously and checked on
    arrival, a step or two later; `flush` waits for them before anything is saved.

    Args:
        ids: names of the clips in the dataset.
    """

    def __init__(self, ids):
        self.ids = ids                                  # names of the clips
        self.pending = []
        self.coming = None                              # (clips, batch, before) of the newest step, see `StepMetrics`

    def begin(self, clips, batch, before):
        """Announce the step whose output will be checked next; `before` is the position at its start."""
        self.coming = clips, batch, before

    def check(self, output):
        """Check a StepOutput; called by TrainStep before the weights are updated. Raises NonFiniteError."""
        kinds = ("losses", "metrics", "likelihoods", "grad_norms")
        found = [(kind, name, value) for kind in kinds for name, value in getattr(output, kind).items()]
        like = output.losses["total"].detach()
        values = torch.stack([torch.as_tensor(value).detach().to(like) for *_, value in found])
        event = None
        if values.is_cuda:
            values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append(StepMetrics([(kind, name) for kind, name, _ in found], values, *self.coming, event))
        self._check_finite(wait=False)

    def flush(self):
        """Wait for the last step and return its StepMetrics, None before the first step."""
        self._check_finite(wait=True)
        return self.pending[-1] if self.pending else None

    def _check_finite(self, wait):
        while self.pending and self.pending[0].arrived(wait):
            values = self.pending[0]
            found = values.not_finite()
            if found:
                raise NonFiniteError(self._message(values, found), values)
            if len(self.pending) == 1:
                return                                  # keep the newest for the log
            self.pending.pop(0)

    def _message(self, values, found):
        bad = torch.zeros(len(values.clips), dtype=torch.bool)
        for x in values.batch.values():
            if len(x) == len(bad):                      # with several processes, each sees only a part of the clips
                bad |= ~x.flatten(1).isfinite().all(1).cpu()
        clips = [self.ids[i] for i in (values.clips[bad] if bad.any() else values.clips).tolist()]
        shown = ", ".join(f"{name} is {value}" for name, value in list(found.items())[:3])
        more = f" and {len(clips) - 5} more" if len(clips) > 5 else ""
        whose = "not finite in the features of" if bad.any() else "in a batch with"
        return (f"epoch {values.before.epoch}, step {values.step}: {shown}; expected finite numbers; {whose} "
                f"{', '.join(clips[:5])}{more}; lower --lr or --clip_gradient, or fix these clips")


@dataclass
class CodebookMonitor:
    """Warns once of each problem that does not stop a run. `state` is stored in checkpoints."""

    warned: list = field(default_factory=list)
    accuracies: dict = field(default_factory=dict)      # Cross-CPC metric -> [sum, number of values]
    unshared: list = field(default_factory=list, init=False)       # codebooks that shared no codes at the last update
    advice: str = field(default=ADVICE["shared"], init=False)   # advice for them that fits the run

    def state(self):
        return {"warned": list(self.warned), "accuracies": {name: list(v) for name, v in self.accuracies.items()}}

    def update(self, system, outputs, step, metrics, batch_size):
        """Check the system when a step is logged.

        Args:
            system: cmg.systems.base.System.
            outputs: outputs of its last pass.
            step: number of steps taken.
            metrics: name -> number, of this step.
            batch_size: clips per step; chance of Cross-CPC is 1 / batch_size.

        Returns:
            Metrics of the codebooks, name -> number.
        """
        found = {}
        self.unshared, self.advice = [], f"{sharing_advice(system.name, asdict(system.options))}{ADVICE['shared']}"
        for suffix, assigned in system.assigned_codes(outputs).items():
            codebook = system.codebooks[suffix]
            usage = code_usage(codebook, assigned)
            found |= {"codes_used" + suffix: usage.codes_used, "codes_shared" + suffix: usage.codes_shared,
                      "code_perplexity" + suffix: usage.perplexity}
            if usage.codes_shared == 0:
                self.unshared.append(suffix)
            if step >= CODEBOOK_CHECK_STEP:
                self._check_codebook(usage, len(codebook.embedding), suffix)
        for suffix, level in system.level_outputs(outputs).items():
            for modality, z in level.semantic.items():
                found[f"{modality}_spread{suffix}"] = feature_spread(z)
                perplexity = metrics.get(f"{modality}_perplexity{suffix}", math.inf)
                if step >= MODALITY_CHECK_STEP and perplexity < SINGLE_CODE:
                    spread = feature_spread(level.inputs[modality])
                    self._check_collapse(modality, suffix, perplexity, spread, step, system)
        self._check_cpc(metrics, step, batch_size)
        return found

    def finish(self):
        """At the end of a run of any length, warn of codebooks that shared no codes at the last update."""
        for suffix in self.unshared:
            self._check_shared(suffix)

    def _check_collapse(self, modality, suffix, perplexity, spread, step, system):
        level, num_codes = suffix.replace("_", " of level "), len(system.codebooks[suffix].embedding)
        ratio = math.sqrt(1 - spread ** 2) / max(spread, 1e-6)
        advice = "lower --lr" if system.config.standardize == "channel" else "pretrain with --standardize channel"
        self._warn(f"collapse_{modality}{suffix}", f"{modality}{level} uses {perplexity:.1f} of {num_codes} codes at "
                   f"step {step}, and the mean of its features is {ratio:.1f} times their deviation", advice)

    def _check_codebook(self, usage, num_codes, suffix):
        name = f"codebook{suffix.replace('_', ' ')}"
        if usage.codes_used < COLLAPSED_SHARE * min(num_codes, usage.seconds):
            self._warn("used" + suffix, f"{name} has collapsed: the batch uses {usage.codes_used} of {num_codes} codes",
                       ADVICE["used"])
        elif usage.perplexity < max(4, COLLAPSED_PERPLEXITY * num_codes):
            self._warn("perplexity" + suffix, f"{name} has collapsed: its perplexity is "
                       f"{usage.perplexity:.1f} of {num_codes}", ADVICE["perplexity"])
        if usage.codes_shared == 0:
            self._check_shared(suffix)

    def _check_shared(self, suffix):
        self._warn("shared" + suffix, f"codebook{suffix.replace('_', ' ')}: no code of this batch is used by all "
                   "modalities", self.advice)

    def _check_cpc(self, metrics, step, batch_size):
        for name, value in metrics.items():
            if name.startswith("cpc_accuracy"):
                total = self.accuracies.setdefault(name, [0.0, 0])
                total[0], total[1] = total[0] + value, total[1] + 1
        means = {name: total / count for name, (total, count) in self.accuracies.items()}
        if step >= CPC_CHECK_STEP and means and max(means.values()) < ABOVE_CHANCE / batch_size:
            self._warn("chance", f"Cross-CPC is at chance after {step} steps: best accuracy "
                       f"{100 * max(means.values()):.1f} %, chance {100 / batch_size:.1f} %", ADVICE["chance"])

    def _warn(self, name, found, advice):
        if name not in self.warned:
            self.warned.append(name)
            log.warning("warning: %s; %s", found, advice)


@torch.no_grad()
def feature_spread(z):
    """RMS deviation of features (B, T, D) from their mean, divided by the RMS of the features: 0..1.

    Near 0, the features of all seconds are nearly parallel.
    """
    rows = z.flatten(0, -2).float()
    return float(((rows - rows.mean(0)).pow(2).mean() / rows.pow(2).mean().clamp_min(1e-12)).sqrt())


@dataclass
class CodeUsage:
    """Usage of a codebook."""

    codes_used: int             # in one batch
    codes_shared: int           # used by all modalities in the batch
    seconds: int                # of the batch, per modality
    perplexity: float           # of the moving counts, 1..K


@torch.no_grad()
def code_usage(codebook, assigned):
    """`CodeUsage` of a codebook in one batch.

    The codebook's count of passes without use does not show this, because resets also set it to 0.

    Args:
        codebook: has `embedding` and `ema_count`.
        assigned: modality -> (B, T) codes assigned in the batch.
    """
    used = torch.stack([torch.zeros(len(codebook.embedding), dtype=torch.bool, device=indices.device)
                        .index_fill_(0, indices.flatten(), True) for indices in assigned.values()])
    return CodeUsage(int(used.any(0).sum()), int(used.all(0).sum()), max(x.numel() for x in assigned.values()),
                     code_perplexity(codebook))
