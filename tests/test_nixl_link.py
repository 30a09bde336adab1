"""Rows through NIXL, over shared memory and over UCX's TCP: whole, late, damaged, refused."""

import os
import queue
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from test_tcp_link import FINGERPRINT, FIRST, FRAMES, Link, check, wait_for
from wire_ends import WAIT_S, HandSource

from hetero.errors import ConfigError, PeerError
from hetero.messages import Ready, SlotRing
from hetero.transport import tcp_sink, tcp_source
from hetero.transport.door import Door
from hetero.transport.nixl_agent import NixlAgent
from hetero.transport.nixl_sink import SlotReceiver
from hetero.transport.nixl_source import SendBuffers, row_sender
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SourceTransfer

pytest.importorskip("nixl_cu12", reason="needs hetero[rdma]", exc_type=ImportError)

NUM_SLOTS = 6
ENDS = Path(__file__).parent / "nixl_ends.py"


class NixlLink(Link):
    """A sink with slots, and sources with buffers, in one process."""

    def __init__(self, transport, *, allow_tcp=False):
        self.transport = transport
        options = {"allow_tcp": allow_tcp, "interface_of": "127.0.0.1"}
        self.receiver = SlotReceiver(transport, NUM_SLOTS, **{"num_transfers": 3} | options)
        self.buffers = SendBuffers(transport, **options)
        self.sink = TcpSink(Door("tcp://127.0.0.1:0"), self.receiver)
        self.num_tickets = 0
        self.sources = []

    def expect(self, *args, lease_s=5.0, **options):
        transfer = super().expect(*args, lease_s=lease_s, **options)
        transfer.ticket = msgspec.structs.replace(transfer.ticket, ring=self.receiver.ring)
        return transfer

    def source(self, ticket, num_connections=None):
        ends, credits = queue.SimpleQueue(), []
        source = TcpSource(
            SourceTransfer(ticket, FINGERPRINT),
            num_connections=num_connections,
            on_credit=credits.append,
            on_end=ends.put,
            carrier=row_sender(ticket, self.buffers),
        )
        self.sources.append(source)
        return source, ends, credits

    def all_slots_come_back(self):
        wait_for(lambda: self.receiver.num_free == NUM_SLOTS)

    def close(self):
        for source in self.sources:
            source.abort("the test is over")
        self.sink.close()
        self.buffers.close()
        self.receiver.close()


@pytest.fixture(scope="module", params=["nixl-shm", "nixl-tcp"])
def shared(request):
    """Agents take a while to start: one pair of them for all tests."""
    link = NixlLink(request.param)
    yield link
    link.close()


@pytest.fixture
def link(shared):
    """With every slot free again, whatever the last test left behind."""
    shared.all_slots_come_back()
    return shared


@pytest.fixture
def lenient():
    link = NixlLink("nixl-shm", allow_tcp=True)
    yield link
    link.close()


def end_process(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, ENDS, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ENDS.parent.parent)} | environment,
    )


def source_process(link, ticket, num_frames):
    process = end_process("source", link.transport, num_frames)
    process.stdin.write(msgspec.msgpack.encode(ticket).hex() + "\n")
    process.stdin.flush()
    return process


def kill(process):
    process.kill()
    process.communicate()


@pytest.mark.parametrize("seal", ["aead", "mac", "none"])
@pytest.mark.parametrize("num_connections", [None, 1, 4])
def test_every_row_arrives(link, seal, num_connections):
    link.move(link.expect(seal), num_connections=num_connections)
    link.all_slots_come_back()


def test_transfers_beside_each_other_stay_apart(link):
    transfers = [link.expect() for _ in range(3)]
    ends = []
    for transfer in transfers:
        source, end, _ = link.source(transfer.ticket, num_connections=2)
        ends.append(end)
        for frame in FRAMES:
            source.put(frame)
        source.finish(FIRST)
    assert [end.get(timeout=WAIT_S) for end in ends] == [None] * 3
    for transfer in transfers:
        check(transfer)
    wait_for(lambda: not link.sink._inbound)
    assert len(link.sink.events.take_all()) == 3


def test_rows_arrive_from_another_process(link):
    transfer = link.expect()
    process = source_process(link, transfer.ticket, len(FRAMES))
    try:
        assert link.event() == Arrived(transfer.ticket.ticket_id)
        assert process.stdout.readline() == "None\n"
    finally:
        kill(process)
    check(transfer)


def test_slots_of_a_killed_source_come_back_after_its_lease_only(link):
    transfer = link.expect(lease_s=0.6)
    process = source_process(link, transfer.ticket, 5)
    wait_for(lambda: transfer.num_frames == 5)
    kill(process)
    assert isinstance(link.event(), Broke)
    wait_for(lambda: not transfer_is_held(link, transfer))
    assert link.receiver.num_free < NUM_SLOTS
    link.move(link.expect())  # others get what is left
    link.all_slots_come_back()


