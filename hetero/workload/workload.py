"""A workload: distributions of what a load consists of, from which schedules are drawn."""

from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from hetero.errors import ConfigError
from hetero.workload.arrivals import arrival_times, burstiness
from hetero.workload.distribution import Fixed, distribution
from hetero.workload.schedule import Schedule, Session, Turn, num_blocks
from hetero.workload.sizes import check_sizes

# Shared text is shared to the block: small enough to tell a system prompt of 100 tokens from none.
DRAWN_BLOCK_TOKENS = 64

_Drawn = str | int | float  # as `distribution.py` writes them

_COUNTS = ("prompt", "output", "turns", "followup")


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each session: a text shared with others (`prefix`), then `prompt` new tokens and an answer of
    `output`; then, `think` seconds after each answer, turns whose prompt is the one before, its
    answer, and `followup` new tokens.

    prefix: length of a shared text in tokens, drawn once for each of `prefixes` of them and taken
    to whole blocks of 64. prefix_skew: exponent of Zipf's law by which sessions take them, the
    i-th as often as i ** -skew; 0: all alike.
    rate: sessions per second that belong to the workload, None: it says nothing of that.
    """

    name: str = "by hand"
    prompt: _Drawn = 512
    output: _Drawn = 128
    turns: _Drawn = 1
    followup: _Drawn | None = None  # None: as prompt
    think: _Drawn = 0
    prefix: _Drawn = 0
    prefixes: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    prefix_skew: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    arrivals: str = "poisson"
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        try:
            burstiness(self.arrivals)
            for field in ("prompt", "output", "turns", "followup", "think", "prefix"):
                _check_drawn(field, getattr(self, field))
        except ConfigError as error:
            raise ConfigError(f"workload {self.name}: {error}") from None

    def draw(
        self,
        seed: int,
        *,
        num_sessions: int | None = None,
        num_requests: int | None = None,
        rate: float | None = None,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        max_tokens_per_sequence: int | None = None,
    ) -> Schedule:
        """Sessions until one of the two numbers is reached; the last may be cut short by requests.

        Equal seeds give equal schedules. Each distribution has random numbers of its own: neither
        a rate nor a length given here changes anything else.

        rate: sessions per second; None: closed loop.
        prompt_tokens, output_tokens: instead of the drawn ones; of the prompt, the first turn's
        with what is shared in it.
        max_tokens_per_sequence: of prompt and answer. A first turn that does not fit is cut short,
        though no length given here is, and counted (`num_clipped`); a session ends before a later
        one (`num_dropped`).

        Raises: ConfigError
        """
        if seed < 0:
            raise ConfigError(f"seed: need 0 or more, have {seed}")
        if num_sessions is None and num_requests is None:
            raise ConfigError(f"workload {self.name}: need a number of sessions or of requests")
        check_sizes(self.name, prompt_tokens, output_tokens, max_tokens_per_sequence)
        drawing = _Drawing(self, seed, prompt_tokens, output_tokens, max_tokens_per_sequence)
        sessions: list[Session] = []
        wanted = num_requests
        while (num_sessions is None or len(sessions) < num_sessions) and wanted != 0:
            turns = drawing.session()[:wanted]
            wanted = None if wanted is None else wanted - len(turns)
            sessions.append(Session(turns=turns))
        if rate is not None:
            times = arrival_times(self.arrivals, rate, len(sessions), _random(seed, "arrivals"))
            sessions = [
                msgspec.structs.replace(session, at_s=at_s)
                for session, at_s in zip(sessions, times, strict=True)
            ]
        return Schedule(
            name=self.name,
            sessions=tuple(sessions),
            block_tokens=DRAWN_BLOCK_TOKENS,
            num_clipped=drawing.num_clipped,
            num_dropped=drawing.num_dropped,
        )


def _check_drawn(field: str, written: _Drawn | None) -> None:
    if written is None:
        return
    try:
        drawn = distribution(written)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    # What a distribution gives below 1 is taken for 1; who writes a plain 0 means something else.
    if field in _COUNTS and isinstance(drawn, Fixed) and drawn.always < 1:
        raise ConfigError(f"{field}: need one or more, have {written}")


# A stream of random numbers each. New ones at the end: the place of one is part of its seed.
_STREAMS = ("prefix", "choice", "prompt", "output", "turns", "followup", "think", "arrivals")


def _random(seed: int, stream: str) -> np.random.Generator:
    place = _STREAMS.index(stream)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(place,)))


class _Sizes(NamedTuple):
    prompt: int
    output: int
    think_s: float


class _Drawing:
    """One schedule being drawn. The counts are of the sessions drawn so far."""

    def __init__(
        self,
        workload: Workload,
        seed: int,
        prompt_tokens: int | None,
        output_tokens: int | None,
        max_tokens: int | None,
    ) -> None:
        self.num_clipped = 0
        self.num_dropped = 0
        self._max_tokens = max_tokens
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._random = {stream: _random(seed, stream) for stream in _STREAMS}
        self._prompt = distribution(workload.prompt)
        self._output = distribution(workload.output if output_tokens is None else output_tokens)
        self._turns = distribution(workload.turns)
        followup = workload.prompt if workload.followup is None else workload.followup
        self._followup = distribution(followup)
        self._think = distribution(workload.think)
        self._next_block = 0
        self._prefixes = self._shared_texts(workload)
        weights = np.arange(1, workload.prefixes + 1) ** -workload.prefix_skew
        self._cumulative = np.cumsum(weights) / weights.sum()

    def session(self) -> tuple[Turn, ...]:
        shared = self._prefixes[self._choice()]
        drawn = len(shared) * DRAWN_BLOCK_TOKENS + self._prompt.draw_count(self._random["prompt"])
        prompt = self._prompt_tokens or drawn
        turns = []
        think_s = 0.0
        # All are drawn, also those left out, so that the next session's are what they would be.
        for _ in range(self._turns.draw_count(self._random["turns"])):
            output = self._output.draw_count(self._random["output"])
            turns.append(_Sizes(prompt, output, think_s))
            prompt += output + self._followup.draw_count(self._random["followup"])
            think_s = self._think.draw(self._random["think"])
        fitting = self._fitted(turns)
        # What is shared of a prompt made shorter stays the same part of it: else a short one
        # would be nothing but shared text.
        num_shared = len(shared) * min(fitting[0].prompt, drawn) // drawn
        blocks = self._session_blocks(shared[:num_shared], fitting[-1].prompt)
        return tuple(
            Turn(
                prompt_tokens=turn.prompt,
                output_tokens=turn.output,
                think_s=turn.think_s,
                blocks=blocks[: num_blocks(turn.prompt, DRAWN_BLOCK_TOKENS)],
            )
            for turn in fitting
        )

    def _fitted(self, turns: list[_Sizes]) -> list[_Sizes]:
        limit = self._max_tokens
        if limit is None:
            return turns
        fitting = [turn for turn in turns if turn.prompt + turn.output <= limit]
        self.num_dropped += len(turns) - max(1, len(fitting))
        if fitting:
            return fitting
        self.num_clipped += 1
        prompt, output, think_s = turns[0]
        if self._prompt_tokens is not None:
            output = limit - prompt
        elif self._output_tokens is None:
            # Either gets half of the room, or what the other leaves of it.
            output = min(output, max(limit // 2, limit - prompt))
        return [_Sizes(min(prompt, limit - output), output, think_s)]

    def _choice(self) -> int:
        share = self._random["choice"].random()
        return min(int(np.searchsorted(self._cumulative, share)), len(self._prefixes) - 1)

    def _shared_texts(self, workload: Workload) -> list[tuple[int, ...]]:
        length = distribution(workload.prefix)
        tokens = [length.draw(self._random["prefix"]) for _ in range(workload.prefixes)]
        return [self._new_blocks(round(count / DRAWN_BLOCK_TOKENS)) for count in tokens]

    def _session_blocks(self, shared: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        """Of a session's whole text: each turn's prompt is a beginning of it."""
        return shared + self._new_blocks(num_blocks(tokens, DRAWN_BLOCK_TOKENS) - len(shared))

    def _new_blocks(self, count: int) -> tuple[int, ...]:
        first = self._next_block
        self._next_block += count
        return tuple(range(first, self._next_block))
