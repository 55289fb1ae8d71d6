"""Translation between published checkpoint files and our state dicts, and inference of sizes from published tensors.

A published file is a dict of sections, each a state dict. A system's table `KEY_RULES` (for example in
cmg/systems/state_dicts/dcid.py) lists their tensors in published order, which published optimizer sections also use to
number their parameters. It does not affect what training optimizes or clips. Tensors without a published name are
stored in the section `EXTRA_SECTION`, under our names.
"""

import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import groupby

import torch

from cmg.models.config import MODALITIES, numbers, short, with_numbers
from cmg.utils.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)      # supported dtypes
EXTRA_SECTION = "own_parameters"
ENCODER = "Encoder_parameters"
LSTM, LSTMS = "Text_ar_lstm_parameters", "{M}_ar_lstm_parameters"
DECODER = "Decoder_parameters"
# Classes whose parameters have published names. Those of all other classes, including subclasses with the same
# attribute names, are stored under our names, because published programs would misinterpret them.
PUBLISHED_CLASSES = {f"cmg.{name}" for name in (
    "losses.club.CLUB", "losses.cross_cpc.CrossCPC", "models.codebook.Codebook", "models.decoders.LinearDecoder",
    "models.decoders.MapDecoder", "models.encoders.LinearSpecificEncoder", "models.encoders.MapSemanticEncoder",
    "models.encoders.MapSpecificEncoder", "models.encoders.ResidualBlock", "models.encoders.TemporalEncoder",
    "models.map_conv.MapConv", "models.map_conv.MapConvTranspose", "systems.codaar.BatchNorm", "systems.codaar.Encoder",
    "systems.codaar.MapConvStack", "systems.codaar.RowDecoder", "systems.codaar.RowTable", "systems.dcid.Encoder",
    "systems.dcid.Level", "systems.dcid.Objective", "systems.fcid.ClipEncoder", "systems.fcid.Encoder")}


@dataclass(frozen=True)
class KeyRule:
    """One rule of a table: all tensors below a published prefix.

    Attributes:
        section: section of the file; {M} stands for a modality.
        theirs, ours: prefixes of names. {m}, {M}, {l} stand for a modality ("video", "Video", "v"), {i} for a
            Transformer layer, * in `ours` for the levels whose buffers are stacked in one published tensor. The rule is
            skipped for modalities of another kind, which have no tensors below `ours`.
        modalities: in published order, * for all unpublished ones; empty if the rule belongs to no modality.
        is_dead: stored in published files, but unused; `ours` then gives the shapes.
        shapes: for unused tensors without a counterpart in ours: config -> {rest of the name: shape}.
    """

    section: str
    theirs: str
    ours: str = ""
    modalities: str = ""
    is_dead: bool = False
    shapes: object = None


@dataclass(frozen=True)
class Tensor:
    """One published tensor: its section, key and shape, and our names (several if levels are stacked)."""

    section: str
    key: str
    shape: tuple
    ours: tuple             # () for an unused tensor
    modality: str = ""
    is_buffer: bool = False
    is_integer: bool = False


def expand(patterns, modalities):
    """Expand {m} and {M} in a dict of names to every modality ("video", "Video")."""
    return {key.format(m=m, M=m.capitalize()): value.format(m=m, M=m.capitalize())
            for key, value in patterns.items() for m in (modalities if "{" in key else modalities[:1])}


def key_rules(section, theirs, ours, modalities, names):
    """A KeyRule for each of `names`, published name -> our name, below the prefixes `theirs` and `ours`."""
    return [KeyRule(section, theirs + published, ours + name, modalities) for published, name in names.items()]


def transformer(section, theirs, ours, modalities):
    """Rules of a temporal encoder: linear layer, Transformer layers, and the template layer in published files."""
    return [KeyRule(section, theirs + "encoder_layer.", ours + "layers.0.", modalities, is_dead=True),
            KeyRule(section, theirs + "encoder.layers.{i}.", ours + "layers.{i}.", modalities),
            KeyRule(section, theirs + "affine_matrix.", ours + "affine.", modalities)]


def temporal(section, theirs, ours, modalities):
    """Rules of the temporal encoders of every kind of modality; for maps, it is nested under their pooling."""
    return [rule for below in ("temporal.", "") for rule in transformer(section, theirs, ours + below, modalities)]


# ------------------------------------------------------------------------------------------------------- the tensors
@lru_cache(maxsize=64)
def meta(system, config):
    """A system on the meta device, for the names, shapes and dtypes of its tensors."""
    with torch.device("meta"):
        return system(config)


