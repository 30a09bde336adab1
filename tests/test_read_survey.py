"""Surveys through a prefill engine's own protocol: of one whose true costs are known, by a clock
that only its steps move, and of llama.cpp.
"""

from types import SimpleNamespace

import pytest

from hetero.cli.model import model_path
from hetero.errors import PlanError
from hetero.kv.layout import model_layout
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.engine import PrefillRun
from hetero.prefill.llama_engine import LlamaEngine
from hetero.profile.node import read_survey
from hetero.profile.node.read_survey import ReadSurvey
from hetero.profile.work import chunk_work

VOCAB = 1000
COLD_S = 1.0


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def perf_counter(self):
        return self.now


class Engine:
    """A step takes a second per token and a hundredth per token read before; the first one of its
    size `COLD_S` more."""

    layout = SimpleNamespace(k_type="f16", v_type="f16")

    def __init__(self, clock, context_tokens, chunk_tokens):
        self.clock = clock
        self.max_prompt_tokens = context_tokens
        self.chunk_tokens = chunk_tokens
        self.prompts = []
        self.slices = []  # rows, cached
        self._sizes = set()

    def true_s(self, rows, cached):
        return rows + 0.01 * cached

    def start(self, tokens):
        assert 0 < len(tokens) <= self.max_prompt_tokens
        self.prompts.append(tuple(tokens))
        return PrefillRun(tokens=tokens, want_rows=True)

    def read(self, slices):
        [(run, rows)] = [(piece.run, piece.num_tokens) for piece in slices]
        assert 0 < rows <= min(self.chunk_tokens, run.num_unread)
        self.slices.append((rows, run.num_read))
        self.clock.now += self.true_s(rows, run.num_read)
        if rows not in self._sizes:
            self._sizes.add(rows)
            self.clock.now += COLD_S
        run.num_read += rows
        yield from ()

    def end(self, run):
        pass


class Erratic(Engine):
    """Never known well enough."""

    def true_s(self, rows, cached):
        return rows * (1 + len(self.slices) * 7 % 5)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(read_survey, "time", clock)
    return clock


def surveyed(engine, seconds):
    survey = ReadSurvey(engine, engine.max_prompt_tokens, VOCAB)
    survey.run(seconds)
    return survey


def samples(survey):
    return survey.survey.samples[survey.cache]


def work(rows, cached):
    return chunk_work(rows, cached, 0, False)


def test_prompts_are_of_text_and_no_two_alike_but_for_each_ones_second_reading(clock):
    engine = Engine(clock, 512, 64)
    survey = surveyed(engine, 20_000)
    pilot = engine.prompts[0]
    others = [prompt for prompt in engine.prompts if prompt != pilot]
    assert engine.prompts.count(pilot) == len(survey.pilot.seconds)
    assert others[::2] == others[1::2]
    assert len({prompt for prompt in others if len(prompt) > 4}) == len(
        [prompt for prompt in others[::2] if len(prompt) > 4]
    )
    tokens = {token for prompt in engine.prompts for token in prompt}
    assert min(tokens) >= 3
    assert max(tokens) < VOCAB
    assert len(tokens) > VOCAB // 5
    assert len(set(pilot)) > len(pilot) // 2


def test_no_sample_is_of_a_size_that_the_engine_had_not_seen(clock):
    engine = Engine(clock, 512, 64)
    survey = surveyed(engine, 20_000)
    true_s = {work(rows, cached): engine.true_s(rows, cached) for rows, cached in engine.slices}
    assert any(sample.drawn for sample in samples(survey))
    for sample in samples(survey):
        assert sample.seconds == pytest.approx(true_s[sample.work])


def test_prompts_from_their_first_token_are_measured(clock):
    survey = surveyed(Engine(clock, 512, 64), 20_000)
    drawn = [sample.work for sample in samples(survey) if sample.drawn]
    assert any(work.rows == work.cells for work in drawn)


def test_a_step_that_was_measured_already_is_no_prediction(clock):
    """In so small a context steps come again."""
    engine = Erratic(clock, 16, 8)
    survey = ReadSurvey(engine, 16, VOCAB)
    tested, add_drawn = [], survey.survey.add_drawn

    def adding(cache, timed, first_ratio):
        tested.append(timed.sample.work)
        add_drawn(cache, timed, first_ratio)

    survey.survey.add_drawn = adding
    survey.run(3000)
    corners = {work(rows, cached) for rows in (1, 2, 4, 8) for cached in (0, rows)}
    assert len(tested) > 8
    assert len(tested) == len(set(tested))
    assert not corners & set(tested)
    # They are samples all the same: corners stay corners, and what was drawn is left out by folds.
    times = [survey.survey.times(survey.cache, work)[0] for work in (*corners, *tested)]
    assert max(times[: len(corners)]) > 1
    assert max(times[len(corners) :]) > 1
    for sample in samples(survey):
        assert sample.drawn == (sample.work not in corners)


@pytest.mark.parametrize(("context", "chunk"), [(64, 48), (64, 64), (64, 512), (64, 33), (64, 32)])
def test_every_size_has_a_corner_even_a_chunk_of_most_of_the_context(clock, context, chunk):
    survey = surveyed(Engine(clock, context, chunk), 2000)
    largest = min(context, chunk)
    corners = {sample.work for sample in samples(survey) if not sample.drawn}
    for rows in {1, 2, 4, 8, 16, largest}:
        assert work(rows, 0) in corners
    assert survey.survey.knots[-1] == largest


def test_prompts_that_would_outlast_the_time_are_read_as_far_as_half_of_it(clock):
    engine = Engine(clock, 4096, 64)
    survey = surveyed(engine, 1500)
    drawn = [sample for sample in samples(survey) if sample.drawn]
    assert drawn
    assert all(sample.repeats == 2 for sample in drawn)
    # A step that has begun is finished, and the pilot flies once more.
    assert clock.now < 1500 + 2 * (engine.true_s(64, 4096) + COLD_S)


def test_an_engine_is_surveyed_through_its_own_protocol():
    path = model_path("demo")
    spec = gguf_to_spec(GGUFFile.open(path))
    layout = model_layout(spec, "q8_0", "q8_0")
    engine = LlamaEngine(path, layout, context_tokens=512, num_threads=1, chunk_tokens=64)
    survey = ReadSurvey(engine, 512, spec.vocab_size)
    survey.run(2.0)
    engine.close()
    samples = survey.survey.samples[survey.cache]
    assert {1, 2, 4, 8, 16, 64} <= {sample.work.rows for sample in samples}
    # Later slices of a prompt have cached tokens of their own.
    assert any(sample.work.cells > sample.work.rows for sample in samples)
    assert survey.survey.cost(survey.cache).seconds(chunk_work(64, 0, 0, False)) > 0


def test_a_prompt_that_can_not_be_read_is_the_engines_error():
    path = model_path("demo")
    spec = gguf_to_spec(GGUFFile.open(path))
    layout = model_layout(spec, "q8_0", "q8_0")
    engine = LlamaEngine(path, layout, context_tokens=256, num_threads=1, chunk_tokens=64)
    survey = ReadSurvey(engine, 256, spec.vocab_size)
    survey._longest = 10_000
    with pytest.raises(PlanError):
        survey._read([300, 300], is_drawn=False, deadline=float("inf"))
    engine.close()
