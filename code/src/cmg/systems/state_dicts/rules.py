"""Translation of published checkpoint files: their names to ours and back, and the sizes that their tensors tell.

A published file is a dict of sections, each a state dict. A system's table `KEY_RULES` (for example
cmg/systems/state_dicts/dcid.py) lists them in published order, which is also the order in which a published optimiser section
numbers its parameters. What training optimises or clips does not depend on it. Tensors of ours without a published
name lie in the section `EXTRA_SECTION`, under our names.
"""

import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch

from cmg.models.config import MODALITIES, numbers, short, with_numbers
from cmg.utils.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)      # others can be stored, not computed with
EXTRA_SECTION = "own_parameters"
ENCODER = "Encoder_parameters"
LSTM, LSTMS = "Text_ar_lstm_parameters", "{M}_ar_lstm_parameters"
DECODER = "Decoder_parameters"
# Classes whose parameters have published names. Those of any other class, a subclass with the same attribute names too,
# are stored under our names: they are not what a published program would take them for.
PUBLISHED_CLASSES = {f"cmg.{name}" for name in (
    "losses.club.CLUB", "losses.cross_cpc.CrossCPC", "models.codebook.Codebook", "models.decoders.LinearDecoder",
    "models.decoders.MapDecoder", "models.encoders.LinearSpecificEncoder", "models.encoders.MapSemanticEncoder",
    "models.encoders.MapSpecificEncoder", "models.encoders.ResidualBlock", "models.encoders.TemporalEncoder",
    "models.map_conv.MapConv", "models.map_conv.MapConvTranspose", "systems.codaar.BatchNorm", "systems.codaar.Encoder",
    "systems.codaar.MapConvStack", "systems.codaar.RowDecoder", "systems.codaar.RowTable", "systems.dcid.Encoder",
    "systems.dcid.Level", "systems.dcid.Objective", "systems.fcid.ClipEncoder", "systems.fcid.Encoder")}


@dataclass(frozen=True)
class KeyRule:
    """One line of a table: all tensors below a published prefix.

    Attributes:
        section: of the file; {M} stands for a modality.
        theirs, ours: prefixes. {m}, {M}, {l} stand for a modality ("video", "Video", "v"), {i} for a Transformer layer,
            * in `ours` for the levels whose buffers are stacked in one published tensor. Where a modality has no
            tensors below `ours`, as it is of another kind, the part has none of it.
        modalities: in published order, * for all that are not published; empty where the part belongs to none.
        is_dead: stored in published files and read by nobody; `ours` then gives the shapes.
        shapes: of a dead part that no part of ours is like: config -> {rest of the name: shape}.
    """

    section: str
    theirs: str
    ours: str = ""
    modalities: str = ""
    is_dead: bool = False
    shapes: object = None


@dataclass(frozen=True)
class Tensor:
    """One published tensor: where it stands, its shape, our names (several where levels are stacked)."""

    section: str
    key: str
    shape: tuple
    ours: tuple             # () for a dead tensor
    modality: str = ""
    is_buffer: bool = False
    is_whole: bool = False  # whole numbers, not floating-point ones


def expand(patterns, modalities):
    """A dict of names with {m} or {M} in them -> those of the modalities, in place of each: ("video", "Video")."""
    return {key.format(m=m, M=m.capitalize()): value.format(m=m, M=m.capitalize())
            for key, value in patterns.items() for m in (modalities if "{" in key else modalities[:1])}


def transformer(section, theirs, ours, modalities):
    """The table lines of a temporal encoder: Linear, layers, and the template layer that published files hold."""
    return [KeyRule(section, theirs + "encoder_layer.", ours + "layers.0.", modalities, is_dead=True),
            KeyRule(section, theirs + "encoder.layers.{i}.", ours + "layers.{i}.", modalities),
            KeyRule(section, theirs + "affine_matrix.", ours + "affine.", modalities)]


def temporal(section, theirs, ours, modalities):
    """The temporal encoders of modalities of any kind: that of maps lies below their pooling."""
    return [part for below in ("temporal.", "") for part in transformer(section, theirs, ours + below, modalities)]


# ------------------------------------------------------------------------------------------------------- the tensors
@lru_cache(maxsize=64)
def meta(system, config):
    """A system of this size without memory behind it, for the names, shapes and dtypes of its tensors."""
    with torch.device("meta"):
        return system(config)


