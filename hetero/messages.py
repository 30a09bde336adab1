"""What crosses a process boundary: frozen structs, checked where they enter.

Grouped by receiver: control messages are between router and nodes, transfer messages between a KV
cache's source and its sink. A number from here sizes memory only after a limit of our own is asked.
"""

from typing import Annotated, Literal, TypeVar

import msgspec

from hetero.errors import HeteroError, PeerError
from hetero.kv.layout import KVLayout
from hetero.tickets import Count as Count
from hetero.tickets import Name as Name
from hetero.tickets import SealName as SealName
from hetero.tickets import SlotRing as SlotRing
from hetero.tickets import Ticket as Ticket
from hetero.tickets import TransportName as TransportName

_T = TypeVar("_T")

# The first byte of every message; raised with every change that an older peer would misread.
WIRE_VERSION = 3

# The longest prompt a peer may announce: the "1M tokens later" of the roadmap, with room.
MAX_PROMPT_TOKENS = 4 * 2**20

# Of an abort or a refusal: it may quote what somebody else said.
MAX_REASON_CHARS = 1000

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
Tokens = Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of all; the tag is the class name."""


# What two nodes must agree on before a byte of KV moves.


class ModelFingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """blake3 digests of the parts of a GGUF file that decide what a cache row means."""

    hyperparameters: str
    tokenizer: str
    chat_template: str
    tensors: str


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A node's side of a handover. Two nodes may pair only if all of it is equal."""

    model: ModelFingerprint
    layout: KVLayout

    def differences(self, other: "Fingerprint") -> list[str]:
        """Every field that differs, with both values."""
        ours, theirs = _flat(self), _flat(other)
        return [
            f"{name}: {ours[name]} here, {theirs[name]} there"
            for name in ours
            if ours[name] != theirs[name]
        ]


def _flat(fingerprint: Fingerprint) -> dict[str, object]:
    flat: dict[str, object] = {}
    for part in (fingerprint.model, fingerprint.layout):
        flat |= msgspec.structs.asdict(part)
    return flat


# Parts of requests.


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a request's tokens are drawn. The defaults of the first two rows are OpenAI's, of the
    others llama.cpp's. Draws are a function of (seed, choice, position) alone."""

    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str = ""  # GBNF, its root rule named "root"
    ignore_eos: bool = False
    top_logprobs: int | None = None  # None: no log-probabilities at all


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One generated token of one choice; `index` counts from 0 at the first one."""

    request_id: str
    choice: int
    index: int
    token: int
    logprob: TokenLogprob | None = None


# Node -> router.


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: Name
    role: Literal["prefill", "decode"]
    host: str
    pid: int
    # New at every start: a restarted node has forgotten what it held. Also the route of its
    # connection, so that nobody but the router is told.
    instance: str
    model: str
    fingerprint: Fingerprint
    context_tokens: int  # longest prompt plus answer it takes
    num_slots: int  # sequences it decodes at once; 1 for a prefill node
    chunk_tokens: int  # prompt tokens it reads at a time
    engine: str
    attention: str
    emulated: str = ""  # the device that a replay of recorded rows stands for; empty: it computes
    seal: SealName  # a decode node's transfers have it; a prefill node takes none weaker
    transport: TransportName = "tcp"
    allow_tcp: bool = False  # where the other has nothing else
    versions: dict[str, str]


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    active: Count = 0
    queued: Count = 0
    kv_bytes_held: Count = 0  # staging blobs and the cells of running sequences
    kv_moved_bytes: Count = 0  # since start


class Hello(Message, frozen=True, kw_only=True):
    """Sent at start and whenever the router asks who this is."""

    info: NodeInfo
    load: NodeLoad


class Heartbeat(Message, frozen=True, kw_only=True):
    load: NodeLoad


class Goodbye(Message, frozen=True, kw_only=True):
    """The node is being stopped."""


class Reserved(Message, frozen=True, kw_only=True):
    request_id: Name
    ticket: Ticket


class FirstTokens(Message, frozen=True, kw_only=True):
    """The prefill node's draw for every choice, before its KV has arrived anywhere."""

    request_id: Name
    tokens: tuple[Token, ...]
    prefill_s: float
    pack_s: float
    num_chunks: int


class Sent(Message, frozen=True, kw_only=True):
    """All KV of a request was sent and acknowledged."""

    request_id: Name
    kv_bytes: int
    wire_s: float  # while at least one frame was in flight
    last_group_s: float  # from handing over the last layer group to its acknowledgement


class Joined(Message, frozen=True, kw_only=True):
    """The request's sequences are in the running batch: its next step yields the second token."""

    request_id: Name
    prefill_s: float  # 0 if the KV came over the wire
    restore_s: float


class Generated(Message, frozen=True, kw_only=True):
    tokens: tuple[Token, ...]


class Finished(Message, frozen=True, kw_only=True):
    """One choice ended by itself; `stop` is an end token, which is not among its tokens' text."""

    request_id: Name
    choice: int
    reason: Literal["stop", "length"]


class Failed(Message, frozen=True, kw_only=True):
    """A node gave up on one request and holds nothing of it any more."""

    request_id: Name
    kind: str  # the HeteroError class
    message: str


def failed(request_id: str, error: HeteroError) -> Failed:
    return Failed(request_id=request_id, kind=type(error).__name__, message=str(error))


# Router -> node.


class WhoAreYou(Message, frozen=True, kw_only=True):
    """The router does not know this peer (one of them has restarted): say Hello again."""


