"""The loop of pretraining: epochs, checkpoints within and between them, a clean stop, and bit-exact resume.

Everything that a step depends on is in the checkpoint: weights, codebooks, optimisers (published sections), and under
`run` the random states, the place in the epoch, which codebooks have started, and the state of the monitors.
"""

import hashlib
import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cmg.checkpoints import checkpoint
from cmg.report import plots
from cmg.training.batches import epoch_order
from cmg.training.monitors import Finite, Health, NotFinite
from cmg.training.run_logger import random_state, set_random_state
from cmg.utils.errors import InputError
from cmg.utils.settings import positive, setting
from cmg.utils.signals import Stopped, stop_on_signals

log = logging.getLogger(__name__)
STEP_FILES = 2                  # checkpoints from within epochs that are kept, unless --keep says otherwise


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, in which order it sees its clips, and what it saves."""

    seed: int = setting(43, "seed of weights, order and draws (released: 43)")
    batch_size: int = setting(80, "clips per step, of all processes together", flags=("-b", "--b", "--batch_size"),
                              type=positive)
    n_epoch: int = setting(None, "epochs to train (default: as published)", type=positive, decisive=False)
    max_steps: int = setting(None, "stop after this many steps in all", type=positive, decisive=False)
    start_epoch: int = setting(0, "number of the first epoch", decisive=False)
    print_freq: int = setting(50, "steps between two lines of the log", type=positive, decisive=False)
    save_freq: int = setting(1, "epochs between two checkpoints", type=positive, decisive=False)
    save_every_steps: int = setting(None, "also save within an epoch, after so many steps (default: off)",
                                    type=positive, decisive=False)
    keep: int = setting(None, "newest checkpoints of this run to keep (default: one per epoch, the last two within it)",
                        type=positive, decisive=False)
    on_save_error: str = setting("stop", "a checkpoint cannot be written, say on a full disk: stop, or continue and "
                                 "try at the next", choices=("stop", "continue"), decisive=False)
    save_dtype: str = setting("float32", "float64 as the published files; never less than --precision computes in",
                              choices=("float32", "float64"), decisive=False)


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0              # the running epoch
    clips: int = 0              # how many of its clips are processed
    step: int = 0               # steps taken in all


@dataclass
class RunState:
    """What a checkpoint keeps under `run`; `to_dict` is plain data."""

    position: Position
    started: list               # System.started
    random: dict                # run_folder.random_state
    clips: dict                 # fingerprint of the clips: number and SHA-256 of their ids
    options: dict               # decisive options, as plain values
    saved: list = field(default_factory=list)       # names of the checkpoints of this run, oldest first
    records: dict = field(default_factory=dict)     # Run.position
    health: dict = field(default_factory=dict)      # Health.state
    processes: int = None       # that shared a batch; None in files of before this was kept

    def to_dict(self):
        return asdict(self)

    @classmethod
    def of(cls, loaded):
        """The state in a checkpoint, None for a published file.

        Raises:
            InputError: `run` is there and is no such state.
        """
        stored = loaded.contents.get("run") or None
        if stored is None:
            return None
        try:
            state = cls(**{**stored, "position": Position(**stored["position"])})
            numbers = [*asdict(state.position).values(), state.clips["number"], state.processes or 0]
            kinds = (state.started, list), (state.saved, list), (state.options, dict), (state.records, dict), (
                state.health, dict), (state.random, dict)
            if not all(type(n) is int and n >= 0 for n in numbers) or (
                    len(state.started) != len(loaded.system.codebooks)) or not all(
                    isinstance(value, kind) for value, kind in kinds) or not all(
                    type(flag) is bool for flag in state.started):
                raise ValueError("values of other types")
            set_random_state(state.random, torch.Generator())
            Health(**state.health)
        except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, AttributeError, IndexError) as error:
            raise InputError(f"{loaded.path}: its entry 'run' is no state of a run ({type(error).__name__}: "
                             f"{str(error)[:80]}); it is damaged: use another checkpoint, or remove this entry and "
                             "resume at the epoch") from error
        return state


def fingerprint(data):
    """Number of clips and SHA-256 of their ids in order."""
    return {"number": len(data), "ids_sha256": hashlib.sha256("\n".join(data.ids).encode()).hexdigest()}


def differences(stored, own):
    """What differs between two dicts of options, as text."""
    return [f"{name} {stored[name]} there, {own[name]} here" for name in own if name in stored
            and stored[name] != own[name]]


def find_newest(folder, pattern, own):
    """The newest whole checkpoint of a run, None where there is none.

    A file that is broken, published or of other options is skipped with a warning.

    Args:
        folder, pattern: where to look, for which names.
        own: the run's decisive options.
    """
    found = []
    for path in sorted(folder.glob(pattern)):
        try:
            stored = checkpoint.read(path, mmap=True)
            run = stored.get("run") or {}
            if not run:
                raise InputError(f"{path}: has no state of a run")
            other = differences(run["options"], own)
            if other:
                raise InputError(f"{path}: of another run ({'; '.join(other)})")
            found.append((int(run["position"]["step"]), path))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("--resume auto skips: %s", str(error) or path)
    return max(found, default=(0, None))[1]


class Loop:
    """A pretraining run from its position to its end.

    Args:
        settings: RunSettings.
        options: the run's decisive options, as plain values; a resumed run is compared with them.
        trainer: Trainer.
        data: the dataset.
        batches: Resident or Streamed.
        generator: the run's sampling generator, that of the trainer's draws.
        save_folder: where checkpoints go.
        folder: Run; None in a process that neither logs nor saves.
        loaded: checkpoint.Loaded of a resumed run, else None.
        features: modality -> what the data was made with (cmg/data/origins.py), for the checkpoints.
    """

    def __init__(self, settings, options, trainer, data, batches, generator, save_folder, folder, loaded=None,
                 features=None):
        self.settings, self.options, self.trainer, self.batches = settings, options, trainer, batches
        self.generator, self.save_folder, self.folder, self.features = generator, save_folder, folder, features
        self.num_clips, self.clips, self.resumed = len(data), fingerprint(data), loaded.path if loaded else None
        self.unused = loaded.unused if loaded else {}
        self.position, self.saved, self.health = Position(settings.start_epoch), [], Health()
        self.together, self.stopped = trainer.together, None
        self.finite = Finite(data.ids)
        self.failed_save, self._last_step = None, settings.max_steps or math.inf
        trainer.before_update = self.finite.look
        if loaded:
            self._go_on(loaded)
        self.saved_at = self.position.step

    def _go_on(self, loaded):
        """Take over the state of a checkpoint; a published one gives its epoch and optimisers only."""
        checkpoint.load_optimizers(loaded, self.trainer.optimizers)
        state = RunState.of(loaded)
        if state is None:
            self.position = Position(loaded.epoch + 1, 0, loaded.total_step)
            self.trainer.system.mark_started(loaded.epoch)
            log.info("%s: has no state of a run: epoch %d starts with fresh random numbers", loaded.path,
                     self.position.epoch)
            return
        if state.position.clips and (state.clips != self.clips or state.options.get("seed") != self.settings.seed):
            raise InputError(f"{loaded.path}: saved after {state.position.clips} of {state.clips['number']} clips of "
                             f"an epoch in the order of seed {state.options.get('seed')}; here are {self.num_clips} "
                             f"clips and seed {self.settings.seed}; pass the same data and --seed, or a file of a "
                             "whole epoch")
        others = differences(state.options, self.options)
        others += ["other clips"] if state.clips != self.clips else []
        if others and self.together.is_first:
            log.warning("warning: %s: this run resumes with other options (%s); its numbers are not comparable with "
                        "either run", loaded.path, "; ".join(others))
        if self.together.is_first and state.processes and state.processes != self.together.size:
            log.warning("warning: %s: saved by %d processes, now it is %d, with the same batches: dropout draws other "
                        "numbers; as good a run, but not the same to the last bit; start %d for that", loaded.path,
                        state.processes, self.together.size, state.processes)
        is_own_folder = loaded.path.parent.resolve() == Path(self.save_folder).resolve()
        self.position, self.saved = state.position, list(state.saved) if is_own_folder else []
        self.trainer.system.started, self.health = list(state.started), Health(**state.health)
        set_random_state(state.random, self.generator)
        log.info("%s: resuming in epoch %d after %d of its %d clips, %d steps in all", loaded.path, self.position.epoch,
                 self.position.clips, self.num_clips, self.position.step)

    def run(self):
        """Train to the end; returns the last checkpoint, None in a process that does not save.

        Raises:
            Stopped: a signal came, and everything is saved.
        """
        with stop_on_signals() as stop:
            try:
                while not self._is_done() and not self.stopped:
                    self._epoch(stop)
                if self.saved_at != self.position.step:
                    self._save_here()
                if not self.stopped:
                    self.health.conclude()          # after the save: a run that goes on later is judged anew
            except NotFinite as error:
                if not self.folder:
                    raise InputError(f"{error}; the first process keeps everything about this step") from None
                self.trainer.rollback.forget(self.finite.begun_since(error.figures))
                self.position = error.figures.before
                bundle = self._save_bundle(error.figures)
                raise InputError(f"{error}; everything about this step is in {bundle}") from None
        if self.folder:
            self.folder.close()
        if self.stopped:
            told = (f"after step {self.position.step}", "resume with --resume auto") if self.folder else ()
            raise Stopped(self.stopped, *told)
        if self.failed_save:
            raise self.failed_save
        return self.save_folder / self.saved[-1] if self.saved else self.resumed if self.folder else None

    def _is_done(self):
        return self.position.epoch >= self.settings.n_epoch or self.position.step >= self._last_step

    def _epoch(self, stop):
        """Train what is left of the running epoch, saving on the way."""
        settings, trainer, here = self.settings, self.trainer, self.position
        epoch, order = here.epoch, epoch_order(self.num_clips, settings.seed, here.epoch)
        is_whole = False
        trainer.system.train()
        shown, since = here.step, time.monotonic()
        with tqdm(total=self.num_clips, initial=here.clips, desc=f"epoch {epoch}", unit="clip",
                  disable=None if self.folder else True) as bar:
            for batch in self.batches(*self.together.part(order[here.clips:], settings.batch_size)):
                size = min(settings.batch_size, self.num_clips - here.clips)        # of all processes
                self.together.expect(size, here.step)
                self.finite.expect(order[here.clips:here.clips + size], batch, replace(here))
                report = trainer.step(batch, epoch)
                here.step, here.clips = here.step + 1, here.clips + size
                bar.update(size)
                is_last = here.step >= self._last_step
                if here.step % settings.print_freq == 0 or is_last:
                    speed = (here.step - shown) * settings.batch_size / (time.monotonic() - since)
                    shown, since = here.step, time.monotonic()
                    self._log(report, epoch, speed, bar)
                is_whole = here.clips == self.num_clips
                number = self.together.agree(int(stop.signal or 0))
                self.stopped = number or None
                if is_last or is_whole or self.stopped:
                    break
                if settings.save_every_steps and here.step % settings.save_every_steps == 0:
                    self._save_here()
        if is_whole:
            self._show_codes(report, epoch)
            here.epoch, here.clips = epoch + 1, 0
            if here.epoch % settings.save_freq == 0 or self._is_done():
                self._save_here()

    def _log(self, report, epoch, speed, bar):
        """One line of figures; the only place where the loop waits for the device."""
        figures = self.finite.settle()
        if not self.folder:
            return
        metrics = figures.metrics
        metrics |= self.health.look(self.trainer.system, report.outputs, figures.step, metrics,
                                    self.settings.batch_size)
        bar.set_postfix(loss=f"{figures.losses['total']:.3f}")
        log.info("epoch %d step %d  %s  %.0f clips/s", epoch, figures.step,
                 " ".join(f"{name} {value:.4f}" for name, value in figures.losses.items()), speed)
        self.folder.scalars(figures.step, epoch, figures.losses, metrics, speed)
        self.folder.code_use(figures.step, self._code_counts(report))

    def _code_counts(self, report):
        """Suffix of a codebook -> modality -> (K,) how often the step took each of its codes."""
        system = self.trainer.system
        return {suffix: {m: np.bincount(indices.flatten().cpu().numpy(),
                                        minlength=len(system.codebooks[suffix].embedding))
                         for m, indices in of_modalities.items()}
                for suffix, of_modalities in system.chosen(report.outputs).items()}

    def _show_codes(self, report, epoch):
        """A picture in TensorBoard: who uses which code, in the last step of an epoch."""
        if not self.folder:
            return
        counts, order = self._code_counts(report), list(self.trainer.system.config.modalities)
        self.folder.code_use(self.position.step, counts, {
            suffix: plots.codebook_figure(np.stack([of[m] for m in order]), order,
                                          f"Who uses which code: last step of epoch {epoch}")
            for suffix, of in counts.items()})

    def _save_here(self):
        """Write a checkpoint, named after its epoch, and within an epoch after its step too; when it is whole, remove
        those that are not to be kept."""
        self.finite.settle()
        here = self.position
        if not self.folder:
            self.saved_at = here.step
            return
        name = f"{here.epoch}-step{here.step}" if here.clips else here.epoch - 1
        path = self.save_folder / self.trainer.system.file(self.trainer.system.config.modalities, name)
        saved = [other for other in self.saved if other != path.name] + [path.name]
        keep, old = self._kept(saved)
        try:
            checkpoint.save(path, self._contents(keep))
        except InputError as error:
            if self.settings.on_save_error == "stop":
                raise
            self.failed_save = error
            log.error("error: %s; training continues (--on_save_error continue)", error)
            return
        self.failed_save, self.saved, self.saved_at = None, keep, here.step
        for other in old:
            try:
                (path.parent / other).unlink(missing_ok=True)
            except OSError as error:
                log.warning("warning: %s: an older checkpoint cannot be removed (%s); remove it when this run is done",
                            path.parent / other, error.strerror)
        log.info("saved %s after step %d", path, here.step)

    def _kept(self, saved):
        """Names of checkpoints to keep and to remove."""
        if self.settings.keep:
            return saved[-self.settings.keep:], saved[:-self.settings.keep]
        old = [name for name in saved if "-step" in name][:-STEP_FILES]
        return [name for name in saved if name not in old], old

    def _contents(self, saved):
        """The checkpoint of this moment. Its `epoch` is the last finished one, so that a program which knows only
        whole epochs repeats the running one from its start."""
        trainer = self.trainer
        own = next(trainer.system.parameters()).dtype
        dtype = torch.promote_types(own, getattr(torch, self.settings.save_dtype))  # not less than the run computes in
        state = RunState(self.position, list(trainer.system.started), random_state(self.generator), self.clips,
                         self.options, saved, self.folder.position(self.position.step), self.health.state(),
                         self.together.size)
        return checkpoint.pack(trainer.system, trainer.optimizers, self.unused, self.position.epoch - 1,
                               self.position.step, state.to_dict(), dtype, self.features)

    def _save_bundle(self, figures):
        """Keep everything about a step that went wrong; returns the file."""
        path = self.folder.folder / "debug" / f"step-{figures.step}.pt"
        clips = [self.finite.ids[i] for i in figures.clips.tolist()]
        checkpoint.save(path, {
            "step": figures.step, "epoch": figures.before.epoch, "clips": clips, "options": self.options,
            "figures": dict(zip(figures.names, figures.values.tolist())), "saved": list(self.saved),
            "batch": dict(figures.batch), "contents": self._contents(self.saved)})
        return path
