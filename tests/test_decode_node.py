"""A decode node over real sockets; the test is its router and its prefill node, honest or not."""

import struct
import threading
import time
from contextlib import contextmanager, suppress

import msgspec
import numpy as np
import pytest
import zmq
from curve_sockets import CurveRouter
from llama_reference import Reference, random_prompt
from tiny_models import write_tiny_model
from wire_ends import HandSource

from hetero.decode.engine import DecodeConfig, DecodeEngine
from hetero.errors import PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import read_state
from hetero.messages import (
    WIRE_VERSION,
    Abort,
    Cancel,
    Credit,
    Failed,
    Fingerprint,
    Finished,
    Generate,
    Generated,
    Heartbeat,
    Hello,
    Joined,
    ModelFingerprint,
    NodeInfo,
    Refused,
    Renew,
    Reserve,
    Reserved,
    Rows,
    Sampling,
    Token,
    WhoAreYou,
    decode_to_router,
    encode,
)
from hetero.serve import control
from hetero.serve.decode_node import DecodeNode
from hetero.serve.engine_thread import EngineThread
from hetero.transport.connection import MAX_ROWS_BYTES, dial
from hetero.transport.door import Door
from hetero.transport.tcp_sink import TcpSink

GREEDY = Sampling(temperature=0, ignore_eos=True)
LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="q8_0"
)
FINGERPRINT = Fingerprint(
    model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w"),
    layout=LAYOUT,
)
PROMPT = random_prompt(100)
WAIT_S = 20
OURS = bytes([WIRE_VERSION])


@pytest.fixture(autouse=True)
def quick_heartbeats(monkeypatch):
    monkeypatch.setattr(control, "HEARTBEAT_S", 0.1)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf", weight_type="f32")


@pytest.fixture(scope="module")
def alone(model_path):
    """(frames of the prompt's KV, its greedy continuation) by llama.cpp alone."""
    with Reference(model_path, k_type="q8_0", v_type="q8_0", chunk_tokens=64) as reference:
        logits = reference.prefill(PROMPT)
        blob = reference.context.export_sequence(0)
        tokens, _ = reference.greedy(logits, len(PROMPT), 12)
    state = read_state(blob, LAYOUT, range(len(PROMPT)))
    frames = [
        RowFrame(
            kind=kind,
            first_layer=layer,
            end_layer=layer + 1,
            first_token=first,
            end_token=min(first + 64, len(PROMPT)),
            rows=state.rows(blob, kind, layer)[first : first + 64][None].copy(),
        )
        for first in (0, 64)
        for layer in range(3)
        for kind in "kv"
    ]
    return frames, tokens


