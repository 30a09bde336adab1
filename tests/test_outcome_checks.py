"""Checks: the number decides, the interval is said."""

import pytest
from fake_runs import run, runs_of, serving

from hetero.experiment.outcome.checks import check_all
from hetero.experiment.outcome.figures import evaluate
from hetero.experiment.outcome.measurements import Measurements

FIGURES = {
    "rate": {
        "kind": "value",
        "says": "how fast",
        "metric": "throughput",
        "at": {"candidate": "single"},
    }
}


def checked(values, check, figures=FIGURES, extra=()):
    recipe = serving(figures=figures, checks=[check])
    runs = [*runs_of({"candidate": "single"}, "throughput", values), *extra]
    measured = Measurements(recipe, runs)
    return check_all(measured, evaluate(measured))[0]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([100, 101, 99], "held"),
        ([80, 81, 79], "FAILED"),
        ([92, 96, 94], "held, but its interval reaches past the bound"),
        ([86, 88, 90], "FAILED, but its interval reaches past the bound"),
    ],
)
def test_a_figure_against_a_bound(values, verdict):
    assert checked(values, {"figure": "rate", "at_least": 90}).verdict == verdict


def test_both_bounds():
    check = {"figure": "rate", "at_least": 90, "at_most": 110}
    assert checked([100, 101, 99], check).held
    assert not checked([120, 121, 119], check).held
    assert (
        checked([100, 101, 99], check).says == "rate at least 90 tokens/s and at most 110 tokens/s"
    )


def test_a_bound_itself_is_kept():
    assert checked([90, 90, 90], {"figure": "rate", "at_least": 90}).verdict == "held"


def test_a_metric_is_checked_in_every_arm_and_the_worst_is_named():
    other = runs_of({"candidate": "split"}, "throughput", [50, 50, 50])
    check = {"metric": "throughput", "at_least": 60}
    found = checked([100, 100, 100], check, extra=other)
    assert not found.held
    assert found.value == pytest.approx(50)
    assert found.text == "50.0 tokens/s of split"
    assert found.says == "throughput at least 60 tokens/s in all 2 arms"


def test_an_arm_that_was_not_measured_fails():
    found = checked([100], {"metric": "throughput", "at_least": 60})
    assert not found.held
    assert found.text == "not known: split has no throughput"


def test_a_figure_without_a_number_fails():
    figures = {"rate": FIGURES["rate"] | {"metric": "request_rate"}}
    found = checked([100], {"figure": "rate", "at_least": 1}, figures=figures)
    assert (found.held, found.value) == (False, None)
    assert "not known" in found.text


def test_one_repetition_straddles_nothing():
    assert checked([91], {"figure": "rate", "at_least": 90}).verdict == "held"


def test_bounds_are_said_in_the_units_of_what_is_found():
    arm = {"candidate": "single"}
    figures = {"late": {"kind": "value", "says": "", "metric": "ttft_p50", "at": arm}}
    figures["late"]["says"] = "how late"
    extra = [run(arm, number, samples={"ttft": [0.1]}) for number in range(3, 6)]
    found = checked([1], {"figure": "late", "at_most": 0.2}, figures=figures, extra=extra)
    assert found.says == "late at most 200 ms"
    assert found.held
