"""Intervals: as wide as they must be, from repetitions and from requests."""

import math

import msgspec
import numpy as np
import pytest
from fake_runs import run

from hetero.experiment.outcome.bootstrap import (
    RESAMPLES,
    Draws,
    difference,
    draw,
    interval,
    mean_interval,
    ratio,
)
from hetero.experiment.outcome.student import student_95
from hetero.experiment.outcome.values import Observation, observe
from hetero.experiment.recipe.metrics import parse_metric

MEAN = parse_metric("serving", "ttft_mean")
P90 = parse_metric("serving", "ttft_p90")
MAX = parse_metric("serving", "ttft_max")
ITL_MEAN = parse_metric("serving", "itl_mean")
THROUGHPUT = parse_metric("serving", "throughput")


def sampled(samples, value=1.0):
    return Observation(value, np.sort(np.asarray(samples, dtype=float)))


def scalars(*values):
    return {number: Observation(value, None) for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("degrees", "t"),  # from printed tables
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (99, 1.984)],
)
def test_students_t_is_that_of_the_tables(degrees, t):
    assert student_95(degrees) == pytest.approx(t, abs=6e-4)


def test_same_seed_same_draws_and_another_seed_others():
    seen = {0: sampled(range(1, 30))}
    first, again, other = (draw(seen, P90, seed, "arm").requests for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_resampled_percentiles_are_those_of_resampled_samples():
    """Against the plain way: drawing the samples themselves."""
    samples = np.sort(np.random.default_rng(0).lognormal(size=25))
    ours = np.exp(draw({0: sampled(samples)}, P90, 0, "arm").requests[0])
    generator = np.random.default_rng(1)
    plain = np.quantile(generator.choice(samples, size=(20_000, 25)), 0.9, axis=1)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(plain, share), rel=0.06)


def test_a_resampled_maximum_is_the_maximum_as_often_as_it_should():
    """The largest of m is in a resample with a probability of 1 - (1 - 1/m)^m."""
    drawn = np.exp(draw({0: sampled(range(1, 21))}, MAX, 0, "arm").requests[0])
    expected = 1 - (1 - 1 / 20) ** 20
    assert np.mean(np.isclose(drawn, 20)) == pytest.approx(expected, abs=0.035)


@pytest.mark.parametrize("count", [40, 4000])  # drawn one by one, and as a normal distribution
def test_resampled_means_scatter_by_the_standard_error(count):
    samples = np.random.default_rng(0).normal(100, 5, count)
    drawn = np.exp(draw({0: sampled(samples)}, MEAN, 0, "arm").requests[0])
    assert drawn.std() == pytest.approx(samples.std() / math.sqrt(count), rel=0.08)
    assert drawn.mean() == pytest.approx(samples.mean(), rel=0.002)


def of_requests(groups, statistic):
    """An observation of what each request gave, as an arm's run has it."""
    of = msgspec.structs.replace(
        run({}),
        samples={"itl": [gap for gaps in groups for gap in gaps]},
        per_request={"itl": [len(gaps) for gaps in groups]},
    )
    return observe(of, parse_metric("serving", f"itl_{statistic}"))


@pytest.mark.parametrize("statistic", ["p50", "p90", "mean", "max"])
def test_samples_of_one_request_are_drawn_together(statistic):
    """Against the plain way: drawing requests, and then putting what they gave together."""
    generator = np.random.default_rng(0)
    groups = [
        list(generator.lognormal(generator.normal(), 0.3, size))
        for size in (9, 1, 0, 30, 12, 7, 12, 3)
    ]
    named = parse_metric("serving", f"itl_{statistic}")
    ours = np.exp(draw({0: of_requests(groups, statistic)}, named, 0, "arm").requests[0])
    plain = []
    for _ in range(4000):
        drawn = [gap for index in generator.integers(8, size=8) for gap in groups[index]]
        plain.append(
            np.mean(drawn) if statistic == "mean" else np.quantile(drawn, named.share or 1.0)
        )
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(plain, share), rel=0.08)


def test_requests_that_differ_as_a_whole_tell_less_than_their_samples_seem_to():
    slow_and_fast = [[1.0] * 50] * 10 + [[2.0] * 50] * 10
    seen = of_requests(slow_and_fast, "mean")
    together = np.exp(draw({0: seen}, ITL_MEAN, 0, "arm").requests[0])
    apart = np.exp(draw({0: Observation(seen.value, seen.samples)}, ITL_MEAN, 0, "x").requests[0])
    assert together.std() == pytest.approx(math.sqrt(50) * apart.std(), rel=0.15)


def test_one_repetition_has_no_interval():
    assert mean_interval(draw(scalars(3.0), THROUGHPUT, 0, "arm")) == (pytest.approx(3.0), None)


