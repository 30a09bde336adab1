"""Points, fits and when to stop, on a machine whose true costs are known."""

from itertools import pairwise, product

import numpy as np
import pytest
from msgspec.structs import replace

from hetero.profile.node.cache import Cache
from hetero.profile.node.fitting import cross_validate, fit, fit_costs
from hetero.profile.node.points import Domain, Point, corners, few_corners, tour
from hetero.profile.node.survey import Survey, Timed
from hetero.profile.node_profile import Sample
from hetero.profile.step_cost import StepCost, TileCost, plain_cost
from hetero.profile.tiling import Tiling
from hetero.profile.work import Work, chunk_work, step_work

DOMAIN = Domain(max_sequences=8, context_tokens=2048, chunk_tokens=512)
TILING = Tiling(heads=12, threads=2)
STREAMS, POOL = (Cache(unified, "f16", "f16", TILING) for unified in (False, True))
TILES = TileCost(tiling=TILING, pair_s=7e-7, masked_s=5e-8)
TRUE = {
    STREAMS: StepCost(
        rows=[1, 512],
        rows_s=[0.02, 0.9],
        rest_s=0.003,
        pair_s=[2e-6, 4e-6, 4e-6, 4e-6, 4e-6, 4e-6],
        cell_s=5e-6,
        deep_cell_s=3e-6,
        masked_s=1e-7,
        tiles=TILES,
    ),
}
# The same kernels read the same types: rows are exported, and others' cells are scanned.
TRUE[POOL] = replace(
    TRUE[STREAMS],
    rows_s=[0.02 + 0.001, 0.9 + 0.512],
    masked_s=4e-7,
    tiles=replace(TILES, masked_s=1e-7),
)


class Machine:
    """Takes what TRUE says, times noise, times its speed at that moment."""

    def __init__(self, noise=0.0, speeds=(1.0,)):
        self._random = np.random.default_rng(1)
        self._noise = noise
        self._speeds = speeds
        self.num_measured = 0

    def sample(self, cache, point, *, drawn):
        work = point.work(cache.unified)
        speed = self._speeds[self.num_measured % len(self._speeds)]
        self.num_measured += 1
        seconds = TRUE[cache].seconds(work)
        seconds *= np.exp(self._noise * self._random.standard_normal()) / speed
        sample = Sample(work=work, seconds=seconds, speed=speed, repeats=1, drawn=drawn)
        return Timed(sample, self.num_measured - 1)


def surveyed(machine, role="prefill", caches=(STREAMS, POOL), num_tours=6):
    survey = Survey(caches, DOMAIN.knots(role))
    random = np.random.default_rng(0)
    for cache in caches:
        points = few_corners(
            role, DOMAIN, in_tiles=True, with_lengths=True, with_others=cache.unified
        )
        for point in corners(role, DOMAIN, in_tiles=True) if cache == caches[0] else points:
            survey.add(cache, machine.sample(cache, point, drawn=False))
    for _ in range(num_tours):
        for cache in caches:
            for point in tour(role, DOMAIN, cache.unified, random):
                timed = machine.sample(cache, point, drawn=True)
                survey.add_drawn(cache, timed, survey.ratio(cache, timed))
    return survey


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_without_noise_the_true_costs_are_found(role):
    costs = surveyed(Machine(), role).fits().costs
    random = np.random.default_rng(7)
    for cache, cost in costs.items():
        for point in tour(role, DOMAIN, cache.unified, random):
            work = point.work(cache.unified)
            assert cost.seconds(work) == pytest.approx(TRUE[cache].seconds(work), rel=0.01)


def check_speeds_make_no_difference(machine, speeds):
    survey = surveyed(machine)
    assert {sample.speed for sample in survey.samples[STREAMS]} == speeds
    point = Point("prefill", 200, (1000,))
    true_s = TRUE[STREAMS].seconds(point.work(False))
    assert survey.predict_s(STREAMS, point) == pytest.approx(true_s, rel=0.01)


def test_a_machine_that_slows_down_half_way_is_the_same_machine():
    steady = Machine()
    surveyed(steady)
    half = steady.num_measured // 2
    machine = Machine(speeds=(1.0,) * half + (0.6,) * (steady.num_measured - half))
    check_speeds_make_no_difference(machine, {1.0, 0.6})


