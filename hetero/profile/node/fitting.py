"""Coefficients of StepCost from samples: non-negative least squares on relative errors.

The caches of one engine are fitted together, and share what physics says they share: the weights'
knots all of them, what attention reads of a cell those of equal types, whether streams or one pool.
A cache's own is what its masked pairs cost. So all samples together settle the knots, and each
cache needs only a few of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from hetero.profile.node_profile import FitError, Sample
from hetero.profile.step_cost import StepCost, attention_counts, hat_weights
from hetero.profile.work import DEPTHS

# A sample this many times further off than most counts for less: something else ran.
_OUTLIER = 3.0
_NUM_REWEIGHTS = 5
_NUM_FOLDS = 10

# No fit of few samples is believed to be better than this.
_LEAST_SCATTER = 0.01

# What smooth lines and equal depths weigh, as a share of a sample: the noise of a sample, 3%, over
# how far a knot strays from its neighbours' line, 20%, or a depth from the one above it, 50%.
_SMOOTH_KNOTS, _SMOOTH_DEPTHS = 0.15, 0.06

# Of each pair of types: all counts of attention but the last, which is masked pairs.
_NUM_SHARED = len(DEPTHS) + 4

_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cache:
    """One way of keeping KV: what a fit is of."""

    unified: bool
    kv_k: str
    kv_v: str

    @property
    def types(self) -> tuple[str, str]:
        return self.kv_k, self.kv_v


Samples = Mapping[Cache, Sequence[Sample]]


@dataclass(frozen=True)
class Fits:
    """What was fitted, per cache, and how far off it is where it was not fitted."""

    costs: dict[Cache, StepCost]
    errors: dict[Cache, FitError | None]  # None: too few samples to leave any out


def fit(samples: Samples, knots: Sequence[int]) -> Fits:
    """Fit all samples, and cross-validate."""
    ratios = cross_validate(samples, knots)
    return Fits(
        fit_costs(samples, knots),
        {cache: fit_error(found) if found else None for cache, found in ratios.items()},
    )


def fit_costs(samples: Samples, knots: Sequence[int]) -> dict[Cache, StepCost]:
    """Knots below or above all samples' rows should not be given: nothing would settle them."""
    columns = _Columns(list(samples), knots)
    lines, seconds = [], []
    for cache, of_cache in samples.items():
        for sample in of_cache:
            lines.append(columns.line(cache, sample))
            seconds.append(sample.seconds * sample.speed)
    matrix = np.array(lines)
    solution = _robust_nnls(matrix, np.array(seconds), columns)
    is_settled: list[bool] = np.any(matrix, axis=0).tolist()
    return {cache: columns.cost(cache, solution, is_settled) for cache in samples}


def cross_validate(samples: Samples, knots: Sequence[int]) -> dict[Cache, list[float]]:
    """Predicted over measured of the samples drawn at random, by fits that did not see them: the
    others were placed where they settle most, so leaving them out would ask too much."""
    ratios: dict[Cache, list[float]] = {cache: [] for cache in samples}
    for fold in range(_NUM_FOLDS):
        left_out = {
            cache: [sample for sample in of_cache if sample.drawn][fold::_NUM_FOLDS]
            for cache, of_cache in samples.items()
        }
        if not any(left_out.values()):
            continue
        kept = {
            cache: [sample for sample in of_cache if sample not in left_out[cache]]
            for cache, of_cache in samples.items()
        }
        costs = fit_costs(kept, _settled(knots, kept))
        for cache, of_cache in left_out.items():
            ratios[cache] += [ratio(costs[cache], sample) for sample in of_cache]
    return ratios


def ratio(cost: StepCost, sample: Sample) -> float:
    """Predicted over measured, at the speed the machine then had."""
    return cost.seconds(sample.work) / (sample.seconds * sample.speed)


def fit_error(ratios: Sequence[float]) -> FitError:
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return FitError(
        num_points=len(errors),
        median=median(errors),
        p90=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
        bias=mean(ratios) - 1,
    )


def _settled(knots: Sequence[int], samples: Samples) -> list[int]:
    """The knots that some sample's rows settle: without its only sample, a knot is a guess."""
    rows = {sample.work.rows for of_cache in samples.values() for sample in of_cache}
    return [knot for knot in knots if knot in rows] or [min(rows)]


