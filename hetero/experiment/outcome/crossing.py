"""Where along an axis two arms are equal: a break-even.

The paired ratio is followed over the measured places, both on logarithmic scales, straight between
two. A curve that crosses 1 an odd number of times (noise can make it three) is taken to cross at
the middle one; one that crosses an even number of times ends on the side it began on, and its
crossing, if any, lies beyond an end.
"""

import math
from itertools import pairwise

import numpy as np

from hetero.errors import ConfigError
from hetero.experiment.outcome.bootstrap import (
    Draws,
    interval,
    ratio,
    resampled_repetitions,
)
from hetero.experiment.outcome.figure_result import FigureResult, Point, doubt
from hetero.experiment.outcome.measurements import Measurements, Spread, spread
from hetero.experiment.outcome.settings_axis import in_order, place_text, position, value_text
from hetero.experiment.outcome.values import Floats
from hetero.experiment.recipe.figures import CrossingFigure, Value


def crossing_result(measured: Measurements, name: str, figure: CrossingFigure) -> FigureResult:
    """Raises: ConfigError where fewer than two places have a ratio."""
    ratios = _ratios(measured, figure)
    if len(ratios) < 2:
        raise ConfigError(
            f"not known: need {figure.metric} of both arms at two values of {figure.along} or "
            f"more, have {len(ratios) or 'none'}"
        )
    points = [Point(at=value, ratio=spread(each)) for value, each in ratios]
    count = len(_common(ratios))
    found = _found(figure, ratios)
    if found is None:
        text, doubted = _no_crossing(figure, points)
    else:
        text, doubted = _text(figure, points, found, count), doubt(found, count)
    return FigureResult(
        name=name,
        kind="crossing",
        says=figure.says,
        metric=figure.metric,
        unit="",
        value=None if found is None else found.value,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        text=text,
        inconclusive=doubted,
        repetitions=[] if found is None else found.repetitions,
        points=points,
    )


def _ratios(measured: Measurements, figure: CrossingFigure) -> list[tuple[Value, Draws]]:
    """Along the axis, from the smallest."""
    found = []
    for value in in_order(figure.along, measured.values(figure.along)):
        here = figure.at | {figure.along: value}
        of, to = measured.arm(here | figure.of), measured.arm(here | figure.to)
        if of is None or to is None or not position(figure.along, value):
            continue
        draws_of, draws_to = measured.draws(of, figure.metric), measured.draws(to, figure.metric)
        both = ratio(draws_of, draws_to) if draws_of is not None and draws_to is not None else None
        if both is not None:
            found.append((value, both))
    return found


def _found(figure: CrossingFigure, ratios: list[tuple[Value, Draws]]) -> Spread | None:
    places = np.log([position(figure.along, value) or math.nan for value, _ in ratios])
    curve = np.array([draws.values.mean() for _, draws in ratios])
    begins_above = bool(curve[0] > 0)
    estimate = float(_crossings(places, curve[None], begins_above)[0])
    if not math.isfinite(estimate):
        return None
    common = _common(ratios)
    rows = [[draws.repetitions.index(each) for each in common] for _, draws in ratios]
    values = np.array([d.values[at] for (_, d), at in zip(ratios, rows, strict=True)]).T
    requests = np.array([d.requests.mean(axis=0) for _, d in ratios]).T
    ends = None
    if len(common) > 1:
        resampled = values[resampled_repetitions(len(common))].mean(axis=1)
        ends = interval(
            estimate,
            _crossings(places, resampled, begins_above),
            _crossings(places, requests, begins_above),
            len(common),
        )
    low, high = (-math.inf, math.inf) if ends is None else ends
    alone = _crossings(places, values, begins_above) if common else np.array([])
    return Spread(
        value=math.exp(estimate),
        # Nothing was measured out there.
        low=math.exp(low) if low >= places[0] else None,
        high=math.exp(high) if high <= places[-1] else None,
        repetitions=[math.exp(each) for each in alone if math.isfinite(each)],
    )


def _common(ratios: list[tuple[Value, Draws]]) -> list[int]:
    """Repetitions that have the whole curve."""
    return [
        each
        for each in ratios[0][1].repetitions
        if all(each in draws.repetitions for _, draws in ratios)
    ]


def _crossings(places: Floats, curves: Floats, begins_above: bool) -> Floats:
    """Of each curve (a row, in logarithms) where it is 0. Infinite: beyond that end of the axis,
    for a curve that begins where it would begin, or end."""
    above = curves > 0
    changes = above[:, 1:] != above[:, :-1]
    left, right = curves[:, :-1], curves[:, 1:]
    step = np.where(changes, left - right, 1.0)
    between = places[:-1] + (places[1:] - places[:-1]) * left / step
    count = changes.sum(axis=1)
    middle = (changes.cumsum(axis=1) == (count[:, None] + 1) // 2) & changes
    found = between[np.arange(len(curves)), middle.argmax(axis=1)]
    beyond = np.where(above[:, 0] == begins_above, math.inf, -math.inf)
    return np.asarray(np.where(count % 2 == 1, found, beyond))


def _text(figure: CrossingFigure, points: list[Point], found: Spread, count: int) -> str:
    text = place_text(figure.along, found.value)
    if count < 2:
        return text
    ends = (points[0].at, points[-1].at)
    names = [value_text(figure.along, end) for end in ends]
    low = f"below {names[0]}, the smallest measured,"
    if found.low is not None:
        low = place_text(figure.along, found.low)
    high = f"above {names[1]}, the largest measured"
    if found.high is not None:
        high = place_text(figure.along, found.high)
    return f"{text} ({low} to {high})"


def _no_crossing(figure: CrossingFigure, points: list[Point]) -> tuple[str, str]:
    """What the ratios say instead, and why that is inconclusive."""
    spreads = [point.ratio for point in points if point.ratio is not None]
    nearness = [abs(math.log(each.value)) for each in spreads]
    first, last = (value_text(figure.along, point.at) for point in (points[0], points[-1]))
    signs = [each.value > 1 for each in spreads]
    if len(set(signs)) > 1:
        turns = sum(a != b for a, b in pairwise(signs))
        text = f"crosses 1 {turns} times from {first} to {last}, ending where it began"
        return text, "the ratio goes to and fro"
    side = "above" if signs[0] else "below"
    # Towards which end the ratio comes nearer to 1, from end to end.
    if all(a < b for a, b in pairwise(nearness)):
        text = (
            f"below {first}, the smallest measured, if anywhere: the ratio is {side} 1 from there"
        )
    elif all(a > b for a, b in pairwise(nearness)):
        text = f"above {last}, the largest measured, if anywhere: the ratio is {side} 1 up to there"
    else:
        text = f"none in the range: the ratio is {side} 1 from {first} to {last}"
    if any(len(each.repetitions) < 2 for each in spreads):
        return text, "one repetition, so no interval"
    return text, "an interval of the ratio contains 1" if any(
        each.contains(1) for each in spreads
    ) else ""
