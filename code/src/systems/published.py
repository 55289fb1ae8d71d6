"""Published checkpoint names and ours: one table, used in both directions, and nothing else.

A published file is a dict of sections, each a state dict. `PARTS` maps (section, published prefix) to our prefix in
the published order, which is also the order of the parameters in a published optimiser section. {m} and {M} stand for
a modality ("video", "Video"). None marks tensors that are stored there and read by nobody.
"""

from dataclasses import dataclass, replace

import torch

from errors import InputError
from model.config import MODALITIES, Config

DEAD = None
NUM_CLASSES = 141               # of the clip classifiers in the published decoder, used by no loss

LSTM = "Text_ar_lstm_parameters"
ENCODER = "Encoder_parameters"
DECODER = "Decoder_parameters"

# (section, modalities in published order or "" for all, level, published prefix, our prefix)
PARTS = [
    (LSTM, "text", 0, "", "encoder.text_lstm."),
    (ENCODER, "video", 0, "Video_encoder.conv_stack.0.", "encoder.levels.0.specific.video.conv1."),
    (ENCODER, "video", 0, "Video_encoder.conv_stack.2.", "encoder.levels.0.specific.video.conv2."),
    (ENCODER, "video", 0, "Video_encoder.conv_stack.4.", "encoder.levels.0.specific.video.conv3."),
    (ENCODER, "video", 0, "Video_encoder.conv_stack.5.stack.0.res_block.1.",
     "encoder.levels.0.specific.video.residual.spread."),
    (ENCODER, "video", 0, "Video_encoder.conv_stack.5.stack.0.res_block.3.",
     "encoder.levels.0.specific.video.residual.mix."),
    (ENCODER, "video", 0, "Video_encoder.feed_forward.0.", "encoder.levels.0.specific.video.pool1."),
    (ENCODER, "video", 0, "Video_encoder.feed_forward.2.", "encoder.levels.0.specific.video.pool2."),
    (ENCODER, "audio", 0, "Audio_encoder.audio_linear.", "encoder.levels.0.specific.audio.linear."),
    (ENCODER, "text", 0, "Text_encoder.text_linear.", "encoder.levels.0.specific.text.linear."),
    (ENCODER, "video audio text", 1, "{M}_encoder_2.input_linear.", "encoder.levels.1.specific.{m}.linear."),
    (ENCODER, "", 0, "Cross_quantizer.", "encoder.levels.*.codebook."),
    (ENCODER, "video", 0, "video_semantic_encoder.se_layer.0.", "encoder.levels.0.semantic.video.squeeze."),
    (ENCODER, "video", 0, "video_semantic_encoder.se_layer.2.", "encoder.levels.0.semantic.video.excite."),
    (ENCODER, "video", 0, "video_semantic_encoder.affine_video_ave.",
     "encoder.levels.0.semantic.video.average_attention."),
    (ENCODER, "video", 0, "video_semantic_encoder.affine_video_self.",
     "encoder.levels.0.semantic.video.place_attention."),
    (ENCODER, "video", 0, "video_semantic_encoder.ave_v_att.", "encoder.levels.0.semantic.video.attention."),
    (ENCODER, "video text audio", 0, "{m}_self_att.", "encoder.levels.0.semantic.{m}."),
    (ENCODER, "video text audio", 1, "{m}_self_att_2.", "encoder.levels.1.semantic.{m}."),
    ("CPC_parameters", "video audio text", 0, "{m}_ar_lstm.", "objectives.0.cpc.lstm.{m}."),
    ("CPC_parameters", "video audio text", 0, "{m}_predictors.0.", "objectives.0.cpc.predictor.{m}."),
    ("CPC_2_parameters", "video audio text", 1, "{m}_ar_lstm.", "objectives.1.cpc.lstm.{m}."),
    ("CPC_2_parameters", "video audio text", 1, "{m}_predictors.0.", "objectives.1.cpc.predictor.{m}."),
    (DECODER, "video", 0, "Video_decoder.inverse_conv_block.0.", "objectives.0.decoders.video.deconv1."),
    (DECODER, "video", 0, "Video_decoder.inverse_conv_block.1.stack.0.res_block.1.",
     "objectives.0.decoders.video.residual.spread."),
    (DECODER, "video", 0, "Video_decoder.inverse_conv_block.1.stack.0.res_block.3.",
     "objectives.0.decoders.video.residual.mix."),
    (DECODER, "video", 0, "Video_decoder.inverse_conv_block.2.", "objectives.0.decoders.video.deconv2."),
    (DECODER, "video", 0, "Video_decoder.inverse_conv_block.4.", "objectives.0.decoders.video.deconv3."),
    (DECODER, "video", 0, "Video_decoder.video_linear.", "objectives.0.decoders.video.code_linear."),
    (DECODER, "audio", 0, "Audio_decoder.audio_rec.", "objectives.0.decoders.audio.reconstruct."),
    (DECODER, "audio", 0, "Audio_decoder.audio_linear.", "objectives.0.decoders.audio.code_linear."),
    (DECODER, "text", 0, "Text_decoder.text_rec.", "objectives.0.decoders.text.reconstruct."),
    (DECODER, "text", 0, "Text_decoder.text_linear.", "objectives.0.decoders.text.code_linear."),
    (DECODER, "video", 1, "Video_decoder_2.simple_rec.", "objectives.1.decoders.video.reconstruct."),
    (DECODER, "video", 1, "Video_decoder_2.simple_linear.", "objectives.1.decoders.video.code_linear."),
    (DECODER, "audio", 1, "Audio_decoder_2.simple_rec.", "objectives.1.decoders.audio.reconstruct."),
    (DECODER, "audio", 1, "Audio_decoder_2.simple_linear.", "objectives.1.decoders.audio.code_linear."),
    (DECODER, "text", 1, "Text_decoder_2.simple_rec.", "objectives.1.decoders.text.reconstruct."),
    (DECODER, "text", 1, "Text_decoder_2.simple_linear.", "objectives.1.decoders.text.code_linear."),
    (DECODER, "video text audio", 0, "{m}_semantic_decoder.", DEAD),
    ("Video_mi_net_parameters", "video", 0, "", "objectives.0.club.video."),
    ("Text_mi_net_parameters", "text", 0, "", "objectives.0.club.text."),
    ("Audio_mi_net_parameters", "audio", 0, "", "objectives.0.club.audio."),
    ("Video_mi_net_2_parameters", "video", 1, "", "objectives.1.club.video."),
    ("Text_mi_net_2_parameters", "text", 1, "", "objectives.1.club.text."),
    ("Audio_mi_net_2_parameters", "audio", 1, "", "objectives.1.club.audio."),
]

