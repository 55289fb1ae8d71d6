"""Time stamps of files whose clock may start again, as in transport streams that were joined by `cat`."""

from fractions import Fraction

import av

CLOCK_MAY_JUMP = av.format.Flags.ts_discont.value
LARGEST_JUMP, BACKWARDS = 10, Fraction(1, 10)       # seconds: ffmpeg's -dts_delta_threshold, its tolerance backwards


class ContinuousClock:
    """The continuous clock of a file whose own may jump.

    Streams pass a jump one after the other, since their packets are interleaved: each counts the jumps that it has
    passed, and `shifts` has what is added to its times after so many.
    """

    def __init__(self):
        self.shifts = [Fraction(0)]
        self.jumps, self.last, self.expected = {}, {}, {}       # by stream; times as they are in the file

    def move(self, packet):
        """Move a packet; returns its time in seconds, None where it has none."""
        if packet.dts is None:
            return None
        stream, time = packet.stream_index, packet.dts * packet.time_base
        passed, expected = self.jumps.setdefault(stream, len(self.shifts) - 1), self.expected.get(stream, time)
        others = [last for other, last in self.last.items() if other != stream]
        is_back = time < self.last.get(stream, time) - BACKWARDS
        is_far = abs(time - expected) > LARGEST_JUMP
        # A stream that is far ahead where others are as well only had nothing to say in between.
        if is_back or is_far and (passed + 1 < len(self.shifts) or all(abs(time - o) > LARGEST_JUMP for o in others)):
            if passed + 1 == len(self.shifts):
                self.shifts.append(self.shifts[passed] + expected - time)
            self.jumps[stream] = passed = passed + 1
        self.last[stream], self.expected[stream] = time, time + _length(packet)
        shift = round(self.shifts[passed] / packet.time_base)
        packet.dts += shift
        packet.pts = None if packet.pts is None else packet.pts + shift
        return time + self.shifts[passed]


def _length(packet):
    """Seconds of a packet."""
    if not packet.duration and packet.stream.type == "video" and packet.stream.average_rate:
        return 1 / Fraction(packet.stream.average_rate)
    return (packet.duration or 0) * packet.time_base
