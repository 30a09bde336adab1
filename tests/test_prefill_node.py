"""A prefill node over real sockets; the test is its router and its decode node, honest or not."""

import socket
import threading
import time

import msgspec
import numpy as np
import pytest
import zmq
from curve_sockets import CurveRouter
from llama_reference import Reference, random_prompt
from tiny_models import write_tiny_model
from wire_ends import HandSink

from hetero.errors import PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.staging import StagingBlob
from hetero.llama.model import Model
from hetero.messages import (
    WIRE_VERSION,
    Abort,
    Cancel,
    Failed,
    Fingerprint,
    FirstTokens,
    Goodbye,
    Heartbeat,
    Hello,
    ModelFingerprint,
    NodeInfo,
    Open,
    Prefill,
    Ready,
    Refused,
    Reserved,
    Rows,
    Sampling,
    Sent,
    Ticket,
    decode_to_router,
    encode,
)
from hetero.prefill.llama_engine import LlamaEngine
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine
from hetero.serve import control
from hetero.serve.prefill_node import PrefillNode
from hetero.serve.prefill_worker import PrefillWorker
from hetero.transport.transfer import SinkTransfer, State

LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="q8_0"
)
FINGERPRINT = Fingerprint(
    model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w"),
    layout=LAYOUT,
)
PROMPT = tuple(random_prompt(200))
GREEDY = Sampling(temperature=0)
WAIT_S = 20
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def quick_heartbeats(monkeypatch):
    monkeypatch.setattr(control, "HEARTBEAT_S", 0.1)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture(scope="module")
def alone(model_path):
    """(state blob, next greedy token) of the prompt, by llama.cpp alone in the same chunks."""
    with Reference(model_path, k_type="q8_0", v_type="q8_0", chunk_tokens=64) as reference:
        logits = reference.prefill(PROMPT)
        return reference.context.export_sequence(0), int(logits.argmax())


def llama_engine(path):
    return LlamaEngine(
        path, LAYOUT, context_tokens=512, num_threads=1, chunk_tokens=64, frame_bytes=9000
    )


def torch_engine(path):
    """Room for two of PROMPT, and for a few short ones."""
    options = TorchOptions(context_tokens=256, chunk_tokens=64, frame_bytes=9000)
    return make_torch_engine(path, ("q8_0", "q8_0"), options)


class Harness:
    """The node on a thread, and the two sockets it talks to."""

    def __init__(self, model_path, context, make_engine=None):
        self.router = CurveRouter()
        self.sink = HandSink()
        self.engine = (make_engine or llama_engine)(model_path)
        self.model = Model(model_path, vocab_only=True)
        self.worker = PrefillWorker(self.engine, self.model.vocab, FINGERPRINT)
        info = NodeInfo(
            name="p",
            role="prefill",
            host="h",
            pid=1,
            instance="i",
            model="m",
            fingerprint=FINGERPRINT,
            context_tokens=512,
            num_slots=1,
            chunk_tokens=64,
            engine="llama",
            attention="llama",
            seal="aead",
            versions={},
        )
        self.node = PrefillNode(self.worker, info, router=self.router.contact("p"), context=context)
        self.loop = threading.Thread(target=self.node.run)
        self.loop.start()
        self.said = []
        self.transfers = {}  # by ticket
        self.until(Hello)

    def close(self):
        self.node.stop()
        self.loop.join()
        self.worker.close()
        self.engine.close()
        self.model.close()
        self.sink.close()
        self.router.close()

    def tell(self, message):
        self.router.send_multipart([b"i", encode(message)])

    def until(self, kind, matching=lambda message: True):
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and self.router.poll(1000 * WAIT_S):
            _, raw = self.router.recv_multipart()
            message = decode_to_router(raw)
            self.said.append(message)
            if isinstance(message, kind) and matching(message):
                return message
        raise AssertionError(f"no {kind.__name__}; the node said {self.said}")

    def ticket(self, name="r.1", lease_s=30.0, address=None, seal="aead"):
        ticket = Ticket(
            ticket_id=name,
            address=address or self.sink.address,
            num_tokens=len(PROMPT),
            lease_s=lease_s,
            key=KEY,
            seal=seal,
        )
        self.sink.tickets[name] = ticket
        return ticket

    def prefill(self, ticket, request_id="r", prompt=PROMPT, **sampling):
        self.tell(
            Prefill(
                request_id=request_id,
                prompt=prompt,
                num_choices=1,
                sampling=Sampling(temperature=0, **sampling),
                ticket=ticket,
            )
        )

    def incoming(self):
        """The sources' next messages, for ever; each is (connection, message, rows)."""
        while True:
            yield self.sink.receive()

    def hear(self, kind):
        for peer, message, _ in self.incoming():
            if isinstance(message, kind):
                return peer, message

    def receive_all(self, credit_bytes=20_000, silent_to=None):
        """Be an honest sink until a transfer is whole, and return it. The next one may have begun
        by then: the node reads on while acknowledgements come in. One ticket gets no answers."""
        transfers = self.transfers
        for peer, message, payload in self.incoming():
            if message.ticket_id == silent_to:
                continue
            if isinstance(message, Open):
                transfers[message.ticket_id] = SinkTransfer(
                    self.ticket(message.ticket_id),
                    FINGERPRINT,
                    StagingBlob(LAYOUT, len(PROMPT), 1),
                    credit_bytes,
                )
            if message.ticket_id not in transfers:
                continue  # the rest of one that failed before
            transfer = transfers[message.ticket_id]
            reply = transfer.receive(message, payload)
            if reply is not None:
                self.sink.send(peer, reply)
            if transfer.state is State.DONE:
                return transfer


