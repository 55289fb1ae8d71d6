"""Stream a video file through PyAV: frames at a constant rate and one-second blocks of 16-bit audio, on one clock.

Only the frames being decoded are kept in memory, so an hour-long file needs no more than a short one. Damaged packets
are skipped and counted. Frame timing and sample conversion follow FFmpeg; both streams are timed from the container's
start.

Files are not trusted: only demuxers of plain files are allowed (a playlist could name any other file or address), and
the values in a header are checked against limits.
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

# Demuxers that read a single file. Others (concat, hls, dash, sdp, vobsub, image2 ...) open the files that it names.
DEMUXERS = ("mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,live_flv,asf,ogg,mxf,wav,w64,mp3,aac,loas,flac,"
            "aiff,gif")
DECODER = {"max_pixels": str(LIMITS.pixels)}            # before a frame of that size is allocated
# Before version 19, PyAV rejects a file with a tag that is not UTF-8, unless told otherwise.
TAGS = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
NOTABLE = 0.1                       # seconds of gap or late start that deserve a warning
MICROSECONDS = 1_000_000            # of the container's clock
DEFAULT_BONUS = 5_000_000           # score that ffmpeg adds to a track marked as default
RESTART = 1                         # seconds backwards that count as a restart where the clock should not jump
WHOLE = 0.975                       # fraction of a row that must be present
PREROLL = 1.0                       # seconds decoded before the start: the first packets after a seek lack context


class Unreadable(InputError):
    """A file from which nothing can be decoded."""


@dataclass
class Facts:
    """Properties from the file's header; None where it does not give them."""

    duration: float | None = None           # seconds, of the container
    frame_rate: Fraction | None = None      # nominal
    frames: int | None = None               # by the header, else by duration and rate
    audio_rate: int | None = None
    channels: int | None = None


