"""Sound to log-mel patches as AVE's and VGGish's programs make them, in NumPy: mono, resampling, framing, log-mel.

Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017) describes the front end; Tian et
al., "Audio-Visual Event Localization in Unconstrained Videos" (ECCV 2018) takes one patch a second. Samples are 16-bit
integers (N, channels), as `media.Media.seconds_of_sound` decodes them.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE = 16000                        # samples a second that VGGish hears
WINDOW, HOP, SPECTRUM = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ, OFFSET = 64, 125.0, 7500.0, 0.01
PATCH = 96                          # frames of a patch, 0.96 s
NEEDED = WINDOW + (PATCH - 1) * HOP         # samples of a patch: 15,600, 0.975 s
SILENCE = np.log(OFFSET)            # log-mel of digital silence, in every band
ROUTES, FRAMINGS = ("native", "nearest"), ("second", "continuous")
NEAREST_RATE, NEAREST_LIMIT = 44100, 0.99   # moviepy 1.0.3: what it decodes to, and where it limits
SCALE = 32768.0                     # of 16-bit samples
BLOCK = 500                         # outputs whose filter weights are made at a time


@dataclass(frozen=True)
class Kaiser:
    """A windowed-sinc filter of resampy: zero crossings of a wing, table entries a crossing, window, roll-off."""

    crossings: int
    precision: int
    beta: float
    rolloff: float


RESAMPLERS = {                      # `kaiser_best` of resampy up to 0.2.2, and from 0.3 on (bmcfee/resampy issue 101)
    "r022": Kaiser(64, 512, 14.769656459379492, 0.9475937167399596),
    "r043": Kaiser(50, 8192, 12.984585157833887, 0.9173473712608761),
}


@cache
def _wing(resampler):
    """Right half of the filter, (crossings * precision + 1,) float64."""
    kaiser = RESAMPLERS[resampler]
    n = kaiser.crossings * kaiser.precision
    position = np.arange(n + 1) / n * kaiser.crossings
    return kaiser.rolloff * np.sinc(kaiser.rolloff * position) * np.kaiser(2 * n + 1, kaiser.beta)[n:]


def _times(count, rate, target, resampler):
    """Input times of the first `count` outputs, in samples. The old version adds up steps: its rounding is audible at
    whole times, where the filter jumps."""
    step = 1 / (target / rate)
    if resampler == "r022":
        return np.concatenate([[0.0], np.add.accumulate(np.full(max(count - 1, 0), step))])[:count]
    return np.arange(count) * step


def _filter(times, length, rate, target, resampler):
    """Weights (len(times), length), sparse, of the outputs at input times `times`."""
    precision, scale = RESAMPLERS[resampler].precision, min(1.0, target / rate)
    table = scale * _wing(resampler)
    slope = np.append(np.diff(table), 0.0)
    step = int(scale * precision)                       # truncated there too: part of the filter
    whole = times.astype(np.int64)
    left = scale * (times - whole)
    weights, columns, used = [], [], []
    for offset, samples, sign in ((left, whole + 1, -1), (scale - left, length - whole - 1, 1)):
        position = offset * precision
        first = position.astype(np.int64)
        taps = np.minimum(samples, (len(table) - first) // step)
        m = np.arange(max(taps.max(), 0))
        entry = np.minimum(first[:, None] + m * step, len(table) - 1)
        weights.append(table[entry] + (position - first)[:, None] * slope[entry])
        columns.append((whole[:, None] - m) if sign < 0 else (whole[:, None] + 1 + m))
        used.append(m < taps[:, None])
    used = np.concatenate(used, 1)
    ends = np.concatenate([[0], used.sum(1).cumsum()])
    from scipy.sparse import csr_array  # here and below, because most programs do not resample
    return csr_array((np.concatenate(weights, 1)[used], np.concatenate(columns, 1)[used].astype(np.int32), ends),
                     shape=(len(times), length))


@lru_cache(maxsize=2)
def _second_filter(length, rate, target, resampler):
    """The filter of a whole block of `length` samples: 70 MB at 44.1 kHz, made once and used for every second."""
    times = _times(int(length * target / rate), rate, target, resampler)
    taps = 2 * (len(_wing(resampler)) // int(min(1.0, target / rate) * RESAMPLERS[resampler].precision) + 1)
    weights = np.empty(len(times) * taps)               # an upper bound; what is not filled takes no memory
    columns, ends, filled = np.empty(len(weights), np.int32), [np.zeros(1, np.int64)], 0
    for k in range(0, len(times), BLOCK):
        part = _filter(times[k:k + BLOCK], length, rate, target, resampler)
        weights[filled:filled + part.nnz], columns[filled:filled + part.nnz] = part.data, part.indices
        ends.append(part.indptr[1:] + filled)
        filled += part.nnz
    from scipy.sparse import csr_array
    return csr_array((weights[:filled], columns[:filled], np.concatenate(ends)), shape=(len(times), length))


def resample(x, rate, target=RATE, resampler="r022"):
    """Band-limited resampling as `resampy.resample(x, rate, target)` with its default filter.

    Args:
        x: (N,) float64.
        rate, target: samples a second.
        resampler: "r022" (resampy up to 0.2.2, which made the published features) or "r043" (from 0.3 on).
    Returns:
        (int(N * target / rate),) float64; `x` itself where the rates are equal.
    """
    if rate == target:
        return x
    if len(x) == rate and int(len(x) * target / rate):
        return _second_filter(len(x), rate, target, resampler) @ x
    times = _times(int(len(x) * target / rate), rate, target, resampler)
    parts = [_filter(times[k:k + BLOCK], len(x), rate, target, resampler) @ x for k in range(0, len(times), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0)


def nearest_index(k):
    """Sample at 44.1 kHz that is output sample `k` at 16 kHz under moviepy's `write_audiofile(fps=16000)`."""
    return np.round(NEAREST_RATE * (np.asarray(k) / RATE)).astype(np.int64)


