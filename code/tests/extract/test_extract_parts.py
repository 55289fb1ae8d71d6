"""Parts of the extraction as a library: resampling, framing, frames, resizing, `logmel_second`, `patches`."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmg.extract import audio, video
from cmg.extract.clip import Timing
from cmg.extract.encoders import LogMelSound
from conftest import ROOT


def slow_resample(x, rate, target, kind):
    """The formula of resampy, sample by sample."""
    filters = audio.RESAMPLERS[kind]
    n, ratio = filters.crossings * filters.precision, target / rate
    h = filters.rolloff * np.sinc(filters.rolloff * filters.crossings * np.arange(n + 1) / n)
    h = min(1, ratio) * h * np.kaiser(2 * n + 1, filters.beta)[n:]
    delta, scale = np.append(np.diff(h), 0), min(1, ratio)
    step, result, time = int(scale * filters.precision), [], 0.0
    for k in range(int(len(x) * ratio)):
        time = k * (1 / ratio) if kind == "r043" else time
        i, y = int(time), 0.0
        for wing, f in enumerate((scale * (time - i), scale - scale * (time - i))):
            offset, eta = int(f * filters.precision), f * filters.precision - int(f * filters.precision)
            taps = min(i + 1 if wing == 0 else len(x) - i - 1, (n + 1 - offset) // step)
            for m in range(taps):
                weight = h[offset + m * step] + eta * delta[offset + m * step]
                y += weight * x[i - m if wing == 0 else i + 1 + m]
        result.append(y)
        time += 1 / ratio
    return np.array(result)


@pytest.mark.parametrize("kind", audio.RESAMPLERS)
@pytest.mark.parametrize("rate, target, length", [(44100, 16000, 500), (48000, 16000, 300), (8000, 16000, 120),
                                                  (22050, 16000, 2), (11025, 24000, 90)])
def test_resampling_is_the_formula(kind, rate, target, length):
    x = np.random.default_rng(0).standard_normal(length)
    np.testing.assert_allclose(audio.resample(x, rate, target, kind), slow_resample(x, rate, target, kind), atol=1e-12)


def test_a_whole_second_uses_the_kept_filter_and_gives_the_same():
    x = np.random.default_rng(0).standard_normal(22050)
    whole = audio.resample(x, 22050)
    longer = audio.resample(np.append(x, 0.0), 22050)
    np.testing.assert_allclose(whole[:15000], longer[:15000], atol=1e-12)


@given(st.integers(0, 700_000))
@settings(max_examples=60, deadline=None)
def test_rows_of_continuous_framing_are_those_that_fit(length):
    rows = audio.count_rows(length)
    assert rows == max(0, (length - 400) // 160 + 1 if length >= 400 else 0) // 96


def test_nearest_in_seconds_equals_nearest_of_the_whole():
    samples = np.random.default_rng(0).integers(-32768, 32767, (3 * 44100 + 20000, 2)).astype(np.int16)
    parts = [audio.nearest(samples[k * 44100:(k + 1) * 44100], k) for k in range(4)]
    assert (np.concatenate(parts) == audio.nearest(samples)).all()
    assert np.abs(audio.nearest(samples).astype(int)).max() == 32440          # 0.99 of full scale, cut toward zero


def test_last_second_needs_all_of_a_patch():
    for length, rows in ((15600, 1), (15599, 0), (31600, 2), (31599, 1)):
        seconds = [np.ones((min(16000, length - k), 1), np.int16) for k in range(0, length, 16000)]
        assert len(audio.FrontEnd().patches(seconds, 16000)) == rows


def test_a_long_sound_is_heard_part_by_part(monkeypatch):
    """Whatever its length: 16 seconds are held, then their features alone."""
    heard, parts, plain = [], [], audio.logmel_of_patches

    def sound():
        for k in range(40):
            heard.append(k)
            yield np.full((16000, 1), k, np.int16)

    monkeypatch.setattr(audio, "logmel_of_patches", lambda x: parts.append((len(x), len(heard))) or plain(x))
    rows = LogMelSound(audio.FrontEnd()).encode(sound(), 16000)
    assert parts == [(16, 16), (16, 32), (8, 40)]
    assert (rows == plain(audio.FrontEnd().patches(sound(), 16000))).all()
    parts.clear()
    assert LogMelSound(audio.FrontEnd()).encode([], 16000).shape == (0, 128) and not parts


def test_logmel_second():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(3 * 8000 + 100) * 0.1
    rows = audio.logmel_second(noise, 8000)
    assert rows.shape == (3, 128) and rows.dtype == np.float32 and (rows >= 0).all() and rows.max() < 15
    assert (rows[:, 64:] >= rows[:, :64]).all()                     # maxima, means
    assert not audio.logmel_second(np.zeros(32000)).any()
    integers = np.clip(np.rint(noise * 32768), -32768, 32767).astype(np.int16)
    np.testing.assert_allclose(audio.logmel_second(integers, 8000), rows, atol=0.05)
    patches = audio.FrontEnd().patches([integers[k:k + 8000, None] for k in range(0, 24000, 8000)], 8000)
    np.testing.assert_allclose(audio.logmel_of_patches(patches), audio.logmel_second(integers, 8000), atol=1e-5)
    with pytest.raises(ValueError, match="single channel"):
        audio.logmel_second(np.zeros((100, 2)))


def test_patches_are_local_and_keep_pictures_apart():
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3)).astype(np.uint8)
    maps = video.patches(frames)
    assert maps.shape == (2, 7, 7, video.CHANNELS) and maps.dtype == np.float32
    changed = frames.copy()
    changed[0, :6, :8] = 0                                          # the upper left corner
    moved = np.abs(video.patches(changed) - maps).max(-1)
    assert moved[0, 0, 0] > 0.01 and not moved[1].any() and not moved[0, 2:].any() and not moved[0, :, 2:].any()


def test_pca_filters_are_principal_directions():
    frames = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3)).astype(np.uint8)
    filters = video.pca_filters(frames, 5)
    np.testing.assert_allclose(filters.T @ filters, np.eye(5), atol=1e-5)
    spread = video.patches(frames, filters).reshape(-1, 5).var(0)
    random = (video.cells(frames).reshape(-1, 192) @ video.random_filters(8)).var(0)
    assert (np.diff(spread) <= 1e-6).all() and spread[0] >= random.max()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_resize_keeps_grey_and_bounds(height, width, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    small = video.resize(frame)
    assert small.shape == (224, 224, 3) and small.min() >= frame.min() and small.max() <= frame.max()
    assert (video.resize(np.full_like(frame, 77)) == 77).all()


@pytest.mark.parametrize("count, rate, seconds, clock, rows", [
    (251, 25, 10, "tenths", 10), (238, 25, 10, "tenths", 10), (262, 25, 10, "tenths", 10), (263, 25, 10, "time", 10),
    (160, 25, 10, "time", 6), (163, 25, 10, "time", 7), (90, 30, None, "tenths", 3), (1500, 25, 10, "time", 10)])
def test_clock_and_rows(count, rate, seconds, clock, rows):
    found, table = Timing(seconds).frames(count, rate)
    assert found == clock and table.shape == (rows, 16) and table.max() < count and (np.diff(table.ravel()) >= 0).all()
    if clock == "tenths":
        assert (table == equal_parts(count, seconds or rows)).all()


def equal_parts(count, seconds):
    """AVE's sampled frames: row l takes int(l * q + i * q / 16) with q = int(count / seconds), no time stamps."""
    q = count // seconds
    return [[int(row * q + k * q / 16) for k in range(16)] for row in range(seconds)]


def test_tenths_of_a_longer_clip_are_of_its_first_seconds():
    _, table = Timing(10, clock="tenths").frames(1500, 25)
    assert (table == equal_parts(250, 10)).all()


def test_the_package_imports_no_script():
    code = ("import sys; import cmg.extract.run, cmg.extract.text, cmg.extract.command, cmg.extract.hub\n"
            "print(sorted({'prepare', 'pretrain', 'configs', 'cmg.cli', 'engine'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "code" / "src", capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
