"""Coefficients of StepCost from samples: non-negative least squares on relative errors.

The caches of one engine are fitted together, and share what physics says they share: the weights'
knots all of them, what attention reads of a cell those of equal types, whether streams or one pool.
A cache's own is what its masked pairs cost. So all samples together settle the knots, and each
cache needs only a few of its own.

What disturbs a step only ever adds. So the fit is drawn to the fast side: a sample that is slower
than predicted counts for less than one that is faster.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import numpy.typing as npt

from hetero.profile.knots import hat_weights
from hetero.profile.node.nnls import nnls
from hetero.profile.node_profile import FitError, Sample
from hetero.profile.step_cost import StepCost, TileCost, plain_counts, tile_counts
from hetero.profile.tiling import Tiling
from hetero.profile.work import LENGTHS, Work

# A sample this many times further off than most counts for less.
_OUTLIER = 3.0
_SLOW_OUTLIER = 1.0
_NUM_REWEIGHTS = 8
_NUM_FOLDS = 10
_NEIGHBOURS = 4  # as many as a tour has points

# No fit of few samples is believed to be better than this.
_LEAST_SCATTER = 0.01

# What a straight line weighs, through the knots of rows or of lengths, as a share of a sample: the
# noise of a sample, 3%, over how far a knot strays from its neighbours' line, 20%.
_STRAIGHT = 0.15

# What holds rows of one cache to those of another: a tenth of the seconds that most rows take
# weighs as much as an error of a fiftieth in one sample.
_ALIKE = 0.2

# Of each pair of types: all counts of attention but masked pairs, and after them a tile's pair.
_NUM_PLAIN = len(LENGTHS) + 2

_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cache:
    """One way of keeping KV: what a fit is of."""

    unified: bool
    kv_k: str
    kv_v: str
    tiling: Tiling | None = None  # None: never attended to in tiles

    @property
    def types(self) -> tuple[str, str]:
        return self.kv_k, self.kv_v

    def tiling_of(self, work: Work) -> Tiling | None:
        return self.tiling if work.fills_tile else None


Samples = Mapping[Cache, Sequence[Sample]]


@dataclass(frozen=True)
class Fits:
    """What was fitted, per cache, and how far off it is where it was not fitted."""

    costs: dict[Cache, StepCost]
    errors: dict[Cache, FitError | None]  # None: too few samples to leave any out
    overall: FitError | None  # of all caches together: they are fitted together


def fit(samples: Samples, knots: Sequence[int]) -> Fits:
    """Fit all samples, and cross-validate."""
    ratios = cross_validate(samples, knots)
    every = [ratio for found in ratios.values() for ratio in found]
    return Fits(
        fit_costs(samples, knots),
        {cache: fit_error(found) if found else None for cache, found in ratios.items()},
        fit_error(every) if every else None,
    )


def fit_costs(samples: Samples, knots: Sequence[int]) -> dict[Cache, StepCost]:
    """Each knot has a sample of as many rows."""
    columns = _Columns(list(samples), knots)
    lines, seconds = [], []
    for cache, of_cache in samples.items():
        for sample in of_cache:
            lines.append(columns.line(cache, sample.work))
            seconds.append(sample.seconds * sample.speed)
    priors = [
        *columns.straight_rows(samples),
        *columns.straight_lengths(samples),
        *columns.likeness(samples),
    ]
    solution = _robust_nnls(np.array(lines), np.array(seconds), priors)
    tiled = {
        cache.types
        for cache, of_cache in samples.items()
        if any(cache.tiling_of(sample.work) for sample in of_cache)
    }
    return {
        cache: columns.cost(cache, solution, cache.tiling if cache.types in tiled else None)
        for cache in samples
    }


def cross_validate(samples: Samples, knots: Sequence[int]) -> dict[Cache, list[float]]:
    """Predicted over measured of the samples drawn at random, by fits that did not see them: the
    others were placed where they settle most, so leaving them out would ask too much. Neighbours
    are left out together: they were measured in one cache, and one minute."""
    ratios: dict[Cache, list[float]] = {cache: [] for cache in samples}
    for fold in range(_NUM_FOLDS):
        left_out = {
            cache: [
                sample
                for index, sample in enumerate(each for each in of_cache if each.drawn)
                if index // _NEIGHBOURS % _NUM_FOLDS == fold
            ]
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
    """Which column of the system is which coefficient: what each knot adds to the one before it,
    and the rest rows; then, of each pair of types, its rows, and what its attention costs, each
    length in addition to the one before it; rows by cache mode; masked pairs, by cache. Nothing is
    negative, so more rows never cost less, nor a longer context's cells."""

    def __init__(self, caches: Sequence[Cache], knots: Sequence[int]) -> None:
        self._knots = list(knots)
        types = list(dict.fromkeys(cache.types for cache in caches))
        of_types = 1 + _NUM_PLAIN + 1
        self._rest = len(knots)
        self._types = {each: self._rest + 1 + of_types * i for i, each in enumerate(types)}
        modes = self._rest + 1 + of_types * len(types)
        self._modes = {False: modes, True: modes + 1}  # by whether the cache is unified
        self._masked = {cache: modes + 2 + 2 * i for i, cache in enumerate(caches)}
        self._count = modes + 2 + 2 * len(caches)

    def line(self, cache: Cache, work: Work) -> _Matrix:
        """What each coefficient is multiplied by in a step."""
        line = np.zeros(self._count)
        weights = hat_weights(self._knots, work.rows)
        line[: len(self._knots)] = np.cumsum(weights[::-1])[::-1]
        line[self._rest] = work.rest_rows
        first, masked = self._types[cache.types], self._masked[cache]
        line[first] = line[self._modes[cache.unified]] = work.rows
        tiling = cache.tiling_of(work)
        if tiling is not None:
            line[[first + 1 + _NUM_PLAIN, masked + 1]] = tile_counts(work, tiling)
        else:
            *shared, line[masked] = plain_counts(work)
            from_length = np.cumsum(shared[: len(LENGTHS)][::-1])[::-1]
            line[first + 1 :][:_NUM_PLAIN] = [*from_length, *shared[len(LENGTHS) :]]
        return line

    def likeness(self, samples: Samples) -> Iterator[_Matrix]:
        """Lines that draw each column of rows to zero: the knots have rows already."""
        most_rows, less_s = max(
            (sample.work.rows, -sample.seconds)
            for of_cache in samples.values()
            for sample in of_cache
        )
        for column in (*self._types.values(), *self._modes.values()):
            line = np.zeros(self._count)
            line[column] = _ALIKE * most_rows / -less_s
            yield line

    def straight_rows(self, samples: Samples) -> Iterator[_Matrix]:
        """Lines whose product with the solution is how far a knot strays from its neighbours' line,
        as a share of its seconds; weighted."""
        for index in range(1, len(self._knots) - 1):
            low, knot, high = self._knots[index - 1 : index + 2]
            at_knot_s = min(
                sample.seconds * sample.speed
                for of_cache in samples.values()
                for sample in of_cache
                if sample.work.rows == knot
            )
            share = (knot - low) / (high - low)
            line = np.zeros(self._count)
            line[index : index + 2] = 1 - share, -share
            yield _STRAIGHT / at_knot_s * line

    def straight_lengths(self, samples: Samples) -> Iterator[_Matrix]:
        """The same of what a cell costs by length, as a share of the least that any step took for
        one; as far as there are samples."""
        for types, first in self._types.items():
            of_types = [
                sample
                for cache, of_cache in samples.items()
                if cache.types == types
                for sample in of_cache
                if sample.work.visible and cache.tiling_of(sample.work) is None
            ]
            if not of_types:
                continue
            cell_s = min(sample.seconds * sample.speed / sample.work.visible for sample in of_types)
            longest = max(
                index
                for sample in of_types
                for index, pairs in enumerate(sample.work.pairs)
                if pairs
            )
            for index in range(1, longest):
                line = np.zeros(self._count)
                line[first + 1 + index :][:2] = 0.5, -0.5
                yield _STRAIGHT / cell_s * line

    def cost(self, cache: Cache, solution: _Matrix, tiling: Tiling | None) -> StepCost:
        """What no sample tells is like what is nearest: a length like the one before it, many rows
        like few."""
        first = self._types[cache.types]
        row_s = float(solution[first] + solution[self._modes[cache.unified]])
        rows_s = np.cumsum(solution[: len(self._knots)]) + row_s * np.array(self._knots)
        plain = solution[first + 1 :][:_NUM_PLAIN]
        cell_s, deep_cell_s = plain[len(LENGTHS) :].tolist()
        masked_s, tile_masked_s = solution[self._masked[cache] :][:2].tolist()
        tiles = None
        if tiling is not None:
            pair_s = float(solution[first + 1 + _NUM_PLAIN])
            tiles = TileCost(tiling=tiling, pair_s=pair_s, masked_s=tile_masked_s)
        return StepCost(
            rows=self._knots,
            rows_s=rows_s.tolist(),
            rest_s=float(solution[self._rest]),
            pair_s=np.cumsum(plain[: len(LENGTHS)]).tolist(),
            cell_s=cell_s,
            deep_cell_s=deep_cell_s,
            masked_s=masked_s,
            tiles=tiles,
        )