def test_equal_repetitions_of_a_scalar_have_an_interval_of_no_width():
    value, ends = mean_interval(draw(scalars(3.0, 3.0, 3.0), THROUGHPUT, 0, "arm"))
    assert ends == (value, value)


def test_repetitions_are_one_by_their_geometric_mean():
    value, _ = mean_interval(draw(scalars(1.0, 4.0), THROUGHPUT, 0, "arm"))
    assert value == pytest.approx(2.0)


def test_values_that_are_not_positive_are_one_by_their_mean():
    value, ends = mean_interval(draw(scalars(0.0, 1.0, 2.0), THROUGHPUT, 0, "arm"))
    assert value == pytest.approx(1.0)
    assert ends is not None
    assert ends[0] < 0 < 2 < ends[1]


def test_few_repetitions_widen_by_hand():
    """Draws of -1 to 1, three repetitions: 1 * sqrt(3 / 2) * 4.303 / 1.960."""
    draws = np.linspace(-1, 1, 20_001)
    low, high = interval(0.0, draws, np.zeros(RESAMPLES), 3)
    assert high == pytest.approx(0.95 * math.sqrt(1.5) * 4.3027 / 1.95996, rel=1e-3)
    assert low == pytest.approx(-high)


def test_repetitions_alike_by_luck_are_no_surer_than_their_requests():
    requests = np.linspace(-1, 1, 20_001)
    low, high = interval(0.0, np.zeros(RESAMPLES), requests, 3)
    assert (low, high) == (pytest.approx(-0.95, rel=1e-3), pytest.approx(0.95, rel=1e-3))


def test_an_infinite_draw_leaves_an_interval_without_end():
    draws = np.where(np.arange(1000) < 100, -np.inf, np.linspace(0, 1, 1000))
    low, high = interval(0.5, draws, np.full(1000, 0.5), 3)
    assert low == -math.inf
    assert math.isfinite(high)


def test_ratios_are_paired_so_that_what_both_share_cancels():
    """A machine three times slower in one repetition is no part of the ratio."""
    slow = np.array([1.0, 3.0, 1.1])
    of = draw(scalars(*(2.0 * slow)), THROUGHPUT, 0, "of")
    to = draw(scalars(*(1.0 * slow)), THROUGHPUT, 0, "to")
    value, ends = mean_interval(ratio(of, to))
    assert value == pytest.approx(2.0)
    assert ends == (pytest.approx(2.0), pytest.approx(2.0))


def test_a_ratio_takes_the_repetitions_that_both_have():
    of = draw({0: Observation(2.0, None), 2: Observation(6.0, None)}, THROUGHPUT, 0, "of")
    to = draw({1: Observation(1.0, None), 2: Observation(3.0, None)}, THROUGHPUT, 0, "to")
    paired = ratio(of, to)
    assert paired.repetitions == (2,)
    assert paired.each() == [pytest.approx(2.0)]


def test_no_ratio_of_what_is_not_positive_but_a_difference():
    of = draw(scalars(0.0, 0.0), THROUGHPUT, 0, "of")
    to = draw(scalars(1.0, 2.0), THROUGHPUT, 0, "to")
    assert ratio(of, to) is None
    assert difference(of, to).each() == [pytest.approx(-1.0), pytest.approx(-2.0)]


def covered(count, between, within, requests, trials=300):
    """How often the interval has the truth: repetitions scatter, requests within them too."""
    generator = np.random.default_rng(count)
    hits = 0
    for trial in range(trials):
        centres = 10 + between * generator.normal(size=count)
        seen = {}
        for number, centre in enumerate(centres):
            samples = np.sort(centre + within * generator.normal(size=requests))
            seen[number] = Observation(float(samples.mean()), samples)
        low, high = mean_interval(draw(seen, MEAN, 0, str(trial)))[1]
        hits += low <= 10 <= high
    return hits / trials


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    ("between", "within", "requests"),
    [(0.5, 0.5, 50), (0.5, 3.0, 20), (0.0, 1.0, 20)],
    ids=["repetitions differ", "both", "requests alone"],
)
def test_an_interval_of_95_percent_has_the_truth_90_to_99_times_in_100(
    count, between, within, requests
):
    assert 0.90 <= covered(count, between, within, requests) <= 0.995


def test_ratios_have_the_truth_as_often():
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        shared = generator.normal(0, 0.5, 3)  # lasts over both arms of a repetition
        of = math.log(2) + shared + generator.normal(0, 0.03, 3)
        to = shared + generator.normal(0, 0.03, 3)
        both = [
            Draws((0, 1, 2), values, np.repeat(values[:, None], RESAMPLES, axis=1), True)
            for values in (of, to)
        ]
        low, high = mean_interval(ratio(*both))[1]
        hits += low <= 2 <= high
    assert 0.90 <= hits / 300 <= 0.99
