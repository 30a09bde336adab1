"""What a stranger's bytes reach, as functions of bytes: only PeerError may come out of it.

Each target swallows PeerError and lets everything else through. Hypothesis feeds them in
`test_fuzz.py`, atheris in `fuzz/run.py`.
"""

import struct
from collections.abc import Callable

import numpy as np

from hetero import messages
from hetero.errors import PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob
from hetero.messages import (
    WIRE_VERSION,
    Abort,
    Alive,
    Credit,
    Done,
    Fingerprint,
    ModelFingerprint,
    Open,
    Ready,
    Refused,
    Rows,
    Ticket,
    Token,
    encode,
)
from hetero.tickets import STRENGTH
from hetero.transport.connection import Connection
from hetero.transport.handshake import (
    MAX_HELLO_BYTES,
    WELCOME_BYTES,
    SessionKeys,
    check_welcome,
    make_hello,
    make_welcome,
    read_hello,
)
from hetero.transport.seals import TAG_BYTES, make_seal
from hetero.transport.transfer import SinkTransfer, SourceTransfer, State

KEY = bytes(range(32))
KEYS = SessionKeys(to_sink=KEY, to_source=KEY[::-1])
NUM_TOKENS = 8
LAYOUT = kv_layout(
    num_layers=2, num_kv_heads=1, head_dim_k=32, head_dim_v=32, k_type="q8_0", v_type="f16"
)
FINGERPRINT = Fingerprint(
    model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w"),
    layout=LAYOUT,
)
OTHER = Fingerprint(
    model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="x"),
    layout=LAYOUT,
)
TICKET = Ticket(
    ticket_id="r.1",
    address="tcp://127.0.0.1:1",
    num_tokens=NUM_TOKENS,
    lease_s=30.0,
    key=KEY,
    seal="aead",
)
FIRST = (Token("r", 0, 0, 5),)
HELLO = make_hello("r.1", KEY, 0)


