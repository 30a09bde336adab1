"""What is known so far of one role's steps, what is still wrong, and when to stop.

Every point drawn at random is predicted before it is measured, and where the error is large the fit
gets a knot. No engine here: samples come in, predictions come out.
"""

from collections.abc import Sequence

from hetero.profile.node.fitting import Cache, Fits, fit, fit_costs, fit_error, ratio
from hetero.profile.node.points import Point
from hetero.profile.node_profile import FitError, Role, Sample
from hetero.profile.step_cost import StepCost

# A cache is known well enough when its last few predictions were.
_LAST = 8
_MEDIAN_ERROR = 0.03
_P90_ERROR = 0.08

# A prediction worse than this is measured once more.
_SURPRISE = 0.05

# One worse than this, of rows between two knots, says that the line bends there.
_KNOT_ERROR = 0.1

_MOST_OF_STEP = 0.7

# Closer to its neighbour a knot would follow that one sample's noise.
_KNOT_SPACING = 0.15


class Survey:
    """The samples of one role on each cache."""

    def __init__(self, role: Role, caches: Sequence[Cache], knots: Sequence[int]) -> None:
        self.role = role
        self.samples: dict[Cache, list[Sample]] = {cache: [] for cache in caches}
        self._planned = set(knots)
        self._bends: set[int] = set()
        self._ratios: dict[Cache, list[float]] = {cache: [] for cache in caches}
        self._costs: dict[Cache, StepCost] = {}

    @property
    def knots(self) -> list[int]:
        """Those that a sample has settled: the lines in between are straight."""
        rows = {sample.work.rows for samples in self.samples.values() for sample in samples}
        return sorted(rows & (self._planned | self._bends))

    def add(self, cache: Cache, sample: Sample) -> None:
        """One that the fit is made of from the beginning."""
        self.samples[cache].append(sample)
        self._costs = {}

    def is_surprised_by(self, cache: Cache, sample: Sample) -> bool:
        return abs(ratio(self.cost(cache), sample) - 1) > _SURPRISE

    def add_drawn(self, cache: Cache, sample: Sample) -> None:
        """One drawn at random: how wrong the fit had it is kept, and mended by a knot."""
        self._ratios[cache].append(ratio(self.cost(cache), sample))
        if self._bends_at(cache, sample):
            self._bends.add(sample.work.rows)
        self.add(cache, sample)

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
            known = {key: samples for key, samples in self.samples.items() if samples}
            self._costs = fit_costs(known, self.knots)
        return self._costs[cache]

    def predict_s(self, cache: Cache, point: Point) -> float | None:
        """None while nothing is known of a cache."""
        if not self.samples[cache]:
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

    def fits(self) -> Fits:
        """Of the caches that were measured at all."""
        known = {key: samples for key, samples in self.samples.items() if samples}
        return fit(known, self.knots) if known else Fits({}, {})
