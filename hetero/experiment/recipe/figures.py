"""What a recipe computes from its arms, demands of it, and draws."""

from typing import Annotated

import msgspec

Value = str | int | float
Selection = dict[str, Value]  # an arm's candidate and settings: those named must be equal
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Figure(_Part, frozen=True, kw_only=True, tag_field="kind"):
    """metric: as `ttft_p95`, `throughput`, `goodput`; see docs/recipes.md for all of them."""

    says: NotEmpty  # what the number is, in a line
    metric: NotEmpty


class ValueFigure(_Figure, frozen=True, kw_only=True, tag="value"):
    """A metric of one arm."""

    at: Selection = {}


class RatioFigure(_Figure, frozen=True, kw_only=True, tag="ratio"):
    """A metric of one arm over that of another, repetition by repetition."""

    of: Selection
    to: Selection
    at: Selection = {}  # of both


class BestFigure(_Figure, frozen=True, kw_only=True, tag="best"):
    """Which value of `among` is best at each value of `along`, or that two can't be told apart;
    and between which values of `along` the best one changes."""

    among: NotEmpty = "candidate"
    along: NotEmpty
    at: Selection = {}


class CrossingFigure(_Figure, frozen=True, kw_only=True, tag="crossing"):
    """Where along an axis the ratio of two arms is 1: a break-even. Between two measured values it
    is interpolated, both on logarithmic scales."""

    of: Selection
    to: Selection
    along: NotEmpty
    at: Selection = {}


Figure = ValueFigure | RatioFigure | BestFigure | CrossingFigure


class Check(_Part, frozen=True, kw_only=True):
    """A bound on a figure, or on a metric in every arm that `at` selects."""

    figure: str | None = None
    metric: str | None = None
    at: Selection = {}
    at_least: float | None = None
    at_most: float | None = None


class _Plot(_Part, frozen=True, kw_only=True, tag_field="kind"):
    title: NotEmpty
    at: Selection = {}


class LinePlot(_Plot, frozen=True, kw_only=True, tag="lines"):
    """Metrics along a varied setting, a panel each; a line for each value of `lines`."""

    x: NotEmpty
    y: list[str]
    lines: NotEmpty = "candidate"
    log_x: bool = False
    log_y: bool = False


class BarPlot(_Plot, frozen=True, kw_only=True, tag="bars"):
    """A metric for each value of `x`, side by side for each value of `lines`; panels as above."""

    x: NotEmpty
    y: list[str]
    lines: NotEmpty | None = None


class GridPlot(_Plot, frozen=True, kw_only=True, tag="grid"):
    """A metric over two varied settings, written into cells."""

    x: NotEmpty
    y: NotEmpty
    value: NotEmpty


Plot = LinePlot | BarPlot | GridPlot
