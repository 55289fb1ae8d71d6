"""Dialled Digits, the demo data: the tone of a telephone key, a handwritten digit, and a sentence that names the key.

This module generates the features of single seconds; `cmg.demos.dialled` writes them as clips.

* audio: the dual tones of ITU-T Recommendation Q.23 at 8 kHz, with random frequency, level, onset and length, and light
  to heavy noise; one vector of 128 log-mel bands per second.
* video: handwritten digits (scikit-learn's copy of the UCI optical digits), rotated, scaled, shifted and with noise;
  fixed random projections of 49 overlapping patches, [7, 7, V] per second.
* text: one sentence per class.

All random choices use `numpy.random.Generator`s of the caller, except the projections, which are constant, so that
features generated at different times are compatible.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(f"digit {word}" for word in WORDS)      # class k is key k
PROMPTS = {f"digit {word}": f"The dual tones of key {word} dialled on a telephone" for word in WORDS}
EMPTY = -1                                              # key of a second without an event

# ---------------------------------------------------------------------------------------------------- audio
RATE = 8000                                             # sample rate in Hz
ROW_HZ, COLUMN_HZ = (697, 770, 852, 941), (1209, 1336, 1477)        # Q.23: low group by row, high group by column
KEY_HZ = np.array([(941, 1336)] + [(ROW_HZ[k // 3], COLUMN_HZ[k % 3]) for k in range(9)], np.float32)   # keys 0..9
DETUNING = 0.015            # largest relative error of a frequency; Q.23 allows 0.018
LEVEL = (0.12, 0.5)         # amplitude of a tone, relative to full scale
TWIST = 1.4                 # largest ratio of the amplitudes of the two tones (3 dB)
ONSET = (0.0, 0.3)          # seconds into the second
LENGTH = (0.35, 0.7)        # seconds
NOISE = (0.003, 0.1)        # RMS of the white noise: from 40 dB below a tone to nearly as loud as a weak tone
BANDS = 128
BLOCK = 32                  # seconds generated at a time
FRAME, HOP = 1000, 500      # samples: 15 frames per second, 8 Hz resolution
LOWEST_HZ = 125.0


def tones(keys, rng, seconds=1):
    """Waveforms in which a key is pressed once, at a random time in the first second.

    Args:
        keys: (N,) integers 0..9, or EMPTY for noise only.
        rng: numpy.random.Generator.
        seconds: length of the waveforms.

    Returns:
        (N, seconds * 8000) float32, in about -1..1.
    """
    keys = np.asarray(keys)
    count = len(keys)
    noise = np.exp(rng.uniform(*np.log(NOISE), (count, 1))).astype(np.float32)
    waves = rng.standard_normal((count, round(seconds * RATE)), dtype=np.float32) * noise
    detuned = KEY_HZ[keys] * rng.uniform(1 - DETUNING, 1 + DETUNING, (count, 2)).astype(np.float32)
    level = np.exp(rng.uniform(*np.log(LEVEL), (count, 2))).astype(np.float32)
    level[:, 1] = level[:, 0] * TWIST ** rng.uniform(-1, 1, count)
    level[keys == EMPTY] = 0
    phase = rng.uniform(0, 2 * np.pi, (count, 2)).astype(np.float32)
    onset = rng.uniform(*ONSET, (count, 1))
    time = np.arange(waves.shape[1], dtype=np.float32) / RATE
    pressed = (time >= onset) & (time < onset + rng.uniform(*LENGTH, (count, 1)))
    for group in range(2):      # low, high
        angle = np.float32(2 * np.pi) * detuned[:, group, None] * time + phase[:, group, None]
        waves += np.sin(angle) * pressed * level[:, group, None]
    return waves



@cache
def mel_bank():
    """Triangular mel filters from 125 Hz to 4 kHz: (501 bins, 128 bands) float32."""
    from transformers.audio_utils import mel_filter_bank  # here, because it takes a second to import
    return mel_filter_bank(num_frequency_bins=FRAME // 2 + 1, num_mel_filters=BANDS, min_frequency=LOWEST_HZ,
                           max_frequency=RATE / 2, sampling_rate=RATE, mel_scale="htk").astype(np.float32)


def log_mel(waveforms):
    """Log-mel bands of one-second waveforms: log(1 + power) / 2, with the power averaged over 15 frames.

    The result is nonnegative and about 0..5, like VGGish features; it is nearly zero for silence.

    Args:
        waveforms: (N, 8000).

    Returns:
        (N, 128) float32.
    """
    if waveforms.ndim != 2 or waveforms.shape[1] != RATE:
        raise ValueError(f"waveforms have shape {waveforms.shape}; expected (N, {RATE}): one second each at 8 kHz")
    return (0.5 * np.log1p(_powers(waveforms).mean(1) @ mel_bank())).astype(np.float32)


def _powers(waveforms):
    """Power spectra of the frames of waveforms (N, 8000): (N, 15, 501)."""
    # transformers' spectrogram() loops over frames in Python; one FFT call for all frames is ten times faster.
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    frames = sliding_window_view(waveforms, FRAME, axis=1)[:, ::HOP] * window           # (N, 15, 1000)
    spectrum = np.fft.rfft(frames.astype(np.float32, copy=False), axis=-1)
    return spectrum.real ** 2 + spectrum.imag ** 2


# ---------------------------------------------------------------------------------------------------- video
# The file lists one writer after another, each starting with 0..9 three times; both cuts are between writers.
POOLS = {"train": slice(0, 1157), "val": slice(1157, 1287), "test": slice(1287, None)}
DIGIT, CANVAS, PATCH = 12, 13, 7            # sides of a digit, an image and a patch in pixels
GRID = CANVAS - PATCH + 1          # 7
CHANNELS = 32                               # V
PROJECTION_SEED, SMOOTHING, THRESHOLD = 1, 1.0, 0.3


def digit_pools(split):
    """The handwritten digits of one split; no writer is in two splits.

    Args:
        split: "train" (also all of pretraining), "val" or "test".

    Returns:
        images (N, 8, 8) float32 in 0..1, labels (N,) int64.
    """
    digits, labels = _digits()
    return digits[POOLS[split]], labels[POOLS[split]]


@cache
def _digits():
    from sklearn.datasets import load_digits  # here, because it takes a second to import
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


def pick(keys, split, rng):
    """A handwritten sample of each key, drawn from the pool with replacement; blank for EMPTY.

    Args:
        keys: (N,) integers 0..9 or EMPTY.

    Returns:
        (N, 8, 8) float32 in 0..1.
    """
    images, labels = digit_pools(split)
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], np.arange(len(WORDS) + 1))
    keys = np.asarray(keys)
    some = np.maximum(keys, 0)                      # any digit, where the picture is blanked below
    samples = first[some] + (rng.random(len(keys)) * (first[some + 1] - first[some])).astype(int)
    pictures = images[order[samples]]
    pictures[keys == EMPTY] = 0
    return pictures


@dataclass(frozen=True)
class Style:
    """How digits are drawn; all ranges are sampled uniformly."""
    turn: float                 # largest rotation, degrees
    zoom: tuple                 # size of the digit; 1 is 12 pixels
    shift: float                # largest shift, pixels
    ink: tuple                  # brightness of the strokes
    noise: tuple                # standard deviation of the pixel noise
    thickness: float = 0.0      # 0: as written; 1: one source pixel thicker on every side


PLAIN = Style(turn=4, zoom=(0.97, 1.03), shift=0.4, ink=(0.8, 1.0), noise=(0.0, 0.06))
BOLD = Style(turn=6, zoom=(0.94, 1.02), shift=0.4, ink=(0.7, 0.95), noise=(0.02, 0.08), thickness=0.15)


def draw(images, rng, style=PLAIN, canvas=CANVAS, digit=DIGIT):
    """Images of handwritten samples: rotated, scaled, shifted, with added noise, clipped to 0..1.

    Args:
        images: (N, 8, 8) of `pick`.
        rng: numpy.random.Generator.
        style: Style.
        canvas, digit: sides of the image and of a digit with zoom 1, in pixels.

    Returns:
        (N, canvas, canvas) float32.
    """
    count = len(images)
    source = np.pad(images, ((0, 0), (1, 1), (1, 1)))                   # a blank border around the sample
    if style.thickness:
        around = sliding_window_view(np.pad(source, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2)).max((-2, -1))
        source = (1 - style.thickness) * source + style.thickness * around
    angle = np.deg2rad(rng.uniform(-style.turn, style.turn, count))
    scale = images.shape[1] / digit / rng.uniform(*style.zoom, count)   # source pixels per image pixel
    shift = rng.uniform(-style.shift, style.shift, (count, 2))
    centered = np.arange(canvas) - (canvas - 1) / 2
    row = centered[None, :, None] - shift[:, 0, None, None]
    column = centered[None, None, :] - shift[:, 1, None, None]
    sine, cosine = (scale * np.sin(angle))[:, None, None], (scale * np.cos(angle))[:, None, None]
    middle = (source.shape[1] - 1) / 2
    pictures = _bilinear(source, cosine * row - sine * column + middle, sine * row + cosine * column + middle)
    pictures *= rng.uniform(*style.ink, (count, 1, 1)).astype(np.float32)
    deviation = rng.uniform(*style.noise, (count, 1, 1)).astype(np.float32)
    pictures += deviation * rng.standard_normal(pictures.shape, dtype=np.float32)
    return pictures.clip(0, 1)


def _bilinear(source, row, column):
    """Values of `source` (N, S, S) at real coordinates (N, H, W); coordinates outside read the border."""
    last = source.shape[1] - 1
    row, column = row.clip(0, last), column.clip(0, last)
    top, left = np.minimum(row.astype(int), last - 1), np.minimum(column.astype(int), last - 1)
    down, right = (row - top).astype(np.float32), (column - left).astype(np.float32)
    clip = np.arange(len(source))[:, None, None]
    upper = source[clip, top, left] * (1 - right) + source[clip, top, left + 1] * right
    lower = source[clip, top + 1, left] * (1 - right) + source[clip, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


@cache
def projections():
    """V fixed random filters, (49 pixels, V) float32: Gaussian-blurred white noise with mean 0 and norm 1.

    The filters are smooth, like strokes. White filters would respond to pixel noise, and the encoder sees only the sum
    over the 49 positions, which must distinguish the ten digits.
    """
    side = np.arange(PATCH)
    blur = np.exp(-0.5 * ((side[:, None] - side) / SMOOTHING) ** 2)     # (7, 7), applied to rows and to columns
    noise = np.random.default_rng(PROJECTION_SEED).standard_normal((CHANNELS, PATCH, PATCH))
    filters = (blur @ noise @ blur.T).reshape(CHANNELS, -1)
    filters -= filters.mean(1, keepdims=True)
    return (filters / np.linalg.norm(filters, axis=1, keepdims=True)).T.astype(np.float32)


def video_features(pictures):
    """Rectified random projections of an image's 49 overlapping patches of 7 x 7 pixels.

    Args:
        pictures: (N, 13, 13) in 0..1.

    Returns:
        (N, 7, 7, V) float32, non-negative.
    """
    if pictures.ndim != 3 or pictures.shape[1:] != (CANVAS, CANVAS):
        raise ValueError(f"images have shape {pictures.shape}; expected (N, {CANVAS}, {CANVAS})")
    patches = sliding_window_view(pictures, (PATCH, PATCH), axis=(1, 2))
    patches = patches.reshape(-1, PATCH * PATCH).astype(np.float32, copy=False)
    responses = np.maximum(patches @ projections() - np.float32(THRESHOLD), 0)
    return responses.reshape(len(pictures), GRID, GRID, CHANNELS)


# ---------------------------------------------------------------------------------------------------- clips
def audio_clips(keys, rng):
    """Audio features of clips with one key per second: (N, T) integers 0..9 or EMPTY -> (N, T, 128) float32."""
    return np.concatenate([log_mel(waves) for waves in _waves(keys, rng)]).reshape(*keys.shape, BANDS)


def _waves(keys, rng):
    """Yield the waveforms of clips, in blocks of seconds that fit into the CPU cache, which is four times faster."""
    flat = keys.ravel()
    return (tones(block, rng) for block in np.array_split(flat, -(-len(flat) // BLOCK)))


def originals(keys, split, rng):
    """Content of clips for display in the report, drawn from the rng like `audio_clips` followed by `video_clips`.

    Returns:
        a list of {"audio": `spectrogram`, "video": the image (13, 13) of the first second with an event}, uint8.
    """
    sounds = np.concatenate(list(_waves(keys, rng))).reshape(*keys.shape, RATE)
    pictures = draw(pick(keys.ravel(), split, rng), rng).reshape(*keys.shape, CANVAS, CANVAS)
    first = pictures[np.arange(len(keys)), (keys != EMPTY).argmax(1)]
    return [{"audio": spectrogram(sound), "video": (255 * picture).astype(np.uint8)}
            for sound, picture in zip(sounds, first)]


def spectrogram(waveforms):
    """Log-mel bands of all frames of one waveform (T seconds, 8000): (128 bands, T * 15 frames) uint8, scaled to its
    largest value."""
    bands = np.log1p(_powers(waveforms) @ mel_bank()).reshape(-1, BANDS).T
    return (255 * bands / max(bands.max(), 1e-12)).astype(np.uint8)


def video_clips(keys, split, rng, style=PLAIN):
    """Video features of clips with a different sample in each second: keys (N, T) -> (N, T, 7, 7, V) float32."""
    features = video_features(draw(pick(keys.ravel(), split, rng), rng, style))
    return features.reshape(*keys.shape, *features.shape[1:])