def test_a_machine_that_is_slow_by_turns_is_the_same_machine():
    check_speeds_make_no_difference(Machine(speeds=(1.0, 0.6, 1.3)), {1.0, 0.6, 1.3})


def test_what_slows_a_third_of_the_samples_hardly_moves_the_fit():
    """As on a machine shared with others: a disturbance only ever adds."""
    survey = surveyed(Machine(noise=0.01))
    off = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        samples = {
            cache: [
                replace(each, seconds=each.seconds * (1.4 if random.random() < 0.33 else 1))
                for each in of_cache
            ]
            for cache, of_cache in survey.samples.items()
        }
        costs = fit_costs(samples, survey.knots)
        for cache in (STREAMS, POOL):
            for rows, cells in ((100, 500), (20, 1500), (64, 0), (400, 0)):
                work = chunk_work(rows, cells, 0, cache.unified)
                off.append(costs[cache].seconds(work) / TRUE[cache].seconds(work) - 1)
    assert abs(np.median(off)) < 0.02  # 13% on average
    assert np.quantile(np.abs(off), 0.9) < 0.12


def test_rows_of_any_cache_may_be_the_dearest():
    """The first one is not the measure of the others."""
    dear = {
        STREAMS: replace(TRUE[STREAMS], rows_s=[0.021, 1.412]),
        POOL: replace(TRUE[POOL], rows_s=[0.02, 0.9]),
    }
    points = [point for point in corners("prefill", DOMAIN, in_tiles=True) if not point.cells[-1]]
    samples = {
        cache: [
            Sample(work=work, seconds=cost.seconds(work), speed=1, repeats=1)
            for work in (point.work(cache.unified) for point in points)
        ]
        for cache, cost in dear.items()
    }
    costs = fit_costs(samples, DOMAIN.knots("prefill"))
    for cache, cost in dear.items():
        work = chunk_work(512, 0, 0, cache.unified)
        assert costs[cache].seconds(work) == pytest.approx(cost.seconds(work), rel=0.02)


def test_of_several_measurements_of_a_step_the_middle_one_counts():
    survey = Survey([STREAMS], [64])
    work = chunk_work(64, 0, 0, unified=False)
    for run, seconds in enumerate((0.3, 0.2, 0.25)):
        sample = Sample(work=work, seconds=seconds, speed=1, repeats=1)
        survey.add(STREAMS, Timed(sample, run))
    assert [sample.seconds for sample in survey.samples[STREAMS]] == [0.25]
    # The machine was twice as fast while the second one ran: it is the slowest, then.
    survey.set_speeds([1.0, 2.0, 1.0].__getitem__)
    assert [sample.seconds for sample in survey.samples[STREAMS]] == [0.3]


def test_a_step_is_measured_until_two_times_agree_but_not_for_ever():
    survey = Survey([STREAMS], [64])
    work = chunk_work(64, 0, 0, unified=False)

    def certain_after(*all_seconds):
        survey = Survey([STREAMS], [64])
        for seconds in all_seconds:
            sample = Sample(work=work, seconds=seconds, speed=1, repeats=1)
            survey.add(STREAMS, Timed(sample, 0))
        return survey.times(STREAMS, work)

    assert survey.times(STREAMS, work) == (0, False)
    assert certain_after(0.2, 0.2) == (2, False)
    assert certain_after(0.2, 0.202, 0.3) == (3, True)
    assert certain_after(0.2, 0.25, 0.3) == (3, False)
    assert certain_after(0.2, 0.25, 0.3, 0.35, 0.4, 0.45) == (6, True)


def test_a_few_wild_samples_do_not_move_the_fit():
    survey = surveyed(Machine(noise=0.01))
    last = survey.samples[STREAMS][-3:]
    wild = [replace(sample, seconds=20 * sample.seconds) for sample in last]
    samples = survey.samples | {STREAMS: survey.samples[STREAMS] + wild}
    cost = fit_costs(samples, survey.knots)[STREAMS]
    work = chunk_work(100, 500, 0, False)
    assert cost.seconds(work) == pytest.approx(TRUE[STREAMS].seconds(work), rel=0.05)


