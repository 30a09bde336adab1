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
from hetero.profile.step_cost import StepCost, attention_counts, hat_weights
from hetero.profile.work import DEPTHS

_Key = TypeVar("_Key", bound=Hashable)

# A sample this many times further off than most counts for less: something else ran.
_OUTLIER = 3.0
_NUM_REWEIGHTS = 5
_NUM_FOLDS = 10

# Coefficients of each cache: per row, then what `attention_counts` counts.
_OWN = 1 + len(DEPTHS) + 4

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
    is_settled: list[bool] = np.any(matrix, axis=0).tolist()
    costs: dict[_Key, StepCost] = {}
    for index, key in enumerate(keys):
        own = slice(len(knots) + _OWN * index, len(knots) + _OWN * (index + 1))
        row_s, *attention_s = solution[own].tolist()
        rows_s = [
            knot_s + knot * row_s
            for knot, knot_s in zip(knots, solution[: len(knots)].tolist(), strict=True)
        ]
        costs[key] = _cost(knots, rows_s, attention_s, is_settled[own][1:])
    return costs


def _cost(
    knots: Sequence[int], rows_s: list[float], attention_s: list[float], is_settled: list[bool]
) -> StepCost:
    """What no sample tells is like what is nearest: a depth like the one above it, many rows like
    few."""
    pair_s = attention_s[: len(DEPTHS)]
    for depth in range(1, len(DEPTHS)):
        if not is_settled[depth]:
            pair_s[depth] = pair_s[depth - 1]
    wide_pair_s, tile_pair_s, cell_s, masked_s = attention_s[len(DEPTHS) :]
    if not is_settled[len(DEPTHS)]:
        wide_pair_s = pair_s[0]
    return StepCost(
        rows=list(knots),
        rows_s=rows_s,
        pair_s=pair_s,
        wide_pair_s=wide_pair_s,
        tile_pair_s=tile_pair_s,
        cell_s=cell_s,
        masked_s=masked_s,
    )


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
    return cost.seconds(sample.work) / (sample.seconds * sample.speed)


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
    rows = {sample.work.rows for of_key in samples.values() for sample in of_key}
    return [knot for knot in knots if knot in rows] or [min(rows)]


def _system(
    samples: Mapping[_Key, Sequence[Sample]], keys: Sequence[_Key], knots: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    lines, seconds = [], []
    for index, key in enumerate(keys):
        for sample in samples[key]:
            line = np.zeros(len(knots) + _OWN * len(keys))
            work = sample.work
            line[: len(knots)] = hat_weights(knots, work.rows)
            line[len(knots) + _OWN * index :][:_OWN] = work.rows, *attention_counts(work)
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
