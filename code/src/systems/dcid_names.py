"""Published names of DCID's tensors (systems/published.py), in published order."""

from systems.published import DECODER, ENCODER, LSTM, Part, transformer

NUM_CLASSES = 141               # of the clip classifiers in the published decoder, used by no loss
LEVEL, OBJECTIVE = "encoder.levels.0.", "objectives.0."
VIDEO = LEVEL + "specific.video."
POOL = LEVEL + "semantic.video."

TEXT_LSTM = [Part(LSTM, "", "encoder.text_lstm.", "text")]
SPECIFIC = [
    Part(ENCODER, "Video_encoder.conv_stack.0.", VIDEO + "conv1.", "video"),
    Part(ENCODER, "Video_encoder.conv_stack.2.", VIDEO + "conv2.", "video"),
    Part(ENCODER, "Video_encoder.conv_stack.4.", VIDEO + "conv3.", "video"),
    Part(ENCODER, "Video_encoder.conv_stack.5.stack.0.res_block.1.", VIDEO + "residual.spread.", "video"),
    Part(ENCODER, "Video_encoder.conv_stack.5.stack.0.res_block.3.", VIDEO + "residual.mix.", "video"),
    Part(ENCODER, "Video_encoder.feed_forward.0.", VIDEO + "pool1.", "video"),
    Part(ENCODER, "Video_encoder.feed_forward.2.", VIDEO + "pool2.", "video"),
    Part(ENCODER, "Audio_encoder.audio_linear.", LEVEL + "specific.audio.linear.", "audio"),
    Part(ENCODER, "Text_encoder.text_linear.", LEVEL + "specific.text.linear.", "text"),
]
CODEBOOK = [Part(ENCODER, "Cross_quantizer.", "encoder.levels.*.codebook.")]
SEMANTIC = [
    Part(ENCODER, "video_semantic_encoder.se_layer.0.", POOL + "squeeze.", "video"),
    Part(ENCODER, "video_semantic_encoder.se_layer.2.", POOL + "excite.", "video"),
    Part(ENCODER, "video_semantic_encoder.affine_video_ave.", POOL + "average_attention.", "video"),
    Part(ENCODER, "video_semantic_encoder.affine_video_self.", POOL + "place_attention.", "video"),
    Part(ENCODER, "video_semantic_encoder.ave_v_att.", POOL + "attention.", "video"),
    *transformer(ENCODER, "video_self_att.", POOL + "temporal.", "video"),
    *transformer(ENCODER, "{m}_self_att.", LEVEL + "semantic.{m}.", "text audio"),
]
CPC = [Part("CPC_parameters", "{m}_ar_lstm.", OBJECTIVE + "cpc.lstm.{m}.", "video audio text"),
       Part("CPC_parameters", "{m}_predictors.0.", OBJECTIVE + "cpc.predictor.{m}.", "video audio text")]
DECODERS = [
    Part(DECODER, "Video_decoder.inverse_conv_block.0.", OBJECTIVE + "decoders.video.deconv1.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.1.stack.0.res_block.1.",
         OBJECTIVE + "decoders.video.residual.spread.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.1.stack.0.res_block.3.",
         OBJECTIVE + "decoders.video.residual.mix.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.2.", OBJECTIVE + "decoders.video.deconv2.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.4.", OBJECTIVE + "decoders.video.deconv3.", "video"),
    Part(DECODER, "Video_decoder.video_linear.", OBJECTIVE + "decoders.video.code_linear.", "video"),
    Part(DECODER, "Audio_decoder.audio_rec.", OBJECTIVE + "decoders.audio.reconstruct.", "audio"),
    Part(DECODER, "Audio_decoder.audio_linear.", OBJECTIVE + "decoders.audio.code_linear.", "audio"),
    Part(DECODER, "Text_decoder.text_rec.", OBJECTIVE + "decoders.text.reconstruct.", "text"),
    Part(DECODER, "Text_decoder.text_linear.", OBJECTIVE + "decoders.text.code_linear.", "text"),
]
CLASSIFIERS = [Part(DECODER, "{m}_semantic_decoder.", modalities="video text audio", is_dead=True, shapes=lambda c: {
    "linear.weight": (c.code_dim, c.code_dim), "linear.bias": (c.code_dim,),
    "event_classifier.weight": (NUM_CLASSES, c.code_dim), "event_classifier.bias": (NUM_CLASSES,)})]


def club_networks(section, ours, modality=""):
    """One CLUB network: its mean's network first."""
    return [Part(section, "p_mu.", ours + "mean.", modality),
            Part(section, "p_logvar.", ours + "log_variance.", modality)]


def club(suffix, objective):
    """The CLUB networks of one level, a section for each."""
    return [part for m in ("video", "text", "audio")
            for part in club_networks(f"{m.capitalize()}_mi_net{suffix}_parameters", f"{objective}club.{m}.", m)]


PARTS = (*TEXT_LSTM, *SPECIFIC, *CODEBOOK, *SEMANTIC, *CPC, *DECODERS, *CLASSIFIERS, *club("", OBJECTIVE))
