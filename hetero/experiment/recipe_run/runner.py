"""Runs a recipe: its arms interleaved, each between two pilots, each kept as soon as it is done."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from hetero.experiment.outcome.arm_run import Arm, ArmRun, Pilot
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.arms import arm_text
from hetero.experiment.recipe_run.run_folder import RunFolder, rounded

Say = Callable[[str], None]

# Of the pilot, from before an arm to after it: more, and the arm is measured again.
MOST_DRIFT = 0.05
MOST_ATTEMPTS = 3


class Bench(Protocol):
    """What measures one kind of recipe's arms; it may keep a cluster or a model up between them."""

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
) -> None:
    """Measures what the folder does not hold yet.

    An arm during which the machine changed is measured again, up to three times in all; the last
    attempt counts, with a mark if it drifted, too. Raises: what the bench raises; all arms before
    are kept.
    """
    done = _Progress(order, folder.runs)
    if done.num_done:
        say(f"{done.num_done} of {len(order)} arms are here already: going on with the next")
    for arm, repetition in order:
        if done.has(arm, repetition):
            continue
        first = done.attempts(arm, repetition)
        for attempt in range(first, MOST_ATTEMPTS):
            run, records = _measure(arm, repetition, attempt, bench, pilots)
            folder.append(run, records)
            done.add(run)
            say(done.line(run))
            if not has_drifted(run):
                break


def has_drifted(run: ArmRun) -> bool:
    return run.pilot is not None and run.pilot.drift > MOST_DRIFT


def counting_runs(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """The last attempt of each arm and repetition, in the order they were made."""
    last = {_key(run.arm, run.repetition): run for run in runs}
    return [run for run in runs if last[_key(run.arm, run.repetition)] is run]


def _measure(
    arm: Arm, repetition: int, attempt: int, bench: Bench, pilots: PilotRun
) -> tuple[ArmRun, list[object]]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    before = pilots.run()
    measured = bench.measure(arm, repetition)
    pilot = Pilot(before_s=before, after_s=pilots.run())
    marks = list(measured.marks)
    if pilot.drift > MOST_DRIFT:
        marks.append(f"the machine drifted by {pilot.drift:.0%} meanwhile")
    run = ArmRun(
        arm=arm,
        repetition=repetition,
        attempt=attempt,
        started=started,
        seconds=time.monotonic() - clock,
        scalars=rounded(measured.scalars),
        samples=rounded(measured.samples),
        pilot=pilot if before else None,
        marks=marks,
        settings=measured.settings,
        aiperf=rounded(measured.aiperf),
        num_records=len(measured.records),
    )
    return run, measured.records


class _Progress:
    """What is done, and how long the rest will take: as long as the same arm took before, or as an
    arm does on average."""

    def __init__(self, order: Sequence[tuple[Arm, int]], runs: Sequence[ArmRun]) -> None:
        self._order = order
        self._runs: dict[str, list[ArmRun]] = {}
        for run in runs:
            self.add(run)

    @property
    def num_done(self) -> int:
        return sum(self.has(arm, repetition) for arm, repetition in self._order)

    def add(self, run: ArmRun) -> None:
        self._runs.setdefault(_key(run.arm, run.repetition), []).append(run)

    def attempts(self, arm: Arm, repetition: int) -> int:
        return len(self._runs.get(_key(arm, repetition), ()))

    def has(self, arm: Arm, repetition: int) -> bool:
        runs = self._runs.get(_key(arm, repetition), [])
        return bool(runs) and (not has_drifted(runs[-1]) or len(runs) >= MOST_ATTEMPTS)

    def line(self, run: ArmRun) -> str:
        again = ""
        if has_drifted(run) and not self.has(run.arm, run.repetition):
            again = ", the machine drifted: again"
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


def _key(arm: Arm, repetition: int) -> str:
    return f"{repetition} {sorted(arm.items())}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
