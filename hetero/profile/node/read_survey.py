"""Surveys a prefill engine through the protocol that nodes use: prompts, read in slices.

For engines whose caches can't be filled from outside: a slice's own cached tokens are those that
were really read before it.
"""

import time

import numpy as np

from hetero.prefill.engine import PrefillEngine, PrefillRun, Slice
from hetero.profile.node.fitting import Cache
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node.points import Domain
from hetero.profile.node.survey import Survey, Timed
from hetero.profile.node_profile import Sample
from hetero.profile.work import chunk_work

# Of the pilot, between prompts.
_PILOT_TOKENS = 64

# A warmed-up slice of each size, then prompts at random.
_CORNER_REPEATS = 2


class ReadSurvey:
    """What an engine's steps cost, of one prompt at a time."""

    def __init__(
        self, engine: PrefillEngine, context_tokens: int, *, unified: bool = False
    ) -> None:
        self.cache = Cache(unified, engine.layout.k_type, engine.layout.v_type)
        self._engine = engine
        self._longest = min(context_tokens, engine.max_prompt_tokens)
        domain = Domain(1, self._longest, min(engine.chunk_tokens, self._longest))
        self._most_rows = domain.chunk_tokens
        self.survey = Survey("prefill", [self.cache], domain.knots("prefill"))
        self._knots = domain.knots("prefill")
        self._random = np.random.default_rng(0)
        self.pilot = PilotLog()

    def run(self, seconds: float) -> None:
        """Until it is known well enough, or the time is over. Raises: the engine's errors."""
        deadline = time.monotonic() + seconds
        try:
            self._fly()
            for rows in self._knots:
                self._read([rows] * _CORNER_REPEATS, is_drawn=False, deadline=deadline)
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
        """One prompt, each slice of it a sample: but for the first, which warms up."""
        num_tokens = min(sum(slices), self._longest)
        run = self._engine.start([0] * num_tokens)
        timed: list[tuple[int, int, float]] = []  # rows, cached, seconds
        try:
            for rows in slices:
                rows = min(rows, run.num_unread)
                if not rows or time.monotonic() > deadline:
                    break
                timed.append((rows, run.num_read, _step_s(self._engine, run, rows)))
        finally:
            self._engine.end(run)
        run_index = self._fly()
        for rows, cached, seconds in timed[0 if is_drawn else 1 :]:
            sample = Sample(
                work=chunk_work(rows, cached, 0, self.cache.unified),
                seconds=seconds,
                speed=self.pilot.speed(run_index),
                repeats=1,
                drawn=is_drawn,
            )
            found = Timed(sample, run_index)
            if is_drawn:
                self.survey.add_drawn(self.cache, found, self.survey.ratio(self.cache, found))
            else:
                self.survey.add(self.cache, found)

    def _fly(self) -> int:
        """The index of this run of the pilot."""
        run = self._engine.start([0] * min(_PILOT_TOKENS, self._most_rows))
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
