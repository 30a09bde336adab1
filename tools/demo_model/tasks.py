"""Training sequences: a list of pairs, then many questions about it, as the model will meet them.

Half of the sequences are chats exactly as the chat template renders them, half are plain text
that goes on with lines of the list. One sequence asks many questions, so that most of its tokens
teach something.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from demo_model.vocabulary import (
    ASSISTANT,
    BOS,
    END,
    FIRST_ADJECTIVE,
    FIRST_CITY,
    FIRST_NOUN,
    NEWLINE,
    QUESTION,
    SYSTEM,
    USER,
)
from hetero.model.demo import CITIES, NOUNS, NUM_KEYS

# Positions a list is spread over in training: the context length that the file promises.
MAX_POSITION = 8192

# Lines of the list recited in one go.
MOST_LINES = 12


@dataclass
class Sequence:
    """Tokens, and which of them the model should predict."""

    tokens: list[int] = field(default_factory=list)
    is_target: list[bool] = field(default_factory=list)

    def add(self, *tokens: int, predicted: bool = False) -> None:
        self.tokens += tokens
        self.is_target += [predicted] * len(tokens)

    def replace_last(self, token: int) -> None:
        self.tokens[-1] = token


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    tokens_BT: npt.NDArray[np.int64]
    is_target_BT: npt.NDArray[np.bool_]
    positions_BT: npt.NDArray[np.int64]


def training_batch(
    draw: np.random.Generator, *, batch_size: int, num_pairs: int, num_tokens: int, spread: bool
) -> TrainingBatch:
    """Sequences of `num_tokens` about lists of around `num_pairs` pairs."""
    tokens, targets, positions = [], [], []
    for _ in range(batch_size):
        pairs = int(draw.integers(num_pairs * 3 // 4, num_pairs + 1))
        sequence, list_end = recall_sequence(draw, pairs, num_tokens)
        tokens.append(sequence.tokens[:num_tokens])
        targets.append(sequence.is_target[:num_tokens])
        positions.append(
            spread_positions(draw, sequence.tokens[:num_tokens], list_end)
            if spread
            else np.arange(num_tokens)
        )
    return TrainingBatch(
        tokens_BT=np.array(tokens),
        is_target_BT=np.array(targets),
        positions_BT=np.array(positions),
    )


def recall_sequence(
    draw: np.random.Generator, num_pairs: int, num_tokens: int
) -> tuple[Sequence, int]:
    """At least `num_tokens` of list and questions, and where the list ends."""
    keys = draw.choice(NUM_KEYS, num_pairs, replace=False)
    adjectives = FIRST_ADJECTIVE + keys // len(NOUNS)
    nouns = FIRST_NOUN + keys % len(NOUNS)
    cities = FIRST_CITY + draw.integers(0, len(CITIES), num_pairs)
    newlines = np.full(num_pairs, NEWLINE)
    pairs = np.stack([adjectives, nouns, cities, newlines], 1).tolist()
    sequence = Sequence()
    is_chat = draw.random() < 0.5
    if is_chat or draw.random() < 0.8:
        sequence.add(BOS)
    if is_chat and draw.random() < 0.3:
        sequence.add(SYSTEM, *_some_text(draw), END)
    if is_chat:
        sequence.add(USER)
    if draw.random() < 0.2:
        sequence.add(*_some_text(draw), NEWLINE)
    for pair in pairs:
        sequence.add(*pair)
    list_end = len(sequence.tokens)
    ended: set[int] = set()
    while len(sequence.tokens) < num_tokens:
        if is_chat:
            _add_turn(sequence, draw, pairs)
        else:
            _add_recitation(sequence, draw, pairs, ended)
    return sequence, list_end


def _add_turn(sequence: Sequence, draw: np.random.Generator, pairs: list[list[int]]) -> None:
    """A question, its answer, and the start of the user's next message.

    Half of the questions come after some lines, as the first does: it is the one that matters.
    """
    if draw.random() < 0.5:
        for i in draw.integers(len(pairs), size=draw.integers(1, 4)):
            sequence.add(*pairs[i])
    adjective, noun, city, _ = pairs[draw.integers(len(pairs))]
    sequence.add(adjective, noun, QUESTION, END, ASSISTANT)
    sequence.add(adjective, noun, city, END, predicted=True)
    sequence.add(USER)


def _add_recitation(
    sequence: Sequence,
    draw: np.random.Generator,
    pairs: list[list[int]],
    ended: set[int],
) -> None:
    """A key of the list, its value, and perhaps the lines that follow it in the list.

    Lines in `ended` were the last of a recitation before: what follows them is no longer sure.
    """
    at = int(draw.integers(len(pairs)))
    adjective, noun, *rest = pairs[at]
    sequence.add(adjective, noun)
    sequence.add(*rest, predicted=True)
    num_lines = draw.integers(2, MOST_LINES + 1) if draw.random() < 0.5 else 1
    end = min(at + int(num_lines), len(pairs))
    while at + 1 < end and at not in ended:
        at += 1
        sequence.add(*pairs[at], predicted=True)
    ended.add(at)


def spread_positions(
    draw: np.random.Generator, tokens: list[int], list_end: int
) -> npt.NDArray[np.int64]:
    """Positions with a few gaps between the list's lines: far pairs at the cost of near ones."""
    steps = np.ones(len(tokens), np.int64)
    steps[0] = 0
    line_starts = 1 + np.flatnonzero(np.array(tokens[:list_end])[:-1] == NEWLINE)
    if draw.random() < 0.5 and len(line_starts):
        spare = draw.integers(MAX_POSITION - len(tokens))
        gaps = draw.choice(line_starts, 4)
        np.add.at(steps, gaps, spare // 4)
    return steps.cumsum()


def _some_text(draw: np.random.Generator) -> list[int]:
    """Printable bytes: what a system message or a sentence around the list looks like."""
    return draw.integers(ord(" "), ord("~") + 1, draw.integers(1, 60)).tolist()  # type: ignore[no-any-return]
