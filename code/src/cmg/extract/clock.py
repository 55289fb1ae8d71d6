"""Time stamps of files whose clock may restart, such as transport streams joined with `cat`."""

from fractions import Fraction

import av

CLOCK_MAY_JUMP = av.format.Flags.ts_discont.value
LARGEST_JUMP, BACKWARDS = 10, Fraction(1, 10)       # seconds: ffmpeg's -dts_delta_threshold and backward tolerance


class ContinuousClock:
    """Turns the time stamps of a file whose clock may jump into continuous ones.

    Packets are interleaved, so the streams pass a jump one after the other. Each stream counts the jumps that it has
    passed; `shifts[n]` is added to its times after n of them.
    """

    def __init__(self):
        self.shifts = [Fraction(0)]
        self.jumps, self.last, self.expected = {}, {}, {}       # by stream; times as in the file

    def move(self, packet):
        """Shift a packet's time stamps in place; returns its time in seconds, or None without a time stamp."""
        if packet.dts is None:
            return None
        stream, time = packet.stream_index, packet.dts * packet.time_base
        passed, expected = self.jumps.setdefault(stream, len(self.shifts) - 1), self.expected.get(stream, time)
        others = [last for other, last in self.last.items() if other != stream]
        is_back = time < self.last.get(stream, time) - BACKWARDS
        is_far = abs(time - expected) > LARGEST_JUMP
        # A stream that is far ahead of its own last packet, but not of the other streams, merely had a pause.
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
    """Duration of a packet in seconds."""
    if not packet.duration and packet.stream.type == "video" and packet.stream.average_rate:
        return 1 / Fraction(packet.stream.average_rate)
    return (packet.duration or 0) * packet.time_base
