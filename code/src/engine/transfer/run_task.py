"""One downstream task, from a checkpoint to lines of results: any labelled modality to any other."""

import logging
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import torch

from atomic_write import whole_file
from engine import checkpoint, monitors, provenance, results
from engine.transfer import fit_heads, metrics, toc_variants
from engine.transfer.head_resume import Progress
from errors import InputError
from model import toc

log = logging.getLogger(__name__)
MODALITIES = ("audio", "video", "text")
SHOWN = 8                        # test clips whose features are kept for the pictures


@dataclass
class Task:
    """What a task is: its data by modality, its head, and the figure that chooses the best epoch."""

    name: str
    head: type                                   # ClipHead or SegmentHead
    best_by: str                                 # "accuracy", "precision", "f1"
    train: dict                                  # modality -> labelled clips on which a head may be trained
    test: dict                                   # modality -> clips on which any head is tested
    val: dict = field(default_factory=dict)      # modality -> clips that may choose an epoch, where the task has them
    labels = "label"                             # entry of an item that goes with its codes

    @property
    def classes(self):
        return next(iter(self.train.values())).classes

    def make(self, width):
        """A new head for codes of this width."""
        return self.head(width, len(self.classes))

    def answers(self, part):
        """What the head's loss compares with: clip classes (N,) or labels (N, T, C + 1)."""
        return part.targets if self.head.clipwise else part.labels

    def measure(self, heads, part, batch=None):
        """metric -> (E,) percent of E heads on a CodeSet. `batch`: see metrics.segment_scores."""
        outputs = fit_heads.predict(heads, part)
        if self.head.clipwise:
            return {"accuracy": metrics.accuracy(outputs, part.targets)}
        return metrics.segment_scores(outputs, part.labels, batch)

    def chance(self, part, batch=None):
        """metric -> percent of a guess that ignores its input."""
        if self.head.clipwise:
            return {"accuracy": 100 / len(self.classes)}
        return metrics.segment_chance(part.labels, batch)

    def pictured(self, heads, part, dataset):
        """Arrays from which the pictures of a direction are made. `heads`: the direction's, then the same-modality one.

        `shown` are the clips whose features are kept: the first of each class.
        """
        outputs = fit_heads.predict(heads, part).float().cpu().numpy()
        targets = part.targets.cpu().numpy()
        shown = np.unique(targets, return_index=True)[1]
        if len(shown) < SHOWN:
            shown = np.linspace(0, len(part) - 1, min(SHOWN, len(part))).round().astype(int)
        shown = shown[:SHOWN]
        return {"classes": np.array(self.classes), "labels": part.labels.cpu().numpy().astype(np.uint8),
                "clipwise": self.head.clipwise, "cross": outputs[0], "same": outputs[-1],
                "shown": shown}


@dataclass
class Pretrained:
    """A frozen encoder and where it came from."""

    path: Path
    encoder: torch.nn.Module
    sha256: str


def load(opts, path=None):
    """The frozen encoder of a checkpoint (default: `opts.checkpoint`), with which TOC's settings are checked."""
    path = Path(path or opts.checkpoint)
    dtype = torch.float64 if opts.precision == "float64" else torch.float32
    encoder = checkpoint.load_encoder(path, device=opts.device, dtype=dtype)
    toc_variants.check(opts, encoder.config)
    return Pretrained(path, encoder, checkpoint.sha256(path))


def by_modality(datasets):
    """Put datasets together as modality -> dataset."""
    return {m: dataset for dataset in datasets for m in dataset.modalities}


def wanted(opts, *of):
    """Modalities that the directions of a run touch, in the fixed order; only those in `of` where it is given."""
    return tuple(m for m in of or MODALITIES if any(m in direction for direction in opts.directions))


def check(task, pretrained, directions):
    """InputError unless the task's data and the encoder have every direction; reads one clip of each dataset."""
    for source, target in directions:
        for role, modality, parts in (("labelled", source, task.train), ("test", target, task.test)):
            if modality not in parts:
                raise InputError(f"{task.name}: {source}->{target} needs {role} clips with {modality}, which this task "
                                 "has not; choose another --source and --target")
            fit_heads.check_fit(pretrained.encoder, parts[modality], modality, pretrained.path)
    classes = {tuple(part.classes) for part in (*task.train.values(), *task.test.values(), *task.val.values())}
    if len({len(names) for names in classes}) > 1:
        counts = " and ".join(str(len(names)) for names in classes)
        raise InputError(f"{task.name}: its parts have {counts} classes; one list is expected; check the category "
                         "files")