def test_the_stated_error_is_that_of_points_the_fit_has_not_seen():
    noise = 0.05
    survey = surveyed(Machine(noise=noise), num_tours=20)
    error = survey.fits().errors[STREAMS]
    # Of a normal distribution: the median of |x| is 0.67, 9 of 10 lie within 1.64.
    assert error.median == pytest.approx(0.67 * noise, rel=0.4)
    assert error.p90 == pytest.approx(1.64 * noise, rel=0.4)
    assert error.num_points == sum(sample.drawn for sample in survey.samples[STREAMS])
    of_both = survey.fits().overall
    assert of_both.num_points == error.num_points + survey.fits().errors[POOL].num_points


def test_points_that_were_placed_are_not_left_out_of_the_fit():
    survey = surveyed(Machine(), num_tours=0)
    assert cross_validate(survey.samples, survey.knots) == {STREAMS: [], POOL: []}
    assert fit(survey.samples, survey.knots).errors == {STREAMS: None, POOL: None}


def test_a_bend_between_knots_gets_one_of_its_own():
    bend = plain_cost([4, 96, 100, 512], [0.02, 0.1, 0.4, 0.9], pair_s=0, masked_s=0)
    survey = Survey([STREAMS], [4, 512])

    def work(rows):
        return Work(rows=rows, pairs=(0, 0, 0, 0, 0, 0), cells=0, masked=0)

    def sample(rows, drawn):
        seconds = bend.seconds(work(rows))
        sample = Sample(work=work(rows), seconds=seconds, speed=1, repeats=1, drawn=drawn)
        return Timed(sample, 0)

    for rows in (4, 512):
        survey.add(STREAMS, sample(rows, False))
    assert survey.knots == [4, 512]
    bent = sample(96, True)
    survey.add_drawn(STREAMS, bent, survey.ratio(STREAMS, bent))
    assert survey.knots == [4, 96, 512]
    assert survey.cost(STREAMS).rows_seconds(work(48)) == pytest.approx(0.0583, rel=0.02)


def test_lengths_that_no_sample_reached_cost_what_shorter_ones_do():
    near = Sample(work=step_work([500], 0, False), seconds=0.02 + 500e-6, speed=1, repeats=1)
    short = Sample(work=step_work([10], 0, False), seconds=0.02 + 10e-6, speed=1, repeats=1)
    cost = fit_costs({STREAMS: [near, short]}, [1])[STREAMS]
    assert cost.pair_s == pytest.approx([1e-6] * 6)
    assert cost.tiles is None


def test_a_length_between_two_that_are_known_costs_about_what_lies_between_them():
    """Nothing but a straight line is known there."""

    def sample(cells, each_s):
        work = step_work([cells], 0, False)
        return Sample(work=work, seconds=0.02 + cells * each_s, speed=1, repeats=1)

    samples = [sample(10, 1e-6), sample(1024, 1e-6), sample(4096, 3e-6)]
    cost = fit_costs({STREAMS: samples}, [1])[STREAMS]
    assert cost.pair_s[:3] == pytest.approx([1e-6, 2e-6, 3e-6], rel=0.02)
    # A sample is worth more than the line.
    cost = fit_costs({STREAMS: [*samples, sample(2048, 1.2e-6)]}, [1])[STREAMS]
    assert cost.pair_s[1] == pytest.approx(1.2e-6, rel=0.1)


def test_quantized_caches_know_no_tiles():
    caches = [Cache(False, "q8_0", "q8_0"), STREAMS]
    works = [chunk_work(rows, cells, 0, False) for rows in (16, 64, 160) for cells in (0, 1000)]
    samples = [
        Sample(work=work, seconds=TRUE[STREAMS].seconds(work), speed=1, repeats=1) for work in works
    ]
    costs = fit_costs(dict.fromkeys(caches, samples), [16, 64, 160])
    assert [costs[cache].tiles is None for cache in caches] == [True, False]


