"""Label tensors against plain loops over seconds and sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmg.data.labels import clip_class, multi_event, parse_times, single_event
from conftest import refused

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 12), st.integers(-2, 12)), max_size=6)


def by_hand(events, num_classes, seconds):
    """Second by second: which classes, and is it background?"""
    result = np.zeros((seconds, num_classes + 1))
    for t in range(seconds):
        active = {index for index, onset, offset in events if onset <= t < offset}
        for index in active:
            result[t, index] = 1
        if not active:
            result[t, num_classes] = 1
    return result


@settings(max_examples=300, deadline=None)
@given(EVENTS, st.integers(1, 12))
def test_events_overlap_repeat_and_touch(events, seconds):
    found = multi_event(events, 4, seconds)
    assert found.dtype == np.float32 and np.array_equal(found, by_hand(events, 4, seconds))
    assert np.array_equal(found, multi_event(events[::-1], 4, seconds))                 # order does not matter
    assert np.array_equal(found, multi_event(events + events[:1], 4, seconds))          # nor does repetition


@pytest.mark.parametrize("events, foreground", [
    ([(0, 2, 4), (1, 4, 6)], [2, 3, 4, 5]),             # touching borders: second 4 belongs to the later one alone
    ([(0, 2, 5), (1, 3, 4)], [2, 3, 4]),                # one inside the other
    ([(0, 0, 1), (0, 9, 10)], [0, 9]),                  # the same class twice, at both ends
    ([(0, 3, 3)], []), ([(0, 9, 0)], []), ([], []),     # empty, reversed (both occur in the official lists), none
    ([(0, 8, 20)], [8, 9]), ([(0, 0, 10)], list(range(10)))])
def test_background_is_what_no_event_covers(events, foreground):
    found = multi_event(events, 2, 10)
    assert np.flatnonzero(found[:, -1] == 0).tolist() == foreground
    if events == [(0, 2, 4), (1, 4, 6)]:
        assert found[3].tolist() == [1, 0, 0] and found[4].tolist() == [0, 1, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 2 ** 31))
def test_single_event(label, seconds, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (len(label), seconds))
    found = single_event(np.array(label), mask, 5)
    for n, index in enumerate(label):
        events = [(index, t, t + 1) for t in range(seconds) if mask[n, t]]
        assert np.array_equal(found[n], by_hand(events, 5, seconds))
        assert np.array_equal(found[n], single_event(index, mask[n], 5))


def test_clip_class_takes_the_higher_index_and_zero_for_none():
    labels = np.stack([multi_event(events, 4, 10) for events in (
        [(2, 0, 1)], [(1, 0, 5), (3, 6, 7)], [], [(1, 0, 9), (2, 0, 9)])])
    assert clip_class(labels).tolist() == [2, 3, 0, 1]      # in the last, each second's arg max is the lower index


@pytest.mark.parametrize("text", ["a", "1,,2", "nan", "inf", "1;2", ""])
def test_times_that_are_no_seconds(text):
    refused("list.csv: clip has the times", parse_times, "list.csv", "clip", text)
    assert parse_times("list.csv", "clip", "0, 2.5,10") == [0, 2.5, 10]
