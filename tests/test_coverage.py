"""Which tokens are there, against a plain set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.errors import PeerError
from hetero.kv.coverage import Coverage

RANGES = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(RANGES, max_size=30))
def test_ranges_in_any_order_cover_what_a_set_would(ranges):
    coverage, tokens = Coverage(), set()
    for first, end in ranges:
        there = sorted(tokens & set(range(first, end)))
        assert coverage.overlap(first, end) == (there[0] if there else None)
        if there:
            with pytest.raises(PeerError, match=f"token {there[0]}: need it once"):
                coverage.add(first, end)
        else:
            coverage.add(first, end)
            tokens |= set(range(first, end))
        assert {token for a, b in coverage.ranges for token in range(a, b)} == tokens


@given(st.permutations([(i, i + 1) for i in range(12)]))
def test_ranges_that_touch_become_one(ranges):
    coverage = Coverage()
    for first, end in ranges:
        coverage.add(first, end)
    assert coverage.ranges == [(0, 12)]