@lru_cache(maxsize=64)
def layout(system, config):
    """Every `Tensor` of a published file, in published order.

    Args:
        system: class of the system.
        config: its sizes.

    Returns:
        tuple of Tensor.
    """
    built = meta(system, config)
    ours = {name: value for name, value in built.state_dict().items() if _is_published(built, name)}
    buffers = {name for name, _ in built.named_buffers()}
    tensors = []
    for _, block in groupby(system.KEY_RULES, _block):
        block = list(block)
        for modality in _modalities_of(block[0], config):
            for rule in block:
                names = {"m": modality, "M": modality.capitalize(), "l": modality and short(modality)}
                rule = replace(rule, section=rule.section.format(**names))
                for i in range(config.num_layers) if "{i}" in rule.theirs else (0,):
                    tensors += _tensors(rule, modality, rule.theirs.format(i=i, **names),
                                        rule.ours.format(i=i, **names), config, ours, buffers)
    return tuple(tensors)


def _is_published(system, name):
    """Whether all modules on the path to a tensor, except for torch's own, are of PUBLISHED_CLASSES."""
    module = system
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if not kind.startswith("torch.") and kind not in PUBLISHED_CLASSES:
            return False
    return True


def _modalities_of(rule, config):
    """The modalities of a config that a rule applies to, in its order; [""] if it belongs to no modality."""
    names = rule.modalities.split()
    others = [m for m in config.modalities if m not in MODALITIES] if "*" in names else []
    return [m for m in names if m in config.modalities] + others if names else [""]


def _block(rule):
    """Key of a block of adjacent rules, such as those of a Transformer: published files list all tensors of a block for
    one modality before those of the next."""
    module = rule.theirs.split(".")[0] if "{" in rule.theirs else "" if "{" in rule.section else rule
    return rule.section, rule.modalities, module


def _tensors(rule, modality, theirs, prefix, config, ours, buffers):
    """The tensors below one published prefix; `ours`: our name -> tensor."""
    if rule.shapes:
        return [Tensor(rule.section, theirs + rest, shape, (), modality) for rest, shape in rule.shapes(config).items()]
    first = prefix.replace("*", "0")
    levels = 1
    while "*" in prefix and any(name.startswith(prefix.replace("*", str(levels))) for name in ours):
        levels += 1
    stack = (levels,) if levels > 1 else ()
    found = []
    for name, value in ours.items():
        if name.startswith(first):
            rest = name[len(first):]
            names = () if rule.is_dead else tuple(prefix.replace("*", str(n)) + rest for n in range(levels))
            found.append(Tensor(rule.section, theirs + rest, stack + tuple(value.shape), names, modality,
                                name in buffers, not value.is_floating_point()))
    return found


def our_names(system):
    """Our names of all tensors of a system that have a published name, in published order."""
    return [name for tensor in layout(type(system), system.config) for name in tensor.ours]


def own_names(system):
    """Our names of parameters and buffers without a published name."""
    known = set(our_names(system))
    return [name for name in system.state_dict() if name not in known]


# ------------------------------------------------------------------------------------- inference of system and sizes
def infer_config(sections, systems):
    """Infer the system and the sizes of a published file from the names and shapes of its tensors.

    A modality or layer counts if most of its tensors are present, and every size is the one that most tensors agree on.
    A single missing or misshapen tensor therefore does not change the result; `from_published` reports it.

    Args:
        sections: section -> state dict.
        systems: classes of systems; ties go to the first.

    Returns:
        (class of the system, its config).

    Raises:
        InputError: the section of the encoder is missing, or there are fewer than two modalities.
    """
    if not isinstance(sections.get(ENCODER), dict):
        raise InputError(f"section {ENCODER} is missing; expected a pretraining checkpoint of "
                         f"{', '.join(system.label for system in systems if system.KEY_RULES)}")
    keys = {(section, key) for section, content in sections.items() if isinstance(content, dict)
            and str(section).endswith("_parameters") and section != EXTRA_SECTION for key in content}

    def mismatches(system):
        """Numbers of encoder tensors that only one side has, and of other tensors that only the file has."""
        known = {(t.section, t.key) for t in layout(system, _structure(system, keys))}
        return len(keys - known) + len([key for key in known - keys if key[0] == ENCODER])
    system = min((system for system in systems if system.KEY_RULES), key=mismatches)
    config = _structure(system, keys)
    if len(config.modalities) < 2:
        raise InputError(f"{ENCODER} holds encoders of {', '.join(config.modalities) or 'no modality'}; expected two "
                         "or more modalities")
    return system, _sizes(system, config, sections)


def _structure(system, keys):
    """Config with the published sizes, and with modalities and layers inferred from the names of the tensors."""
    layers = Counter(int(found.group(1)) for _, key in keys if (found := re.search(r"\.layers\.(\d+)\.", key)))
    config = system.Config()
    if layers:
        config = replace(config, num_layers=1 + max(i for i, count in layers.items() if count > 1 or i == 0))
    present = {m: [(t.section, t.key) in keys for t in layout(system, config)
                   if t.modality == m and t.section == ENCODER] for m in config.modalities}
    return config.with_modalities(tuple(m for m, flags in present.items() if 2 * sum(flags) > len(flags)))


