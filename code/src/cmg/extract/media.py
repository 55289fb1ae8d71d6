"""Decode a video file in a stream, with PyAV: frames on an even timeline, seconds of 16-bit sound, on one clock.

Nothing is held but what is being decoded: an hour-long file costs no more than a short one. Damaged packets are skipped
and counted. FFmpeg's fps filter and its sample conversion are the model; both streams count from the container's start.

Files are not trusted: only demuxers of plain files are used (a playlist could name any other file or address), and what
a header may claim is limited.
"""

import errno
import math
import threading
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from cmg.extract.clock import CLOCK_MAY_JUMP, ContinuousClock
from cmg.utils.errors import InputError, readable
from cmg.utils.files import open_input, require_regular
from cmg.utils.limits import LIMITS

# Demuxers of one file of sound or pictures. Others (concat, hls, dash, sdp, vobsub, image2 ...) open what a file names.
DEMUXERS = ("mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,live_flv,asf,ogg,mxf,wav,w64,mp3,aac,loas,flac,"
            "aiff,gif")
DECODER = {"max_pixels": str(LIMITS.pixels)}            # before a frame of that size is allocated
# PyAV below 19 refuses a file with a tag that is not UTF-8, unless told otherwise; from 19 on it never does.
TAGS = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
NOTABLE = 0.1                       # seconds of gap or late start that are worth a warning
MICROSECONDS = 1_000_000            # of the container's clock
DEFAULT_BONUS = 5_000_000           # what ffmpeg's choice among tracks adds for one that is marked as default
RESTART = 1                         # seconds backwards that are a restart where the clock should not jump
WHOLE = 0.975                       # share of a row that must be there
PREROLL = 1.0                       # seconds decoded before a start: the first packets after a seek lack their past


class Unreadable(InputError):
    """A file from which nothing can be decoded."""


@dataclass
class Facts:
    """What a file says about itself; None where it does not."""

    duration: float | None = None           # seconds, of the container
    frame_rate: Fraction | None = None      # nominal
    frames: int | None = None               # by the header, else by duration and rate
    audio_rate: int | None = None
    channels: int | None = None


