"""Metrics along a varied setting: a panel each, with bands of 95% intervals."""

import math
from typing import TYPE_CHECKING

from hetero.experiment.outcome.measurements import Measurements, Spread
from hetero.experiment.outcome.plot_panel import (
    Series,
    metric_axis,
    place_ticks,
    plain_numbers,
    say_nothing_measured,
    series_of,
    value_limits,
)
from hetero.experiment.outcome.settings_axis import axis_label, in_order, position, value_text
from hetero.experiment.recipe.figures import LinePlot, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_lines(axes: "Axes", measured: Measurements, plot: LinePlot, metric: str) -> list[Series]:
    """One panel. Returns what it shows."""
    named = measured.metric(metric)
    series = series_of(measured, metric, plot.at, plot.x, plot.lines)
    if not series:
        say_nothing_measured(axes, named)
        return []
    cells = [cell for each in series for cell in each.cells]
    log_y = plot.log_y and all(cell.spread.value > 0 for cell in cells)
    factor = metric_axis(axes.yaxis, named, max(cell.spread.value for cell in cells))
    values = in_order(plot.x, (cell.at for cell in cells))
    places = _places(plot.x, values)
    if plot.log_x and all(place > 0 for place in places.values()) and _are_numbers(plot.x, values):
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    for each in series:
        _draw(axes, each, places, factor, plot.x)
    axes.set_xlabel(axis_label(plot.x))
    place_ticks(axes, list(places.values()), [value_text(plot.x, value) for value in values])
    value_limits(axes, series, factor, log=log_y)
    return series


def _draw(
    axes: "Axes", series: Series, places: dict[Value, float], factor: float, setting: str
) -> None:
    spreads = {cell.at: cell.spread for cell in series.cells}
    along = [(place, spreads.get(value)) for value, place in places.items()]
    x = [place for place, _ in along]
    # A line has a gap where nothing was measured.
    y, lows, highs = (
        [math.nan if end is None else end / factor for end in ends]
        for ends in zip(*(_ends(spread) for _, spread in along), strict=True)
    )
    axes.plot(x, y, label=series.name, **series.line(setting))
    axes.fill_between(x, lows, highs, color=series.colour, alpha=0.16, linewidth=0)


def _ends(spread: Spread | None) -> tuple[float | None, float | None, float | None]:
    if spread is None:
        return None, None, None
    return spread.value, spread.low, spread.high


def _are_numbers(setting: str, values: list[Value]) -> bool:
    return all(position(setting, value) is not None for value in values)


def _places(setting: str, values: list[Value]) -> dict[Value, float]:
    """Names lie side by side."""
    if not _are_numbers(setting, values):
        return {value: float(index) for index, value in enumerate(values)}
    return {value: position(setting, value) or 0.0 for value in values}