def test_a_survey_ends_when_predictions_hold_and_not_before():
    assert surveyed(Machine(noise=0.01)).is_settled(STREAMS)
    assert not surveyed(Machine(noise=0.2)).is_settled(STREAMS)
    assert not surveyed(Machine(), num_tours=1).is_settled(STREAMS)  # 6 points say too little


@pytest.mark.parametrize("role", ["decode", "prefill"])
@pytest.mark.parametrize("unified", [False, True])
def test_points_of_a_tour_fit_the_cache_and_only_shrink(role, unified):
    random = np.random.default_rng(3)
    for _ in range(50):
        points = list(tour(role, DOMAIN, unified, random))
        for point in points:
            appended = point.rows if role == "prefill" else 1
            assert 1 <= point.rows <= DOMAIN.most_rows(role)
            assert max(point.cells) + appended <= DOMAIN.context_tokens
            assert len(point.cells) <= DOMAIN.max_sequences
        for before, after in pairwise(points):
            assert after.rows <= before.rows
            assert len(after.cells) <= len(before.cells)
            ceiling = DOMAIN.context_tokens - (after.rows if role == "prefill" else 1)
            for had, has in zip(before.cells, after.cells, strict=False):
                assert has <= max(had, ceiling)
            if unified:  # so that it leaves no gap
                for had, has in zip(before.cells, after.cells[:-1], strict=False):
                    assert has >= min(had, ceiling)


def test_corners_cover_every_knot_and_the_longest_context():
    for role in ("decode", "prefill"):
        points = corners(role, DOMAIN, in_tiles=True)
        rest = {"decode": set(), "prefill": {7}}[role]  # rows that are met one by one
        assert {point.rows for point in points} == set(DOMAIN.knots(role)) | rest
        appended = {"decode": 1, "prefill": 128}[role]
        assert any(max(point.cells) == DOMAIN.context_tokens - appended for point in points)
        longest = {
            max(index for index, pairs in enumerate(work.pairs) if pairs)
            for work in (point.work(unified=False) for point in points)
        }
        assert longest == {0, 1}  # of 1024 cells, and of 2048
    for role in ("decode", "prefill"):
        few = few_corners(role, DOMAIN, in_tiles=True, with_lengths=True, with_others=False)
        assert set(few) <= set(corners(role, DOMAIN, in_tiles=True))
    padded = corners("decode", DOMAIN, in_tiles=True)[-1].work(unified=False)
    assert padded.masked > 6 * padded.visible


DOMAINS = [
    Domain(1, 64, 1),
    Domain(1, 64, 64),
    Domain(2, 64, 64),
    Domain(3, 200, 130),
    Domain(8, 2048, 512),
    Domain(8, 1280, 1280),
    Domain(256, 131072, 512),
]


def check_fits(point, domain):
    """Before the step, and after it has appended its cells."""
    assert 1 <= point.rows <= domain.most_rows(point.role)
    assert 1 <= len(point.cells) <= domain.max_sequences
    assert min(point.cells) >= 0
    after = list(point.cells)
    if point.role == "prefill":
        after[-1] += point.rows
    else:
        assert point.rows <= len(point.cells)
        after[: point.rows] = [cells + 1 for cells in after[: point.rows]]
    assert max(after) <= domain.context_tokens
    assert sum(after) <= domain.max_sequences * domain.context_tokens  # of a pool


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
@pytest.mark.parametrize("role", ["decode", "prefill"])
@pytest.mark.parametrize("in_tiles", [False, True])
def test_corners_of_any_node_fit_its_cache(domain, role, in_tiles):
    points = corners(role, domain, in_tiles=in_tiles)
    for with_lengths, with_others in product((False, True), repeat=2):
        points += few_corners(
            role, domain, in_tiles=in_tiles, with_lengths=with_lengths, with_others=with_others
        )
    for point in points:
        check_fits(point, domain)


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
@pytest.mark.parametrize("role", ["decode", "prefill"])
@pytest.mark.parametrize("unified", [False, True])
def test_tours_of_any_node_fit_its_cache(domain, role, unified):
    random = np.random.default_rng(0)
    for _ in range(20):
        points = list(tour(role, domain, unified, random))
        assert points
        for point in points:
            check_fits(point, domain)