def _robust_nnls(matrix: _Matrix, seconds: _Matrix, priors: Sequence[_Matrix]) -> _Matrix:
    """Relative errors, squared; outliers weighed down, again and again (Huber's), those that are
    slow sooner.

    priors: lines whose products with the solution should be zero.
    """
    relative = matrix / seconds[:, None]
    extra = np.array(priors).reshape(len(priors), relative.shape[1])
    # Columns are of very different size: rows near 1, pairs of cells near 1e6. Some are empty.
    largest = np.abs(np.vstack([relative, extra])).max(axis=0)
    scale = np.where(largest > 0, largest, 1)
    relative, extra = relative / scale, extra / scale
    weights = np.ones(len(seconds))
    solution = np.zeros(len(scale))
    for _ in range(_NUM_REWEIGHTS):
        solution = nnls(
            np.vstack([relative * weights[:, None], extra]),
            np.concatenate([weights, np.zeros(len(priors))]),
            solution,
        )
        errors = relative @ solution - 1  # negative: slower than predicted
        scatter = max(_LEAST_SCATTER, float(np.median(np.abs(errors))))
        limits = np.where(errors < 0, _SLOW_OUTLIER, _OUTLIER) * scatter
        weights = np.sqrt(np.minimum(1, limits / np.maximum(np.abs(errors), 1e-12)))
    result: _Matrix = solution / scale
    return result
