"""One arm, measured once: a line of a run's journal, and an entry of `result.json`."""

from collections.abc import Iterable
from typing import Any

import msgspec

from hetero.experiment.recipe.figures import Arm


class Pilot(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of fixed work on each core that the arm uses, before and after it."""

    before_s: dict[str, float]
    after_s: dict[str, float]

    @property
    def drift(self) -> float:
        """Of the core that changed most: the slower over the faster time, less 1."""
        pairs = [(self.before_s[core], self.after_s[core]) for core in self.before_s]
        return max((max(pair) / min(pair) - 1 for pair in pairs), default=0.0)


class ArmRun(msgspec.Struct, frozen=True, kw_only=True):
    """scalars: metrics of the run as a whole, by name (`throughput`, `goodput`, `load_cores` ...).
    samples: metrics of which every request (prompt, transfer) gives one or more, by name (`ttft`,
    `tpot`, `itl`, `exposed` ...); percentiles are computed from these. Seconds, bytes, and their
    quotients. per_request: of a metric of which a request gives several, how many each gave, in
    the order of the samples.
    """

    arm: Arm
    repetition: int
    attempt: int  # from 0; the steadiest counts
    started: str  # ISO 8601
    seconds: float
    scalars: dict[str, float]
    samples: dict[str, list[float]]
    per_request: dict[str, list[int]] = {}
    pilot: Pilot | None
    steal_share: float | None = None  # of the machine's time meanwhile, given to other guests
    others_cores: float | None = None  # taken by other processes, and by the kernel for anybody
    marks: list[str]  # what a reader must know of it: "emulated: rtx-3090", "drifted by 8%"
    settings: dict[
        str, Any
    ]  # all of them, as they were; a rate in bits per second, where it was set
    aiperf: dict[str, Any]  # the same metrics in the shape that AIPerf exports
    num_records: int  # lines of requests.jsonl that are its

    @property
    def unsteadiness(self) -> float:
        """How far the machine was from being one and the same during the arm; 0 is steady."""
        drift = 0.0 if self.pilot is None else self.pilot.drift
        return max(drift, self.steal_share or 0.0)


def emulated(runs: Iterable[ArmRun]) -> list[str]:
    """The devices, by the marks of runs: `emulated: rtx-3090 (host desktop)`."""
    marks = {mark for run in runs for mark in run.marks if mark.startswith("emulated")}
    return sorted(mark.partition(":")[2].strip() or "a device" for mark in marks)