# What stands behind a prefix where our names and order differ; {i} runs over the Transformer layers.
TEMPORAL = [("encoder_layer.", DEAD, "layers.0."), ("encoder.layers.{i}.", "layers.{i}.", ""),
            ("affine_matrix.", "affine.", "")]
CLUB = [("p_mu.", "mean."), ("p_logvar.", "log_variance.")]
CODEBOOK = ("embedding", "ema_count", "ema_weight", "unactivated_count")

# Sections that one Adam holds, in its order; every other section has its own optimiser of the name given.
MAIN_OPTIMIZER = (LSTM, ENCODER, "CPC_parameters", "CPC_2_parameters", DECODER)
MI_OPTIMIZERS = {f"{M}_mi_net{suffix}_parameters": f"optimizer_{M.lower()}_mi_net{suffix}"
                 for suffix in ("", "_2") for M in ("Video", "Text", "Audio")}


@dataclass(frozen=True)
class Tensor:
    """One published tensor: where it stands, its shape, and our names (several where levels are stacked)."""

    section: str
    key: str
    shape: tuple
    ours: tuple             # () for a dead tensor
    is_buffer: bool = False


def _prefixes(section, theirs, ours, config):
    """Refine one prefix pair to pairs whose remaining names agree; third entry: whose shapes a dead prefix has."""
    if section == ENCODER and "_self_att" in theirs:
        temporal = ours + "temporal." if ours.endswith("0.semantic.video.") else ours
        for tail, name, like in TEMPORAL:
            for i in range(config.num_layers) if "{i}" in tail else (0,):
                yield (theirs + tail.format(i=i), None if name is DEAD else temporal + name.format(i=i),
                       temporal + like if name is DEAD else None)
    elif section.endswith("parameters") and "_mi_net" in section:
        for tail, name in CLUB:
            yield theirs + tail, ours + name, None
    else:
        yield theirs, ours, None


def layout(config, shapes):
    """Every tensor of a published file of this system, in published order.

    Args:
        config: the system.
        shapes: our name -> shape, of the model's parameters and buffers.
    """
    tensors = []
    for section, modalities, level, theirs, ours in PARTS:
        if level >= config.num_levels or (config.system != "dcid" and ours is DEAD):
            continue
        for m in modalities.split() or [""]:
            if m and m not in config.modalities:
                continue
            prefix = theirs.format(m=m, M=m.capitalize())
            if ours is DEAD:
                classes = {"linear": config.code_dim, "event_classifier": NUM_CLASSES}
                for name, width in classes.items():
                    tensors += [Tensor(section, f"{prefix}{name}.weight", (width, config.code_dim), ()),
                                Tensor(section, f"{prefix}{name}.bias", (width,), ())]
                continue
            if "*" in ours:
                for name in CODEBOOK:
                    names = tuple(ours.replace("*", str(n)) + name for n in range(config.num_levels))
                    stack = (config.num_levels,) if config.num_levels > 1 else ()
                    tensors.append(Tensor(section, prefix + name, stack + tuple(shapes[names[0]]), names, True))
                continue
            for their_prefix, our_prefix, like in _prefixes(section, prefix, ours.format(m=m), config):
                source = our_prefix or like
                for name, shape in shapes.items():
                    if name.startswith(source):
                        tensors.append(Tensor(section, their_prefix + name[len(source):], tuple(shape),
                                              (name,) if our_prefix else ()))
    return tensors


