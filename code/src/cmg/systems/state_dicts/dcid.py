"""Published names of DCID's tensors, in published order (see rules.py)."""

from cmg.systems.state_dicts.rules import DECODER, ENCODER, LSTMS, KeyRule, key_rules, temporal

NUM_CLASSES = 141               # of the clip classifiers in published decoders, which no loss uses
LEVEL, OBJECTIVE = "encoder.levels.0.", "objectives.0."

TOKENS = [KeyRule(LSTMS, "", "encoder.{m}_lstm.", "text *")]


def specific(theirs, ours, modalities):
    """Specific encoders of level 1: convolutions of maps, the linear layer of vectors and tokens."""
    return key_rules(ENCODER, theirs, ours, modalities, {
        "conv_stack.0.": "conv1.", "conv_stack.2.": "conv2.", "conv_stack.4.": "conv3.",
        "conv_stack.5.stack.0.res_block.1.": "residual.conv3x3.",
        "conv_stack.5.stack.0.res_block.3.": "residual.conv1x1.",
        "feed_forward.0.": "pool1.", "feed_forward.2.": "pool2.", "{m}_linear.": "linear."})


def pooling(theirs, ours, modalities):
    """Pooling of maps in the semantic encoders."""
    return key_rules(ENCODER, theirs, ours, modalities, {
        "se_layer.0.": "squeeze.", "se_layer.2.": "excite.", "affine_video_ave.": "average_attention.",
        "affine_video_self.": "place_attention.", "ave_v_att.": "attention."})


def decoder(theirs, ours, modalities, row_linear=()):
    """Decoders of level 1: transposed convolutions of maps, two linear layers of vectors and tokens.

    Args:
        row_linear: rules to insert before that of the linear layer on the code.
    """
    return [*key_rules(DECODER, theirs, ours, modalities, {
                "inverse_conv_block.0.": "deconv1.",
                "inverse_conv_block.1.stack.0.res_block.1.": "residual.conv3x3.",
                "inverse_conv_block.1.stack.0.res_block.3.": "residual.conv1x1.",
                "inverse_conv_block.2.": "deconv2.", "inverse_conv_block.4.": "deconv3.", "{m}_rec.": "reconstruct."}),
            *row_linear, KeyRule(DECODER, theirs + "{m}_linear.", ours + "code_linear.", modalities)]


def cpc(section, ours, modalities):
    """Networks of one Cross-CPC."""
    return key_rules(section, "{m}_", ours, modalities, {"ar_lstm.": "lstm.{m}.", "predictors.0.": "predictor.{m}."})


def club(section, ours, modalities=""):
    """CLUB networks, one section each: first the network of the mean."""
    return key_rules(section, "", ours, modalities, {"p_mu.": "mean.", "p_logvar.": "log_variance."})


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
