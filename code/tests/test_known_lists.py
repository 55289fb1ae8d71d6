"""A cut copy of a published list is recognized by its content, however it was cut; other lists are left alone."""

import random

import pytest

from cmg.data.sets import known_lists
from cmg.data.sets.known_lists import Sketch, row_hash, warn_of_cut
from cmg.data.sets.vggsound import read_list

ROWS = [(f"class {n % 141}", f"{n:011d}") for n in range(20_000)]
OTHERS = [(name, f"x{video[1:]}") for name, video in ROWS]
SKETCH = Sketch("small", len(ROWS), frozenset(sorted(row_hash(*row) for row in ROWS)[:128]))
SHUFFLED = random.Random(0).sample(ROWS, len(ROWS))
LISTS = {"whole": (ROWS, False), "in another order": (SHUFFLED, False), "first half": (ROWS[:10_000], True),
         "last quarter": (ROWS[15_000:], True), "half of every class": (SHUFFLED[:10_000], True),
         "a few clips missing": (SHUFFLED[:-100], False), "a hundred clips": (ROWS[:100], False),
         "other clips": (OTHERS, False), "with as many others": (ROWS + OTHERS, False),
         "half of it with as many others": (ROWS[:10_000] + OTHERS[:10_000], False)}


@pytest.mark.parametrize("name", LISTS)
def test_a_part_of_a_known_list_is_told(name):
    rows, is_cut = LISTS[name]
    line = warn_of_cut(*map(list, zip(*rows)), known=(SKETCH,))
    assert bool(line) == is_cut, line
    assert not line or f"a part of the published small list: {len(rows):,} of its 20,000 clips" in line


@pytest.mark.parametrize("file", ["vggsound-avel40k.csv", "vggsound-avel90k-new.csv"])
def test_the_published_lists_are_whole(annotations, file):
    ids, categories = read_list(annotations / "released" / "vggsound40k" / file)
    assert warn_of_cut(categories, ids) is None
    sketch = known_lists.published()["90k" in file]
    assert len(ids) == sketch.rows and len(sketch.hashes) == 128
    assert f"20,000 of its {sketch.rows:,} clips" in warn_of_cut(categories[:20_000], ids[:20_000])
