"""Frames over one TCP connection: a message, and rows after it where the message is about rows.

    u32 bytes of the message, u32 bytes of the rows, the message sealed, the rows sealed

The message begins with the second of these sizes again, under its seal.

Calls block, and let other threads run meanwhile. One thread at a time may receive. At each end rows
are copied twice at most: sealed and handed to the kernel, or taken from the kernel and (by the
caller) put in their place.
"""

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from hetero.errors import PeerError
from hetero.messages import SealName, Ticket
from hetero.transport.handshake import (
    WELCOME_BYTES,
    Hello,
    SessionKeys,
    check_welcome,
    make_hello,
    make_welcome,
    session_keys,
)
from hetero.transport.seals import TAG_BYTES, copy_bytes, make_seal

# Frames aim at 2 MiB: a single layer of a long chunk is split by tokens. Nothing honest comes
# near the second.
MAX_ROWS_BYTES = 4 * 2**20
MAX_MESSAGE_BYTES = 2**20

_SIZES = struct.Struct("<II")
_ROWS_BYTES = struct.Struct("<I")
_NO_ROWS = memoryview(b"")

# What is over may still say its last word for so long.
GRACE_S = 0.5

# Another thread is done with sending a reply within this, or the peer takes nothing any more.
_LAST_TURN_S = 0.1

# The kernel holds no more than this that it hasn't sent yet: what is aborted should not queue.
_UNSENT_BYTES = 2**20


