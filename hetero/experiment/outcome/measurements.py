"""What was measured, as figures, checks and plots ask for it: by arm and metric."""

from collections.abc import Sequence

import msgspec

from hetero.experiment.outcome.arm_run import ArmRun
from hetero.experiment.outcome.bootstrap import Draws, draw, mean_interval
from hetero.experiment.outcome.values import arm_key, counted, observations
from hetero.experiment.recipe.arms import arms_of, selects
from hetero.experiment.recipe.figures import Arm, Selection, Value
from hetero.experiment.recipe.metrics import Kind, NamedMetric, parse_metric
from hetero.experiment.recipe.recipe import Recipe, Serving


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its 95% interval. low, high: None of one repetition, and where the interval
    has no end. repetitions: the number of each alone."""

    value: float
    low: float | None
    high: float | None
    repetitions: list[float]

    def contains(self, value: float) -> bool:
        """Also where nothing speaks against it: without an interval."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


class Measurements:
    def __init__(self, recipe: Recipe, runs: Sequence[ArmRun]) -> None:
        self.recipe = recipe
        self.kind: Kind = recipe.__struct_config__.tag  # type: ignore[assignment]
        self.arms = arms_of(recipe)
        self._runs: dict[str, list[ArmRun]] = {}
        for run in counted(runs):
            self._runs.setdefault(arm_key(run.arm), []).append(run)
        self._draws: dict[tuple[str, str], Draws | None] = {}

    def metric(self, name: str) -> NamedMetric:
        return parse_metric(self.kind, name)

    def values(self, axis: str) -> list[Value]:
        """Of a varied setting, or the candidates; in the recipe's order."""
        if axis == "candidate" and isinstance(self.recipe, Serving):
            return list(self.recipe.candidates)
        return list(self.recipe.vary.get(axis, []))

    def selected(self, selection: Selection) -> list[Arm]:
        return [arm for arm in self.arms if selects(arm, selection)]

    def arm(self, selection: Selection) -> Arm | None:
        """The one selected; None where it is not one."""
        found = self.selected(selection)
        return found[0] if len(found) == 1 else None

    def runs(self, arm: Arm) -> list[ArmRun]:
        """One of each repetition."""
        return self._runs.get(arm_key(arm), [])

    def draws(self, arm: Arm, metric: str) -> Draws | None:
        """None: it was not measured there."""
        key = (arm_key(arm), metric)
        if key not in self._draws:
            named = self.metric(metric)
            seen = observations(self.runs(arm), named)
            self._draws[key] = draw(seen, named, self.recipe.seed, key[0]) if seen else None
        return self._draws[key]

    def spread(self, arm: Arm | None, metric: str) -> Spread | None:
        draws = None if arm is None else self.draws(arm, metric)
        return None if draws is None else spread(draws)


def spread(draws: Draws) -> Spread:
    value, found = mean_interval(draws)
    low, high = (None, None) if found is None else found
    return Spread(value=value, low=low, high=high, repetitions=draws.each())
