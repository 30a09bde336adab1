"""What all panels share: series and their looks, axes with units, labels that don't overlap."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hetero.experiment.outcome.measurements import Measurements, Spread
from hetero.experiment.outcome.settings_axis import value_text
from hetero.experiment.outcome.units import scale_of, tick_text
from hetero.experiment.recipe.figures import Arm, Selection, Value
from hetero.experiment.recipe.metrics import NamedMetric
from hetero.profile.plot.style import COLOURS, FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colours are not all that tells series apart: for those who can't see them, and on paper.
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo")

# That fit side by side below a panel; and pixels between two names.
_NAME_CHARACTERS = 54
_NAME_GAP = 6

# Of an interval above a panel's largest value; what lies further up is cut off.
_MAX_REACH = 1.6


class Cell(NamedTuple):
    """An arm's number at a place of a plot."""

    at: Value
    arm: Arm
    spread: Spread


class Series(NamedTuple):
    name: str  # "": the only one
    number: int  # among those of its axis, drawn or not: it looks the same in every plot
    cells: list[Cell]

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def hatch(self) -> str:
        return _HATCHES[self.number % len(_HATCHES)]

    def line(self, x: str) -> dict[str, Any]:
        """Without markers where x makes no difference to its one arm, measured once. Later ones are
        thinner: where lines coincide, those below still show."""
        marker = _MARKERS[self.number % len(_MARKERS)]
        return {
            "color": self.colour,
            "marker": marker if x in self.cells[0].arm else "",
            "linestyle": _DASHES[self.number % len(_DASHES)],
            "linewidth": max(1.4, 2.3 - 0.35 * self.number),
            "markersize": max(5.0, 8.0 - self.number),
            "markeredgecolor": "white",
            "markeredgewidth": 0.8,
        }


def series_of(
    measured: Measurements, metric: str, at: Selection, x: str, lines: str | None
) -> list[Series]:
    """One for each value of `lines` that has a number anywhere."""
    found = []
    for number, value in enumerate(measured.values(lines) if lines else [None]):
        chosen = at if lines is None or value is None else at | {lines: value}
        if lines is not None and at.get(lines, value) != value:
            continue
        cells = []
        for place in measured.values(x):
            arm = measured.arm(chosen | {x: place}) if at.get(x, place) == place else None
            spread = measured.spread(arm, metric)
            if arm is not None and spread is not None:
                cells.append(Cell(place, arm, spread))
        if cells:
            name = "" if lines is None or value is None else value_text(lines, value)
            found.append(Series(name, number, cells))
    return found


def metric_axis(axis: "Axis", named: NamedMetric, largest: float) -> float:
    """Labels an axis with name and unit; returns what to divide numbers by."""
    factor, unit = scale_of(largest, named.metric.unit)
    axis.set_label_text(metric_label(named, unit))
    return factor


def metric_label(named: NamedMetric, unit: str) -> str:
    label = named.axis_label
    if unit != named.metric.unit:
        label = label.replace(f"({named.metric.unit})", f"({unit})")
    # The unit stays with its word.
    return textwrap.fill(label.replace(" (", "\xa0("), 38).replace("\xa0", " ")


def plain_numbers(axis: "Axis") -> None:
    """Of a logarithmic axis: 0.05, not 5 x 10^-2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axis.set_minor_formatter(NullFormatter())


def value_limits(axes: "Axes", series: Sequence[Series], factor: float, *, log: bool) -> None:
    """Linear axes begin at 0, so that heights compare. An interval far wider than what it is of
    does not press the rest flat."""
    spreads = [cell.spread for each in series for cell in each.cells]
    values = [each.value / factor for each in spreads]
    highs = [each.value if each.high is None else each.high for each in spreads]
    lows = [each.value if each.low is None else each.low for each in spreads]
    top = max(highs) / factor
    if max(values) > 0:
        top = min(top, _MAX_REACH * max(values))
    if log:
        bottom = max(min(lows) / factor, min(values) / _MAX_REACH)
        axes.set_ylim(bottom / 1.12, top * 1.12)
        return
    bottom = min(0.0, *(low / factor for low in lows))
    top = max(top, 0.0)
    axes.set_ylim(1.08 * bottom, 1.08 * top if top > bottom else 1.0)


def say_nothing_measured(axes: "Axes", named: NamedMetric) -> None:
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        textwrap.fill(f"{named.axis_label}: not measured", 38),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=FAINT,
    )


def place_ticks(axes: "Axes", places: Sequence[float], names: Sequence[str]) -> None:
    """Along x, at what was measured and nowhere else."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    room = max(8, _NAME_CHARACTERS // max(1, len(names)))
    names = [textwrap.fill(name, room) for name in names]
    axes.set_xticks(list(places), list(names))


def part_tick_names(figure: "Figure", *, may_drop: bool) -> None:
    """Names along x that overlap are broken into lines; if that is not enough the later ones are
    dropped, where the others tell what they are, and else all are turned."""
    figure.canvas.draw()  # they have places from here on
    crowded = [axes for axes in figure.axes if _overlapping(axes)]
    for axes in crowded:
        _name_ticks(axes, [name.replace(" ", "\n") for name in _tick_names(axes)])
    if crowded:
        figure.canvas.draw()
    for axes in crowded:
        overlapping = _overlapping(axes)
        if overlapping and may_drop:
            names = _tick_names(axes)
            _name_ticks(axes, ["" if i in overlapping else name for i, name in enumerate(names)])
        elif overlapping:
            axes.tick_params(axis="x", labelrotation=35)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")


def _overlapping(axes: "Axes") -> set[int]:
    """Ticks along x whose names lie over those before them."""
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    taken, found = -math.inf, set()
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index].x0):
        if boxes[index].x0 < taken + _NAME_GAP:
            found.add(index)
        else:
            taken = boxes[index].x1
    return found


def _tick_names(axes: "Axes") -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def _name_ticks(axes: "Axes", names: list[str]) -> None:
    axes.set_xticks(list(axes.get_xticks()), names)


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever stands out more (WCAG's relative luminance)."""
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return INK if luminance > 0.21 else "#ffffff"
