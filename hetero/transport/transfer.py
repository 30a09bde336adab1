"""One KV transfer as each side sees it: what may be said when. No I/O, no clock of its own.

    source                        sink
    Open(fingerprint)     ->      compare
                          <-      Ready(credit) or Refused
    Rows x N              ->      check, place
                          <-      Credit per frame
    Done(first tokens)    ->      complete? then restore

The source ends with Abort, the sink with Refused, at any moment; Alive fills silences. Frames may
travel on several connections and overtake each other, and Done may overtake them. A message that
the table below does not allow is the sender's fault.
"""

import threading
from enum import Enum
from typing import Any

import numpy as np

from hetero.errors import PeerError
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob
from hetero.messages import (
    MAX_REASON_CHARS,
    Abort,
    Alive,
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
from hetero.transport.window import Departure, Window


class State(Enum):
    TICKETED = "ticketed"  # a ticket is out, nothing was said
    OPENING = "opening"  # the source waits for Ready
    MOVING = "moving"
    CLOSING = "closing"  # Done was said; the sink waits for rows, the source for their credit
    DONE = "done"  # the sink has every row, and the source knows
    ENDED = "ended"  # aborted, refused or broken


# (state, message) -> state, of the sink when it hears from the source. What completes a transfer
# that is closing makes it done ...
SINK_HEARS: dict[tuple[State, type[Any]], State] = {
    (State.TICKETED, Open): State.MOVING,
    (State.MOVING, Rows): State.MOVING,
    (State.MOVING, Done): State.CLOSING,
    (State.CLOSING, Rows): State.CLOSING,
    (State.TICKETED, Abort): State.ENDED,
    (State.MOVING, Abort): State.ENDED,
    (State.CLOSING, Abort): State.ENDED,
    (State.TICKETED, Alive): State.TICKETED,
    (State.MOVING, Alive): State.MOVING,
    (State.CLOSING, Alive): State.CLOSING,
    (State.DONE, Alive): State.DONE,
}

# ... and of the source when it hears from the sink. The last credit of one that is closing, too.
SOURCE_HEARS: dict[tuple[State, type[Any]], State] = {
    (State.OPENING, Ready): State.MOVING,
    (State.MOVING, Credit): State.MOVING,
    (State.CLOSING, Credit): State.CLOSING,
    (State.OPENING, Refused): State.ENDED,
    (State.MOVING, Refused): State.ENDED,
    (State.CLOSING, Refused): State.ENDED,
    (State.OPENING, Alive): State.OPENING,
    (State.MOVING, Alive): State.MOVING,
    (State.CLOSING, Alive): State.CLOSING,
    (State.DONE, Alive): State.DONE,
}


class SinkTransfer:
    """A decode node's side: checks what comes and places it in the staging blob.

    Each connection's thread calls `receive`; rows are copied side by side.
    """

    def __init__(
        self, ticket: Ticket, fingerprint: Fingerprint, staging: StagingBlob, credit_bytes: int
    ) -> None:
        self.ticket = ticket
        self.staging = staging
        self.state = State.TICKETED
        self.num_frames = 0
        self.received_bytes = 0
        self.first_tokens: tuple[Token, ...] = ()
        self._fingerprint = fingerprint
        self._credit_bytes = credit_bytes
        self._lock = threading.Lock()

    def receive(self, message: ToSink, rows: memoryview | None = None) -> ToSource | None:
        """Take one message; the reply it asks for, if any.

        Raises: PeerError for anything the protocol, the fingerprint or the blob does not allow.
        The transfer has then ended: tell the source with `Refused`.
        """
        try:
            return self._receive(message, rows)
        except PeerError:
            self.end()
            raise

    def end(self) -> None:
        """Take no more of it: dropped here, or broken."""
        with self._lock:
            self.state = State.ENDED

    def _receive(self, message: ToSink, rows: memoryview | None) -> ToSource | None:
        reply: ToSource | None = None
        _check_ticket(message, self.ticket)
        with self._lock:
            after = SINK_HEARS.get((self.state, type(message)))
            if after is None:
                raise PeerError(
                    f"transfer {self.ticket.ticket_id}: need no {type(message).__name__} while "
                    f"{self.state.value}, have one"
                )
            match message:
                case Open():
                    reply = self._open(message)
                case Done():
                    self.first_tokens = message.first_tokens
                case Abort():
                    raise PeerError(f"the prefill node gave up: {message.reason}")
                case Alive():
                    reply = message
            self.state = after
        if isinstance(message, Rows):
            self.staging.place(self._frame(message, rows))
            reply = Credit(ticket_id=self.ticket.ticket_id, frame=message.frame)
        with self._lock:
            if isinstance(message, Rows) and rows is not None:
                self.num_frames += 1
                self.received_bytes += rows.nbytes
            if self.state is State.CLOSING and self.staging.is_complete:
                self.state = State.DONE
        return reply

    def _open(self, message: Open) -> Ready:
        differences = self._fingerprint.differences(message.fingerprint)
        if differences:
            raise PeerError(f"KV from another kind of model or cache: {'; '.join(differences)}")
        return Ready(ticket_id=self.ticket.ticket_id, credit_bytes=self._credit_bytes)

    def _frame(self, message: Rows, payload: memoryview | None) -> RowFrame:
        if not payload:
            raise PeerError(f"transfer {self.ticket.ticket_id}: need rows after their header")
        raw = np.frombuffer(payload, np.uint8)
        layers = message.end_layer - message.first_layer
        tokens = message.end_token - message.first_token
        if layers < 1 or tokens < 1 or raw.nbytes % (layers * tokens):
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need rows of {layers} layers x {tokens} "
                f"tokens, have {raw.nbytes} bytes"
            )
        return RowFrame(
            kind=message.kind,
            first_layer=message.first_layer,
            end_layer=message.end_layer,
            first_token=message.first_token,
            end_token=message.end_token,
            rows=raw.reshape(layers, tokens, -1),
        )


