"""Published names of CoDAAR's tensors (cmg/systems/state_dicts/rules.py), in published order."""

from cmg.systems.state_dicts.dcid import TOKENS, cpc, decoder, pooling
from cmg.systems.state_dicts.rules import DECODER, ENCODER, KeyRule, temporal

NUM_CLASSES = 142               # of the clip classifiers in the published decoder, used by no loss
CONV = "encoder.specific.{m}."
ALL = "video audio text *"


def classifier(config):
    """Names and shapes of a clip classifier over rows."""
    width = config.row_dim
    return {"linear.weight": (width, width), "linear.bias": (width,),
            "event_classifier.weight": (NUM_CLASSES, width), "event_classifier.bias": (NUM_CLASSES,)}


KEY_RULES = (
    KeyRule(ENCODER, "Cross_quantizer.", "encoder.table."),
    *pooling("{m}_semantic_encoder.", "encoder.semantic.{m}.", ALL),
    KeyRule(ENCODER, "{m}_semantic_encoder.spatial_conv_stack.0.", CONV + "conv1.", ALL),
    KeyRule(ENCODER, "{m}_semantic_encoder.spatial_conv_stack.1.", CONV + "norm1.", ALL),
    KeyRule(ENCODER, "{m}_semantic_encoder.spatial_conv_stack.3.", CONV + "conv2.", ALL),
    KeyRule(ENCODER, "{m}_semantic_encoder.spatial_conv_stack.4.", CONV + "norm2.", ALL),
    KeyRule(ENCODER, "{M}_encoder.{m}_linear.", CONV + "linear.", ALL),
    *temporal(ENCODER, "{m}_self_att.", "encoder.semantic.{m}.", ALL),
    *cpc("CPC_parameters", "cpc.", ALL),
    *TOKENS,
    *decoder("{M}_decoder.", "decoders.{m}.of_code.", ALL,
             [KeyRule(DECODER, "{M}_decoder.{m}_linear_1.", "decoders.{m}.row_linear.", ALL)]),
    KeyRule(DECODER, "{m}_semantic_decoder.", modalities="video audio text", is_dead=True, shapes=classifier),
)
