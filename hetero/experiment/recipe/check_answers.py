"""What figures, checks and plots ask for is there: metrics, arms, and one arm where one is
meant."""

from collections.abc import Iterator

from hetero.errors import ConfigError
from hetero.experiment.recipe.arms import arms_of, selects
from hetero.experiment.recipe.figures import (
    Arm,
    BestFigure,
    Check,
    CrossingFigure,
    Figure,
    GridPlot,
    LinePlot,
    Plot,
    RatioFigure,
    Selection,
    Value,
    ValueFigure,
)
from hetero.experiment.recipe.metrics import Kind, NamedMetric, parse_metric
from hetero.experiment.recipe.recipe import Recipe, Serving
from hetero.near import near

# Metrics that are judged by the SLO.
_OF_SLO = ("goodput", "slo_met")


def answer_problems(recipe: Recipe) -> Iterator[str]:
    """A line each, beginning with the field's path. The recipe's arms must be sound."""
    asked = _Asked(recipe)
    for name, figure in recipe.figures.items():
        yield from asked.figure(f"figures.{name}", figure)
    for index, check in enumerate(recipe.checks):
        yield from asked.check(f"checks[{index}]", check)
    for index, plot in enumerate(recipe.plots):
        yield from asked.plot(f"plots[{index}]", plot)


