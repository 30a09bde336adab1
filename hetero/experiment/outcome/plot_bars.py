"""A metric for each value of a setting, side by side, with 95% intervals as error bars."""

from typing import TYPE_CHECKING

from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.plot_panel import (
    Series,
    metric_axis,
    place_ticks,
    say_nothing_measured,
    series_of,
    value_limits,
)
from hetero.experiment.outcome.settings_axis import axis_label, in_order, value_text
from hetero.experiment.outcome.units import number_text
from hetero.experiment.recipe.figures import BarPlot, Value
from hetero.profile.plot.style import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUP_WIDTH = 0.8
# More numbers would be too small to read.
_MAX_NUMBERS = 10


def draw_bars(axes: "Axes", measured: Measurements, plot: BarPlot, metric: str) -> list[Series]:
    """One panel. Returns what it shows."""
    named = measured.metric(metric)
    series = series_of(measured, metric, plot.at, plot.x, plot.lines)
    if not series:
        say_nothing_measured(axes, named)
        return []
    cells = [cell for each in series for cell in each.cells]
    factor = metric_axis(axes.yaxis, named, max(abs(cell.spread.value) for cell in cells))
    wanted = [value for value in measured.values(plot.x) if plot.at.get(plot.x, value) == value]
    values = in_order(plot.x, wanted)
    for index, each in enumerate(series):
        offset = _GROUP_WIDTH * ((index + 0.5) / len(series) - 0.5)
        _draw(axes, each, values, offset, _GROUP_WIDTH / len(series), factor)
    axes.grid(False, axis="x")
    axes.set_xlabel(axis_label(plot.x))
    axes.set_xlim(-0.6, len(values) - 0.4)
    names = [value_text(plot.x, value) for value in values]
    place_ticks(axes, [float(index) for index in range(len(values))], names)
    value_limits(axes, series, factor, log=False)
    if len(values) * len(series) <= _MAX_NUMBERS:
        _number(axes, series, values, factor)
    return series


def _draw(
    axes: "Axes", series: Series, values: list[Value], offset: float, width: float, factor: float
) -> None:
    there = {cell.at: cell.spread for cell in series.cells}
    for index, value in enumerate(values):
        spread, place = there.get(value), index + offset
        if spread is None:
            axes.text(place, 0, "-", ha="center", va="bottom", color=FAINT)
            continue
        axes.bar(
            place,
            spread.value / factor,
            0.94 * width,
            color=series.colour,
            hatch=series.hatch,
            edgecolor="white",
            linewidth=0,
            label=series.name if value == series.cells[0].at else None,
        )
        if spread.low is not None and spread.high is not None:
            axes.vlines(place, spread.low / factor, spread.high / factor, colors=INK, linewidth=1.4)


def _number(axes: "Axes", series: list[Series], values: list[Value], factor: float) -> None:
    """Above bar and interval."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, bottom + 1.08 * (top - bottom))
    for index, each in enumerate(series):
        offset = _GROUP_WIDTH * ((index + 0.5) / len(series) - 0.5)
        for cell in each.cells:
            high = cell.spread.value if cell.spread.high is None else cell.spread.high
            axes.annotate(
                number_text(cell.spread.value / factor),
                (values.index(cell.at) + offset, min(high / factor, top)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=INK,
            )
