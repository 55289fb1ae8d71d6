"""Checkpoints: published files in, published files out, and everything else that a run needs to go on.

A file is a dict of the published sections (systems/published.py), the published optimiser sections, `epoch`,
`total_step`, and `run`: what only our program reads (random state, position, options). `python -m engine.checkpoint
FILE` describes a file.
"""

import hashlib
import pickle
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from atomic_write import whole_file
from errors import InputError, Parser, run
from systems import published
from systems.frozen import FrozenEncoder
from systems.h_dcid import build

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Loaded:
    """A pretraining file, read and checked."""

    path: Path
    model: object               # DCID, in the dtype that was asked for
    unused: dict                # published tensors that nobody reads, kept for writing the file again
    contents: dict              # the raw file
    epoch: int = -1
    total_step: int = 0
    complete: bool = True       # all sections for training are there
    missing: list = field(default_factory=list)


def sha256(path):
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path, contents):
    """Write a file whole or not at all."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(contents, file)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__     # torch's writer hides a full disk
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0][:120]
        raise InputError(f"{path}: could not be written ({reason}); free space or choose another folder, what was "
                         "there before is untouched") from error


def read(path, mmap=False):
    """The dict in a checkpoint file, tensors on the CPU. Only plain data is unpickled.

    Args:
        mmap: leave tensors on disk until they are used, to look at the rest of a large file.

    Raises:
        InputError: no such file, not a checkpoint, truncated, or holding anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a checkpoint, make one with pretrain.sh or name another "
                         "(--checkpoint)")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise InputError(f"{path}: holds more than tensors and plain values, which could run code; it was not "
                             "loaded, use a file from a source that you trust") from error
        raise InputError(f"{path}: not a checkpoint of torch.save; download or write it again") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise InputError(f"{path}: truncated or not a checkpoint of torch.save ({type(error).__name__}); download or "
                         "write it again") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path}: holds a {type(contents).__name__}; expected a dict of sections such as "
                         f"{published.ENCODER}")
    return contents


def shapes(config):
    """Our name -> shape of every parameter and buffer of a system, without allocating it."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}


def open_file(path, dtype=torch.float32, spatial_attention="sum"):
    """Read a pretraining file, published or ours, into a model; sections for training may be missing."""
    contents = read(path)
    try:
        _require_sections(contents)
        config = replace(published.infer(contents), spatial_attention=spatial_attention)
        _require_sizes(config)
        expected = shapes(config)
        tensors = published.layout(config, expected)
        required = [published.ENCODER] + ([published.LSTM] if "text" in config.modalities else [])
        state, unused = published.from_published(contents, tensors, required)
    except InputError as error:
        raise InputError(f"{path}: {error}; the file is damaged or of another program") from None
    with torch.device("meta"):
        model = build(config)
    missing = [section for section in published.sections(config, expected) if section not in contents]
    fresh = build(config).state_dict() if missing else {}
    model.load_state_dict({name: state.get(name, fresh.get(name)).to(dtype, copy=True) for name in expected},
                          assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    epoch, step = contents.get("epoch", -1), contents.get("total_step", 0)
    if not isinstance(epoch, int) or not isinstance(step, int):
        raise InputError(f"{path}: epoch and total_step are {epoch!r} and {step!r}; expected integers")
    return Loaded(Path(path), model, unused, contents, epoch, step, not missing, missing)


def _is_plain(x):
    """Is this a tensor with numbers of its own, neither sparse nor without data?"""
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_meta


def _require_sections(contents):
    """InputError unless every section of parameters is a dict from names to values, tensors being plain ones."""
    for name, section in contents.items():
        if str(name).endswith("_parameters"):
            if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
                raise InputError(f"section {name} is no dict from names to tensors")
            for key, value in section.items():
                if isinstance(value, torch.Tensor) and not _is_plain(value):
                    raise InputError(f"{name}.{key} is a sparse or special tensor; expected a plain one")


def _require_sizes(config):
    """InputError for widths that no network can have; tensors may have any shape."""
    sizes = {name: size for name, size in config.to_dict().items() if isinstance(size, int)}
    least = min(sizes, key=sizes.get)
    if sizes[least] < 1 or config.code_dim % config.num_heads:
        raise InputError(f"{least} is {sizes[least]}, code_dim {config.code_dim}; expected at least 1, and a code_dim "
                         f"divisible by {config.num_heads}")


def load_encoder(path, device="cpu", dtype=torch.float32):
    """The frozen encoder of a pretraining file, on `device`."""
    loaded = open_file(path, dtype)
    return FrozenEncoder(loaded.model.encoder, loaded.epoch).to(device)


def untrained_like(encoder, seed):
    """The control of every table: an encoder of the same shape with fresh weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(encoder.config)
        for level in fresh.encoder.levels:  # codes on the scale of its features, else every second takes one code
            level.codebook.embedding.normal_()
    return FrozenEncoder(fresh.encoder.to(encoder.codebooks[0])).to(encoder.codebooks[0].device)


def optimizer_sections(config, model, optimizers):
    """Optimiser state under the published names and parameter numbers.

    Args:
        optimizers: "main" and every MI section -> torch optimiser that holds our parameters.
    """
    tensors = published.layout(config, {n: v.shape for n, v in model.state_dict().items()})
    parameters = dict(model.named_parameters())
    result = {}
    for name, optimizer in optimizers.items():
        order = _published_order(tensors, name)
        state = {}
        for number, tensor in enumerate(order):
            own = optimizer.state.get(parameters[tensor.ours[0]]) if tensor.ours else None
            if own:
                state[number] = {key: own[key].detach().cpu() for key in ADAM_STATE}
        group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        group |= {"fused": None, "foreach": None, "capturable": False}      # choices of this machine, not of the run
        result["optimizer" if name == "main" else published.MI_OPTIMIZERS[name]] = {
            "state": state, "param_groups": [group | {"params": list(range(len(order)))}]}
    return result