class Script:
    """Numbers taken from bytes; zeros when they are used up."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._raw)

    def byte(self) -> int:
        self._at += 1
        return 0 if self._at > len(self._raw) else self._raw[self._at - 1]

    def number(self) -> int:
        """Mostly small; sometimes as large as a message can say."""
        small = self.byte()
        return small % 12 if small < 240 else 2 ** (small - 240 + self.byte() % 48) - 1


class BytesSocket:
    """What a connection receives from; then its peer ends."""

    def __init__(self, raw: bytes) -> None:
        self._left = memoryview(raw)

    def gettimeout(self) -> None:
        return None

    def settimeout(self, seconds: None) -> None:
        pass

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        pass

    def recv_into(self, buffer: memoryview, num_bytes: int, flags: int) -> int:
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def hello(raw: bytes) -> None:
    for said in (raw, HELLO[: len(HELLO) // 4] + raw):
        try:
            read = read_hello(said)
        except PeerError:
            continue
        if read is None:
            assert len(said) < MAX_HELLO_BYTES, "it waits for more than there can be"
        else:
            read.is_from_holder_of(KEY)
            try:
                read.check_version()
            except PeerError:
                continue
            assert read.version == WIRE_VERSION


def welcome(raw: bytes) -> None:
    said = raw[:WELCOME_BYTES].ljust(WELCOME_BYTES, b"\0")
    try:
        check_welcome(HELLO, said, KEY)
    except PeerError:
        return
    raise AssertionError("a welcome was forged")


def frames(raw: bytes) -> None:
    """Half of the time the bytes come as they are, else sealed as a peer with the key would."""
    script = Script(raw)
    seal = STRENGTH[script.byte() % len(STRENGTH)]
    is_honest = script.byte() % 2
    body = raw[2:]
    if is_honest:
        message, rows = body[::2], body[1::2]
        sealing = make_seal(seal, KEYS.to_sink)
        said = struct.pack("<I", len(rows)) + message
        pieces = [struct.pack("<II", len(said), len(rows))]
        pieces += map(bytes, sealing.seal(memoryview(said)))
        pieces += map(bytes, sealing.seal(memoryview(rows))) if rows else ()
        body = b"".join(pieces)
    connection = Connection(BytesSocket(body), seal, KEYS, is_source=False)
    connection.set_patience(30.0)
    try:
        while (received := connection.receive()) is not None:
            assert is_honest or seal == "none", "a frame was forged"
            if is_honest:
                assert bytes(received[0]) == message
                assert received[1] is None or bytes(received[1]) == rows
    except PeerError:
        assert not is_honest, "an honest frame was refused"


def seals(raw: bytes) -> None:
    seal = make_seal(STRENGTH[1 + len(raw) % 2], KEY)
    try:
        seal.open(memoryview(bytearray(raw.ljust(TAG_BYTES, b"\0"))))
    except PeerError:
        return
    raise AssertionError("a seal was forged")


def _decodes(decode: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(raw: bytes) -> None:
        for said in (raw, bytes([WIRE_VERSION]) + raw):
            try:
                message = decode(said)
            except PeerError:
                continue
            assert decode(encode(message)) == message or "nan" in repr(message)

    return target


def sink(raw: bytes) -> None:
    """A source that says anything at all, also what the protocol forbids."""
    script = Script(raw)
    transfer = SinkTransfer(TICKET, FINGERPRINT, StagingBlob(LAYOUT, NUM_TOKENS, 1), 1000)
    expected: dict[tuple[str, int, int], int] = {}  # (kind, layer, token) -> what its row holds
    while not script.is_over:
        message, rows = _to_sink(script)
        try:
            reply = transfer.receive(message, rows)
        except PeerError:
            assert transfer.state is State.ENDED
            continue
        assert transfer.state is not State.ENDED
        if isinstance(message, Rows):
            assert isinstance(reply, Credit)
            for layer in range(message.first_layer, message.end_layer):
                for token in range(message.first_token, message.end_token):
                    expected[message.kind, layer, token] = rows[0]
    state = transfer.staging._state
    for (kind, layer, token), value in expected.items():
        assert (state.rows(transfer.staging.blob, kind, layer)[token] == value).all()
    if transfer.state is State.DONE:
        assert len(expected) == 2 * LAYOUT.num_layers * NUM_TOKENS


def _to_sink(script: Script) -> tuple[messages.ToSink, memoryview | None]:
    ticket_id = "r.2" if script.byte() > 250 else "r.1"
    kind = script.byte() % 9
    if kind == 0:
        fingerprint = OTHER if script.byte() > 200 else FINGERPRINT
        return Open(ticket_id=ticket_id, fingerprint=fingerprint), None
    if kind == 1:
        return Done(ticket_id=ticket_id, first_tokens=FIRST * (script.byte() % 3)), None
    if kind == 2:
        return Abort(ticket_id=ticket_id, reason="r"), None
    if kind == 3:
        return Alive(ticket_id=ticket_id), None
    first_layer, first_token = script.number(), script.number()
    message = Rows(
        ticket_id=ticket_id,
        kind="kv"[script.byte() % 2],
        first_layer=first_layer,
        end_layer=first_layer + script.number(),
        first_token=first_token,
        end_token=first_token + script.number(),
        frame=script.number(),
    )
    layers = message.end_layer - message.first_layer
    tokens = message.end_token - message.first_token
    right = min(10_000, layers * tokens * LAYOUT.row_bytes(message.kind))
    choice = script.byte()
    if choice > 250:
        return message, None
    size = right if choice < 220 else script.number() % 10_000
    return message, memoryview(bytes([script.byte()]) * size)


def source(raw: bytes) -> None:
    """A sink that says anything at all, while the source goes on as far as it may."""
    script = Script(raw)
    transfer = SourceTransfer(TICKET, FINGERPRINT)
    frame = RowFrame(
        kind="k",
        first_layer=0,
        end_layer=1,
        first_token=0,
        end_token=1,
        rows=np.zeros((1, 1, 34), np.uint8),
    )
    now = 0.0
    num_placed = 0
    while not script.is_over:
        now += script.byte() / 1000
        step = script.byte() % 8
        if step == 0 and transfer.state is State.TICKETED:
            transfer.open()
        elif step in (1, 2) and transfer.may_send(frame.rows.nbytes):
            transfer.rows(frame, handed_over=now, now=now)
        elif step == 3 and transfer.state is State.MOVING:
            transfer.done(FIRST)
        else:
            message = _to_source(script)
            try:
                transfer.receive(message, now)
            except PeerError:
                assert transfer.state is State.ENDED
                break
            num_placed += isinstance(message, Credit)
        in_flight = transfer.sent_bytes - num_placed * frame.rows.nbytes
        assert transfer.in_flight_bytes == in_flight
        assert transfer.window.num_bytes >= 0
        assert 1 <= transfer.window.num_connections <= 8
        assert transfer.state is not State.DONE or not in_flight


def _to_source(script: Script) -> messages.ToSource:
    ticket_id = "r.2" if script.byte() > 250 else "r.1"
    kind = script.byte() % 6
    if kind == 0:
        return Ready(ticket_id=ticket_id, credit_bytes=1 + script.number())
    if kind == 1:
        return Refused(ticket_id=ticket_id, reason="r")
    if kind == 2:
        return Alive(ticket_id=ticket_id)
    return Credit(ticket_id=ticket_id, frame=script.number())


TARGETS: dict[str, Callable[[bytes], None]] = {
    "hello": hello,
    "welcome": welcome,
    "frames": frames,
    "seals": seals,
    "to-sink": _decodes(messages.decode_to_sink),
    "to-source": _decodes(messages.decode_to_source),
    "to-router": _decodes(messages.decode_to_router),
    "to-node": _decodes(messages.decode_to_node),
    "sink": sink,
    "source": source,
}


def seeds(target: str) -> list[bytes]:
    """Honest inputs to begin from."""
    sampling = messages.Sampling(logit_bias=((1, 2.0),), grammar="g", top_logprobs=2)
    tokens = (Token("r", 0, 1, 7, messages.TokenLogprob(7, -0.5, ((7, -0.5),))),)
    info = messages.NodeInfo(
        name="d",
        role="decode",
        host="h",
        pid=1,
        instance="i",
        model="m",
        fingerprint=FINGERPRINT,
        context_tokens=512,
        num_slots=2,
        chunk_tokens=64,
        engine="llama",
        attention="llama",
        seal="aead",
        versions={"a": "1"},
    )
    load = messages.NodeLoad(active=1, queued=2, kv_bytes_held=3, kv_moved_bytes=4)
    rows = Rows(
        ticket_id="r.1", kind="k", first_layer=0, end_layer=1, first_token=0, end_token=2, frame=3
    )
    asked = {"request_id": "r", "max_tokens": 5, "num_choices": 1, "sampling": sampling}
    said: dict[str, list[messages.Message]] = {
        "to-sink": [
            Open(ticket_id="r.1", fingerprint=FINGERPRINT),
            rows,
            Done(ticket_id="r.1", first_tokens=tokens),
            Abort(ticket_id="r.1", reason="r"),
            Alive(ticket_id="r.1"),
        ],
        "to-source": [
            Ready(ticket_id="r.1", credit_bytes=9),
            Credit(ticket_id="r.1", frame=1),
            Refused(ticket_id="r.1", reason="r"),
            Alive(ticket_id="r.1"),
        ],
        "to-router": [
            messages.Hello(info=info, load=load),
            messages.Heartbeat(load=load),
            messages.Reserved(request_id="r", ticket=TICKET),
            messages.FirstTokens(
                request_id="r", tokens=tokens, prefill_s=1.0, pack_s=0.5, num_chunks=2
            ),
            messages.Sent(request_id="r", kv_bytes=5, wire_s=0.1, last_group_s=0.1),
            messages.Joined(request_id="r", prefill_s=0.0, restore_s=0.1),
            messages.Generated(tokens=tokens),
            messages.Finished(request_id="r", choice=0, reason="stop"),
            messages.Failed(request_id="r", kind="PeerError", message="m"),
        ],
        "to-node": [
            messages.WhoAreYou(),
            messages.Welcome(),
            messages.Unwelcome(reason="r"),
            messages.Reserve(num_prompt_tokens=3, **asked),
            messages.Generate(prompt=(1, 2), **asked),
            messages.Prefill(
                request_id="r", prompt=(1, 2), num_choices=1, sampling=sampling, ticket=TICKET
            ),
            messages.Renew(request_ids=("r", "s")),
            messages.Cancel(request_id="r"),
        ],
    }
    if target in said:
        return [encode(message) for message in said[target]]
    return {
        "hello": [HELLO, HELLO[len(HELLO) // 4 :]],
        "welcome": [make_welcome(HELLO, KEY[::-1])],
        "frames": [bytes([seal, honest]) + bytes(60) for seal in range(3) for honest in range(2)],
        "sink": [
            # Open, then the rows of both layers and kinds, then Done.
            bytes([0, 0, 0])
            + b"".join(bytes([0, 4, 0, 0, kind, 2, 8, kind, 0, 77]) for kind in (0, 1))
            + bytes([0, 1, 1]),
        ],
        "source": [
            # open, Ready, rows twice, their credit, done.
            bytes([0, 0, 0, 7, 0, 0, 11, 0, 1, 0, 1, 9, 7, 0, 3, 0, 9, 7, 0, 3, 1, 0, 3]),
        ],
    }.get(target, [bytes(40)])