class Harness:
    """The node on a thread, its router's socket, and what the node said so far."""

    def __init__(self, model_path, context, lease_s=None):
        self.context = context
        self.router = CurveRouter()
        config = DecodeConfig(num_slots=2, context_tokens=512, num_threads=1, chunk_tokens=64)
        self.engine = DecodeEngine(model_path, LAYOUT, config)
        self.thread = EngineThread(self.engine)
        info = NodeInfo(
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
            versions={},
        )
        self.node = DecodeNode(
            self.thread,
            info,
            router=self.router.contact("d"),
            sink=TcpSink(Door("tcp://127.0.0.1:0")),
            context=context,
            credit_bytes=30_000,
        )
        if lease_s is not None:
            self.node._leases.lease_s = lease_s
        self.loop = threading.Thread(target=self.node.run)
        self.loop.start()
        self.said = []
        self.peer = None

    def close(self):
        self.node.stop()
        self.loop.join()
        self.thread.close()
        self.engine.close()
        self.router.close()

    def tell(self, message):
        if self.peer is None:
            self.until(Hello)
        self.router.send_multipart([self.peer, encode(message)])

    def until(self, kind, matching=lambda message: True):
        """The node's next message of a kind; heartbeats and others are kept in `said`."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if not self.router.poll(1000 * WAIT_S):
                break
            self.peer, raw = self.router.recv_multipart()
            message = decode_to_router(raw)
            self.said.append(message)
            if isinstance(message, kind) and matching(message):
                return message
        raise AssertionError(f"no {kind.__name__}; the node said {self.said}")

    def until_idle(self):
        return self.until(
            Heartbeat,
            lambda beat: not (beat.load.kv_bytes_held or beat.load.active or beat.load.queued),
        )

    def reserve(self, request_id="r", max_tokens=12, **options):
        self.tell(
            Reserve(
                request_id=request_id,
                num_prompt_tokens=len(PROMPT),
                max_tokens=max_tokens,
                num_choices=options.pop("num_choices", 1),
                sampling=GREEDY,
                **options,
            )
        )
        return self.until(Reserved, lambda message: message.request_id == request_id).ticket

    def source(self, ticket, fingerprint=FINGERPRINT):
        return HandSource(ticket, fingerprint)


@contextmanager
def running(model_path, **options):
    with zmq.Context() as context:
        harness = Harness(model_path, context, **options)
        try:
            yield harness
        finally:
            harness.close()


@pytest.fixture
def node(model_path):
    with running(model_path) as harness:
        yield harness


def generated(said, request_id="r"):
    tokens = [t for m in said if isinstance(m, Generated) for t in m.tokens]
    return [t.token for t in tokens if t.request_id == request_id]


def test_kv_that_comes_over_the_wire_continues_as_llama_alone(node, alone):
    frames, expected = alone
    source = node.source(node.reserve())
    source.ready()
    source.send(frames)
    source.done((Token("r", 0, 0, expected[0]),))
    node.until(Finished)
    assert generated(node.said) == expected
    assert any(isinstance(message, Joined) for message in node.said)
    beat = node.until_idle()
    assert beat.load.kv_moved_bytes == sum(frame.rows.nbytes for frame in frames)
    source.close()


def test_a_local_prompt_continues_as_llama_alone(node, alone):
    node.tell(
        Generate(
            request_id="r", prompt=tuple(PROMPT), max_tokens=12, num_choices=1, sampling=GREEDY
        )
    )
    node.until(Finished)
    assert generated(node.said) == alone[1]
    node.until_idle()


def test_an_unknown_router_gets_hello_again(node):
    first = node.until(Hello)
    node.tell(WhoAreYou())
    assert node.until(Hello).info == first.info


def test_another_model_is_refused_by_name_on_both_sides(node):
    ticket = node.reserve()
    other = Fingerprint(
        model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="X"),
        layout=LAYOUT,
    )
    source = node.source(ticket, other)
    assert "tensors: w here, X there" in source.hear(Refused).reason
    failed = node.until(Failed)
    assert (failed.request_id, failed.kind) == ("r", "PeerError")
    assert "tensors: w here, X there" in failed.message
    node.until_idle()
    source.close()


def test_damaged_rows_fail_the_request_and_free_its_room(node, alone):
    source = node.source(node.reserve())
    source.ready()
    frame = alone[0][0]
    header = encode(source.transfer.rows(frame, handed_over=0.0, now=0.0))
    pieces = source.connection._sealed(header, frame.rows.nbytes)
    damaged = bytearray(*source.connection._sealing.seal(frame.rows.reshape(-1).data))
    damaged[333] ^= 1
    source.connection._socket.sendall(b"".join(pieces) + damaged)
    assert "need them as they were sent" in source.hear(Refused).reason
    assert "need them as they were sent" in node.until(Failed).message
    node.until_idle()
    source.close()


@pytest.mark.parametrize("stage", ["reserved", "opened", "half way", "generating"])
def test_cancel_frees_everything_at_any_moment(node, alone, stage):
    frames, expected = alone
    ticket = node.reserve(max_tokens=300)
    source = None
    if stage != "reserved":
        source = node.source(ticket)
        source.ready()
    if stage in ("half way", "generating"):
        source.send(frames[: 5 if stage == "half way" else None])
    if stage == "generating":
        source.done((Token("r", 0, 0, expected[0]),))
        node.until(Joined)
    node.tell(Cancel(request_id="r"))
    node.until_idle()
    if stage in ("opened", "half way"):
        while not isinstance(message := source.hear((Credit, Refused)), Refused):
            pass
        assert message.reason == "cancelled by the router"
    if source:
        source.close()
    assert not any(isinstance(message, Failed) for message in node.said)
    # The room is there again.
    node.tell(
        Generate(request_id="s", prompt=tuple(PROMPT), max_tokens=3, num_choices=2, sampling=GREEDY)
    )
    node.until(Finished)


def test_a_late_writer_can_not_touch_a_reused_slot(node, alone):
    frames, expected = alone
    late = node.source(node.reserve("r"))
    late.ready()
    late.send(frames[:3])
    node.tell(Cancel(request_id="r"))
    node.until_idle()
    source = node.source(node.reserve("s"))
    source.ready()
    garbage = frames[3].rows * 0
    with suppress(OSError):  # the connection may be gone already
        late.say(late.transfer.rows(frames[3], handed_over=0.0, now=0.0), garbage)
    source.send(frames)
    source.done((Token("s", 0, 0, expected[0]),))
    node.until(Finished)
    assert generated(node.said, "s") == expected
    source.close()
    late.close()


def test_a_thief_without_the_tickets_key_gets_nothing(node, alone):
    ticket = node.reserve()
    source = node.source(ticket)
    source.ready()
    stolen = msgspec.structs.replace(ticket, key=bytes(32))
    with pytest.raises(PeerError, match="need the rest of a frame, have its end"):
        dial(stolen, 1, WAIT_S)
    source.send(alone[0])
    source.done((Token("r", 0, 0, alone[1][0]),))
    node.until(Finished)
    assert generated(node.said) == alone[1]
    source.close()


def test_an_aborted_transfer_fails_the_request(node):
    source = node.source(node.reserve())
    source.ready()
    source.say(Abort(ticket_id=source.transfer.ticket.ticket_id, reason="out of memory"))
    assert "the prefill node gave up: out of memory" in node.until(Failed).message
    node.until_idle()
    source.close()


def test_what_nobody_renews_is_given_up(model_path):
    with running(model_path, lease_s=0.3) as node:
        node.reserve()
        assert "need a renewal every 0.3 s, have none" in node.until(Failed).message
        node.until_idle()


def test_requests_beyond_the_slots_wait_their_turn(node, alone):
    tickets = [node.reserve("a"), node.reserve("b")]
    node.tell(
        Generate(
            request_id="c", prompt=tuple(PROMPT), max_tokens=12, num_choices=1, sampling=GREEDY
        )
    )
    node.until(Heartbeat, lambda beat: beat.load.queued == 1)
    node.tell(Cancel(request_id="a"))
    node.until(Finished, lambda message: message.request_id == "c")
    assert generated(node.said, "c") == alone[1]
    assert len({ticket.ticket_id for ticket in tickets}) == 2


def test_a_request_that_does_not_fit_fails_alone(node):
    node.tell(
        Reserve(
            request_id="big", num_prompt_tokens=500, max_tokens=500, num_choices=1, sampling=GREEDY
        )
    )
    failed = node.until(Failed)
    assert (failed.request_id, failed.kind) == ("big", "PlanError")
    assert "need 1000 tokens of context" in failed.message
    node.reserve("small")


@pytest.mark.parametrize("message", [b"", b"junk", OURS + b"junk", b"\xfe", OURS + b"\xff" * 9])
def test_a_malformed_message_fails_its_request_only(node, alone, message):
    source = node.source(node.reserve())
    source.ready()
    source.connection.send(message)
    assert node.until(Failed).kind == "PeerError"
    continues(node, alone, "next")
    source.close()


def test_an_oversized_frame_is_refused_before_it_is_read(node, alone):
    source = node.source(node.reserve())
    source.ready()
    source.connection._socket.sendall(struct.pack("<II", 100, MAX_ROWS_BYTES + 1))
    assert f"have 100 and {MAX_ROWS_BYTES + 1}" in node.until(Failed).message
    continues(node, alone, "next")
    source.close()


def continues(node, alone, request_id):
    """The node still takes a transfer and goes on from it."""
    source = node.source(node.reserve(request_id))
    source.ready()
    source.send(alone[0])
    source.done((Token(request_id, 0, 0, alone[1][0]),))
    node.until(Finished)
    assert generated(node.said, request_id) == alone[1]
    source.close()


def test_malformed_control_messages_are_dropped(node):
    node.until(Hello)
    for nonsense in (b"\x01nonsense", OURS + b"nonsense", OURS + b"\x81\xa1\xff\xc0"):
        node.router.send_multipart([node.peer, nonsense])
    node.reserve()


def test_a_broken_engine_stops_the_node_with_its_error(node, monkeypatch):
    node.until(Hello)
    node.node.stop()
    node.loop.join()
    monkeypatch.setattr(node.engine, "cancel", lambda request_id: 1 / 0)
    node.thread.cancel("x")
    node.thread.events._receiver.setblocking(True)
    node.thread.events._receiver.recv(1)  # the engine thread has put its error
    node.thread.events._receiver.setblocking(False)
    with pytest.raises(ZeroDivisionError):
        node.thread.take_events()


def test_an_error_of_one_request_does_not_break_the_engine(node):
    node.until(Hello)
    node.thread.join("never admitted", np.zeros(4, np.uint8), ())
    assert "need an admitted job" in node.until(Failed).message
    node.reserve()


def test_renewing_what_the_node_does_not_know_is_answered(node):
    node.until(Hello)
    node.tell(Renew(request_ids=("long gone",)))
    failed = node.until(Failed)
    assert (failed.request_id, failed.message) == ("long gone", "the node has forgotten it")


@pytest.mark.parametrize(
    ("ranges", "payload"),
    [
        ({"end_layer": 2**40, "end_token": 2**40}, b""),
        ({"end_layer": 2**62, "end_token": 1}, bytes(272)),
        ({"first_token": 9, "end_token": 3}, bytes(272)),
    ],
)
def test_rows_with_absurd_ranges_fail_their_request_only(node, ranges, payload):
    source = node.source(node.reserve())
    source.ready()
    header = {"first_layer": 0, "end_layer": 1, "first_token": 0, "end_token": 2, "frame": 0}
    rows = Rows(ticket_id=source.transfer.ticket.ticket_id, kind="k", **header | ranges)
    source.say(rows, np.frombuffer(payload, np.uint8))
    assert "need rows " in node.until(Failed).message
    node.reserve("next")
    source.close()
