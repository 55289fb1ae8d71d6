"""Published names of FCID's tensors (systems/published.py), in published order."""

from systems.dcid_names import club_networks
from systems.published import DECODER, ENCODER, Part, transformer

VIDEO, POOL = "encoder.specific.video.", "encoder.semantic.video."

PARTS = (
    Part(ENCODER, "Cross_quantizer_coarse.", "encoder.codebook."),
    Part(ENCODER, "v_spe_encoder.conv_stack.0.", VIDEO + "conv1.", "video"),
    Part(ENCODER, "v_spe_encoder.conv_stack.2.", VIDEO + "conv2.", "video"),
    Part(ENCODER, "v_spe_encoder.conv_stack.4.", VIDEO + "conv3.", "video"),
    Part(ENCODER, "v_spe_encoder.conv_stack.5.stack.0.res_block.1.", VIDEO + "residual.spread.", "video"),
    Part(ENCODER, "v_spe_encoder.conv_stack.5.stack.0.res_block.3.", VIDEO + "residual.mix.", "video"),
    Part(ENCODER, "v_spe_encoder.feed_forward.0.", VIDEO + "pool1.", "video"),
    Part(ENCODER, "v_spe_encoder.feed_forward.2.", VIDEO + "pool2.", "video"),
    Part(ENCODER, "a_spe_encoder.audio_linear.", "encoder.specific.audio.linear.", "audio"),
    Part(ENCODER, "v_gen_encoder.se_layer.0.", POOL + "squeeze.", "video"),
    Part(ENCODER, "v_gen_encoder.se_layer.2.", POOL + "excite.", "video"),
    Part(ENCODER, "v_gen_encoder.affine_video_ave.", POOL + "average_attention.", "video"),
    Part(ENCODER, "v_gen_encoder.affine_video_self.", POOL + "place_attention.", "video"),
    Part(ENCODER, "v_gen_encoder.ave_v_att.", POOL + "attention.", "video"),
    *transformer(ENCODER, "v_self_att.", POOL + "temporal.", "video"),
    *transformer(ENCODER, "a_self_att.", "encoder.semantic.audio.", "audio"),
    Part(ENCODER, "va_gen_encoder.input_linear.", "encoder.clip.audiovisual.general."),
    Part(ENCODER, "va_spe_encoder.input_linear.", "encoder.clip.audiovisual.specific."),
    Part(ENCODER, "va2vat.linear.", "encoder.clip.audiovisual.project."),
    *transformer(ENCODER, "t_self_att.", "encoder.semantic.text.", "text"),
    Part(ENCODER, "t2vat.linear.", "encoder.clip.text.project.", "text"),
    Part(ENCODER, "t_gen_encoder.input_linear.", "encoder.clip.text.general.", "text"),
    Part(ENCODER, "t_spe_encoder.input_linear.", "encoder.clip.text.specific.", "text"),
    Part("CPC_parameters", "{m}_ar_lstm.", "cpc.lstm.{m}.", "video audio"),
    Part("CPC_parameters", "{m}_predictors.0.", "cpc.predictor.{m}.", "video audio"),
    *club_networks("Video_mi_net_parameters", "club.video.", "video"),
    *club_networks("Audio_mi_net_parameters", "club.audio.", "audio"),
    *club_networks("Text_mi_net_parameters", "club.text.", "text"),
    *club_networks("AudioVisual_mi_net_parameters", "club.audiovisual."),
    Part(DECODER, "v_fine_decoder.inverse_conv_block.0.", "fine_decoders.video.deconv1.", "video"),
    Part(DECODER, "v_fine_decoder.inverse_conv_block.1.stack.0.res_block.1.", "fine_decoders.video.residual.spread.",
         "video"),
    Part(DECODER, "v_fine_decoder.inverse_conv_block.1.stack.0.res_block.3.", "fine_decoders.video.residual.mix.",
         "video"),
    Part(DECODER, "v_fine_decoder.inverse_conv_block.2.", "fine_decoders.video.deconv2.", "video"),
    Part(DECODER, "v_fine_decoder.inverse_conv_block.4.", "fine_decoders.video.deconv3.", "video"),
    Part(DECODER, "v_fine_decoder.video_linear.", "fine_decoders.video.code_linear.", "video"),
    Part(DECODER, "a_fine_decoder.audio_rec.", "fine_decoders.audio.reconstruct.", "audio"),
    Part(DECODER, "a_fine_decoder.audio_linear.", "fine_decoders.audio.code_linear.", "audio"),
    *(part for m in ("video", "audio", "text") for part in (
        Part(DECODER, f"{m[0]}_coarse_decoder.simple_rec.", f"coarse_decoders.{m}.reconstruct.", m),
        Part(DECODER, f"{m[0]}_coarse_decoder.simple_linear.", f"coarse_decoders.{m}.code_linear.", m))),
)
