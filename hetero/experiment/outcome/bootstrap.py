"""95% intervals of what few repetitions of many requests gave.

Two things make a figure uncertain, and each is resampled for itself (a bootstrap of two levels):

- repetitions differ. Three to five of them resampled give too narrow an interval: theirs is widened
  by sqrt(n / (n - 1)), since deviations from their own mean are too small, and by Student's t over
  the normal's 1.96, since their scatter is itself hardly known.
- a repetition has but so many requests. They are resampled within each repetition, with no
  widening, since they are many; whole requests, where one gives several samples: the gaps between
  an answer's tokens have met the same neighbours.

The interval reaches as far as the wider of the two, either way. They are not added: how repetitions
differ contains what their requests' number makes of it. The second is there for repetitions that
are alike by luck. Of positive values all of this is done with their logarithms; several
repetitions are then one by their geometric mean, so that a ratio's value is the ratio of values.
One repetition has no interval.

Ratios are taken repetition by repetition before anything is resampled: arms were measured in turns,
so what lasted longer than a turn cancels.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from hetero.experiment.outcome.student import NORMAL_95, student_95
from hetero.experiment.outcome.values import Floats, Indices, Observation
from hetero.experiment.recipe.metrics import NamedMetric

RESAMPLES = 2000

# Means of more samples are drawn as the normal distribution that they have.
_MAX_EXACT = 1000

# Resamples of whole requests at a time, each with a weight for every sample: to save memory.
_BLOCK = 100


@dataclass(frozen=True)
class Draws:
    """values: of each repetition. requests: each repetition's (a row's) value, with its requests
    resampled RESAMPLES times. Both logarithms where `is_log`."""

    repetitions: tuple[int, ...]
    values: Floats
    requests: Floats
    is_log: bool

    def each(self) -> list[float]:
        """What each repetition gave; no logarithms."""
        return [float(each) for each in (np.exp(self.values) if self.is_log else self.values)]

    def linear(self) -> "Draws":
        if not self.is_log:
            return self
        return Draws(self.repetitions, np.exp(self.values), np.exp(self.requests), False)


def draw(seen: dict[int, Observation], named: NamedMetric, seed: int, key: str) -> Draws:
    """key: of the arm, so that each has randomness of its own; same seed and key, same draws."""
    rows = []
    for repetition, each in seen.items():
        name = f"{key} {named.key} {named.statistic} {repetition}"
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        rows.append(_resampled(each, named, generator))
    values = np.array([each.value for each in seen.values()])
    requests = np.array(rows).reshape(len(rows), RESAMPLES)
    is_log = bool(np.all(values > 0) and np.all(requests > 0))
    if is_log:
        values, requests = np.log(values), np.log(requests)
    return Draws(tuple(seen), values, requests, is_log)


def ratio(of: Draws, to: Draws) -> Draws | None:
    """Repetition by repetition; None where no repetition has both, or a value is not positive."""
    return difference(of, to) if of.is_log and to.is_log else None


def difference(of: Draws, to: Draws) -> Draws | None:
    """Repetition by repetition, of logarithms where both are. None: no repetition has both."""
    both = tuple(each for each in of.repetitions if each in to.repetitions)
    if not both:
        return None
    is_log = of.is_log and to.is_log
    if not is_log:
        of, to = of.linear(), to.linear()
    rows_of = [of.repetitions.index(each) for each in both]
    rows_to = [to.repetitions.index(each) for each in both]
    return Draws(
        both,
        of.values[rows_of] - to.values[rows_to],
        of.requests[rows_of] - to.requests[rows_to],
        is_log,
    )


def resampled_repetitions(count: int) -> Indices:
    """A row for each resample. The same for every figure: arms stay paired."""
    generator = np.random.default_rng([RESAMPLES, count])
    return generator.integers(count, size=(RESAMPLES, count))


def interval(
    estimate: float, by_repetition: Floats, by_request: Floats, count: int
) -> tuple[float, float] | None:
    """Of an estimate from `count` repetitions; on the scale it is resampled on. Infinite draws are
    beyond what can be told, and so is then the interval's end. None of one repetition."""
    if count < 2:
        return None
    widening = math.sqrt(count / (count - 1)) * student_95(count - 1) / NORMAL_95
    below, above = _reach(estimate, by_repetition)
    least, most = _reach(estimate, by_request)
    return estimate - max(widening * below, least), estimate + max(widening * above, most)


