"""Estimates of cache types that were not measured, worked by hand.

A token's cells of the model here take 131,072 bytes in f16, 69,632 in q8_0 (K and V alike), 36,864
in q4_0, and 53,248 as q8_0/q4_0.
"""

import msgspec
import pytest
from node_profiles import MODEL, ceilings, gpu_ceilings, node_profile

from hetero.profile.other_types import estimated_fits
from hetero.profile.step_cost import TileCost
from hetero.profile.tiling import Tiling
from hetero.profile.work import LENGTHS, chunk_work

replace = msgspec.structs.replace
DECODE, PREFILL = (
    next(fit for fit in node_profile().fits if fit.role == role) for role in ("decode", "prefill")
)


def measured(kv_k, kv_v, pair_s, base=DECODE, **cost):
    """pair_s: of all lengths, or by length."""
    by_length = pair_s if isinstance(pair_s, list) else [pair_s] * len(LENGTHS)
    cost = replace(base.cost, pair_s=by_length, **cost)
    return replace(base, kv_k=kv_k, kv_v=kv_v, cost=cost)


def estimate(fits, kv_k, kv_v, read_gb_s):
    found = estimated_fits(fits, MODEL, replace(ceilings(), read_gb_s=read_gb_s, spread={}))
    return of_types(found, kv_k, kv_v)


def of_types(found, kv_k, kv_v):
    return next(fit for fit in found if (fit.kv_k, fit.kv_v) == (kv_k, kv_v))


def pair_s(fits, kv_k, kv_v, read_gb_s):
    return estimate(fits, kv_k, kv_v, read_gb_s).cost.pair_s[0]


# At 69.632 GB/s a q8_0 cell is on its way for 1 us.
def test_many_cores_wait_for_bytes_so_a_pair_is_in_proportion_to_them():
    fits = [measured("q8_0", "q8_0", 1e-6)]
    assert pair_s(fits, "q4_0", "q4_0", 69.632) == pytest.approx(0.529412e-6, rel=1e-5)
    assert pair_s(fits, "q8_0", "q4_0", 69.632) == pytest.approx(0.764706e-6, rel=1e-5)
    assert pair_s(fits, "f16", "f16", 69.632) == pytest.approx(1.882353e-6, rel=1e-5)


def test_few_cores_compute_so_fewer_bytes_hardly_help():
    fits = [measured("q8_0", "q8_0", 10e-6)]
    assert pair_s(fits, "q4_0", "q4_0", 69.632) == pytest.approx(9.529412e-6, rel=1e-5)
    assert pair_s(fits, "q8_0", "q4_0", 69.632) == pytest.approx(9.764706e-6, rel=1e-5)


def test_cells_from_caches_do_not_become_slower_by_memorys_measure():
    """Less than memory needs for its bytes, so it came from elsewhere."""
    fits = [measured("q8_0", "q8_0", 0.5e-6)]
    assert pair_s(fits, "q4_0", "q4_0", 69.632) == pytest.approx(0.264706e-6, rel=1e-5)


def test_each_depth_is_estimated_on_its_own():
    fits = [measured("q8_0", "q8_0", [0.5e-6, 1e-6, 1e-6, 10e-6, 10e-6, 10e-6])]
    found = estimate(fits, "q4_0", "q4_0", 69.632).cost.pair_s
    assert found == pytest.approx([0.264706e-6, *[0.529412e-6] * 2, *[9.529412e-6] * 3], rel=1e-5)


def test_k_and_v_take_their_arithmetic_each_from_its_own_type():
    # At 131.072 GB/s: f16 1 us on its way and 3 of arithmetic, q8_0 0.53125 and 1.46875, q4_0
    # 0.28125 and 1.
    fits = [measured("q4_0", "q4_0", 1.28125e-6), measured("q8_0", "q8_0", 2e-6)]
    # Half of the one and half of the other.
    assert pair_s(fits, "q8_0", "q4_0", 131.072) == pytest.approx(1.640625e-6)
    # q8_0's arithmetic, and 53,248 bytes in 0.40625 us; f16 is further off.
    fits = [measured("f16", "f16", 4e-6), measured("q8_0", "q8_0", 2e-6)]
    assert pair_s(fits, "q8_0", "q4_0", 131.072) == pytest.approx(1.875e-6)


def test_a_half_that_was_measured_is_taken_though_the_whole_is_further_off():
    fits = [measured("q8_0", "q8_0", 10e-6), measured("f16", "q4_0", 20e-6)]
    # At 69.632 GB/s q8_0's pair has 9 us of arithmetic, and that of 83,968 bytes 18.794118: half of
    # each, and 0.5 us for K's 34,816 bytes, 0.264706 for V's 18,432.
    assert pair_s(fits, "q8_0", "q4_0", 69.632) == pytest.approx(14.661765e-6, rel=1e-5)


