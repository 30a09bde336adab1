"""A prefill engine, opened, surveyed with whole prompts, closed, and what came of it as a fit."""

from collections.abc import Callable
from dataclasses import dataclass

from hetero.errors import HeteroError
from hetero.prefill.engine import PrefillEngine
from hetero.profile.node.foreign_errors import as_engine_errors
from hetero.profile.node.interval import interval_of
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node.read_survey import ReadSurvey
from hetero.profile.node.survey import Survey
from hetero.profile.node_profile import EngineFit, Noise


@dataclass(frozen=True, kw_only=True)
class ClosedEngine:
    """One that is yet to be opened.

    name: for people. device: a fit's, and its pilot's name: no two engines of a profile share it.
    threads: that it is opened with. unified: whether its prompts share a pool of cells. vocab_size:
    of its model.
    """

    name: str
    device: str
    threads: int
    unified: bool
    vocab_size: int
    open: Callable[[], PrefillEngine]  # raises if it can't be made of this model here


@dataclass(frozen=True, kw_only=True)
class ReadFit:
    """Its interval is known when all of the machine's noise is."""

    engine: str
    attention: str
    device: str
    threads: int
    chunk_tokens: int
    survey: Survey
    pilot: PilotLog

    def fits(self, noise: Noise, request_s: float) -> list[EngineFit]:
        """One, or none if there is not a single sample."""
        found = self.survey.fits()
        return [
            EngineFit(
                source="fitted",
                role="prefill",
                engine=self.engine,
                attention=self.attention,
                device=self.device,
                unified=cache.unified,
                kv_k=cache.kv_k,
                kv_v=cache.kv_v,
                threads=self.threads,
                chunk_tokens=self.chunk_tokens,
                cost=cost,
                request_s=request_s,
                interval=interval_of(found.overall, noise),
                error=found.errors[cache],
                samples=self.survey.samples[cache],
            )
            for cache, cost in found.costs.items()
        ]


def measure_read(
    closed: ClosedEngine, context_tokens: int, seconds: float, say: Callable[[str], None]
) -> ReadFit | None:
    """None if the engine can't be made of this model here. What ends a survey early is said, too,
    whosever error it is: llama.cpp's prefill on the CPU is measured in any case."""
    try:
        with as_engine_errors():
            engine = closed.open()
    except HeteroError as error:
        say(f"{closed.name}: not measured: {error}")
        return None
    say(f"surveying {closed.name}")
    try:
        survey = ReadSurvey(engine, context_tokens, closed.vocab_size, unified=closed.unified)
        try:
            with as_engine_errors():
                survey.run(seconds)
        except HeteroError as error:
            say(f"{closed.name}: not measured further: {error}")
    finally:
        engine.close()
    # Nothing of the engine is kept but its names: it holds memory that the next one needs.
    return ReadFit(
        engine=engine.name,
        attention=engine.attention,
        device=closed.device,
        threads=closed.threads,
        chunk_tokens=engine.chunk_tokens,
        survey=survey.survey,
        pilot=survey.pilot,
    )
