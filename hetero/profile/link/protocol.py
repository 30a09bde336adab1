"""What the two ends of a link's measurement say to each other, over a connection of their own: the
dialling end asks, the listening one answers."""

from typing import Annotated, TypeVar

import msgspec

from hetero.errors import PeerError
from hetero.kv.layout import KVLayout
from hetero.messages import Fingerprint, Message, Name, SealName, Ticket, TransportName
from hetero.profile.link.key import PATIENCE_S
from hetero.transport.connection import Connection, failure

_T = TypeVar("_T")


class Describe(Message, frozen=True, kw_only=True):
    """What is measured?"""


class Description(Message, frozen=True, kw_only=True):
    host: str
    model: str
    layout: KVLayout
    fingerprint: Fingerprint
    num_tokens: int  # of a transfer
    transport: TransportName
    versions: dict[str, str]


class Ping(Message, frozen=True, kw_only=True):
    pass


class Pong(Message, frozen=True, kw_only=True):
    pass


class Expect(Message, frozen=True, kw_only=True):
    """Make room for a transfer."""

    seal: SealName


class ExpectPlain(Message, frozen=True, kw_only=True):
    """Take bytes that mean nothing, unsealed, from a connection under this ticket."""


class Expected(Message, frozen=True, kw_only=True):
    ticket: Ticket


class Await(Message, frozen=True, kw_only=True):
    """Answer when a transfer is restored into the cache, or the plain bytes have ended."""

    ticket_id: Name


class Restored(Message, frozen=True, kw_only=True):
    """`restore_s` is part of what the transfer took."""

    num_bytes: int
    restore_s: float


class PlainEnded(Message, frozen=True, kw_only=True):
    num_bytes: int
    seconds: float  # from the first byte to the last


class AskUsage(Message, frozen=True, kw_only=True):
    pass


class Usage(Message, frozen=True, kw_only=True):
    cpu_s: float  # of the listening process, since its start


class Failure(Message, frozen=True, kw_only=True):
    reason: Annotated[str, msgspec.Meta(max_length=2000)]


Request = Describe | Ping | Expect | ExpectPlain | Await | AskUsage
Answer = Description | Pong | Expected | Restored | PlainEnded | Usage | Failure

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def say(connection: Connection, message: Request | Answer) -> None:
    connection.send(_encoder.encode(message))


def hear_request(connection: Connection) -> Request | None:
    """None when the dialling end has hung up. Raises: PeerError, OSError."""
    received = connection.receive()
    return None if received is None else _decoded(_requests, received[0])


def ask(connection: Connection, request: Request, kind: type[_T]) -> _T:
    """Raises: PeerError for a failure there, an answer of another kind, or a lost connection."""
    try:
        say(connection, request)
        received = connection.receive()
    except OSError as error:
        raise failure("the listening end", error, PATIENCE_S) from None
    if received is None:
        raise PeerError("the listening end has hung up")
    answer = _decoded(_answers, received[0])
    if isinstance(answer, Failure):
        raise PeerError(f"the listening end: {answer.reason}")
    if not isinstance(answer, kind):
        raise PeerError(f"need {kind.__name__}, have {type(answer).__name__}")
    return answer


def _decoded(decoder: msgspec.msgpack.Decoder[_T], raw: memoryview) -> _T:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise PeerError(f"malformed message of {len(raw)} bytes: {error}") from None
