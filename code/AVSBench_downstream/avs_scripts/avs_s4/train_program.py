"""Run train.py: train a segmentation network with queries of one modality."""

import logging
import time

import builders
import network_files
import train_resume
import training
from evaluation import clip_codes
from network import published
from network.avs import AVSNetwork, NetworkConfig
from network.backbones import load_weights
from query import Adapter, Query
from settings import DIRECTIONS, Learning, affects_results

from cmg.data.layout import DATA_PATHS
from cmg.data.sets.avs_s4 import S4
from cmg.downstream.task import Pretrained
from cmg.downstream.toc import selection_of
from cmg.models.toc import head_channels
from cmg.results.provenance import source_commit
from cmg.training.run_logger import RunLogger, seed_everything
from cmg.utils import settings as declare
from cmg.utils.errors import absolute
from cmg.utils.files import file_lock


def main(opts):
    began = time.time()
    learning, modalities = declare.read(Learning, opts), DIRECTIONS[opts.direction]
    pretrained = Pretrained.load(opts.checkpoint, opts.device, "float32")
    builders.require_modalities(pretrained, modalities)
    selection = None if opts.choose_channel is None else selection_of(opts, opts.choose_channel)
    channels = head_channels(pretrained.encoder.codebooks, selection)        # checked before any work
    settings = affects_results(opts, pretrained.sha256)
    folders = builders.RunFolders(opts.log_dir, opts.session_name, opts.direction)
    unfinished = train_resume.find(opts.resume, folders, settings)
    data = builders.data_name(opts.preset == "demo", opts.data_root, DATA_PATHS)
    train_set, val_set = (S4(opts.paths("avs"), split, opts.image_size, modalities, data) for split in ("train", "val"))
    builders.require_fit(pretrained, train_set)

    seed_everything(opts.seed)
    adapter = Adapter("torch" if learning.released else opts.adapter_start).to(opts.device)
    query = Query(pretrained.encoder, adapter, train_set.words, learning.released, channels)
    network = AVSNetwork(NetworkConfig(
        opts.visual_backbone, tuple(opts.tpavi_stages), opts.tpavi_vv_flag, opts.tpavi_va_flag, query.width,
        opts.channels, opts.tpavi_norm_start))
    load_weights(network.backbone, opts.backbone_weights)
    if opts.weights:
        state = published.read_state(absolute(opts.weights))
        published.load_published(network, state.get("network", state), opts.weights)
    network.to(opts.device)
    if opts.align_start == "whitened":
        network.decoder.whiten(clip_codes(query, modalities[0], train_set.queries()).flatten(0, 1))

    folder = unfinished.folder if unfinished else folders.create()
    log_folder = RunLogger(folder / "log", {**opts.resolved(), "commit": source_commit(),
                                      "encoder_sha256": pretrained.sha256}, unfinished and unfinished.records)
    builders.warn_of_features(pretrained, opts.paths("avs"), modalities)
    logging.info(f"{len(train_set)} training and {len(val_set)} validation clips, {len(train_set.classes)} classes; "
                 f"{sum(p.numel() for p in network.parameters()):,} parameters; trained with {modalities[0]}, tested "
                 f"with {modalities[1]}")
    trained = network_files.Trained(network, adapter, opts.direction, opts.image_size, opts.protocol,
                                    pretrained.sha256, opts.seed, selection, channels)
    with file_lock(folder / ".lock", "omit --resume"):
        chosen = training.fit(trained, query, train_set, val_set, modalities, learning, settings, folder, log_folder)
    log_folder.close()
    for kind, choice in chosen.items():
        logging.info("%s: epoch %d, validation mIoU %.1f", network_files.FILES[kind], choice["epoch"],
                     100 * choice["mIoU"])
    logging.info(f"done in {time.time() - began:.0f} s: {folder}")
