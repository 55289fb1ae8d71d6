"""What training and testing build alike: encoder, data, queries, the run's folder."""

import time
from pathlib import Path

import numpy as np
import torch

from avs_s4 import demo_scenes
from avs_s4.query import Query
from avs_s4.scenes import S4
from dataset.features import SHAPES
from dataset.text import TextFeatures, read_prompts
from engine import checkpoint
from engine.run_folder import Run
from errors import InputError


def new_run(opts, direction, facts):
    """A new folder <log_dir>/<session>_<direction>_<YYYYmmdd-HHMMSS>, and its log (log/log.txt, options, curves)."""
    while True:
        folder = Path(opts.log_dir) / f"{opts.session_name}_{direction}_{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            folder.mkdir(parents=True)
            return folder, Run(folder / "log", {**opts.resolved(), **facts})
        except FileExistsError:             # another run of this very second
            time.sleep(1)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another --log_dir") from error


def known_run(opts, folder, state, facts):
    """The folder of a run that goes on (train_resume.find), and its log."""
    return folder, Run(folder / "log", {**opts.resolved(), **facts}, state["records"])


def load_encoder(path, device):
    """The frozen encoder of a pretraining checkpoint, and the hash of its file."""
    return checkpoint.load_encoder(path, device=device, dtype=torch.float32), checkpoint.sha256(path)


def require_modalities(encoder, direction, path):
    """InputError unless the encoder was pretrained on both modalities of a direction."""
    known = encoder.config.modalities
    lacking = [modality for modality in direction if modality not in known]
    if lacking:
        raise InputError(f"{path}: pretrained on {', '.join(known)}; this direction needs {lacking[0]} as well; pass "
                         "another --checkpoint or --direction")
    if "audio" in direction and encoder.config.audio_dim != SHAPES["audio"][0]:
        raise InputError(f"{path}: takes audio of width {encoder.config.audio_dim}; the sounds here have "
                         f"{SHAPES['audio'][0]}; pass another --checkpoint")


def open_split(opts, split, size, modalities):
    """One split of the data set; with the demo preset its scenes are made first if they are not there."""
    if opts.preset == "demo":
        demo_scenes.build(opts.data_root)
    name = demo_scenes.NAME if opts.preset == "demo" else "AVSBench-S4"
    return S4(opts.paths("avs"), split, size, modalities, name)


def build_query(opts, encoder, adapter, dataset, modalities, selection=None):
    """Query of an encoder and an adapter; the class sentences are looked up by their text, once.

    Args:
        selection: model.toc.Selection of code channels; None for all.

    Raises:
        InputError: a class without a sentence, a sentence without word vectors.
    """
    words = None
    if "text" in modalities:
        paths = opts.paths("avs")
        prompts = read_prompts(paths["prompts"])
        unknown = [name for name in dataset.classes if name not in prompts]
        if unknown:
            raise InputError(f"{paths['prompts']}: no sentence for class '{unknown[0]}' of {paths['csv']} "
                             f"({len(unknown)} of {len(dataset.classes)} lack one); add it or correct the class name")
        features = TextFeatures(paths["text"])
        words = torch.from_numpy(np.stack([features[prompts[name]] for name in dataset.classes])).to(opts.device)
    return Query(encoder, adapter.to(opts.device), words, dropout=opts.protocol == "released",
                 selection=selection).eval()
