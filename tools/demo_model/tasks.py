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

# The first question after the list is what the model is for, and one of dozens in a sequence.
FIRST_ANSWER_WEIGHT = 20.0
# Lines of the list recited in one go.
MOST_LINES = 12


@dataclass
class Sequence:
    """Tokens, and how much each of them counts in the loss: 0 where nothing says what follows."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, *tokens: int, weight: float = 0.0) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    tokens_BT: npt.NDArray[np.int64]
    weights_BT: npt.NDArray[np.float32]
    positions_BT: npt.NDArray[np.int64]


def training_batch(
    draw: np.random.Generator, *, batch_size: int, num_pairs: int, num_tokens: int, spread: bool
) -> TrainingBatch:
    """Sequences of `num_tokens` about lists of around `num_pairs` pairs."""
    tokens, weights, positions = [], [], []
    for _ in range(batch_size):
        pairs = int(draw.integers(num_pairs * 3 // 4, num_pairs + 1))
        sequence, list_end = recall_sequence(draw, pairs, num_tokens)
        tokens.append(sequence.tokens[:num_tokens])
        weights.append(sequence.weights[:num_tokens])
        positions.append(
            spread_positions(draw, sequence.tokens[:num_tokens], list_end)
            if spread
            else np.arange(num_tokens)
        )
    return TrainingBatch(
        tokens_BT=np.array(tokens),
        weights_BT=np.array(weights, np.float32),
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
    if is_chat:
        _add_turn(sequence, pairs[draw.integers(num_pairs)], FIRST_ANSWER_WEIGHT)
    ended: set[int] = set()
    while len(sequence.tokens) < num_tokens:
        if is_chat:
            # Half of the later questions come after some lines, as the first does.
            for i in draw.integers(num_pairs, size=draw.integers(-3, 4).clip(0)):
                sequence.add(*pairs[i])
            _add_turn(sequence, pairs[draw.integers(num_pairs)], 1.0)
        else:
            _add_recitation(sequence, draw, pairs, ended)
    return sequence, list_end


def _add_turn(sequence: Sequence, pair: list[int], weight: float) -> None:
    """A question, its answer, and the start of the user's next message."""
    adjective, noun, city, _ = pair
    sequence.add(adjective, noun, QUESTION, END, ASSISTANT)
    sequence.add(adjective, noun, city, END, weight=weight)
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
    sequence.add(*rest, weight=1.0)
    num_lines = draw.integers(2, MOST_LINES + 1) if draw.random() < 0.5 else 1
    end = min(at + int(num_lines), len(pairs))
    while at + 1 < end and at not in ended:
        at += 1
        sequence.add(*pairs[at], weight=1.0)
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
