"""A TCP proxy between sources and a sink that knows where frames begin, and can spoil them.

Everything that passes is a `Unit`: first a connection's hello or welcome, then frame by frame (see
`hetero/transport/connection.py`). A `fault` says what is passed on in the place of each. The link
itself has a delay, a rate, and can be down. Nodes and keys are untouched: the proxy knows no key.
"""

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hetero.transport.connection import split_address
from hetero.transport.handshake import WELCOME_BYTES
from hetero.transport.seals import TAG_BYTES

_HELLO = struct.Struct("<8sHH16sH")
_HELLO_TAG_BYTES = 32
_SIZES = struct.Struct("<II")

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Unit:
    to_sink: bool
    connection: int  # counts from 0, as they came
    number: int  # in its direction; 0 is the hello or the welcome
    raw: bytes


class Cut(Exception):
    """A fault's way to close the connection, after a few last bytes to the receiver."""

    def __init__(self, last: bytes = b"") -> None:
        self.last = last


Fault = Callable[[Unit], list[bytes]]


def faithful(unit: Unit) -> list[bytes]:
    return [unit.raw]


class WireProxy:
    """Sources dial `address`; `sink` is where it dials then."""

    def __init__(self, sink: str = "", *, delay_s: float = 0.0, buffer_units: int = 64) -> None:
        """`buffer_units` wait in each direction of a connection; then it reads no more."""
        self.sink = sink
        self.fault: Fault = faithful
        self.delay_s = delay_s
        self.bytes_per_s: float | None = None
        self.swallows = False  # whatever comes from now on, ends of connections too
        self.units: list[Unit] = []  # all that came, as it came, if `is_recording`
        self.is_recording = False
        self.num_connections = 0
        self.num_bytes = 0  # passed on to the sink
        self._buffer_units = buffer_units
        self._is_up = threading.Event()
        self._is_up.set()
        self._is_closed = False
        self._lanes = {True: _Lane(), False: _Lane()}
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept_all)

    def down(self) -> None:
        """Nothing passes, and nobody is told."""
        self._is_up.clear()

    def up(self) -> None:
        self._is_up.set()

    def close(self) -> None:
        self._is_closed = True
        self.up()
        _shut(self._listener)
        self._listener.close()
        for sock in self._sockets:
            _shut(sock)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept_all(self) -> None:
        while True:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(source)
            try:
                sink = socket.create_connection(split_address(self.sink))
            except OSError:  # the sink is gone
                _shut(source)
                continue
            self._sockets.append(sink)
            for one in (source, sink):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for to_sink, ends in ((True, (source, sink)), (False, (sink, source))):
                waiting: queue.Queue[_Piece] = queue.Queue(self._buffer_units)
                self._start(self._read, *ends, waiting, to_sink, self.num_connections)
                self._start(self._write, *ends, waiting, to_sink)
            self.num_connections += 1

    def _read(
        self,
        here: socket.socket,
        there: socket.socket,
        waiting: "queue.Queue[_Piece]",
        to_sink: bool,
        connection: int,
    ) -> None:
        number = 0
        while True:
            self._is_up.wait()
            raw, is_whole = _read_unit(here, number, to_sink)
            due = time.monotonic() + self.delay_s
            is_lost = self.swallows  # as it was before the fault
            if not is_whole:
                waiting.put(_Piece(due, b"" if is_lost else raw, is_last=True))
                return
            unit = Unit(to_sink=to_sink, connection=connection, number=number, raw=raw)
            if self.is_recording:
                self.units.append(unit)
            number += 1
            try:
                for piece in self.fault(unit):
                    waiting.put(_Piece(due, b"" if is_lost else piece))
            except Cut as cut:
                waiting.put(_Piece(due, cut.last, is_last=True))
                _shut(here, socket.SHUT_RD)

    def _write(
        self,
        here: socket.socket,
        there: socket.socket,
        waiting: "queue.Queue[_Piece]",
        to_sink: bool,
    ) -> None:
        is_open = True
        while True:
            piece = waiting.get()
            time.sleep(0 if self._is_closed else max(0.0, piece.due - time.monotonic()))
            for start in range(0, len(piece.raw) if is_open else 0, _CHUNK_BYTES):
                chunk = piece.raw[start : start + _CHUNK_BYTES]
                self._is_up.wait()
                self._lanes[to_sink].wait_turn(len(chunk), self.bytes_per_s)
                try:
                    there.sendall(chunk)
                except OSError:  # the receiver has gone: so must the sender
                    is_open = False
                    _shut(here)
                    break
                self.num_bytes += to_sink * len(chunk)
            if piece.is_last:
                if not self.swallows:
                    _shut(there, socket.SHUT_WR)
                return