@pytest.fixture
def node(model_path):
    with zmq.Context() as context:
        harness = Harness(model_path, context)
        yield harness
        harness.close()


def test_the_sink_gets_llamas_own_bytes_and_the_router_the_first_token(node, alone):
    blob, token = alone
    node.prefill(node.ticket())
    transfer = node.receive_all()
    np.testing.assert_array_equal(transfer.staging.blob[8:], blob[8:])
    first = node.until(FirstTokens)
    assert [t.token for t in first.tokens] == [token]
    assert transfer.first_tokens == first.tokens
    assert first.num_chunks == 4
    sent = node.until(Sent)
    assert sent.kv_bytes == len(PROMPT) * LAYOUT.token_bytes
    assert 0 < sent.last_group_s <= sent.wire_s


def test_without_a_ticket_only_the_first_token_is_made(node, alone):
    node.prefill(None)
    assert node.until(FirstTokens).tokens[0].token == alone[1]
    assert node.until(Heartbeat, lambda beat: not beat.load.active).load.kv_moved_bytes == 0


def test_a_refusal_fails_the_request_with_the_sinks_reason(node):
    node.prefill(node.ticket())
    peer, message = node.hear(Open)
    node.sink.send(peer, Refused(ticket_id=message.ticket_id, reason="tensors: a here, b there"))
    failed = node.until(Failed)
    assert failed.kind == "PeerError"
    assert "refused the KV: tensors: a here, b there" in failed.message


def test_a_sink_that_falls_silent_fails_the_request(node, alone):
    node.prefill(node.ticket(lease_s=0.5))
    peer, message = node.hear(Open)
    node.sink.send(peer, Ready(ticket_id=message.ticket_id, credit_bytes=1))
    assert "need a sign of life within 0.5 s, have none" in node.until(Failed).message
    # The node lives on.
    node.prefill(node.ticket("s.1"), "s")
    node.receive_all()
    assert node.until(FirstTokens, lambda m: m.request_id == "s").tokens[0].token == alone[1]


def test_a_sink_that_is_not_there_fails_the_request(node):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    node.prefill(node.ticket(address=f"tcp://127.0.0.1:{port}"))
    assert "can't connect: connection refused" in node.until(Failed).message


@pytest.mark.parametrize("stage", ["queued", "waiting for credit"])
def test_cancel_stops_the_reading_and_tells_the_sink(node, stage):
    node.prefill(node.ticket())
    peer, message = node.hear(Open)
    if stage == "queued":
        node.prefill(node.ticket("s.1"), "s")
        node.tell(Cancel(request_id="s"))
    node.sink.send(peer, Ready(ticket_id=message.ticket_id, credit_bytes=1))
    node.hear(Rows)
    node.tell(Cancel(request_id="r"))
    _, abort = node.hear(Abort)
    assert (abort.ticket_id, abort.reason) == ("r.1", "cancelled by the router")
    node.until(Heartbeat, lambda beat: not (beat.load.active or beat.load.queued))


def test_cancel_frees_what_was_read_and_is_still_being_sent(node):
    node.prefill(node.ticket(), prompt=PROMPT[:50])  # one step, handed over as a whole
    peer, message = node.hear(Open)
    node.sink.send(peer, Ready(ticket_id=message.ticket_id, credit_bytes=1))
    node.until(FirstTokens)
    node.until(Heartbeat, lambda beat: beat.load.kv_bytes_held and not beat.load.active)
    node.tell(Cancel(request_id="r"))
    _, abort = node.hear(Abort)
    assert abort.reason == "cancelled by the router"
    node.until(Heartbeat, lambda beat: not beat.load.kv_bytes_held)
    assert not any(isinstance(message, Failed | Sent) for message in node.said)


