"""Clips of Spoken Digits: a recorded word, once per second during an event, and a handwritten digit.

The features are those of `prepare.py features --audio-encoder logmel --video-encoder patches --patch-filters pca
--patch-channels 16`, computed without video files. Outside of events, a clip is gray and silent, and its features are
nearly zero.
"""

from dataclasses import dataclass

import numpy as np

from cmg.demos.dialled_clips import spectrogram
from cmg.demos.spoken_sources import RATE, SIDE
from cmg.demos.tree import Deck
from cmg.extract.audio import logmel_second
from cmg.extract.video import GRID, patches, pca_filters

NONE = -1                               # no recording (silence), or no image (empty canvas)
CANVAS = GRID * SIDE                    # side in pixels; an image fills one of 7 x 7 cells
GRAY = 128                              # value of an empty canvas
CHANNELS = 16                           # V
GROUP = 5000                            # MNIST's test images are from two groups of writers with 5,000 images each


@dataclass(frozen=True)
class Cut:
    """How recordings and images are divided and used.

    Attributes:
        takes: part -> takes of every speaker and digit.
        images: part -> images from each of the two groups of writers, which contribute equally to all parts.
        hold: seconds after which recording and image change.
    """

    takes: dict
    images: dict
    hold: int


# Takes 0 to 4 are the test split of the dataset.
OFFICIAL = Cut({"test": slice(0, 5), "val": slice(5, 10), "train": slice(10, 50)},
               {"train": slice(0, 3500), "val": slice(3500, 4000), "test": slice(4000, 5000)}, hold=3)


@dataclass
class Pool:
    """The recordings and images of one part, disjoint from those of other parts.

    Attributes:
        waves: list of int16 arrays.
        said: (N,) digit of each.
        pixels: (M, 28, 28) uint8.
        shown: (M,) digit of each.
    """

    waves: list
    said: np.ndarray
    pixels: np.ndarray
    shown: np.ndarray


def pool(part, speech, images, cut=OFFICIAL):
    """`Pool` of "train", "val" or "test"."""
    takes, group = cut.takes[part], cut.images[part]
    spoken = np.flatnonzero((speech.index >= takes.start) & (speech.index < takes.stop))
    number = np.arange(len(images.digit)) % GROUP
    written = (number >= group.start) & (number < group.stop)
    return Pool([speech.waves[k] for k in spoken], speech.digit[spoken], images.pixels[written], images.digit[written])


@dataclass
class Clip:
    """Recordings and images of each second.

    Attributes:
        heard: (T,) index of a recording in the pool, or NONE.
        onset: (T,) start of the word, as a fraction 0..1 of the second's free time.
        seen: (T,) index of an image in the pool, or NONE.
        cell: (T,) index of the cell, out of 49, that contains the image.
    """

    heard: np.ndarray
    onset: np.ndarray
    seen: np.ndarray
    cell: np.ndarray


class Casting:
    """Draws recordings and images of given digits from a pool; none is repeated before all have been used."""

    def __init__(self, pool, rng, hold=OFFICIAL.hold):
        self.rng, self.hold = rng, hold
        self.decks = {"heard": Deck(pool.said, rng), "seen": Deck(pool.shown, rng)}

    def next(self, kind, digit):
        """Index of the next recording ("heard") or image ("seen") of a digit."""
        return self.decks[kind].next(digit)

    def clip(self, heard, seen):
        """`Clip` of the digits heard and seen in each second, (T,), or NONE.

        Recording, image and its random cell change every `hold` seconds, the onset of the word in every second.
        """
        cells = self.rng.integers(GRID * GRID, size=len(seen))
        cell = np.where(seen == NONE, 0, cells[np.arange(len(seen)) - _since(seen) % self.hold])
        return Clip(self._cast("heard", heard), self.rng.random(len(heard)), self._cast("seen", seen), cell)

    def _cast(self, kind, digits):
        drawn, since = np.full(len(digits), NONE), _since(digits)
        for second in np.flatnonzero(digits != NONE):
            drawn[second] = drawn[second - 1] if since[second] % self.hold else self.next(kind, digits[second])
        return drawn


def _since(digits):
    """Seconds since the digit of each second began, (T,)."""
    number = np.arange(len(digits))
    begins = np.append(True, digits[1:] != digits[:-1])
    return number - np.maximum.accumulate(np.where(begins, number, 0))


def waveform(clip, pool):
    """The waveform (T * 8000,) int16 of a clip; words longer than a second are cut."""
    wave = np.zeros(len(clip.heard) * RATE, np.int16)
    for second in np.flatnonzero(clip.heard != NONE):
        word = pool.waves[clip.heard[second]][:RATE]
        start = second * RATE + round(clip.onset[second] * (RATE - len(word)))
        wave[start:start + len(word)] = word
    return wave


def frame(clip, pool, second):
    """The frame (196, 196, 3) uint8 of a second."""
    canvas = np.full((CANVAS, CANVAS), GRAY, np.uint8)
    if clip.seen[second] != NONE:
        row, column = SIDE * (clip.cell[second] // GRID), SIDE * (clip.cell[second] % GRID)
        canvas[row:row + SIDE, column:column + SIDE] = pool.pixels[clip.seen[second]]
    return _color(canvas)


def audio_features(clip, pool):
    """Audio features (T, 128) float32 of a clip."""
    return logmel_second(waveform(clip, pool), RATE)


def originals(clip, pool):
    """Content of a clip for display in the report: its spectrogram, and the image in the event's first second, as
    {"audio": (128, T * 15), "video": (28, 28)}, uint8."""
    sound = waveform(clip, pool).reshape(-1, RATE) / np.float32(1 << 15)
    return {"audio": spectrogram(sound), "video": pool.pixels[clip.seen[(clip.seen != NONE).argmax()]]}


def filters(pool):
    """Principal components (192, 16) of a pool's images, fitted to canvases that are filled with them."""
    whole = len(pool.pixels) // GRID ** 2 * GRID ** 2
    sheets = pool.pixels[:whole].reshape(-1, GRID, GRID, SIDE, SIDE).transpose(0, 1, 3, 2, 4)
    return pca_filters([_color(sheet) for sheet in sheets.reshape(-1, CANVAS, CANVAS)], CHANNELS)


def video_features(clip, pool, filters):
    """Video features (T, 7, 7, V) float32 of a clip, with `filters` (192, V). Repeated frames are computed once."""
    first, which = np.unique(np.stack([clip.seen, clip.cell], 1), axis=0, return_index=True, return_inverse=True)[1:]
    return patches([frame(clip, pool, second) for second in first], filters)[which.ravel()]


def _color(canvas):
    return np.repeat(canvas[..., None], 3, 2)
