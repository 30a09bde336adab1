"""Whether the machine was quiet: who else computed, and how evenly the pilots flew."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from hetero.profile.facts.report import Power
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node_profile import Noise

# A desktop in use takes a few percent; more than this of all cores, and steps wait for them. Of
# many cores one hog is a small share, and all threads of a step wait for the one beside it: so this
# much of any one core counts, too.
_MOST_OTHERS = 0.05
_MOST_OTHERS_CORES = 0.3
_MOST_STEAL = 0.02

# 5th to 95th percentile of a pilot's speed: quiet machines stay within a few percent.
_WIDEST_SPEED = 0.20


@dataclass(frozen=True)
class Taken:
    """Of the machine's processor time.

    others: share of it that other processes took; others_cores: the same in cores' worth.
    steal: what the host gave to other guests; None: can't be seen.
    """

    others: float
    others_cores: float
    steal: float | None


@dataclass(frozen=True)
class _Times:
    clock_s: float
    total_s: float  # of all CPUs
    idle_s: float
    steal_s: float | None
    own_s: float


class CPUWatch:
    """Processor time from its making on, by who took it."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._times()

    def taken(self) -> Taken:
        before, now = self._before, self._times()
        clock_s, total_s = now.clock_s - before.clock_s, now.total_s - before.total_s
        if total_s <= 0 or clock_s <= 0:
            return Taken(0.0, 0.0, None)
        steal = None
        stolen_s = 0.0
        if now.steal_s is not None and before.steal_s is not None:
            stolen_s = now.steal_s - before.steal_s
            steal = stolen_s / total_s
        busy_s = total_s - (now.idle_s - before.idle_s) - stolen_s
        others_s = max(0.0, busy_s - (now.own_s - before.own_s))
        return Taken(others_s / total_s, others_s / clock_s, steal)

    def _times(self) -> _Times:
        times = psutil.cpu_times()
        # Guests' time is counted in user time already.
        fields = {
            name: value for name, value in times._asdict().items() if not name.startswith("guest")
        }
        return _Times(
            clock_s=time.monotonic(),
            total_s=sum(fields.values()),
            idle_s=fields["idle"] + fields.get("iowait", 0.0),
            steal_s=fields.get("steal"),
            own_s=_own_s(self._process),
        )


def judge(
    logs: Mapping[str, PilotLog],
    taken: Taken,
    throttled: Sequence[str],
    power: Power,
) -> Noise:
    """Noisy for a reason, or not. logs: of pilots, by name."""
    reasons = [f"throttled: {what}" for what in throttled]
    if power.on_battery:
        reasons.append("on battery: clocks are not what they are on mains")
    if taken.others > _MOST_OTHERS or taken.others_cores > _MOST_OTHERS_CORES:
        reasons.append(
            f"other processes took {taken.others:.0%} of the processor time, "
            f"{taken.others_cores:.1f} cores"
        )
    if taken.steal is not None and taken.steal > _MOST_STEAL:
        reasons.append(f"the host gave {taken.steal:.0%} of the processor time to other guests")
    low, high = speed_range(logs)
    if high / low - 1 > _WIDEST_SPEED:
        reasons.append(f"a fixed step ran at {low:.2f} to {high:.2f} of its undisturbed speed")
    return Noise(
        is_noisy=bool(reasons),
        reasons=reasons,
        pilot_s={name: log.undisturbed_s for name, log in logs.items() if log.seconds},
        speed=(low, high),
        others_cpu_share=taken.others,
        steal_share=taken.steal,
        throttled=list(throttled),
    )


def speed_range(logs: Mapping[str, PilotLog]) -> tuple[float, float]:
    """5th and 95th percentile of the speeds of the pilots' single steps, of all pilots together."""
    speeds = [log.undisturbed_s / seconds for log in logs.values() for seconds in log.single_s]
    if not speeds:
        return 1.0, 1.0
    low, high = np.quantile(speeds, [0.05, 0.95])
    return float(low), float(high)


def _own_s(process: psutil.Process) -> float:
    """Of this process and its children, those that have ended too."""
    times = process.cpu_times()
    own_s = times.user + times.system
    own_s += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    for child in process.children(recursive=True):
        try:
            child_times = child.cpu_times()
        except psutil.Error:
            continue  # it has just ended
        own_s += child_times.user + child_times.system
    return own_s