class _Columns:
    """Which column of the system is which coefficient: the knots and the rest rows; then, of each
    pair of types, its rows and its attention; rows of a unified cache, which are exported; masked
    pairs, by cache."""

    def __init__(self, caches: Sequence[Cache], knots: Sequence[int]) -> None:
        self._knots = list(knots)
        types = list(dict.fromkeys(cache.types for cache in caches))
        of_types = 1 + _NUM_SHARED
        self._rest = len(knots)
        self._types = {each: self._rest + 1 + of_types * i for i, each in enumerate(types)}
        self._unified = self._rest + 1 + of_types * len(types)
        self._masked = {cache: self._unified + 1 + i for i, cache in enumerate(caches)}
        self._first_types = types[0]
        self.count = self._unified + 1 + len(caches)

    def line(self, cache: Cache, sample: Sample) -> _Matrix:
        """What each coefficient is multiplied by in a sample."""
        line = np.zeros(self.count)
        work = sample.work
        *shared, masked = attention_counts(work)
        line[: len(self._knots)] = hat_weights(self._knots, work.rows)
        line[self._rest] = work.rest_rows
        first = self._types[cache.types]
        # The first types' rows are the knots themselves.
        line[first] = 0.0 if cache.types == self._first_types else work.rows
        line[first + 1 : first + 1 + _NUM_SHARED] = shared
        line[self._unified] = work.rows if cache.unified else 0.0
        line[self._masked[cache]] = masked
        return line

    def smoothness(self, largest: _Matrix) -> Iterator[_Matrix]:
        """Lines whose product with the solution should be zero. largest: of each column."""
        for index in range(1, len(self._knots) - 1):
            low, knot, high = self._knots[index - 1 : index + 2]
            share = (knot - low) / (high - low)
            line = np.zeros(self.count)
            line[index - 1 : index + 2] = share - 1, 1.0, -share
            yield _SMOOTH_KNOTS * largest[index] * line
        for first in self._types.values():
            for depth in range(first + 2, first + 1 + len(DEPTHS)):
                line = np.zeros(self.count)
                line[depth - 1 : depth + 1] = -1.0, 1.0
                if largest[depth]:
                    yield _SMOOTH_DEPTHS * max(largest[depth - 1 : depth + 1]) * line

    def cost(self, cache: Cache, solution: _Matrix, is_settled: list[bool]) -> StepCost:
        """What no sample tells is like what is nearest: a depth like the one above it, many rows
        like few."""
        first = self._types[cache.types]
        row_s = float(solution[first] + cache.unified * solution[self._unified])
        shared = solution[first + 1 : first + 1 + _NUM_SHARED].tolist()
        has = is_settled[first + 1 : first + 1 + _NUM_SHARED]
        pair_s = shared[: len(DEPTHS)]
        for depth in range(1, len(DEPTHS)):
            if not has[depth]:
                pair_s[depth] = pair_s[depth - 1]
        wide_pair_s, tile_pair_s, cell_s, tile_cell_s = shared[len(DEPTHS) :]
        return StepCost(
            rows=self._knots,
            rows_s=[
                float(solution[index]) + knot * row_s for index, knot in enumerate(self._knots)
            ],
            rest_s=float(solution[self._rest]),
            pair_s=pair_s,
            wide_pair_s=wide_pair_s if has[len(DEPTHS)] else pair_s[0],
            tile_pair_s=tile_pair_s,
            cell_s=cell_s,
            tile_cell_s=tile_cell_s,
            masked_s=float(solution[self._masked[cache]]),
        )


def _robust_nnls(matrix: _Matrix, seconds: _Matrix, columns: _Columns) -> _Matrix:
    """Relative errors, squared; those of outliers weighed down, again and again (Huber's)."""
    relative = matrix / seconds[:, None]
    largest = relative.max(axis=0)
    smooth = list(columns.smoothness(largest))
    # Columns are of very different size: knots near 1, pairs of cells near 1e6.
    scale = np.maximum(largest, 1e-300)
    relative = relative / scale
    extra = np.array(smooth).reshape(len(smooth), columns.count) / scale
    weights = np.ones(len(seconds))
    for _ in range(_NUM_REWEIGHTS):
        solution, _ = nnls(
            np.vstack([relative * weights[:, None], extra]),
            np.concatenate([weights, np.zeros(len(smooth))]),
        )
        errors = np.abs(relative @ solution - 1)
        limit = _OUTLIER * max(_LEAST_SCATTER, float(np.median(errors)))
        weights = np.sqrt(np.minimum(1, limit / np.maximum(errors, 1e-12)))
    result: _Matrix = solution / scale
    return result