@lru_cache(maxsize=64)
def layout(system, config):
    """Every `Tensor` of a published file, in published order.

    Args:
        system: class of the system.
        config: its sizes.
    """
    made = meta(system, config)
    ours = {name: value for name, value in made.state_dict().items() if _is_published(made, name)}
    buffers = {name for name, _ in made.named_buffers()}
    tensors = []
    for block in _blocks(system.KEY_RULES):
        for modality in _named(block[0].modalities, config) if block[0].modalities else [""]:
            for part in block:
                names = {"m": modality, "M": modality.capitalize(), "l": modality and short(modality)}
                part = replace(part, section=part.section.format(**names))
                for i in range(config.num_layers) if "{i}" in part.theirs else (0,):
                    tensors += _tensors(part, modality, part.theirs.format(i=i, **names),
                                        part.ours.format(i=i, **names), config, ours, buffers)
    return tuple(tensors)


def _is_published(system, name):
    """Is every module on the way to a tensor, torch's own aside, of a class whose parameters have published names?"""
    module = system
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        kind = type(module)
        if not kind.__module__.startswith("torch.") and f"{kind.__module__}.{kind.__qualname__}" not in PUBLISHED_CLASSES:
            return False
    return True


def _named(modalities, config):
    """Those of a config that a part names, in its order."""
    named = modalities.split()
    others = [m for m in config.modalities if m not in MODALITIES] if "*" in named else []
    return [m for m in named if m in config.modalities] + others


def _blocks(parts):
    """Neighbouring lines of the same module and modalities, such as those of a Transformer: one modality after the
    other goes through all of them."""
    blocks = []
    for part in parts:
        module = part.theirs.split(".")[0] if "{" in part.theirs else "" if "{" in part.section else part
        stem = part.section, part.modalities, module
        if blocks and stem == blocks[-1][0]:
            blocks[-1][1].append(part)
        else:
            blocks.append((stem, [part]))
    return [block for _, block in blocks]


def _tensors(part, modality, theirs, prefix, config, ours, buffers):
    """The tensors below one published prefix; `ours`: our name -> tensor."""
    if part.shapes:
        return [Tensor(part.section, theirs + rest, shape, (), modality)
                for rest, shape in part.shapes(config).items()]
    first = prefix.replace("*", "0")
    levels = 1
    while "*" in prefix and any(name.startswith(prefix.replace("*", str(levels))) for name in ours):
        levels += 1
    stack = (levels,) if levels > 1 else ()
    found = []
    for name, value in ours.items():
        if name.startswith(first):
            rest = name[len(first):]
            names = () if part.is_dead else tuple(prefix.replace("*", str(n)) + rest for n in range(levels))
            found.append(Tensor(part.section, theirs + rest, stack + tuple(value.shape), names, modality,
                                name in buffers, not value.is_floating_point()))
    return found


def our_names(system):
    """Our names of everything that a system has a published name for, in published order."""
    return [name for tensor in layout(type(system), system.config) for name in tensor.ours]


def own_names(system):
    """Our names of parameters and buffers without a published name."""
    known = set(our_names(system))
    return [name for name in system.state_dict() if name not in known]


# --------------------------------------------------------------------------------------------- what a file must be of
def recognise(sections, systems):
    """(class, config) of a published file, read off its names and shapes.

    Modalities and layers are those that most of their tensors are there for, every size the one that most tensors
    agree on: a single tensor that is missing or misshapen decides nothing, and `from_published` then names it.

    Args:
        sections: section -> state dict.
        systems: classes, preferred in this order where names are equal.
    Raises:
        InputError: the section of the encoder is missing, or no system is like this file.
    """
    if not isinstance(sections.get(ENCODER), dict):
        raise InputError(f"section {ENCODER} is missing; expected a pretraining checkpoint of "
                         f"{', '.join(system.label for system in systems if system.KEY_RULES)}")
    keys = {(section, key) for section, content in sections.items() if isinstance(content, dict)
            and str(section).endswith("_parameters") and section != EXTRA_SECTION for key in content}

    def unlike(system):
        """Encoder tensors of one side only, and other tensors of the file only."""
        known = {(t.section, t.key) for t in layout(system, _structure(system, keys))}
        return len(keys - known) + len([key for key in known - keys if key[0] == ENCODER])
    system = min((system for system in systems if system.KEY_RULES), key=unlike)
    config = _structure(system, keys)
    if len(config.modalities) < 2:
        raise InputError(f"{ENCODER} holds encoders of {', '.join(config.modalities) or 'no modality'}; expected two "
                         "modalities or more")
    return system, _sizes(system, config, sections)


def _structure(system, keys):
    """Config of the published sizes with the modalities and the layers that the names show."""
    layers = Counter(int(found.group(1)) for _, key in keys if (found := re.search(r"\.layers\.(\d+)\.", key)))
    config = system.Config()
    if layers:
        config = replace(config, num_layers=1 + max(i for i, count in layers.items() if count > 1 or i == 0))
    of_modality = {m: [(t.section, t.key) in keys for t in layout(system, config)
                       if t.modality == m and t.section == ENCODER] for m in config.modalities}
    return config.with_modalities(tuple(m for m, there in of_modality.items() if 2 * sum(there) > len(there)))