class Welcome(Message, frozen=True, kw_only=True):
    """The router knows this node now, and may give it work."""


class Unwelcome(Message, frozen=True, kw_only=True):
    """The router will never give this node work: its model, or its name, is another's."""

    reason: str


class Reserve(Message, frozen=True, kw_only=True):
    """Hold room for a prompt whose KV will come over the wire."""

    request_id: Name
    num_prompt_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROMPT_TOKENS)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    num_choices: Annotated[int, msgspec.Meta(ge=1)]
    sampling: Sampling


class Generate(Message, frozen=True, kw_only=True):
    """Read the prompt on the decode node itself, then generate."""

    request_id: Name
    prompt: Tokens
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    num_choices: Annotated[int, msgspec.Meta(ge=1)]
    sampling: Sampling


class Prefill(Message, frozen=True, kw_only=True):
    """Read a prompt, draw its first tokens, and stream its KV to the ticket's holder."""

    request_id: Name
    prompt: Tokens
    num_choices: Annotated[int, msgspec.Meta(ge=1)]
    sampling: Sampling
    ticket: Ticket | None  # None: the request ends at its first token, so no KV moves


class Renew(Message, frozen=True, kw_only=True):
    """The router still wants these requests: extend their leases. Unknown ones are answered with
    Failed, so that no request waits for a node that has forgotten it."""

    request_ids: tuple[Name, ...]


class Cancel(Message, frozen=True, kw_only=True):
    """Free everything held for a request. Unknown ids are fine: it may just have ended."""

    request_id: Name


# Source -> sink of a transfer.


class Open(Message, frozen=True, kw_only=True):
    ticket_id: Name
    fingerprint: Fingerprint


class Rows(Message, frozen=True, kw_only=True):
    """Header of a row frame. The rows, sealed, follow it on the same connection, or lie in a slot
    already."""

    ticket_id: Name
    kind: Literal["k", "v"]
    first_layer: Count
    end_layer: Count
    first_token: Count
    end_token: Count
    frame: Count  # counts from 0 in a transfer; its credit names it
    slot: Count | None = None  # one of those that the sink has lent
    slot_bytes: Count = 0  # of the rows in it, not of their seal


class Done(Message, frozen=True, kw_only=True):
    """All rows are sent; the first tokens to go on from, one per choice."""

    ticket_id: Name
    first_tokens: tuple[Token, ...]


class Abort(Message, frozen=True, kw_only=True):
    ticket_id: Name
    reason: Reason


class NoMoreWrites(Message, frozen=True, kw_only=True):
    """Of a transfer that ended early: whoever speaks here will write to no slot any more."""

    ticket_id: Name


# Either way: says that its sender is there when it has nothing else to say.


class Alive(Message, frozen=True, kw_only=True):
    ticket_id: Name


# Sink -> source.


class Ready(Message, frozen=True, kw_only=True):
    """The fingerprints agree; this many bytes of rows may be in flight, in these slots."""

    ticket_id: Name
    credit_bytes: Annotated[int, msgspec.Meta(ge=1)]
    slots: tuple[Count, ...] = ()


class Credit(Message, frozen=True, kw_only=True):
    """A frame has been placed: its bytes may be spent again."""

    ticket_id: Name
    frame: Count


class Refused(Message, frozen=True, kw_only=True):
    """The sink wants no more of this transfer: mismatch, cancelled, lease expired, bad frame."""

    ticket_id: Name
    reason: Reason


ToRouter = (
    Hello
    | Heartbeat
    | Goodbye
    | Reserved
    | FirstTokens
    | Sent
    | Joined
    | Generated
    | Finished
    | Failed
)
ToNode = WhoAreYou | Welcome | Unwelcome | Reserve | Generate | Prefill | Renew | Cancel
ToSink = Open | Rows | Done | Abort | NoMoreWrites | Alive
ToSource = Ready | Credit | Refused | Alive

_VERSION_BYTE = bytes([WIRE_VERSION])
_encoder = msgspec.msgpack.Encoder()
_to_router: msgspec.msgpack.Decoder[ToRouter] = msgspec.msgpack.Decoder(ToRouter)
_to_node: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
_to_sink: msgspec.msgpack.Decoder[ToSink] = msgspec.msgpack.Decoder(ToSink)
_to_source: msgspec.msgpack.Decoder[ToSource] = msgspec.msgpack.Decoder(ToSource)


def encode(message: Message) -> bytes:
    return _VERSION_BYTE + _encoder.encode(message)


def decode_to_router(raw: bytes | memoryview) -> ToRouter:
    return _decoded(_to_router, raw)


def decode_to_node(raw: bytes | memoryview) -> ToNode:
    return _decoded(_to_node, raw)


def decode_to_sink(raw: bytes | memoryview) -> ToSink:
    return _decoded(_to_sink, raw)


def decode_to_source(raw: bytes | memoryview) -> ToSource:
    return _decoded(_to_source, raw)


def _decoded(decoder: msgspec.msgpack.Decoder[_T], raw: bytes | memoryview) -> _T:
    if raw[:1] != _VERSION_BYTE:
        have = raw[0] if raw else "an empty message"
        raise PeerError(f"wire version: need {WIRE_VERSION}, have {have}; install the same hetero")
    try:
        return decoder.decode(raw[1:])
    # The second is for a string that isn't UTF-8, the third for lists in lists in lists.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"malformed message of {len(raw)} bytes: {error}") from None
