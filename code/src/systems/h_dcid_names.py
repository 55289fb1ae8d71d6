"""Published names of H-DCID's tensors: DCID's without the classifiers, and those of the second level."""

from systems.dcid_names import CODEBOOK, CPC, DECODERS, OBJECTIVE, SEMANTIC, SPECIFIC, TEXT_LSTM, club
from systems.published import DECODER, ENCODER, Part, transformer

LEVEL_2, OBJECTIVE_2 = "encoder.levels.1.", "objectives.1."

SPECIFIC_2 = [Part(ENCODER, "{M}_encoder_2.input_linear.", LEVEL_2 + "specific.{m}.linear.", "video audio text")]
SEMANTIC_2 = transformer(ENCODER, "{m}_self_att_2.", LEVEL_2 + "semantic.{m}.", "video text audio")
CPC_2 = [Part("CPC_2_parameters", "{m}_ar_lstm.", OBJECTIVE_2 + "cpc.lstm.{m}.", "video audio text"),
         Part("CPC_2_parameters", "{m}_predictors.0.", OBJECTIVE_2 + "cpc.predictor.{m}.", "video audio text")]
DECODERS_2 = [part for m in ("video", "audio", "text") for part in (
    Part(DECODER, f"{m.capitalize()}_decoder_2.simple_rec.", f"{OBJECTIVE_2}decoders.{m}.reconstruct.", m),
    Part(DECODER, f"{m.capitalize()}_decoder_2.simple_linear.", f"{OBJECTIVE_2}decoders.{m}.code_linear.", m))]

PARTS = (*TEXT_LSTM, *SPECIFIC, *SPECIFIC_2, *CODEBOOK, *SEMANTIC, *SEMANTIC_2, *CPC, *CPC_2, *DECODERS, *DECODERS_2,
         *club("", OBJECTIVE), *club("_2", OBJECTIVE_2))
