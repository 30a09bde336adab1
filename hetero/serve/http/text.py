"""A choice's tokens in, its text out: no half code point, no half stop string ever leaves.

Bytes become text as soon as they are certain, and invalid ones U+FFFD. Text that may turn out to
be the beginning of a stop string is held back until it does or doesn't. The result does not
depend on how the bytes were cut into tokens.
"""

import codecs
from collections.abc import Sequence


class TextStream:
    """One choice's text, piece by piece. `stopped` is set once a stop string has appeared."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_StopMatcher(string) for string in stop]
        self._held = ""
        self.stopped = False

    @property
    def holds_text(self) -> bool:
        """Whether something pushed has not come out yet: held text, or part of a code point."""
        return bool(self._held or self._decoder.getstate()[0])

    @property
    def num_held(self) -> int:
        """Characters held back, without those whose bytes are incomplete."""
        return len(self._held)

    def push(self, piece: bytes) -> str:
        """The text that is certain now. After a stop string: nothing, and no piece may follow."""
        assert not self.stopped
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, at the end of a stream that no stop string ended."""
        rest = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            rest += self._held
        self._held = ""
        return rest

    def _release(self, text: str) -> str:
        if not text or not self._matchers:
            return text
        start = len(self._held)
        self._held += text
        num_matching = 0
        for end in range(start + 1, len(self._held) + 1):
            num_matching = max(matcher.advance(self._held[end - 1]) for matcher in self._matchers)
            if any(matcher.complete for matcher in self._matchers):
                # The first string to be complete counts, the longest if there are several: a
                # choice by where strings begin would depend on how the text arrived.
                return self._cut(end - max(m.num_matched for m in self._matchers if m.complete))
        released = self._held[: len(self._held) - num_matching]
        self._held = self._held[len(released) :]
        return released

    def _cut(self, end: int) -> str:
        before = self._held[:end]
        self._held = ""
        self.stopped = True
        return before


class _StopMatcher:
    """Knuth-Morris-Pratt, a character at a time: how much of the string the text now ends with."""

    def __init__(self, string: str) -> None:
        assert string
        self._string = string
        self.num_matched = 0
        # fallback[n]: the longest beginning that the first n + 1 characters also end with.
        self._fallback = [0]
        for char in string[1:]:
            self._fallback.append(self._extended(self._fallback[-1], char))

    @property
    def complete(self) -> bool:
        return self.num_matched == len(self._string)

    def advance(self, char: str) -> int:
        assert not self.complete
        self.num_matched = self._extended(self.num_matched, char)
        return self.num_matched

    def _extended(self, num_matched: int, char: str) -> int:
        while num_matched and self._string[num_matched] != char:
            num_matched = self._fallback[num_matched - 1]
        return num_matched + (self._string[num_matched] == char)
