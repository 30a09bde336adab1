"""Coefficients of StepCost from samples: non-negative least squares on relative errors.

The caches of one engine are fitted together, and share what physics says they share: the weights'
knots all of them, what attention reads of a cell those of equal types, whether streams or one pool.
A cache's own is what its masked pairs cost, and a little more a row its types' and its mode's. So
all samples together settle the knots, and each cache needs only a few of its own.

What disturbs a step only ever adds. So the fit is drawn to the fast side: a sample that is slower
than predicted counts for less than one that is faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import numpy.typing as npt

from hetero.profile.node.cache import Cache, Samples
from hetero.profile.node.columns import Columns
from hetero.profile.node.nnls import nnls
from hetero.profile.node_profile import FitError, Sample
from hetero.profile.quantile import quantile
from hetero.profile.step_cost import StepCost

# A sample this many times further off than most counts for less.
_OUTLIER = 3.0
_SLOW_OUTLIER = 1.0
_NUM_REWEIGHTS = 8
_NUM_FOLDS = 10
_NEIGHBOURS = 4  # as many as a tour has points

# No fit of few samples is believed to be better than this.
_LEAST_SCATTER = 0.01

_Floats = npt.NDArray[np.float64]


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
    columns = Columns(list(samples), knots)
    lines, seconds = [], []
    for cache, of_cache in samples.items():
        for sample in of_cache:
            lines.append(columns.line(cache, sample.work))
            seconds.append(sample.undisturbed_s)
    solution = _robust_nnls(np.array(lines), np.array(seconds), columns.priors(samples))
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
    return cost.seconds(sample.work) / sample.undisturbed_s


def fit_error(ratios: Sequence[float]) -> FitError:
    errors = [abs(ratio - 1) for ratio in ratios]
    return FitError(
        num_points=len(errors),
        median=median(errors),
        p90=quantile(errors, 0.9),
        bias=mean(ratios) - 1,
    )


def _settled(knots: Sequence[int], samples: Samples) -> list[int]:
    """The knots that some sample's rows settle: without its only sample, a knot is a guess."""
    rows = {sample.work.rows for of_cache in samples.values() for sample in of_cache}
    return [knot for knot in knots if knot in rows] or [min(rows)]


def _robust_nnls(matrix: _Floats, seconds: _Floats, priors: Sequence[_Floats]) -> _Floats:
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
    result: _Floats = solution / scale
    return result
