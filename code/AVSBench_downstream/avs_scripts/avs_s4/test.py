"""Test a segmentation network on AVSBench-S4 with the other modality's queries, its own, zero and shuffled ones.

    python test.py --checkpoint DCID-model-5.pt --weights train_logs/S4_pvt_at_20250101-120000 --test_batch_size 4

Settings come from the trained file. The run folder below --log_dir receives log, results.jsonl and, on request, masks;
the figure with overlays goes to --figure_dir.
"""

import logging
import sys
import time
from pathlib import Path

if __name__ == "__main__":              # not this folder itself: its `model` would hide the one of code/src
    HERE = Path(__file__).resolve().parent
    sys.path[:1] = [str(HERE.parent), str(HERE.parents[2] / "src")]

import torch

from avs_s4 import builders, evaluation, network_files, report
from avs_s4.query import Adapter
from avs_s4.settings import DIRECTIONS, parse_test
from engine import provenance, results
from engine.run_folder import seed_everything
from engine.transfer import toc_variants
from errors import run


def variants(query, dataset, direction, opts):
    """Codes of all clips under every kind of query: variant -> (n, 5, width)."""
    source, target = direction
    inputs = dataset.queries()
    codes = {"target": evaluation.clip_codes(query, target, inputs, opts.device)}
    codes["zero"] = torch.zeros_like(codes["target"])
    codes["shuffled"] = evaluation.shuffled(codes["target"], opts.seed)
    if source != target:
        codes["source"] = evaluation.clip_codes(query, source, inputs, opts.device)
    return codes


def main(argv=None):
    began, opts = time.time(), parse_test(argv)
    files = network_files.files_of(opts.weights)
    encoder, encoder_sha256 = builders.load_encoder(opts.checkpoint, opts.device)
    tested, folder = {}, None
    for kind, path in files.items():
        network, adapter, facts = network_files.load(path, opts, encoder_sha256, encoder.codebooks)
        if folder is None:              # all files of a run have the same settings
            direction = DIRECTIONS[facts["direction"]]
            builders.require_modalities(encoder, direction, opts.checkpoint)
            dataset = builders.open_split(opts, "test", facts["image_size"], direction)
            batches = evaluation.loader(dataset, opts.test_batch_size, opts.num_workers)
            folder, log = builders.new_run(opts, facts["direction"], {
                "commit": provenance.source_commit(), "encoder_sha256": encoder_sha256})
        same = next((row for row in tested.values() if row[0] == facts["epoch"]), None)
        if same:                        # best, last and source are often one network
            tested[kind] = same
            continue
        seed_everything(opts.seed)
        if adapter is None:
            logging.warning(f"{path}: holds no adapter; a fresh one is used (seed {opts.seed}), as published")
            adapter = Adapter("torch")
        query = builders.build_query(opts, encoder, adapter, dataset, direction, facts.get("toc"))
        pictures = report.Pictures(
            dataset, None if tested or not opts.save_pred_mask else folder / "pred_masks",
            0 if tested else opts.overlays, f"{direction[1]}", opts.protocol == "released")
        tested[kind] = facts["epoch"], evaluation.evaluate(
            network.to(opts.device), batches, variants(query, dataset, direction, opts), opts.device, logging.warning,
            pictures.take)
        if pictures.shown:
            figure = opts.figure_dir / f"avs_{opts.session_name}_{direction[0]}_to_{direction[1]}.png"
            pictures.draw(figure, f"{dataset.name}, {direction[0]} -> {direction[1]}, {path.name}")
            logging.info(f"overlays: {figure}")

    path = opts.results or folder / "results.jsonl"
    record = provenance.write(Path(path).parent, provenance.collect(
        opts.resolved(), opts.device, opts.places(("avs",))))
    lines = report.result_lines(tested, direction, opts.protocol, {
        "task": "avs", "dataset": dataset.name, "seed": facts.get("seed", opts.seed), "protocol": opts.protocol,
        "modalities": list(encoder.config.modalities), "checkpoint": str(opts.checkpoint),
        "checkpoint_sha256": encoder_sha256, "commit": provenance.source_commit(),
        "seconds": round(time.time() - began, 1),
        "test_batch_size": opts.test_batch_size, "backbone": network.config.backbone, "weights": str(opts.weights),
        "clips": len(dataset), "provenance": record, "variant": toc_variants.title(facts.get("toc"))})
    for line in lines:
        results.append(path, line)
    logging.info(f"\n{results.summary(lines)}\n\nresults: {path}")
    log.close()


if __name__ == "__main__":
    run(main)