def evaluate(task, pretrained, opts):
    """Train and test the heads of one task: every direction, seed, choice of channels and control in one pass.

    For each direction source->target there is a head on `source`; the same-modality figure comes from a head on
    `target`, tested on `target`. The controls are the same heads over an encoder that was never trained. Where TOC is
    on, all four see the channels of the direction, selected from their own encoder's codebooks.

    Returns:
        Rows (engine/results.py), appended to `opts.results` as well.
    """
    start = time.monotonic()
    variants = toc_variants.variants(opts, task.name, pretrained.encoder.config)
    check(task, pretrained, opts.directions)
    record = keep_record(opts, task.name)
    encoders = {None: pretrained.encoder}
    if not opts.no_control:
        encoders["untrained"] = checkpoint.untrained_like(pretrained.encoder, opts.seeds[0])
    sources = [m for m in wanted(opts) if m in task.train]
    measured = {s: [t for t in wanted(opts) if (s, t) in opts.directions or (s == t and t in task.test)]
                for s in sources}
    kept = {(control, selection): toc.head_channels(encoder.codebooks, selection)
            for control, encoder in encoders.items() for v in variants for selection in v.selections.values()}
    parts = {(*key, selection): part.select(chosen) for key, part in _encode(task, encoders, measured, opts).items()
             for (control, selection), chosen in kept.items() if control == key[1]}
    trials = {}
    for control, source, selection in _heads(encoders, sources, variants):
        on = {role + target: parts[role, control, target, selection] for target in measured[source]
              for role in ("test ", "val ") if (role, control, target, selection) in parts}
        part = parts["train ", control, source, selection]
        for seed in opts.seeds:
            trials[control, source, selection, seed] = fit_heads.Trial(part, task.answers(part), seed, on)
    first_epoch, refresh = 0, None
    if opts.protocol == "released":
        first_epoch, refresh = (pretrained.encoder.epoch or 0) + 1, _with_dropout(task, encoders, trials, kept, opts)
    if opts.n_epoch <= first_epoch:
        raise InputError(f"--n_epoch {opts.n_epoch}: no epoch is left, the released protocol starts at {first_epoch} "
                         f"with {pretrained.path}; raise --n_epoch")
    batch = opts.batch_size if opts.protocol == "released" else None        # of the released averages
    progress = Progress(Path(opts.results).parent / f"heads-{Path(record).stem}-{pretrained.sha256[:12]}.pt")
    fit_heads.fit(list(trials.values()), task.make, lambda heads, part: task.measure(heads, part, batch),
                 epochs=opts.n_epoch - first_epoch, batch=opts.batch_size, lr=opts.lr, clip=opts.clip_gradient,
                 weight_decay=opts.weight_decay, refresh=refresh, progress=progress,
                 title=f"{task.name}: {len(trials)} heads")
    about = describe(pretrained, opts, start, record)
    rows = [{"task": task.name} | about | row for variant in variants
            for row in _rows(task, variant, trials, parts, opts, first_epoch, batch)]
    for row in rows:
        results.append(opts.results, row)
    _keep_predictions(task, variants[0], trials, parts, pretrained, opts)
    progress.finish()
    monitors.warn_of_chance(rows, task.best_by, {m: len(part) for m, part in task.test.items()})
    return rows


def _heads(encoders, sources, variants):
    """(control, source, selection) of every kind of head that some direction needs, each once."""
    needed = {(modality, selection): None for v in variants for direction, selection in v.selections.items()
              for modality in direction if modality in sources}
    return [(control, *head) for control in encoders for head in needed]


def keep_record(opts, family):
    """Write what this call was made with beside its results, before any work; returns its name for `describe`."""
    family = "vggsound" if family == "retrieval" else family
    return provenance.write(Path(opts.results).parent, provenance.collect(opts, (family,)))


def describe(pretrained, opts, start, record):
    """What all result lines of one call have in common.

    Args:
        start: time.monotonic() at its beginning.
        record: of `keep_record`.
    """
    return {"protocol": opts.protocol, "modalities": list(pretrained.encoder.config.modalities),
            "checkpoint": str(pretrained.path), "checkpoint_sha256": pretrained.sha256,
            "checkpoint_epoch": pretrained.encoder.epoch, "variant": toc_variants.OFF,
            "commit": results.source_commit(), "seconds": round(time.monotonic() - start, 2), "provenance": record}


def _encode(task, encoders, measured, opts):
    """Codes of everything that is needed, each dataset read once: (role, control, modality) -> CodeSet."""
    needs = {("train ", m): task.train[m] for m in measured}
    needs |= {(role, t): part[t] for role, part in (("test ", task.test), ("val ", task.val))
              for targets in measured.values() for t in targets if t in part}
    datasets = {id(dataset): dataset for dataset in needs.values()}
    found = {}
    for key, dataset in datasets.items():
        modalities = [m for m in MODALITIES if any(m == n and id(d) == key for (_, n), d in needs.items())]
        for (control, m), part in _codes(task, encoders, dataset, modalities, opts).items():
            found |= {(role, control, m): part for (role, n), d in needs.items() if n == m and id(d) == key}
    return found


