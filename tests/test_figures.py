"""Figures, from arms whose answer is known by hand."""

import numpy as np
import pytest
from fake_runs import run, runs_of, serving

from hetero.experiment.outcome.figures import evaluate
from hetero.experiment.outcome.measurements import Measurements

AXIS = {"concurrency": [1, 2, 4]}


def figure(runs, figure, **fields):
    recipe = serving(figures={"it": {"says": "a number", **figure}}, **fields)
    return evaluate(Measurements(recipe, runs))[0]


def both(along, single, split, metric="throughput", axis="concurrency"):
    """Two candidates over an axis: a list of repetitions for each place."""
    return [
        each
        for name, table in (("single", single), ("split", split))
        for place, values in zip(along, table, strict=True)
        for each in runs_of({"candidate": name, axis: place}, metric, values)
    ]


def crossing(runs, axis="concurrency", values=(1, 2, 4)):
    return figure(
        runs,
        {
            "kind": "crossing",
            "metric": "throughput",
            "of": {"candidate": "split"},
            "to": {"candidate": "single"},
            "along": axis,
        },
        vary={axis: list(values)},
    )


VALUE = {"kind": "value", "metric": "ttft_p50", "at": {"candidate": "single"}}
RATIO = {
    "kind": "ratio",
    "metric": "throughput",
    "of": {"candidate": "split"},
    "to": {"candidate": "single"},
}
BEST = {"kind": "best", "metric": "throughput", "along": "concurrency"}


def test_a_value_is_that_of_the_samples_by_repetition():
    runs = [
        run({"candidate": "single"}, number, samples={"ttft": samples})
        for number, samples in enumerate([[1, 2, 3], [1, 2, 9], [2, 2, 2]])
    ]
    found = figure(runs, VALUE)
    assert found.value == pytest.approx(2.0)
    assert found.repetitions == [pytest.approx(2.0)] * 3
    assert found.unit == "s"


def test_a_narrow_value_is_conclusive_and_a_wide_one_is_not():
    arm = {"candidate": "single"}
    at = {"kind": "value", "metric": "throughput", "at": arm}
    narrow = figure(runs_of(arm, "throughput", [100, 100.2, 99.9]), at)
    wide = figure(runs_of(arm, "throughput", [100, 130, 80]), at)
    assert narrow.inconclusive == ""
    assert narrow.text.startswith("100 tokens/s (")
    assert "of it wide" in wide.inconclusive


def test_one_repetition_says_so():
    found = figure(
        runs_of({"candidate": "single"}, "throughput", [5]),
        {"kind": "value", "metric": "throughput", "at": {"candidate": "single"}},
    )
    assert (found.value, found.low, found.high) == (pytest.approx(5.0), None, None)
    assert found.line == "5.00 tokens/s, inconclusive: one repetition, so no interval"


def test_the_last_attempt_counts():
    arm = {"candidate": "single"}
    runs = [
        run(arm, 0, attempt=1, scalars={"throughput": 7}),
        run(arm, 0, attempt=0, scalars={"throughput": 1}),
    ]
    at = {"kind": "value", "metric": "throughput", "at": arm}
    assert figure(runs, at).value == pytest.approx(7)


def test_what_no_arm_has_is_said_instead_of_raised():
    runs = runs_of({"candidate": "single"}, "throughput", [5])
    found = figure(runs, {"kind": "value", "metric": "exposed_p50", "at": {"candidate": "single"}})
    assert found.value is None
    assert found.text == "not known: single has no exposed_p50"
    assert found.inconclusive


def test_a_ratio_is_of_pairs():
    """Each repetition's is 1.5, whatever the machine did: no doubt is left."""
    runs = runs_of({"candidate": "single"}, "throughput", [10, 30, 20])
    runs += runs_of({"candidate": "split"}, "throughput", [15, 45, 30])
    found = figure(runs, RATIO)
    assert found.value == pytest.approx(1.5)
    assert (found.low, found.high) == (pytest.approx(1.5), pytest.approx(1.5))
    assert found.inconclusive == ""
    assert found.repetitions == [pytest.approx(1.5)] * 3


