"""One KV transfer as each side sees it: what may be said when. No I/O, no clock of its own.

    source                        sink
    Open(fingerprint)     ->      compare
                          <-      Ready(credit) or Refused
    Rows x N              ->      check, place
                          <-      Credit per frame
    Done(first tokens)    ->      complete? then restore

The source ends with Abort, the sink with Refused, at any moment. A message that the table below
does not allow is the sender's fault.
"""

from collections import deque
from enum import Enum
from typing import Any

import numpy as np
import xxhash

from hetero.errors import PeerError
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob
from hetero.messages import (
    Abort,
    Credit,
    Done,
    Fingerprint,
    Open,
    Ready,
    Refused,
    Rows,
    Ticket,
    Token,
    ToSink,
    ToSource,
)


class State(Enum):
    TICKETED = "ticketed"  # a ticket is out, nothing was said
    OPENING = "opening"  # the source waits for Ready
    MOVING = "moving"
    DONE = "done"  # all rows are sent; credits may still come back
    ENDED = "ended"  # aborted or refused


# (state, message) -> state, of the sink when it hears from the source ...
SINK_HEARS: dict[tuple[State, type[Any]], State] = {
    (State.TICKETED, Open): State.MOVING,
    (State.MOVING, Rows): State.MOVING,
    (State.MOVING, Done): State.DONE,
    (State.TICKETED, Abort): State.ENDED,
    (State.MOVING, Abort): State.ENDED,
}

# ... and of the source when it hears from the sink.
SOURCE_HEARS: dict[tuple[State, type[Any]], State] = {
    (State.OPENING, Ready): State.MOVING,
    (State.MOVING, Credit): State.MOVING,
    (State.DONE, Credit): State.DONE,
    (State.OPENING, Refused): State.ENDED,
    (State.MOVING, Refused): State.ENDED,
    (State.DONE, Refused): State.ENDED,
}


def checksum(rows: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """xxh3-64: errors of memory and wire; who sent it is the link's matter."""
    return xxhash.xxh3_64_intdigest(rows.data)


class SinkTransfer:
    """A decode node's side: checks what comes and places it in the staging blob."""

    def __init__(
        self, ticket: Ticket, fingerprint: Fingerprint, staging: StagingBlob, credit_bytes: int
    ) -> None:
        self.ticket = ticket
        self.staging = staging
        self.state = State.TICKETED
        self.num_frames = 0
        self.first_tokens: tuple[Token, ...] = ()
        self._fingerprint = fingerprint
        self._credit_bytes = credit_bytes

    def receive(self, message: ToSink, payload: memoryview | None = None) -> ToSource | None:
        """Take one message; the reply it asks for, if any.

        Raises: PeerError for anything the protocol, the fingerprint, the checksum or the blob
        does not allow. The transfer has then ended: tell the source with `Refused`.
        """
        before = self.state
        self.state = State.ENDED  # unless everything below is in order
        after = SINK_HEARS.get((before, type(message)))
        if after is None:
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need no {type(message).__name__} while "
                f"{before.value}, have one"
            )
        reply: ToSource | None = None
        match message:
            case Open():
                reply = self._open(message)
            case Rows():
                reply = self._rows(message, payload)
            case Done():
                if not self.staging.is_complete:
                    raise PeerError(
                        f"transfer {self.ticket.ticket_id}: need every row before Done, have gaps"
                    )
                self.first_tokens = message.first_tokens
            case Abort():
                raise PeerError(f"transfer {self.ticket.ticket_id}: aborted: {message.reason}")
        self.state = after
        return reply

    def _open(self, message: Open) -> Ready:
        differences = self._fingerprint.differences(message.fingerprint)
        if differences:
            raise PeerError(f"KV from another kind of model or cache: {'; '.join(differences)}")
        return Ready(ticket_id=self.ticket.ticket_id, credit_bytes=self._credit_bytes)

    def _rows(self, message: Rows, payload: memoryview | None) -> Credit:
        if payload is None:
            raise PeerError(f"transfer {self.ticket.ticket_id}: need rows after their header")
        raw = np.frombuffer(payload, np.uint8)
        layers = message.end_layer - message.first_layer
        tokens = message.end_token - message.first_token
        if layers < 1 or tokens < 1 or not raw.nbytes or raw.nbytes % (layers * tokens):
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need rows of {layers} layers x {tokens} "
                f"tokens, have {raw.nbytes} bytes"
            )
        if checksum(raw) != message.checksum:
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need rows with checksum "
                f"{message.checksum:016x}, have {checksum(raw):016x}: damaged on the way"
            )
        self.staging.place(
            RowFrame(
                kind=message.kind,
                first_layer=message.first_layer,
                end_layer=message.end_layer,
                first_token=message.first_token,
                end_token=message.end_token,
                rows=raw.reshape(layers, tokens, -1),
            )
        )
        self.num_frames += 1
        return Credit(ticket_id=self.ticket.ticket_id, credit_bytes=raw.nbytes)