class Media:
    """A file with audio, video or both.

    Args:
        path: a file in any format that FFmpeg reads.
        start: offset in seconds from the container's start.
    Attributes:
        facts: see `Facts`; `frame_rate` is None without video (a cover picture does not count), `audio_rate` without
            audio.
        packets, damaged: by "audio" and "video", the number of packets that the last pass read and skipped.
        warnings: problems found while decoding, one line each.
        starts_past_end: whether `start` is at or past the end of the file, according to its header.
    Raises:
        Unreadable: the file has no audio or video stream.
    """

    def __init__(self, path, start=0.0):
        self.path, self.start = Path(path), start
        self.packets, self.damaged, self.warnings = {}, {}, []
        with self._open() as container:
            video, audio = _streams(container)
            for stream, tracks in zip((video, audio), _tracks(container)):
                if len(tracks) > 1:
                    self._warn(f"{len(tracks)} {stream.type} tracks: using track {tracks.index(stream) + 1}, as "
                               "ffmpeg does")
            facts = self.facts = Facts()
            if container.duration:
                facts.duration = container.duration / MICROSECONDS
            # If the clock may jump, the header may give the duration of the last part only.
            self.starts_past_end = facts.duration is not None and start >= facts.duration and not (
                container.format.flags & CLOCK_MAY_JUMP)
            if video is not None:
                rate = video.guessed_rate or video.average_rate or video.base_rate
                if not rate:
                    raise Unreadable(f"{self.path}: no frame rate; expected a video that has one; re-encode it, for "
                                     "example with ffmpeg -r 25")
                facts.frame_rate = Fraction(rate)       # PyAV 19 has its own type, which round() does not accept
                if not 0 < facts.frame_rate <= LIMITS.frame_rate or video.width * video.height > LIMITS.pixels:
                    raise Unreadable(f"{self.path}: {video.width} x {video.height} pixels at "
                                     f"{float(facts.frame_rate):.6g} frames per second; the limits are "
                                     f"{LIMITS.pixels:,} pixels and {LIMITS.frame_rate:,} frames per second "
                                     "(cmg/utils/limits.py); check where the file comes from")
                if video.frames and not start:
                    facts.frames = video.frames
                elif facts.duration is not None and not (
                        container.format.flags & CLOCK_MAY_JUMP and facts.duration > LIMITS.video_seconds):
                    facts.frames = max(0, round((facts.duration - start) * facts.frame_rate))
            if audio is not None and audio.rate and audio.channels:
                facts.audio_rate, facts.channels = audio.rate, audio.channels
                self._require_rate(audio.rate)

    def _warn(self, line):
        if line not in self.warnings:               # a second pass finds the same problems
            self.warnings.append(line)

    def _require_rate(self, rate):
        if not LIMITS.least_sound_rate <= rate <= LIMITS.sound_rate:
            raise Unreadable(f"{self.path}: the audio sample rate is {rate:,} Hz; expected {LIMITS.least_sound_rate:,} "
                             f"to {LIMITS.sound_rate:,} (cmg/utils/limits.py); check where the file comes from")

    def _open(self):
        try:                                        # "file:", because a name may look like a URL
            require_regular(self.path)
            container = av.open(f"file:{self.path}", options=DECODER, **TAGS,
                                container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise Unreadable(f"{self.path}: cannot be opened ({_reason(error)}); expected an intact video file; "
                             "download it again") from None
        if not any(stream is not None for stream in _streams(container)):
            container.close()
            raise Unreadable(f"{self.path}: no audio or video stream; expected a video file; download it again")
        return container

    def _decoded(self, container, stream):
        """Yield (seconds after the start or None, frame) in order; packets that cannot be decoded are skipped and
        counted."""
        stream.codec_context.thread_count = 1       # clips are decoded in parallel, and the number of packets that
        stream.codec_context.options = DECODER      # count as damaged must not depend on the machine
        self.packets[stream.type] = self.damaged[stream.type] = 0
        clock = Fraction(container.start_time or 0, MICROSECONDS) + Fraction(self.start)
        packets = self._packets(container, stream, clock - Fraction(PREROLL) if self.start else None)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:           # nothing more can be read
                if error.errno == errno.EIO:                # is it the file's format or the disk?
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
        """Yield a stream's packets, starting at the key frame before `begin` (in seconds of the container's clock).

        In some formats the clock may restart, for example in transport streams joined with `cat`. The packets that
        follow are shifted to continue the clock, by the same amount in all streams and with ffmpeg's thresholds. Such
        files are read from their first packet, because their time stamps are not unique.
        """
        if not container.format.flags & CLOCK_MAY_JUMP:
            if begin is not None:
                try:
                    container.seek(max(int(begin * MICROSECONDS), 0))
                except av.error.FFmpegError:
                    pass                                # no index: decode from the beginning
            yield from self._until_restart(container.demux(stream))
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

    def _until_restart(self, packets):
        """Yield packets until the clock restarts in a format where it should not; like ffmpeg, drop the rest."""
        latest = None
        for packet in packets:
            if packet.dts is None:                                  # the last packet is empty: it flushes the decoder
                yield packet
            elif latest is None or math.inf > latest <= packet.dts * packet.time_base + RESTART:
                latest = packet.dts * packet.time_base
                yield packet
            elif latest < math.inf:
                self._warn(f"the time stamps restart after {float(latest):.1f} s, as in files joined with cat: the "
                           "rest is ignored; join the parts with a video editor")
                latest = math.inf

    def timeline(self, limit=None):
        """Frames at the nominal rate, repeated and dropped as by FFmpeg's fps filter.

        Args:
            limit: number of positions on the timeline; None for all.
        Yields:
            (frame, first, end): a PyAV frame and the positions [first, end) that it fills.
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
        """The audio in one-second blocks of 16-bit integers; FFmpeg converts it from the file's sample format.

        Args:
            count: seconds to read; None for all.
            nearest_route: convert to 44.1 kHz stereo, as `audio.nearest` expects; otherwise keep the stream's rate and
                channels.
        Yields:
            (rate, channels) int16; the last block may be shorter.
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
        """The audio of rows that are not one second long: `blocks` seconds centered on each row. The audio is padded
        with silence before its start and after its end.

        Args:
            rows: number of rows to read; None for all complete rows.
            length, hop: seconds of a row, and seconds between the starts of consecutive rows.
            blocks: seconds of audio per row.
        Yields:
            (rate, channels) int16, `blocks` of them per row.
        """
        rate = self.facts.audio_rate
        margin = max(0, round((blocks - length) / 2 * rate))
        first = round((length - blocks) / 2 * rate)                 # offset of a row's first block from its start
        held = begin = end = None                                   # samples [begin, end) of the audio
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
        """Yield (n, channels) int16 from the start; gaps are filled with silence and the codec's padding is cut."""
        with self._open() as container:
            stream = _streams(container)[1]
            layout = layout or stream.layout.name
            channels = av.AudioLayout(layout).nb_channels
            clock = Fraction(container.start_time or 0, MICROSECONDS) + Fraction(self.start)
            remaining = None                        # samples up to the stream's end according to the container
            if stream.duration is not None and not container.format.flags & CLOCK_MAY_JUMP:
                end = ((stream.start_time or 0) + stream.duration) * stream.time_base - clock
                remaining = max(0, int(end * rate))
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
                frame.pts = None                    # keep the resampler from filling gaps itself
                piece = _integers(convert.resample(frame), channels)
                silence = 0
                if gap > 0 and (first or gap > NOTABLE):
                    silence = round(gap * rate)
                    if gap > NOTABLE:
                        found = "starts late by" if first else "is missing for"
                        self._warn(f"audio {found} {float(gap):.2f} s: filled with silence")
                elif first and gap < 0:
                    piece = piece[round(-gap * rate):]
                for part in chain(_silence(silence, rate, channels), [piece]):
                    if remaining is not None:
                        part = part[:remaining]
                        remaining -= len(part)
                    filled += 0 if part is piece else len(part)
                    if filled > LIMITS.silence_seconds * rate:
                        raise Unreadable(f"{self.path}: more than {LIMITS.silence_seconds} s of audio are missing, the "
                                         "most that is filled with silence (cmg/utils/limits.py); the time stamps may "
                                         "be damaged: re-encode the file, or pass --seconds")
                    if len(part):
                        yield part
            if convert is not None:
                yield _integers(convert.resample(None), channels)[:remaining]


def _silence(count, rate, channels):
    """Yield `count` samples of silence in one-second blocks: a damaged time stamp may ask for a huge gap."""
    for k in range(0, count, rate):
        yield np.zeros((min(rate, count - k), channels), np.int16)


def _integers(frames, channels):
    """Samples of s16 frames, (n, channels) int16."""
    pieces = [frame.to_ndarray().reshape(-1, channels) for frame in frames]
    return np.concatenate(pieces) if pieces else np.zeros((0, channels), np.int16)


class _Converter(threading.local):
    """One pixel format converter per thread. A frame's own `reformat` builds a converter with its own threads on every
    call, which takes sixteen times as long."""

    def __init__(self):
        self.reformat = VideoReformatter().reformat


_converter = _Converter()


def rgb(frame):
    """Convert a PyAV frame to (H, W, 3) uint8, rotated and flipped according to its display matrix.

    The matrix maps a pixel (x, y) to (a x + c y, b x + d y). Angles are rounded to multiples of 90 degrees; ffmpeg
    would resample the frame instead.
    """
    picture = _converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(np.float64)
    x, y = math.hypot(a, c) or 1, math.hypot(b, d) or 1         # scale factors, to be ignored
    if abs(b) / y + abs(c) / x > abs(a) / x + abs(d) / y:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]


def _streams(container):
    """The (video, audio) streams that ffmpeg would select, None for a missing one: the most pixels or channels, and
    tracks marked as default before others. A cover picture does not count as video."""
    chosen = []
    for streams in _tracks(container):
        chosen.append(max(streams, default=None, key=lambda stream: _size(stream) + DEFAULT_BONUS * bool(
            stream.disposition & Disposition.default)))
    return chosen


def _tracks(container):
    """Lists of the video and the audio streams that can be decoded."""
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
