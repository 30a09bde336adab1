"""What became of one request: a line of `requests.jsonl`."""

from typing import Any, Literal

import msgspec

ErrorKind = Literal[
    "refused",  # nobody listens there, or not for us
    "timeout",
    "status",  # an HTTP status that is no success
    "stream",  # the answer broke off, or can't be read
    "server",  # an error the server sent in the stream
    "short",  # fewer tokens than were asked for
]


class RequestError(msgspec.Struct, frozen=True, kw_only=True):
    kind: ErrorKind
    says: str
    status: int | None = None  # of HTTP


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Times are seconds since the load began, by one clock.

    due_s: when it was to be sent: its place in the schedule, or where it waits for another (the
    turn before, a free place) the moment that one ended. Latencies count from here, so that a
    generator that falls behind does not flatter the server (coordinated omission).
    """

    session: int
    turn: int
    flow: str  # "main", or the load beside it
    due_s: float
    sent_s: float
    prompt_tokens: int  # asked for
    output_tokens: int  # asked for
    # Arrival of each piece of text, and how many tokens were in it.
    piece_s: tuple[float, ...] = ()
    piece_tokens: tuple[int, ...] = ()
    ended_s: float | None = None
    counted_prompt_tokens: int | None = None  # by the server's `usage`
    counted_output_tokens: int | None = None
    error: RequestError | None = None
    # As the server told them: hetero's `route` and `timings`, llama-server's `timings`.
    route: dict[str, Any] = {}
    stages: dict[str, Any] = {}

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def ttft_s(self) -> float | None:
        return self.piece_s[0] - self.due_s if self.piece_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time between two tokens. None of an answer of one piece."""
        num_later = sum(self.piece_tokens[1:])
        if not num_later:
            return None
        return (self.piece_s[-1] - self.piece_s[0]) / num_later

    @property
    def latency_s(self) -> float | None:
        """To the last piece; a stream may end later, as when the server adds its figures."""
        return self.piece_s[-1] - self.due_s if self.piece_s else None

    @property
    def late_s(self) -> float:
        """How far behind the generator was."""
        return self.sent_s - self.due_s