def test_a_wide_ratio_says_on_which_side_of_1_it_is():
    runs = runs_of({"candidate": "single"}, "throughput", [10, 10, 10])
    runs += runs_of({"candidate": "split"}, "throughput", [30, 33, 36])
    found = figure(runs, RATIO)
    assert found.text.endswith("above 1 throughout")
    assert found.inconclusive


def test_the_best_changes_with_a_tie_between():
    runs = both(
        [1, 2, 4],
        single=[[10, 10.1, 9.9], [11, 10, 12], [10, 10.1, 9.9]],
        split=[[5, 5.1, 4.9], [10, 12, 11], [20, 20.1, 19.9]],
    )
    found = figure(runs, BEST, vary=AXIS)
    assert [point.best for point in found.points] == [["single"], ["single", "split"], ["split"]]
    assert found.text == (
        "single at 1; single and split can't be told apart at 2; split at 4; "
        "it changes from single to split between 1 and 4"
    )
    assert found.inconclusive == ""


def test_less_is_better_of_latencies():
    runs = [
        run({"candidate": name, "concurrency": 1}, number, samples={"ttft": [seconds]})
        for name, seconds in (("single", 2), ("split", 1))
        for number in range(3)
    ]
    found = figure(runs, BEST | {"metric": "ttft_p50"}, vary={"concurrency": [1]})
    assert found.points[0].best == ["split"]
    assert found.points[0].ratio.value == pytest.approx(2.0)


def test_nothing_can_be_told_apart():
    runs = both([1], single=[[10, 12, 11]], split=[[11, 10, 12]])
    found = figure(runs, BEST, vary={"concurrency": [1]})
    assert found.text == "single and split can't be told apart at 1"
    assert found.inconclusive == "nowhere is one better than all others"


def test_the_best_of_goodputs_of_nothing():
    """No ratio of 0, but a difference."""
    runs = both([1], single=[[0, 0, 0]], split=[[2, 2.1, 1.9]], metric="goodput")
    found = figure(runs, BEST | {"metric": "goodput"}, slo="ttft_p95:2s", vary={"concurrency": [1]})
    assert found.points[0].best == ["split"]


def test_a_candidate_that_ignores_the_axis_takes_part_everywhere():
    candidates = {
        "single": {"decode": ["a"], "ignores": ["concurrency"]},
        "split": {"prefill": ["a"], "decode": ["b"]},
    }
    runs = runs_of({"candidate": "single"}, "throughput", [10, 10, 10])
    runs += runs_of({"candidate": "split", "concurrency": 1}, "throughput", [5, 5, 5])
    runs += runs_of({"candidate": "split", "concurrency": 4}, "throughput", [20, 20, 20])
    fields = {"vary": {"concurrency": [1, 4]}, "candidates": candidates}
    assert [point.best for point in figure(runs, BEST, **fields).points] == [["single"], ["split"]]


def test_neither_direction_is_better():
    runs = both([1], single=[[1]], split=[[2]], metric="requests")
    found = figure(runs, BEST | {"metric": "requests"}, vary={"concurrency": [1]})
    assert found.text == "not known: neither more nor less of requests is better"


def test_a_crossing_is_interpolated_on_logarithmic_scales():
    """Ratios 1/2 at 1 and 2 at 4: 1 in the middle of their logarithms, at 2."""
    runs = both([1, 4], single=[[10] * 3, [10] * 3], split=[[5] * 3, [20] * 3])
    found = crossing(runs, values=(1, 4))
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert found.text.startswith("2.00")
    assert [point.ratio.value for point in found.points] == [
        pytest.approx(0.5),
        pytest.approx(2.0),
    ]