class SourceTransfer:
    """A prefill node's side: spends credit, and knows how long bytes were in flight."""

    def __init__(self, ticket: Ticket, fingerprint: Fingerprint) -> None:
        self.ticket = ticket
        self.state = State.TICKETED
        self.sent_bytes = 0
        self.wire_s = 0.0  # while at least one frame was unacknowledged
        self.last_group_s = 0.0  # from handing over the last layer group to its acknowledgement
        self._fingerprint = fingerprint
        self._credit_bytes = 0
        self._in_flight: deque[int] = deque()  # bytes per frame, oldest first
        self._busy_since = 0.0
        self._last = (-1, "")  # layer and kind of the frame sent last
        self._group_since = 0.0

    @property
    def is_acknowledged(self) -> bool:
        return self.state is State.DONE and not self._in_flight

    @property
    def in_flight_bytes(self) -> int:
        return sum(self._in_flight)

    @property
    def awaits_answer(self) -> bool:
        """Whether it is the sink's turn to speak."""
        return self.state is State.OPENING or bool(self._in_flight)

    def open(self) -> Open:
        self._must_be(State.TICKETED, "open")
        self.state = State.OPENING
        return Open(ticket_id=self.ticket.ticket_id, fingerprint=self._fingerprint)

    def may_send(self, num_bytes: int) -> bool:
        """Whether credit covers a frame. One larger than all credit may go when none is out."""
        if self.state is not State.MOVING:
            return False
        return num_bytes <= self._credit_bytes or not self._in_flight

    def rows(self, frame: RowFrame, *, handed_over: float, now: float) -> Rows:
        """The header of a frame that was ready at `handed_over` and is sent `now`."""
        self._must_be(State.MOVING, "send rows")
        if not self._in_flight:
            self._busy_since = now
        # A group's K frames go before its V frames, each perhaps cut by tokens.
        last_layer, last_kind = self._last
        if frame.first_layer != last_layer or frame.kind < last_kind:
            self._group_since = handed_over
        self._last = (frame.first_layer, frame.kind)
        self._in_flight.append(frame.rows.nbytes)
        self._credit_bytes -= frame.rows.nbytes
        self.sent_bytes += frame.rows.nbytes
        return Rows(
            ticket_id=self.ticket.ticket_id,
            kind=frame.kind,
            first_layer=frame.first_layer,
            end_layer=frame.end_layer,
            first_token=frame.first_token,
            end_token=frame.end_token,
            checksum=checksum(frame.rows.reshape(-1)),
        )

    def done(self, first_tokens: tuple[Token, ...]) -> Done:
        self._must_be(State.MOVING, "finish")
        self.state = State.DONE
        return Done(ticket_id=self.ticket.ticket_id, first_tokens=first_tokens)

    def abort(self, reason: str) -> Abort:
        self.state = State.ENDED
        return Abort(ticket_id=self.ticket.ticket_id, reason=reason)

    def receive(self, message: ToSource, now: float) -> None:
        """Take one message from the sink.

        Raises: PeerError if it refused the transfer, or said what the protocol does not allow.
        """
        before = self.state
        self.state = State.ENDED
        after = SOURCE_HEARS.get((before, type(message)))
        if after is None:
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need no {type(message).__name__} while "
                f"{before.value}, have one"
            )
        match message:
            case Ready():
                self._credit_bytes = message.credit_bytes
            case Credit():
                self._credited(message.credit_bytes, now)
            case Refused():
                raise PeerError(f"decode node refused the KV: {message.reason}")
        self.state = after

    def _credited(self, num_bytes: int, now: float) -> None:
        if not self._in_flight or self._in_flight[0] != num_bytes:
            oldest = self._in_flight[0] if self._in_flight else 0
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need credit for {oldest} bytes, "
                f"have it for {num_bytes}"
            )
        self._in_flight.popleft()
        self._credit_bytes += num_bytes
        if not self._in_flight:
            self.wire_s += now - self._busy_since
            self.last_group_s = now - self._group_since

    def _must_be(self, state: State, to: str) -> None:
        assert self.state is state, f"can't {to} while {self.state.value}"
