"""How a connection begins: both ends show that they know the ticket's key, and agree on keys of
its own. No I/O.

    source -> sink   hello: magic, wire version, stream number, salt, ticket id, tag
    sink -> source   welcome: salt, tag over both

The tags are keyed BLAKE3 under the ticket's key. Fresh salts on both sides make every connection's
keys new, so nothing that was recorded on one means anything on another. A sink answers a hello it
can't verify with nothing at all.
"""

import hmac
import secrets
import struct
from dataclasses import dataclass

import blake3

from hetero.errors import PeerError
from hetero.messages import WIRE_VERSION

_MAGIC = b"heteroKV"
_HEAD = struct.Struct("<8sHH16sH")  # magic, wire version, stream, salt, bytes of the ticket's id
_SALT_BYTES = 16
_MAC_BYTES = 32

WELCOME_BYTES = _SALT_BYTES + _MAC_BYTES
MAX_HELLO_BYTES = _HEAD.size + 1024 + _MAC_BYTES


@dataclass(frozen=True, repr=False)
class SessionKeys:
    to_sink: bytes
    to_source: bytes


@dataclass(frozen=True)
class Hello:
    """What a connection says first, not verified yet."""

    version: int
    stream: int
    ticket_id: str
    raw: bytes

    def is_from_holder_of(self, key: bytes) -> bool:
        return hmac.compare_digest(_mac(key, self.raw[:-_MAC_BYTES]), self.raw[-_MAC_BYTES:])

    def check_version(self) -> None:
        """Raises: PeerError; only a peer that knows the ticket's key should hear it."""
        if self.version != WIRE_VERSION:
            raise PeerError(
                f"wire version: need {WIRE_VERSION}, have {self.version}; install the same hetero"
            )


def make_hello(ticket_id: str, key: bytes, stream: int) -> bytes:
    name = ticket_id.encode()
    salt = secrets.token_bytes(_SALT_BYTES)
    said = _HEAD.pack(_MAGIC, WIRE_VERSION, stream, salt, len(name)) + name
    return said + _mac(key, said)


def read_hello(received: bytes) -> Hello | None:
    """The hello, once all of it is there; more bytes than that are a stranger's.

    Raises: PeerError as soon as it can't become one.
    """
    if not _MAGIC.startswith(received[: len(_MAGIC)]):
        raise PeerError("hello: need one of ours, have something else")
    if len(received) < _HEAD.size:
        return None
    _, version, stream, _, name_bytes = _HEAD.unpack_from(received)
    size = _HEAD.size + name_bytes + _MAC_BYTES
    if size > MAX_HELLO_BYTES or len(received) > size:
        raise PeerError(f"hello: need at most {MAX_HELLO_BYTES} bytes, have more")
    if len(received) < size:
        return None
    try:
        ticket_id = received[_HEAD.size : _HEAD.size + name_bytes].decode()
    except UnicodeDecodeError:
        raise PeerError("hello: need a ticket's id, have other bytes") from None
    return Hello(version=version, stream=stream, ticket_id=ticket_id, raw=received)


def make_welcome(hello: bytes, key: bytes) -> bytes:
    salt = secrets.token_bytes(_SALT_BYTES)
    return salt + _mac(key, hello + salt)


def check_welcome(hello: bytes, welcome: bytes, key: bytes) -> None:
    """Raises: PeerError if it isn't from whoever gave the ticket."""
    salt, tag = welcome[:_SALT_BYTES], welcome[_SALT_BYTES:]
    if not hmac.compare_digest(_mac(key, hello + salt), tag):
        raise PeerError("welcome: need the ticket's key, have another: not the node that gave it")


def session_keys(hello: bytes, welcome: bytes, key: bytes) -> SessionKeys:
    both = hello + welcome
    return SessionKeys(
        to_sink=_mac(key, both + b"to sink"), to_source=_mac(key, both + b"to source")
    )


def _mac(key: bytes, said: bytes) -> bytes:
    return blake3.blake3(said, key=key).digest()
