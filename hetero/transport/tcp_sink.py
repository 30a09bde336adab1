"""The receiving side of transfers: a thread for each connection that a source makes."""

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from socket import socket

from msgspec.structs import replace

from hetero.errors import PeerError
from hetero.messages import (
    MAX_REASON_CHARS,
    NoMoreWrites,
    Ready,
    Refused,
    Rows,
    SlotRing,
    ToSink,
    decode_to_sink,
    encode,
)
from hetero.transport.carrier import InlineReceiver, RowReceiver
from hetero.transport.connection import GRACE_S, Connection, answer, failure
from hetero.transport.door import Door
from hetero.transport.handshake import Hello
from hetero.transport.mailbox import Mailbox
from hetero.transport.transfer import SinkTransfer, State
from hetero.transport.window import MAX_CONNECTIONS


@dataclass(frozen=True)
class Arrived:
    """Every row of a transfer is in its place, and its first tokens are there."""

    ticket_id: str


@dataclass(frozen=True)
class Broke:
    """A transfer has ended early; nothing of it is held here any more."""

    ticket_id: str
    error: PeerError


@dataclass(eq=False)
class _Inbound:
    transfer: SinkTransfer
    connections: dict[int, Connection] = field(default_factory=dict)  # by stream
    has_ended: bool = False
    is_written_to: bool = False  # a connection ended, and not with NoMoreWrites


