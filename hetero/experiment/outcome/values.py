"""A metric of an arm, repetition by repetition.

Percentiles are interpolated linearly between the two samples around them.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero.experiment.outcome.arm_run import ArmRun
from hetero.experiment.outcome.steadiness import unsteadiness, usual_pilot
from hetero.experiment.recipe.figures import Arm
from hetero.experiment.recipe.metrics import NamedMetric

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def arm_key(arm: Arm) -> str:
    """The same for equal arms, whatever the order of their settings."""
    return json.dumps(arm, sort_keys=True)


def counted(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """Of each repetition of each arm the attempt during which the machine was steadiest, in the
    order they were measured. Which one that is does not depend on what it found."""
    usual_s = usual_pilot(runs)
    best: dict[tuple[str, int], ArmRun] = {}
    for run in runs:
        key = (arm_key(run.arm), run.repetition)
        if key not in best or unsteadiness(run, usual_s) < unsteadiness(best[key], usual_s):
            best[key] = run
    kept = {id(run) for run in best.values()}
    return [run for run in runs if id(run) in kept]


@dataclass(frozen=True)
class Observation:
    """One repetition. samples: sorted; None of a scalar. requests: of each sample, the number of
    the request that gave it, where requests give several; num_requests: of how many."""

    value: float
    samples: Floats | None
    requests: Indices | None = None
    num_requests: int = 0


def observe(run: ArmRun, named: NamedMetric) -> Observation | None:
    """None: the run has no such metric, as a single server has no transfer."""
    if named.statistic is None:
        value = run.scalars.get(named.key)
        if value is None or not math.isfinite(value):
            return None
        return Observation(value, None)
    samples = np.asarray(run.samples.get(named.key, ()), dtype=np.float64)
    order = np.argsort(samples, kind="stable")
    order = order[np.isfinite(samples[order])]
    if not order.size:
        return None
    ordered = samples[order]
    counts = run.per_request.get(named.key)
    if counts is None:
        return Observation(_statistic(ordered, named), ordered)
    requests = np.repeat(np.arange(len(counts)), counts)[order]
    return Observation(_statistic(ordered, named), ordered, requests, len(counts))


def _statistic(samples: Floats, named: NamedMetric) -> float:
    if named.share is not None:
        return float(np.quantile(samples, named.share))
    return float(samples.max() if named.statistic == "max" else samples.mean())


def observations(runs: Iterable[ArmRun], named: NamedMetric) -> dict[int, Observation]:
    """Of one arm, by repetition."""
    found = ((run.repetition, observe(run, named)) for run in runs)
    return {repetition: seen for repetition, seen in sorted(found, key=_first) if seen is not None}


def _first(pair: tuple[int, Observation | None]) -> int:
    return pair[0]
