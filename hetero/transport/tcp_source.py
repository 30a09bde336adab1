"""The dialling side of a transfer: frames go out over as many connections as its window needs.

Each connection has a thread that sends and one that hears; whichever sender is free takes the next
frame that the window allows. Nothing here blocks whoever hands frames over.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from hetero.errors import PeerError
from hetero.kv.rows import RowFrame
from hetero.messages import Message, NoMoreWrites, Rows, Token, decode_to_source, encode
from hetero.transport.carrier import InlineSender, RowSender
from hetero.transport.connection import GRACE_S, Connection, dial, failure
from hetero.transport.transfer import SourceTransfer, State

logger = logging.getLogger(__name__)

# A connection that has nothing else to say is heard from this often.
_ALIVE_S = 1.0

_Outgoing = tuple[Message, npt.NDArray[np.uint8] | None]


class TcpSource:
    """One transfer. Callbacks come from its threads, and must not block."""

    def __init__(
        self,
        transfer: SourceTransfer,
        *,
        num_connections: int | None,
        on_credit: Callable[[int], None],
        on_end: Callable[[PeerError | None], None],
        carrier: RowSender | None = None,
    ) -> None:
        """num_connections: None for as many as the window needs. carrier: of the rows; None for
        these connections.

        `on_credit` gets bytes that the sink has placed. `on_end` is called once, unless `abort`
        came first: with None when the sink has everything, or with what went wrong.
        """
        self.transfer = transfer
        self._carrier = carrier or InlineSender()
        self._wanted = num_connections
        self._on_credit = on_credit
        self._on_end = on_end
        self._turn = threading.Condition()  # of everything below, and of the transfer
        self._waiting: deque[tuple[RowFrame, float]] = deque()  # frame, handed over at
        self._first_tokens: tuple[Token, ...] | None = None
        self._dialled: dict[int, socket.socket] = {}  # by stream; not welcome yet
        self._connections: dict[int, Connection] = {}
        self._num_streams = 0
        self._farewell: Message | None = None
        self._has_ended = False
        with self._turn:
            self._add_stream()

    @property
    def num_connections(self) -> int:
        """That it has dialled so far."""
        return self._num_streams

    def put(self, frame: RowFrame) -> None:
        """Hand a frame over; its rows must not be written to any more."""
        with self._turn:
            if not self._has_ended:
                self._waiting.append((frame, time.perf_counter()))
                self._turn.notify()

    def finish(self, first_tokens: tuple[Token, ...]) -> None:
        """No more frames will come."""
        with self._turn:
            self._first_tokens = first_tokens
            self._turn.notify_all()

    def abort(self, reason: str) -> None:
        """Give up. The sink hears why, or at least, within GRACE_S, that nobody is there."""
        with self._turn:
            if not self._has_ended:
                self._farewell = self.transfer.abort(reason)
                self._let_go()

    def _add_stream(self) -> None:
        name = f"source stream {self._num_streams}"
        arguments = (self._num_streams,)
        threading.Thread(target=self._run, args=arguments, name=name, daemon=True).start()
        self._num_streams += 1

    def _run(self, stream: int) -> None:
        """A sending thread, from dialling to the connection's end."""
        connection = self._dial(stream)
        if connection is None:
            return
        hearing = threading.Thread(target=self._hear, args=(connection,), daemon=True)
        hearing.start()
        try:
            self._speak(stream, connection)
            self._leave(connection)
        except PeerError as error:
            self._end(error)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                hearing.join(GRACE_S)  # the sink's last word, if it comes, says more
            self._end(self._why(error))
        connection.finish()
        hearing.join(GRACE_S)
        connection.break_off()
        hearing.join()
        with self._turn:
            del self._connections[stream]
        connection.close()

    def _dial(self, stream: int) -> Connection | None:
        ticket = self.transfer.ticket

        def keep(sock: socket.socket) -> None:
            with self._turn:
                if self._has_ended:
                    raise ConnectionAbortedError("given up meanwhile")
                self._dialled[stream] = sock

        try:
            self._carrier.connect()
            connection = dial(ticket, stream, ticket.lease_s, keep)
        except PeerError as error:
            if stream == 0:
                self._end(error)
            else:
                logger.info("going on with fewer connections: %s", error)
                self._wanted = stream
            return None
        finally:
            with self._turn:
                self._dialled.pop(stream, None)
        with self._turn:
            if self._has_ended:
                connection.close()
                return None
            self._connections[stream] = connection
        return connection

    def _speak(self, stream: int, connection: Connection) -> None:
        """Raises: OSError."""
        spoke_at = time.monotonic()
        while True:
            with self._turn:
                outgoing = self._next(stream)
                while outgoing is None and not self._has_ended:
                    silent_s = time.monotonic() - spoke_at
                    if silent_s >= _ALIVE_S:
                        outgoing = self.transfer.alive(), None
                    else:
                        self._turn.wait(_ALIVE_S - silent_s)
                        outgoing = self._next(stream)
                if outgoing is None and self._farewell is not None:
                    outgoing, self._farewell = (self._farewell, None), None
            if outgoing is None:
                return
            message, rows = outgoing
            if isinstance(message, Rows) and rows is not None:
                self._carrier.send(connection, message, rows)
            else:
                connection.send(encode(message))
            spoke_at = time.monotonic()

    def _leave(self, connection: Connection) -> None:
        """What this thread has written apart is there: say so where the sink can't tell."""
        if self._carrier.writes_apart and self.transfer.state is State.ENDED:
            ticket_id = self.transfer.ticket.ticket_id
            connection.last_word(encode(NoMoreWrites(ticket_id=ticket_id)))

    def _next(self, stream: int) -> _Outgoing | None:
        transfer = self.transfer
        if self._has_ended:
            return None
        if transfer.state is State.TICKETED:
            return transfer.open(), None
        if self._waiting and self._may_send(self._waiting[0][0]):
            frame, handed_over = self._waiting.popleft()
            header = transfer.rows(frame, handed_over=handed_over, now=time.perf_counter())
            return self._carrier.assign(header), frame.rows
        if transfer.state is State.MOVING and not self._waiting and self._first_tokens is not None:
            return transfer.done(self._first_tokens), None
        if transfer.state is State.DONE:
            self._end(None)
        return None

    def _may_send(self, frame: RowFrame) -> bool:
        return self.transfer.may_send(frame.rows.nbytes) and self._carrier.has_room()

    def _hear(self, connection: Connection) -> None:
        """Credit and refusals, until the connection ends."""
        try:
            while (received := connection.receive()) is not None:
                if received[1] is not None:
                    raise PeerError("decode node: need no rows from it, have some")
                self._take(received[0])
            self._end(PeerError(f"decode node at {self.transfer.ticket.address}: it hung up"))
        except PeerError as error:
            self._end(error)
        except OSError as error:
            self._end(self._why(error))

    def _take(self, received: memoryview) -> None:
        message = decode_to_source(received)
        with self._turn:
            if self._has_ended:
                return
            before = self.transfer.in_flight_bytes
            self.transfer.receive(message, time.perf_counter())
            self._carrier.take(message)
            credit = before - self.transfer.in_flight_bytes
            needed = max(self._carrier.min_connections, self.transfer.window.num_connections)
            wanted = self._wanted or needed
            if self._waiting and self._num_streams < wanted:
                self._add_stream()
            self._turn.notify_all()
        if credit:
            self._on_credit(credit)

    def _end(self, error: PeerError | None) -> None:
        """Once: what comes after it is what the end made happen."""
        with self._turn:
            if self._has_ended:
                return
            if error is not None:
                self.transfer.state = State.ENDED
            self._let_go()
        # Anew: the one that was raised holds on to every frame of its stack.
        self._on_end(None if error is None else PeerError(str(error)))

    def _let_go(self) -> None:
        """Every thread comes to its end; one that the peer keeps waiting is torn away."""
        self._has_ended = True
        self._waiting.clear()
        self._turn.notify_all()
        tear = threading.Timer(GRACE_S, self._break_off)
        tear.daemon = True
        tear.start()

    def _break_off(self) -> None:
        with self._turn:
            for connection in self._connections.values():
                connection.break_off()
            for sock in self._dialled.values():
                with suppress(OSError):  # closed already
                    sock.shutdown(socket.SHUT_RDWR)

    def _why(self, error: OSError) -> PeerError:
        ticket = self.transfer.ticket
        return failure(f"decode node at {ticket.address}", error, ticket.lease_s)
