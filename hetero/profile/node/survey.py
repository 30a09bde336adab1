"""What is known so far of one role's steps, what is still wrong, and when to stop.

Every point drawn at random is predicted before it is measured, and where the error is large the fit
gets a knot. No engine here: samples come in, predictions come out.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from hetero.profile.node.cache import Cache
from hetero.profile.node.fitting import Fits, fit, fit_costs, fit_error, ratio
from hetero.profile.node.points import Point
from hetero.profile.node_profile import FitError, Sample
from hetero.profile.step_cost import StepCost
from hetero.profile.work import Work

# A cache is known well enough when its last few predictions were.
_LAST = 8
_MEDIAN_ERROR = 0.03
_P90_ERROR = 0.08

# Two measurements of a step that differ by less are alike.
_SAME = 0.02
_FEW_TIMES, _MANY_TIMES = 3, 6

# A prediction worse than this, of rows between two knots, says that the line bends there.
_KNOT_ERROR = 0.1

_MOST_OF_STEP = 0.7

# Closer to its neighbour a knot would follow that one sample's noise.
_KNOT_SPACING = 0.15


class Timed(NamedTuple):
    """run: of the pilot that flew beside it."""

    sample: Sample
    run: int


class Survey:
    """The samples of one role on each cache."""

    def __init__(self, caches: Sequence[Cache], knots: Sequence[int]) -> None:
        self._timed: dict[Cache, list[Timed]] = {cache: [] for cache in caches}
        self._planned = set(knots)
        self._bends: set[int] = set()
        self._ratios: dict[Cache, list[float]] = {cache: [] for cache in caches}
        self._costs: dict[Cache, StepCost] = {}

    @property
    def samples(self) -> dict[Cache, list[Sample]]:
        """Of the caches that were measured at all: of one and the same step the middle one, as each
        was the fastest of its repeats in another place in memory."""
        return {
            cache: _middle(each.sample for each in timed)
            for cache, timed in self._timed.items()
            if timed
        }

    @property
    def knots(self) -> list[int]:
        """Those that a sample has settled: the lines in between are straight."""
        rows = {each.sample.work.rows for timed in self._timed.values() for each in timed}
        return sorted(rows & (self._planned | self._bends))

    def add(self, cache: Cache, timed: Timed) -> None:
        """One that the fit is made of from the beginning."""
        self._timed[cache].append(timed)
        self._costs = {}

    def add_drawn(self, cache: Cache, timed: Timed, first_ratio: float) -> None:
        """One drawn at random: how wrong the fit had it at first is kept, and mended by a knot."""
        self._ratios[cache].append(first_ratio)
        if self._bends_at(cache, timed.sample):
            self._bends.add(timed.sample.work.rows)
        self.add(cache, timed)

    def ratio(self, cache: Cache, timed: Timed) -> float:
        """Predicted over measured."""
        return ratio(self.cost(cache), timed.sample)

    def times(self, cache: Cache, work: Work) -> tuple[int, bool]:
        """How often it was measured, and whether that was often enough: three times, two of them
        alike in the middle, or six."""
        seconds = sorted(
            timed.sample.undisturbed_s for timed in self._timed[cache] if timed.sample.work == work
        )
        if len(seconds) < _FEW_TIMES:
            return len(seconds), False
        middle = (len(seconds) - 1) // 2
        around = pairwise(seconds[middle - 1 : middle + 2])
        are_alike = any(more <= (1 + _SAME) * less for less, more in around)
        return len(seconds), are_alike or len(seconds) >= _MANY_TIMES

    def _bends_at(self, cache: Cache, sample: Sample) -> bool:
        """Whether the line of rows is to blame: they are most of the step, and no knot is near."""
        work, cost = sample.work, self.cost(cache)
        return (
            abs(ratio(cost, sample) - 1) > _KNOT_ERROR
            and cost.rows_seconds(work) > _MOST_OF_STEP * cost.seconds(work)
            and all(abs(work.rows - knot) > _KNOT_SPACING * knot for knot in self.knots)
        )

    def cost(self, cache: Cache) -> StepCost:
        """From what is known so far; there must be samples of this cache."""
        if cache not in self._costs:
            self._costs = fit_costs(self.samples, self.knots)
        return self._costs[cache]

    def predict_s(self, cache: Cache, point: Point) -> float | None:
        """None while nothing is known of a cache."""
        if not self._timed[cache]:
            return None
        return self.cost(cache).seconds(point.work(cache.unified))

    def recent_error(self, cache: Cache) -> FitError | None:
        ratios = self._ratios[cache][-_LAST:]
        return fit_error(ratios) if ratios else None

    def is_settled(self, cache: Cache) -> bool:
        error = self.recent_error(cache)
        return (
            error is not None
            and error.num_points >= _LAST
            and error.median <= _MEDIAN_ERROR
            and error.p90 <= _P90_ERROR
        )

    def set_speeds(self, speed: Callable[[int], float]) -> None:
        """By the run of the pilot: what its speed was is known when all have flown."""
        self._timed = {
            cache: [
                Timed(msgspec.structs.replace(sample, speed=speed(run)), run)
                for sample, run in timed
            ]
            for cache, timed in self._timed.items()
        }
        self._costs = {}

    def fits(self) -> Fits:
        """Of the caches that were measured at all."""
        return fit(self.samples, self.knots) if self.samples else Fits({}, {}, None)


def _middle(samples: Iterable[Sample]) -> list[Sample]:
    """Of an even number the lower one of the middle two."""
    by_work: dict[Work, list[Sample]] = {}
    for sample in samples:
        by_work.setdefault(sample.work, []).append(sample)
    return [
        sorted(of_work, key=lambda each: each.undisturbed_s)[(len(of_work) - 1) // 2]
        for of_work in by_work.values()
    ]
