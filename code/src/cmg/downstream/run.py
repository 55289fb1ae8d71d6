"""One downstream task, from a frozen encoder to result lines, for any labeled and any tested modality."""

import json
import time
import zipfile
from dataclasses import astuple
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from cmg.checkpoints import checkpoint
from cmg.data import origins
from cmg.data.clips import name_hashes
from cmg.data.fingerprint import combined
from cmg.downstream import encode, fit_heads
from cmg.downstream import toc as toc_variants
from cmg.downstream.doubts import direction_of
from cmg.downstream.resume import Progress
from cmg.downstream.task import check
from cmg.models import toc
from cmg.models.config import in_order, modalities_of
from cmg.results import provenance
from cmg.results import rows as results
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output, remove_leftovers


class PartKey(NamedTuple):
    """Of a EncodedSplit with TOC's choice of channels."""

    role: str                   # "train", "test", "val"
    control: str                # None: the pretrained encoder; "untrained"
    modality: str
    choice: object              # cmg.models.toc.Selection; None: all channels


class HeadKey(NamedTuple):
    """Of a head: over which codes it is trained, and its seed."""

    control: str
    source: str
    choice: object
    seed: int


def evaluate(task, pretrained, variants, settings, output, cache=None):
    """Train and test the heads of one task: all directions, seeds, channel selections and controls in one pass.

    Args:
        task: cmg.downstream.task.Task.
        pretrained: the encoder.
        variants: result of toc_variants.variants, which determines the directions.
        settings: HeadSettings with `n_epoch` set.
        output: results.Output; the first variant's predictions are written next to its file.
        cache: CodeCache of the checkpoint (cmg/downstream/code_cache.py), or None.

    Returns:
        Result lines (cmg/results/rows.py), appended to the results file as well.

    Raises:
        InputError: encoder and data do not match, or there is nothing to train.
    """
    start = time.monotonic()
    directions = list(dict.fromkeys(direction for variant in variants for direction in variant.choices))
    check(task, pretrained, directions)
    encoders = with_control(pretrained.encoder, settings)
    touched = modalities_of(directions)
    measured = {s: [t for t in touched if (s, t) in directions or (s == t and t in task.test)]
                for s in touched if s in task.train}
    channels = {(control, choice): toc.head_channels(encoder.codebooks, choice)
                for control, encoder in encoders.items() for v in variants for choice in v.choices.values()}
    parts = {PartKey(role, control, modality, choice): part.select(kept)
             for (role, control, modality), part in _encode(task, encoders, measured, settings, cache).items()
             for (of, choice), kept in channels.items() if of == control}
    head_runs = {}
    for control, source, choice in _heads(encoders, measured, variants):
        on = {(role, target): parts[PartKey(role, control, target, choice)] for target in measured[source]
              for role in ("test", "val") if PartKey(role, control, target, choice) in parts}
        part, held = task.training(parts[PartKey("train", control, source, choice)])
        for seed in settings.seeds:
            key = HeadKey(control, source, choice, seed)
            head_runs[key] = fit_heads.HeadRun(part, task.targets(part), seed, on, held)
    for v in variants:
        for direction, choice in v.choices.items():
            labeled, tested = (parts[PartKey(role, None, modality, choice)].numbers
                               for role, modality in zip(("train", "test"), direction))
            books = origins.apart(labeled, tested)
            if books:
                told = f"codebook {', '.join(map(str, books))}" if labeled.ndim > 1 else ""
                pretrained.doubts.apart[direction_of(task.name, direction, v.name)] = told
    first_epoch, refresh, averaged = 0, None, None
    if settings.protocol == "released":
        first_epoch = (pretrained.encoder.epoch or 0) + 1
        refresh = _with_dropout(task, encoders, head_runs, channels, settings)
        averaged = settings.batch_size          # the released metrics are averages over batches
    if settings.n_epoch <= first_epoch:
        raise InputError(
            f"--n_epoch {settings.n_epoch}: no epoch is left because the released protocol starts at {first_epoch} "
            f"with {pretrained.path}; raise --n_epoch")
    progress = Progress(output.beside(f"heads-{output.record_name}-{pretrained.sha256[:12]}.pt"))
    make = partial(task.make, segment_layers=settings.segment_layers)
    fit_heads.fit(list(head_runs.values()), make, lambda heads, part: task.measure(heads, part, averaged),
                  epochs=settings.n_epoch - first_epoch, batch_size=settings.batch_size, lr=settings.lr,
                  clip_gradient=settings.clip_gradient, weight_decay=settings.weight_decay, refresh=refresh,
                  progress=progress, title=f"{task.name}: {len(head_runs)} heads")
    before = {"->".join(direction): seen(task, pretrained, direction) for direction in directions}
    rows = written([row | before[row["direction"]] for variant in variants
                    for row in _rows(task, variant, head_runs, parts, settings.seeds, first_epoch, averaged)],
                   pretrained, settings.protocol, start, output)
    _keep_predictions(task, variants[0], head_runs, parts, pretrained, settings, output, rows)
    progress.finish()
    pretrained.doubts.add(rows, task.best_by, {m: len(part) for m, part in task.test.items()})
    return rows


