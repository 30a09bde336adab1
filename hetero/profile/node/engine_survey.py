"""Surveys an engine's steps on several caches within a time budget.

The caches take turns, and so do the roles, so that a slow minute of the machine meets all of them;
pilots fly between any two points. The first cache gets every knot, the others the ends.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np

from hetero.profile.node.cache import Cache
from hetero.profile.node.pilot import Pilots
from hetero.profile.node.points import Domain, Point, corners, few_corners, tour
from hetero.profile.node.rig import StepRig
from hetero.profile.node.survey import Survey, Timed
from hetero.profile.node_profile import PILOT_OF, Role, Sample

OpenRig = Callable[[Cache], AbstractContextManager[StepRig]]
Progress = Callable[[float], None]  # share of the budget that is spent
_CornersOf = Callable[[Role, Cache], list[Point]]

ROLES: tuple[Role, Role] = ("decode", "prefill")

# Repeats of a point take about so long, but are no more than these. The first is often slower: what
# was put into the cache has just driven the weights out of the processor's.
_POINT_S = 0.3
_MOST_REPEATS = 4

# A step that took so much longer than predicted may have been disturbed.
_SLOW = 0.04

# No corner may take more of the survey than this, no point drawn at random half of it: the largest
# steps of large models are left out.
_MOST_OF_ALL = 0.05

# A corner is measured more than once if it takes no more than this.
_SHORT_OF_ALL = 0.025

# Of a cache's part of what time is left: measuring corners again.
_AGAIN_SHARE = 0.5


class EngineSurvey:
    """Survey of both roles of llama.cpp on one model."""

    def __init__(
        self,
        open_rig: OpenRig,
        caches: Sequence[Cache],
        domain: Domain,
        pilots: Pilots,
        threads: Mapping[Role, int],
        random: np.random.Generator,
    ) -> None:
        self.surveys = {role: Survey(caches, domain.knots(role)) for role in ROLES}
        self._open_rig = open_rig
        self._caches = caches
        self._domain = domain
        self._pilots = pilots
        self._threads = threads
        self._random = random
        self._deadline = 0.0
        self._most_s = 0.0  # of a corner
        self._short_s = 0.0

    def run(self, seconds: float, progress: Progress) -> None:
        """Until every cache is known well enough, or the time is over."""
        started = time.monotonic()
        self._deadline = started + seconds
        self._most_s = _MOST_OF_ALL * seconds
        self._short_s = _SHORT_OF_ALL * seconds
        # A few of every cache, so that none is left out, then all knots of the first.
        for cache, corners_of in [
            *((cache, self._few_corners) for cache in self._caches),
            (self._caches[0], self._corners),
        ]:
            if self._left_s() <= 0:
                break
            with self._open_rig(cache) as rig:
                self._measure_corners(rig, cache, corners_of)
            progress((time.monotonic() - started) / seconds)
        while self._left_s() > 0:
            unsettled = [cache for cache in self._caches if not self._is_settled(cache)]
            if not unsettled:
                break
            for cache in unsettled:
                if self._left_s() <= 0:
                    break  # a cache takes a second to be made
                with self._open_rig(cache) as rig:
                    self._visit(rig, cache, self._left_s() / len(unsettled) / len(ROLES))
                progress((time.monotonic() - started) / seconds)
        for role, survey in self.surveys.items():
            survey.set_speeds(self._pilots.logs[PILOT_OF[role]].speed)

    @property
    def num_left_out(self) -> int:
        """Corners that were never measured: too long, or too late."""
        return sum(
            not self.surveys[role].times(cache, point.work(cache.unified))[0]
            for role in ROLES
            for cache in self._caches
            for point in self._corners(role, cache)
        )

    def _measure_corners(self, rig: StepRig, cache: Cache, corners_of: _CornersOf) -> None:
        """Those that are new."""
        for role in ROLES:
            self._pilots.run(PILOT_OF[role])  # the last one was a cache ago
            for point in corners_of(role, cache):
                if not self.surveys[role].times(cache, point.work(cache.unified))[0]:
                    self._measure(rig, cache, point, is_drawn=False)

    def _visit(self, rig: StepRig, cache: Cache, seconds: float) -> None:
        """Corners again, and points drawn at random. seconds: for each role."""
        for role in ROLES:
            if self._is_role_settled(role, cache):
                continue
            self._pilots.run(PILOT_OF[role])
            until = time.monotonic() + _AGAIN_SHARE * seconds
            for point in self._open_corners(role, cache):
                if time.monotonic() > until:
                    break
                self._measure(rig, cache, point, is_drawn=False)
            for point in tour(role, self._domain, cache.unified, self._random):
                # Of a step that is known already a prediction would be no test.
                if not self.surveys[role].times(cache, point.work(cache.unified))[0]:
                    self._measure(rig, cache, point, is_drawn=True)

    def _corners(self, role: Role, cache: Cache) -> list[Point]:
        if cache == self._caches[0]:
            return corners(role, self._domain, in_tiles=cache.tiling is not None)
        return self._few_corners(role, cache)

    def _few_corners(self, role: Role, cache: Cache) -> list[Point]:
        is_first = next(each for each in self._caches if each.types == cache.types) == cache
        return few_corners(
            role,
            self._domain,
            in_tiles=cache.tiling is not None,
            with_lengths=is_first,
            with_others=cache.unified,
        )

    def _open_corners(self, role: Role, cache: Cache) -> list[Point]:
        """Those whose seconds are not certain yet: each cache of the kind lies elsewhere in memory.
        Those measured least come first, then the shortest."""
        survey = self.surveys[role]
        found = []
        for point in self._corners(role, cache):
            num_times, is_certain = survey.times(cache, point.work(cache.unified))
            expected_s = survey.predict_s(cache, point)
            if not is_certain and expected_s is not None and expected_s < self._short_s:
                found.append((num_times, expected_s, point))
        return [point for _, _, point in sorted(found, key=lambda each: each[:2])]

    def _measure(self, rig: StepRig, cache: Cache, point: Point, *, is_drawn: bool) -> None:
        survey = self.surveys[point.role]
        left_s = self._left_s()
        if left_s <= 0:
            return
        expected_s = survey.predict_s(cache, point)
        most_s = self._most_s / 2 if is_drawn else self._most_s
        if expected_s is not None and expected_s > min(most_s, left_s):
            return
        seconds = self._time(rig, point)
        sample = self._sample(cache, point, seconds, is_drawn=is_drawn)
        if expected_s is None or not is_drawn:
            survey.add(cache, sample)
            return
        first_ratio = survey.ratio(cache, sample)
        if first_ratio < 1 - _SLOW:
            # Something else ran, or the fit is wrong there: a few more repeats.
            seconds += self._time(rig, point)
            sample = self._sample(cache, point, seconds, is_drawn=True)
        survey.add_drawn(cache, sample, first_ratio)

    def _sample(
        self, cache: Cache, point: Point, seconds: Sequence[float], *, is_drawn: bool
    ) -> Timed:
        """After another run of its pilot."""
        pilot = PILOT_OF[point.role]
        run = self._pilots.run(pilot)
        sample = Sample(
            work=point.work(cache.unified),
            seconds=min(seconds),
            speed=self._pilots.logs[pilot].speed(run),
            repeats=len(seconds),
            drawn=is_drawn,
        )
        return Timed(sample, run)

    def _time(self, rig: StepRig, point: Point) -> list[float]:
        rig.hold(point.cells)
        rig.set_threads(self._threads[point.role])
        seconds: list[float] = []
        while len(seconds) < _MOST_REPEATS and sum(seconds) < _POINT_S:
            if point.role == "decode":
                seconds.append(rig.time_step(point.rows))
            else:
                seconds.append(rig.time_chunk(point.rows, len(point.cells) - 1))
        return seconds

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _is_settled(self, cache: Cache) -> bool:
        return all(self._is_role_settled(role, cache) for role in ROLES)

    def _is_role_settled(self, role: Role, cache: Cache) -> bool:
        return self.surveys[role].is_settled(cache) and not self._open_corners(role, cache)
