"""The listening side: takes connections, and serves each that shows a ticket's key by a thread.

A stranger is told nothing: its connection is closed when it says something else than a hello, or
too much, or too little for too long.
"""

import logging
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field

from hetero.errors import ConfigError, PeerError
from hetero.messages import Refused, decode_to_sink, encode
from hetero.transport.connection import GRACE_S, Connection, answer, failure, split_address
from hetero.transport.handshake import Hello, read_hello
from hetero.transport.mailbox import Mailbox
from hetero.transport.transfer import SinkTransfer, State
from hetero.transport.window import MAX_CONNECTIONS

logger = logging.getLogger(__name__)

# A hello fits a packet, and its sender has it ready. If the link is down for two seconds just then,
# TCP sends it again after three.
_HELLO_S = 5.0

# Connections that have not said hello yet. One more, and the oldest has to go.
_MAX_STRANGERS = 128

_MAX_REASON = 1000


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
    refusal: Refused | None = None  # once it is over


@dataclass(eq=False)
class _Stranger:
    sock: socket.socket
    deadline: float
    said: bytes = b""


class TcpSink:
    """Transfers expected here. What becomes of them is in `events`."""

    def __init__(self, address: str, advertise: str | None = None) -> None:
        """Listen at `tcp://host:port` (port 0: any); `advertise` is what sources dial instead.

        Raises: ConfigError if the port is taken or the address is not of this machine.
        """
        self._listener = _listen(address)
        host, port = self._listener.getsockname()[:2]
        here = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self.address = advertise or here
        self.events: Mailbox[Arrived | Broke] = Mailbox()
        self._inbound: dict[str, _Inbound] = {}  # by ticket id
        self._lock = threading.Lock()  # of the inbound transfers
        self._closing: list[tuple[float, Connection]] = []  # to be broken off then
        self._wake: Mailbox[None] = Mailbox()
        self._is_closed = False
        self._thread = threading.Thread(target=self._welcome_all, name="sink", daemon=True)
        self._thread.start()

    def expect(self, transfer: SinkTransfer) -> None:
        """From now on its source may dial."""
        with self._lock:
            self._inbound[transfer.ticket.ticket_id] = _Inbound(transfer)

    def forget(self, ticket_id: str, reason: str) -> None:
        """Take no more of a transfer, and tell its source why. Unknown ids are fine."""
        with self._lock:
            inbound = self._inbound.pop(ticket_id, None)
            if inbound is not None:
                self._end(inbound, reason)
        self._wake.put(None)

    def close(self) -> None:
        with self._lock:
            for inbound in self._inbound.values():
                self._end(inbound, "the node is stopping")
            self._inbound.clear()
            self._is_closed = True
        self._wake.put(None)
        self._thread.join()
        self._wake.close()
        self.events.close()

    def _end(self, inbound: _Inbound, reason: str) -> None:
        """No row is placed after this; what the source still sends is read and thrown away for a
        moment, so that the refusal reaches it and is not lost in a reset connection."""
        if inbound.refusal is not None:
            return
        transfer = inbound.transfer
        inbound.refusal = Refused(ticket_id=transfer.ticket.ticket_id, reason=reason[:_MAX_REASON])
        transfer.end()
        for connection in inbound.connections.values():
            self._closing.append((time.monotonic() + GRACE_S, connection))
            connection.last_word(encode(inbound.refusal))

    def _arrive(self, inbound: _Inbound) -> None:
        ticket_id = inbound.transfer.ticket.ticket_id
        with self._lock:
            if self._inbound.pop(ticket_id, None) is not None:
                self.events.put(Arrived(ticket_id))

    def _break(self, inbound: _Inbound, error: PeerError) -> None:
        """Unless it is over already."""
        ticket_id = inbound.transfer.ticket.ticket_id
        with self._lock:
            if self._inbound.pop(ticket_id, None) is not None:
                self._end(inbound, str(error))
                self.events.put(Broke(ticket_id, error))
        self._wake.put(None)

    def _serve(self, inbound: _Inbound, connection: Connection, stream: int) -> None:
        """A connection's thread, until its source closes it or the transfer is over."""
        transfer = inbound.transfer
        try:
            while (received := connection.receive()) is not None:
                if inbound.refusal is not None:
                    continue
                message, rows = received
                reply = transfer.receive(decode_to_sink(message), rows)
                if reply is not None:
                    connection.send(encode(reply))
                if transfer.state is State.DONE:
                    self._arrive(inbound)
        except PeerError as error:
            self._break(inbound, error)
        except OSError as error:
            self._break(inbound, failure("prefill node", error, transfer.ticket.lease_s))
        finally:
            with self._lock:
                del inbound.connections[stream]
                connection.close()
                is_last = not inbound.connections
        # Any but the last may end while Done is still on its way on another.
        if is_last:
            self._break(inbound, PeerError("the prefill node hung up before it was done"))

    def _welcome_all(self) -> None:
        strangers: dict[socket.socket, _Stranger] = {}  # the oldest first
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._is_closed:
                leaving = []
                for key, _ in selector.select(self._next_deadline(strangers)):
                    if key.fileobj is self._listener:
                        self._accept(strangers, selector)
                    elif key.fileobj is self._wake:
                        self._wake.take_all()
                    elif key.fileobj in strangers and not self._hear_out(strangers[key.fileobj]):
                        leaving.append(strangers[key.fileobj])
                now = time.monotonic()
                leaving += [one for one in strangers.values() if one.deadline <= now]
                leaving += list(strangers.values())[: max(0, len(strangers) - _MAX_STRANGERS)]
                for stranger in leaving:
                    if strangers.pop(stranger.sock, None) is not None:
                        selector.unregister(stranger.sock)
                        self._admit(stranger)
                self._break_off_overdue()
            for stranger in strangers.values():
                stranger.sock.close()

    def _next_deadline(self, strangers: dict[socket.socket, _Stranger]) -> float | None:
        with self._lock:
            deadlines = [deadline for deadline, _ in self._closing]
        deadlines += [stranger.deadline for stranger in strangers.values()]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(
        self, strangers: dict[socket.socket, _Stranger], selector: selectors.BaseSelector
    ) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # it hung up already, or there are no file descriptors left
            logger.warning("a connection was lost before it was accepted: %s", error)
            return
        sock.setblocking(False)
        strangers[sock] = _Stranger(sock, time.monotonic() + _HELLO_S)
        selector.register(sock, selectors.EVENT_READ)

    def _hear_out(self, stranger: _Stranger) -> bool:
        """Whether more is to be waited for."""
        try:
            more = stranger.sock.recv(4096)
            stranger.said += more
            return bool(more) and read_hello(stranger.said) is None
        except BlockingIOError:
            return True
        except (OSError, PeerError):
            return False

    def _admit(self, stranger: _Stranger) -> None:
        """Serve it, if it has said hello under a ticket; else close it without a word."""
        self._hear_out(stranger)  # time may have run out because it was this process that stood
        try:
            hello = read_hello(stranger.said)
        except PeerError:
            hello = None
        with self._lock:
            inbound = self._inbound.get(hello.ticket_id) if hello else None
        if not (hello and inbound and hello.is_from_holder_of(inbound.transfer.ticket.key)):
            logger.info("a connection without a valid ticket was closed")
            stranger.sock.close()
            return
        try:
            hello.check_version()
            self._begin(inbound, hello, stranger.sock)
        except PeerError as error:
            stranger.sock.close()
            self._break(inbound, error)
        except OSError:
            stranger.sock.close()

    def _begin(self, inbound: _Inbound, hello: Hello, sock: socket.socket) -> None:
        """Raises: OSError if the source is gone."""
        with self._lock:  # no other connection ends before this one counts
            others = inbound.connections
            if inbound.refusal or hello.stream in others or len(others) >= MAX_CONNECTIONS:
                sock.close()  # too late, or a hello that somebody recorded
                return
            connection = others[hello.stream] = answer(sock, hello, inbound.transfer.ticket)
        name = f"sink stream {hello.stream}"
        arguments = (inbound, connection, hello.stream)
        threading.Thread(target=self._serve, args=arguments, name=name, daemon=True).start()

    def _break_off_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            for deadline, connection in self._closing:
                if deadline <= now:
                    connection.break_off()
            self._closing = [one for one in self._closing if one[0] > now]


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_MAX_STRANGERS)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{address}: can't listen there: {reason}") from None
    listener.setblocking(False)
    return listener
