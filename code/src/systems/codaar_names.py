"""Published names of CoDAAR's tensors (systems/published.py), in published order."""

from systems.published import DECODER, ENCODER, LSTM, Part, transformer

NUM_CLASSES = 142               # of the clip classifiers in the published decoder, used by no loss
CPC = "CPC_parameters"
POOL, CONV = "encoder.semantic.video.", "encoder.specific.video."
VIDEO, AUDIO, TEXT = (f"decoders.{m}." for m in ("video", "audio", "text"))


def classifier(config):
    """Names and shapes of a clip classifier over rows."""
    width = config.row_dim
    return {"linear.weight": (width, width), "linear.bias": (width,),
            "event_classifier.weight": (NUM_CLASSES, width), "event_classifier.bias": (NUM_CLASSES,)}


PARTS = (
    Part(ENCODER, "Cross_quantizer.", "encoder.table."),
    Part(ENCODER, "video_semantic_encoder.se_layer.0.", POOL + "squeeze.", "video"),
    Part(ENCODER, "video_semantic_encoder.se_layer.2.", POOL + "excite.", "video"),
    Part(ENCODER, "video_semantic_encoder.affine_video_ave.", POOL + "average_attention.", "video"),
    Part(ENCODER, "video_semantic_encoder.affine_video_self.", POOL + "place_attention.", "video"),
    Part(ENCODER, "video_semantic_encoder.ave_v_att.", POOL + "attention.", "video"),
    Part(ENCODER, "video_semantic_encoder.spatial_conv_stack.0.", CONV + "conv1.", "video"),
    Part(ENCODER, "video_semantic_encoder.spatial_conv_stack.1.", CONV + "norm1.", "video"),
    Part(ENCODER, "video_semantic_encoder.spatial_conv_stack.3.", CONV + "conv2.", "video"),
    Part(ENCODER, "video_semantic_encoder.spatial_conv_stack.4.", CONV + "norm2.", "video"),
    Part(ENCODER, "Audio_encoder.audio_linear.", "encoder.specific.audio.linear.", "audio"),
    Part(ENCODER, "Text_encoder.text_linear.", "encoder.specific.text.linear.", "text"),
    *transformer(ENCODER, "video_self_att.", POOL + "temporal.", "video"),
    *transformer(ENCODER, "{m}_self_att.", "encoder.semantic.{m}.", "audio text"),
    Part(CPC, "{m}_ar_lstm.", "cpc.lstm.{m}.", "video audio text"),
    Part(CPC, "{m}_predictors.0.", "cpc.predictor.{m}.", "video audio text"),
    Part(LSTM, "", "encoder.text_lstm.", "text"),
    Part(DECODER, "Video_decoder.inverse_conv_block.0.", VIDEO + "of_code.deconv1.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.1.stack.0.res_block.1.", VIDEO + "of_code.residual.spread.",
         "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.1.stack.0.res_block.3.", VIDEO + "of_code.residual.mix.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.2.", VIDEO + "of_code.deconv2.", "video"),
    Part(DECODER, "Video_decoder.inverse_conv_block.4.", VIDEO + "of_code.deconv3.", "video"),
    Part(DECODER, "Video_decoder.video_linear_1.", VIDEO + "row_linear.", "video"),
    Part(DECODER, "Video_decoder.video_linear.", VIDEO + "of_code.code_linear.", "video"),
    Part(DECODER, "Audio_decoder.audio_rec.", AUDIO + "of_code.reconstruct.", "audio"),
    Part(DECODER, "Audio_decoder.audio_linear_1.", AUDIO + "row_linear.", "audio"),
    Part(DECODER, "Audio_decoder.audio_linear.", AUDIO + "of_code.code_linear.", "audio"),
    Part(DECODER, "Text_decoder.text_rec.", TEXT + "of_code.reconstruct.", "text"),
    Part(DECODER, "Text_decoder.text_linear_1.", TEXT + "row_linear.", "text"),
    Part(DECODER, "Text_decoder.text_linear.", TEXT + "of_code.code_linear.", "text"),
    Part(DECODER, "{m}_semantic_decoder.", modalities="video audio text", is_dead=True, shapes=classifier),
)