def transfer_is_held(link, transfer):
    return any(
        link.receiver._book.is_lent(slot, transfer.ticket.ticket_id) for slot in range(NUM_SLOTS)
    )


@pytest.mark.parametrize("who", ["source", "sink"])
def test_slots_come_back_at_once_where_the_source_says_that_it_writes_no_more(
    link, who, monkeypatch
):
    for ends in (tcp_sink, tcp_source):  # a busy machine may take longer to say it
        monkeypatch.setattr(ends, "GRACE_S", WAIT_S)
    transfer = link.expect(lease_s=600)
    source, ends, _ = link.source(transfer.ticket, num_connections=3)
    for frame in FRAMES[:9]:
        source.put(frame)
    wait_for(lambda: transfer.num_frames == 9)
    assert link.receiver.num_free < NUM_SLOTS
    if who == "source":
        source.abort("out of memory")
        assert "out of memory" in str(link.event().error)
    else:
        link.sink.forget(transfer.ticket.ticket_id, "cancelled")
        assert "cancelled" in str(ends.get(timeout=WAIT_S))
    link.all_slots_come_back()


def test_a_late_write_to_a_quarantined_slot_harms_nobody(link):
    gone = link.expect(lease_s=0.6)
    late = HandSource(gone.ticket, FINGERPRINT)
    slots = late.hear(Ready).slots
    late.close()
    assert isinstance(link.event(), Broke)
    transfer = link.expect()
    source, ends, _ = link.source(transfer.ticket)
    agent = link.buffers.agent
    agent.connect(link.receiver.ring)
    for frame in FRAMES:
        source.put(frame)
        for slot in slots:
            agent.write(7, 70_000, link.receiver.ring, slot, WAIT_S)
    source.finish(FIRST)
    assert ends.get(timeout=WAIT_S) is None
    assert link.event() == Arrived(transfer.ticket.ticket_id)
    check(transfer)


def test_a_source_that_has_not_heard_of_its_sink_for_a_lease_writes_nothing(link):
    """It was stopped, and its slots are somebody else's by now."""
    transfer = link.expect(lease_s=0.5)
    source = HandSource(transfer.ticket, FINGERPRINT)
    sender = row_sender(msgspec.structs.replace(transfer.ticket, lease_s=0.0), link.buffers)
    sender.connect()
    ready = source.hear(Ready)
    sender.take(ready)
    source.take(ready)
    header = sender.assign(source.transfer.rows(FRAMES[0], handed_over=0.0, now=0.0))
    before = bytes(link.receiver._agent.slot(header.slot))
    with pytest.raises(PeerError, match="need a sign of life within 0 s, have none"):
        sender.send(source.connection, header, FRAMES[0].rows)
    assert bytes(link.receiver._agent.slot(header.slot)) == before
    link.sink.forget(transfer.ticket.ticket_id, "the test is over")
    source.close()


