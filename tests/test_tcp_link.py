"""Transfers over real connections: whole, given up, broken off; and strangers at the door."""

import contextlib
import gc
import queue
import select
import socket
import struct
import time
import weakref
from functools import partial

import msgspec
import numpy as np
import pytest
from wire_ends import WAIT_S, HandSource

from hetero.errors import ConfigError, PeerError
from hetero.kv.blob_memory import BlobMemory
from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob, read_state
from hetero.messages import Fingerprint, ModelFingerprint, Ready, Refused, Ticket, Token, encode
from hetero.transport import connection, door
from hetero.transport.connection import dial, split_address
from hetero.transport.door import Door
from hetero.transport.handshake import make_hello
from hetero.transport.seals import TAG_BYTES
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SinkTransfer, SourceTransfer, State

LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
MODEL = ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w")
FINGERPRINT = Fingerprint(model=MODEL, layout=LAYOUT)
NUM_TOKENS = 64
FIRST = (Token("r", 0, 0, 5),)


class Link:
    """A sink, and sources that dial it."""

    def __init__(self):
        self.sink = TcpSink(Door("tcp://127.0.0.1:0"))
        self.num_tickets = 0
        self.sources = []

    def expect(self, seal="aead", lease_s=20.0, credit_bytes=10**6):
        self.num_tickets += 1
        ticket = Ticket(
            ticket_id=f"r.{self.num_tickets}",
            address=self.sink.address,
            num_tokens=NUM_TOKENS,
            lease_s=lease_s,
            key=bytes([self.num_tickets]) * 32,
            seal=seal,
        )
        staging = StagingBlob(LAYOUT, NUM_TOKENS, 1, BlobMemory(0))
        transfer = SinkTransfer(ticket, FINGERPRINT, staging, credit_bytes)
        self.sink.expect(transfer)
        return transfer

    def source(self, ticket, num_connections=None):
        """(source, its end to come, bytes credited)"""
        ends, credits = queue.SimpleQueue(), []
        source = TcpSource(
            SourceTransfer(ticket, FINGERPRINT),
            num_connections=num_connections,
            on_credit=credits.append,
            on_end=ends.put,
        )
        self.sources.append(source)
        return source, ends, credits

    def event(self):
        readable, _, _ = select.select([self.sink.events], [], [], WAIT_S)
        assert readable, "nothing became of the transfer"
        (event,) = self.sink.events.take_all()
        return event

    def move(self, transfer, **options):
        """One honest transfer, to its end on both sides."""
        source, ends, _ = self.source(transfer.ticket, **options)
        for frame in FRAMES:
            source.put(frame)
        source.finish(FIRST)
        assert self.event() == Arrived(transfer.ticket.ticket_id)
        assert ends.get(timeout=WAIT_S) is None
        check(transfer)


@pytest.fixture
def link():
    link = Link()
    yield link
    for source in link.sources:
        source.abort("the test is over")
    link.sink.close()


def make_frames(chunk=16):
    rng = np.random.default_rng(0)
    for first in range(0, NUM_TOKENS, chunk):
        for layer in range(3):
            for kind in "kv":
                shape = (1, chunk, LAYOUT.row_bytes(kind))
                yield RowFrame(
                    kind=kind,
                    first_layer=layer,
                    end_layer=layer + 1,
                    first_token=first,
                    end_token=first + chunk,
                    rows=rng.integers(0, 256, shape, np.uint8),
                )


FRAMES = list(make_frames())
NUM_BYTES = sum(frame.rows.nbytes for frame in FRAMES)


def check(transfer):
    """A source may have its last credit before the sink has read that this was all."""
    wait_for(lambda: transfer.state is State.DONE)
    assert transfer.first_tokens == FIRST
    assert transfer.received_bytes == NUM_BYTES
    state = read_state(transfer.staging.blob, LAYOUT, range(NUM_TOKENS))
    for frame in FRAMES:
        rows = state.rows(transfer.staging.blob, frame.kind, frame.first_layer)
        np.testing.assert_array_equal(rows[frame.first_token : frame.end_token], frame.rows[0])