def seen(task, pretrained, direction):
    """Fractions of a direction's test clips, by name, that were also used in pretraining and in training the head; None
    for the former if the checkpoint does not list its clips."""
    labeled, test = name_hashes(task.train[direction[0]]), name_hashes(task.test[direction[1]])
    pretraining = pretrained.encoder.pretraining.get("hashes")
    return {"seen_in_pretraining": None if pretraining is None else float(np.isin(test, pretraining).mean()),
            "seen_by_head": float(np.isin(test, labeled).mean())}


def with_control(encoder, settings):
    """The encoders of a call, {None: pretrained, "untrained": control}, without the latter if --no_control is set."""
    if settings.no_control:
        return {None: encoder}
    return {None: encoder, "untrained": checkpoint.untrained_like(encoder, settings.seeds[0])}


def written(rows, pretrained, protocol, start, output):
    """Complete the result lines of `line` with the fields that all lines of one call share, and append them to the
    results file.

    Args:
        start: time.monotonic() at the beginning of the call.
    """
    about = {"protocol": protocol, "modalities": list(pretrained.encoder.config.modalities),
             "checkpoint": str(pretrained.path), "checkpoint_sha256": pretrained.sha256,
             "checkpoint_epoch": pretrained.encoder.epoch, "variant": toc_variants.OFF,
             "commit": provenance.source_commit(), "seconds": round(time.monotonic() - start, 2),
             "provenance": output.record}
    rows = [output.identify(about | row) for row in rows]
    for row in rows:
        results.append(output.path, row)
    return rows


def line(task, dataset, direction, metric, value, *, chance, epoch, selection, seed, control, variant, choice,
         same_modality=None, **more):
    """A result line without the fields added by `written`; `dataset` is the tested Clips."""
    return {"variant": variant, "channels": choice and astuple(choice), "task": task, "dataset": dataset.name,
            "origin": dataset.origin, "direction": "->".join(direction), "metric": metric, "value": value,
            "epoch": epoch, "selection": selection, "same_modality": same_modality, "chance": chance, "seed": seed,
            "control": control, **more}


def _heads(encoders, sources, variants):
    """The distinct (control, source, choice) of the heads that the directions need."""
    needed = {(modality, choice): None for v in variants for direction, choice in v.choices.items()
              for modality in direction if modality in sources}
    return [(control, *head) for control in encoders for head in needed]


def _encode(task, encoders, measured, settings, cache):
    """All codes that are needed, (role, control, modality) -> EncodedSplit, reading each dataset once."""
    needs = {("train", m): task.train[m] for m in measured}
    needs |= {(role, t): clips[t] for role, clips in (("test", task.test), ("val", task.val))
              for targets in measured.values() for t in targets if t in clips}
    datasets = {id(dataset): dataset for dataset in needs.values()}
    found = {}
    for key, dataset in datasets.items():
        modalities = in_order({m for (_, m), d in needs.items() if id(d) == key})
        for (control, m), part in _codes(task, encoders, dataset, modalities, settings, cache=cache).items():
            found |= {(role, control, m): part for (role, n), d in needs.items() if n == m and id(d) == key}
    return found


def _codes(task, encoders, dataset, modalities, settings, training=False, cache=None):
    return encode.codes(encoders, dataset, modalities, labels=task.label_key, batch_size=settings.test_batch_size,
                        precision=settings.precision, workers=settings.readers, training=training, cache=cache)


def _with_dropout(task, encoders, head_runs, channels, settings):
    """For protocol="released": recompute the codes of the training clips before each epoch, with dropout on."""
    sources = {key.source for key in head_runs}

    def refresh(epoch):
        with torch.random.fork_rng():
            torch.manual_seed(settings.seeds[0] * 1000 + epoch)
            fresh = {source: _codes(task, encoders, task.train[source], [source], settings, training=True)
                     for source in in_order(sources)}
        for (control, source, choice, _), head_run in head_runs.items():
            head_run.train, _ = task.training(fresh[source][control, source].select(channels[control, choice]))
    return refresh


