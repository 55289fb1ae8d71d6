"""Shared code of the task scripts and evaluate.py: open the data of a task, measure it, and write its results."""

from dataclasses import replace
from pathlib import Path

from cmg.data import origins
from cmg.data.fingerprint import fingerprint
from cmg.downstream import encode, toc
from cmg.downstream.settings import HeadSettings, TocSettings
from cmg.downstream.task import Pretrained
from cmg.models.config import modalities_of
from cmg.results import provenance
from cmg.results import rows as results
from cmg.training.run_logger import kept_warnings
from cmg.utils.console import width
from cmg.utils.files import file_lock
from cmg.utils.settings import affects_results, read


def head_settings(opts, entry):
    """HeadSettings of one task. Flags override its own number of epochs and the preset's values."""
    return read(HeadSettings, opts, **{"n_epoch": opts.n_epoch or entry.epochs} | opts.by_task.get(entry.name, {}))


def head_options(settings, opts, entry):
    """Settings of the heads and their task that affect a result line and are not recorded elsewhere in it."""
    found = affects_results(settings, HeadSettings)
    if entry.settings:
        found |= affects_results(opts, entry.settings)
    named = ("seeds", "protocol", "no_control", "zero_code0")
    return {name: value for name, value in found.items() if name not in named} | {"precision": settings.precision}


def toc_choices(opts, entry, directions, pretrained):
    """The variants of the TOC options in these directions; invalid options are reported before any data is read."""
    found = toc.variants(read(TocSettings, opts), entry.name, directions, pretrained.code_dim,
                                  pretrained.encoder.system.TOC_RELEASED)
    if pretrained.encoder.zero_code0:           # keep its result lines separate from those of the plain codes
        found = [replace(variant, name=" ".join(filter(None, [variant.name, "zero_code0"]))) for variant in found]
    return found


def open_task(opts, entry, directions, config):
    """Open the Task with the data for some directions, read for a system with this config."""
    settings, touched = read(entry.settings, opts) if entry.settings else None, modalities_of(directions)
    contents = {name: fingerprint(opts.data_path(name), cache=opts.cache_root) for name in entry.names_of(touched)}
    task = entry.open(opts.data_path, touched, opts.protocol, settings, **opts.reading, **config.reading)
    task.contents = {name: found for name, found in contents.items() if found}
    return task


def measure(opts, entry, task, pretrained, variants):
    """Train and test the heads of one task on one encoder, and write a provenance record. Returns the result lines."""
    settings = head_settings(opts, entry)
    directions = list(dict.fromkeys(direction for variant in variants for direction in variant.choices))
    options = opts.resolved() | opts.by_task.get(entry.name, {})
    options |= {"task": entry.name, "directions": directions, "n_epoch": settings.n_epoch}
    touched = modalities_of(directions)
    paths = {name: opts.data_path(name) for name in task.contents}
    record = provenance.write(opts.results.parent, provenance.collect(options, opts.device, paths,
                                                                      fingerprints=task.contents))
    output = results.Output(opts.results, record, task.contents, entry.features, entry.always,
                            head_options(settings, opts, entry), settings.seeds[0])
    name = f".{Path(record).stem}-{pretrained.sha256[:12]}.lock"
    with file_lock(opts.results.parent / name, "choose another --results"):
        pretrained.warn(origins.other_features(pretrained.path, pretrained.encoder.features,
                                              origins.feature_paths(touched, entry.all_names(), opts.data_path)))
        return entry.method.evaluate(task, pretrained, variants, settings, output,
                                     pretrained.cache(settings, paths, task.contents))


def main(opts, name):
    """Load the encoder and the task's data, train and test heads, and print the results."""
    entry = opts.entry(name)
    pretrained = Pretrained.load(opts.checkpoint, opts.device, opts.precision, opts.zero_code0)
    variants = toc_choices(opts, entry, opts.directions, pretrained)
    for modality in modalities_of(opts.directions):
        encode.check_modality(pretrained.encoder, modality, pretrained.path)
    with kept_warnings(opts.results.parent):
        task = open_task(opts, entry, opts.directions, pretrained.encoder.config)
        rows = measure(opts, entry, task, pretrained, variants)
        pretrained.conclude()
        print(f"{results.summary(rows, width=None if opts.verbose else width())}\n\nresults: {opts.results}")