@pytest.mark.parametrize("seal", ["aead", "mac", "none"])
@pytest.mark.parametrize("num_connections", [None, 1, 4])
def test_every_row_arrives(link, seal, num_connections):
    transfer = link.expect(seal, credit_bytes=20_000)
    link.move(transfer, num_connections=num_connections)


def test_transfers_beside_each_other_stay_apart(link):
    transfers = [link.expect() for _ in range(5)]
    ends = []
    for transfer in transfers:
        source, end, _ = link.source(transfer.ticket, num_connections=2)
        ends.append(end)
        for frame in FRAMES:
            source.put(frame)
        source.finish(FIRST)
    assert [end.get(timeout=WAIT_S) for end in ends] == [None] * 5
    for transfer in transfers:
        check(transfer)


def test_rows_may_come_long_after_the_connection_was_made(link):
    transfer = link.expect(lease_s=1.5)
    source, ends, credits = link.source(transfer.ticket)
    for frame in FRAMES[:-1]:
        source.put(frame)
    with pytest.raises(queue.Empty):
        ends.get(timeout=2 * 1.5)  # signs of life keep it, whoever computes meanwhile
    assert sum(credits) == NUM_BYTES - FRAMES[-1].rows.nbytes
    source.put(FRAMES[-1])
    source.finish(FIRST)
    assert ends.get(timeout=WAIT_S) is None
    check(transfer)


def test_the_sink_hears_why_a_source_gives_up(link):
    transfer = link.expect()
    source, ends, _ = link.source(transfer.ticket)
    for frame in FRAMES[:5]:
        source.put(frame)
    wait_for(lambda: transfer.received_bytes)
    source.abort("out of memory")
    event = link.event()
    assert isinstance(event, Broke)
    assert str(event.error) == "the prefill node gave up: out of memory"
    assert transfer.state is State.ENDED
    assert ends.empty()  # whoever aborts needs no telling


def test_the_source_hears_why_a_sink_gives_up(link):
    transfer = link.expect()
    source, ends, _ = link.source(transfer.ticket, num_connections=3)
    for frame in FRAMES[:5]:
        source.put(frame)
    wait_for(lambda: transfer.received_bytes)
    link.sink.forget(transfer.ticket.ticket_id, "cancelled by the router")
    assert str(ends.get(timeout=WAIT_S)) == "decode node refused the KV: cancelled by the router"
    assert source.transfer.state is State.ENDED
    assert not link.sink.events.take_all()


def test_a_source_that_vanishes_breaks_its_transfer(link):
    transfer = link.expect()
    source = HandSource(transfer.ticket, FINGERPRINT)
    source.hear(Ready)
    source.close()
    event = link.event()
    assert (event.ticket_id, "hung up" in str(event.error)) == (transfer.ticket.ticket_id, True)


def test_a_source_that_freezes_breaks_its_transfer_when_the_lease_is_over(link):
    transfer = link.expect(lease_s=0.3)
    source = HandSource(transfer.ticket, FINGERPRINT)
    assert "need a sign of life within 0.3 s" in str(link.event().error)
    source.hear(Ready)
    assert "need a sign of life" in source.hear(Refused).reason
    source.close()


def test_a_frame_cut_by_the_connections_end_breaks_its_transfer(link):
    transfer = link.expect()
    source = HandSource(transfer.ticket, FINGERPRINT)
    source.hear(Ready)
    source.connection._socket.sendall(struct.pack("<II", 50, 1000) + bytes(60))
    source.connection.finish()
    assert "need the rest of a frame, have its end" in str(link.event().error)
    source.close()


