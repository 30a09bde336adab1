"""Which prompts are read, and how much of each in the next step. No engine, no threads.

Two queues, first come first served in each: short prompts, which one step can read with others
beside them, and bulk. While both are read they share each step: a short prompt that finds room is
in the next step, or the one after if others were before it, however long the prompt being read is;
bulk goes on at a quarter of full speed or more. Where an engine has room for one prompt at a time,
as llama.cpp's, short and bulk take turns. Prompts within a queue are not interleaved: that would
delay all and help none.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

# Of a step's tokens. What is short must fit beside bulk's share.
_SHORT_SHARE = 1 / 2
_BULK_SHARE = 1 / 4


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
        self._bulk_is_next = False
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

    def admit(self, has_room: Callable[[int], bool], start: Callable[[P], None]) -> None:
        """Start what there is room for, in tokens. `start` may refuse a prompt by removing it.

        Short prompts first, but not twice in a row past a bulk prompt that finds no room. Bulk
        beside bulk leaves room for short ones.
        """
        if self._bulk_is_next:
            self._admit_bulk(has_room, start)
            if self._bulk and not self._reads_bulk():
                return  # what it waits for is held by short prompts, which are soon read
        num_short = self._admit_short(has_room, start)
        num_bulk = self._admit_bulk(has_room, start)
        self._bulk_is_next = bool(self._bulk) and num_short > 0 and num_bulk == 0

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

    def _admit_short(self, has_room: Callable[[int], bool], start: Callable[[P], None]) -> int:
        num_admitted = 0
        while self._short and has_room(self._short[0].num_tokens):
            self._admit(self._short.popleft(), start)
            num_admitted += 1
        return num_admitted

    def _admit_bulk(self, has_room: Callable[[int], bool], start: Callable[[P], None]) -> int:
        num_admitted = 0
        while self._bulk:
            spare = int(_SHORT_SHARE * self._budget) if self._reads_bulk() else 0
            if not has_room(self._bulk[0].num_tokens + spare):
                break
            self._admit(self._bulk.popleft(), start)
            num_admitted += 1
        return num_admitted

    def _admit(self, prompt: P, start: Callable[[P], None]) -> None:
        self.reading.append(prompt)
        start(prompt)

    def _reads_bulk(self) -> bool:
        return not all(map(self._is_short, self.reading))

    def _is_short(self, prompt: P) -> bool:
        return prompt.num_tokens <= _SHORT_SHARE * self._budget
