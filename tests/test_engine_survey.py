"""Surveys of an engine whose true costs are known, by a clock that only its steps move."""

from contextlib import contextmanager
from itertools import cycle

import numpy as np
import pytest
from msgspec.structs import replace

from hetero.profile.node import engine_survey
from hetero.profile.node.cache import Cache
from hetero.profile.node.engine_survey import ROLES, EngineSurvey
from hetero.profile.node.pilot import PILOTS, PilotLog
from hetero.profile.node.points import Domain, corners, few_corners, tour
from hetero.profile.step_cost import StepCost, TileCost
from hetero.profile.tiling import Tiling
from hetero.profile.work import chunk_work, step_work

DOMAIN = Domain(max_sequences=8, context_tokens=2048, chunk_tokens=512)
TILING = Tiling(heads=12, threads=2)
CACHES = [
    Cache(False, "q8_0", "q8_0"),
    Cache(False, "f16", "f16", TILING),
    Cache(True, "q8_0", "q8_0"),
    Cache(True, "f16", "f16", TILING),
]
PLAIN = StepCost(
    rows=[1, 512],
    rows_s=[0.01, 0.4],
    rest_s=0.0,
    pair_s=[2e-6, 3e-6, 4e-6, 4e-6, 4e-6, 4e-6],
    cell_s=5e-6,
    deep_cell_s=3e-6,
    masked_s=1e-7,
    tiles=None,
)
TILES = TileCost(tiling=TILING, pair_s=7e-7, masked_s=5e-8)
OPENING_S = 0.3


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Machine:
    """places: how much longer attention takes in one cache after the other, of those opened.
    drifts: between full speed and two thirds of it, and back within four minutes."""

    def __init__(self, clock, places=(1.0,), scale=1.0, *, drifts=False):
        self.clock = clock
        self.places = cycle(places)
        self.scale = scale
        self.drifts = drifts
        self.longest_s = 0.0
        self.taken = set()  # caches, and works of the steps that were taken there

    def cost(self, cache):
        return replace(PLAIN, tiles=TILES) if cache.types == ("f16", "f16") else PLAIN

    def true_s(self, cache, work):
        return self.scale * self.cost(cache).seconds(work)

    def take(self, undisturbed_s):
        speed = 5 / 6 + np.cos(2 * np.pi * self.clock.now / 240) / 6 if self.drifts else 1.0
        seconds = undisturbed_s / speed
        self.clock.now += seconds
        self.longest_s = max(self.longest_s, seconds)
        return seconds

    @contextmanager
    def open_rig(self, cache):
        self.clock.now += OPENING_S
        yield Rig(self, cache, next(self.places))


class Rig:
    def __init__(self, machine, cache, place):
        self._machine, self._cache, self._place = machine, cache, place

    def set_threads(self, num_threads):
        pass

    def hold(self, cells):
        self._cells = [*cells, *[0] * (DOMAIN.max_sequences - len(cells))]

    def time_step(self, rows):
        others = sum(self._cells[rows:])
        return self._take(step_work(self._cells[:rows], others, self._cache.unified))

    def time_chunk(self, rows, sequence):
        others = sum(self._cells) - self._cells[sequence]
        return self._take(chunk_work(rows, self._cells[sequence], others, self._cache.unified))

    def _take(self, work):
        machine = self._machine
        machine.taken.add((self._cache, work))
        rows_s = machine.scale * machine.cost(self._cache).rows_seconds(work)
        return machine.take(rows_s + self._place * (machine.true_s(self._cache, work) - rows_s))


class FlownPilots:
    """As the machine flies them at that moment."""

    def __init__(self, machine):
        self._machine = machine
        self.logs = {name: PilotLog() for name in PILOTS}

    def run(self, name):
        return self.logs[name].add([self._machine.take(0.01)])


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_survey, "time", clock)
    return clock


def surveyed(machine, seconds):
    pilots = FlownPilots(machine)
    threads, random = dict.fromkeys(ROLES, 1), np.random.default_rng(0)
    survey = EngineSurvey(machine.open_rig, CACHES, DOMAIN, pilots, threads, random)
    survey.run(seconds, lambda share: None)
    return survey


def off(machine, survey):
    """Predicted over true, less one, of points that no survey has seen."""
    random = np.random.default_rng(11)
    found = []
    for role in ROLES:
        for cache, cost in survey.surveys[role].fits().costs.items():
            for _ in range(4):
                works = [
                    point.work(cache.unified) for point in tour(role, DOMAIN, cache.unified, random)
                ]
                found += [cost.seconds(work) / machine.true_s(cache, work) - 1 for work in works]
    return np.abs(found)


def test_the_true_costs_are_found_within_the_time(clock):
    machine = Machine(clock)
    survey = surveyed(machine, 100)
    assert off(machine, survey).max() < 0.03
    assert clock.now < 103


def test_where_a_cache_happens_to_lie_does_not_become_what_a_step_costs(clock):
    """Of seven one lies badly and one well: neither is what is usual."""
    machine = Machine(clock, places=(1.2, 1.0, 1.0, 1.0, 0.85, 1.0, 1.0))
    survey = surveyed(machine, 200)
    assert np.median(off(machine, survey)) < 0.02
    assert np.quantile(off(machine, survey), 0.9) < 0.04


def test_a_machine_that_slows_and_recovers_is_told_from_steps_that_cost_more(clock):
    machine = Machine(clock, drifts=True)
    survey = surveyed(machine, 200)
    assert np.median(off(machine, survey)) < 0.02
    assert np.quantile(off(machine, survey), 0.9) < 0.04


def test_every_cache_gets_points_drawn_at_random_when_corners_alone_would_fill_the_time(clock):
    machine = Machine(clock, places=(1.2, 1.1, 1.0))  # nothing is ever certain
    survey = surveyed(machine, 60)
    for role in ROLES:
        for cache, samples in survey.surveys[role].samples.items():
            assert sum(sample.drawn for sample in samples) >= 3, (role, cache)


def planned():
    """Of each cache: all corners of the first, fewer of the others, contexts in between where a
    pair of types is met for the first time, others' cells where there is a pool."""
    for role in ROLES:
        for cache in CACHES:
            in_tiles = cache.types == ("f16", "f16")
            if cache == CACHES[0]:
                points = corners(role, DOMAIN, in_tiles=in_tiles)
            else:
                points = few_corners(
                    role,
                    DOMAIN,
                    in_tiles=in_tiles,
                    with_lengths=not cache.unified,
                    with_others=cache.unified,
                )
            yield from ((cache, point.work(cache.unified)) for point in points)


def test_steps_that_would_take_too_much_of_the_time_are_left_out_and_counted(clock):
    machine = Machine(clock, scale=8)
    survey = surveyed(machine, 40)
    left_out = [step for step in planned() if step not in machine.taken]
    assert survey.num_left_out == len(left_out) > 0
    # A twentieth, and a third more for what extrapolation does not know.
    assert machine.longest_s < 40 / 20 * 1.33


def test_steps_that_come_too_late_are_left_out_and_counted(clock):
    machine = Machine(clock)
    survey = surveyed(machine, 2)
    left_out = [step for step in planned() if step not in machine.taken]
    assert {cache for cache, _ in left_out} >= set(CACHES[2:])
    assert survey.num_left_out == len(left_out)


def test_where_there_is_time_for_all_none_is_left_out(clock):
    machine = Machine(clock)
    survey = surveyed(machine, 200)
    assert set(planned()) <= machine.taken
    assert survey.num_left_out == 0