def test_a_chunk_reads_fewer_bytes_and_attends_to_as_many_pairs():
    fits = [measured("q8_0", "q8_0", 1e-6, PREFILL, cell_s=2e-6, deep_cell_s=4e-6)]
    found = estimate(fits, "q4_0", "q4_0", 69.632).cost
    assert found.pair_s == pytest.approx([1e-6] * len(LENGTHS))
    assert found.cell_s == pytest.approx(1.058824e-6, rel=1e-5)
    assert found.deep_cell_s == pytest.approx(2.117647e-6, rel=1e-5)


def test_quantized_cells_have_no_part_in_the_tiles_of_floats():
    tiles = TileCost(tiling=Tiling(heads=8, threads=1), pair_s=0.3e-6, masked_s=0.0)
    fits = [measured("f16", "f16", 1e-6, PREFILL, tiles=tiles)]
    found = estimate(fits, "q8_0", "q8_0", 69.632).cost
    assert found.tiles is None
    assert found.seconds(chunk_work(64, 0, 0, False)) > fits[0].cost.seconds(
        chunk_work(64, 0, 0, False)
    )


def test_intervals_are_wide_and_wider_between_floats_and_quantized_types():
    fit = replace(measured("q8_0", "q8_0", 1e-6), interval=(0.9, 1.2))
    near, far = (estimate([fit], kv, kv, 69.632) for kv in ("q4_0", "f16"))
    assert near.interval == pytest.approx((0.666667, 1.62), rel=1e-5)
    assert far.interval == pytest.approx((0.45, 2.4))
    for found in (near, far):
        assert (found.source, found.error, found.samples) == ("estimated", None, [])
        assert found.cost.rows_s == fit.cost.rows_s


def test_where_the_ceiling_is_not_known_nothing_waits_for_memory():
    fits = [replace(measured("q8_0", "q8_0", 1e-6), device="gpu, 20 of 33 layers")]
    found = of_types(estimated_fits(fits, MODEL, ceilings()), "q4_0", "q4_0")
    assert found.cost.pair_s == pytest.approx([1e-6] * len(LENGTHS))


def test_a_gpus_cells_come_from_its_own_memory():
    # 840 GB/s: 69,632 bytes in 0.0828952 us, 36,864 in 0.0438857.
    fits = [replace(measured("q8_0", "q8_0", 1e-6), device="cuda:0")]
    have = replace(ceilings(), gpus=[gpu_ceilings()])
    found = of_types(estimated_fits(fits, MODEL, have), "q4_0", "q4_0")
    assert found.cost.pair_s[0] == pytest.approx(0.9609905e-6, rel=1e-5)


def test_only_what_is_missing_is_estimated_for_each_role_device_and_cache():
    fits = [
        measured("q8_0", "q8_0", 1e-6),
        measured("f16", "f16", 1e-6),
        measured("f16", "f16", 1e-6, PREFILL),
        replace(measured("q4_0", "q4_0", 1e-6), unified=True),
        replace(measured("q8_0", "q4_0", 1e-6, PREFILL), engine="torch", device="cuda:0"),
    ]
    found = [
        (fit.role, fit.device, fit.unified, fit.kv_k, fit.kv_v)
        for fit in estimated_fits(fits, MODEL, ceilings())
    ]
    assert found == [
        ("decode", "cpu", False, "q8_0", "q4_0"),
        ("decode", "cpu", False, "q4_0", "q4_0"),
        ("prefill", "cpu", False, "q8_0", "q8_0"),
        ("prefill", "cpu", False, "q8_0", "q4_0"),
        ("prefill", "cpu", False, "q4_0", "q4_0"),
        ("decode", "cpu", True, "f16", "f16"),
        ("decode", "cpu", True, "q8_0", "q8_0"),
        ("decode", "cpu", True, "q8_0", "q4_0"),
        ("prefill", "cuda:0", False, "f16", "f16"),
        ("prefill", "cuda:0", False, "q8_0", "q8_0"),
        ("prefill", "cuda:0", False, "q4_0", "q4_0"),
    ]


def test_types_whose_blocks_heads_do_not_fill_are_left_out():
    odd = replace(MODEL, head_dim_k=80, head_dim_v=80)
    fits = [measured("f16", "f16", 1e-6)]
    assert estimated_fits(fits, odd, ceilings()) == []
