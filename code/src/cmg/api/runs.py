"""The programs as Python functions: building the demo data, pretraining, and opening the clips of a downstream task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmg.api.encoder import FilePath
from cmg.api.state import plain_torch
from cmg.downstream.task import Task
from cmg.models.config import MODALITIES
from cmg.utils import arguments
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS


@plain_torch()
def pretrain(data_root: FilePath | None, out: FilePath, **options: Any) -> Path:
    """Pretrain a system, like pretrain.py.

    Args:
        data_root: folder of all data, laid out as in data/README.md or built by `build_demo`; None for your own data.
        out: folder for the checkpoints and for the run's folder `run` with metrics.jsonl, log.txt and TensorBoard
            files.
        options: options of pretrain.py (see its --help), for example system="dcid", n_epoch=2, batch_size=40,
            in_memory=True; dataset_name="custom", manifest="clips.csv", features={"audio": "audio", "video":
            "video.h5"}. None selects the default.

    Returns:
        Path of the last checkpoint, for `load`.

    Raises:
        InputError: data is missing, or an option does not exist.
    """
    from cmg.cli import LocalPaths
    from cmg.programs import entry
    from cmg.training.run_logger import random_state, restored_log, set_random_state
    folder = arguments.path(out, "pretrain: out")
    given = ["--model_save_path", str(folder), "--snapshot_pref", str(folder / "run")]
    given += [] if data_root is None else ["--data_root", str(arguments.path(data_root, "pretrain: data_root"))]
    for name, value in options.items():
        if isinstance(value, dict):
            given += [part for key, of in value.items() for part in (f"--{name}", f"{key}={of}")]
        elif value is not None and value is not False:
            values = value if isinstance(value, (list, tuple, range, np.ndarray)) else [value]
            given += [f"--{name}"] + ([] if value is True else [str(v) for v in values])
    generator = torch.Generator()
    before = random_state(generator)
    try:
        with restored_log():
            last: Path = entry.pretrain(given, LocalPaths())
            return last
    except SystemExit as end:
        raise InputError(f"pretrain: {end.__cause__ or 'not options of pretrain.py'}") from None
    finally:
        set_random_state(before, generator)         # the caller's state; the run seeds its own


@plain_torch()
def build_demo(root: FilePath, clips: int = 80) -> None:
    """Build the demo data below `root` unless it exists: digits as video, telephone tones as audio, sentences as text.

    Args:
        root: folder to create.
        clips: number of pretraining clips; the sizes of the tasks are proportional. The scripts' demo uses 2400.
    """
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    demo_tree.build(arguments.path(root, "build_demo: root"), DATA_PATHS,
                    clips=arguments.integer(clips, "build_demo: clips", 1, LIMITS.clips), progress=False)


@plain_torch()
def open_task(name: str, data_root: FilePath | None = None, modalities: Sequence[str] = ("audio", "video"),
              seconds: int = 10, *, manifest: FilePath | None = None,
              features: dict[str, FilePath] | None = None) -> Task:
    """Open the clips of a downstream task of the papers, or of your own data (code/docs/your-data.md).

    Args:
        name: "ave", "avvp", "ave_avvp", "ucf_vggsound" or "custom".
        data_root: folder of all data, laid out as in data/README.md.
        modalities: any of "audio", "video", "text".
        seconds: T; longer clips are truncated, shorter ones repeat their last second.
        manifest: csv of the clips, for "custom".
        features: modality -> path, for "custom"; all of them are opened.

    Returns:
        a cmg.downstream.task.Task. Its `train`, `val` and `test` map a modality to a dataset with `load("audio")` for
        all features (N, T, ...), `labels` (N, T, C + 1) and `classes`, the names, which are also in `task.classes`.
    """
    from cmg.data.layout import DATA_PATHS
    from cmg.data.manifest import CUSTOM
    from cmg.downstream.tasks import TASKS
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"{str(name)[:60]}: no such task; expected one of {', '.join(TASKS)}")
    seconds = arguments.integer(seconds, "open_task: seconds", 1, LIMITS.video_seconds)
    if isinstance(modalities, str) or not set(modalities) <= set(MODALITIES) or not modalities:
        raise InputError(f"open_task: modalities {modalities!r:.60}; expected some of {', '.join(MODALITIES)}, such as "
                         'modalities=("audio", "video")')
    if name == CUSTOM:
        if manifest is None or not features or not isinstance(features, dict):
            raise InputError('open_task("custom"): expected manifest=CSV and features={modality: path}; pass both')
        paths = {CUSTOM + ".manifest": arguments.path(manifest, "open_task: manifest"),
                 **{f"{CUSTOM}.{m}": arguments.path(of, f"open_task: features of {m}") for m, of in features.items()}}
        entry = TASKS[name].of(paths[CUSTOM + ".manifest"], dict.fromkeys(features))
        return entry.open(paths.__getitem__, entry.modalities, "default", on_bad_clip="error", in_memory=False,
                          seconds=seconds)
    if data_root is None:
        raise InputError(f'open_task("{name}"): expected data_root=FOLDER, laid out as in data/README.md; pass it')
    root = arguments.path(data_root, "open_task: data_root")
    return TASKS[name].open(lambda name: root / DATA_PATHS[name], tuple(modalities), "default",
                            on_bad_clip="error", in_memory=False, seconds=seconds)