def _sizes(system, config, sections):
    """`config` with every size inferred from the tensors of a file, as the one that most of them agree on."""
    settings = {(f.name,) for f in fields(config) if f.metadata}        # no published tensor depends on these
    usual = {name: size for name, size in numbers(config).items()
             if name not in settings | {("num_layers",), ("num_heads",)}}
    # distinct sizes, multiples of the number of heads: the shape of a tensor then identifies the size of each axis
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
    """Translate published sections to our state dict.

    Args:
        sections: section -> state dict.
        tensors: `layout` of the system.
        required: sections that must be present; others are optional.

    Returns:
        (state dict, unused tensors by "section.key").

    Raises:
        InputError: a section or key is missing or unknown, or has another shape or dtype.
    """
    state, unused = {}, {}
    expected = {(t.section, t.key) for t in tensors}
    present = {t.section for t in tensors if isinstance(sections.get(t.section), dict)}
    for section in required:
        if section not in present:
            raise InputError(f"section {section} is missing")
    unknown = [(section, key) for section in sections if section in present for key in sections[section]
               if (section, key) not in expected]
    expected_here = [tensor for tensor in tensors if tensor.section in present]
    for tensor in expected_here:               # names and shapes of all tensors before any value is read
        value = sections[tensor.section].get(tensor.key)
        if value is None and not tensor.ours:
            continue                            # our checkpoints omit unused tensors
        if value is None:
            renamed = next((f", but an unknown key {key}" for section, key in unknown if section == tensor.section), "")
            raise InputError(f"{tensor.section} has no key {tensor.key}{renamed}; expected shape {list(tensor.shape)}")
        require_shape(f"{tensor.section}.{tensor.key}", value, tensor.shape)
    if unknown:
        raise InputError(f"{unknown[0][0]} has an unknown key {unknown[0][1]}")
    for tensor in expected_here:
        if tensor.key not in sections[tensor.section]:
            continue
        value = sections[tensor.section][tensor.key]
        require_numbers(f"{tensor.section}.{tensor.key}", value, tensor.is_integer)
        if not tensor.ours:
            unused[f"{tensor.section}.{tensor.key}"] = value
        for name, part in zip(tensor.ours, value if len(tensor.ours) > 1 else (value,)):
            state[name] = part
    return state, unused


def require_shape(name, value, shape):
    """Raise InputError unless `value` is a tensor of this shape."""
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != tuple(shape):
        found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"{name} has shape {found}; expected {list(shape)}")


def is_plain(x):
    """Whether this is a dense tensor with data, neither quantized nor on the meta device."""
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and not (x.is_meta or x.is_quantized)


def require_plain(name, value):
    """Raise InputError unless a tensor is dense and stores all of its elements (an expanded view does not)."""
    if not is_plain(value):
        raise InputError(f"{name} is a sparse or special tensor; expected a plain one")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{name} has shape {tuple(value.shape)} but stores fewer elements; expected a tensor that "
                         "stores all of them")


def require_numbers(name, value, is_integer=False):
    """Raise InputError unless a tensor holds finite floating-point numbers, or integers if `is_integer`."""
    is_known = value.dtype in FLOATS or is_integer and not (value.is_floating_point() or value.is_complex())
    if not is_known or not torch.isfinite(value).all():
        raise InputError(f"{name} holds values that are not finite floating-point numbers")


def to_published(state, tensors, unused, dtype):
    """Translate our state dict to published sections, section -> state dict.

    Args:
        state: our state dict.
        tensors: `layout` of the system.
        unused: unused published tensors by "section.key", as returned by `from_published`; zeros are stored for the
            others. If None, unused tensors are omitted.
        dtype: dtype of floating-point tensors; integers keep theirs.
    """
    result = {}
    for tensor in tensors if unused is not None else [tensor for tensor in tensors if tensor.ours]:
        if not tensor.ours:
            value = unused.get(f"{tensor.section}.{tensor.key}", torch.zeros(tensor.shape))
        elif len(tensor.ours) > 1:
            value = torch.stack([state[name] for name in tensor.ours])
        else:
            value = state[tensor.ours[0]]
        result.setdefault(tensor.section, {})[tensor.key] = stored(value, dtype)
    return result


def with_unused(sections, tensors):
    """Published sections in which missing unused tensors are filled with zeros and all tensors are in published order,
    as the strict loading of the published programs expects."""
    result = dict(sections)
    for section in {tensor.section: None for tensor in tensors if tensor.section in sections}:
        found = sections[section]
        like = next(value for value in found.values() if value.is_floating_point())
        result[section] = {tensor.key: found[tensor.key] if tensor.key in found else like.new_zeros(tensor.shape)
                           for tensor in tensors if tensor.section == section}
    return result


def stored(value, dtype):
    """Copy of a tensor on the CPU, as stored in files, with floating-point numbers in `dtype`."""
    return value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True)
