"""Published names of FCID's tensors, in published order (see rules.py)."""

from cmg.systems.state_dicts.dcid import club, cpc, decoder, pooling, specific
from cmg.systems.state_dicts.rules import DECODER, ENCODER, KeyRule, temporal

FINE = "video audio *"

KEY_RULES = (
    KeyRule(ENCODER, "Cross_quantizer_coarse.", "encoder.codebook."),
    *specific("{l}_spe_encoder.", "encoder.specific.{m}.", FINE),
    *pooling("{l}_gen_encoder.", "encoder.semantic.{m}.", FINE),
    *temporal(ENCODER, "{l}_self_att.", "encoder.semantic.{m}.", FINE),
    KeyRule(ENCODER, "va_gen_encoder.input_linear.", "encoder.clip.audiovisual.general."),
    KeyRule(ENCODER, "va_spe_encoder.input_linear.", "encoder.clip.audiovisual.specific."),
    KeyRule(ENCODER, "va2vat.linear.", "encoder.clip.audiovisual.project."),
    *temporal(ENCODER, "{l}_self_att.", "encoder.semantic.{m}.", "text"),
    KeyRule(ENCODER, "{l}2vat.linear.", "encoder.clip.{m}.project.", "text *"),
    KeyRule(ENCODER, "{l}_gen_encoder.input_linear.", "encoder.clip.{m}.general.", "text *"),
    KeyRule(ENCODER, "{l}_spe_encoder.input_linear.", "encoder.clip.{m}.specific.", "text *"),
    *cpc("CPC_parameters", "cpc.", FINE),
    *club("{M}_mi_net_parameters", "club.{m}.", "video audio text *"),
    *club("AudioVisual_mi_net_parameters", "club.audiovisual."),
    *decoder("{l}_fine_decoder.", "fine_decoders.{m}.", FINE),
    KeyRule(DECODER, "{l}_coarse_decoder.simple_rec.", "coarse_decoders.{m}.reconstruct.", "video audio text *"),
    KeyRule(DECODER, "{l}_coarse_decoder.simple_linear.", "coarse_decoders.{m}.code_linear.", "video audio text *"),
)
