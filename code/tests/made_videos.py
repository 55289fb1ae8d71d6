"""Small videos that the tests encode with PyAV: moving colors, a tone for each second, and every kind of defect."""

from fractions import Fraction

import av
import numpy as np


def picture(k, width=64, height=48):
    """Frame k, (H, W, 3) uint8: a bright bar at the top, colors that move."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([(x * 3 + k * 5) % 256, (y * 4 + k * 3) % 256, np.full_like(x, k * 7 % 256)], -1).astype(np.uint8)
    frame[:height // 6] = 250
    return frame


def sound(seconds, rate, channels, kind):
    """(channels, N) float32: a tone that rises each second, or silence."""
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 200 * (1 + t.astype(int)) * t) if kind == "tone" else np.zeros_like(t)
    return np.tile(wave.astype(np.float32), (channels, 1))


def make_video(path, seconds=10.0, rate=25, size=(64, 48), audio="tone", audio_seconds=None, audio_rate=44100,
               layout="stereo", video=True, codec="libx264", pixels="yuv420p", audio_codec="aac", delay=0.0, times=None,
               cover=False, form=None):
    """Encode a file.

    Args:
        audio: "tone", "silence" or None.
        delay: seconds by which the sound starts late.
        times: time of each frame in thousandths of a second, for a variable frame rate.
        cover: the only picture is an attached one.
    """
    with av.open(str(path), "w", format=form) as out:
        pictures = heard = None
        if video or cover:
            pictures = out.add_stream(codec, rate=rate)
            pictures.width, pictures.height, pictures.pix_fmt = *size, pixels
            pictures.time_base = pictures.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            if codec == "libx264":
                pictures.options = {"preset": "ultrafast", "g": "25", "bf": "0"}
            if cover:
                pictures.disposition = av.stream.Disposition.attached_pic.value
        if audio:
            heard = out.add_stream(audio_codec, rate=audio_rate, layout=layout)
        places = times or range(1 if cover else round(seconds * rate))
        for k, place in enumerate(places if pictures else ()):
            frame = av.VideoFrame.from_ndarray(picture(k, *size), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = place, pictures.codec_context.time_base
            out.mux(pictures.encode(frame))
        if pictures:
            out.mux(pictures.encode(None))
        if heard:
            channels = heard.codec_context.layout.nb_channels
            wave = sound(seconds if audio_seconds is None else audio_seconds, audio_rate, channels, audio)
            convert = av.AudioResampler(format=heard.codec_context.format.name, layout=layout, rate=audio_rate)
            for k in range(0, wave.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, k:k + 1024]), "fltp", layout)
                frame.sample_rate, frame.time_base = audio_rate, Fraction(1, audio_rate)
                frame.pts = k + round(delay * audio_rate)
                for piece in convert.resample(frame):
                    out.mux(heard.encode(piece))
            out.mux(heard.encode(None))
    return path


def rotate_header(path, degrees=90):
    """Turn an mp4 as phones do: by the matrix in its first track header alone."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, minus = (1 << 16).to_bytes(4, "big"), (-1 << 16 & 0xFFFFFFFF).to_bytes(4, "big")
    a, b, c, d = {90: (0, one, minus, 0), 180: (minus, 0, 0, minus)}[degrees]
    for place, value in ((0, a), (4, b), (12, c), (16, d)):
        data[matrix + place:matrix + place + 4] = value or bytes(4)
    path.write_bytes(data)


def damage(path, share, seed=0):
    """Overwrite a share of the 188-byte packets of a transport stream with noise, none of the first hundred."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for k in range(100, len(data) // 188):
        if rng.random() < share:
            data[188 * k + 8:188 * k + 188] = rng.bytes(180)
    path.write_bytes(data)
