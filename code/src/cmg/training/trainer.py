"""The training loop of pretraining: epochs, checkpoints within and between them, stopping on signals, exact resume.

A checkpoint contains everything that a step depends on: weights, codebooks, optimizers (in published sections), and, as
`run`, the random states, the position in the epoch, which codebooks are initialized, and the state of the monitors.
"""

import hashlib
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cmg.checkpoints import checkpoint
from cmg.checkpoints.optimizer_state import load_optimizers
from cmg.data.clips import name_hashes
from cmg.data.loader import WorkersLost
from cmg.training.batches import epoch_order
from cmg.training.monitors import CodebookMonitor, FiniteCheck, NonFiniteError
from cmg.training.run_logger import random_state, set_random_state
from cmg.training.run_state import Position, RunState, checkpoints_of_run, differences, identify, other_clips
from cmg.training.undo import undo_of
from cmg.utils import dist
from cmg.utils.errors import InputError
from cmg.utils.signals import Stopped, stop_on_signals

log = logging.getLogger(__name__)
STEP_FILES = 2                  # checkpoints within epochs to keep, without --keep


def total_steps(num_clips, settings):
    """Number of steps of a complete run with these RunSettings."""
    steps = math.ceil(num_clips / settings.batch_size) * max(settings.n_epoch - settings.start_epoch, 0)
    return min(steps, settings.max_steps or steps)


