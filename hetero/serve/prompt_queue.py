"""Which prompts are read, and how much of each in the next step. No engine, no threads.

Two queues, first come first served in each: short prompts, which one step can read with others
beside them, and bulk. While both wait, a step is shared between them: a short prompt waits for one
step at most, however long the prompt before it is, and bulk goes on at a quarter of full speed or
more. Prompts within a queue are not interleaved: that would delay all and help none.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

# Of a step's tokens. What is short must fit beside bulk's share.
_SHORT_SHARE = 1 / 2
_BULK_SHARE = 1 / 4

# Steps that short prompts may be admitted past a bulk prompt that finds no room. Then they wait
# too, until enough of those being read have ended.
_PATIENCE_STEPS = 8


class Prompt(Protocol):
    @property
    def num_tokens(self) -> int: ...

    @property
    def num_unread(self) -> int: ...


P = TypeVar("P", bound=Prompt)


@dataclass(frozen=True, slots=True)
class Share(Generic[P]):
    prompt: P
    num_tokens: int


class PromptQueue(Generic[P]):
    """`budget_tokens` is the most that a step reads."""

    def __init__(self, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._short: deque[P] = deque()
        self._bulk: deque[P] = deque()
        self._num_passed_over = 0
        self.reading: list[P] = []  # admitted, in the order in which they were

    @property
    def num_waiting(self) -> int:
        return len(self._short) + len(self._bulk)

    def __iter__(self) -> Iterator[P]:
        yield from self.reading
        yield from self._short
        yield from self._bulk

    def push(self, prompt: P) -> None:
        (self._short if self._is_short(prompt) else self._bulk).append(prompt)

    def remove(self, prompt: P) -> None:
        """Read, failed or not wanted any more."""
        for queue in (self.reading, self._short, self._bulk):
            if prompt in queue:
                queue.remove(prompt)

    def admit(self, has_room: Callable[[P], bool], start: Callable[[P], None]) -> None:
        """Start what there is room for. `start` may refuse a prompt by removing it."""
        if self._num_passed_over <= _PATIENCE_STEPS:
            self._admit_from(self._short, has_room, start)
        self._admit_from(self._bulk, has_room, start)
        self._num_passed_over = self._num_passed_over + 1 if self._bulk else 0

    def next_step(self, can_go_on: Callable[[P], bool]) -> list[Share[P]]:
        """The next step's shares, of prompts being read whose rows have somewhere to go."""
        ready = [prompt for prompt in self.reading if can_go_on(prompt)]
        short = [prompt for prompt in ready if self._is_short(prompt)]
        bulk = [prompt for prompt in ready if not self._is_short(prompt)]
        shares: list[Share[P]] = []
        left = self._budget
        for prompt in short:
            kept_for_bulk = min(
                int(_BULK_SHARE * self._budget), sum(other.num_unread for other in bulk)
            )
            if prompt.num_unread <= left - kept_for_bulk or not shares:
                shares.append(Share(prompt, min(prompt.num_unread, left)))
                left -= shares[-1].num_tokens
        for prompt in bulk:
            if left:
                shares.append(Share(prompt, min(prompt.num_unread, left)))
                left -= shares[-1].num_tokens
        return shares

    def _admit_from(
        self, queue: deque[P], has_room: Callable[[P], bool], start: Callable[[P], None]
    ) -> None:
        while queue and has_room(queue[0]):
            prompt = queue.popleft()
            self.reading.append(prompt)
            start(prompt)

    def _is_short(self, prompt: P) -> bool:
        return prompt.num_tokens <= _SHORT_SHARE * self._budget
