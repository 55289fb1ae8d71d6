"""An encoder as others can use it: a folder of safetensors, config.json and a model card, here or on the Hugging Face
hub; and `load_encoder`, which takes such a folder, its name on the hub, or a checkpoint of torch.save.

    python -m engine.checkpoint export DCID-model-5.pt --out dcid --results Exps/ave/results.jsonl
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from atomic_write import output_file
from engine import checkpoint, results
from engine.provenance import source_commit
from errors import InputError
from systems import published
from systems.base import FrozenEncoder

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1                      # of config.json
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LARGEST_CONFIG = 1 << 20        # bytes
INPUTS = {"audio": "log-mel features, one vector a second, `(B, T, {width})`",
          "video": "feature maps, one a second, `(B, T, 7, 7, {width})`",
          "text": "word vectors, `(B, L, {width})`"}


# -------------------------------------------------------------------------------------------------------------- loading
def locate(source, revision=None):
    """The file of weights that a name stands for, on this machine.

    Args:
        source: a checkpoint file, a folder that `export` wrote, its file of weights, or a name on the hub such as
            "somebody/dcid", which is downloaded once.
        revision: on the hub: branch, tag or commit.

    Raises:
        InputError: nothing of this name.
    """
    path = Path(source)
    if path.is_dir():
        return path / WEIGHTS
    if path.exists() or path.suffix in (".pt", ".pth", ".safetensors") or not HUB_NAME.fullmatch(str(source)):
        return path
    from huggingface_hub import snapshot_download  # here, because it takes a second that most calls need not wait
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[WEIGHTS, CONFIG])) / WEIGHTS
    except Exception as error:              # its errors are of many libraries: no network, no such name, no right
        raise InputError(f"{source}: no such file or folder, and the hub does not give it ({type(error).__name__}: "
                         f"{str(error).splitlines()[0][:120]}); check the name, the network and your token") from error


def load_encoder(source, device="cpu", dtype=torch.float32, zero_code0=False, revision=None):
    """The frozen encoder that a name stands for.

    Args:
        source, revision: see `locate`.
        device, dtype: of the encoder.
        zero_code0: see systems.base.FrozenEncoder.

    Raises:
        InputError: no such file, or a damaged one.
    """
    path = locate(source, revision)
    if path.suffix == ".safetensors":
        return _read(path, dtype, zero_code0).to(device)
    return checkpoint.load_encoder(path, device, dtype, zero_code0)


def _read(path, dtype, zero_code0):
    """The encoder of an exported folder, given its file of weights."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a folder with {WEIGHTS} and {CONFIG}, as python -m "
                         "engine.checkpoint export writes them")
    about = _config(path.with_name(CONFIG))
    if checkpoint.sha256(path) != about["weights_sha256"]:
        raise InputError(f"{path}: not the weights that {CONFIG} beside it was written with (SHA-256 differs); "
                         "download or export both again")
    try:
        kind, config = checkpoint.config_of({"config": about["config"]})
        checkpoint.require_sizes(config)
    except InputError as error:
        raise InputError(f"{path.with_name(CONFIG)}: {error}") from None
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a file of safetensors ({error}); download or export it again") from error
    with torch.device("meta"):
        encoder = kind(config).encoder
    expected = encoder.state_dict()
    for name in {**expected, **state}:
        try:
            if name not in expected:
                raise InputError(f"has an unknown tensor {name}")
            published.require_shape(name, state.get(name), expected[name].shape)
            published.require_numbers(name, state[name], not expected[name].is_floating_point())
        except InputError as error:
            raise InputError(f"{path}: {error}; it is damaged or of another version of this program") from None
    encoder.load_state_dict({name: value.to(dtype if value.is_floating_point() else value.dtype)
                             for name, value in state.items()}, assign=True)
    return FrozenEncoder(encoder, kind, about["epoch"], zero_code0)