def _codes(task, encoders, dataset, modalities, opts, training=False):
    return fit_heads.codes(encoders, dataset, modalities, labels=task.labels, batch=opts.test_batch_size,
                          precision=opts.precision, workers=0 if opts.in_memory else opts.workers, training=training)


def _with_dropout(task, encoders, trials, kept, opts):
    """For protocol="released": new codes of the training clips before each epoch, dropout on."""
    sources = {source for _, source, *_ in trials}

    def refresh(epoch):
        with torch.random.fork_rng():
            torch.manual_seed(opts.seeds[0] * 1000 + epoch)
            fresh = {source: _codes(task, encoders, task.train[source], [source], opts, training=True)
                     for source in MODALITIES if source in sources}
        for (control, source, selection, _), trial in trials.items():
            trial.train = fresh[source][control, source].select(kept[control, selection])
    return refresh


def _rows(task, variant, trials, parts, opts, first_epoch, batch):
    """Result lines without what is the same for all: each direction, control, seed, selection and metric."""
    for (source, target), toc_selection in variant.selections.items():
        for control in {control: None for control, *_ in trials}:
            test = parts["test ", control, target, toc_selection]
            chance = task.chance(test, batch)
            for seed in opts.seeds:
                curves = trials[control, source, toc_selection, seed].curves
                curve, same, val = curves[f"test {target}"], None, curves.get(f"val {target}")
                if (control, target, toc_selection, seed) in trials:
                    same = trials[control, target, toc_selection, seed].curves[f"test {target}"]
                at = {"last": len(curve[task.best_by]) - 1, "best": _argmax(curve[task.best_by])}
                same_at = {"last": -1, "best": _argmax(same[task.best_by])} if same else None
                chosen = _argmax(val[task.best_by]) if val else None
                for selection, epoch in at.items():
                    for metric, values in curve.items():
                        yield {"variant": variant.name, "channels": toc_selection and astuple(toc_selection),
                               "dataset": task.test[target].name, "direction": f"{source}->{target}", "metric": metric,
                               "value": values[epoch], "epoch": first_epoch + epoch, "selection": selection,
                               "same_modality": same[metric][same_at[selection]] if same else None,
                               "chance": chance[metric], "seed": seed, "control": control,
                               "value_at_validation": values[chosen] if val else None,
                               "validation_epoch": first_epoch + chosen if val else None,
                               "validation": val[metric][chosen] if val else None}


def _argmax(values):
    return max(range(len(values)), key=values.__getitem__)           # the first of equal ones


def _keep_predictions(task, variant, trials, parts, pretrained, opts):
    """Write what the pictures are made from: outputs of the first seed's heads after the last epoch, all curves."""
    folder = Path(opts.results).parent / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for (source, target), selection in variant.selections.items():
        dataset, test = task.test[target], parts["test ", None, target, selection]
        kept = {role: [trials[None, s, selection, seed] for seed in opts.seeds if (None, s, selection, seed) in trials]
                for role, s in (("cross", source), ("same", target))}
        arrays = task.pictured([of_role[0].head for of_role in kept.values() if of_role], test, dataset)
        curves = {f"{role}_curves": np.array([t.curves[f"test {target}"][task.best_by] for t in of_role])
                  for role, of_role in kept.items()}
        features = np.stack([dataset[i][target] for i in arrays["shown"]])
        _save(folder / f"{task.name}-{source}-{target}.npz", task=task.name, source=source, target=target,
              dataset=dataset.name, ids=np.array(dataset.ids), best_by=task.best_by, seed=opts.seeds[0],
              checkpoint=pretrained.path.name, protocol=opts.protocol, features=features, **arrays, **curves)
    used = {m: part.indices.cpu().numpy() for (role, control, m, _), part in parts.items()
            if role == "test " and control is None}
    _save(folder / f"codes-{task.name}.npz", num_codes=pretrained.encoder.config.num_codes,
          checkpoint=pretrained.path.name, **used)


def _save(path, **arrays):
    """Write an npz file whole or not at all."""
    try:
        with whole_file(path) as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise InputError(f"{path}: predictions cannot be written ({error.strerror}); free space or choose another "
                         "place with --results") from error


def run(build, opts, evaluate=evaluate):
    """What every task script does: data, encoder, heads, the table of this run.

    Args:
        build: opts -> Task.
        opts: of configs/opts.py, `parse_downstream`.
        evaluate: (what `build` gave, Pretrained, opts) -> rows.
    """
    pretrained = load(opts)
    for modality in wanted(opts):
        fit_heads.check_modality(pretrained.encoder, modality, pretrained.path)
    rows = evaluate(build(opts), pretrained, opts)
    print(results.summary(rows))
    print(f"\nresults: {opts.results}")
