"""A turn to a prompt of exactly its tokens. A block's id, with the seed, says what is in it: equal
blocks are equal tokens, on every machine.

Where the server has /tokenize and takes ids as prompts, they are ids, drawn from those of plain
English text: control tokens and bytes, which models treat as something else, do not occur. Where
it does not, they are words, each of which the server was asked to count.
"""

from dataclasses import replace
from typing import Protocol

import msgspec
import numpy as np

from hetero.errors import PeerError
from hetero.experiment.load.endpoint import Endpoint, Mode, Questions, with_known_fields
from hetero.workload.schedule import Schedule, Turn

# What a vocabulary of this size has in common with text of a hundred words; fewer are no language.
_MIN_POOL = 8
_SEED_BITS = 2**64 - 1
# Made before the load begins, so that nothing but sending remains; the rest when it is needed.
_MAX_PREPARED_BYTES = 256 * 2**20

_TEXT = """
The old lighthouse keeper climbed the narrow stairs every evening before the sun went down. He
carried a small lamp, a piece of bread and a book about the history of the town below. People in
the market said that he had once been a captain, and that he could read the weather better than
any machine. When the wind turned north, children ran to the harbour to watch the boats come home;
their fathers worked quickly, because rain was never far behind. On Sunday morning the church bell
rang twice, shops opened late, and somebody always played music near the bridge. Nobody knew how
long the summer would last that year, but most of them remembered the winter, when ice covered the
river for seven weeks and the road to the city was closed. Then they had shared wood, potatoes,
coffee and stories, and learned that a good neighbour is worth more than money in the bank.
"""
_FIRST_WORD = "the"
# A small vocabulary spells most of them; letters fill what they leave.
_COMMON = """
house water light time year people way day man thing woman life child world school state family
student group country problem hand part place case week company system program question work
a b x
"""
_REPEATS = 16


class Prompts(Protocol):
    kind: str  # for the report

    def json(self, turn: Turn, block_tokens: int) -> bytes: ...

    def prepare(self, schedule: Schedule) -> None:
        """Make them before the load begins."""


class TokenPrompts:
    kind = "token ids"

    def __init__(self, pool: list[int], *, seed: int) -> None:
        self._pool = np.array([str(token).encode() for token in pool], dtype=object)
        self._seed = seed
        self._blocks: dict[tuple[int, int], bytes] = {}
        self._num_bytes = 0

    def json(self, turn: Turn, block_tokens: int) -> bytes:
        lengths = _lengths(turn, block_tokens)
        blocks = (
            self._block(block, length) for block, length in zip(turn.blocks, lengths, strict=True)
        )
        return b"[" + b",".join(blocks) + b"]"

    def prepare(self, schedule: Schedule) -> None:
        for session in schedule.sessions:
            for turn in session.turns:
                if self._num_bytes > _MAX_PREPARED_BYTES:
                    return
                self.json(turn, schedule.block_tokens)

    def _block(self, block: int, length: int) -> bytes:
        found = self._blocks.get((block, length))
        if found is not None:
            return found
        drawn = _random(self._seed, block).integers(len(self._pool), size=length)
        text = b",".join(self._pool[drawn])
        if self._num_bytes <= _MAX_PREPARED_BYTES:
            self._blocks[block, length] = text
            self._num_bytes += len(text)
        return text


