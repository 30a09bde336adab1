"""Our decode engine, driven as a decode node drives it: prompts arrive as states."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetero.decode.engine import Admitted, DecodeConfig, DecodeEngine
from hetero.decode.sequence import Job
from hetero.errors import EngineError
from hetero.kv.layout import KVLayout
from hetero.llama.library import Owned
from hetero.messages import Failed, Finished, Generated, Joined, Sampling, Token
from hetero.profile.states import States

# No sequence may end by itself while it is timed.
GREEDY = Sampling(temperature=0, ignore_eos=True)

# Any token will do to go on from.
FIRST_TOKEN = 3

# Of the engines whose steps should cost next to nothing.
_SHORT_PROMPT_TOKENS = 32


class DrivenEngine(Owned):
    """Sequences are named by `arrive`, and leave only when told to."""

    def __init__(
        self,
        path: Path,
        layout: KVLayout,
        *,
        num_slots: int,
        context_tokens: int,
        num_threads: int,
        sampling: Sampling = GREEDY,
        unified: bool = False,
    ) -> None:
        config = DecodeConfig(
            num_slots=num_slots,
            context_tokens=context_tokens,
            num_threads=num_threads,
            unified=unified,
        )
        self.engine = DecodeEngine(path, layout, config)
        self.lengths: dict[str, int] = {}  # tokens in the cache, of those that run
        self._context_tokens = context_tokens
        self._sampling = sampling
        self._arriving: dict[str, tuple[npt.NDArray[np.uint8], int]] = {}
        self._num_arrived = 0

    @property
    def num_streams(self) -> int:
        return self.engine.context.config.num_streams

    def arrive(self, blob: npt.NDArray[np.uint8], num_tokens: int) -> None:
        """A prompt's state has come: it is admitted in the next step, restored in the one after."""
        name = f"s{self._num_arrived}"
        self._num_arrived += 1
        self._arriving[name] = blob, num_tokens
        self.engine.submit(
            Job(
                request_id=name,
                num_prompt_tokens=num_tokens,
                max_tokens=self._context_tokens - num_tokens,
                num_choices=1,
                sampling=self._sampling,
            )
        )

    def step(self) -> int:
        """One step; the tokens it gave."""
        num_tokens = 0
        for event in self.engine.step():
            match event:
                case Generated():
                    num_tokens += len(event.tokens)
                    for token in event.tokens:
                        self.lengths[token.request_id] += 1
                case Admitted():
                    name = event.job.request_id
                    self.engine.join(
                        name, self._arriving[name][0], (Token(name, 0, 0, FIRST_TOKEN),)
                    )
                case Joined():
                    _, self.lengths[event.request_id] = self._arriving.pop(event.request_id)
                case Finished() | Failed():
                    raise EngineError(f"benchmark: need sequences that run on, have {event}")
        return num_tokens

    def fill(self, num_sequences: int) -> None:
        """Step until this many run; they have arrived before."""
        while len(self.lengths) < num_sequences:
            self.step()

    def leave(self, name: str) -> None:
        del self.lengths[name]
        self.engine.cancel(name)

    def close(self) -> None:
        self.engine.close()


@contextmanager
def running_engines(
    path: Path,
    layout: KVLayout,
    samplings: Mapping[str, Sampling],
    size: int,
    num_steps: int,
    num_threads: int,
) -> Iterator[dict[str, DrivenEngine]]:
    """An engine per way of sampling, `size` short sequences running in each, for so many steps."""
    with ExitStack() as stack:
        engines = {}
        for name, sampling in samplings.items():
            driven = engines[name] = stack.enter_context(
                DrivenEngine(
                    path,
                    layout,
                    num_slots=size,
                    # The first of `size` sequences takes a step while each other one joins.
                    context_tokens=_SHORT_PROMPT_TOKENS + size + num_steps + 2,
                    num_threads=num_threads,
                    sampling=sampling,
                )
            )
            states = States(driven.engine.model, layout, num_threads=num_threads)
            for seed in range(size):
                blob = states.make(_SHORT_PROMPT_TOKENS, driven.num_streams, seed)
                driven.arrive(blob, _SHORT_PROMPT_TOKENS)
            driven.fill(size)
        yield engines
