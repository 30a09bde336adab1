"""Metrics along a varied setting: a panel each, with bands of 95% intervals."""

from typing import TYPE_CHECKING

from hetero.experiment.outcome.measurements import Measurements
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
    cells = sorted(series.cells, key=lambda cell: places[cell.at])
    x = [places[cell.at] for cell in cells]
    axes.plot(
        x, [cell.spread.value / factor for cell in cells], label=series.name, **series.line(setting)
    )
    ends = [
        (place, cell.spread.low, cell.spread.high)
        for place, cell in zip(x, cells, strict=True)
        if cell.spread.low is not None and cell.spread.high is not None
    ]
    if ends:
        at, lows, highs = zip(*ends, strict=True)
        axes.fill_between(
            at,
            [low / factor for low in lows],
            [high / factor for high in highs],
            color=series.colour,
            alpha=0.16,
            linewidth=0,
        )


def _are_numbers(setting: str, values: list[Value]) -> bool:
    return all(position(setting, value) is not None for value in values)


def _places(setting: str, values: list[Value]) -> dict[Value, float]:
    """Names lie side by side."""
    if not _are_numbers(setting, values):
        return {value: float(index) for index, value in enumerate(values)}
    return {value: position(setting, value) or 0.0 for value in values}
