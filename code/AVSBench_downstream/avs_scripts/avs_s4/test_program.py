"""Run test.py: test a segmentation network with several kinds of queries."""

import logging
import time
from pathlib import Path

import builders
import evaluation
import network_files
import report
import torch
from query import Adapter, Query
from settings import DIRECTIONS, Conditions, Testing

from cmg.data.fingerprint import combined, fingerprint, how_checked
from cmg.data.layout import DATA_PATHS
from cmg.data.sets.avs_s4 import S4
from cmg.downstream import toc
from cmg.downstream.task import Pretrained
from cmg.results import provenance, rows
from cmg.training.run_logger import RunLogger, seed_everything
from cmg.utils import settings
from cmg.utils.console import width
from cmg.utils.errors import InputError
from cmg.utils.files import sha256


def newest_weights(folders):
    """The newest finished run among RunFolders; InputError if there is none."""
    found = folders.newest("checkpoints/last.pth")
    if found is None:
        raise InputError(f"{folders.log_dir}: no finished run {folders.session}_{folders.direction}_*; train first, or "
                         "pass --weights")
    return found


def all_codes(query, dataset, modalities, seed):
    """Codes of all clips for every kind of query: name -> (n, 5, width).

    Args:
        query: Query.
        dataset: S4.
        modalities: modalities of the queries in (training, testing).
        seed: seed of the shuffled queries.
    """
    (source, target), inputs = modalities, dataset.queries()
    codes = {"target": evaluation.clip_codes(query, target, inputs)}
    codes["zero"] = torch.zeros_like(codes["target"])
    codes["shuffled"] = evaluation.shuffled(codes["target"], seed)
    if source != target:
        codes["source"] = evaluation.clip_codes(query, source, inputs)
    return codes


def main(opts):
    began = time.time()
    testing = settings.read(Testing, opts)
    expected = settings.read(Conditions, opts, tpavi_stages=opts.tpavi_stages)
    opts.weights = opts.weights or newest_weights(
        builders.RunFolders(opts.train_log_dir, opts.session_name, opts.direction or "??"))
    files = network_files.files_of(opts.weights)
    pretrained = Pretrained.load(opts.checkpoint, opts.device, "float32")
    tested, folder = {}, None
    for kind, path in files.items():
        trained = network_files.load(path, expected, opts.protocol, pretrained.sha256, pretrained.encoder.codebooks)
        if folder is None:              # all files of a run have the same settings
            modalities = DIRECTIONS[trained.direction]
            builders.require_modalities(pretrained, modalities)
            data = builders.data_name(opts.preset == "demo", opts.data_root, DATA_PATHS)
            dataset = S4(opts.paths("avs"), "test", trained.image_size, modalities, data)
            builders.require_fit(pretrained, dataset)
            batches = evaluation.loader(dataset, testing.test_batch_size, testing.num_workers)
            folder = builders.RunFolders(opts.log_dir, opts.session_name, trained.direction).create()
            log_folder = RunLogger(folder / "log", {**opts.resolved(), "commit": provenance.source_commit(),
                                              "encoder_sha256": pretrained.sha256})
            builders.warn_of_features(pretrained, opts.paths("avs"), modalities)
        same = next((row for row in tested.values() if row[0] == trained.epoch), None)
        if same:                        # best, last and source are often the same network
            tested[kind] = same
            continue
        seed_everything(opts.seed)
        if trained.adapter is None:
            logging.warning(f"{path}: has no adapter; using a random one (seed {opts.seed}), as published")
            trained.adapter = Adapter("torch")
        query = Query(pretrained.encoder, trained.adapter.to(opts.device), dataset.words, testing.released,
                      trained.channels).eval()
        pictures = report.Pictures(
            dataset, folder / "pred_masks" if testing.save_pred_mask and not tested else None,
            0 if tested else testing.overlays, modalities[1], testing.released)
        tested[kind] = trained.epoch, evaluation.evaluate(
            trained.network.to(opts.device), batches, all_codes(query, dataset, modalities, opts.seed), pictures.add)
        if pictures.shown:
            figure = opts.figure_dir / f"avs_{opts.session_name}_{modalities[0]}_to_{modalities[1]}.png"
            pictures.draw(figure, f"{dataset.name}, {modalities[0]} -> {modalities[1]}, {path.name}")
            logging.info(f"overlays: {figure}")

    path = opts.results or folder / "results.jsonl"
    contents = {name: fingerprint(path) for name, path in opts.data_paths(("avs",)).items()}
    contents = {name: found for name, found in contents.items() if found}
    record = provenance.write(Path(path).parent, provenance.collect(
        opts.resolved(), opts.device, opts.data_paths(("avs",)), fingerprints=contents))
    lines = report.result_lines(tested, modalities, opts.protocol, {
        "task": "avs", "dataset": dataset.name, "seed": opts.seed if trained.seed is None else trained.seed,
        "protocol": opts.protocol, "modalities": list(pretrained.encoder.config.modalities),
        "checkpoint": str(opts.checkpoint), "checkpoint_sha256": pretrained.sha256,
        "commit": provenance.source_commit(), "seconds": round(time.time() - began, 1),
        "test_batch_size": testing.test_batch_size,
        "backbone": trained.network.config.backbone, "weights": str(opts.weights), "clips": len(dataset),
        "provenance": record, "variant": toc.variant_name(trained.selection),
        "data": combined({name: found.sha256 for name, found in contents.items()}),
        "data_checked": how_checked(contents.values())})
    batch = {"test_batch_size": testing.test_batch_size} if testing.released else {}       # values are means of batches
    for line in lines:
        line["settings"] = {"network": sha256(files[line["selection"]])[:16], **batch}
        rows.append(path, line)
    logging.info(f"\n{rows.summary(lines, width=width())}\n\nresults: {path}")
    log_folder.close()