def load_optimizers(loaded, optimizers):
    """Put the file's optimiser sections into `optimizers` (as in `optimizer_sections`)."""
    model, config = loaded.model, loaded.model.config
    tensors = published.layout(config, {n: v.shape for n, v in model.state_dict().items()})
    parameters = dict(model.named_parameters())
    for name, optimizer in optimizers.items():
        section = "optimizer" if name == "main" else published.MI_OPTIMIZERS[name]
        try:
            stored = loaded.contents[section]["state"]
            groups = loaded.contents[section]["param_groups"]
            order = _published_order(tensors, name)
            if len(groups) != 1 or len(groups[0]["params"]) != len(order):
                raise InputError(f"{loaded.path}: {section} is for {sum(len(g['params']) for g in groups)} parameters; "
                                 f"expected one group of {len(order)}; this file cannot be resumed")
            for number, own in stored.items():
                tensor = order[number]
                if not tensor.ours:
                    continue
                parameter = parameters[tensor.ours[0]]
                moments = own["exp_avg"], own["exp_avg_sq"]
                step = torch.as_tensor(own["step"], dtype=torch.float32)
                if step.shape or not all(_is_plain(x) and x.shape == parameter.shape for x in moments):
                    raise InputError(f"{loaded.path}: {section} has state of another shape or kind for {tensor.key}; "
                                     "it is damaged: this file cannot be resumed")
                on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
                optimizer.state[parameter] = {
                    "step": step.to(parameter.device if on_device else "cpu", copy=True),
                    # laid out in memory as the parameter is: the fused kernels walk through both side by side
                    "exp_avg": torch.empty_like(parameter.detach()).copy_(own["exp_avg"]),
                    "exp_avg_sq": torch.empty_like(parameter.detach()).copy_(own["exp_avg_sq"])}
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise InputError(f"{loaded.path}: section {section} is missing or not an Adam state ({error}); "
                             "this file cannot be resumed") from error


def _published_order(tensors, name):
    """Published parameters of one optimiser in the order in which it numbers them."""
    wanted = published.MAIN_OPTIMIZER if name == "main" else (name,)
    return [t for section in wanted for t in tensors if t.section == section and not t.is_buffer]


def pack(model, optimizers, unused, epoch, total_step, run_state, dtype=torch.float32):
    """The dict of a pretraining file: published sections in `dtype`, optimisers, position, and our `run` state."""
    state = model.state_dict()
    tensors = published.layout(model.config, {n: v.shape for n, v in state.items()})
    contents = published.to_published(state, tensors, unused, dtype)
    contents |= optimizer_sections(model.config, model, optimizers)
    return contents | {"epoch": epoch, "total_step": total_step, "run": run_state}


def describe(path):
    """What a file is, as lines of text."""
    loaded = open_file(path, torch.float64)
    config, model = loaded.model.config, loaded.model
    stored = [n for s in published.sections(config, shapes(config)) if s not in loaded.missing
              for n in published.sections(config, shapes(config))[s]]
    parameters = dict(model.named_parameters())
    dead = [key for key in loaded.unused]
    dead += [t.key for t in published.layout(config, shapes(config))
             if t.ours and ("affine_video" in t.key or "ave_v_att" in t.key)]
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for s in loaded.contents.values() if isinstance(s, dict)
                     for v in s.values() if isinstance(v, torch.Tensor)})
    lines = [f"file            {path}", f"system          {config.system} ({config.num_levels} level(s))",
             f"modalities      {', '.join(config.modalities)}",
             f"codes           K = {config.num_codes}, D = {config.code_dim}",
             "widths          " + ", ".join(f"{k} {v}" for k, v in config.to_dict().items() if k.endswith("dim")),
             f"layers          {config.num_layers} a temporal encoder",
             f"epoch, step     {loaded.epoch}, {loaded.total_step}",
             f"stored as       {', '.join(dtypes)}",
             f"parameters      {sum(parameters[n].numel() for n in stored):,}",
             f"missing         {', '.join(loaded.missing) or 'nothing: training can go on from it'}",
             f"dead tensors    {len(dead)} (stored, read by nobody)"]
    for number, level in enumerate(model.encoder.levels):
        lines.append(f"codebook {number + 1}      {codebook_health(level.codebook)}")
    return lines


def codebook_health(codebook):
    """Codes in use and perplexity of the EMA counts, as text."""
    count = codebook.ema_count.double().clamp_min(0)
    share = count / count.sum().clamp_min(1e-12)
    perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
    recent = (codebook.unactivated_count >= 0) & (codebook.unactivated_count < 100)
    return (f"{int(recent.sum())} of {len(count)} codes used in the last 100 passes, "
            f"perplexity of the moving counts {float(perplexity):.1f}, "
            f"{int((codebook.embedding.norm(dim=1) < 1e-6).sum())} codes at zero")


def main(argv=None):
    parser = Parser(prog="engine.checkpoint", description="Describe a pretraining checkpoint, published or ours.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an input error")
    print("\n".join(describe(parser.parse_args(argv).file)))


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
