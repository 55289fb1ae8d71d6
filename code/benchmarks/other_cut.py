"""A different split of the Spoken Digits recordings with different features, to test whether choices generalize.

    python code/benchmarks/other_cut.py --recordings DIR --out data/other_cut
    python code/benchmarks/defaults.py --data_root data/other_cut --out other.jsonl --only default shared --seeds 0

Training and test use different takes and images, every second has its own recording and image (`--hold 10`: one of each
per clip), and features are not computed by `prepare.py features`: they are 32 mel bands in the four quarters of a word,
and 16 random filters (`--channels`) on the 7 x 7 patches of 4 x 4 pixels of an image. `defaults.py` uses only audio and
video by default.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from cmg.data.layout import DATA_PATHS
from cmg.demos import spoken
from cmg.demos.spoken_clips import NONE, Cut
from cmg.demos.spoken_sources import RATE
from cmg.utils.errors import Parser, run
from cmg.utils.settings import positive

WINDOW, HOP, BANDS, QUARTERS, FLOOR = 256, 80, 32, 4, 1e-4      # samples at 8 kHz; FLOOR: added to the power
LOWEST_HZ, HIGHEST_HZ = 80, 3900
SIDE, GRID = 4, 7                                               # pixels per patch side, patches per image side


def mel_bank():
    """Triangular filters of equal width in mel, (32, 129)."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)[:, None]
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (hertz - edges[:-2]) / np.diff(edges[:-1], axis=0)
    falling = (edges[2:] - hertz) / np.diff(edges[1:], axis=0)
    return np.maximum(0, np.minimum(rising, falling))


def word_features(wave, bank):
    """Log-mel power above silence, averaged over each quarter of a word: (128,) float32."""
    x = wave.astype(np.float64) / 32768
    x = np.pad(x, (0, max(0, QUARTERS * WINDOW - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = np.log(power @ bank.T + FLOOR) - np.log(FLOOR)
    return np.concatenate([quarter.mean(0) for quarter in np.array_split(mel, QUARTERS)]).astype(np.float32) / QUARTERS


class OtherCut(spoken.Writer):
    """Data tree with these features."""

    name = "Spoken Digits, another cut"
    cut = Cut({"test": slice(35, 50), "val": slice(30, 35), "train": slice(0, 30)},
              {"train": slice(1500, 5000), "val": slice(1000, 1500), "test": slice(0, 1000)}, hold=1)

    def start(self, speech, images):
        filters = np.random.RandomState(7).standard_normal((SIDE * SIDE, self.channels)).astype(np.float32)
        super().start(speech, images)
        self.filters, self.bank = filters / np.linalg.norm(filters, axis=0), mel_bank()
        return self

    def audio(self, clip, part):
        """(T, 128) float32."""
        found = np.zeros((len(clip.heard), BANDS * QUARTERS), np.float32)
        for second in np.flatnonzero(clip.heard != NONE):
            found[second] = word_features(self.pools[part].waves[clip.heard[second]][:RATE], self.bank)
        return found

    def video(self, clip, part):
        """(T, 7, 7, 16) float32."""
        found = np.zeros((len(clip.seen), GRID, GRID, self.channels), np.float32)
        for second in np.flatnonzero(clip.seen != NONE):
            image = self.pools[part].pixels[clip.seen[second]].astype(np.float32) / 255
            patches = image.reshape(GRID, SIDE, GRID, SIDE).transpose(0, 2, 1, 3).reshape(GRID, GRID, SIDE * SIDE)
            found[second] = np.maximum(0, patches @ self.filters)
        return found


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of the archives, as for spoken.sh")
    parser.add_argument("--out", type=Path, required=True, help="folder to create; pass it as --data_root")
    parser.add_argument("--seed", type=int, default=5, help="random seed")
    parser.add_argument("--clips", type=int, default=2400, help="number of pretraining clips; others are proportional")
    parser.add_argument("--channels", type=positive, default=OtherCut.channels, help="number of video filters")
    parser.add_argument("--hold", type=positive, default=OtherCut.cut.hold,
                        help="seconds before the recording and the image change")
    options = parser.parse_args(argv)

    class Chosen(OtherCut):
        name = f"{OtherCut.name}, {options.channels} filters, hold {options.hold}"
        channels, cut = options.channels, replace(OtherCut.cut, hold=options.hold)
    spoken.build(options.out, DATA_PATHS, options.recordings, options.seed, options.clips, writer=Chosen)


if __name__ == "__main__":
    run(main)
