"""What a step costs, worked by hand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_profiles import node_profile

from hetero.profile.knots import hat_weights
from hetero.profile.step_cost import StepCost, TileCost, plain_cost
from hetero.profile.tiling import Tiling
from hetero.profile.work import LENGTHS, Work, chunk_work, step_work

# Binary fractions: sums of them are exact.
COST = plain_cost([1, 4, 8], [1.0, 2.5, 3.0], pair_s=0.5, masked_s=0.25)


def fit(**changes):
    whole = {"cost": COST, "chunk_tokens": 4, "request_s": 0.125, "unified": False}
    return msgspec.structs.replace(node_profile().fits[0], **whole | changes)


@pytest.mark.parametrize(
    ("num_rows", "weights"),
    [
        (0, [1, 0, 0]),  # below the first knot: constant
        (1, [1, 0, 0]),
        (2, [2 / 3, 1 / 3, 0]),
        (4, [0, 1, 0]),
        (6, [0, 0.5, 0.5]),
        (8, [0, 0, 1]),
        (12, [0, -1, 2]),  # beyond the last: along the last two
    ],
)
def test_each_knot_counts_by_its_distance(num_rows, weights):
    assert hat_weights([1, 4, 8], num_rows) == pytest.approx(weights)


def test_one_knot_is_a_constant():
    assert hat_weights([16], 1) == hat_weights([16], 16) == hat_weights([16], 99) == [1.0]


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=8, unique=True), st.integers(1, 9000))
def test_weights_reproduce_constants_and_between_knots_lines(knots, num_rows):
    knots.sort()
    weights = hat_weights(knots, num_rows)
    assert sum(weights) == pytest.approx(1)
    if knots[0] <= num_rows and len(knots) > 1:
        line = sum(weight * knot for weight, knot in zip(weights, knots, strict=True))
        assert line == pytest.approx(num_rows)


def test_a_steps_seconds_are_rows_and_pairs():
    for rows, seconds in ((1, 1.0), (6, 2.75), (12, 3.5)):
        assert (
            COST.rows_seconds(Work(rows=rows, pairs=(9, 0, 0, 0, 0, 0), cells=9, masked=9))
            == seconds
        )
    assert (
        COST.seconds(Work(rows=4, pairs=(6, 4, 0, 0, 0, 0), cells=3, masked=8)) == 2.5 + 5.0 + 2.0
    )


def test_beyond_the_last_knot_a_falling_line_is_not_believed():
    falling = plain_cost([1, 4], [2.0, 1.0], pair_s=0.0, masked_s=0.0)
    assert falling.rows_seconds(Work(rows=400, pairs=(0,) * 6, cells=0, masked=0)) == 1.0


def test_each_kind_of_work_has_its_price():
    cost = StepCost(
        rows=[1],
        rows_s=[1.0],
        rest_s=128.0,
        pair_s=[2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        cell_s=32.0,
        deep_cell_s=16.0,
        masked_s=64.0,
        tiles=TileCost(tiling=Tiling(heads=1, threads=1), pair_s=0.25, masked_s=8.0),
    )
    few = Work(rows=2, pairs=(1, 2, 3, 4, 5, 6), cells=5, masked=6)
    # Two rows beyond the last four.
    assert cost.seconds(few) == 1 + 2 * 128 + (2 + 8 + 24 + 64 + 160 + 384) + 5 * 32 + 6 * 64
    # Cells beyond the first 1024 cost more.
    deep = Work(rows=2, pairs=(0, 0, 0, 0, 0, 0), cells=1026, masked=0)
    assert cost.seconds(deep) == 1 + 2 * 128 + 1026 * 32 + 2 * 16
    # 65 rows of one sequence, 5 cells before them: whole tiles are paid for, whatever their length.
    many = Work(rows=65, pairs=(65, 65, 0, 0, 0, 0), cells=70, masked=3)
    assert cost.seconds(many) == 1 + 128 + 2 * (64 * 128) * 0.25 + 3 * 8
    # 65 sequences are no tile.
    batch = Work(rows=65, pairs=(65, 65, 0, 0, 0, 0), cells=0, masked=0)
    assert cost.seconds(batch) == 1 + 128 + 65 * 2 + 65 * 4
    # Nor are 65 rows one to an engine without tiles.
    plain = msgspec.structs.replace(cost, tiles=None)
    assert plain.seconds(many) == 1 + 128 + 65 * 2 + 65 * 4 + 70 * 32 + 3 * 64


def visible_and_masked(work):
    return work.visible, work.masked


def test_a_chunks_rows_see_what_is_cached_and_themselves():
    # 3 rows after 5 cells: they see 6, 7 and 8.
    assert visible_and_masked(chunk_work(3, 5, 0, unified=False)) == (21, 0)
    assert chunk_work(3, 5, 0, unified=False).cells == 8
    assert visible_and_masked(chunk_work(1, 0, 0, unified=False)) == (1, 0)


@given(st.integers(1, 700), st.integers(0, 20000))
def test_no_pair_of_a_chunk_is_lost_between_lengths(num_tokens, cached):
    expected = sum(cached + row + 1 for row in range(num_tokens))
    work = chunk_work(num_tokens, cached, 0, unified=False)
    assert work.visible == pytest.approx(expected, rel=1e-12)
    # On average its rows see so many cells, which lies between the lengths that count.
    average = expected / num_tokens
    counted = [length for length, pairs in zip(LENGTHS, work.pairs, strict=True) if pairs]
    assert len(counted) <= 2
    assert counted[0] <= max(average, LENGTHS[0])
    assert counted[-1] >= average


def test_a_batchs_pairs_are_counted_by_length():
    # No shorter length than 1024 is told from it, and no longer one than 32768.
    assert step_work([1024, 8192, 10], 0, unified=False).pairs == (1034, 0, 0, 8192, 0, 0)
    assert step_work([40000], 0, unified=False).pairs == (0, 0, 0, 0, 0, 40000)
    # Half way by its logarithm.
    half = step_work([round(4096 * 2**0.5)], 0, unified=False).pairs
    assert half == pytest.approx((0, 0, 2896, 2896, 0, 0), abs=2)
    # In one pool they lie one after the other: 8192 cells, of which others' do not count.
    assert step_work([5000, 3192], 500, unified=True).pairs == (0, 0, 0, 8192, 0, 0)


def test_others_cells_are_scanned_in_a_shared_cache_only():
    assert visible_and_masked(chunk_work(3, 5, 10, unified=False)) == (21, 0)
    assert visible_and_masked(chunk_work(3, 5, 10, unified=True)) == (21, 30)
    assert visible_and_masked(step_work([2, 3], 10, unified=False)) == (5, 1)
    assert visible_and_masked(step_work([2, 3], 10, unified=True)) == (5, 2 * 15 - 5)


def test_streams_scan_as_far_as_the_longest():
    assert visible_and_masked(step_work([7], 0, unified=False)) == (7, 0)
    assert visible_and_masked(step_work([4, 4, 4], 0, unified=False)) == (12, 0)
    assert visible_and_masked(step_work([1, 2, 9], 0, unified=False)) == (12, 15)


def test_a_shared_cache_shows_every_row_all_sequences():
    assert visible_and_masked(step_work([4, 4, 4], 0, unified=True)) == (12, 24)


def test_a_chunk_of_a_prompt():
    # rows 2.5; visible 4 x 8 + 10 = 42 pairs.
    assert fit().chunk_s(4, cached_tokens=8) == 2.5 + 21.0
    # masked 4 x 2.
    assert fit(unified=True).chunk_s(4, 8, other_cells=2) == 2.5 + 21.0 + 2.0


def test_a_prompt_is_its_chunks_and_one_request():
    whole = fit()
    # Chunks of 4, 4 and 2 tokens after 1, 5 and 9.
    chunks = [whole.chunk_s(4, 1), whole.chunk_s(4, 5), whole.chunk_s(2, 9)]
    assert chunks == [2.5 + 7.0, 2.5 + 15.0, 1.5 + 10.5]
    assert whole.prefill_s(10, cached_tokens=1) == 0.125 + sum(chunks)
    assert whole.prefill_s(0, cached_tokens=9) == 0.125


def test_pairs_do_not_depend_on_how_a_prompt_is_cut():
    for cut in (1, 3, 7):
        first, rest = chunk_work(cut, 0, 0, False), chunk_work(10 - cut, cut, 0, False)
        assert first.visible + rest.visible == chunk_work(10, 0, 0, False).visible == 55


def test_a_decode_step():
    # 2 rows: 1.5; 5 pairs seen, one scanned for nothing.
    assert fit().step_s([2, 3]) == 1.5 + 2.5 + 0.25
    assert fit(unified=True).step_s([2, 3], other_cells=3) == 1.5 + 2.5 + 0.25 * 11
    assert fit().step_s([2, 3], other_cells=3) == fit().step_s([2, 3])