class Connection:
    """An authenticated connection between the two ends of a transfer."""

    def __init__(
        self, sock: socket.socket, seal: SealName, keys: SessionKeys, *, is_source: bool
    ) -> None:
        self._socket = sock
        ours, theirs = keys.to_sink, keys.to_source
        if not is_source:
            ours, theirs = theirs, ours
        self._sealing = make_seal(seal, ours)
        self._opening = make_seal(seal, theirs)
        self._turn_to_send = threading.Lock()
        self._silence_s = 0.0
        self._message = memoryview(bytearray(4096))
        # Not touched, and so not in memory, before rows come; then only as much as they need.
        self._rows = np.empty(MAX_ROWS_BYTES + TAG_BYTES, np.uint8).data

    def set_patience(self, silence_s: float) -> None:
        """How long nothing may come, and how long a frame may take to follow its sizes: those are
        not sealed, and a frame that damage made larger would never be complete."""
        self._silence_s = silence_s
        seconds = struct.pack("ll", int(silence_s), int(1e6 * (silence_s % 1)))
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def send(self, message: bytes, rows: npt.NDArray[np.uint8] | None = None) -> None:
        """Raises: OSError; BlockingIOError if the peer takes nothing for too long."""
        payload = _NO_ROWS if rows is None else rows.reshape(-1).data
        with self._turn_to_send:
            pieces = self._sealed(message, payload.nbytes)
            if payload.nbytes:
                pieces += self._sealing.seal(payload)
            _send_all(self._socket, pieces)

    def send_apart(
        self,
        message: bytes,
        rows: npt.NDArray[np.uint8],
        room: memoryview,
        carry: Callable[[memoryview], None],
    ) -> None:
        """Seal the rows into `room`, have them carried from there, and then say that they came.

        Raises: what `carry` does; OSError as `send` does.
        """
        with self._turn_to_send:
            pieces = self._sealed(message, 0)
            carry(self._sealing.seal_into(rows.reshape(-1).data, room))
            _send_all(self._socket, pieces)

    def open_apart(self, sealed: memoryview) -> memoryview:
        """Rows that `send_apart` carried, after its message was received; valid until the next.

        They are copied before they are opened: whoever can still write to `sealed` changes nothing
        that was found to be right.
        """
        rows = self._rows[: sealed.nbytes]
        copy_bytes(sealed, rows)
        return self._opening.open(rows)

    def last_word(self, message: bytes) -> None:
        """Say a short message if the peer takes it soon, and nothing more. Any thread may."""
        if self._turn_to_send.acquire(timeout=_LAST_TURN_S):
            with suppress(OSError):  # the peer is gone, or doesn't listen
                self._socket.sendmsg(self._sealed(message, 0), (), socket.MSG_DONTWAIT)
            self._turn_to_send.release()
        self.finish()

    def receive(self) -> tuple[memoryview, memoryview | None] | None:
        """A message, and its rows: both valid until the next call. None when the peer has ended.

        Raises: PeerError for anything that the peer did not send as it came; OSError;
        BlockingIOError if nothing comes for too long.
        """
        head = memoryview(bytearray(_SIZES.size))
        if not self._fill(head, may_end=True):
            return None
        message_bytes, rows_bytes = _SIZES.unpack(head)
        if message_bytes > MAX_MESSAGE_BYTES or rows_bytes > MAX_ROWS_BYTES:
            raise PeerError(
                f"frame: need at most {MAX_MESSAGE_BYTES} bytes of message and {MAX_ROWS_BYTES} of "
                f"rows, have {message_bytes} and {rows_bytes}"
            )
        if message_bytes + TAG_BYTES > len(self._message):
            self._message = memoryview(bytearray(message_bytes + TAG_BYTES))
        said = self._open(self._message[: message_bytes + TAG_BYTES])
        # The sizes before it could have been changed to swallow the next message as rows.
        if said.nbytes < _ROWS_BYTES.size or _ROWS_BYTES.unpack_from(said)[0] != rows_bytes:
            raise PeerError("frame: need the sizes that were sent, have others")
        message = said[_ROWS_BYTES.size :]
        if not rows_bytes:
            return message, None
        return message, self._open(self._rows[: rows_bytes + TAG_BYTES])

    @property
    def local_host(self) -> str:
        """This machine's address on it."""
        return str(self._socket.getsockname()[0])

    def finish(self) -> None:
        """Nothing more will be sent; the peer may still be heard. Any thread may say so."""
        _shut(self._socket, socket.SHUT_WR)

    def break_off(self) -> None:
        """Ends whatever a thread waits for here. Any thread may say so."""
        _shut(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _sealed(self, message: bytes, rows_bytes: int) -> list[memoryview | bytes]:
        said = _ROWS_BYTES.pack(rows_bytes) + message
        sizes = _SIZES.pack(len(said), rows_bytes)
        return [sizes, *map(bytes, self._sealing.seal(memoryview(said)))]

    def _open(self, sealed: memoryview) -> memoryview:
        self._fill(sealed)
        return self._opening.open(sealed)

    def _fill(self, buffer: memoryview, *, may_end: bool = False) -> bool:
        return _receive_all(self._socket, buffer, self._silence_s, may_end=may_end)


def dial(
    ticket: Ticket,
    stream: int,
    timeout_s: float,
    on_socket: Callable[[socket.socket], None] = lambda sock: None,
) -> Connection:
    """A connection to a ticket's holder. Streams of one ticket are told apart by number.

    `on_socket` gets the socket as soon as it is connected: shut down, it ends the wait for a
    welcome.

    Raises: PeerError if nobody is there, or it isn't who gave the ticket.
    """
    sock, keys = _introduce(ticket, stream, timeout_s, on_socket)
    connection = Connection(sock, ticket.seal, keys, is_source=True)
    connection.set_patience(ticket.lease_s)
    return connection


def dial_plain(ticket: Ticket, timeout_s: float) -> socket.socket:
    """A bare socket to a ticket's holder, for bytes that mean nothing. Raises: as `dial`."""
    sock, _ = _introduce(ticket, 0, timeout_s, lambda sock: None)
    return sock


def _introduce(
    ticket: Ticket, stream: int, timeout_s: float, on_socket: Callable[[socket.socket], None]
) -> tuple[socket.socket, SessionKeys]:
    hello = make_hello(ticket.ticket_id, ticket.key, stream)
    try:
        sock = socket.create_connection(split_address(ticket.address), timeout_s)
        try:
            on_socket(sock)
            tune(sock)
            sock.sendall(hello)
            welcome = memoryview(bytearray(WELCOME_BYTES))
            _receive_all(sock, welcome, timeout_s)
            check_welcome(hello, bytes(welcome), ticket.key)
        except BaseException:
            sock.close()
            raise
    except PeerError as error:
        raise PeerError(f"{ticket.address}: {error}") from None
    except (OSError, ValueError, OverflowError) as error:  # the last two: it isn't an address
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise PeerError(f"{ticket.address}: can't connect: {reason}") from None
    return sock, session_keys(hello, bytes(welcome), ticket.key)


def answer(sock: socket.socket, hello: Hello, ticket: Ticket) -> Connection:
    """The sink's end of a connection whose hello was verified. Raises: OSError if it is gone."""
    welcome = make_welcome(hello.raw, ticket.key)
    sock.send(welcome)  # the first bytes on it: the kernel has room
    tune(sock)
    keys = session_keys(hello.raw, welcome, ticket.key)
    connection = Connection(sock, ticket.seal, keys, is_source=False)
    connection.set_patience(ticket.lease_s)
    return connection


def failure(peer: str, error: OSError, silence_s: float) -> PeerError:
    """What an error of a connection's socket means to a person."""
    if isinstance(error, BlockingIOError):
        return PeerError(f"{peer}: need a sign of life within {silence_s:g} s, have none")
    return PeerError(f"{peer}: connection lost: {(error.strerror or str(error)).lower()}")


def tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; an IPv6 host stands in brackets."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def _send_all(sock: socket.socket, pieces: Sequence[memoryview | bytes]) -> None:
    """The kernel takes all of it at once, unless the peer is slow to the end of our patience."""
    left = [memoryview(piece) for piece in pieces]
    while left:
        sent = sock.sendmsg(left)
        while left and sent >= left[0].nbytes:
            sent -= left.pop(0).nbytes
        if sent:
            left[0] = left[0][sent:]


def _receive_all(
    sock: socket.socket, buffer: memoryview, patience_s: float, *, may_end: bool = False
) -> bool:
    """Whether the buffer is full: with `may_end` the peer may have ended before its first byte."""
    filled = 0
    deadline = time.monotonic() + patience_s
    while filled < buffer.nbytes:
        received = sock.recv_into(buffer[filled:], 0, _flags(sock))
        if not received:
            if may_end and not filled:
                return False
            raise PeerError("connection: need the rest of a frame, have its end")
        filled += received
        if filled < buffer.nbytes and time.monotonic() >= deadline:
            raise BlockingIOError(errno.EAGAIN, "the rest of a frame did not come in time")
    return True


def _flags(sock: socket.socket) -> int:
    # With a timeout of Python's own the socket doesn't block, and there is nothing to wait for.
    return 0 if sock.gettimeout() else socket.MSG_WAITALL


def _shut(sock: socket.socket, how: int) -> None:
    with suppress(OSError):  # it is closed already, by the peer or here
        sock.shutdown(how)