def test_a_crossing_has_an_interval():
    """By repetition it is at 4^(1/2), and a little to either side."""
    runs = both([1, 4], single=[[10] * 3, [10] * 3], split=[[5, 5.2, 4.8], [20, 20.8, 19.2]])
    found = crossing(runs, values=(1, 4))
    assert found.low < found.value < found.high
    assert found.low > 1.5
    assert found.high < 2.7
    assert "wide" in found.inconclusive


def test_a_crossing_whose_interval_leaves_the_range():
    runs = both([1, 4], single=[[10] * 3, [10] * 3], split=[[9, 10.4, 9.6], [30, 32, 28]])
    found = crossing(runs, values=(1, 4))
    assert found.low is None
    assert "below 1, the smallest measured, to" in found.text
    assert found.inconclusive == "its interval has no end within what was measured"


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ((11, 15, 20), "below 1, the smallest measured, if anywhere: the ratio is above 1"),
        ((20, 15, 11), "above 4, the largest measured, if anywhere: the ratio is above 1"),
        ((20, 11, 20), "none in the range: the ratio is above 1 from 1 to 4"),
        ((5, 6, 5), "none in the range: the ratio is below 1 from 1 to 4"),
        ((11, 9, 11), "crosses 1 2 times from 1 to 4"),
    ],
)
def test_no_crossing_says_where_it_may_be(split, text):
    runs = both([1, 2, 4], single=[[10] * 3] * 3, split=[[each] * 3 for each in split])
    found = crossing(runs)
    assert found.value is None
    assert found.text.startswith(text)


def test_no_crossing_is_conclusive_only_if_every_ratio_is_clear_of_1():
    clear = both([1, 2, 4], [[10] * 3] * 3, [[11] * 3, [15] * 3, [20] * 3])
    unclear = both([1, 2, 4], [[10] * 3] * 3, [[9, 11, 12], [15] * 3, [20] * 3])
    assert crossing(clear).inconclusive == ""
    assert crossing(unclear).inconclusive == "an interval of the ratio contains 1"


def test_of_three_crossings_the_middle_one_counts():
    runs = both(
        [1, 2, 4, 8],
        single=[[10] * 3] * 4,
        split=[[5] * 3, [20] * 3, [5] * 3, [20] * 3],
    )
    found = crossing(runs, values=(1, 2, 4, 8))
    assert found.value == pytest.approx(2 * 2**0.5)


def test_rates_are_an_axis():
    """1 and 4 Gbit/s: between them 2."""
    values = ("1gbit", "4gbit")
    runs = both(values, [[10] * 3, [10] * 3], [[5] * 3, [20] * 3], axis="link_rate")
    found = crossing(runs, axis="link_rate", values=values)
    assert found.text.startswith("2.00 Gbit/s")


def test_a_crossing_of_one_repetition_has_a_value_alone():
    runs = both([1, 4], single=[[10], [10]], split=[[5], [20]])
    found = crossing(runs, values=(1, 4))
    assert found.value == pytest.approx(2.0)
    assert found.inconclusive == "one repetition, so no interval"


@pytest.mark.parametrize("count", [3, 5])
def test_a_crossings_interval_has_the_truth_as_often_as_it_says(count):
    """The ratio's logarithm is 0.4 ln(x / 3), with 5% of noise at each place."""
    generator = np.random.default_rng(count)
    places = [1, 2, 4, 8, 16]
    hits, trials = 0, 150
    for _ in range(trials):
        split = [
            list(10 * (place / 3) ** 0.4 * np.exp(generator.normal(0, 0.05, count)))
            for place in places
        ]
        runs = both(places, single=[[10] * count] * len(places), split=split)
        found = crossing(runs, values=places)
        low = 0.0 if found.low is None else found.low
        high = np.inf if found.high is None else found.high
        hits += low <= 3 <= high
    assert 0.88 <= hits / trials <= 0.995
