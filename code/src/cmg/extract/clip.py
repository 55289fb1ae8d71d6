"""Extract the features of one video: choose its seconds and frames, and report what is wrong with it."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from av.error import FFmpegError

from cmg.extract import audio, video
from cmg.extract.encoders import BATCH
from cmg.extract.media import Media, Unreadable, rgb
from cmg.utils.errors import InputError
from cmg.utils.limits import LIMITS

NEAR = 0.5                          # a clip within this many seconds of T is cut into T equal parts
SHORTEST = audio.NEEDED / audio.RATE        # seconds; a shorter clip gives no row
DAMAGED = 0.05                      # a clip with a larger fraction of damaged packets gets no features
CANCELED = 0.01                     # level of the channels' mean, relative to the channels, that counts as silence
BAD_START = "bad_start"             # status of a clip whose start is not within its video


@dataclass(frozen=True)
class Timing:
    """The rows of a feature in time, and the frames of each row.

    Attributes:
        seconds: length of a clip; None for each clip's own length.
        per_second: frames per second that are averaged into a row.
        clock: "tenths" cuts the frames into equal parts (AVE), "time" uses the frame rate (AVSBench); None selects
            "tenths" for clips within half a second of `seconds`, otherwise "time".
        last: take only the last frame of each row (AVSBench's frames).
        rows_per_second: a row is 1 / rows_per_second seconds long.
        hop: seconds between the starts of consecutive rows; None for the row length, so that rows do not overlap.
    """

    seconds: float | None = 10
    per_second: int = video.PER_SECOND
    clock: str | None = None
    last: bool = False
    rows_per_second: float = 1.0
    hop: float | None = None

    @classmethod
    def of(cls, rows, description):
        """The timing of features of T rows, using the rows and hop of their description (cmg/data/origins.py)."""
        plain = cls(rows, **{name: description[name] for name in ("rows_per_second", "hop") if name in description})
        return plain if plain.is_by_second else replace(plain, seconds=plain.length + (rows - 1) * plain.step)

    @property
    def length(self):
        """Length of a row in seconds."""
        return 1 / self.rows_per_second

    @property
    def step(self):
        """Seconds between the starts of consecutive rows."""
        return self.hop or self.length

    @property
    def is_by_second(self):
        """Whether each row is one second, as in the published features."""
        return self.length == self.step == 1

    @property
    def blocks(self):
        """One-second blocks of audio that are encoded for a row."""
        return max(1, int(self.length + video.ROUNDING))

    @property
    def rows(self):
        """T, the rows of a feature; None if that depends on the clip."""
        return None if self.seconds is None else self.rows_in(self.seconds)

    def rows_in(self, seconds):
        """Complete rows in a number of seconds."""
        return max(0, int((seconds - self.length) / self.step + 1 + video.ROUNDING))

    def record(self):
        """JSON values for the record of a run; the row length and hop are included only if a row is not one second."""
        found = {name: getattr(self, name) for name in ("seconds", "per_second", "clock", "last")}
        return found | self.rows_record()

    def rows_record(self):
        """Row length and hop for the description of features; empty if each row is one second."""
        return {} if self.is_by_second else {"rows_per_second": self.rows_per_second, "hop": self.step}

    def frames(self, count, rate):
        """Frames of each row.

        Args:
            count: number of frames in the clip, at the nominal rate.
            rate: frames per second.
        Returns:
            (clock, (rows, frames per row or 1) frame numbers).
        """
        seconds = self.seconds or max(1, int(count / rate))
        rows = self.rows_in(seconds)
        clock = self.clock or ("tenths" if abs(count / rate - seconds) <= NEAR else "time")
        if clock == "tenths":
            if count / rate > seconds + NEAR:
                count = round(seconds * rate)               # the first seconds of a longer clip
            q = int(count // seconds)
        else:
            q = max(1, round(rate))
            rows = min(rows, math.floor((count / q - self.length / 2) / self.step) + 1)     # needs at least half a row
        table = video.at_rate(q, max(rows, 0), self.per_second, self.length, self.step)
        table = np.minimum(table, max(0, count - 1))
        return clock, table[:, -1:] if self.last else table


@dataclass
class Row:
    """A line of the report. Unknown fields are empty."""

    id: str
    status: str = "ok"
    duration: str = ""
    frame_rate: str = ""
    frames: str = ""
    audio_rate: str = ""
    channels: str = ""
    rows: str = ""
    warning: str = ""


@dataclass
class Extracted:
    """A clip's features (None if there are none) and its line of the report."""

    row: Row
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    problems: list = field(default_factory=list)            # (status, explanation)


class Problem(Exception):
    """The reason why a modality of a clip has no features: a status and an explanation."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def extract(path, name, timing, sound=None, pictures=None, start=0.0, silence_for_missing=False, batch=BATCH):
    """Features of one video.

    Args:
        path: video file.
        name: id of the clip.
        timing: `Timing`.
        sound, pictures: encoders (see `encoders`); None to skip a modality.
        start: start of the clip in seconds.
        silence_for_missing: give a video without audio the features of silence.
        batch: frames encoded at a time.
    Returns:
        `Extracted`; a problem with the file becomes a status and a warning in its row, never an exception.
    """
    result = Extracted(Row(name))
    if not 0 <= start < math.inf:
        result.row.status, result.row.warning = BAD_START, f"the start is {start:g} s; expected 0 or more"
        return result
    try:
        media = Media(path, start)
    except Unreadable as error:
        result.row.status, result.row.warning = "unreadable", str(error)
        return result
    _describe(result.row, media)
    if media.starts_past_end:
        result.row.status = BAD_START
        result.row.warning = f"the start, {start:g} s, is past the end of the file, {media.facts.duration:.2f} s"
        return result
    for modality, encoder, make in (("audio", sound, _sound), ("video", pictures, _pictures)):
        if encoder is None:
            continue
        try:
            feature = make(media, encoder, timing, silence_for_missing if modality == "audio" else batch, result.row)
            _check(feature, media, modality, timing)
            setattr(result, modality, feature)
        except Problem as problem:
            result.problems.append((problem.status, f"{modality}: {problem}"))
        except Unreadable as error:
            result.problems.append(("unreadable", str(error)))
        except Exception as error:  # noqa: BLE001   one clip must not end the run over all the others
            if isinstance(error, (InputError, MemoryError)) and not isinstance(error, FFmpegError):
                raise                   # FFmpeg's own MemoryError comes from a size that the file claims
            result.problems.append(("error", f"{modality}: {type(error).__name__}: {error}"))
    _conclude(result, media, timing)
    return result


def _describe(row, media):
    facts = media.facts
    row.duration = "" if facts.duration is None else f"{facts.duration:.3f}"
    row.frame_rate = "" if facts.frame_rate is None else f"{float(facts.frame_rate):.6g}"
    row.audio_rate = "" if facts.audio_rate is None else str(facts.audio_rate)
    row.channels = "" if facts.channels is None else str(facts.channels)


def _sound(media, encoder, timing, silence_for_missing, row):
    rate, count = media.facts.audio_rate, timing.rows
    if rate is None:
        if not silence_for_missing:
            raise Problem("no_audio", "no audio; --silence-for-missing writes the features of silence")
        rate = audio.NEAREST_RATE if encoder.nearest_route else audio.RATE
        count = count or timing.rows_in(max(1, int(media.facts.duration or 1)))
        if count > LIMITS.video_seconds:
            raise Problem("too_long", f"{count} s; expected at most {LIMITS.video_seconds} s "
                          "(cmg/utils/limits.py); cut the video or pass --seconds")
        media.warnings.append("no audio: the features of silence are written")
        return encoder.encode([np.zeros((rate, 2), np.int16)] * count, rate)
    if encoder.whole and not count and (media.facts.duration or 0) > LIMITS.sound_seconds:
        raise Problem("too_long", f"{media.facts.duration:.0f} s; expected at most {LIMITS.sound_seconds} s with "
                      "--framing continuous; cut the video or pass --seconds")
    loudest, power, power_of_mean = None, 0.0, 0.0

    def watched():
        nonlocal loudest, power, power_of_mean
        sound = (media.seconds_of_sound(count, encoder.nearest_route) if timing.is_by_second else
                 media.sound_of_rows(count, timing.length, timing.step, timing.blocks))
        for samples in sound:
            loudest = max(loudest or 0, int(abs(samples.astype(np.int32)).max(initial=0)))
            power += np.square(samples, dtype=np.float64).mean(1).sum()
            power_of_mean += np.square(samples.mean(1)).sum()
            yield samples

    feature = encoder.encode(watched(), audio.NEAREST_RATE if encoder.nearest_route else rate)
    if loudest is None:
        raise _nothing("the audio cannot be decoded", media)
    if loudest <= 1:
        media.warnings.append("audio: digital silence throughout")
    elif power_of_mean <= CANCELED ** 2 * power:
        media.warnings.append("audio: silence, because the channels cancel out (opposite phases)")
    if timing.blocks > 1:
        feature = feature.reshape(-1, timing.blocks, feature.shape[-1]).mean(1, dtype=np.float64).astype(np.float32)
    return feature[:count]


def _pictures(media, encoder, timing, batch, row):
    rate = media.facts.frame_rate
    if rate is None:
        raise Problem("no_video", "no video, or only a cover picture")
    guess = media.facts.frames or int(rate * (timing.seconds or 10))
    for _ in range(4):                      # first with the header's frame count, then with the count actually read
        planned = _plan(timing, guess, rate)
        feature, count = _encode_frames(media, encoder, timing, planned[1], batch)
        row.frames = str(count)
        if count == 1 and media.facts.audio_rate:
            raise Problem("no_video", "a single picture")
        if count == 0:
            raise _nothing("no frame can be decoded", media)
        if count / rate < SHORTEST:
            raise Problem("too_short", f"{count} frames, {float(count / rate):.2f} s; at least one second is needed")
        found = _plan(timing, count, rate)
        if np.array_equal(np.minimum(planned[1], count - 1), found[1]):
            return feature
        guess = count
    raise Problem("error", "the number of frames changes every time the file is read")


def _nothing(text, media):
    """The `Problem` for a stream without any decoded data."""
    return Problem(BAD_START, f"no data at or after the start, {media.start:g} s") if media.start else Problem(
        "unreadable", text)


def _plan(timing, count, rate):
    """`Timing.frames`; raises `Problem` if all seconds are taken and the clip is too long."""
    if not timing.seconds and count / rate > LIMITS.video_seconds:
        raise Problem("too_long", f"{float(count / rate):.0f} s; expected at most {LIMITS.video_seconds} s "
                      "(cmg/utils/limits.py); cut the video or pass --seconds")
    return timing.frames(count, rate)


def _encode_frames(media, encoder, timing, table, batch):
    """Mean over the frames of each row, (rows, ...) float32, and the number of frames up to T + 0.5 s.

    Each distinct frame is encoded once, even if the timeline repeats it or the file stores the same picture again. The
    mean is computed in float64 and rounded once.
    """
    rows, per_row = table.shape
    order = table.ravel().argsort(kind="stable")            # rows may overlap
    wanted, row_of, limit = table.ravel()[order], order // per_row, None
    if timing.seconds:
        limit = math.floor((timing.seconds + NEAR) * media.facts.frame_rate) + 1
    sums, kind, waiting, position, count = None, None, [], 0, 0

    def encode():
        nonlocal sums, kind
        maps = encoder.encode([frame for frame, _ in waiting])
        if sums is None:
            _refuse_above_limit(rows * maps[0].size * 4, rows)
            sums, kind = np.zeros((rows, *maps.shape[1:])), maps.dtype
        for one, (_, times) in zip(maps, waiting):
            for row, repeated in times.items():
                sums[row] += repeated * one.astype(np.float64)
        waiting.clear()

    for frame, _, count in media.timeline(limit):       # noqa: B007   count is used after the loop
        held, stop = frame, position + int(np.searchsorted(wanted[position:], count))
        if stop > position:
            prepared = encoder.prepare(rgb(frame))
            if len(waiting) >= batch and not np.array_equal(waiting[-1][0], prepared):
                encode()
            _take(waiting, prepared, row_of[position:stop])
            position = stop
    if count and position < len(wanted):                # fewer frames than the header claims: repeat the last one
        _take(waiting, encoder.prepare(rgb(held)), row_of[position:])
    if waiting:
        encode()
    return (np.zeros(0) if sums is None else np.divide(sums, per_row, out=sums).astype(kind)), count


def _take(waiting, prepared, rows):
    times = Counter(rows.tolist())
    if waiting and np.array_equal(waiting[-1][0], prepared):
        waiting[-1][1].update(times)
    else:
        waiting.append((prepared, times))


def _refuse_above_limit(size, rows):
    if size > LIMITS.array_bytes:
        raise Problem("too_long", f"{rows} rows are {size >> 20} MiB; expected at most {LIMITS.array_bytes >> 20} MiB; "
                      "cut the video or pass --seconds")


def _check(feature, media, modality, timing):
    """Reject features that should not be used; warn about the other problems."""
    packets, damaged = media.packets.get(modality, 0), media.damaged.get(modality, 0)
    if damaged > DAMAGED * packets:
        raise Problem("damaged", f"{damaged} of {packets} packets cannot be decoded")
    if damaged:
        media.warnings.append(f"{modality}: {damaged} of {packets} packets skipped as damaged")
    if not len(feature):
        raise Problem("too_short", f"no complete row; at least {SHORTEST * timing.length:g} s are needed")
    _refuse_above_limit(feature.nbytes, len(feature))
    if not np.isfinite(feature).all():
        raise Problem("error", "the network's output has NaN or infinite values")
    if timing.rows and len(feature) < timing.rows:
        media.warnings.append(f"{modality}: {len(feature)} of {timing.rows} rows; loaders repeat the last row")


def _conclude(result, media, timing):
    """Fill in status, rows and warnings of the report's line."""
    row, facts = result.row, media.facts
    if row.frames and facts.duration is not None:
        found, promised = int(row.frames) / float(facts.frame_rate), facts.duration - media.start
        if found < min(promised, timing.seconds or promised) - NEAR:
            media.warnings.append(f"the video ends after {found:.2f} s; the header says {promised:.2f} s")
    made = {m: len(x) for m, x in (("audio", result.audio), ("video", result.video)) if x is not None}
    row.rows = (str(*set(made.values())) if len(set(made.values())) == 1 else
                ", ".join(f"{m} {n}" for m, n in made.items()))
    if result.problems:
        row.status = result.problems[0][0]
    lines = [text for _, text in result.problems] + list(dict.fromkeys(media.warnings))
    row.warning = " ".join("; ".join(lines).split())