def _config(path):
    """What config.json says, checked."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError("larger than any that this program writes")
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r:.20}, this program reads {FORMAT}")
        if not isinstance(about["config"], dict) or not isinstance(about["epoch"], int):
            raise ValueError("config or epoch of another kind")
        about["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: no description of an exported encoder ({type(error).__name__}: "
                         f"{str(error)[:100]}); export or download it again") from error
    return about


# ------------------------------------------------------------------------------------------------------------ exporting
def export(path, out, results_files=()):
    """Write a checkpoint's encoder to the folder `out`; returns the files.

    Optimisers, decoders and everything else that only training needs stay behind. config.json is written last and holds
    the hash of the weights: a folder that was not finished is refused.

    Args:
        path: checkpoint, published or ours.
        out: folder.
        results_files: results.jsonl whose rows of this checkpoint go into the model card.

    Raises:
        InputError: no checkpoint, no row of it in the results, or the folder cannot be written.
    """
    loaded, sha256 = checkpoint.open_file(path), checkpoint.sha256(path)
    rows = [row for file in results_files for row in results.read(file) if row["checkpoint_sha256"] == sha256]
    if results_files and not rows:
        raise InputError(f"{', '.join(map(str, results_files))}: no result of {path} (SHA-256 {sha256[:12]}...); "
                         "measure this file, or name the results of it")
    encoder, out = loaded.system.encoder, Path(out)
    weights = save({name: value.contiguous() for name, value in encoder.state_dict().items()})
    about = {"format": FORMAT, "config": checkpoint.config_to_dict(loaded.system), "epoch": loaded.epoch,
             "total_step": loaded.total_step, "weights_sha256": hashlib.sha256(weights).hexdigest(),
             "checkpoint_sha256": sha256, "exported_by_commit": source_commit()}
    written = {WEIGHTS: weights, CARD: _card(loaded, about, rows, out.name).encode(),
               CONFIG: (json.dumps(about, indent=1) + "\n").encode()}
    for name, content in written.items():
        with output_file(out / name, remedy="choose another --out") as file:
            file.write(content)
    return [out / name for name in written]


def _card(loaded, about, rows, name):
    """The model card: what it is, how to use it, what was measured, where it comes from."""
    system, config = loaded.system, loaded.system.config
    options = (loaded.contents.get("run") or {}).get("options", {})
    inputs = "\n".join(f"* {m}: {INPUTS[m].format(width=config.feature_dim(m))}" for m in config.modalities)
    training = ", ".join(f"{key} {value}" for key, value in options.items()) or "not stored in the checkpoint"
    sizes = ", ".join(f"{key} {value}" for key, value in asdict(config).items() if isinstance(value, int))
    measured = _plain(results.summary(rows, "markdown")) if rows else "No results were named when this was exported."
    return f"""---
library_name: cmg
tags: [cross-modal-generalization, vector-quantization, {', '.join(config.modalities)}]
---
# {_plain(name)}: {system.title} encoder of {', '.join(config.modalities)}

Turns features of {', '.join(config.modalities)} into codes of {_codebooks(system)}. A head that is trained on the codes
of one modality works, without further training, on those of another.

```python
import cmg
encoder = cmg.load("{_plain(name)}")                   # this folder, or its name on the hub
codes = encoder.embed("{config.modalities[0]}", x)     # codes.vectors (B, T, {system.encoder.head_dim}), codes.indices
```

Inputs, float32:

{inputs}

## Measured

{measured}

## Training

{about['epoch'] + 1} epochs, {about['total_step']} steps. Settings: {_plain(training)}. Sizes: {sizes}.

Exported from the checkpoint with SHA-256 `{about['checkpoint_sha256']}` by commit `{about['exported_by_commit']}`.
"""


def _codebooks(system):
    sizes = " and ".join(f"{len(codes)} codes" for codes in system.encoder.codebooks)
    return f"{'one codebook' if len(system.encoder.codebooks) == 1 else 'codebooks'} ({sizes})"


def _plain(text):
    """Text without HTML, as it stands in Markdown."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace("\\n", " ")