class Media:
    """A file with sound or pictures or both.

    Args:
        path: any file that FFmpeg knows.
        start: seconds after the container's start at which everything begins.
    Attributes:
        facts: see `Facts`; `frame_rate` is None without pictures (or with a cover alone), `audio_rate` without sound.
        packets, damaged: by "audio" and "video", how many packets the last pass read, and how many it had to skip.
        warnings: lines on what was found while decoding.
        is_behind_the_end: the start is not before the end that the header gives.
    Raises:
        Unreadable: not a file of sound or pictures.
    """

    def __init__(self, path, start=0.0):
        self.path, self.start = Path(path), start
        self.packets, self.damaged, self.warnings = {}, {}, []
        with self._open() as container:
            video, audio = _streams(container)
            for stream, tracks in zip((video, audio), _tracks(container)):
                if len(tracks) > 1:
                    self._warn(f"{len(tracks)} {stream.type} tracks: number {tracks.index(stream) + 1} is used, as by "
                               "ffmpeg")
            facts = self.facts = Facts()
            if container.duration:
                facts.duration = container.duration / MICROSECONDS
            # Where the clock may jump, the header's duration may be that of the last part alone.
            self.is_behind_the_end = facts.duration is not None and start >= facts.duration and not (
                container.format.flags & CLOCK_MAY_JUMP)
            if video is not None:
                rate = video.guessed_rate or video.average_rate or video.base_rate
                if not rate:
                    raise Unreadable(f"{self.path}: no frame rate; a video with one is expected; convert it, say with "
                                     "ffmpeg -r 25")
                facts.frame_rate = Fraction(rate)       # PyAV 19 has a type of its own, which round() does not take
                if not 0 < facts.frame_rate <= LIMITS.frame_rate or video.width * video.height > LIMITS.pixels:
                    raise Unreadable(f"{self.path}: frames of {video.width} x {video.height}, "
                                     f"{float(facts.frame_rate):.6g} a second; up to {LIMITS.pixels:,} pixels and "
                                     f"{LIMITS.frame_rate:,} a second are read (cmg/utils/limits.py); check where it "
                                     "comes from")
                if video.frames and not start:
                    facts.frames = video.frames
                elif facts.duration is not None and not (
                        container.format.flags & CLOCK_MAY_JUMP and facts.duration > LIMITS.video_seconds):
                    facts.frames = max(0, round((facts.duration - start) * facts.frame_rate))
            if audio is not None and audio.rate and audio.channels:
                facts.audio_rate, facts.channels = audio.rate, audio.channels
                self._require_rate(audio.rate)

    def _warn(self, line):
        if line not in self.warnings:               # a second pass finds the same
            self.warnings.append(line)

    def _require_rate(self, rate):
        if not LIMITS.least_sound_rate <= rate <= LIMITS.sound_rate:
            raise Unreadable(f"{self.path}: sound of {rate:,} samples a second; {LIMITS.least_sound_rate:,} to "
                             f"{LIMITS.sound_rate:,} are read (cmg/utils/limits.py); check where it comes from")

    def _open(self):
        try:                                        # "file:", because a name may begin like an address
            require_regular(self.path)
            container = av.open(f"file:{self.path}", options=DECODER, **TAGS,
                                container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise Unreadable(f"{self.path}: cannot be opened ({_reason(error)}); a whole video is expected; get it "
                             "again") from None
        if not any(stream is not None for stream in _streams(container)):
            container.close()
            raise Unreadable(f"{self.path}: neither pictures nor sound; a video is expected; get it again")
        return container

    def _decoded(self, container, stream):
        """(seconds after the start or None, frame) in order; skips and counts what cannot be decoded."""
        stream.codec_context.thread_count = 1       # clips are decoded side by side; and how many packets count as
        stream.codec_context.options = DECODER      # damaged must not depend on the machine
        self.packets[stream.type] = self.damaged[stream.type] = 0
        clock = Fraction(container.start_time or 0, MICROSECONDS) + Fraction(self.start)
        packets = self._packets(container, stream, clock - Fraction(PREROLL) if self.start else None)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:           # nothing more can be read
                if error.errno == errno.EIO:                # of the file's form, or of the disk?
                    with readable(self.path, "extract it again"):
                        _read_through(self.path)
                self.damaged[stream.type] += 1
                self._warn(f"{stream.type} ends with an error ({_reason(error)})")
                return
            if packet is None:
                return
            self.packets[stream.type] += packet.size > 0
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.damaged[stream.type] += 1
                continue
            for frame in frames:
                self.damaged[stream.type] += bool(frame.is_corrupt)
                yield None if frame.pts is None else frame.pts * frame.time_base - clock, frame

    def _packets(self, container, stream, begin):
        """Packets of a stream from the key frame before `begin` (seconds of the container's clock) on.

        The clock of some formats may start again, say in transport streams that were joined by `cat`. The packets that
        follow are moved so that they continue the clock, those of all streams by the same, with the thresholds of the
        ffmpeg program. Such files are read from their first packet on, because a time in them is not unique.
        """
        if not container.format.flags & CLOCK_MAY_JUMP:
            if begin is not None:
                try:
                    container.seek(max(int(begin * MICROSECONDS), 0))
                except av.error.FFmpegError:
                    pass                                # no index: decode from the beginning
            yield from self._before_a_restart(container.demux(stream))
            return
        clock, waiting = ContinuousClock(), []
        for packet in container.demux([one for one in _streams(container) if one is not None]):
            time = clock.move(packet)
            if packet.stream_index != stream.index:
                continue
            if begin is None:
                yield packet
                continue
            if packet.is_keyframe and time is not None and time <= begin:
                waiting.clear()
            waiting.append(packet)
            if time is None or time > begin:
                yield from waiting
                begin = None

    def _before_a_restart(self, packets):
        """The packets until the clock starts again in a format whose clock should not; ffmpeg drops what follows."""
        latest = None
        for packet in packets:
            if packet.dts is None:                                  # the last one is empty: it ends the decoding
                yield packet
            elif latest is None or math.inf > latest <= packet.dts * packet.time_base + RESTART:
                latest = packet.dts * packet.time_base
                yield packet
            elif latest < math.inf:
                self._warn(f"the time stamps start again after {float(latest):.1f} s, as in files joined by cat: what "
                           "follows is left out; join the parts with a video program")
                latest = math.inf

    def timeline(self, limit=None):
        """Frames at the nominal rate, as FFmpeg's fps filter repeats and drops them.

        Args:
            limit: number of positions on the timeline; None for all.
        Yields:
            (frame, first, end): a frame of PyAV and the positions [first, end) that it fills.
        """
        rate, held, position = self.facts.frame_rate, None, 0
        index = -1
        with self._open() as container:
            stream = _streams(container)[0]
            for time, frame in self._decoded(container, stream):
                index = index + 1 if time is None else int((time * rate + Fraction(1, 2)) // 1)
                if held is not None and index > position:
                    yield held, position, index
                    position = index
                if limit is not None and position >= limit:
                    return
                held = frame
            if held is None:
                return
            length = held.duration * held.time_base if held.duration else 1 / rate
            end = max(index + max(1, int((length * rate + Fraction(1, 2)) // 1)), position)
            if end > position:
                yield held, position, end

    def seconds_of_sound(self, count=None, nearest_route=False):
        """The sound second by second, as 16-bit integers, made once by FFmpeg from whatever the file has.

        Args:
            count: seconds to read; None for all.
            nearest_route: 44.1 kHz stereo, as `audio.nearest` expects; else the stream's own rate and channels.
        Yields:
            (rate, channels) int16, the last may be shorter.
        """
        rate = 44100 if nearest_route else self.facts.audio_rate
        rest, ready = [], 0
        for samples in self._samples(rate, "stereo" if nearest_route else None):
            rest.append(samples)
            ready += len(samples)
            if ready >= rate:
                whole = np.concatenate(rest)
                for k in range(0, ready - rate + 1, rate):
                    yield whole[k:k + rate]
                    count = None if count is None else count - 1
                    if count == 0:
                        return
                rest = [whole[ready - ready % rate:]]
                ready %= rate
        if ready:
            yield np.concatenate(rest)

    def sound_of_rows(self, rows, length, hop, blocks):
        """The sound of rows that are no seconds: for each row `blocks` seconds in the middle of it, or, of a shorter
        row, the one second in whose middle it lies; silence stands before the start and after the end.

        Args:
            rows: how many rows to read; None for all whole ones.
            length, hop: seconds of a row, and from one row's start to the next one's.
            blocks: seconds that are heard of each row.
        Yields:
            (rate, channels) int16, `blocks` for each row.
        """
        rate = self.facts.audio_rate
        margin = max(0, round((blocks - length) / 2 * rate))
        first = round((length - blocks) / 2 * rate)                 # where a row's first second begins, from its start
        held = begin = end = None                                   # samples [begin, end) of the sound
        row = 0
        for samples in chain(self.seconds_of_sound(), [None]):
            if held is None:
                if samples is None:
                    return
                held, begin, end = np.zeros((margin, samples.shape[1]), np.int16), -margin, 0
            is_last = samples is None
            if is_last:
                samples = np.zeros((margin + rate, held.shape[1]), np.int16)
            else:
                end += len(samples)
            held = np.concatenate([held, samples])
            while rows is None or row < rows:
                at = round(row * hop * rate)
                until = at + first + blocks * rate
                if is_last and at + length * rate - end > (1 - WHOLE) * length * rate or until > begin + len(held):
                    break
                for k in range(blocks):
                    offset = at + first + k * rate - begin
                    yield held[offset:offset + rate]
                row += 1
            else:
                return
            drop = min(len(held), max(0, round(row * hop * rate) + first - begin))
            held, begin = held[drop:], begin + drop

    def _samples(self, rate, layout):
        """Pieces (n, channels) int16 from the start on: gaps are filled with silence, the codec's padding is cut."""
        with self._open() as container:
            stream = _streams(container)[1]
            layout = layout or stream.layout.name
            channels = av.AudioLayout(layout).nb_channels
            clock = Fraction(container.start_time or 0, MICROSECONDS) + Fraction(self.start)
            left = None                             # samples until the end that the container gives the stream
            if stream.duration is not None and not container.format.flags & CLOCK_MAY_JUMP:
                end = ((stream.start_time or 0) + stream.duration) * stream.time_base - clock
                left = max(0, int(end * rate))
            convert, form, expected, filled = None, None, None, 0
            for time, frame in self._decoded(container, stream):
                if form != (frame.format.name, frame.layout.name, frame.sample_rate):
                    form = (frame.format.name, frame.layout.name, frame.sample_rate)
                    self._require_rate(frame.sample_rate)
                    convert = av.AudioResampler(format="s16", layout=layout, rate=rate)
                first = expected is None
                gap = (time or Fraction(0)) - (expected or Fraction(0)) if time is not None else Fraction(0)
                until = (time if time is not None else expected or Fraction(0)) + Fraction(frame.samples,
                                                                                           frame.sample_rate)
                if until <= 0:
                    continue                        # before the start
                expected = until
                frame.pts = None                    # the resampler must not act on time stamps of its own
                piece = _integers(convert.resample(frame), channels)
                silence = 0
                if gap > 0 and (first or gap > NOTABLE):
                    silence = round(gap * rate)
                    if gap > NOTABLE:
                        found = "starts late by" if first else "is missing for"
                        self._warn(f"sound {found} {float(gap):.2f} s: filled with silence")
                elif first and gap < 0:
                    piece = piece[round(-gap * rate):]
                for part in chain(_silence(silence, rate, channels), [piece]):
                    if left is not None:
                        part = part[:left]
                        left -= len(part)
                    filled += 0 if part is piece else len(part)
                    if filled > LIMITS.silence_seconds * rate:
                        raise Unreadable(f"{self.path}: more than {LIMITS.silence_seconds} s of sound are missing; up "
                                         "to that are filled with silence (cmg/utils/limits.py); its time stamps may "
                                         "be damaged: convert it, or give --seconds")
                    if len(part):
                        yield part
            if convert is not None:
                yield _integers(convert.resample(None), channels)[:left]


def _silence(count, rate, channels):
    """`count` samples of silence, second by second: the gap may be a damaged time stamp."""
    for k in range(0, count, rate):
        yield np.zeros((min(rate, count - k), channels), np.int16)


def _integers(frames, channels):
    """Samples of s16 frames, (n, channels) int16."""
    pieces = [frame.to_ndarray().reshape(-1, channels) for frame in frames]
    return np.concatenate(pieces) if pieces else np.zeros((0, channels), np.int16)


class _Converter(threading.local):
    """Converter of pixel formats, one for each thread: that of a frame is made anew for it, with threads of its own,
    which takes sixteen times as long."""

    def __init__(self):
        self.reformat = VideoReformatter().reformat


_converter = _Converter()


def rgb(frame):
    """A frame of PyAV as (H, W, 3) uint8, turned and mirrored as its display matrix says.

    The matrix maps a pixel (x, y) to (a x + c y, b x + d y). Other angles than quarter turns, which ffmpeg resamples,
    take the nearest one.
    """
    picture = _converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(np.float64)
    x, y = math.hypot(a, c) or 1, math.hypot(b, d) or 1         # scales, which are no part of the orientation
    if abs(b) / y + abs(c) / x > abs(a) / x + abs(d) / y:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


def _streams(container):
    """(video, audio) streams of a container by the rule of the ffmpeg program, None for one that is not there: most
    pixels, most channels, tracks marked as default before others. A cover picture is no video."""
    chosen = []
    for streams in _tracks(container):
        chosen.append(max(streams, default=None, key=lambda stream: _size(stream) + DEFAULT_BONUS * bool(
            stream.disposition & Disposition.default)))
    return chosen


def _tracks(container):
    """Video streams and audio streams that can be decoded."""
    return [[stream for stream in streams if stream.codec_context and not stream.disposition & Disposition.attached_pic]
            for streams in (container.streams.video, container.streams.audio)]


def _size(stream):
    return stream.width * stream.height if stream.type == "video" else stream.channels


def _read_through(path):
    with open_input(path) as file:
        while file.read(1 << 22):
            pass


def _reason(error):
    return (getattr(error, "strerror", None) or str(error).splitlines()[0])[:100]