@dataclass(frozen=True)
class _Piece:
    due: float
    raw: bytes
    is_last: bool = False  # the sender has ended


class _Lane:
    """One direction of the link, which its connections share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait_turn(self, num_bytes: int, bytes_per_s: float | None) -> None:
        if bytes_per_s is None:
            return
        with self._lock:
            start = max(self._free_at, time.monotonic())
            self._free_at = start + num_bytes / bytes_per_s
        time.sleep(max(0.0, start - time.monotonic()))


def _read_unit(sock: socket.socket, number: int, to_sink: bool) -> tuple[bytes, bool]:
    """The next unit's bytes, and whether all of it came before the sender ended."""
    if number == 0 and not to_sink:
        return _read_bytes(sock, WELCOME_BYTES)
    head, is_whole = _read_bytes(sock, _SIZES.size if number else _HELLO.size)
    if not is_whole:
        return head, False
    if number == 0:
        rest = _HELLO.unpack(head)[-1] + _HELLO_TAG_BYTES
    else:
        message_bytes, rows_bytes = _SIZES.unpack(head)
        rest = message_bytes + TAG_BYTES + (rows_bytes + TAG_BYTES if rows_bytes else 0)
    body, is_whole = _read_bytes(sock, rest)
    return head + body, is_whole


def _read_bytes(sock: socket.socket, num_bytes: int) -> tuple[bytes, bool]:
    buffer = bytearray(num_bytes)
    filled = 0
    with contextlib.suppress(OSError):
        while filled < num_bytes:
            received = sock.recv_into(memoryview(buffer)[filled:], 0, socket.MSG_WAITALL)
            if not received:
                break
            filled += received
    return bytes(buffer[:filled]), filled == num_bytes


def _shut(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(how)


# Faults: each spoils one unit of one direction, of the first connection, and passes the rest on.


class Spoil:
    """In the place of unit `number`, what `change` makes of it."""

    def __init__(
        self, number: int, change: Callable[[bytes], list[bytes]], *, to_sink: bool = True
    ) -> None:
        self._where = (to_sink, 0, number)
        self._change = change
        self.happened = threading.Event()

    def __call__(self, unit: Unit) -> list[bytes]:
        if (unit.to_sink, unit.connection, unit.number) != self._where:
            return [unit.raw]
        self.happened.set()
        return self._change(unit.raw)


class Late:
    """Unit `number` comes after the `by` units that should follow it."""

    def __init__(self, number: int, by: int, *, to_sink: bool = True) -> None:
        self._to_sink, self._number, self._by = to_sink, number, by
        self._held = b""
        self.happened = threading.Event()

    def __call__(self, unit: Unit) -> list[bytes]:
        if unit.to_sink is not self._to_sink or unit.connection != 0:
            return [unit.raw]
        if unit.number == self._number:
            self._held = unit.raw
            self.happened.set()
            return []
        if unit.number == self._number + self._by:
            return [unit.raw, self._held]
        return [unit.raw]


def flip(bit: int) -> Callable[[bytes], list[bytes]]:
    """Negative bits count from the end."""

    def flipped(raw: bytes) -> list[bytes]:
        spoiled = bytearray(raw)
        spoiled[bit // 8] ^= 1 << bit % 8
        return [bytes(spoiled)]

    return flipped


def truncate(by: int) -> Callable[[bytes], list[bytes]]:
    """The rest goes on behind it."""
    return lambda raw: [raw[:-by]]


def cut(by: int) -> Callable[[bytes], list[bytes]]:
    """Truncated, and the connection is closed."""

    def cutting(raw: bytes) -> list[bytes]:
        raise Cut(raw[: len(raw) - by])

    return cutting


def drop(raw: bytes) -> list[bytes]:
    return []


def duplicate(raw: bytes) -> list[bytes]:
    return [raw, raw]


def oversized(rows_bytes: int) -> Callable[[bytes], list[bytes]]:
    """The frame with as many bytes of rows, and says so."""

    def grown(raw: bytes) -> list[bytes]:
        message_bytes, _ = _SIZES.unpack_from(raw)
        return [_SIZES.pack(message_bytes, rows_bytes) + raw[_SIZES.size :], bytes(rows_bytes)]

    return grown


def replace(other: bytes) -> Callable[[bytes], list[bytes]]:
    return lambda raw: [other]


def of_version(version: int) -> Callable[[bytes], list[bytes]]:
    """A hello that says another wire version."""
    return lambda raw: [raw[:8] + struct.pack("<H", version) + raw[10:]]
