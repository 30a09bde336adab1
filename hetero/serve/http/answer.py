"""The router's updates to text: each choice's stream, where it ends, and what was counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hetero.messages import Finished, Token, TokenLogprob
from hetero.serve.http.text import TextStream
from hetero.serve.http.tokens import Pieces
from hetero.serve.service import Summary, Update

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A token's log-probabilities, and where in its choice's text it begins."""

    offset: int
    logprob: TokenLogprob


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one update added to one choice."""

    choice: int
    text: str
    entries: tuple[Entry, ...]
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None


class Answer:
    """All choices of one request while they come in."""

    def __init__(self, pieces: Pieces, *, num_choices: int, stop: Sequence[str]) -> None:
        self._choices = [_Choice(index, pieces, stop) for index in range(num_choices)]
        self._num_finished = 0
        # The router may send several, each knowing more than the one before.
        self.summary: Summary | None = None

    @property
    def ended(self) -> bool:
        return all(choice.ended for choice in self._choices)

    @property
    def wanted(self) -> bool:
        """Whether the router still has something to say. Not if a stop string ended the last
        choice: the engine, which knows tokens only, would go on."""
        return not self.ended or self._num_finished == len(self._choices)

    @property
    def num_tokens(self) -> int:
        """Tokens of all choices: up to the one that completed a stop string; an end token, which
        is no text and is never sent here, does not count."""
        return sum(choice.num_tokens for choice in self._choices)

    def add(self, update: Update) -> Delta | None:
        """What to tell the client; None if this update changed nothing that is certain yet."""
        if isinstance(update, Summary):
            self.summary = update
            return None
        choice = self._choices[update.choice]
        if isinstance(update, Finished):
            self._num_finished += 1
            return None if choice.ended else choice.finish(update.reason)
        return None if choice.ended else choice.push(update)


class _Choice:
    def __init__(self, index: int, pieces: Pieces, stop: Sequence[str]) -> None:
        self._index = index
        self._pieces = pieces
        self._text = TextStream(stop)
        self._num_released = 0
        self._waiting: list[Entry] = []  # of tokens whose text is held back
        self._untold: list[int] = []  # tokens since the last delta
        self.num_tokens = 0
        self.ended = False

    def push(self, token: Token) -> Delta | None:
        self.num_tokens += 1
        self._untold.append(token.token)
        if token.logprob is not None:
            offset = self._num_released + self._text.num_held
            self._waiting.append(Entry(offset=offset, logprob=token.logprob))
        text = self._text.push(self._pieces[token.token])
        if self._text.stopped:
            return self._delta(text, "stop")
        if not text and (self._text.holds_text or not self._waiting):
            return None
        return self._delta(text, None)

    def finish(self, reason: FinishReason) -> Delta:
        text = self._text.finish()
        return self._delta(text, "stop" if self._text.stopped else reason)

    def _delta(self, text: str, reason: FinishReason | None) -> Delta:
        self._num_released += len(text)
        self.ended = reason is not None
        entries = self._waiting
        if self._text.stopped:
            # The tokens of a stop string are not part of the answer.
            entries = [entry for entry in entries if entry.offset < self._num_released]
        elif not self.ended and self._text.holds_text:
            entries = [entry for entry in entries if entry.offset < self._num_released]
        self._waiting = self._waiting[len(entries) :]
        tokens, self._untold = tuple(self._untold), []
        return Delta(
            choice=self._index,
            text=text,
            entries=tuple(entries),
            tokens=tokens,
            finish_reason=reason,
        )