class TcpSink:
    """Transfers expected at a door. What becomes of them is in `events`."""

    def __init__(self, door: Door, carrier: RowReceiver | None = None) -> None:
        """carrier: of the rows; None for the connections."""
        self.door = door
        self._carrier = carrier or InlineReceiver()
        self.events: Mailbox[Arrived | Broke] = Mailbox()
        self._inbound: dict[str, _Inbound] = {}  # by ticket id
        self._lock = threading.Lock()  # of the inbound transfers

    @property
    def address(self) -> str:
        """Where sources dial."""
        return self.door.address

    @property
    def ring(self) -> SlotRing | None:
        """Where sources write rows to."""
        return self._carrier.ring

    def expect(self, transfer: SinkTransfer) -> None:
        """From now on its source may dial."""
        ticket = transfer.ticket
        inbound = _Inbound(transfer)
        with self._lock:
            self._inbound[ticket.ticket_id] = inbound
        self.door.expect(ticket.ticket_id, ticket.key, partial(self._welcome, inbound))

    def forget(self, ticket_id: str, reason: str) -> None:
        """Take no more of a transfer, and tell its source why. Unknown ids are fine."""
        inbound = self._take_out(ticket_id)
        if inbound is not None:
            # Not on this thread: a peer that takes nothing would make it wait.
            refuse = partial(_refuse, *self._end(inbound, reason))
            threading.Thread(target=refuse, daemon=True).start()

    def close(self) -> None:
        """Closes the door, too."""
        self.door.close()
        for ticket_id in list(self._inbound):
            self.forget(ticket_id, "the node is stopping")
        self.events.close()

    def _take_out(self, ticket_id: str) -> _Inbound | None:
        """None for whoever comes second: a transfer ends once."""
        self.door.forget(ticket_id)
        with self._lock:
            return self._inbound.pop(ticket_id, None)

    def _end(self, inbound: _Inbound, reason: str) -> tuple[list[Connection], Refused]:
        """No row is placed after this. Whom to tell, and what."""
        transfer = inbound.transfer
        transfer.end()
        with self._lock:
            inbound.has_ended = True
            connections = list(inbound.connections.values())
            self._release_if_over(inbound)
        ticket_id = transfer.ticket.ticket_id
        return connections, Refused(ticket_id=ticket_id, reason=reason[:MAX_REASON_CHARS])

    def _release_if_over(self, inbound: _Inbound) -> None:
        """Once its last connection has ended, too: until then its source may write."""
        if inbound.has_ended and not inbound.connections:
            ticket = inbound.transfer.ticket
            self._carrier.release(ticket, is_written_to=inbound.is_written_to)

    def _break(self, inbound: _Inbound, error: PeerError) -> None:
        """Unless it is over already."""
        ticket_id = inbound.transfer.ticket.ticket_id
        if self._take_out(ticket_id) is not None:
            _refuse(*self._end(inbound, str(error)))
            # Anew: the one that was raised holds on to every frame of its stack, and to the blob.
            self.events.put(Broke(ticket_id, PeerError(str(error))))

    def _welcome(self, inbound: _Inbound, hello: Hello, sock: socket) -> None:
        try:
            hello.check_version()
            with self._lock:  # no other connection ends before this one counts
                others = inbound.connections
                if inbound.has_ended or hello.stream in others or len(others) >= MAX_CONNECTIONS:
                    sock.close()  # too late, or a hello that somebody recorded
                    return
                connection = others[hello.stream] = answer(sock, hello, inbound.transfer.ticket)
        except PeerError as error:
            sock.close()
            self._break(inbound, error)
            return
        except OSError:  # it has hung up
            sock.close()
            return
        name = f"sink stream {hello.stream}"
        arguments = (inbound, connection, hello.stream)
        try:
            threading.Thread(target=self._serve, args=arguments, name=name, daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            with self._lock:
                del others[hello.stream]
            connection.close()
            self._break(inbound, PeerError(f"decode node: {error}"))

    def _serve(self, inbound: _Inbound, connection: Connection, stream: int) -> None:
        """A connection's thread, until its source closes it or the transfer is over."""
        has_left = False
        try:
            has_left = self._take_all(inbound, connection)
        except PeerError as error:
            self._break(inbound, error)
        except OSError as error:
            lease_s = inbound.transfer.ticket.lease_s
            self._break(inbound, failure("prefill node", error, lease_s))
        finally:
            with self._lock:
                del inbound.connections[stream]
                inbound.is_written_to |= not has_left
                is_last = not inbound.connections
                self._release_if_over(inbound)
            connection.close()
        # A source that has its last credit may close one connection before Done is read on another.
        if is_last and inbound.transfer.state is not State.DONE:
            self._break(inbound, PeerError("the prefill node hung up before its last row"))

    def _take_all(self, inbound: _Inbound, connection: Connection) -> bool:
        """Whether its last word was that it writes no more. Raises: PeerError, OSError."""
        transfer = inbound.transfer
        has_left = False
        done_at = float("inf")
        while (received := connection.receive()) is not None:
            if time.monotonic() > done_at + transfer.ticket.lease_s:
                break  # it has its credit, and nothing more to say
            message = decode_to_sink(received[0])
            if received[1] is not None and not isinstance(message, Rows):
                raise PeerError(f"{type(message).__name__}: need no rows after it, have some")
            has_left = isinstance(message, NoMoreWrites)
            if not has_left:
                self._take(inbound, message, received[1], connection)
            if transfer.state is State.DONE:
                done_at = min(done_at, time.monotonic())
                self._arrive(transfer.ticket.ticket_id)
        return has_left

    def _take(
        self,
        inbound: _Inbound,
        message: ToSink,
        rows: memoryview | None,
        connection: Connection,
    ) -> None:
        """Of a transfer that this breaks, more may be heard. Raises: OSError."""
        transfer = inbound.transfer
        try:
            if isinstance(message, Rows):
                rows = self._carrier.rows(transfer.ticket, message, rows, connection)
            if inbound.has_ended:
                return
            reply = transfer.receive(message, rows)
            if isinstance(reply, Ready):
                reply = replace(reply, slots=self._carrier.lend(transfer.ticket))
        except PeerError as error:
            self._break(inbound, error)
            return
        if reply is not None:
            connection.send(encode(reply))

    def _arrive(self, ticket_id: str) -> None:
        inbound = self._take_out(ticket_id)
        if inbound is not None:
            self._carrier.release(inbound.transfer.ticket, is_written_to=False)
            self.events.put(Arrived(ticket_id))


def _refuse(connections: list[Connection], refusal: Refused) -> None:
    """What the source still sends is read and thrown away for a moment, so that the refusal reaches
    it and is not lost in a reset connection."""
    for connection in connections:
        connection.last_word(encode(refusal))
        tear = threading.Timer(GRACE_S, connection.break_off)
        tear.daemon = True
        tear.start()