def _rows(task, variant, head_runs, parts, seeds, first_epoch, averaged):
    """Result lines of every direction, control, seed, chosen epoch and metric, without the shared fields."""
    for (source, target), choice in variant.choices.items():
        for control in {key.control: None for key in head_runs}:
            chance = task.chance(parts[PartKey("test", control, target, choice)], averaged)
            for seed in seeds:
                head_run = head_runs[HeadKey(control, source, choice, seed)]
                curves = head_run.curves
                test, val, same = curves["test", target], curves.get(("val", target)), None
                if HeadKey(control, target, choice, seed) in head_runs:
                    same = head_runs[HeadKey(control, target, choice, seed)].curves["test", target]
                epochs = {"last": len(test[task.best_by]) - 1, "best": _argmax(test[task.best_by])}
                same_epochs = {"last": -1, "best": _argmax(same[task.best_by])} if same else None
                chosen = _argmax(val[task.best_by]) if val else None
                for selection, epoch in epochs.items():
                    for metric, values in test.items():
                        yield line(
                            task.name, task.test[target], (source, target), metric, values[epoch],
                            epoch=first_epoch + epoch, selection=selection, chance=chance[metric], seed=seed,
                            control=control, variant=variant.name, choice=choice,
                            same_modality=same[metric][same_epochs[selection]] if same else None,
                            value_at_validation=values[chosen] if val else None,
                            validation_epoch=first_epoch + chosen if val else None,
                            validation=val[metric][chosen] if val else None)
                part = parts[PartKey("test", control, target, choice)]
                for metric, value in task.at_end(head_run.head, part, head_run.held).items():
                    yield line(task.name, task.test[target], (source, target), metric, value, chance=None,
                               epoch=first_epoch + epochs["last"], selection="last", seed=seed, control=control,
                               variant=variant.name, choice=choice)


def _argmax(values):
    return max(range(len(values)), key=values.__getitem__)           # the first of ties


def _keep_predictions(task, variant, head_runs, parts, pretrained, settings, output, rows):
    """Write the data for the pictures: outputs of the first seed's heads after the last epoch, and all curves.

    Args:
        rows: result lines of the call.
    """
    of_all = dict(checkpoint=pretrained.path.name, checkpoint_sha256=pretrained.sha256, protocol=settings.protocol,
                  variant=variant.name, settings=json.dumps(output.settings, sort_keys=True))
    measured = {row["direction"]: row for row in rows if row["control"] is None and row["variant"] == variant.name
                and (row["metric"], row["selection"], row["seed"]) == (task.best_by, "last", settings.seeds[0])}
    for (source, target), choice in variant.choices.items():
        row = measured[f"{source}->{target}"]
        dataset, test = task.test[target], parts[PartKey("test", None, target, choice)]
        kept = {role: [head_runs[key] for key in (HeadKey(None, s, choice, seed) for seed in settings.seeds)
                       if key in head_runs] for role, s in (("cross", source), ("same", target))}
        arrays = task.pictured([of_role[0].head for of_role in kept.values() if of_role], test, dataset)
        curves = {f"{role}_curves": np.array([t.curves["test", target][task.best_by] for t in of_role])
                  for role, of_role in kept.items()}
        arrays |= _originals(dataset, {source, target}, target, arrays["shown"])
        features = np.stack([dataset[i][target] for i in arrays["shown"]])
        _save(output.beside(f"predictions/{task.name}-{source}-{target}.npz"), results.identity_digest(row), **of_all,
              task=task.name, source=source, target=target, dataset=dataset.name, origin=dataset.origin,
              ids=np.array(dataset.ids), best_by=task.best_by, seed=settings.seeds[0], data=row.get("data", ""),
              features=features, **arrays, **curves)
    used = {key.modality: part.indices.cpu().numpy() for key, part in parts.items()
            if key.role == "test" and key.control is None}
    data = combined({name: found.sha256 for name, found in output.contents.items()})
    _save(output.beside(f"predictions/codes-{task.name}.npz"), results.identity_digest(row | {
        "direction": "+".join(used), "data": data, "seed": None, "settings": None}), checkpoint=pretrained.path.name,
        origin=next(iter(task.test.values())).origin, num_codes=max(map(len, pretrained.encoder.codebooks)), **used)


def _originals(dataset, modalities, target, shown):
    """What a person sees, hears or reads in the shown clips, if available: "originals" of the tested modality, and
    "sentences" if one of the modalities is text."""
    wanted = {"originals": target} if target != "text" else {}
    wanted |= {"sentences": "text"} if "text" in modalities else {}
    found = {name: [dataset.original(modality, i) for i in shown] for name, modality in wanted.items()}
    return {name: np.array(values) for name, values in found.items() if all(value is not None for value in values)}


def _save(path, measurement, **arrays):
    """Write the arrays of one measurement (results.identity_digest) to `path` or, if that file belongs to another
    measurement, next to it under a name that includes the digest."""
    if path.exists() and _measurement_of(path) != measurement:
        path = path.with_stem(f"{path.stem}-{measurement}")
    arrays["measurement"] = measurement
    remove_leftovers(path.parent, path.name)
    with atomic_output(path, remedy="choose another path with --results") as file:
        np.savez_compressed(file, **arrays)


def _measurement_of(path):
    """The measurement that a file of predictions belongs to; None if unknown."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["measurement"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
