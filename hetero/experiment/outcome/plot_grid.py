"""A metric over two varied settings: a coloured table."""

import math
from typing import TYPE_CHECKING

from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.plot_panel import (
    ink_on,
    metric_label,
    place_ticks,
    plain_numbers,
    say_nothing_measured,
)
from hetero.experiment.outcome.settings_axis import axis_label, in_order, value_text
from hetero.experiment.outcome.units import number_text, scale_of
from hetero.experiment.recipe.figures import GridPlot, Value
from hetero.profile.plot.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From there on most cells would look alike on a linear scale.
_LOG_FROM = 30


def draw_grid(axes: "Axes", measured: Measurements, plot: GridPlot) -> bool:
    """False: there is nothing to show."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    named = measured.metric(plot.value)
    columns, rows = (
        in_order(axis, [v for v in measured.values(axis) if plot.at.get(axis, v) == v])
        for axis in (plot.x, plot.y)
    )
    cells = {
        (row, column): _value(measured, plot, columns[column], rows[row])
        for row in range(len(rows))
        for column in range(len(columns))
    }
    known = [value for value in cells.values() if not math.isnan(value)]
    if not known:
        say_nothing_measured(axes, named)
        return False
    factor, unit = scale_of(max(map(abs, known)), named.metric.unit)
    low, high = min(known) / factor, max(known) / factor
    # A 0, as of the type that the others are compared with, is coloured as the smallest of them.
    least = min((value / factor for value in known if value > 0), default=high)
    is_log = low >= 0 and high > _LOG_FROM * least
    norm = LogNorm(least, high) if is_log else Normalize(low, high)
    map_ = colormaps["cividis"]

    def shade(value: float) -> float:
        return max(value / factor, least) if is_log else value / factor

    table = [
        [shade(cells[row, column]) for column in range(len(columns))] for row in range(len(rows))
    ]
    image = axes.imshow(table, cmap=map_, norm=norm, aspect="auto")
    for (row, column), value in cells.items():
        if math.isnan(value):
            axes.text(column, row, "-", ha="center", va="center", color=INK)
            continue
        ink = ink_on(map_(norm(shade(value))))
        text = number_text(value / factor)
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel(axis_label(plot.x))
    axes.set_ylabel(axis_label(plot.y))
    place_ticks(axes, list(range(len(columns))), [value_text(plot.x, v) for v in columns])
    axes.set_yticks(list(range(len(rows))), [value_text(plot.y, v) for v in rows])
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes)
    bar.outline.set_visible(False)
    bar.set_label(metric_label(named, unit))
    if is_log:
        plain_numbers(bar.ax.yaxis)
    return True


def _value(measured: Measurements, plot: GridPlot, x: Value, y: Value) -> float:
    spread = measured.spread(measured.arm(plot.at | {plot.x: x, plot.y: y}), plot.value)
    return math.nan if spread is None else spread.value
