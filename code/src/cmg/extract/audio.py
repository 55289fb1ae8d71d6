"""Log-mel patches computed as by AVE's and VGGish's programs, in NumPy: mono, resampling, framing, log-mel.

Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017) describes the front end; Tian et
al., "Audio-Visual Event Localization in Unconstrained Videos" (ECCV 2018) takes one patch per second. Samples are
16-bit integers (N, channels), as decoded by `media.Media.seconds_of_sound`.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE = 16000                        # VGGish's sample rate in Hz
WINDOW, HOP, SPECTRUM = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ, OFFSET = 64, 125.0, 7500.0, 0.01
PATCH = 96                          # frames per patch, 0.96 s
NEEDED = WINDOW + (PATCH - 1) * HOP         # samples per patch: 15,600, 0.975 s
SILENCE = np.log(OFFSET)            # log-mel of digital silence, in every band
ROUTES, FRAMINGS = ("native", "nearest"), ("second", "continuous")
NEAREST_RATE, NEAREST_LIMIT = 44100, 0.99   # moviepy 1.0.3: its sample rate in Hz and its clipping level
SCALE = 32768.0                     # full scale of 16-bit samples
BLOCK = 500                         # outputs whose filter weights are computed at a time


@dataclass(frozen=True)
class Kaiser:
    """A windowed-sinc filter of resampy: zero crossings per wing, table entries per crossing, window, roll-off."""

    crossings: int
    precision: int
    beta: float
    rolloff: float


RESAMPLERS = {                      # `kaiser_best` of resampy up to 0.2.2 and since 0.3 (bmcfee/resampy issue 101)
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
    """Input times of the first `count` outputs, in samples. The old version accumulates steps; its rounding matters at
    integer times, where the filter jumps."""
    step = 1 / (target / rate)
    if resampler == "r022":
        return np.concatenate([[0.0], np.add.accumulate(np.full(max(count - 1, 0), step))])[:count]
    return np.arange(count) * step


def _filter(times, length, rate, target, resampler):
    """Weights (len(times), length), sparse, of the outputs at input times `times`."""
    precision, scale = RESAMPLERS[resampler].precision, min(1.0, target / rate)
    table = scale * _wing(resampler)
    slope = np.append(np.diff(table), 0.0)
    step = int(scale * precision)                       # truncated as in resampy
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
    """The filter for a whole second of `length` samples: 70 MB at 44.1 kHz, computed once for all seconds."""
    times = _times(int(length * target / rate), rate, target, resampler)
    taps = 2 * (len(_wing(resampler)) // int(min(1.0, target / rate) * RESAMPLERS[resampler].precision) + 1)
    weights = np.empty(len(times) * taps)               # an upper bound; unused pages take no memory
    columns, ends, filled = np.empty(len(weights), np.int32), [np.zeros(1, np.int64)], 0
    for k in range(0, len(times), BLOCK):
        part = _filter(times[k:k + BLOCK], length, rate, target, resampler)
        weights[filled:filled + part.nnz], columns[filled:filled + part.nnz] = part.data, part.indices
        ends.append(part.indptr[1:] + filled)
        filled += part.nnz
    from scipy.sparse import csr_array
    return csr_array((weights[:filled], columns[:filled], np.concatenate(ends)), shape=(len(times), length))


def resample(x, rate, target=RATE, resampler="r022"):
    """Band-limited resampling, equivalent to `resampy.resample(x, rate, target)` with its default filter.

    Args:
        x: (N,) float64.
        rate, target: sample rates in Hz.
        resampler: "r022" (resampy up to 0.2.2, used for the published features) or "r043" (since 0.3).
    Returns:
        (int(N * target / rate),) float64; `x` itself if the rates are equal.
    """
    if rate == target:
        return x
    if len(x) == rate and int(len(x) * target / rate):
        return _second_filter(len(x), rate, target, resampler) @ x
    times = _times(int(len(x) * target / rate), rate, target, resampler)
    parts = [_filter(times[k:k + BLOCK], len(x), rate, target, resampler) @ x for k in range(0, len(times), BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0)


def nearest_index(k):
    """Index of the 44.1 kHz sample that moviepy's `write_audiofile(fps=16000)` takes for output sample `k`."""
    return np.round(NEAREST_RATE * (np.asarray(k) / RATE)).astype(np.int64)