def nearest(samples, second=0):
    """16 kHz by picking samples, without a low-pass filter: AVVP's and AVSBench's route, through moviepy 1.0.3.

    Args:
        samples: (N, channels) int16 at 44.1 kHz, the second number `second` or, with 0, any length.
        second: where in the sound `samples` starts.
    Returns:
        (n, channels) int16: every output whose nearest sample is there, limited to 0.99 of full scale.
    """
    start = second * RATE
    index = nearest_index(np.arange(start, start + len(samples) * RATE // NEAREST_RATE + 1)) - second * NEAREST_RATE
    picked = samples[index[index < len(samples)]] / SCALE
    return (np.clip(picked, -NEAREST_LIMIT, NEAREST_LIMIT) * SCALE).astype(np.int16)


def mono(samples):
    """Mean over all channels, LFE too: (N, channels) int16 -> (N,) float64, full scale 1."""
    return (samples / SCALE).mean(1)


@cache
def window():
    """Periodic Hann window, (400,) float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@cache
def mel_matrix():
    """Triangles linear in mel, peak 1, no area norm, DC left out: (257, 64) float64."""
    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    bins = mel(np.linspace(0.0, RATE / 2, SPECTRUM // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - low) / (center - low), (high - bins) / (high - center)))
    matrix[0] = 0.0
    return matrix


def log_mel(x):
    """Log-mel frames of a waveform at 16 kHz: (N,) float64 -> (1 + (N - 400) // 160, 64) float64, none below 400."""
    if len(x) < WINDOW:
        return np.zeros((0, BANDS))
    frames = sliding_window_view(x, WINDOW)[::HOP] * window()
    return np.log(np.abs(np.fft.rfft(frames, SPECTRUM)) @ mel_matrix() + OFFSET)


def count_rows(length):
    """Patches that `continuous` framing makes of `length` samples at 16 kHz: 0.96 s apart, 0.975 s long."""
    frames = 1 + (length - WINDOW) // HOP if length >= WINDOW else 0
    return max(0, 1 + (frames - PATCH) // PATCH)


@dataclass(frozen=True)
class FrontEnd:
    """From the seconds of a sound to patches.

    Attributes:
        route: "native", the stream's own rate resampled to 16 kHz; or "nearest", see `nearest`.
        framing: "second", each second alone (AVE, AVVP); or "continuous", every 0.96 s (AudioSet, AVSBench).
        resampler: see `resample`.
    """

    route: str = "native"
    framing: str = "second"
    resampler: str = "r022"

    def at_16k(self, samples, rate, second=0):
        """Mono at 16 kHz of one second, or of a whole sound with `second` 0: float64."""
        return mono(nearest(samples, second)) if self.route == "nearest" else resample(mono(samples), rate, RATE,
                                                                                       self.resampler)

    def patches(self, seconds, rate):
        """Log-mel patches, time first.

        Args:
            seconds: iterable of (rate, channels) int16, the last may be shorter.
            rate: samples a second; 44,100 on the route "nearest".
        Returns:
            (rows, 96, 64) float32; a second of which 0.975 s are not there makes no row.
        """
        return np.concatenate([np.zeros((0, PATCH, BANDS), np.float32), *self.parts(seconds, rate)])

    def parts(self, seconds, rate, most=16):
        """`patches`, up to `most` at a time, so that memory does not grow with the sound. With framing "continuous"
        all are held at once before they are cut."""
        if self.framing == "second":
            waves = (self.at_16k(samples, rate, k) for k, samples in enumerate(seconds))
            rows = (log_mel(wave)[:PATCH].astype(np.float32) for wave in waves if len(wave) >= NEEDED)
        else:
            rows = iter(self._whole(seconds, rate))
        while part := list(islice(rows, most)):
            yield np.stack(part)

    def _whole(self, seconds, rate):
        """`patches` of a sound that is framed as a whole."""
        if self.route == "nearest":
            whole = [mono(nearest(samples, k)) for k, samples in enumerate(seconds)]
            wave = np.concatenate(whole) if whole else np.zeros(0)
        else:
            whole = [mono(samples) for samples in seconds]
            wave = resample(np.concatenate(whole), rate, RATE, self.resampler) if whole else np.zeros(0)
        rows = count_rows(len(wave))
        return log_mel(wave)[:rows * PATCH].reshape(rows, PATCH, BANDS).astype(np.float32)


def logmel_of_patches(patches):
    """128 numbers a second from VGGish's own log-mel: mean and maximum of each band over the patch.

    Among the pairs of statistics tried (means of both halves, mean and deviation, mean and maximum) this one tells
    spoken digits apart best, from known and from unknown speakers: neither depends on when in the second the sound is.

    Args:
        patches: (T, 96, 64).
    Returns:
        (T, 128) float32 >= 0: nepers above silence, 64 means, then 64 maxima.
    """
    above = np.maximum(np.asarray(patches, np.float64) - SILENCE, 0.0)
    return np.concatenate([above.mean(1), above.max(1)], 1).astype(np.float32)


def logmel_second(waveform, rate=RATE, resampler="r022"):
    """128 numbers for each second of a sound, without any network: see `logmel_of_patches`.

    Args:
        waveform: (N,) floats of full scale 1, or 16-bit integers; a second of which 0.975 s are not there is left out.
        rate: samples a second.
    Returns:
        (T, 128) float32; silence gives zeros.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(f"waveform is {waveform.shape}; (N,) is expected: one channel")
    wave = waveform / SCALE if waveform.dtype == np.int16 else waveform.astype(np.float64)
    seconds = [resample(wave[k:k + rate], rate, RATE, resampler) for k in range(0, len(wave), rate)]
    rows = [log_mel(second)[:PATCH] for second in seconds if len(second) >= NEEDED]
    return logmel_of_patches(np.stack(rows)) if rows else np.zeros((0, 2 * BANDS), np.float32)
