"""Train a segmentation network on AVSBench-S4 with queries of one modality (paper: A2T, T2A).

    python train.py --direction at --checkpoint DCID-model-5.pt --visual_backbone pvt \\
        --backbone_weights pvt_v2_b5.pth --tpavi_stages 0 1 2 3 --tpavi_va_flag --max_epoches 15

The run folder below --log_dir receives settings, log, curves and checkpoints/{best,last,best_source}.pth.
"""

import logging
import sys
import time
from dataclasses import astuple
from pathlib import Path

if __name__ == "__main__":              # not this folder itself: its `model` would hide the one of code/src
    HERE = Path(__file__).resolve().parent
    sys.path[:1] = [str(HERE.parent), str(HERE.parents[2] / "src")]

from avs_s4 import builders, network_files, train_resume, training
from avs_s4.evaluation import clip_codes
from avs_s4.network import published
from avs_s4.network.avs import AVSNetwork, NetworkConfig
from avs_s4.network.backbones import load_weights
from avs_s4.query import Adapter
from avs_s4.settings import parse_train
from engine.provenance import source_commit
from engine.run_folder import seed_everything
from engine.transfer.toc_variants import selection_of
from errors import run


def main(argv=None):
    began, opts = time.time(), parse_train(argv)
    modalities = opts.source, opts.target
    encoder, encoder_sha256 = builders.load_encoder(opts.checkpoint, opts.device)
    builders.require_modalities(encoder, modalities, opts.checkpoint)
    selection = None if opts.choose_channel is None else selection_of(opts, opts.choose_channel)
    if selection:                           # refused before any work
        selection.counts(encoder.config.code_dim)
    resumed = train_resume.find(opts, encoder_sha256)
    train_set = builders.open_split(opts, "train", opts.image_size, modalities)
    val_set = builders.open_split(opts, "val", opts.image_size, modalities)

    seed_everything(opts.seed)
    adapter = Adapter("torch" if opts.protocol == "released" else opts.adapter_start)
    query = builders.build_query(opts, encoder, adapter, train_set, modalities, selection)
    network = AVSNetwork(NetworkConfig(
        opts.visual_backbone, tuple(opts.tpavi_stages), opts.tpavi_vv_flag, opts.tpavi_va_flag, query.width,
        opts.channels, opts.tpavi_norm_start))
    load_weights(network.backbone, opts.backbone_weights)
    if opts.weights:
        state = published.read_state(opts.weights)
        published.load_published(network, state.get("network", state), opts.weights)
    network.to(opts.device)
    if opts.align_start == "whitened":
        codes = clip_codes(query, opts.source, train_set.queries(), opts.device)
        for stage in network.decoder.stages:
            getattr(network.decoder, f"tpavi_b{stage + 1}").whiten(codes.flatten(0, 1))

    facts = {"direction": opts.direction, "image_size": opts.image_size, "protocol": opts.protocol, "seed": opts.seed,
             "toc": selection and list(astuple(selection)), "encoder_sha256": encoder_sha256}
    known = {"commit": source_commit(), "encoder_sha256": encoder_sha256}
    folder, log = (builders.known_run(opts, *resumed, known) if resumed
                   else builders.new_run(opts, opts.direction, known))
    logging.info(f"{len(train_set)} training and {len(val_set)} validation clips, {len(train_set.classes)} classes; "
                 f"{sum(p.numel() for p in network.parameters()):,} parameters; trained with {opts.source}, tested "
                 f"with {opts.target}")
    chosen = training.fit(network, query, train_set, val_set, opts, facts, folder, log, resumed and resumed[1])
    log.close()
    for kind, choice in chosen.items():
        logging.info("%s: epoch %d, validation mIoU %.1f", network_files.FILES[kind], choice["epoch"],
                     100 * choice["mIoU"])
    logging.info(f"done in {time.time() - began:.0f} s: {folder}")


if __name__ == "__main__":
    run(main)
