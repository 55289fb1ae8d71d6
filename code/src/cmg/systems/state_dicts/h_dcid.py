"""Published names of H-DCID's tensors: DCID's without the classifiers, and those of the second level."""

from cmg.systems.state_dicts.dcid import CLUBS, CODEBOOK, CPC, DECODERS, SEMANTIC, SPECIFIC, TOKENS, club, cpc
from cmg.systems.state_dicts.rules import DECODER, ENCODER, KeyRule, transformer

LEVEL_2, OBJECTIVE_2 = "encoder.levels.1.", "objectives.1."

SPECIFIC_2 = [KeyRule(ENCODER, "{M}_encoder_2.input_linear.", LEVEL_2 + "specific.{m}.linear.", "video audio text *")]
SEMANTIC_2 = transformer(ENCODER, "{m}_self_att_2.", LEVEL_2 + "semantic.{m}.", "video text audio *")
CPC_2 = cpc("CPC_2_parameters", OBJECTIVE_2 + "cpc.", "video audio text *")
DECODERS_2 = [
    KeyRule(DECODER, "{M}_decoder_2.simple_rec.", OBJECTIVE_2 + "decoders.{m}.reconstruct.", "video audio text *"),
    KeyRule(DECODER, "{M}_decoder_2.simple_linear.", OBJECTIVE_2 + "decoders.{m}.code_linear.", "video audio text *")]
CLUBS_2 = club("{M}_mi_net_2_parameters", OBJECTIVE_2 + "club.{m}.", "video text audio *")

KEY_RULES = (*TOKENS, *SPECIFIC, *SPECIFIC_2, *CODEBOOK, *SEMANTIC, *SEMANTIC_2, *CPC, *CPC_2, *DECODERS, *DECODERS_2,
             *CLUBS, *CLUBS_2)