def test_a_damaged_slot_is_refused(link, monkeypatch):
    write = link.buffers.agent.write

    def write_damaged(index, num_bytes, ring, slot, limit_s):
        link.buffers.agent.slot(index)[num_bytes // 2] ^= 1
        write(index, num_bytes, ring, slot, limit_s)

    monkeypatch.setattr(link.buffers.agent, "write", write_damaged)
    transfer = link.expect("none")
    source, ends, _ = link.source(transfer.ticket)
    source.put(FRAMES[0])
    assert "need them as they were sent" in str(link.event().error)
    assert "need them as they were sent" in str(ends.get(timeout=WAIT_S))
    assert transfer.received_bytes == 0


def test_what_changes_in_a_slot_after_it_was_opened_changes_nothing(link, monkeypatch):
    """A frame is copied out before it is checked: what is placed is what was checked."""
    rows = link.receiver.rows
    slots = []

    def rows_and_overwrite(ticket, header, inline, connection):
        opened = rows(ticket, header, inline, connection)
        link.receiver._agent.slot(header.slot)[:100] = bytes(100)
        slots.append(header.slot)
        return opened

    monkeypatch.setattr(link.receiver, "rows", rows_and_overwrite)
    link.move(link.expect("none"))
    assert len(slots) == len(FRAMES) > len(set(slots))


SLOTS = {
    "not lent": ({"slot": "another's", "slot_bytes": 1000}, "in a slot that it was lent"),
    "not there": ({"slot": 10**9, "slot_bytes": 1000}, "in a slot that it was lent"),
    "too small": ({"slot": "its own", "slot_bytes": 2**22}, "have 4194320 in slot"),
    "not named": ({}, "need them in a receive slot, have them on the connection"),
}


@pytest.mark.parametrize(("named", "error"), SLOTS.values(), ids=SLOTS.keys())
def test_rows_that_are_not_in_a_slot_of_their_transfer_are_refused(link, named, error):
    transfer = link.expect(lease_s=0.5)
    source = HandSource(transfer.ticket, FINGERPRINT)
    ready = source.hear(Ready)
    source.take(ready)
    chosen = {
        "its own": ready.slots[0],
        "another's": next(slot for slot in range(NUM_SLOTS) if slot not in ready.slots),
    }
    named = named | {name: chosen.get(value, value) for name, value in named.items()}
    header = source.transfer.rows(FRAMES[0], handed_over=0.0, now=0.0)
    header = msgspec.structs.replace(header, **named)
    source.say(header, None if named else FRAMES[0].rows)
    assert error in str(link.event().error)
    source.close()


def test_with_every_slot_taken_a_transfer_is_refused(link):
    others = [HandSource(link.expect(lease_s=0.5).ticket, FINGERPRINT) for _ in range(3)]
    assert [len(other.hear(Ready).slots) for other in others] == [2, 2, 2]
    _, ends, _ = link.source(link.expect().ticket)
    assert "receive slots: need one, have none free" in str(ends.get(timeout=WAIT_S))
    assert isinstance(link.event(), Broke)
    for other in others:
        other.close()
        assert isinstance(link.event(), Broke)


def test_where_tcp_is_allowed_rows_come_by_it_when_every_slot_is_taken(lenient):
    others = [HandSource(lenient.expect().ticket, FINGERPRINT) for _ in range(3)]
    for other in others:
        other.hear(Ready)
    lenient.move(lenient.expect())
    for other in others:
        other.close()


def test_a_dead_agent_is_an_error_and_the_others_stay_reachable(link):
    agent, ring = link.buffers.agent, link.receiver.ring
    process = end_process("agent", link.transport)
    try:
        other = msgspec.msgpack.decode(bytes.fromhex(process.stdout.readline()), type=SlotRing)
        agent.connect(other)
        agent.write(7, 100_000, other, 0, WAIT_S)
    finally:
        kill(process)
    wait_for(lambda: cannot_write(agent, other))
    agent.connect(ring)
    agent.write(7, 100_000, ring, 0, WAIT_S)


def cannot_write(agent, ring):
    try:
        agent.write(7, 2**20, ring, 0, WAIT_S)
    except PeerError as error:
        return "write to the decode node" in str(error)
    return False


GARBAGE = {
    "nothing": lambda raw: b"",
    "something else": lambda raw: b"GET / HTTP/1.1" * 9,
    "its beginning": lambda raw: raw[:100],
    "no connection": lambda raw: raw.replace(b"UCX", b"XCU"),
    "another agent's": lambda raw: raw.replace(b"hetero-", b"Hetero-"),
}


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE.keys())
def test_metadata_that_is_garbage_is_an_error(link, spoil):
    agent = NixlAgent(link.transport, 1)  # knows nobody yet
    ring = link.receiver.ring
    with pytest.raises(PeerError, match="NIXL"):
        agent.connect(msgspec.structs.replace(ring, metadata=spoil(ring.metadata)))
    agent.close()


def test_both_ends_need_the_same_transport(link, lenient):
    ticket = link.expect().ticket
    other = "nixl-shm" if link.transport == "nixl-tcp" else "nixl-tcp"
    with pytest.raises(PeerError, match=f"need {link.transport} at both ends"):
        link.buffers.agent.connect(msgspec.structs.replace(ticket.ring, transport=other))
    plain = msgspec.structs.replace(ticket, ring=None)
    with pytest.raises(PeerError, match=r"the decode node at .* has tcp"):
        row_sender(plain, link.buffers)
    assert not row_sender(plain, lenient.buffers).writes_apart
    assert not row_sender(ticket, None).writes_apart  # for the sink to refuse, or to allow


def test_ucx_taking_tcp_for_something_else_is_an_error():
    code = "from hetero.transport.nixl_agent import NixlAgent; NixlAgent('nixl-shm', 1).prove()"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"UCX_TLS": "tcp"},
    )
    assert "ConfigError: transport nixl-shm: transport: need nixl-shm, UCX took tcp/" in run.stderr


def test_without_nixl_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "nixl_cu12._bindings", None)
    with pytest.raises(ConfigError, match=r"pip install 'hetero\[rdma\]'"):
        NixlAgent("nixl-shm", 1)


@pytest.mark.skipif(Path("/sys/class/infiniband").exists(), reason="has an RDMA device")
def test_without_an_rdma_device_there_is_no_rdma():
    with pytest.raises(ConfigError, match="need an RDMA device"):
        NixlAgent("nixl-rdma", 1)
