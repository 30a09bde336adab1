"""The listening socket of a node's data path: who is at the door, and whether anyone expects them.

A stranger is told nothing: its connection is closed when it says something else than a hello, or
too much, or too little for too long. One that says hello under a ticket given out here, with the
ticket's key, is handed to whoever gave it out.
"""

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from hetero.errors import ConfigError, PeerError
from hetero.transport.connection import split_address
from hetero.transport.handshake import Hello, read_hello
from hetero.transport.mailbox import Mailbox

logger = logging.getLogger(__name__)

# A hello fits a packet, and its sender has it ready. If the link is down for two seconds just then,
# TCP sends it again after three.
HELLO_S = 5.0

# Between attempts to take a connection without a file descriptor to put it in.
_NO_ROOM_S = 0.1

# Connections that have not said hello yet. One more, and the oldest has to go.
MAX_STRANGERS = 128

# Takes a verified hello and its socket, on the door's thread: must not block.
Welcome = Callable[[Hello, socket.socket], None]


@dataclass(eq=False)
class _Expected:
    key: bytes
    welcome: Welcome
    seen: set[bytes] = field(default_factory=set)  # hellos: somebody may have recorded one


@dataclass(eq=False)
class _Stranger:
    sock: socket.socket
    deadline: float
    said: bytes = b""


class Door:
    """Listens until closed."""

    def __init__(self, address: str, advertise: str | None = None) -> None:
        """At `tcp://host:port` (port 0: any); `advertise` is what others dial instead.

        Raises: ConfigError if the port is taken or the address is not of this machine.
        """
        self._listener = _listen(address)
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        self.address = advertise or f"tcp://{host}:{port}"
        self._expected: dict[str, _Expected] = {}  # by ticket id
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, _Stranger] = {}  # the oldest first
        self._wake: Mailbox[None] = Mailbox()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._thread.start()

    def expect(self, ticket_id: str, key: bytes, welcome: Welcome) -> None:
        """From now on whoever holds the ticket's key may come in, as often as it likes."""
        with self._lock:
            self._expected[ticket_id] = _Expected(key, welcome)

    def forget(self, ticket_id: str) -> None:
        with self._lock:
            self._expected.pop(ticket_id, None)

    def close(self) -> None:
        self._is_closed = True
        self._wake.put(None)
        self._thread.join()
        self._wake.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._is_closed:
                speaking = [key.fileobj for key, _ in selector.select(self._patience_s())]
                if self._listener in speaking:
                    self._accept(selector)
                done = [one for one in self._strangers.values() if one.sock in speaking]
                for stranger in self._leaving([one for one in done if not self._hear(one)]):
                    del self._strangers[stranger.sock]
                    selector.unregister(stranger.sock)
                    self._admit(stranger)
            for stranger in self._strangers.values():
                stranger.sock.close()

    def _patience_s(self) -> float | None:
        """Until the first stranger's time is over."""
        oldest = next(iter(self._strangers.values()), None)
        return None if oldest is None else max(0.0, oldest.deadline - time.monotonic())

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # it hung up already, or there are no file descriptors left
            logger.warning("a connection was lost before it was accepted: %s", error)
            time.sleep(_NO_ROOM_S)
            return
        sock.setblocking(False)
        self._strangers[sock] = _Stranger(sock, time.monotonic() + HELLO_S)
        selector.register(sock, selectors.EVENT_READ)

    def _hear(self, stranger: _Stranger) -> bool:
        """Whether more is to be waited for."""
        try:
            more = stranger.sock.recv(4096)
            stranger.said += more
            return bool(more) and read_hello(stranger.said) is None
        except BlockingIOError:
            return True
        except (OSError, PeerError):
            return False

    def _leaving(self, done: list[_Stranger]) -> list[_Stranger]:
        """Those who have spoken, those who took too long, and the oldest of too many."""
        now = time.monotonic()
        everyone = list(self._strangers.values())
        too_many = everyone[: max(0, len(everyone) - MAX_STRANGERS)]
        late = [one for one in everyone if one.deadline <= now]
        return list(dict.fromkeys(done + late + too_many))

    def _admit(self, stranger: _Stranger) -> None:
        """Hand it over if it has said hello under a ticket; else close it without a word."""
        self._hear(stranger)  # time may have run out because it was this process that stood
        hello = None
        with suppress(PeerError):
            hello = read_hello(stranger.said)
        expected = None
        if hello is not None:
            with self._lock:
                expected = self._expected.get(hello.ticket_id)
        if (
            hello is None
            or expected is None
            or hello.raw in expected.seen
            or not hello.is_from_holder_of(expected.key)
        ):
            logger.debug("a connection without a valid ticket was closed")
            stranger.sock.close()
            return
        expected.seen.add(hello.raw)
        try:
            expected.welcome(hello, stranger.sock)
        except Exception:  # of this one; the door stays open for others
            logger.exception("a connection could not be taken in")
            stranger.sock.close()


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(MAX_STRANGERS)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{address}: can't listen there: {reason}") from None
    listener.setblocking(False)
    return listener
