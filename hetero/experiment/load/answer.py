"""A streamed completion, piece by piece as it comes: OpenAI's events and what servers add to them.

hetero's last event has `route` and `timings`, llama-server's has `timings`. Pieces count as many
tokens as the ids beside them (hetero's `return_tokens`), else one, corrected by the `usage` at the
end.
"""

from typing import Any

import msgspec

from hetero.experiment.load.record import ErrorKind, RequestError

# Enough of an error page to say what is wrong.
_MAX_PAGE_BYTES = 4096
_MAX_SAYS = 300


class Delta(msgspec.Struct, frozen=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: Delta | None = None
    tokens: list[int] | None = None
    finish_reason: str | None = None

    @property
    def has_piece(self) -> bool:
        """Of text; empty text in the middle is a token that shows nothing, too. A chat's opening,
        which says who speaks, is none, nor is the word at the end that it is one."""
        if self.tokens:
            return True
        if self.delta is not None:
            delta = self.delta
            if delta.content or delta.reasoning_content or delta.reasoning:
                return True
            return delta.content is not None and delta.role is None and self.finish_reason is None
        return bool(self.text) or (self.text is not None and self.finish_reason is None)


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Event(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Usage | None = None
    route: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: Any = None
    object: str | None = None
    message: Any = None  # of vLLM's errors, whose object is "error"


_events = msgspec.json.Decoder(Event)


class Answer:
    """Takes a connection's answer. Times are of time.perf_counter."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.usage: Usage | None = None
        self.route: dict[str, Any] = {}
        self.stages: dict[str, Any] = {}
        self.error: RequestError | None = None
        self.ended_s: float | None = None
        self._piece_s: list[float] = []
        self._tokens: list[int] = []
        self._has_ids = False
        self._has_finished = False
        self._rest = b""

    def headed(self, status: int) -> None:
        self.status = status

    def took(self, at_s: float, data: bytes) -> None:
        if self.status != 200:
            self._rest = (self._rest + data)[:_MAX_PAGE_BYTES]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self.error is None:
                self._take_line(at_s, line.strip())

    def ended(self, at_s: float) -> None:
        self.ended_s = at_s
        if self.status != 200:
            says = _page_message(self._rest) or f"HTTP status {self.status}"
            self.fail("status", says, status=self.status)
        elif not self._has_finished:
            had = "an answer without an end" if self._piece_s else "no event of a completion"
            self.fail("stream", f"stream: need an end, have {had}")

    def broke(self, at_s: float, why: str) -> None:
        self.ended_s = at_s
        self.fail("stream", why, status=None if self.status == 200 else self.status)

    def fail(self, kind: ErrorKind, says: str, *, status: int | None = None) -> None:
        """The first error stays: what follows comes of it."""
        if self.error is None:
            self.error = RequestError(kind=kind, says=says[:_MAX_SAYS], status=status)

    def pieces(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """When each came, and its tokens. Where a server tells only how many there were in all,
        the first piece is taken to be one, and what the others lack to be in the last."""
        tokens = list(self._tokens)
        if not self._has_ids and self.usage is not None and tokens:
            missing = self.usage.completion_tokens - len(tokens)
            if missing >= 0:
                tokens[-1] += missing
            else:
                del tokens[max(len(tokens) + missing, 1) :]
        return tuple(self._piece_s[: len(tokens)]), tuple(tokens)

    @property
    def num_tokens(self) -> int:
        return sum(self._tokens) if self.usage is None else self.usage.completion_tokens

    def _take_line(self, at_s: float, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.strip()
        if name == b"error":
            self.fail("server", _page_message(value) or value.decode(errors="replace"))
        if name != b"data" or not value:
            return
        if value == b"[DONE]":
            self._has_finished = True
            return
        try:
            event = _events.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.fail(
                "stream", f"event: need a chunk of a completion, have {value[:80]!r}: {error}"
            )
            return
        self._take_event(at_s, event)

    def _take_event(self, at_s: float, event: Event) -> None:
        if event.error is not None or event.object == "error":
            self.fail("server", _words(event.error if event.error is not None else event.message))
            return
        for choice in event.choices:
            if choice.has_piece:
                self._has_ids = self._has_ids or bool(choice.tokens)
                self._piece_s.append(at_s)
                self._tokens.append(len(choice.tokens) if choice.tokens else 1)
            self._has_finished = self._has_finished or choice.finish_reason is not None
        if event.usage is not None:
            self.usage = event.usage
        if event.route:
            self.route = event.route
        if event.timings:
            self.stages = event.timings


def _page_message(page: bytes) -> str:
    """What an error's body says: OpenAI's error object, FastAPI's detail, or the text itself."""
    try:
        fields = msgspec.json.decode(page)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return page.decode(errors="replace").strip()
    if isinstance(fields, dict):
        for name in ("error", "detail", "message"):
            if name in fields:
                return _words(fields[name])
    return _words(fields)


def _words(error: Any) -> str:
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error)
