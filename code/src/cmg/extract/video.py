"""Prepare frames like AVE's program, in NumPy: frame sampling, OpenCV's bilinear resize; and `patches`.

Tian et al., "Audio-Visual Event Localization in Unconstrained Videos" (ECCV 2018): 16 frames and one feature map per
second. Frames are 8-bit RGB, (H, W, 3).
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

SIDE = 224                          # side of the networks' input in pixels
PER_SECOND = 16                     # frames per row
GRID = 7                            # rows and columns of a feature map
CELL, CHANNELS = 8, 32              # `patches`: side of a cell in pixels after averaging, features per cell
ROUNDING = 1e-9                     # so that 0.1 * 30 frames are 3
FILTER_SEED = 16                    # fixed, so that the random filters are the same in every run


def at_rate(q, rows, per_second=PER_SECOND, length=1.0, hop=1.0):
    """Sample frames without time stamps, like AVE's and AVSBench's programs: row l takes the frames
    int(l * hop * q + i * q / per_second), i = 0, 1, ...

    Args:
        q: frames per second: the frame rate, or a clip's frames divided into equal parts.
        rows: rows of the feature.
        length, hop: seconds per row, and seconds between the starts of consecutive rows.
    Returns:
        (rows, frames per row) int64.
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
    """Indices and weights of `bilinear` for one frame size: the input rows it needs; in these, the columns (pixel and
    channel) left and right of each output pixel; and in the result, the rows above and below."""

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
        fraction = np.where((x < 0) | (x >= width - 1), np.float32(0), fraction)      # only horizontally, as OpenCV
        x = np.clip(x, 0, width - 1)
        columns = (channels * taps[:, None] + np.arange(channels) for taps in (x, np.minimum(x + 1, width - 1)))
        y, fraction_y = _taps(height, side)
        rows = np.clip(np.stack([y, y + 1]), 0, height - 1)
        wanted, position = np.unique(rows, return_inverse=True)
        return cls(wanted, *map(np.ravel, columns), *(weight.repeat(channels) for weight in _weights(fraction)),
                   *position.reshape(rows.shape), *(weight[:, None] for weight in _weights(fraction_y)))


@cache
def _opencv():
    """OpenCV's `resize` if OpenCV is installed and gives the same integers as `bilinear`; else None."""
    try:
        from cv2 import resize as fast
    except ImportError:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (2, 3 * SIDE, 3 * SIDE, 3), dtype=np.uint8)
    samples = noise[0, :301, :533], noise[1, :97, :131], noise[0, :SIDE, :2 * SIDE]
    same = all(np.array_equal(fast(sample, (SIDE, SIDE)), bilinear(sample, SIDE)) for sample in samples)
    return fast if same else None


def resize(frame, side=SIDE):
    """`cv2.resize(frame, (side, side))`: bilinear, no antialiasing, aspect ratio not kept. Uses OpenCV if installed,
    else `bilinear`, which is slower and gives the same integers.

    Args:
        frame: (H, W, 3) uint8.
    Returns:
        (side, side, 3) uint8; the frame itself if it already has that size.
    """
    if frame.shape[:2] == (side, side):
        return frame
    fast = _opencv()
    return fast(np.ascontiguousarray(frame), (side, side)) if fast else bilinear(frame, side)


def bilinear(frame, side):
    """`resize` in NumPy, with OpenCV's integer arithmetic.

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
    """Pixels of the cells of a 7 x 7 grid: the frame is resized to 224 and each cell averaged to 8 x 8 pixels.

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
    """Fixed random filters, (192, channels) float32, with unit columns; the same on every machine."""
    filters = np.random.RandomState(FILTER_SEED).standard_normal((CELL * CELL * 3, channels))
    return (filters / np.linalg.norm(filters, axis=0)).astype(np.float32)


def pca_filters(frames, channels=CHANNELS):
    """Principal components of the cells of frames: (192, channels) float32, with unit columns.

    Args:
        frames: (N, H, W, 3) uint8, with at least `channels` different cells.
        channels: at most 192.
    """
    x = cells(frames).reshape(-1, CELL * CELL * 3).astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    vectors = vectors[:, ::-1][:, :channels]
    largest = np.abs(vectors).argmax(0)
    return (vectors * np.sign(vectors[largest, np.arange(channels)])).astype(np.float32)


def patches(frames, filters=None):
    """Feature maps without a network: linear filters over the cells of a 7 x 7 grid.

    Args:
        frames: (N, H, W, 3) uint8, any size.
        filters: (192, C), by default `random_filters()`; `pca_filters` fits filters to frames.
    Returns:
        (N, 7, 7, C) float32, channels last.
    """
    return cells(frames) @ (random_filters() if filters is None else filters)
