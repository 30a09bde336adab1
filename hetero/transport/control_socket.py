"""Control sockets: one side listens and is a CURVE server, the other dials and is its client.

There are no others: a socket gets its keys where it gets its address. The server proves its key to
nodes that were given it, and hears those whose key is on its allow-list.
"""

import ipaddress
import socket as sockets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import zmq

from hetero.errors import ConfigError
from hetero.transport import zap
from hetero.transport.allow_list import AllowList
from hetero.transport.keys import KeyPair, check_public_key, load_key, secret_file_of

# A dead peer is noticed by the connection within this time, whatever TCP thinks.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 2_000, 10_000

# One that connects and does not come through its handshake by then is hung up on; so is, at the
# latest, one whose key is not allowed. Before a node complains that it gets no answer.
HANDSHAKE_MS = 3_000

# A node that is not allowed, or whose router is away, tries as often as this. libzmq's 100 ms
# would be ten key exchanges a second.
_RECONNECT_MS = 250


@dataclass(frozen=True, kw_only=True)
class RouterKeys:
    """What a router proves itself with, and whom it hears."""

    key: KeyPair
    allowed: AllowList

    @classmethod
    def load(cls, directory: Path, name: str) -> Self:
        """Raises: ConfigError if the router's key isn't there, or others may write the list."""
        key = load_key(secret_file_of(directory, name))
        allowed = AllowList(directory)
        for path in (directory, allowed.directory):
            if path.exists() and path.stat().st_mode & 0o022:
                raise ConfigError(
                    f"{path}: need a directory that only its owner can write to, have mode "
                    f"{path.stat().st_mode & 0o777:o}: chmod 700 {path}"
                )
        return cls(key=key, allowed=allowed)


@dataclass(frozen=True, kw_only=True)
class RouterContact:
    """Where a node finds its router, the key it expects there, and its own."""

    address: str
    router_key: str  # public
    key: KeyPair

    def __post_init__(self) -> None:
        check_public_key(self.router_key, "router_key")


class Peer(NamedTuple):
    """Whom a message came from: a connection, and the key it was opened with."""

    route: bytes
    key: str


class ControlListener:
    """The router's end, in a ZeroMQ context of its own. `socket` is a ROUTER of the given class."""

    def __init__(
        self,
        address: str,
        keys: RouterKeys,
        max_bytes: int,
        socket_class: type[Any] = zmq.Socket,
    ) -> None:
        check_interface("control", address)
        self._context: zmq.Context[Any] = zmq.Context()
        self._zap = zap.ZapHandler(self._context, keys.allowed)
        self.socket: Any = self._context.socket(zmq.ROUTER, socket_class=socket_class)
        set_link_options(self.socket, max_bytes)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        keys.key.set_on(self.socket)
        self.socket.setsockopt(zmq.ZAP_DOMAIN, zap.DOMAIN)
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        # A node comes back before its old connection is known dead, under the same route. Routes
        # are random numbers that nodes choose and nobody is told, so none takes another's.
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            self.address = bind(self.socket, address)
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        self.socket.close()
        self._context.term()
        self._zap.join()


def split_received(frames: Sequence[zmq.Frame]) -> tuple[Peer, list[bytes]]:
    """Sender and parts of what a listener's socket received with `copy=False`."""
    route, *parts = frames
    # Of the authenticated connection, so no message can claim another's.
    key = str(frames[-1].get("User-Id"))
    return Peer(route.bytes, key), [part.bytes for part in parts]


def dial(
    context: "zmq.Context[zmq.Socket[bytes]]", router: RouterContact, route: str, max_bytes: int
) -> "zmq.Socket[bytes]":
    """The node's end: a DEALER. `route` must be a secret of this process: who connects under it
    gets what the router sends there."""
    socket = context.socket(zmq.DEALER)
    set_link_options(socket, max_bytes)
    socket.setsockopt(zmq.IDENTITY, route.encode())
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.CURVE_SERVERKEY, router.router_key.encode())
    router.key.set_on(socket)
    socket.connect(router.address)
    return socket


def set_link_options(socket: "zmq.Socket[Any]", max_bytes: int) -> None:
    """What every hetero socket has: no lingering, bounded messages, dead peers noticed."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.SNDHWM, 0)  # credit bounds what is queued
    socket.setsockopt(zmq.RCVHWM, 0)


def bind(socket: "zmq.Socket[Any]", address: str) -> str:
    """Bind to `tcp://host:port` (port 0 or *: any); the address others can dial.

    Raises: ConfigError if the port is taken or the address is not of this machine.
    """
    try:
        socket.bind(address.replace(":0", ":*") if address.endswith(":0") else address)
    except zmq.ZMQError as error:
        raise ConfigError(f"{address}: can't listen there: {error.strerror.lower()}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def check_interface(field: str, address: str) -> None:
    """Raises: ConfigError if `tcp://host:port` means every interface of this machine, in whatever
    spelling."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        numeric = sockets.getaddrinfo(host, None, flags=sockets.AI_NUMERICHOST)
        found = {str(info[4][0]) for info in numeric}
    except (OSError, UnicodeError):  # an interface's name, which ZeroMQ knows, or nonsense
        found = {"0.0.0.0"} if host == "*" else set()
    if any(_is_wildcard(number) for number in found):
        raise ConfigError(
            f"{field}: need the address of the interface that the cluster's nodes dial, have "
            f"{address}, which is all of them"
        )


def _is_wildcard(number: str) -> bool:
    address = ipaddress.ip_address(number.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_unspecified)
