"""Label tensors: (T, C+1) of 0 and 1, column order = class list, LAST column = background (released loaders)."""

import numpy as np
import torch

from cmg.utils.errors import InputError


def single_event(label, mask, num_classes):
    """Labels of clips with one class each.

    Args:
        label: class index of each clip, (N,) or a number.
        mask: (N, T) or (T,), 1 in the seconds of the event.
        num_classes: C.
    Returns:
        float32 (N, T, C+1) or (T, C+1); background is 1 outside the event.
    """
    mask = np.asarray(mask, np.float32)
    one_hot = np.eye(num_classes, num_classes + 1, dtype=np.float32)[label]         # (..., C+1)
    result = mask[..., None] * one_hot[..., None, :]
    result[..., -1] = 1 - mask
    return result


def multi_event(events, num_classes, seconds):
    """Labels of one clip with several events, which may overlap and repeat.

    Args:
        events: list of (class index, onset, offset) in seconds; second t belongs to an event where onset <= t < offset,
            so that an empty or reversed interval adds nothing.
        num_classes: C.
        seconds: T.
    Returns:
        float32 (T, C+1); background is 1 where no event is.
    """
    result = np.zeros((seconds, num_classes + 1), np.float32)
    t = np.arange(seconds)
    for index, onset, offset in events:
        result[(onset <= t) & (t < offset), index] = 1
    result[:, -1] = ~result[:, :-1].any(1)
    return result


def parse_times(path, name, text):
    """Comma-joined times in seconds -> list of float; InputError names the clip and the value."""
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = [np.nan]
    if not np.isfinite(times).all():
        raise InputError(f"{path}: {name} has the times '{text[:60]}'; comma-joined seconds are expected; mend the "
                         "line")
    return times


def clip_class(labels):
    """Class of each clip: arg max over the C foreground columns of each second, then the maximum over time.

    A second without foreground gives 0; where two classes occur, the higher index wins (released programs).

    Args:
        labels: (..., T, C+1), array or tensor, last column background.
    Returns:
        (...) int64 tensor, on the device of the labels.
    """
    return torch.as_tensor(labels)[..., :-1].argmax(-1).amax(-1)
