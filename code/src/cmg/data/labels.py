"""Label tensors (T, C+1) of 0 and 1: columns in the order of the class list, background last (published loaders)."""

import numpy as np

from cmg.utils.errors import InputError


def single_event(label, mask, num_classes):
    """Labels of clips with one class each.

    Args:
        label: class index of each clip, (N,), or a single one.
        mask: (N, T) or (T,), 1 during the event.
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
        events: list of (class index, onset, offset) in seconds; second t belongs to an event if onset <= t < offset, so
            empty or reversed intervals add nothing.
        num_classes: C.
        seconds: T.

    Returns:
        float32 (T, C+1); background is 1 in seconds without an event.
    """
    result = np.zeros((seconds, num_classes + 1), np.float32)
    t = np.arange(seconds)
    for index, onset, offset in events:
        result[(onset <= t) & (t < offset), index] = 1
    result[:, -1] = ~result[:, :-1].any(1)
    return result


def parse_times(path, name, text):
    """Parse comma-separated times in seconds to a list of float; InputError names the clip and the value."""
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = [np.nan]
    if not np.isfinite(times).all():
        raise InputError(f"{path}: {name} has the times '{text[:60]}'; expected comma-separated seconds; correct the "
                         "line")
    return times


def clip_class(labels):
    """Class of each clip: argmax over the C foreground columns of each second, then the maximum over time.

    As in the published programs, a second without an event gives 0, and among several classes the highest index wins.

    Args:
        labels: (..., T, C+1), array or tensor, background last.

    Returns:
        (...) int64 tensor, on the device of the labels.
    """
    import torch  # here, because --help does not need it
    return torch.as_tensor(labels)[..., :-1].argmax(-1).amax(-1)
