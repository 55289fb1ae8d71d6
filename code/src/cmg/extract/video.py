"""Frames to inputs as AVE's program makes them, in NumPy: which frames, OpenCV's bilinear resize; and `patches`.

Tian et al., "Audio-Visual Event Localization in Unconstrained Videos" (ECCV 2018): 16 frames a second, one feature map
a second. Frames are RGB, 8 bit, (H, W, 3).
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

SIDE = 224                          # of a frame as the networks get it
PER_SECOND = 16                     # frames of a row
GRID = 7                            # rows and columns of a feature map
CELL, CHANNELS = 8, 32              # `patches`: pixels of a cell's side after averaging, features of a cell
ROUNDING = 1e-9                     # so that 0.1 * 30 frames are 3
FILTER_SEED = 16                    # of the fixed random filters: features made at different times fit together


def at_rate(q, rows, per_second=PER_SECOND, length=1.0, hop=1.0):
    """Sampled frames without time stamps, as AVE's and AVSBench's programs do: of row l the frames
    int(l * hop * q + i * q / per_second), i = 0, 1, ...

    Args:
        q: frames of a second: the frame rate, or a clip's frames in equal parts.
        rows: rows of the feature.
        length, hop: seconds of a row, and from one row's start to the next one's.
    Returns:
        (rows, frames of a row) int64.
    """
    row, part = np.arange(rows)[:, None] * hop, np.arange(max(1, round(per_second * length))) / per_second
    return (row * q + part * q + ROUNDING).astype(np.int64)


def _taps(source, side):
    """Left index and fraction of each output pixel along one axis, before clamping."""
    position = ((np.arange(side) + 0.5) * (1.0 / (side / source)) - 0.5).astype(np.float32)
    index = np.floor(position).astype(np.int64)
    return index, (position - index.astype(np.float32)).astype(np.float32)


def _weights(fraction):
    """Weights of both neighbors, times 2048."""
    return (np.rint((1 - fraction) * np.float32(2048)).astype(np.int32),
            np.rint(fraction * np.float32(2048)).astype(np.int32))


@dataclass(frozen=True)
class _Grid:
    """What `bilinear` takes of frames of one size: their rows; columns of these, pixel by pixel with all channels, that
    are left and right of an output pixel; of the result, rows above and below; and the weights of all."""

    rows: np.ndarray
    left: np.ndarray
    right: np.ndarray
    left_weights: np.ndarray
    right_weights: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    upper_weights: np.ndarray
    lower_weights: np.ndarray

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, height, width, channels, side):
        x, fraction = _taps(width, side)
        fraction = np.where((x < 0) | (x >= width - 1), np.float32(0), fraction)      # horizontally alone
        x = np.clip(x, 0, width - 1)
        columns = (channels * taps[:, None] + np.arange(channels) for taps in (x, np.minimum(x + 1, width - 1)))
        y, fraction_y = _taps(height, side)
        rows = np.clip(np.stack([y, y + 1]), 0, height - 1)
        wanted, position = np.unique(rows, return_inverse=True)
        return cls(wanted, *map(np.ravel, columns), *(weight.repeat(channels) for weight in _weights(fraction)),
                   *position.reshape(rows.shape), *(weight[:, None] for weight in _weights(fraction_y)))


@cache
def _opencv():
    """OpenCV's `resize` if it is installed and gives the same integers as ours; else None."""
    try:
        from cv2 import resize as fast
    except ImportError:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (2, 3 * SIDE, 3 * SIDE, 3), dtype=np.uint8)
    samples = noise[0, :301, :533], noise[1, :97, :131], noise[0, :SIDE, :2 * SIDE]
    same = all(np.array_equal(fast(sample, (SIDE, SIDE)), bilinear(sample, SIDE)) for sample in samples)
    return fast if same else None


def resize(frame, side=SIDE):
    """`cv2.resize(frame, (side, side))`: bilinear, no antialiasing, aspect ratio lost. By OpenCV where it is installed,
    else by `bilinear`, which takes longer and gives the same integers.

    Args:
        frame: (H, W, 3) uint8.
    Returns:
        (side, side, 3) uint8; the frame itself where it has that size.
    """
    if frame.shape[:2] == (side, side):
        return frame
    fast = _opencv()
    return fast(np.ascontiguousarray(frame), (side, side)) if fast else bilinear(frame, side)


def bilinear(frame, side):
    """`resize` in NumPy, in the integers of OpenCV.

    Args:
        frame: (H, W, 3) uint8.
    Returns:
        (side, side, 3) uint8.
    """
    grid = _Grid.of(*frame.shape, side)
    pixels = frame[grid.rows].reshape(len(grid.rows), -1)
    across = pixels.take(grid.left, 1) * grid.left_weights
    across += pixels.take(grid.right, 1) * grid.right_weights
    across >>= 4
    result, below = across.take(grid.upper, 0), across.take(grid.lower, 0)
    result *= grid.upper_weights
    result >>= 16
    below *= grid.lower_weights
    below >>= 16
    result += below
    result += 2
    result >>= 2
    return result.astype(np.uint8).reshape(side, side, -1)


# ---------------------------------------------------------------------------------------------------- patches
def cells(frames):
    """Pixels of the cells of a 7 x 7 grid: each cell of the frame resized to 224, averaged to 8 x 8 pixels.

    Args:
        frames: (N, H, W, 3) uint8.
    Returns:
        (N, 7, 7, 192) float32, about -1..1.
    """
    small = np.stack([resize(frame) for frame in frames])
    block, pixels = SIDE // GRID // CELL, GRID * CELL
    sums = small.reshape(len(small), pixels, block, -1).sum(2, dtype=np.uint16)         # exact: far below 2^16
    sums = sums.reshape(len(small), pixels, pixels, block, 3).sum(3, dtype=np.uint16)
    small = (sums / np.float32(block ** 2) / np.float32(127.5) - 1).reshape(len(small), GRID, CELL, GRID, CELL, 3)
    return small.transpose(0, 1, 3, 2, 4, 5).reshape(len(small), GRID, GRID, CELL * CELL * 3)


@cache
def random_filters(channels=CHANNELS):
    """Fixed random filters, (192, channels) float32, columns of length 1; the same on every machine."""
    filters = np.random.RandomState(FILTER_SEED).standard_normal((CELL * CELL * 3, channels))
    return (filters / np.linalg.norm(filters, axis=0)).astype(np.float32)


def pca_filters(frames, channels=CHANNELS):
    """Principal directions of the cells of some frames: (192, channels) float32, columns of length 1.

    Args:
        frames: (N, H, W, 3) uint8, with at least `channels` different cells; `channels` up to 192.
    """
    x = cells(frames).reshape(-1, CELL * CELL * 3).astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    vectors = vectors[:, ::-1][:, :channels]
    largest = np.abs(vectors).argmax(0)
    return (vectors * np.sign(vectors[largest, np.arange(channels)])).astype(np.float32)


def patches(frames, filters=None):
    """Feature maps without any network: filters over the cells of a 7 x 7 grid.

    Args:
        frames: (N, H, W, 3) uint8, any size.
        filters: (192, C), default `random_filters()`; `pca_filters` fits some to given frames.
    Returns:
        (N, 7, 7, C) float32, channels last.
    """
    return cells(frames) @ (random_filters() if filters is None else filters)
