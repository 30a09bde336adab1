"""One arm, measured once: a line of a run's journal, and an entry of `result.json`."""

from collections.abc import Iterable
from typing import Any

import msgspec

from hetero.experiment.recipe.figures import Arm


class Pilot(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of fixed work on each core that the arm uses, before and after it."""

    before_s: dict[str, float]
    after_s: dict[str, float]


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
    marks: list[str]  # what a reader must know of it, as "emulated: rtx-3090 (host desktop)"
    settings: dict[
        str, Any
    ]  # all of them, as they were; a rate in bits per second, where it was set
    aiperf: dict[str, Any]  # the same metrics in the shape that AIPerf exports
    num_records: int  # lines of requests.jsonl that are its


def emulated(runs: Iterable[ArmRun]) -> list[str]:
    """The devices, by the marks of runs: `emulated: rtx-3090 (host desktop)`."""
    marks = {mark for run in runs for mark in run.marks if mark.startswith("emulated")}
    return sorted(mark.partition(":")[2].strip() or "a device" for mark in marks)
