"""Intervals of predictions, worked by hand."""

import pytest
from msgspec.structs import replace
from node_profiles import node_profile

from hetero.profile.node.interval import interval_of
from hetero.profile.node_profile import FitError


def noise(slow=1.0, quick=1.0):
    return replace(node_profile().noise, speed=(slow, quick))


def error(p90, num_points=10**9):
    return FitError(num_points=num_points, median=p90 / 2, p90=p90, bias=0.0)


def test_without_any_test_a_prediction_may_be_half_as_much_again_or_half():
    """Predicted over measured: 1.5 to 0.5."""
    assert interval_of(None, noise()) == pytest.approx((1 / 1.5, 2.0))


def test_nine_of_ten_predictions_that_were_tested_lie_inside():
    """Measured is 100 s, and predicted are 80 to 120, as far off as p90 says."""
    low, high = interval_of(error(0.2), noise())
    for predicted_s in (80.01, 90, 100, 119.99):
        assert low * predicted_s <= 100 <= high * predicted_s
    assert high * 79.99 < 100 < low * 120.01


@pytest.mark.parametrize(
    ("num_points", "share"), [(1, 0.5), (2, 0.3), (4, 0.2), (8, 0.15), (40, 0.11), (400, 0.101)]
)
def test_few_points_make_it_wider(num_points, share):
    found = interval_of(error(0.1, num_points), noise())
    assert found == pytest.approx((1 / (1 + share), 1 / (1 - share)))


def test_it_is_never_narrower_than_two_quiet_runs_differ():
    assert interval_of(error(0.0), noise()) == pytest.approx((1 / 1.03, 1 / 0.97))
    assert interval_of(error(0.0299), noise()) == interval_of(error(0.0), noise())
    # Few points widen the error itself, not that least one.
    assert interval_of(error(0.005, 1), noise()) == interval_of(error(0.0), noise())


@pytest.mark.parametrize("p90", [0.8, 0.99, 1.0, 7.0])
def test_predictions_that_say_nothing_still_have_an_end(p90):
    """Five times as long at most: a prediction near zero would have none."""
    low, high = interval_of(error(p90), noise())
    assert high == pytest.approx(5.0)
    assert low == pytest.approx(1 / (1 + p90))


def test_a_machine_that_is_slow_at_times_raises_the_upper_end_alone():
    assert interval_of(error(0.25), noise(slow=0.8)) == pytest.approx((0.8, 1 / 0.75 / 0.8))


def test_a_machine_that_is_quick_at_times_lowers_the_lower_end_alone():
    assert interval_of(error(0.25), noise(quick=1.25)) == pytest.approx((0.64, 1 / 0.75))


def test_a_machine_that_strays_both_ways_moves_both_ends():
    found = interval_of(error(0.25), noise(0.5, 2.0))
    assert found == pytest.approx((0.4, 1 / 0.75 / 0.5))


def test_pilots_that_all_strayed_one_way_narrow_nothing():
    quiet = interval_of(error(0.25), noise())
    low, high = interval_of(error(0.25), noise(slow=1.1, quick=1.25))
    assert (low, high) == (pytest.approx(quiet[0] / 1.25), quiet[1])
    low, high = interval_of(error(0.25), noise(slow=0.8, quick=0.9))
    assert (low, high) == (quiet[0], pytest.approx(quiet[1] / 0.8))