STRANGERS = {
    "a port scan": b"",
    "a TLS client": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "an HTTP client": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a ZeroMQ peer": b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),
    "the right magic and too much": b"heteroKV" + b"\xff" * 3000,
    "an unknown ticket": make_hello("r.99", bytes(32), 0),
    "a known ticket with a guessed key": make_hello("r.1", bytes(32), 0),
    "a hello cut short": make_hello("r.1", bytes([1]) * 32, 0)[:-1],
    "a hello and more": make_hello("r.1", bytes([1]) * 32, 0) + b"x",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_told_nothing_and_disturbs_nobody(link, said):
    transfer = link.expect()
    with socket.create_connection(split_address(link.sink.address)) as stranger:
        stranger.settimeout(WAIT_S)
        stranger.sendall(said)
        if not said:
            stranger.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            heard = stranger.recv(1)
        assert heard == b""
    link.move(transfer)


def test_strangers_who_say_nothing_are_turned_away_in_time(link, monkeypatch):
    monkeypatch.setattr(door, "HELLO_S", 0.2)
    with contextlib.ExitStack() as stack:
        strangers = [
            stack.enter_context(socket.create_connection(split_address(link.sink.address)))
            for _ in range(2 * door.MAX_STRANGERS)
        ]
        link.move(link.expect())
        for stranger in strangers:
            stranger.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""


def test_a_recorded_hello_opens_nothing(link, monkeypatch):
    """Not even while its connection is there, and the transfer goes on."""
    recorded = []

    def record(*arguments):
        recorded.append(make_hello(*arguments))
        return recorded[-1]

    monkeypatch.setattr(connection, "make_hello", record)
    transfer = link.expect()
    source = HandSource(transfer.ticket, FINGERPRINT)
    source.ready()
    with socket.create_connection(split_address(link.sink.address)) as replayed:
        replayed.sendall(recorded[0])
        replayed.settimeout(WAIT_S)
        assert replayed.recv(1) == b""
    source.send(FRAMES)
    source.done(FIRST)
    assert link.event() == Arrived(transfer.ticket.ticket_id)
    check(transfer)
    source.close()


@pytest.mark.parametrize("seal", ["aead", "mac", "none"])
def test_a_message_can_not_be_made_the_rows_of_the_one_before(link, seal):
    """By who changes the sizes between two frames: they are not sealed where they stand."""
    transfer = link.expect(seal)
    source = HandSource(transfer.ticket, FINGERPRINT)
    source.hear(Ready)
    pieces = [source.connection._sealed(encode(source.transfer.alive()), 0) for _ in range(2)]
    first, second = (b"".join(piece) for piece in pieces)
    sizes = struct.pack("<II", len(first) - 8 - TAG_BYTES, len(second) - 8 - TAG_BYTES)
    source.connection._socket.sendall(sizes + first[8:] + second[8:])
    assert "need the sizes that were sent" in str(link.event().error)
    source.close()


def test_rows_after_a_message_that_has_none_are_refused(link):
    transfer = link.expect()
    source = HandSource(transfer.ticket, FINGERPRINT)
    source.hear(Ready)
    source.say(source.transfer.alive(), FRAMES[0].rows)
    assert "Alive: need no rows after it" in str(link.event().error)
    source.close()


def test_a_transfer_that_broke_holds_no_memory(link):
    """Without the garbage collector's help: a node that is idle does not run it."""
    gc.collect()
    gc.disable()
    try:
        transfer = link.expect()
        blob = weakref.ref(transfer.staging.blob.base)
        source, _, _ = link.source(transfer.ticket)
        for frame in FRAMES[:5]:
            source.put(frame)
        wait_for(partial(getattr, transfer, "received_bytes"))
        source.abort("out of memory")
        event = link.event()
        del transfer, source
        link.sources.clear()
        wait_for(lambda: blob() is None)
        assert isinstance(event, Broke)
    finally:
        gc.enable()


def test_a_dial_to_someone_else_than_the_tickets_giver_fails(link):
    """A sink that does not know the key can't answer a hello."""
    transfer = link.expect()
    other = msgspec.structs.replace(transfer.ticket, key=bytes(32))
    with pytest.raises(PeerError, match="have its end"):
        dial(other, 0, WAIT_S)


def test_an_ended_ticket_admits_nobody(link):
    transfer = link.expect()
    link.sink.forget(transfer.ticket.ticket_id, "cancelled")
    with pytest.raises(PeerError):
        dial(transfer.ticket, 0, WAIT_S)


def test_a_port_that_is_taken_is_the_users_mistake(link):
    with pytest.raises(ConfigError, match="can't listen there: address already in use"):
        Door(link.sink.address)


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