def _hash(tensors):
    """SHA-256 of tensors by name."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


class Trainer:
    """A pretraining run, from its current position to its end.

    Args:
        settings: RunSettings.
        options: the run's options that affect results, as plain values; compared with those of a resumed run.
        train_step: TrainStep.
        data: the dataset.
        batches: Resident or Streamed (cmg/training/batches.py).
        generator: the run's sampling generator, that of StepRandom.
        save_folder: folder of the checkpoints.
        folder: RunLogger; None in a process that neither logs nor saves.
        loaded: checkpoint.Loaded of a resumed run, else None.
        feature_origins: modality -> how its features were extracted (cmg/data/origins.py), for the checkpoints.
        contents: dotted name -> Fingerprint of the files and folders of the data, for the checkpoints.
        draw_codes: draws the code use of an epoch for TensorBoard (report.plots.codebook_figure), or None.
    """

    def __init__(self, settings, options, train_step, data, batches, generator, save_folder, folder, loaded=None,
                 feature_origins=None, contents=None, draw_codes=None):
        self.settings, self.options, self.train_step, self.batches = settings, options, train_step, batches
        self.generator, self.save_folder, self.folder = generator, save_folder, folder
        self.feature_origins, self.draw_codes = feature_origins, draw_codes
        self.num_clips, self.clips, self.hashes = len(data), identify(data, contents), name_hashes(data)
        self.resumed = loaded.path if loaded else None
        self.unused = {n: value for n, value in loaded.unused.items() if value.any()} if loaded else {}
        self.position, self.saved, self.monitor = Position(settings.start_epoch), [], CodebookMonitor()
        self.stopped, self.undo, self.stripped = None, None, set()      # stripped: paths without optimizer state
        self.finite = FiniteCheck(data.ids)
        self.failed_save, self._last_step = None, settings.max_steps or math.inf
        train_step.total_steps = total_steps(self.num_clips, settings)
        train_step.before_update = self.finite.check
        if loaded:
            self._resume(loaded)
        self.saved_at = self.position.step

    def _resume(self, loaded):
        """Load the state of a checkpoint; published ones contain only the epoch and the optimizers."""
        load_optimizers(loaded, self.train_step.optimizers)
        state = RunState.of(loaded)
        if state is None:
            self.position = Position(loaded.epoch + 1, 0, loaded.total_step)
            self.train_step.system.mark_initialized()
            log.info("%s: contains no run state; epoch %d starts with new random numbers", loaded.path,
                     self.position.epoch)
            return
        others = other_clips(state.clips, self.clips)
        if state.options.get("seed") != self.settings.seed:
            others.append(f"seed {state.options.get('seed')} there, {self.settings.seed} here")
        if state.position.clips and others:
            raise InputError(f"{loaded.path}: saved after {state.position.clips} of {state.clips['number']} clips of "
                             f"an epoch, whose remaining clips are different here: {'; '.join(others)}; pass the same "
                             "data and --seed, or a checkpoint saved at the end of an epoch")
        others = differences(state.options, self.options) + other_clips(state.clips, self.clips)
        if others and dist.is_main():
            log.warning("warning: %s: this run resumes with different options (%s); its results are not comparable "
                        "with those of either run", loaded.path, "; ".join(others))
        if dist.is_main() and state.processes and state.processes != dist.world_size():
            log.warning("warning: %s: saved by %d processes, resumed by %d with the same batches. Dropout draws other "
                        "numbers: the run is equally valid, but not bit-identical; start %d processes for that",
                        loaded.path, state.processes, dist.world_size(), state.processes)
        self.position = state.position
        if self.folder and loaded.path.parent.resolve() == Path(self.save_folder).resolve():
            self.saved = checkpoints_of_run(loaded, state)
        self.train_step.system.initialized = list(state.started)
        self.monitor = CodebookMonitor(**state.health)
        set_random_state(state.random, self.generator)
        log.info("%s: resuming in epoch %d after %d of its %d clips, %d steps in total", loaded.path,
                 self.position.epoch, self.position.clips, self.num_clips, self.position.step)

    def notes(self):
        """Values that must be equal in all processes of a run before the next step; see dist.require_equal."""
        settings, here, optimizers = self.settings, self.position, self.train_step.optimizers
        notes = {f"--{name}": str(value) for name, value in self.options.items()}
        notes |= {f"--{name}": str(getattr(settings, name)) for name in ("n_epoch", "max_steps", "start_epoch")}
        notes |= {"number of clips": self.num_clips, "list of clips": self.clips["ids_sha256"].encode()}
        notes |= {f"content of {name}": sha256.encode() for name, sha256 in self.clips.get("content", {}).items()}
        state = random_state(self.generator)
        return notes | {
            "start (--resume must find the same checkpoint in all)": f"after step {here.step}, epoch {here.epoch}",
            "weights": _hash(self.train_step.system.state_dict()),
            "state of the optimizers": _hash({(id_, key): value for optimizer in (optimizers.main, optimizers.auxiliary)
                                              if optimizer for id_, own in enumerate(optimizer.state.values())
                                              for key, value in own.items()}),
            "random state": _hash({name: state[name] for name in ("torch", "run")})}

    def run(self):
        """Train to the end and return the path of the last checkpoint, None in a process that does not save.

        Raises:
            Stopped: the run was stopped by a signal; everything is saved.
            InputError: values are not finite, or worker processes were lost; everything before is saved.
        """
        if self._is_done():
            log.info("this run is already complete after %d epochs and %d steps; increase --n_epoch or --max_steps to "
                     "continue it", self.position.epoch, self.position.step)
        with stop_on_signals() as stop:
            try:
                while not self._is_done() and not self.stopped:
                    self._epoch(stop)
                if self.saved_at != self.position.step:
                    self._save_checkpoint()
                if not self.stopped:
                    self.monitor.finish()           # after the save, so that a resumed run is checked again
            except WorkersLost as error:
                raise InputError(f"{error}; {self._emergency_save()}") from None
            except RuntimeError as error:
                if dist.is_lost(error) and self.folder:
                    log.error("another process of this run was lost; %s", self._emergency_save())
                raise
            except NonFiniteError as error:
                if not self.folder:
                    raise InputError(f"{error}; the first process saves the details of this step") from None
                raise InputError(f"{error}; the run ends, and its batch was saved to "
                                 f"{self._save_bundle(error.values)}; resume from {self._last_saved()}") from None
        if self.folder:
            self.folder.close()
        if self.stopped:
            told = (f"after step {self.position.step}", "resume with --resume auto") if self.folder else ()
            raise Stopped(self.stopped, *told)
        if self.failed_save:
            raise self.failed_save
        return self.save_folder / self.saved[-1] if self.saved else self.resumed if self.folder else None

    def _is_due(self):
        """Whether --save_every_steps requires a checkpoint after this step."""
        every = self.settings.save_every_steps
        return every is not None and self.position.step % every == 0

    def _is_done(self):
        return self.position.epoch >= self.settings.n_epoch or self.position.step >= self._last_step

    def _epoch(self, stop):
        """Train the rest of the current epoch, with checkpoints within it."""
        settings, train_step, here = self.settings, self.train_step, self.position
        epoch, order = here.epoch, epoch_order(self.num_clips, settings.seed, here.epoch)
        is_whole = False
        train_step.system.train()
        shown, since = here.step, time.monotonic()
        with tqdm(total=self.num_clips, initial=here.clips, desc=f"epoch {epoch}", unit="clip",
                  disable=None if self.folder else True) as bar:
            for batch in self.batches(*dist.shard(order[here.clips:], settings.batch_size)):
                size = min(settings.batch_size, self.num_clips - here.clips)        # of all processes
                dist.begin_step(size, here.step)
                self.finite.begin(order[here.clips:here.clips + size], batch, replace(here))
                self.undo = undo_of(train_step) if self.folder and dist.world_size() > 1 else None
                output = train_step.step(batch, epoch, here.step)
                self.undo = None
                here.step, here.clips = here.step + 1, here.clips + size
                bar.update(size)
                is_last = here.step >= self._last_step
                if here.step % settings.print_freq == 0 or is_last:
                    speed = (here.step - shown) * settings.batch_size / (time.monotonic() - since)
                    shown, since = here.step, time.monotonic()
                    self._log(output, epoch, speed, bar)
                is_whole = here.clips == self.num_clips
                number = dist.all_max(int(stop.signal or 0))
                self.stopped = number or None
                if is_last or is_whole or self.stopped:
                    break
                if self._is_due():
                    self._save_checkpoint()
        if is_whole:
            self._log_code_use(output, epoch)
            here.epoch, here.clips = epoch + 1, 0
            if here.epoch % settings.save_freq == 0 or self._is_due() or self._is_done():
                self._save_checkpoint()

    def _log(self, output, epoch, speed, bar):
        """Log one step. This is the only point of the loop that waits for the device."""
        values = self.finite.flush()
        if not self.folder:
            return
        metrics = values.metrics | self.monitor.update(self.train_step.system, output.outputs, values.step,
                                                       values.metrics, self.settings.batch_size)
        steps_left = self.train_step.total_steps - values.step
        remaining = steps_left * self.settings.batch_size / speed
        bar.set_postfix(loss=f"{values.losses['total']:.3f}")
        log.info("epoch %d step %d of %d  loss %.4f  %.0f clips/s  %s left", epoch, values.step,
                 self.train_step.total_steps, values.losses["total"], speed, tqdm.format_interval(remaining))
        log.debug("  %s  lr %.3g", " ".join(f"{name} {value:.4f}" for name, value in values.losses.items()),
                  output.learning_rate)
        self.folder.scalars(values.step, epoch, {
            "losses": values.losses, "metrics": metrics, "likelihoods": values.likelihoods,
            "grad_norms": values.grad_norms, "learning_rate": output.learning_rate,
            "clips_per_second": round(speed, 2), "remaining_seconds": round(remaining)})
        self.folder.code_use(values.step, self._code_counts(output))

    def _code_counts(self, output):
        """Suffix of a codebook -> modality -> (K,) how often each code was assigned in this step."""
        system = self.train_step.system
        return {suffix: {m: np.bincount(indices.flatten().cpu().numpy(),
                                        minlength=len(system.codebooks[suffix].embedding))
                         for m, indices in of_modalities.items()}
                for suffix, of_modalities in system.assigned_codes(output.outputs).items()}

    def _log_code_use(self, output, epoch):
        """Log a figure of which modality uses which code in the last step of an epoch."""
        if not self.folder or not self.draw_codes:
            return
        counts, order = self._code_counts(output), list(self.train_step.system.config.modalities)
        self.folder.code_use(self.position.step, counts, {
            suffix: self.draw_codes(np.stack([of[m] for m in order]), order,
                                    f"Who uses which code: last step of epoch {epoch}")
            for suffix, of in counts.items()})

    def _save_checkpoint(self):
        """Write a checkpoint, named after its epoch (and, within an epoch, its step). Then remove older ones beyond
        --keep, and the optimizer state of the ones that stay."""
        self.finite.flush()
        here = self.position
        if not self.folder:
            self.saved_at = here.step
            return
        name = f"{here.epoch}-step{here.step}" if here.clips else here.epoch - 1
        path = self.save_folder / self.train_step.system.file(self.train_step.system.config.modalities, name)
        saved = [other for other in self.saved if other != path.name] + [path.name]
        settings, (keep, old) = self.settings, self._checkpoints_to_keep(saved)
        try:
            checkpoint.save(path, self._contents(keep))
        except InputError as error:
            if settings.on_save_error == "stop":
                raise
            self.failed_save = error
            log.error("error: %s; training continues (--on_save_error continue)", error)
            return
        self.failed_save, self.saved, self.saved_at = None, keep, here.step
        for other in old:
            try:
                (path.parent / other).unlink(missing_ok=True)
            except OSError as error:
                log.warning("warning: %s: this older checkpoint could not be removed (%s); remove it after the run",
                            path.parent / other, error.strerror)
        for other in keep[:-1] if settings.keep_optimizer == "newest" else ():
            self._drop_optimizers(path.parent / other)
        log.log(logging.INFO if self._is_done() or self.stopped else logging.DEBUG, "saved %s after step %d", path,
                here.step)

    def _drop_optimizers(self, path):
        """Remove the optimizer state of an older checkpoint, once the newest is on the disk."""
        try:
            if path not in self.stripped and path.exists():
                checkpoint.drop_optimizers(path)
            self.stripped.add(path)
        except InputError as error:
            log.warning("warning: %s; it keeps its optimizer state", error)

    def _checkpoints_to_keep(self, saved):
        """Names of the checkpoints, as (to keep, to remove)."""
        if self.settings.keep:
            return saved[-self.settings.keep:], saved[:-self.settings.keep]
        old = [name for name in saved if "-step" in name][:-STEP_FILES]
        return [name for name in saved if name not in old], old

    def _contents(self, saved):
        """Contents of the current checkpoint. Its `epoch` is the last completed one, so a program that supports only
        whole epochs repeats the current epoch from its start."""
        system = self.train_step.system
        own = next(system.parameters()).dtype
        dtype = torch.promote_types(own, getattr(torch, self.settings.save_dtype))  # at least the run's own precision
        state = RunState(self.position, list(system.initialized), random_state(self.generator), self.clips,
                         self.options, saved, self.folder.position(self.position.step), self.monitor.state(),
                         dist.world_size())
        return checkpoint.pack(system, self.train_step.optimizers, self.unused or None, self.position.epoch - 1,
                               self.position.step, state.to_dict(), dtype, self.feature_origins, self.hashes)

    def _emergency_save(self):
        """Save after the last whole step before the run ends with an error; returns text for the message."""
        if self.undo:
            self.undo()
        try:
            if self.folder and self.saved_at != self.position.step:
                self._save_checkpoint()
        except InputError as error:
            return f"step {self.position.step} could not be saved either: {error}"
        return f"resume from {self._last_saved()}"

    def _last_saved(self):
        """The newest checkpoint of this run, for messages."""
        newest = self.save_folder / self.saved[-1] if self.saved else self.resumed
        return newest or "the beginning, because nothing has been saved yet"

    def _save_bundle(self, values):
        """Save batch and values of a failed step for debugging; returns the path."""
        path = self.folder.folder / "debug" / f"step-{values.step}.pt"
        checkpoint.save(path, {
            "step": values.step, "epoch": values.before.epoch, "options": self.options, "batch": dict(values.batch),
            "clips": [self.finite.ids[i] for i in values.clips.tolist()],
            "values": {kind: values.of_kind(kind) for kind, _ in values.names}})
        return path
