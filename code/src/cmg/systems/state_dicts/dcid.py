"""Published names of DCID's tensors (cmg/systems/state_dicts/rules.py), in published order."""

from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS, KeyRule, temporal

NUM_CLASSES = 141               # of the clip classifiers in the published decoder, used by no loss
LEVEL, OBJECTIVE = "encoder.levels.0.", "objectives.0."

TOKENS = [KeyRule(LSTMS, "", "encoder.{m}_lstm.", "text *")]


def specific(theirs, ours, modalities):
    """The specific encoders of level 1: convolutions of maps, the linear map of vectors and tokens."""
    return [KeyRule(ENCODER, theirs + "conv_stack.0.", ours + "conv1.", modalities),
            KeyRule(ENCODER, theirs + "conv_stack.2.", ours + "conv2.", modalities),
            KeyRule(ENCODER, theirs + "conv_stack.4.", ours + "conv3.", modalities),
            KeyRule(ENCODER, theirs + "conv_stack.5.stack.0.res_block.1.", ours + "residual.conv3x3.", modalities),
            KeyRule(ENCODER, theirs + "conv_stack.5.stack.0.res_block.3.", ours + "residual.conv1x1.", modalities),
            KeyRule(ENCODER, theirs + "feed_forward.0.", ours + "pool1.", modalities),
            KeyRule(ENCODER, theirs + "feed_forward.2.", ours + "pool2.", modalities),
            KeyRule(ENCODER, theirs + "{m}_linear.", ours + "linear.", modalities)]


def pooling(theirs, ours, modalities):
    """The pooling of maps in the semantic encoders."""
    return [KeyRule(ENCODER, theirs + "se_layer.0.", ours + "squeeze.", modalities),
            KeyRule(ENCODER, theirs + "se_layer.2.", ours + "excite.", modalities),
            KeyRule(ENCODER, theirs + "affine_video_ave.", ours + "average_attention.", modalities),
            KeyRule(ENCODER, theirs + "affine_video_self.", ours + "place_attention.", modalities),
            KeyRule(ENCODER, theirs + "ave_v_att.", ours + "attention.", modalities)]


def decoder(theirs, ours, modalities, row_linear=()):
    """The decoders of level 1: transposed convolutions of maps, two linear maps of vectors and tokens.

    Args:
        row_linear: parts that stand before the linear map of the code.
    """
    return [KeyRule(DECODER, theirs + "inverse_conv_block.0.", ours + "deconv1.", modalities),
            KeyRule(DECODER, theirs + "inverse_conv_block.1.stack.0.res_block.1.", ours + "residual.conv3x3.", modalities),
            KeyRule(DECODER, theirs + "inverse_conv_block.1.stack.0.res_block.3.", ours + "residual.conv1x1.", modalities),
            KeyRule(DECODER, theirs + "inverse_conv_block.2.", ours + "deconv2.", modalities),
            KeyRule(DECODER, theirs + "inverse_conv_block.4.", ours + "deconv3.", modalities),
            KeyRule(DECODER, theirs + "{m}_rec.", ours + "reconstruct.", modalities),
            *row_linear,
            KeyRule(DECODER, theirs + "{m}_linear.", ours + "code_linear.", modalities)]


def cpc(section, ours, modalities):
    """The networks of one Cross-CPC."""
    return [KeyRule(section, "{m}_ar_lstm.", ours + "lstm.{m}.", modalities),
            KeyRule(section, "{m}_predictors.0.", ours + "predictor.{m}.", modalities)]


def club(section, ours, modalities=""):
    """CLUB networks, a section for each: the mean's network first."""
    return [KeyRule(section, "p_mu.", ours + "mean.", modalities),
            KeyRule(section, "p_logvar.", ours + "log_variance.", modalities)]


SPECIFIC = specific("{M}_encoder.", LEVEL + "specific.{m}.", "video audio text *")
CODEBOOK = [KeyRule(ENCODER, "Cross_quantizer.", "encoder.levels.*.codebook.")]
SEMANTIC = [*pooling("{m}_semantic_encoder.", LEVEL + "semantic.{m}.", "video audio text *"),
            *temporal(ENCODER, "{m}_self_att.", LEVEL + "semantic.{m}.", "video text audio *")]
CPC = cpc("CPC_parameters", OBJECTIVE + "cpc.", "video audio text *")
DECODERS = decoder("{M}_decoder.", OBJECTIVE + "decoders.{m}.", "video audio text *")
CLASSIFIERS = [KeyRule(DECODER, "{m}_semantic_decoder.", modalities="video text audio", is_dead=True, shapes=lambda c: {
    "linear.weight": (c.code_dim, c.code_dim), "linear.bias": (c.code_dim,),
    "event_classifier.weight": (NUM_CLASSES, c.code_dim), "event_classifier.bias": (NUM_CLASSES,)})]
CLUBS = club("{M}_mi_net_parameters", OBJECTIVE + "club.{m}.", "video text audio *")

KEY_RULES = (*TOKENS, *SPECIFIC, *CODEBOOK, *SEMANTIC, *CPC, *DECODERS, *CLASSIFIERS, *CLUBS)
