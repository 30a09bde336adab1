"""What a prefill engine offers: prompts in, cache rows out as they are computed, last logits."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hetero.errors import ConfigError, EngineError, HeteroError, PlanError
from hetero.kv.layout import KVLayout
from hetero.kv.rows import RowFrame


@dataclass(eq=False, kw_only=True)
class PrefillRun:
    """One prompt that an engine has made room for, and how far it is read."""

    tokens: Sequence[int]
    want_rows: bool
    num_read: int = 0
    num_chunks: int = 0  # steps it took part in so far
    pack_s: float = 0.0  # spent on rotating and quantizing so far
    error: HeteroError | None = None  # why it can't be read further
    last_logits: npt.NDArray[np.float32] | None = None

    @property
    def num_unread(self) -> int:
        return len(self.tokens) - self.num_read

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """(vocabulary,) of the last token; there once all tokens are read."""
        if self.last_logits is None:
            raise EngineError("prefill: need the prompt read to its end before its logits")
        return self.last_logits


@dataclass(frozen=True, slots=True)
class Slice:
    """The next `num_tokens` unread tokens of a run."""

    run: PrefillRun
    num_tokens: int


class PrefillEngine(Protocol):
    name: str
    attention: str  # what computes attention: "sdpa", "triton", "llama"
    layout: KVLayout
    max_prompt_tokens: int
    chunk_tokens: int  # the most tokens of a step, of all its prompts together

    def has_room(self, num_tokens: int) -> bool:
        """Whether `start` has room for such a prompt beside those being read."""

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> PrefillRun:
        """Make room for a prompt. `want_rows=False` computes the logits alone.

        Raises: ConfigError for tokens the model does not have, PlanError if it never has the room.
        """

    def read(self, slices: Sequence[Slice]) -> Iterator[tuple[PrefillRun, RowFrame]]:
        """One step: read a slice of each of these runs. Iteration is where the computing happens.

        A run's rows come layer group by layer group, K and V apart, the tokens of each layer in
        ascending order without gaps. What fails is one run, whose `error` says why; its room is
        still to be ended. If the iteration is dropped, so are the runs: end them.
        """

    def end(self, run: PrefillRun) -> None:
        """Free the room of a run, read or not; its logits stay."""

    def close(self) -> None: ...


def check_prompt(tokens: Sequence[int], max_tokens: int, num_known: int) -> None:
    """num_known: tokens of the vocabulary. Raises: ConfigError for none or others, PlanError for
    more than `max_tokens`."""
    if not tokens:
        raise ConfigError("prompt: need at least one token, have none")
    if len(tokens) > max_tokens:
        raise PlanError(
            f"prompt: need room for {len(tokens)} tokens, have a context of {max_tokens}"
        )
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < num_known:
            raise ConfigError(f"prompt: need token ids from 0 to {num_known - 1}, have {token}")


def read_alone(engine: PrefillEngine, run: PrefillRun) -> Generator[RowFrame, None, None]:
    """Read a prompt to its end with nothing beside it, and end it.

    Raises: the run's error.
    """
    try:
        while run.num_unread:
            piece = Slice(run, min(engine.chunk_tokens, run.num_unread))
            for _, frame in engine.read([piece]):
                yield frame
            if run.error is not None:
                raise run.error
    finally:
        engine.end(run)
