"""Published names of CoDAAR's tensors, in published order (see rules.py)."""

from cmg.systems.state_dicts.dcid import TOKENS, cpc, decoder, pooling
from cmg.systems.state_dicts.rules import DECODER, ENCODER, KeyRule, key_rules, temporal

NUM_CLASSES = 142               # of the clip classifiers in published decoders, which no loss uses
ALL = "video audio text *"


def classifier(config):
    """Names and shapes of the tensors of a clip classifier on rows."""
    width = config.row_dim
    return {"linear.weight": (width, width), "linear.bias": (width,),
            "event_classifier.weight": (NUM_CLASSES, width), "event_classifier.bias": (NUM_CLASSES,)}


KEY_RULES = (
    KeyRule(ENCODER, "Cross_quantizer.", "encoder.table."),
    *pooling("{m}_semantic_encoder.", "encoder.semantic.{m}.", ALL),
    *key_rules(ENCODER, "{m}_semantic_encoder.spatial_conv_stack.", "encoder.specific.{m}.", ALL,
               {"0.": "conv1.", "1.": "norm1.", "3.": "conv2.", "4.": "norm2."}),
    KeyRule(ENCODER, "{M}_encoder.{m}_linear.", "encoder.specific.{m}.linear.", ALL),
    *temporal(ENCODER, "{m}_self_att.", "encoder.semantic.{m}.", ALL),
    *cpc("CPC_parameters", "cpc.", ALL),
    *TOKENS,
    *decoder("{M}_decoder.", "decoders.{m}.of_code.", ALL,
             [KeyRule(DECODER, "{M}_decoder.{m}_linear_1.", "decoders.{m}.row_linear.", ALL)]),
    KeyRule(DECODER, "{m}_semantic_decoder.", modalities="video audio text", is_dead=True, shapes=classifier),
)
