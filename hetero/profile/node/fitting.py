"""Coefficients of StepCost from samples: non-negative least squares on relative errors.

Several caches of one engine (types, cache modes) are fitted together: the weights and most of a
row's arithmetic are the same for all. What is a cache's own is what its attention reads, and a
little for each row: quantizing it, exporting it. So all samples together settle the knots, and
each cache needs only a few of its own.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from hetero.profile.node_profile import FitError, Sample
from hetero.profile.step_cost import StepCost, hat_weights

_Key = TypeVar("_Key", bound=Hashable)

# A sample this many times further off than most counts for less: something else ran.
_OUTLIER = 3.0
_NUM_REWEIGHTS = 5
_NUM_FOLDS = 10

# Coefficients of each cache: per visible pair, per masked pair, per row.
_OWN = 3

# No fit of few samples is believed to be better than this.
_LEAST_SCATTER = 0.01


@dataclass(frozen=True)
class Fits(Generic[_Key]):
    """What was fitted, per cache, and how far off it is where it was not fitted."""

    costs: dict[_Key, StepCost]
    errors: dict[_Key, FitError | None]  # None: too few samples to leave any out


def fit(samples: Mapping[_Key, Sequence[Sample]], knots: Sequence[int]) -> Fits[_Key]:
    """Fit all samples, and cross-validate."""
    ratios = cross_validate(samples, knots)
    return Fits(
        fit_costs(samples, knots),
        {key: fit_error(of_key) if of_key else None for key, of_key in ratios.items()},
    )


def fit_costs(
    samples: Mapping[_Key, Sequence[Sample]], knots: Sequence[int]
) -> dict[_Key, StepCost]:
    """Knots below or above all samples' rows should not be given: nothing would settle them."""
    keys = list(samples)
    matrix, seconds = _system(samples, keys, knots)
    solution = _robust_nnls(matrix, seconds)
    costs = {}
    for index, key in enumerate(keys):
        visible_s, masked_s, row_s = solution[len(knots) + _OWN * index :][:_OWN]
        costs[key] = StepCost(
            rows=list(knots),
            rows_s=[
                float(knot_s + knot * row_s)
                for knot, knot_s in zip(knots, solution[: len(knots)], strict=True)
            ],
            visible_s=float(visible_s),
            masked_s=float(masked_s),
        )
    return costs


def cross_validate(
    samples: Mapping[_Key, Sequence[Sample]], knots: Sequence[int]
) -> dict[_Key, list[float]]:
    """Predicted over measured of the samples drawn at random, by fits that did not see them: the
    others were placed where they settle most, so leaving them out would ask too much."""
    ratios: dict[_Key, list[float]] = {key: [] for key in samples}
    for fold in range(_NUM_FOLDS):
        left_out = {
            key: [sample for sample in of_key if sample.drawn][fold::_NUM_FOLDS]
            for key, of_key in samples.items()
        }
        if not any(left_out.values()):
            continue
        kept = {
            key: [sample for sample in of_key if sample not in left_out[key]]
            for key, of_key in samples.items()
        }
        costs = fit_costs(kept, _settled(knots, kept))
        for key, of_key in left_out.items():
            ratios[key] += [ratio(costs[key], sample) for sample in of_key]
    return ratios


def ratio(cost: StepCost, sample: Sample) -> float:
    """Predicted over measured, at the speed the machine then had."""
    predicted = cost.seconds(sample.rows, sample.visible, sample.masked)
    return predicted / (sample.seconds * sample.speed)


def fit_error(ratios: Sequence[float]) -> FitError:
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return FitError(
        num_points=len(errors),
        median=median(errors),
        p90=errors[min(len(errors) - 1, int(0.9 * len(errors)))],
        bias=mean(ratios) - 1,
    )


def _settled(knots: Sequence[int], samples: Mapping[_Key, Sequence[Sample]]) -> list[int]:
    """The knots that some sample's rows settle: without its only sample, a knot is a guess."""
    rows = {sample.rows for of_key in samples.values() for sample in of_key}
    return [knot for knot in knots if knot in rows] or [min(rows)]


def _system(
    samples: Mapping[_Key, Sequence[Sample]], keys: Sequence[_Key], knots: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    lines, seconds = [], []
    for index, key in enumerate(keys):
        for sample in samples[key]:
            line = np.zeros(len(knots) + _OWN * len(keys))
            line[: len(knots)] = hat_weights(knots, sample.rows)
            line[len(knots) + _OWN * index :][:_OWN] = sample.visible, sample.masked, sample.rows
            lines.append(line)
            seconds.append(sample.seconds * sample.speed)
    return np.array(lines), np.array(seconds)


def _robust_nnls(
    matrix: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Relative errors, squared; those of outliers weighed down, again and again (Huber's)."""
    relative = matrix / seconds[:, None]
    # Columns are of very different size: knots near 1, pairs of cells near 1e6.
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    relative = relative / scale
    weights = np.ones(len(seconds))
    for _ in range(_NUM_REWEIGHTS):
        solution, _ = nnls(relative * weights[:, None], weights)
        errors = np.abs(relative @ solution - 1)
        limit = _OUTLIER * max(_LEAST_SCATTER, float(np.median(errors)))
        weights = np.sqrt(np.minimum(1, limit / np.maximum(errors, 1e-12)))
    result: npt.NDArray[np.float64] = solution / scale
    return result
