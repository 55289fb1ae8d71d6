"""Export of a checkpoint's encoder as safetensors, config.json and a model card, which cmg/checkpoints/hub.py reads.

    python -m cmg.checkpoints export DCID-model-5.pt --out dcid --results Exps/ave/results.jsonl
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from safetensors.torch import save

from cmg.checkpoints import checkpoint
from cmg.checkpoints.hub import CARD, CONFIG, FORMAT, WEIGHTS, locate
from cmg.report import tables
from cmg.results import rows as results
from cmg.results.provenance import source_commit
from cmg.training.run_state import is_identity
from cmg.utils import files
from cmg.utils.console import one_line
from cmg.utils.errors import InputError
from cmg.utils.files import atomic_output

MARKUP = re.compile(r"[&<`|\\]|(?<=\])\(|://|www\.")      # the first character is escaped as an entity
INPUTS = {"vector": "one vector per second", "map": "one feature map per second", "tokens": "vectors of words"}
EXAMPLES = {("audio", "vector"): " of the sound, such as VGGish's", ("video", "map"): ", such as VGG-19's"}


def export(path: str | PathLike[str], out: str | PathLike[str], results_files: Sequence[str | PathLike[str]] = (),
           name: str | None = None) -> list[Path]:
    """Export a checkpoint's encoder to the folder `out`; returns the paths of the files.

    Optimizers, decoders and everything else that only training needs are omitted. config.json is written last and
    contains the hash of the weights, so that an incomplete folder is rejected.

    Args:
        path: checkpoint, published or ours, or a folder of them (the one with the most steps is used).
        out: folder.
        results_files: results.jsonl files; rows of this checkpoint are included in the model card.
        name: name under which the card loads it; default: that of the folder.

    Raises:
        InputError: the checkpoint is missing, the results have no row of it, or the folder cannot be written.
    """
    path = locate(path)
    loaded, sha256 = checkpoint.open_file(path), files.sha256(path)
    rows = [row for row in results.read(*results_files) if row["checkpoint_sha256"] == sha256]
    if results_files and not rows:
        raise InputError(f"{', '.join(map(str, results_files))}: no result of {path} (SHA-256 {sha256[:12]}...); "
                         "evaluate this file, or pass its results")
    encoder, folder = loaded.system.encoder, Path(out)
    weights = save({name: value.contiguous() for name, value in encoder.state_dict().items()})
    about = {"format": FORMAT, "config": checkpoint.config_to_dict(loaded.system), "epoch": loaded.epoch,
             "total_step": loaded.total_step, "weights_sha256": hashlib.sha256(weights).hexdigest(),
             "checkpoint_sha256": sha256, "exported_by_commit": source_commit(), "features": loaded.feature_origins,
             "data": _pretraining_data(loaded)}
    written = {WEIGHTS: weights, CARD: _card(loaded, about, rows, name or folder.name).encode(),
               CONFIG: (json.dumps(about, indent=1) + "\n").encode()}
    for name, content in written.items():
        with atomic_output(folder / name, remedy="choose another --out") as file:
            file.write(content)
    return [folder / name for name in written]


def copy(folder: Path, out: str | PathLike[str], name: str) -> None:
    """Copy an exported folder to the folder `out`, with a card that loads it under another name."""
    for file in (WEIGHTS, CONFIG):
        shutil.copy(folder / file, out)
    text = (folder / CARD).read_text(encoding="utf-8")
    (Path(out) / CARD).write_text(re.sub(r'cmg\.load\("[^"]*"\)', f'cmg.load("{name}")', text), encoding="utf-8")


def _pretraining_data(loaded):
    """Identity of the pretraining clips stored in the checkpoint (run_state.identify); None if unknown."""
    run = loaded.contents.get("run") or {}
    return run["clips"] if isinstance(run, dict) and is_identity(run.get("clips")) else None


def _card(loaded, about, rows, name):
    """The model card: description, usage, results and provenance."""
    system, config = loaded.system, loaded.system.config
    run = loaded.contents.get("run")
    options = run.get("options") if isinstance(run, dict) else None
    options = options if isinstance(options, dict) else {}
    inputs = "\n".join(f"* {m}: {INPUTS[config.kind(m)]}{EXAMPLES.get((m, config.kind(m)), '')}, `{config.axes(m)}`"
                       for m in config.modalities)
    training = ", ".join(f"{key} {value}" for key, value in options.items()) or "not stored in the checkpoint"
    sizes = ", ".join(f"{name} {size}" for name, size in config.to_dict().items() if isinstance(size, int))
    measured = _measured(rows) if rows else "No results were named when this was exported."
    data = str(options.get("dataset_name", "not stored in the checkpoint"))
    if about["data"]:
        data = f"{results.pretrained_on(about['data'].get('origin'), data)}, {about['data']['number']:,} clips"
    return f"""---
library_name: cmg
tags: [cross-modal-generalization, vector-quantization, {', '.join(config.modalities)}]
---
# {_plain(name)}: {system.label} encoder of {', '.join(config.modalities)}

Turns features of {', '.join(config.modalities)} into codes of {_codebooks(system)}. A head that is trained on the codes
of one modality works, without further training, on those of another.

```python
import cmg
encoder = cmg.load({json.dumps(one_line(name))})                   # this folder, or its name on the hub
codes = encoder.embed("{config.modalities[0]}", x)     # codes.vectors (B, T, {system.encoder.head_dim}), codes.indices
```

Inputs, float32:

{inputs}

## Measured

{measured}

## Training

Data: {_plain(data)}. {about['epoch'] + 1} epochs, {about['total_step']} steps. Settings: {_plain(training)}.
Sizes: {sizes}.

Exported from the checkpoint with SHA-256 `{about['checkpoint_sha256']}` by commit `{about['exported_by_commit']}`.
"""


def _measured(rows):
    """A small table with one column per direction and, for each dataset and its main metric, a line for the encoder,
    an untrained encoder, and chance."""
    rows = [row for row in rows if row["selection"] == "last" and row["control"] in (None, "untrained")
            and row["metric"] == tables.main_metric(row["task"], rows)]
    found = {}                                      # measured -> line -> direction -> values of all seeds
    for row in rows:
        title = _plain(", ".join(filter(None, (results.tested_on(row), row["metric"], row.get("variant")))))
        title += " (protocol released)" if row["protocol"] == "released" else ""
        lines = found.setdefault((row["task"], title), {title: {}, "with an untrained encoder": {}, "chance": {}})
        line = title if row["control"] is None else "with an untrained encoder"
        direction = _plain(row["direction"])
        lines[line].setdefault(direction, []).append(row["value"])
        lines["chance"].setdefault(direction, []).append(results.mean_std([row["chance"]])[0])
    directions = list(dict.fromkeys(_plain(row["direction"]) for row in rows))
    table = [{"": line} | {d: results.show(values.get(d, [])[:1] if line == "chance" else values.get(d, []))
                           for d in directions} for lines in found.values() for line, values in lines.items() if values]
    return f"{results.render(table, ('', *directions), 'markdown')}\n\n{results.caption(rows)}"


def _codebooks(system):
    sizes = " and ".join(f"{len(codes)} codes" for codes in system.encoder.codebooks)
    return f"{'one codebook' if len(system.encoder.codebooks) == 1 else 'codebooks'} ({sizes})"


def _plain(text):
    """Escape untrusted text for one line of Markdown: no line ends, which could start a section, and no HTML, code,
    table cells, links or images."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", one_line(text))
