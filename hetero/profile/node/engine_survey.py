"""Surveys an engine's steps on several caches within a time budget.

The caches take turns, and so do the roles, so that a slow minute of the machine meets all of them;
pilots fly between any two points. The first cache is the one a node would have: it gets every
knot, the others the ends.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import msgspec
import numpy as np

from hetero.profile.node.fitting import Cache
from hetero.profile.node.pilot import Pilots
from hetero.profile.node.points import Domain, Point, corners, few_corners, tour
from hetero.profile.node.rig import StepRig
from hetero.profile.node.survey import Survey
from hetero.profile.node_profile import PILOT_OF, PilotName, Role, Sample

OpenRig = Callable[[Cache], AbstractContextManager[StepRig]]
Progress = Callable[[float], None]  # share of the budget that is spent

ROLES: tuple[Role, Role] = ("decode", "prefill")

# Repeats of a point take about so long, but are no more than these.
_POINT_S = 0.25
_MOST_REPEATS = 3

# One point may take this share of what is left: large chunks of large models are left out.
_MOST_OF_REST = 0.2


@dataclass(frozen=True)
class _Flight:
    """Which pilots flew around a sample: what their speed is called is known at the end."""

    survey: Survey
    cache: Cache
    index: int  # of the sample
    pilot: PilotName
    before: int  # run of the pilot; the next one came after the sample


class EngineSurvey:
    """Survey of both roles of llama.cpp on one model."""

    def __init__(
        self,
        open_rig: OpenRig,
        caches: Sequence[Cache],
        domain: Domain,
        pilots: Pilots,
        threads: Mapping[Role, int],
    ) -> None:
        self.surveys = {role: Survey(role, caches, domain.knots(role)) for role in ROLES}
        self._open_rig = open_rig
        self._caches = caches
        self._domain = domain
        self._pilots = pilots
        self._threads = threads
        self._random = np.random.default_rng(0)
        self._flights: list[_Flight] = []
        self._deadline = 0.0

    def run(self, seconds: float, progress: Progress) -> None:
        """Until every cache is known well enough, or the time is over."""
        started = time.monotonic()
        self._deadline = started + seconds
        for pilot in PILOT_OF.values():
            self._pilots.run(pilot)
        is_first_round = True
        while self._left_s() > 0 and (is_first_round or self._unsettled()):
            # The first cache gets half of each round: the others share its knots.
            for index, cache in enumerate(self._caches):
                if not is_first_round and self._is_settled(cache):
                    continue
                share = 0.5 if index == 0 else 1 / (len(self._caches) - index)
                until = time.monotonic() + share * self._left_s() / (1 if is_first_round else 2)
                with self._open_rig(cache) as rig:
                    self._visit(rig, cache, until, is_first_round)
                progress((time.monotonic() - started) / seconds)
            is_first_round = False
        for flight in self._flights:
            samples = flight.survey.samples[flight.cache]
            samples[flight.index] = msgspec.structs.replace(
                samples[flight.index],
                speed=self._pilots.log.speed(flight.pilot, flight.before),
            )

    def _visit(self, rig: StepRig, cache: Cache, until: float, is_first: bool) -> None:
        if is_first:
            for role in ROLES:
                for point in self._corners(role, cache):
                    self._measure(rig, cache, point, is_drawn=False)
        while time.monotonic() < until and not self._is_settled(cache):
            for role in ROLES:
                if self.surveys[role].is_settled(cache):
                    continue
                for point in tour(role, self._domain, cache.unified, self._random):
                    if time.monotonic() < until:
                        self._measure(rig, cache, point, is_drawn=True)

    def _corners(self, role: Role, cache: Cache) -> list[Point]:
        if cache == self._caches[0]:
            return corners(role, self._domain)
        is_first = next(each for each in self._caches if each.types == cache.types) == cache
        return few_corners(role, self._domain, with_tiles=is_first, with_others=cache.unified)

    def _measure(self, rig: StepRig, cache: Cache, point: Point, *, is_drawn: bool) -> None:
        survey = self.surveys[point.role]
        expected_s = survey.predict_s(cache, point)
        if expected_s is not None and expected_s > _MOST_OF_REST * self._left_s():
            return
        if self._left_s() <= 0:
            return
        is_drawn = is_drawn and bool(survey.samples[cache])  # else there is nothing to test
        sample, before = self._sample(rig, cache, point, is_drawn=is_drawn)
        if is_drawn and survey.is_surprised_by(cache, sample):
            # Something else ran, or the fit is wrong there: once more, and the better one counts.
            again, before_again = self._sample(rig, cache, point, is_drawn=True)
            if again.seconds * again.speed < sample.seconds * sample.speed:
                sample, before = again, before_again
        samples = survey.samples[cache]
        self._flights.append(_Flight(survey, cache, len(samples), PILOT_OF[point.role], before))
        if is_drawn:
            survey.add_drawn(cache, sample)
        else:
            survey.add(cache, sample)

    def _sample(
        self, rig: StepRig, cache: Cache, point: Point, *, is_drawn: bool
    ) -> tuple[Sample, int]:
        """A sample, and the run of its pilot that came before it."""
        seconds = self._time(rig, point)
        pilot = PILOT_OF[point.role]
        before = self._pilots.run(pilot) - 1
        sample = Sample(
            work=point.work(cache.unified),
            seconds=median(seconds),
            speed=self._pilots.log.speed(pilot, before),
            repeats=len(seconds),
            drawn=is_drawn,
        )
        return sample, before

    def _time(self, rig: StepRig, point: Point) -> list[float]:
        rig.hold(point.cells)
        rig.set_threads(self._threads[point.role])
        step = rig.time_step if point.role == "decode" else rig.time_chunk
        first_s = step(point.rows)
        repeats = min(_MOST_REPEATS, round(_POINT_S / first_s))
        # Where there are several, the first warmed up: the pilot has had the caches.
        return [step(point.rows) for _ in range(repeats)] or [first_s]

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _is_settled(self, cache: Cache) -> bool:
        return all(survey.is_settled(cache) for survey in self.surveys.values())

    def _unsettled(self) -> list[Cache]:
        return [cache for cache in self._caches if not self._is_settled(cache)]