def mean_interval(draws: Draws) -> tuple[float, tuple[float, float] | None]:
    """Of several repetitions as one; no logarithms any more."""
    count = len(draws.repetitions)
    estimate = float(draws.values.mean())
    # Equal values have a mean that is a rounding error away from them.
    estimate = min(max(estimate, float(draws.values.min())), float(draws.values.max()))
    by_repetition = draws.values[resampled_repetitions(count)].mean(axis=1)
    found = interval(estimate, by_repetition, draws.requests.mean(axis=0), count)
    if not draws.is_log:
        return estimate, found
    return math.exp(estimate), None if found is None else (math.exp(found[0]), math.exp(found[1]))


def _reach(estimate: float, draws: Floats) -> tuple[float, float]:
    """How far below and above an estimate 95% of the draws go; not below 0. No interpolation:
    between a finite and an infinite draw there is nothing."""
    low, high = np.quantile(draws, (0.025, 0.975), method="nearest")
    return max(0.0, estimate - float(low)), max(0.0, float(high) - estimate)


def _resampled(seen: Observation, named: NamedMetric, generator: np.random.Generator) -> Floats:
    if seen.samples is None:
        return np.full(RESAMPLES, seen.value)
    share = 1.0 if named.statistic == "max" else named.share
    if seen.requests is not None:
        return _by_request(seen, share, generator)
    if share is None:
        return _means(seen.samples, generator)
    return _quantiles(seen.samples, share, generator)


def _by_request(seen: Observation, share: float | None, generator: np.random.Generator) -> Floats:
    """Whole requests drawn, and of their samples a percentile; the mean, where `share` is None."""
    ordered, requests = seen.samples, seen.requests
    assert ordered is not None
    assert requests is not None
    even = np.full(seen.num_requests, 1 / seen.num_requests)
    found = []
    for _ in range(RESAMPLES // _BLOCK):
        weights = generator.multinomial(seen.num_requests, even, _BLOCK)[:, requests]
        reached = weights.cumsum(axis=1)
        size = np.maximum(reached[:, -1], 1)  # 0 where only requests without samples were drawn
        if share is None:
            found.append(weights @ ordered / size)
            continue
        place = share * (size - 1)
        below = np.floor(place)
        lower, upper = (
            ordered[np.minimum((reached <= rank[:, None]).sum(axis=1), ordered.size - 1)]
            for rank in (below, below + 1)
        )
        found.append(lower + (place - below) * (upper - lower))
    return np.concatenate(found)


def _quantiles(ordered: Floats, share: float, generator: np.random.Generator) -> Floats:
    """Exact, and without drawing the samples: the k-th smallest of m uniform draws is distributed
    as Beta(k, m + 1 - k), and says which of the sorted samples a resample has in that place."""
    m = ordered.size
    below = math.floor(share * (m - 1))
    weight = share * (m - 1) - below
    first = generator.beta(below + 1, m - below, RESAMPLES)
    lower = ordered[np.minimum((m * first).astype(np.int64), m - 1)]
    if weight == 0:
        return np.asarray(lower)
    second = first + (1 - first) * generator.beta(1, m - below - 1, RESAMPLES)
    upper = ordered[np.minimum((m * second).astype(np.int64), m - 1)]
    return np.asarray((1 - weight) * lower + weight * upper)


def _means(samples: Floats, generator: np.random.Generator) -> Floats:
    m = samples.size
    if m > _MAX_EXACT:
        return generator.normal(samples.mean(), samples.std() / math.sqrt(m), RESAMPLES)
    return np.asarray(samples[generator.integers(m, size=(RESAMPLES, m))].mean(axis=1))
