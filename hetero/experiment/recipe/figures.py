"""What a recipe computes from its arms, demands of it, and draws.

Docstrings stand in the JSON Schema too: `name: what it is`, a line for each field.
"""

from typing import Annotated

import msgspec

Value = str | int | float
Arm = dict[str, Value]  # "candidate" where there are several, and each varied setting
Selection = dict[str, Value]  # an arm's candidate and settings: those named must be equal
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]
Metrics = Annotated[list[NotEmpty], msgspec.Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Figure(_Part, frozen=True, kw_only=True, tag_field="kind"):
    """
    says: what the number is, in a line
    metric: as `ttft_p95`, `throughput`, `goodput`; docs/recipes.md has all of them
    """

    says: NotEmpty
    metric: NotEmpty


class ValueFigure(_Figure, frozen=True, kw_only=True, tag="value"):
    """A metric of one arm.

    at: which arm: its candidate and settings, as far as it takes to tell it from the others
    """

    at: Selection = {}


class RatioFigure(_Figure, frozen=True, kw_only=True, tag="ratio"):
    """A metric of one arm over that of another, repetition by repetition.

    of: which arm's metric
    to: divided by which arm's
    at: what both have in common
    """

    of: Selection
    to: Selection
    at: Selection = {}


class BestFigure(_Figure, frozen=True, kw_only=True, tag="best"):
    """Which value of `among` is best at each value of `along`, or that two can't be told apart;
    and between which values of `along` the best one changes.

    among: `candidate`, or a varied setting: what competes
    along: `candidate`, or a varied setting: where it competes, in the order of `vary`
    at: what all of these arms have in common
    """

    among: NotEmpty = "candidate"
    along: NotEmpty
    at: Selection = {}


class CrossingFigure(_Figure, frozen=True, kw_only=True, tag="crossing"):
    """Where along an axis the ratio of two arms is 1: a break-even. Between two measured values it
    is interpolated, both on logarithmic scales.

    of: which arms' metric
    to: divided by which arms'
    along: a varied setting of numbers above 0, or of rates as 1gbit
    at: what all of these arms have in common
    """

    of: Selection
    to: Selection
    along: NotEmpty
    at: Selection = {}


Figure = ValueFigure | RatioFigure | BestFigure | CrossingFigure


class Check(_Part, frozen=True, kw_only=True):
    """A bound on a figure, or on a metric in every arm that `at` selects.

    figure: one of the recipe's, by name
    metric: instead of a figure
    at: in which arms the metric must keep the bound; all of them, where it is left out
    at_least: the bound below
    at_most: the bound above
    """

    figure: str | None = None
    metric: str | None = None
    at: Selection = {}
    at_least: float | None = None
    at_most: float | None = None


class _Plot(_Part, frozen=True, kw_only=True, tag_field="kind"):
    """
    title: above the plot
    at: which arms are drawn; all of them, where it is left out
    """

    title: NotEmpty
    at: Selection = {}


class LinePlot(_Plot, frozen=True, kw_only=True, tag="lines"):
    """Metrics along a varied setting, a panel each; a line for each value of `lines`.

    x: a varied setting
    y: metrics, a panel each
    lines: `candidate`, or a varied setting; null: one line
    log_x: a logarithmic axis
    log_y: logarithmic axes
    """

    x: NotEmpty
    y: Metrics
    lines: NotEmpty | None = "candidate"
    log_x: bool = False
    log_y: bool = False


class BarPlot(_Plot, frozen=True, kw_only=True, tag="bars"):
    """Metrics for each value of `x`, side by side for each value of `lines`; a panel each.

    x: `candidate`, or a varied setting
    y: metrics, a panel each
    lines: `candidate`, or a varied setting; null: one bar a place
    """

    x: NotEmpty
    y: Metrics
    lines: NotEmpty | None = None


class GridPlot(_Plot, frozen=True, kw_only=True, tag="grid"):
    """A metric over two varied settings, written into cells.

    x: `candidate`, or a varied setting: the columns
    y: the same: the rows
    value: a metric
    """

    x: NotEmpty
    y: NotEmpty
    value: NotEmpty


Plot = LinePlot | BarPlot | GridPlot
