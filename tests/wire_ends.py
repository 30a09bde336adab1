"""Either end of a transfer, driven by hand over real connections: honest, or not."""

import contextlib
import queue
import socket
import threading

from hetero.errors import PeerError
from hetero.messages import decode_to_sink, decode_to_source, encode
from hetero.transport.connection import answer, dial
from hetero.transport.handshake import read_hello
from hetero.transport.transfer import SourceTransfer

WAIT_S = 20


class HandSource:
    """A prefill node's end of one transfer, on one connection."""

    def __init__(self, ticket, fingerprint):
        self.transfer = SourceTransfer(ticket, fingerprint)
        self.connection = dial(ticket, 0, WAIT_S)
        self.connection.set_patience(WAIT_S)
        self.say(self.transfer.open())

    def say(self, message, rows=None):
        self.connection.send(encode(message), rows)

    def hear(self, kind):
        received = self.connection.receive()
        assert received is not None, "the sink has hung up"
        message = decode_to_source(received[0])
        assert isinstance(message, kind), message
        return message

    def ready(self):
        self.take(self.hear(object))

    def take(self, message):
        self.transfer.receive(message, 0.0)

    def send(self, frames):
        for frame in frames:
            while not self.transfer.may_send(frame.rows.nbytes):
                self.take(self.hear(object))
            self.say(self.transfer.rows(frame, handed_over=0.0, now=0.0), frame.rows)

    def done(self, first_tokens):
        self.say(self.transfer.done(first_tokens))

    def close(self):
        self.connection.break_off()
        self.connection.close()


class HandSink:
    """A decode node's listening end: whatever comes in under one of its `tickets`, in order."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.tickets = {}  # by id
        self._received = queue.SimpleQueue()  # (connection, message, rows)
        self._connections = []
        threading.Thread(target=self._accept_all, daemon=True).start()

    def send(self, connection, message):
        # A source that gave up has hung up: what it said last is still to be received.
        with contextlib.suppress(OSError):
            connection.send(encode(message))

    def receive(self):
        """The next (connection, message, rows)."""
        try:
            return self._received.get(timeout=WAIT_S)
        except queue.Empty:
            raise AssertionError("the source fell silent") from None

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.break_off()

    def _accept_all(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            said = b""
            while (hello := read_hello(said)) is None:
                said += sock.recv(4096)
            connection = answer(sock, hello, self.tickets[hello.ticket_id])
            connection.set_patience(WAIT_S)
            self._connections.append(connection)
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection):
        with contextlib.suppress(OSError, PeerError):
            while (received := connection.receive()) is not None:
                message, rows = received
                copy = None if rows is None else memoryview(bytes(rows))
                self._received.put((connection, decode_to_sink(message), copy))
        connection.close()