def _sizes(system, config, sections):
    """`config` with every size that the tensors of a file tell: the one that most of them agree on."""
    settings = {(f.name,) for f in fields(config) if f.metadata}                       # no published tensor's
    usual = {name: size for name, size in numbers(config).items()
             if name not in settings | {("num_layers",), ("num_heads",)}}
    # sizes that differ from each other, multiples of the heads: the shape of a tensor then says what each axis is
    probe = {name: config.num_heads * (1009 + 2 * number) for number, name in enumerate(usual)}
    name_of = {size: name for name, size in probe.items()}
    votes = {name: Counter() for name in usual}
    for tensor in layout(system, with_numbers(config, probe)):
        value = sections.get(tensor.section, {}).get(tensor.key)
        if isinstance(value, torch.Tensor) and value.ndim == len(tensor.shape):
            for size, found in zip(tensor.shape, value.shape):
                if size in name_of:
                    votes[name_of[size]][found] += 1
    return with_numbers(config, {name: max(counts, key=lambda size: (counts[size], size == usual[name]))
                                 for name, counts in votes.items() if counts})


# -------------------------------------------------------------------------------------------------------- translation
def from_published(sections, tensors, required):
    """Published sections -> our state dict and the dead tensors, (state, unused).

    Args:
        sections: section -> state dict.
        tensors: `layout` of the system.
        required: sections that must be there; others are read where present.

    Raises:
        InputError: naming the section or key that is missing, unknown, or of which shape.
    """
    state, unused = {}, {}
    expected = {(t.section, t.key) for t in tensors}
    present = {t.section for t in tensors if isinstance(sections.get(t.section), dict)}
    for section in required:
        if section not in present:
            raise InputError(f"section {section} is missing")
    unknown = [(section, key) for section in sections if section in present for key in sections[section]
               if (section, key) not in expected]
    there = [tensor for tensor in tensors if tensor.section in present]
    for tensor in there:                        # names and shapes of all of them before any value is read
        value = sections[tensor.section].get(tensor.key)
        if value is None:
            renamed = next((f", but an unknown key {key}" for section, key in unknown if section == tensor.section), "")
            raise InputError(f"{tensor.section} has no key {tensor.key}{renamed}; expected shape {list(tensor.shape)}")
        require_shape(f"{tensor.section}.{tensor.key}", value, tensor.shape)
    if unknown:
        raise InputError(f"{unknown[0][0]} has an unknown key {unknown[0][1]}")
    for tensor in there:
        value = sections[tensor.section][tensor.key]
        require_numbers(f"{tensor.section}.{tensor.key}", value, tensor.is_whole)
        if not tensor.ours:
            unused[f"{tensor.section}.{tensor.key}"] = value
        for name, part in zip(tensor.ours, value if len(tensor.ours) > 1 else (value,)):
            state[name] = part
    return state, unused


def require_shape(name, value, shape):
    """InputError unless `value` is a tensor of this shape."""
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != tuple(shape):
        found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"{name} has shape {found}; expected {list(shape)}")


def is_plain(x):
    """Is this a tensor with data of its own, neither sparse nor quantised?"""
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and not (x.is_meta or x.is_quantized)


def require_plain(name, value):
    """InputError unless a tensor is a plain one with numbers of its own, no view of fewer."""
    if not is_plain(value):
        raise InputError(f"{name} is a sparse or special tensor; expected a plain one")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{name} is {tuple(value.shape)} of fewer numbers than that; expected a tensor with numbers "
                         "of its own")


def require_numbers(name, value, is_whole=False):
    """InputError unless a tensor holds finite numbers, floating-point or whole ones."""
    is_known = value.dtype in FLOATS or is_whole and not (value.is_floating_point() or value.is_complex())
    if not is_known or not torch.isfinite(value).all():
        raise InputError(f"{name} holds values that are not finite floating-point numbers")


def to_published(state, tensors, unused, dtype):
    """Our state dict -> published sections; dead tensors from `unused`, zeros where there are none.

    Args:
        dtype: of the floating-point tensors; counters of whole numbers keep theirs.
    """
    result = {}
    for tensor in tensors:
        if not tensor.ours:
            value = unused.get(f"{tensor.section}.{tensor.key}", torch.zeros(tensor.shape))
        elif len(tensor.ours) > 1:
            value = torch.stack([state[name] for name in tensor.ours])
        else:
            value = state[tensor.ours[0]]
        result.setdefault(tensor.section, {})[tensor.key] = stored(value, dtype)
    return result


def stored(value, dtype):
    """A copy on the CPU as files keep it: floating-point numbers in `dtype`."""
    return value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True)
