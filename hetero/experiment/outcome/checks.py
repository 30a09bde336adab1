"""What a recipe demands of its figures and arms: held, or not.

The number itself decides; where its interval reaches past the bound, that is said.
"""

import msgspec

from hetero.experiment.outcome.figure_result import FigureResult
from hetero.experiment.outcome.measurements import Measurements, Spread
from hetero.experiment.outcome.units import interval_text, scale_of, tick_text
from hetero.experiment.recipe.arms import arm_text
from hetero.experiment.recipe.figures import Check


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """value, low, high: of the figure, or of the arm that comes nearest to failing."""

    says: str  # what was demanded
    held: bool
    straddles: bool  # the interval reaches past the bound
    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    text: str  # what was found

    @property
    def verdict(self) -> str:
        if not self.straddles:
            return "held" if self.held else "FAILED"
        if self.held:
            return "held, but its interval reaches past the bound"
        return "FAILED, but its interval reaches past the bound"


def check_all(measured: Measurements, figures: list[FigureResult]) -> list[CheckResult]:
    by_name = {figure.name: figure for figure in figures}
    return [
        _of_figure(check, by_name[check.figure])
        if check.figure is not None
        else _of_arms(measured, check, check.metric or "")
        for check in measured.recipe.checks
    ]


def _of_figure(check: Check, figure: FigureResult) -> CheckResult:
    says = f"{figure.name} {_bounds(check, figure.unit)}"
    if figure.value is None:
        return _not_known(check, says, figure.text)
    ends = Spread(
        value=figure.value, low=figure.low, high=figure.high, repetitions=figure.repetitions
    )
    # Beyond what was measured an interval has no end; of one repetition there is none.
    reaches = len(figure.repetitions) > 1
    return _result(check, says, ends, figure.text, reaches)


def _of_arms(measured: Measurements, check: Check, metric: str) -> CheckResult:
    arms = measured.selected(check.at)
    unit = measured.metric(metric).metric.unit
    says = f"{metric} {_bounds(check, unit)} {_where(check, len(arms))}"
    found = []
    for arm in arms:
        spread = measured.spread(arm, metric)
        if spread is None:
            return _not_known(check, says, f"not known: {arm_text(arm)} has no {metric}")
        text = f"{interval_text(spread.value, spread.low, spread.high, unit)} of {arm_text(arm)}"
        reaches = len(spread.repetitions) > 1
        found.append((_margin(check, spread.value), _result(check, says, spread, text, reaches)))
    if not found:
        return _not_known(check, says, "not known: no arm is selected")
    worst = min(found, key=lambda pair: pair[0])[1]
    return msgspec.structs.replace(worst, straddles=any(result.straddles for _, result in found))


def _result(check: Check, says: str, spread: Spread, text: str, has_interval: bool) -> CheckResult:
    held = _holds(check, spread.value)
    ends = [
        _holds(check, float("-inf") if spread.low is None else spread.low),
        _holds(check, float("inf") if spread.high is None else spread.high),
    ]
    return CheckResult(
        says=says,
        held=held,
        straddles=has_interval and any(end != held for end in ends),
        value=spread.value,
        low=spread.low,
        high=spread.high,
        at_least=check.at_least,
        at_most=check.at_most,
        text=text,
    )


def _not_known(check: Check, says: str, text: str) -> CheckResult:
    return CheckResult(
        says=says,
        held=False,
        straddles=False,
        value=None,
        low=None,
        high=None,
        at_least=check.at_least,
        at_most=check.at_most,
        text=text,
    )


def _holds(check: Check, value: float) -> bool:
    return _margin(check, value) >= 0


def _margin(check: Check, value: float) -> float:
    """To the nearer bound; negative beyond it."""
    margins = []
    if check.at_least is not None:
        margins.append(value - check.at_least)
    if check.at_most is not None:
        margins.append(check.at_most - value)
    return min(margins, default=0.0)


def _bounds(check: Check, unit: str) -> str:
    bounds = []
    if check.at_least is not None:
        bounds.append(f"at least {_bound(check.at_least, unit)}")
    if check.at_most is not None:
        bounds.append(f"at most {_bound(check.at_most, unit)}")
    return " and ".join(bounds)


def _bound(bound: float, unit: str) -> str:
    factor, shown = scale_of(bound, unit)
    return f"{tick_text(bound / factor)} {shown}".rstrip()


def _where(check: Check, count: int) -> str:
    where = ", ".join(f"{key} {value}" for key, value in check.at.items())
    if where:
        return f"at {where}"
    return f"in all {count} arms" if count > 1 else ""
