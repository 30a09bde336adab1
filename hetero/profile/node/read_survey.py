"""Surveys a prefill engine through the protocol that nodes use: prompts, read in slices.

For engines whose caches can't be filled from outside: a slice's own cached tokens are those that
were really read before it.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hetero.prefill.engine import PrefillEngine, PrefillRun, Slice
from hetero.profile.node.cache import Cache
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node.points import Domain
from hetero.profile.node.survey import Survey, Timed
from hetero.profile.node_profile import Sample
from hetero.profile.random_text import RandomText
from hetero.profile.work import Work, chunk_work

# Of the pilot, between prompts.
_PILOT_TOKENS = 64

# Of each size: with nothing before it, and after as many tokens.
_CORNER_SLICES = 2

_NUM_READINGS = 2


class _Reading(NamedTuple):
    """Of one slice."""

    rows: int
    cached: int
    seconds: float


class ReadSurvey:
    """What an engine's steps cost, of one prompt at a time."""

    def __init__(
        self,
        engine: PrefillEngine,
        context_tokens: int,
        vocab_size: int,
        *,
        unified: bool = False,
    ) -> None:
        self.cache = Cache(unified, engine.layout.k_type, engine.layout.v_type)
        self._engine = engine
        self._longest = min(context_tokens, engine.max_prompt_tokens)
        domain = Domain(1, self._longest, min(engine.chunk_tokens, self._longest))
        self._most_rows = domain.chunk_tokens
        self.survey = Survey([self.cache], domain.knots("prefill"))
        self._knots = domain.knots("prefill")
        self._random = np.random.default_rng(0)
        self._text = RandomText(vocab_size)
        # A pilot is the same work each time, down to the experts that it wakes.
        self._pilot_prompt = self._text.draw(min(_PILOT_TOKENS, self._most_rows)).tolist()
        self._corners: set[Work] = set()
        self.pilot = PilotLog()

    def run(self, seconds: float) -> None:
        """Until it is known well enough, or the time is over. Raises: the engine's errors."""
        deadline = time.monotonic() + seconds
        try:
            self._fly()
            for rows in self._knots:
                self._read([rows] * _CORNER_SLICES, is_drawn=False, deadline=deadline)
            while time.monotonic() < deadline and not self.survey.is_settled(self.cache):
                self._read(self._drawn_slices(), is_drawn=True, deadline=deadline)
        finally:
            self.survey.set_speeds(self.pilot.speed)

    def _drawn_slices(self) -> list[int]:
        """Of one prompt, which is mostly read in whole chunks, as prompts are."""
        slices: list[int] = []
        longest = np.exp(self._random.uniform(np.log(self._most_rows), np.log(self._longest)))
        while sum(slices) < longest:
            is_whole = self._random.random() < 0.5
            rows = np.exp(self._random.uniform(0, np.log(self._most_rows)))
            slices.append(self._most_rows if is_whole else round(float(rows)))
        return slices

    def _read(self, slices: list[int], *, is_drawn: bool, deadline: float) -> None:
        """One prompt, twice: an engine's first step of a size may take longer, since memory is
        asked for and kernels are made. A sample is the faster reading of a slice."""
        tokens = self._text.draw(min(sum(slices), self._longest)).tolist()
        now = time.monotonic()
        # By half of the time that is left, so that there is as much again for the second one.
        first = self._readings(tokens, slices, now + (deadline - now) / 2)
        again = self._readings(tokens, slices[: len(first)], deadline)
        run_index = self._fly()
        for both in zip(first, again, strict=False):  # the time may be over
            self._add(min(both, key=lambda reading: reading.seconds), run_index, is_drawn=is_drawn)

    def _readings(
        self, tokens: Sequence[int], slices: Sequence[int], until: float
    ) -> list[_Reading]:
        run = self._engine.start(tokens)
        found: list[_Reading] = []
        try:
            for rows in slices:
                rows = min(rows, run.num_unread)
                if not rows or time.monotonic() > until:
                    break
                cached = run.num_read
                found.append(_Reading(rows, cached, _step_s(self._engine, run, rows)))
        finally:
            self._engine.end(run)
        return found

    def _add(self, reading: _Reading, run_index: int, *, is_drawn: bool) -> None:
        work = chunk_work(reading.rows, reading.cached, 0, self.cache.unified)
        if not is_drawn:
            self._corners.add(work)
        sample = Sample(
            work=work,
            seconds=reading.seconds,
            speed=self.pilot.speed(run_index),
            repeats=_NUM_READINGS,
            drawn=work not in self._corners,
        )
        found = Timed(sample, run_index)
        # Of a step that is known already a prediction would be no test.
        if is_drawn and not self.survey.times(self.cache, work)[0]:
            self.survey.add_drawn(self.cache, found, self.survey.ratio(self.cache, found))
        else:
            self.survey.add(self.cache, found)

    def _fly(self) -> int:
        """The index of this run of the pilot."""
        run = self._engine.start(self._pilot_prompt)
        try:
            return self.pilot.add([_step_s(self._engine, run, run.num_unread)])
        finally:
            self._engine.end(run)


def _step_s(engine: PrefillEngine, run: PrefillRun, rows: int) -> float:
    started = time.perf_counter()
    for _ in engine.read([Slice(run, rows)]):
        pass
    seconds = time.perf_counter() - started
    if run.error is not None:
        raise run.error
    return seconds