class TextPrompts:
    """costs: tokens of each word within a text. extra_tokens: of a text of the first word alone,
    with what the server puts around it."""

    kind = "text"

    def __init__(self, costs: dict[str, int], extra_tokens: int, *, seed: int) -> None:
        self._words = sorted(costs, key=lambda word: (costs[word], word))
        self._costs = costs
        self._extra_tokens = extra_tokens
        self._seed = seed

    def json(self, turn: Turn, block_tokens: int) -> bytes:
        words = [_FIRST_WORD]
        missing = turn.prompt_tokens - self._extra_tokens
        for index, block in enumerate(turn.blocks):
            is_last = index == len(turn.blocks) - 1
            chosen = self._fill(block, missing if is_last else min(block_tokens, missing))
            words += chosen
            missing -= sum(self._costs[word] for word in chosen)
        return msgspec.json.encode(" ".join(words))

    def prepare(self, schedule: Schedule) -> None:
        """Nothing to keep: a text is no longer than its tokens."""

    def _fill(self, block: int, num_tokens: int) -> list[str]:
        drawn = _random(self._seed, block).integers(len(self._words), size=max(num_tokens, 1))
        chosen: list[str] = []
        for index in drawn:
            word = self._words[index]
            if self._costs[word] > num_tokens:
                word = self._words[0]
            if self._costs[word] > num_tokens:
                break
            chosen.append(word)
            num_tokens -= self._costs[word]
        return chosen


def find_prompts(
    questions: Questions, endpoint: Endpoint, mode: Mode, *, seed: int
) -> tuple[Endpoint, Prompts]:
    """What this server takes, ids first; and the endpoint with the fields it knows.

    Raises: PeerError if it takes none of both.
    """
    if mode != "chat":
        pool = _token_pool(questions, endpoint)
        if len(pool) >= _MIN_POOL:
            found = with_known_fields(questions, endpoint, msgspec.json.encode(pool[:_MIN_POOL]))
            if found is not None:
                return found, TokenPrompts(pool, seed=seed)
    for is_chat in {"auto": (True, False), "chat": (True,), "completions": (False,)}[mode]:
        asked = replace(endpoint, is_chat=is_chat)
        found = with_known_fields(questions, asked, msgspec.json.encode(_FIRST_WORD))
        if found is not None:
            costs, extra_tokens = _word_costs(questions, found)
            return found, TextPrompts(costs, extra_tokens, seed=seed)
    raise PeerError(
        f"{endpoint.url.geturl()}: need a server that completes a text, have {questions.refusal}"
    )


def _token_pool(questions: Questions, endpoint: Endpoint) -> list[int]:
    """Ids of plain text, ascending; none where there is no /tokenize."""
    text = " ".join(_TEXT.split())
    if endpoint.server == "vllm":
        fields = {"model": endpoint.model, "prompt": text, "add_special_tokens": False}
    else:
        fields = {"content": text, "add_special": False}
    answer = questions.post("/tokenize", msgspec.json.encode(fields))
    if answer.status_code != 200:
        return []
    try:
        tokens = msgspec.json.decode(answer.content, type=_Tokens).tokens
    except msgspec.DecodeError:
        return []
    return sorted(set(tokens))


class _Tokens(msgspec.Struct):
    tokens: list[int]


def _word_costs(questions: Questions, endpoint: Endpoint) -> tuple[dict[str, int], int]:
    """Tokens of each word, and of a text of the first word alone."""

    def count(words: list[str]) -> int:
        counted = questions.count(endpoint, msgspec.json.encode(" ".join(words)))
        if counted is None:
            raise PeerError(f"{endpoint.url.geturl()}: need {words} counted, have it refused")
        return counted

    extra_tokens = count([_FIRST_WORD])
    costs: dict[str, int] = {}
    for word in _COMMON.split():
        cost, rest = divmod(count([_FIRST_WORD, *[word] * _REPEATS]) - extra_tokens, _REPEATS)
        if cost > 0 and rest == 0:
            costs[word] = cost
    if not costs:
        raise PeerError(
            f"{endpoint.url.geturl()}: need words of a fixed number of tokens, have none"
        )
    return costs, extra_tokens


def _lengths(turn: Turn, block_tokens: int) -> list[int]:
    """Of each block; the last is cut."""
    whole = [block_tokens] * (len(turn.blocks) - 1)
    return [*whole, turn.prompt_tokens - block_tokens * len(whole)]


def _random(seed: int, block: int) -> np.random.Generator:
    return np.random.default_rng([seed & _SEED_BITS, block & _SEED_BITS])