class SourceTransfer:
    """A prefill node's side: spends credit, and knows how long bytes were in flight.

    Not for several threads at once: whoever shares it has a lock.
    """

    def __init__(self, ticket: Ticket, fingerprint: Fingerprint) -> None:
        self.ticket = ticket
        self.state = State.TICKETED
        self.sent_bytes = 0
        self.wire_s = 0.0  # while at least one frame was unacknowledged
        self.last_group_s = 0.0  # from handing over the last layer group to its acknowledgement
        self.window = Window(0)
        self._fingerprint = fingerprint
        self._num_frames = 0
        self._in_flight: dict[int, Departure] = {}  # by frame
        self._in_flight_bytes = 0
        self._busy_since = 0.0
        self._last = (-1, "")  # layer and kind of the frame sent last
        self._group_since = 0.0

    @property
    def in_flight_bytes(self) -> int:
        return self._in_flight_bytes

    def open(self) -> Open:
        self._must_be(State.TICKETED, "open")
        self.state = State.OPENING
        return Open(ticket_id=self.ticket.ticket_id, fingerprint=self._fingerprint)

    def may_send(self, num_bytes: int) -> bool:
        """Whether the window has room for a frame. When it is empty, any frame may go."""
        if self.state is not State.MOVING:
            return False
        return not self._in_flight or self._in_flight_bytes + num_bytes <= self.window.num_bytes

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
        number, num_bytes = self._num_frames, frame.rows.nbytes
        self._num_frames += 1
        self._in_flight[number] = self.window.sent(num_bytes, now)
        self._in_flight_bytes += num_bytes
        self.sent_bytes += num_bytes
        return Rows(
            ticket_id=self.ticket.ticket_id,
            kind=frame.kind,
            first_layer=frame.first_layer,
            end_layer=frame.end_layer,
            first_token=frame.first_token,
            end_token=frame.end_token,
            frame=number,
        )

    def done(self, first_tokens: tuple[Token, ...]) -> Done:
        """After the last frame was given its header; it may still be on its way."""
        self._must_be(State.MOVING, "finish")
        self.state = State.CLOSING if self._in_flight else State.DONE
        return Done(ticket_id=self.ticket.ticket_id, first_tokens=first_tokens)

    def abort(self, reason: str) -> Abort:
        self.state = State.ENDED
        return Abort(ticket_id=self.ticket.ticket_id, reason=reason[:MAX_REASON_CHARS])

    def alive(self) -> Alive:
        return Alive(ticket_id=self.ticket.ticket_id)

    def receive(self, message: ToSource, now: float) -> None:
        """Take one message from the sink.

        Raises: PeerError if it refused the transfer, or said what the protocol does not allow.
        """
        before = self.state
        self.state = State.ENDED
        _check_ticket(message, self.ticket)
        after = SOURCE_HEARS.get((before, type(message)))
        if after is None:
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need no {type(message).__name__} while "
                f"{before.value}, have one"
            )
        match message:
            case Ready():
                self.window.max_bytes = message.credit_bytes
            case Credit():
                self._credited(message.frame, now)
            case Refused():
                raise PeerError(f"decode node refused the KV: {message.reason}")
        self.state = State.DONE if after is State.CLOSING and not self._in_flight else after

    def _credited(self, number: int, now: float) -> None:
        frame = self._in_flight.pop(number, None)
        if frame is None:
            raise PeerError(
                f"transfer {self.ticket.ticket_id}: need credit for a frame in flight, "
                f"have it for frame {number}"
            )
        self._in_flight_bytes -= frame.num_bytes
        self.window.credited(frame, now)
        if not self._in_flight:
            self.wire_s += now - self._busy_since
            self.last_group_s = now - self._group_since

    def _must_be(self, state: State, to: str) -> None:
        assert self.state is state, f"can't {to} while {self.state.value}"


def _check_ticket(message: ToSink | ToSource, ticket: Ticket) -> None:
    if message.ticket_id != ticket.ticket_id:
        raise PeerError(
            f"transfer {ticket.ticket_id}: need messages of its own, "
            f"have one of {message.ticket_id}"
        )
