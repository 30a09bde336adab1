"""Whether the machine was its usual self while an arm was measured."""

from collections.abc import Iterable

import numpy as np

from hetero.experiment.outcome.arm_run import ArmRun

# More, and the arm is measured again.
MOST_UNSTEADY = 0.05

# The place of what is usual among the times of all pilots, the fastest at 0. What disturbs a
# machine only slows it down, and may do so half of the time; one that slows down for good, as it
# warms up, soon has its new speed for its usual one.
_USUAL = 0.25


def usual_pilot(runs: Iterable[ArmRun]) -> dict[str, float]:
    """Seconds of a pilot's turn when nothing disturbs, by core and kind."""
    times: dict[str, list[float]] = {}
    for run in runs:
        if run.pilot is not None:
            for seen_s in (run.pilot.before_s, run.pilot.after_s):
                for name, seconds in seen_s.items():
                    times.setdefault(name, []).append(seconds)
    return {
        name: float(np.quantile(seconds, _USUAL, method="nearest"))
        for name, seconds in times.items()
    }


def slowdown(run: ArmRun, usual_s: dict[str, float]) -> float:
    """Of the pilot furthest from its usual time, before or after the arm: the slower over the
    faster time, less 1."""
    if run.pilot is None:
        return 0.0
    pairs = [
        (seconds, usual_s[name])
        for seen_s in (run.pilot.before_s, run.pilot.after_s)
        for name, seconds in seen_s.items()
    ]
    return max((max(pair) / min(pair) - 1 for pair in pairs), default=0.0)


def unsteadiness(run: ArmRun, usual_s: dict[str, float]) -> float:
    """How far the machine was from its usual self, and from being ours alone; 0 is steady."""
    return max(slowdown(run, usual_s), run.steal_share or 0.0)
