"""How many pairs llama.cpp's tiles have, worked by hand and by sorting every row into its tile."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.profile.tiling import TILE_ROWS, Tiling


def test_a_tile_is_paid_for_whole_and_so_are_64_cells():
    one = Tiling(heads=1, threads=1)
    assert one.pairs(64, 64) == 64 * 64
    assert one.pairs(64, 65) == 64 * 128
    # Two tiles: 64 rows see no further than their own 64 cells, the 65th two times 64.
    assert one.pairs(65, 65) == 64 * 64 + 64 * 128


def test_parts_of_threads_cut_tiles():
    # 12 heads of 64 rows in 8 parts: 96 rows are a head and a half. So of three heads one is cut,
    # and its halves are tiles of their own: 4 tiles where whole heads had 3. All have 64 cells.
    assert Tiling(heads=12, threads=2).pairs(64, 64) == pytest.approx(64 * 64 * 4 / 3)
    # 128 rows: parts of 192 are a head and a half, cut where a tile ends. The first tile has 64
    # cells, the second 128.
    assert Tiling(heads=12, threads=2).pairs(128, 128) == 64 * (64 + 128)
    # One thread takes all rows as one part.
    assert Tiling(heads=12, threads=1).pairs(64, 64) == 64 * 64


@given(
    rows=st.integers(64, 600),
    cached=st.integers(0, 3000),
    heads=st.integers(1, 40),
    threads=st.integers(2, 16),
)
def test_every_row_is_in_one_tile_of_its_part_and_head(rows, cached, heads, threads):
    # So many rows that no thread is left without: other cuts are of next to nothing.
    part = -(-rows * heads // (4 * threads))
    places = [(row // part, row // rows) for row in range(rows * heads)]
    expected = first = 0
    for _, of_place in groupby(places):
        count = len(list(of_place))
        for start in range(first, first + count, TILE_ROWS):
            last = min(start + TILE_ROWS, first + count) - 1
            whole = (cached + last % rows) // 64 + 1  # of 64 cells, that its last row sees
            expected += TILE_ROWS * 64 * whole
        first += count
    found = Tiling(heads=heads, threads=threads).pairs(rows, cached + rows)
    assert found * heads == pytest.approx(expected)