def nearest(samples, second=0):
    """Convert to 16 kHz by nearest samples, without a low-pass filter, as moviepy 1.0.3 does for AVVP and AVSBench.

    Args:
        samples: (N, channels) int16 at 44.1 kHz; one second of audio, or any length if `second` is 0.
        second: start of `samples` within the clip, in seconds.
    Returns:
        (n, channels) int16: every output whose nearest sample is in `samples`, clipped to 0.99 of full scale.
    """
    start = second * RATE
    index = nearest_index(np.arange(start, start + len(samples) * RATE // NEAREST_RATE + 1)) - second * NEAREST_RATE
    picked = samples[index[index < len(samples)]] / SCALE
    return (np.clip(picked, -NEAREST_LIMIT, NEAREST_LIMIT) * SCALE).astype(np.int16)


def mono(samples):
    """Mean over all channels, LFE included: (N, channels) int16 -> (N,) float64, full scale 1."""
    return (samples / SCALE).mean(1)


@cache
def window():
    """Periodic Hann window, (400,) float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@cache
def mel_matrix():
    """Triangular filters, linear in mel, with peak 1, no area normalization and no DC: (257, 64) float64."""
    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    bins = mel(np.linspace(0.0, RATE / 2, SPECTRUM // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    matrix = np.maximum(0.0, np.minimum((bins - low) / (center - low), (high - bins) / (high - center)))
    matrix[0] = 0.0
    return matrix


def log_mel(x):
    """Log-mel frames of a 16 kHz waveform: (N,) float64 -> (1 + (N - 400) // 160, 64) float64; none if N < 400."""
    if len(x) < WINDOW:
        return np.zeros((0, BANDS))
    frames = sliding_window_view(x, WINDOW)[::HOP] * window()
    return np.log(np.abs(np.fft.rfft(frames, SPECTRUM)) @ mel_matrix() + OFFSET)


def count_rows(length):
    """Number of patches of `continuous` framing in `length` samples at 16 kHz: 0.96 s apart, 0.975 s long."""
    frames = 1 + (length - WINDOW) // HOP if length >= WINDOW else 0
    return max(0, 1 + (frames - PATCH) // PATCH)


@dataclass(frozen=True)
class FrontEnd:
    """Converts seconds of audio to log-mel patches.

    Attributes:
        route: "native" resamples from the stream's own rate to 16 kHz; for "nearest" see `nearest`.
        framing: "second" frames each second separately (AVE, AVVP), "continuous" every 0.96 s (AudioSet, AVSBench).
        resampler: see `resample`.
    """

    route: str = "native"
    framing: str = "second"
    resampler: str = "r022"

    def at_16k(self, samples, rate, second=0):
        """One second, or a whole clip if `second` is 0, as mono at 16 kHz: float64."""
        return mono(nearest(samples, second)) if self.route == "nearest" else resample(mono(samples), rate, RATE,
                                                                                       self.resampler)

    def patches(self, seconds, rate):
        """Log-mel patches, time first.

        Args:
            seconds: iterable of (rate, channels) int16; the last may be shorter.
            rate: sample rate in Hz; 44,100 on the route "nearest".
        Returns:
            (rows, 96, 64) float32; a last second shorter than 0.975 s gives no row.
        """
        return np.concatenate([np.zeros((0, PATCH, BANDS), np.float32), *self.parts(seconds, rate)])

    def parts(self, seconds, rate, most=16):
        """Yield `patches`, up to `most` at a time, so that memory does not grow with the clip. The framing "continuous"
        still keeps the whole clip in memory."""
        if self.framing == "second":
            waves = (self.at_16k(samples, rate, k) for k, samples in enumerate(seconds))
            rows = (log_mel(wave)[:PATCH].astype(np.float32) for wave in waves if len(wave) >= NEEDED)
        else:
            rows = iter(self._whole(seconds, rate))
        while part := list(islice(rows, most)):
            yield np.stack(part)

    def _whole(self, seconds, rate):
        """`patches` with the framing "continuous"."""
        if self.route == "nearest":
            whole = [mono(nearest(samples, k)) for k, samples in enumerate(seconds)]
            wave = np.concatenate(whole) if whole else np.zeros(0)
        else:
            whole = [mono(samples) for samples in seconds]
            wave = resample(np.concatenate(whole), rate, RATE, self.resampler) if whole else np.zeros(0)
        rows = count_rows(len(wave))
        return log_mel(wave)[:rows * PATCH].reshape(rows, PATCH, BANDS).astype(np.float32)


def logmel_of_patches(patches):
    """128 values per second from VGGish's log-mel: the mean and maximum of each band over the patch.

    Of the pairs of statistics tried (means of both halves, mean and deviation, mean and maximum) this one separates
    spoken digits best, for known and unknown speakers: neither depends on the position of the sound in the second.

    Args:
        patches: (T, 96, 64).
    Returns:
        (T, 128) float32 >= 0: nepers above silence, 64 means, then 64 maxima.
    """
    above = np.maximum(np.asarray(patches, np.float64) - SILENCE, 0.0)
    return np.concatenate([above.mean(1), above.max(1)], 1).astype(np.float32)


def logmel_second(waveform, rate=RATE, resampler="r022"):
    """128 values per second of audio, without a network: see `logmel_of_patches`.

    Args:
        waveform: (N,) floats with full scale 1, or 16-bit integers; a last second shorter than 0.975 s is dropped.
        rate: sample rate in Hz.
    Returns:
        (T, 128) float32; silence gives zeros.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(f"waveform has shape {waveform.shape}; expected (N,), a single channel")
    wave = waveform / SCALE if waveform.dtype == np.int16 else waveform.astype(np.float64)
    seconds = [resample(wave[k:k + rate], rate, RATE, resampler) for k in range(0, len(wave), rate)]
    rows = [log_mel(second)[:PATCH] for second in seconds if len(second) >= NEEDED]
    return logmel_of_patches(np.stack(rows)) if rows else np.zeros((0, 2 * BANDS), np.float32)
