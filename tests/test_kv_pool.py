import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero.errors import EngineError
from hetero.prefill.kv_pool import KVPool


def pool(num_cells):
    return KVPool(
        num_layers=2,
        num_cells=num_cells,
        num_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_the_lowest_gap_that_fits_is_taken():
    cells = pool(100)
    a, b, c = (cells.reserve(size) for size in (10, 20, 30))
    assert (a, b, c) == (0, 10, 30)
    cells.free(b)
    assert cells.reserve(21) == 60
    assert cells.reserve(20) == 10


def test_no_gap_is_long_enough_is_said():
    cells = pool(100)
    cells.reserve(40)
    middle = cells.reserve(20)
    cells.reserve(40)
    assert not cells.has_room(1)
    cells.free(middle)
    assert cells.has_room(20)
    assert not cells.has_room(21)
    with pytest.raises(EngineError, match="need 21 consecutive cells, have 20 free of 100"):
        cells.reserve(21)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_no_cell_is_held_twice(actions):
    cells, held = pool(100), {}
    for take, size in actions:
        if take and cells.has_room(size):
            first = cells.reserve(size)
            span = set(range(first, first + size))
            assert span <= set(range(100))
            assert all(span.isdisjoint(other) for other in held.values())
            held[first] = span
        elif not take and held:
            cells.free(first := sorted(held)[size % len(held)])
            del held[first]
        assert cells.num_held == sum(map(len, held.values()))
    for first in held:
        cells.free(first)
    assert cells.has_room(100)
