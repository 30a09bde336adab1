"""Which of several is best along an axis, and where that changes.

Two can't be told apart where the interval of their paired ratio contains 1 (of their difference 0,
where a value is not positive).
"""

from itertools import groupby, pairwise

from hetero.errors import ConfigError
from hetero.experiment.outcome.bootstrap import difference, mean_interval
from hetero.experiment.outcome.figure_result import FigureResult, Point
from hetero.experiment.outcome.measurements import Measurements, Spread, spread
from hetero.experiment.outcome.settings_axis import in_order, value_text
from hetero.experiment.recipe.figures import BestFigure, Value


def best_result(measured: Measurements, name: str, figure: BestFigure) -> FigureResult:
    """Raises: ConfigError if neither direction of the metric is better, or nothing was measured."""
    better = measured.metric(figure.metric).metric.better
    if better is None:
        raise ConfigError(f"not known: neither more nor less of {figure.metric} is better")
    found = (
        _point(measured, figure, value, -1 if better == "lower" else 1)
        for value in in_order(figure.along, measured.values(figure.along))
    )
    points = [point for point in found if point is not None]
    if not points:
        raise ConfigError(f"not known: no arm has {figure.metric}")
    return FigureResult(
        name=name,
        kind="best",
        says=figure.says,
        metric=figure.metric,
        unit="",
        value=None,
        low=None,
        high=None,
        text=_text(figure, points),
        inconclusive=_doubt(points),
        points=points,
    )


def _point(
    measured: Measurements, figure: BestFigure, along: Value, direction: int
) -> Point | None:
    draws = {}
    for value in measured.values(figure.among):
        arm = measured.arm(figure.at | {figure.along: along, figure.among: value})
        found = None if arm is None else measured.draws(arm, figure.metric)
        if found is not None:
            draws[value] = found
    if not draws:
        return None
    spreads = {value: spread(each) for value, each in draws.items()}
    ranked = sorted(spreads, key=lambda value: -direction * spreads[value].value)
    first, *others = ranked
    ties: list[Value] = [first]
    ratio: Spread | None = None
    for other in others:
        compared = difference(draws[other], draws[first])
        if compared is None:
            continue
        estimate, ends = mean_interval(compared)
        # As logarithms they are back from there: a ratio of 1.
        same = 1.0 if compared.is_log else 0.0
        # Without an interval only equal values are a tie.
        if ends[0] <= same <= ends[1] if ends is not None else estimate == same:
            ties.append(other)
        if other == others[0] and compared.is_log:
            ratio = spread(compared)
    return Point(
        at=along,
        ratio=ratio,
        best=ties,
        values={str(value): each for value, each in spreads.items()},
    )


def _doubt(points: list[Point]) -> str:
    if any(len(each.repetitions) < 2 for point in points for each in point.values.values()):
        return "one repetition, so nothing says what is chance"
    if all(len(point.best) > 1 for point in points):
        return "nowhere is one better than all others"
    return ""


def _text(figure: BestFigure, points: list[Point]) -> str:
    parts = []
    for best, group in groupby(points, key=lambda point: sorted(map(str, point.best))):
        names = [value_text(figure.along, point.at) for point in group]
        where = f"from {names[0]} to {names[-1]}" if len(names) > 2 else f"at {' and '.join(names)}"
        if len(best) == 1:
            parts.append(f"{best[0]} {where}")
        else:
            parts.append(f"{' and '.join(best)} can't be told apart {where}")
    return "; ".join([*parts, *_changes(figure, points)])


def _changes(figure: BestFigure, points: list[Point]) -> list[str]:
    """Where one clear best follows another, over what lies undecided between."""
    clear = [point for point in points if len(point.best) == 1]
    return [
        f"it changes from {before.best[0]} to {after.best[0]} between "
        f"{value_text(figure.along, before.at)} and {value_text(figure.along, after.at)}"
        for before, after in pairwise(clear)
        if before.best != after.best
    ]