@pytest.mark.parametrize(
    "address", ["tcp://x", "tcp://127.0.0.1:99999", "tcp://" + "x" * 99 + ":1", "tcp://\0:1", ""]
)
def test_a_ticket_with_an_address_that_is_none_fails_its_request(node, address):
    ticket = node.ticket()
    node.prefill(msgspec.structs.replace(ticket, address=address))
    assert "can't connect" in node.until(Failed).message


@pytest.mark.parametrize("lease_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_that_is_none_is_no_message(lease_s):
    ticket = Ticket(
        ticket_id="r.1", address="tcp://x:1", num_tokens=1, lease_s=lease_s, key=KEY, seal="aead"
    )
    with pytest.raises(PeerError, match="lease_s"):
        decode_to_router(encode(Reserved(request_id="r", ticket=ticket)))


def test_what_cannot_be_read_fails_alone(node, alone):
    node.prefill(node.ticket(), "long", prompt=PROMPT * 3)
    failed = node.until(Failed)
    assert (failed.request_id, failed.kind) == ("long", "PlanError")
    assert "need room for 600 tokens, have a context of 512" in failed.message
    node.prefill(node.ticket("t.1"), "odd", prompt=(5, 10**6))
    assert "need token ids from 0 to 511, have 1000000" in node.until(Failed).message
    node.prefill(node.ticket("u.1"), "bad", grammar="root ::= (")
    with pytest.raises(PeerError, match="gave up: grammar: need valid GBNF"):
        node.receive_all()
    assert "need valid GBNF" in node.until(Failed).message
    node.prefill(node.ticket("s.1"), "s")
    node.receive_all()
    node.until(Sent)


def test_prompts_are_read_in_the_order_they_came(node, alone):
    for name in "abc":
        node.prefill(node.ticket(f"{name}.1"), name)
    for name in "abc":
        transfer = node.receive_all()
        assert transfer.ticket.ticket_id == f"{name}.1"
    firsts = [
        m.request_id for m in [*node.said, node.until(FirstTokens)] if isinstance(m, FirstTokens)
    ]
    while len(firsts) < 3:
        firsts.append(node.until(FirstTokens).request_id)
    assert firsts == ["a", "b", "c"]


def test_replies_that_are_no_messages_fail_their_request(node, alone):
    node.prefill(node.ticket())
    connection, _ = node.hear(Open)
    connection.send(bytes([WIRE_VERSION]) + b"junk")
    assert "malformed message" in node.until(Failed).message
    node.prefill(node.ticket("s.1"), "s")
    assert node.receive_all().staging.is_complete


def test_a_ticket_that_asks_for_less_protection_is_refused(node):
    node.prefill(node.ticket(seal="mac"))
    assert "seal: need aead or stronger" in node.until(Failed).message


@pytest.fixture
def torch_node(model_path):
    with zmq.Context() as context:
        harness = Harness(model_path, context, torch_engine)
        yield harness
        harness.close()


def test_a_prompt_on_a_stuck_link_does_not_hold_up_the_others(torch_node):
    node = torch_node
    node.prefill(node.ticket("stuck.1"), "stuck")
    peer, message = node.hear(Open)
    node.sink.send(peer, Ready(ticket_id=message.ticket_id, credit_bytes=1))
    node.prefill(node.ticket("free.1"), "free")
    assert node.receive_all(silent_to="stuck.1").ticket.ticket_id == "free.1"
    assert node.until(FirstTokens).request_id == "free"
    # It was read for a chunk, and then no further than the chunk whose rows wait.
    held = node.until(Heartbeat, lambda beat: beat.load.active == 1).load.kv_bytes_held
    assert held <= (len(PROMPT) + 2 * 64) * LAYOUT.token_bytes
    node.tell(Cancel(request_id="stuck"))
    node.until(Heartbeat, lambda beat: beat.load.kv_bytes_held == 0)


def test_short_prompts_are_read_while_a_long_one_is(torch_node):
    node = torch_node
    node.prefill(None, "long", prompt=PROMPT)
    for name in ("a", "b", "c"):
        node.prefill(None, name, prompt=PROMPT[:10])
    firsts = [node.until(FirstTokens).request_id for _ in range(4)]
    assert sorted(firsts) == ["a", "b", "c", "long"]
    assert firsts[-1] == "long"


def test_rows_of_prompts_read_together_are_whole(torch_node):
    node = torch_node
    for name in "ab":
        node.prefill(node.ticket(f"{name}.1"), name)
    for _ in "ab":
        assert node.receive_all().staging.is_complete
    node.until(Heartbeat, lambda beat: beat.load.kv_bytes_held == 0)


def test_a_node_that_is_stopped_says_goodbye(node):
    node.node.stop()
    node.until(Goodbye)
