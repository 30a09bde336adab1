"""Figures, from what was measured."""

from hetero.errors import ConfigError
from hetero.experiment.outcome.best import best_result
from hetero.experiment.outcome.bootstrap import Draws, ratio
from hetero.experiment.outcome.crossing import crossing_result
from hetero.experiment.outcome.figure_result import FigureResult, doubt
from hetero.experiment.outcome.measurements import Measurements, Spread, spread
from hetero.experiment.outcome.units import interval_text
from hetero.experiment.recipe.arms import arm_text
from hetero.experiment.recipe.figures import (
    BestFigure,
    CrossingFigure,
    Figure,
    RatioFigure,
    Selection,
    ValueFigure,
)


def evaluate(measured: Measurements) -> list[FigureResult]:
    """In the recipe's order. Of one that can't be computed the text says why: what was measured for
    hours is not lost for it."""
    results = []
    for name, figure in measured.recipe.figures.items():
        try:
            results.append(_evaluated(measured, name, figure))
        except ConfigError as error:
            results.append(_not_known(name, figure, str(error)))
    return results


def _evaluated(measured: Measurements, name: str, figure: Figure) -> FigureResult:
    match figure:
        case ValueFigure():
            found = spread(_draws(measured, figure.at, figure.metric))
            unit = measured.metric(figure.metric).metric.unit
            return _of_spread(name, "value", figure, found, unit)
        case RatioFigure():
            return _of_spread(name, "ratio", figure, _ratio(measured, figure), "")
        case BestFigure():
            return best_result(measured, name, figure)
        case CrossingFigure():
            return crossing_result(measured, name, figure)


def _ratio(measured: Measurements, figure: RatioFigure) -> Spread:
    of = _draws(measured, figure.at | figure.of, figure.metric)
    to = _draws(measured, figure.at | figure.to, figure.metric)
    both = ratio(of, to)
    if both is None:
        raise ConfigError(
            f"not known: need {figure.metric} above 0 from one repetition of both arms"
        )
    return spread(both)


def _draws(measured: Measurements, selection: Selection, metric: str) -> Draws:
    arm = measured.arm(selection)
    if arm is None:
        count = len(measured.selected(selection))
        raise ConfigError(
            f"not known: need one arm with {_text(selection)}, have {count or 'none'}"
        )
    draws = measured.draws(arm, metric)
    if draws is None:
        raise ConfigError(f"not known: {arm_text(arm)} has no {metric}")
    return draws


def _of_spread(name: str, kind: str, figure: Figure, found: Spread, unit: str) -> FigureResult:
    return FigureResult(
        name=name,
        kind="ratio" if kind == "ratio" else "value",
        says=figure.says,
        metric=figure.metric,
        unit=unit,
        value=found.value,
        low=found.low,
        high=found.high,
        text=interval_text(found.value, found.low, found.high, unit) + _side(kind, found),
        inconclusive=doubt(found, len(found.repetitions)),
        repetitions=found.repetitions,
    )


def _side(kind: str, found: Spread) -> str:
    """A ratio can be hardly known, and still without doubt on one side of 1."""
    if kind != "ratio" or found.low is None or found.high is None or found.contains(1):
        return ""
    return f", {'below' if found.high < 1 else 'above'} 1 throughout"


def _not_known(name: str, figure: Figure, text: str) -> FigureResult:
    return FigureResult(
        name=name,
        kind=figure.__struct_config__.tag,  # type: ignore[arg-type]
        says=figure.says,
        metric=figure.metric,
        unit="",
        value=None,
        low=None,
        high=None,
        text=text,
        inconclusive="it was not measured",
    )


def _text(selection: Selection) -> str:
    return ", ".join(f"{key} {value}" for key, value in selection.items()) or "nothing selected"
