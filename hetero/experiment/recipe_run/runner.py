"""Runs a recipe: its arms interleaved, each between two pilots, each kept as soon as it is done."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Protocol

from hetero.experiment.outcome.arm_run import ArmRun, Pilot
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.outcome.steadiness import MOST_UNSTEADY, unsteadiness, usual_pilot
from hetero.experiment.outcome.values import arm_key
from hetero.experiment.recipe.arms import arm_text
from hetero.experiment.recipe.figures import Arm
from hetero.experiment.recipe_run.run_folder import RunFolder, rounded
from hetero.profile.node.noise import CPUWatch

Say = Callable[[str], None]

MOST_ATTEMPTS = 3

# As for profiles. The kernel's work for packets counts here, too, so it is only said.
_MANY_OTHERS_CORES = 0.3
_WATCHED_S = 2.0


class Bench(Protocol):
    """What measures one kind of recipe's arms; it may keep a cluster or a model up between them.

    is_timed: how fast the machine is makes a difference to what is measured.
    """

    is_timed: bool

    def measure(self, arm: Arm, repetition: int) -> Measured:
        """Raises: HeteroError if the arm can't be measured."""


class PilotRun(Protocol):
    def run(self) -> dict[str, float]: ...


def run_arms(
    order: Sequence[tuple[Arm, int]],
    bench: Bench,
    pilots: PilotRun,
    folder: RunFolder,
    say: Say,
    marks: Sequence[str] = (),
) -> None:
    """Measures what the folder does not hold yet.

    An arm during which the machine was not its usual self is measured again when the others of its
    repetition are done, since what disturbs a machine often lasts for minutes; up to three times
    in all. The steadiest attempt counts. marks: of all arms. Raises: what the bench raises; all
    arms before are kept.
    """
    done = _Progress(order, folder.runs)
    if done.num_done:
        say(f"{done.num_done} of {len(order)} arms are here already: going on with the next")
    for _, part in groupby(order, key=lambda pair: pair[1]):
        for arm, repetition in list(part) * MOST_ATTEMPTS:
            if done.has(arm, repetition):
                continue
            attempt = done.attempts(arm, repetition)
            run, records = _measure(arm, repetition, attempt, bench, pilots, marks)
            folder.append(run, records)
            done.add(run)
            say(done.line(run))


def _measure(
    arm: Arm,
    repetition: int,
    attempt: int,
    bench: Bench,
    pilots: PilotRun,
    marks: Sequence[str],
) -> tuple[ArmRun, list[object]]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    before = pilots.run()
    watch = CPUWatch()
    measured = bench.measure(arm, repetition)
    seconds = time.monotonic() - clock
    steal, others_cores = _taken(watch, seconds) if bench.is_timed else (None, None)
    pilot = Pilot(before_s=before, after_s=pilots.run())
    said = [*marks, *measured.marks]
    if steal is not None and steal > MOST_UNSTEADY:
        said.append(f"other guests took {steal:.0%} of the machine meanwhile")
    if others_cores is not None and others_cores > _MANY_OTHERS_CORES:
        said.append(f"other processes took {others_cores:.1f} cores meanwhile")
    run = ArmRun(
        arm=arm,
        repetition=repetition,
        attempt=attempt,
        started=started,
        seconds=time.monotonic() - clock,
        scalars=rounded(measured.scalars),
        samples=rounded(measured.samples),
        per_request=measured.per_request,
        pilot=pilot if before else None,
        steal_share=steal,
        others_cores=others_cores,
        marks=said,
        settings=measured.settings,
        aiperf=rounded(measured.aiperf),
        num_records=len(measured.records),
    )
    return run, measured.records


def _taken(watch: CPUWatch, seconds: float) -> tuple[float | None, float | None]:
    """What other guests took, as a share, and other processes, in cores. The kernel counts in
    hundredths of a second: of less than some seconds it says nothing."""
    if seconds < _WATCHED_S:
        return None, None
    taken = watch.taken()
    return taken.steal, taken.others_cores


class _Progress:
    """What is done, and how long the rest will take: as long as the same arm took before, or as an
    arm does on average."""

    def __init__(self, order: Sequence[tuple[Arm, int]], runs: Sequence[ArmRun]) -> None:
        self._order = order
        self._runs: dict[tuple[str, int], list[ArmRun]] = {}
        for run in runs:
            self._keep(run)
        self._usual_s = usual_pilot(runs)

    @property
    def num_done(self) -> int:
        return sum(self.has(arm, repetition) for arm, repetition in self._order)

    def add(self, run: ArmRun) -> None:
        self._keep(run)
        self._usual_s = usual_pilot(run for runs in self._runs.values() for run in runs)

    def _keep(self, run: ArmRun) -> None:
        self._runs.setdefault((arm_key(run.arm), run.repetition), []).append(run)

    def attempts(self, arm: Arm, repetition: int) -> int:
        return len(self._runs.get((arm_key(arm), repetition), ()))

    def has(self, arm: Arm, repetition: int) -> bool:
        """Once measured, that may change: when the machine shows that it can be faster."""
        runs = self._runs.get((arm_key(arm), repetition), [])
        return len(runs) >= MOST_ATTEMPTS or any(
            unsteadiness(run, self._usual_s) <= MOST_UNSTEADY for run in runs
        )

    def line(self, run: ArmRun) -> str:
        is_done = self.has(run.arm, run.repetition)
        again = "" if is_done else ", the machine was not steady: later again"
        left = f"about {_duration(self._left_s())} left" if self.num_left else "the last"
        return (
            f"[{self.num_done}/{len(self._order)}] {arm_text(run.arm)}, repetition "
            f"{run.repetition + 1}: {run.seconds:.0f} s{again}; {left}"
        )

    @property
    def num_left(self) -> int:
        return len(self._order) - self.num_done

    def _left_s(self) -> float:
        by_arm: dict[str, list[float]] = {}
        for run in (run for runs in self._runs.values() for run in runs):
            by_arm.setdefault(arm_text(run.arm), []).append(run.seconds)
        means = {arm: sum(seconds) / len(seconds) for arm, seconds in by_arm.items()}
        mean_s = sum(means.values()) / len(means)
        return sum(
            means.get(arm_text(arm), mean_s)
            for arm, repetition in self._order
            if not self.has(arm, repetition)
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