def sections(config, shapes):
    """Section -> our parameter names, in published order; what is clipped together and optimised together."""
    grouped = {}
    for tensor in layout(config, shapes):
        if not tensor.is_buffer:
            grouped.setdefault(tensor.section, []).extend(tensor.ours)
    return grouped


def infer(sections):
    """The config of a published file, read off its tensors. Raises InputError where a decisive one is missing."""
    encoder = sections.get(ENCODER)
    if not isinstance(encoder, dict):
        raise InputError(f"section {ENCODER} is missing; expected a pretraining checkpoint of DCID or H-DCID")

    def shape(section, key, rank):
        tensor = sections.get(section, {}).get(key)
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{section} has no tensor {key}; expected a pretraining checkpoint of DCID or H-DCID")
        if tensor.ndim != rank:
            raise InputError(f"{section}.{key} has shape {list(tensor.shape)}; expected {rank} dimensions")
        return tensor.shape

    modalities = tuple(m for m in MODALITIES if f"{m}_self_att.affine_matrix.weight" in encoder)
    if len(modalities) < 2:
        raise InputError(f"{ENCODER} holds semantic encoders of {list(modalities)}; expected two or three modalities")
    two_level = any("_self_att_2." in key for key in encoder)
    codes = shape(ENCODER, "Cross_quantizer.embedding", 3 if two_level else 2)
    first = f"{modalities[0]}_self_att.encoder.layers."
    config = Config(
        system="h_dcid" if two_level else "dcid", modalities=modalities, num_codes=codes[-2], code_dim=codes[-1],
        num_layers=len({key[len(first):].split(".")[0] for key in encoder if key.startswith(first)}),
        feed_forward=shape(ENCODER, first + "0.linear1.weight", 2)[0])
    if "audio" in modalities:
        config = replace(config, audio_dim=shape(ENCODER, "audio_self_att.affine_matrix.weight", 2)[1])
    if "text" in modalities:
        gates = shape(LSTM, "weight_ih_l0", 2)
        config = replace(config, text_dim=gates[1], text_hidden=gates[0] // 4)
    if "video" in modalities:
        hidden, width = shape(ENCODER, "Video_encoder.conv_stack.0.weight", 4)[:2]
        config = replace(
            config, video_dim=width, video_hidden=hidden,
            video_specific_dim=shape(ENCODER, "Video_encoder.conv_stack.2.weight", 4)[0],
            video_pool_hidden=shape(ENCODER, "Video_encoder.feed_forward.0.weight", 2)[0],
            squeeze_dim=shape(ENCODER, "video_semantic_encoder.se_layer.0.weight", 2)[0],
            attention_dim=shape(ENCODER, "video_semantic_encoder.ave_v_att.weight", 2)[1])
    for section in MI_OPTIMIZERS:
        if section in sections:
            config = replace(config, club_hidden=shape(section, "p_mu.0.weight", 2)[0])
    return config


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
    for section in present:
        for key in sections[section]:
            if (section, key) not in expected:
                raise InputError(f"{section} has an unknown key {key}")
    for tensor in tensors:
        if tensor.section not in present:
            continue
        value = sections[tensor.section].get(tensor.key)
        if value is None:
            raise InputError(f"{tensor.section} has no key {tensor.key}; expected shape {list(tensor.shape)}")
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != tensor.shape:
            found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{tensor.section}.{tensor.key} has shape {found}; expected {list(tensor.shape)}")
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise InputError(f"{tensor.section}.{tensor.key} holds values that are not finite floating-point numbers")
        if not tensor.ours:
            unused[f"{tensor.section}.{tensor.key}"] = value
        for name, part in zip(tensor.ours, value if len(tensor.ours) > 1 else (value,)):
            state[name] = part
    return state, unused


def to_published(state, tensors, unused, dtype):
    """Our state dict -> published sections in `dtype`; dead tensors from `unused`, zeros where there are none."""
    result = {}
    for tensor in tensors:
        if not tensor.ours:
            value = unused.get(f"{tensor.section}.{tensor.key}", torch.zeros(tensor.shape))
        elif len(tensor.ours) > 1:
            value = torch.stack([state[name] for name in tensor.ours])
        else:
            value = state[tensor.ours[0]]
        result.setdefault(tensor.section, {})[tensor.key] = value.detach().to("cpu", dtype, copy=True)
    return result