class _Asked:
    """Questions put to one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._arms = arms_of(recipe)
        self._values: dict[str, list[Value]] = dict(recipe.vary)
        if isinstance(recipe, Serving):
            self._values = {"candidate": list(recipe.candidates), **self._values}

    def figure(self, place: str, figure: Figure) -> Iterator[str]:
        yield from self._metric(place, figure.metric)
        # Without names that exist, how many arms they select means nothing.
        names = list(self._names(place, figure))
        yield from names or self._arms_asked(place, figure)

    def check(self, place: str, check: Check) -> Iterator[str]:
        if (check.figure is None) == (check.metric is None):
            have = "neither" if check.figure is None else "both"
            yield f"{place}: need a figure or a metric, have {have}"
        if check.at_least is None and check.at_most is None:
            yield f"{place}: need at_least or at_most, have neither"
        elif (
            check.at_least is not None
            and check.at_most is not None
            and check.at_least > check.at_most
        ):
            yield f"{place}: nothing is at least {check.at_least:g} and at most {check.at_most:g}"
        if check.figure is not None:
            yield from self._checked_figure(place, check.figure)
            if check.at and check.metric is None:
                yield f"{place}.at: need it in the figure, have it in the check"
        if check.metric is not None:
            yield from self._metric(place, check.metric)
            yield from list(self._selection(f"{place}.at", check.at)) or self._some(
                f"{place}.at", check.at
            )

    def plot(self, place: str, plot: Plot) -> Iterator[str]:
        metrics = [plot.value] if isinstance(plot, GridPlot) else plot.y
        for metric in metrics:
            yield from self._metric(place, metric)
        second = plot.y if isinstance(plot, GridPlot) else plot.lines
        axes = [plot.x] if second is None else [plot.x, second]
        fields = ["x", "y" if isinstance(plot, GridPlot) else "lines"]
        found = list(self._selection(f"{place}.at", plot.at))
        for field, axis in zip(fields, axes, strict=False):
            found += self._axis(f"{place}.{field}", axis, plot.at)
        if second == plot.x:
            found.append(f"{place}.{fields[1]}: need another than x, have {second} again")
        if isinstance(plot, LinePlot) and plot.x == "candidate":
            found.append(f"{place}.x: need a varied setting, have candidate; use bars for that")
        yield from found or self._a_point_each(place, plot.at, axes)

    def _metric(self, place: str, name: str) -> Iterator[str]:
        kind: Kind = self._recipe.__struct_config__.tag  # type: ignore[assignment]
        try:
            metric = parse_metric(kind, name)
        except ConfigError as error:
            yield f"{place}: {error}"
            return
        yield from self._needs(place, name, metric)

    def _needs(self, place: str, name: str, metric: NamedMetric) -> Iterator[str]:
        if not isinstance(self._recipe, Serving):
            return
        if metric.beside and self._recipe.beside is None:
            yield f"{place}: {name}: need a load `beside`, have none"
        if metric.base in _OF_SLO and metric.beside:
            yield f"{place}: {name}: the `slo` is of the measured load, not of the one beside"
        elif metric.base in _OF_SLO and not self._recipe.slo:
            yield f"{place}: {name}: need an `slo`, have none"

    def _names(self, place: str, figure: Figure) -> Iterator[str]:
        yield from self._selection(f"{place}.at", figure.at)
        if isinstance(figure, RatioFigure | CrossingFigure):
            for end, selection in (("of", figure.of), ("to", figure.to)):
                yield from self._selection(f"{place}.{end}", selection)
                for name in set(selection) & set(figure.at):
                    yield f"{place}.{end}: need {name} here or in `at`, have it in both"
            if figure.of == figure.to:
                yield f"{place}.to: need another arm than `of`, have the same"
        if isinstance(figure, BestFigure):
            yield from self._axis(f"{place}.among", figure.among, figure.at)
            yield from self._axis(f"{place}.along", figure.along, figure.at)
            if figure.among == figure.along:
                yield f"{place}.along: need another than `among`, have {figure.along} again"
        if isinstance(figure, CrossingFigure):
            taken = figure.at | figure.of | figure.to
            yield from self._axis(f"{place}.along", figure.along, taken)
            yield from self._scale(f"{place}.along", figure.along)

    def _arms_asked(self, place: str, figure: Figure) -> Iterator[str]:
        match figure:
            case ValueFigure():
                yield from self._one(place, figure.at)
            case RatioFigure():
                yield from self._one(f"{place}.of", figure.at | figure.of)
                yield from self._one(f"{place}.to", figure.at | figure.to)
            case BestFigure():
                yield from self._a_point_each(place, figure.at, [figure.among, figure.along])
            case CrossingFigure():
                yield from self._a_point_each(f"{place}.of", figure.at | figure.of, [figure.along])
                yield from self._a_point_each(f"{place}.to", figure.at | figure.to, [figure.along])

    def _checked_figure(self, place: str, name: str) -> Iterator[str]:
        figures = self._recipe.figures
        if name not in figures:
            yield f"{place}.figure: no such figure as {name}{near(name, figures)}"
        elif isinstance(figures[name], BestFigure):
            yield f"{place}.figure: need a number to keep a bound, {name} says which is best"

    def _selection(self, place: str, selection: Selection) -> Iterator[str]:
        for name, value in selection.items():
            if name not in self._values:
                yield f"{place}.{name}: nothing varied is called so{self._near(name)}"
            elif value not in self._values[name]:
                have = ", ".join(map(str, self._values[name]))
                yield f"{place}.{name}: need one of {have}, have {value}"

    def _axis(self, place: str, name: str, taken: Selection) -> Iterator[str]:
        if name not in self._values:
            yield f"{place}: nothing varied is called {name}{self._near(name)}"
        elif name in taken:
            yield f"{place}: need all values of {name}, have {taken[name]} selected"

    def _near(self, name: str) -> str:
        return near(name, self._values, "" if self._values else "; this recipe varies nothing")

    def _scale(self, place: str, name: str) -> Iterator[str]:
        values = self._values.get(name, [])
        if len(values) == 1:
            yield f"{place}: need two values or more of {name}, have one"
        for value in values:
            if name != "link_rate" and (isinstance(value, str) or value <= 0):
                yield f"{place}: need numbers above 0, have {name} {value}"

    def _some(self, place: str, selection: Selection) -> Iterator[str]:
        if not self._selected(selection):
            yield f"{place}: need an arm with all of that, have none"

    def _one(self, place: str, selection: Selection) -> Iterator[str]:
        arms = self._selected(selection)
        if len(arms) != 1:
            yield f"{place}: need one arm, have {len(arms) or 'none'}{self._undecided(arms)}"

    def _a_point_each(self, place: str, at: Selection, axes: list[str]) -> Iterator[str]:
        points: list[Selection] = [at]
        for axis in axes:
            points = [point | {axis: value} for point in points for value in self._values[axis]]
        found = [self._selected(point) for point in points]
        worst = max(found, key=len)
        if len(worst) != 1:
            have = f"{len(worst) or 'none'}{self._undecided(worst)}"
            yield f"{place}: need one arm for each {' and '.join(axes)}, have {have}"

    def _selected(self, selection: Selection) -> list[Arm]:
        return [arm for arm in self._arms if selects(arm, selection)]

    def _undecided(self, arms: list[Arm]) -> str:
        """Settings in which they differ: naming those tells them apart."""
        open_ones = [
            name for name in self._values if len({arm[name] for arm in arms if name in arm}) > 1
        ]
        return f": `at` leaves {' and '.join(open_ones)} open" if open_ones else ""
