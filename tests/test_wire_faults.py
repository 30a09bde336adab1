"""What a hostile or broken network does to a transfer: never wrong KV, and both ends let go.

An unmodified source and sink, with a proxy between them. The test stands in for the router: when
one side fails, the other is told, as a cluster's would be.
"""

import contextlib
import gc
import queue
import select
import socket
import threading
import time
import weakref

import blake3
import msgspec
import numpy as np
import pytest
from wire_proxy import (
    Late,
    Spoil,
    Unit,
    WireProxy,
    cut,
    drop,
    duplicate,
    faithful,
    flip,
    of_version,
    oversized,
    replace,
    truncate,
)

from hetero.errors import PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob, read_state
from hetero.messages import WIRE_VERSION, Fingerprint, ModelFingerprint, Ticket, Token
from hetero.transport import connection, tcp_source
from hetero.transport.connection import MAX_ROWS_BYTES, split_address
from hetero.transport.door import Door
from hetero.transport.handshake import make_hello
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SinkTransfer, SourceTransfer

MODEL = ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w")
LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
NUM_TOKENS = 64
FIRST = (Token("r", 0, 0, 5),)
SEALS = ("aead", "mac", "none")

LEASE_S = 0.5  # where something is lost; else WAIT_S, so that a busy machine loses nothing
WAIT_S = 20
# Both sides end so long after the lease at the latest.
GRACE_S = 1.0


@pytest.fixture(autouse=True)
def quick_signs_of_life(monkeypatch):
    monkeypatch.setattr(tcp_source, "_ALIVE_S", LEASE_S / 5)


def make_frames(layout=LAYOUT, num_tokens=NUM_TOKENS, chunk=16, seed=0):
    rng = np.random.default_rng(seed)
    return [
        RowFrame(
            kind=kind,
            first_layer=layer,
            end_layer=layer + 1,
            first_token=first,
            end_token=first + chunk,
            rows=rng.integers(0, 256, (1, chunk, layout.row_bytes(kind)), np.uint8),
        )
        for first in range(0, num_tokens, chunk)
        for layer in range(layout.num_layers)
        for kind in "kv"
    ]


class Move:
    """One transfer through the proxy, and what each side says of it in the end."""

    def __init__(
        self,
        path,
        frames,
        layout,
        seal,
        *,
        lease_s,
        credit_bytes,
        num_connections,
        source_fingerprint,
    ):
        path.num_tickets += 1
        self.path = path
        self.frames = frames
        self.layout = layout
        self.num_tokens = frames[-1].end_token
        self.ticket = Ticket(
            ticket_id=f"r.{path.num_tickets}",
            address=path.proxy.address,
            num_tokens=self.num_tokens,
            lease_s=lease_s,
            key=bytes([path.num_tickets]) * 32,
            seal=seal,
        )
        fingerprint = Fingerprint(model=MODEL, layout=layout)
        staging = StagingBlob(layout, self.num_tokens, 1)
        self.sink_transfer = SinkTransfer(self.ticket, fingerprint, staging, credit_bytes)
        self.held = weakref.ref(staging)
        path.sink.expect(self.sink_transfer)
        self.credits = []
        self._ends = queue.SimpleQueue()
        self.source = TcpSource(
            SourceTransfer(self.ticket, source_fingerprint or fingerprint),
            num_connections=num_connections,
            on_credit=self.credits.append,
            on_end=self._ends.put,
        )
        self.sink_word = None  # Arrived or Broke, or None as long as it says nothing
        self.source_word = None  # "done" or a PeerError
        for frame in frames:
            self.source.put(frame)
        self.source.finish(FIRST)

    def hear(self, seconds, after_the_source=WAIT_S):
        """Until both have spoken, or time is up; the sink's is when the source has failed."""
        deadline = time.monotonic() + seconds
        while not (self.sink_word and self.source_word) and time.monotonic() < deadline:
            if isinstance(self.source_word, PeerError):
                deadline = min(deadline, time.monotonic() + after_the_source)
                after_the_source = WAIT_S
            select.select([self.path.sink.events], [], [], 0.01)
            for event in self.path.sink.events.take_all():
                if isinstance(event, Broke):  # an error holds what it was raised over
                    event = Broke(event.ticket_id, PeerError(str(event.error)))
                self.path.words[event.ticket_id] = event
            self.sink_word = self.path.words.get(self.ticket.ticket_id)
            if not self._ends.empty():
                error = self._ends.get()
                self.source_word = "done" if error is None else PeerError(str(error))

    def end(self):
        """Both sides end within the lease. If only one knows, the router tells the other."""
        self.hear(self.ticket.lease_s + GRACE_S, after_the_source=0.2)
        if isinstance(self.source_word, PeerError) and self.sink_word is None:
            self.path.sink.forget(self.ticket.ticket_id, "cancelled by the router")
            self.sink_word = Broke(self.ticket.ticket_id, PeerError("cancelled by the router"))
        assert self.sink_word, f"the sink waits on, while the source says {self.source_word}"
        assert self.source_word, f"the source waits on, while the sink says {self.sink_word}"

    @property
    def has_arrived(self):
        return isinstance(self.sink_word, Arrived)

    def check(self):
        """KV that has arrived is right, and nobody takes for done what was lost."""
        if self.has_arrived:
            assert self.sink_transfer.first_tokens == FIRST
            blob = self.sink_transfer.staging.blob
            state = read_state(blob, self.layout, range(self.num_tokens))
            for frame in self.frames:
                rows = state.rows(blob, frame.kind, frame.first_layer)
                placed = rows[frame.first_token : frame.end_token]
                np.testing.assert_array_equal(placed, frame.rows[0])
        else:
            assert isinstance(self.sink_word.error, PeerError)
        if self.source_word == "done":  # every row is there; of Done it hears nothing
            num_bytes = sum(frame.rows.nbytes for frame in self.frames)
            assert self.sink_transfer.received_bytes == sum(self.credits) == num_bytes
        else:
            assert isinstance(self.source_word, PeerError)

    def check_released(self):
        """Within a second: no connection, no waiting frame, no staging blob on either side."""
        assert not self.path.sink._inbound
        source, self.sink_transfer, self.frames = self.source, None, None
        until(lambda: not (source._connections or source._waiting), 1 + GRACE_S)
        self.source = source = None
        until(lambda: gc.collect() is None or self.held() is None, 1 + GRACE_S)


class Path:
    def __init__(self, **options):
        self.sink = TcpSink(Door("tcp://127.0.0.1:0"))
        self.proxy = WireProxy(self.sink.address, **options)
        self.num_tickets = 0
        self.words = {}  # events by ticket id
        self.sources = []

    def move(
        self,
        seal="aead",
        frames=None,
        layout=LAYOUT,
        lease_s=LEASE_S,
        credit_bytes=20_000,
        num_connections=1,
        source_fingerprint=None,
    ):
        move = Move(
            self,
            frames or FRAMES,
            layout,
            seal,
            lease_s=lease_s,
            credit_bytes=credit_bytes,
            num_connections=num_connections,
            source_fingerprint=source_fingerprint,
        )
        self.sources.append(weakref.ref(move.source))
        return move

    def close(self):
        for source in self.sources:
            if source() is not None:
                source().abort("the test is over")
        self.sink.close()
        self.proxy.close()


@pytest.fixture
def path():
    path = Path()
    yield path
    path.close()


def until(condition, seconds=WAIT_S):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


FRAMES = make_frames()

# Units to the sink: hello, Open, rows, Done. To the source: welcome, Ready, a credit for each rows.
NUM_ROWS = len(FRAMES)
TO_SINK = {"Open": 1, "the first rows": 2, "rows": 11, "the last rows": NUM_ROWS + 1}
TO_SINK |= {"Done": NUM_ROWS + 2}
TO_SOURCE = {"Ready": 1, "a credit": 11, "the last credit": NUM_ROWS + 1}
UNITS = [
    pytest.param(to_sink, number, id=name.replace(" ", "-"))
    for to_sink, units in ((True, TO_SINK), (False, TO_SOURCE))
    for name, number in units.items()
]

CHANGES = {
    "a flipped bit of the message": flip(8 * 8 + 3),
    "a flipped bit of the end": flip(-1),
    "a flipped bit of the message's size": flip(3),
    "a high bit of the message's size": flip(18),
    "a bit beyond the message's limit": flip(30),
    "a flipped bit of the rows' size": flip(32 + 3),
    "a high bit of the rows' size": flip(32 + 20),
    "a byte cut off": truncate(1),
    "a tag and more cut off": truncate(30),
    "a cut and the end": cut(9),
    "nothing and the end": drop,
    "the same twice": duplicate,
    "another's bytes": replace(bytes(300)),
    "more rows than allowed": oversized(MAX_ROWS_BYTES + 1),
    "more rows than it had": oversized(5000),
}


@pytest.mark.parametrize(("to_sink", "number"), UNITS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_spoiled_unit_never_becomes_wrong_kv(path, change, to_sink, number):
    """With the weakest seal: accidents must be noticed with it too."""
    fault = path.proxy.fault = Spoil(number, change, to_sink=to_sink)
    move = path.move("none")
    move.end()
    assert fault.happened.is_set()
    move.check()
    # Once everything is there, what comes twice or behind it is nobody's loss.
    is_too_late = number == (TO_SINK["Done"] if to_sink else TO_SOURCE["the last credit"])
    assert is_too_late or not (move.has_arrived and move.source_word == "done")
    if number == TO_SINK["rows"]:  # half a second each
        move.check_released()


@pytest.mark.parametrize("seal", ["aead", "mac"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_seal_notices_spoiled_rows(path, change, seal):
    path.proxy.fault = Spoil(11, change)
    move = path.move(seal)
    move.end()
    move.check()
    assert isinstance(move.sink_word, Broke)
    assert isinstance(move.source_word, PeerError)
    move.check_released()


@pytest.mark.parametrize("seal", SEALS)
@pytest.mark.parametrize("to_sink", [True, False], ids=["rows", "credit"])
@pytest.mark.parametrize("by", [1, 3])
def test_a_reordered_or_late_frame_breaks_the_transfer(path, seal, to_sink, by):
    fault = path.proxy.fault = Late(8, by, to_sink=to_sink)
    move = path.move(seal, credit_bytes=10**6)  # more frames than that are on their way
    move.end()
    assert fault.happened.is_set()
    move.check()
    assert not (move.has_arrived and move.source_word == "done")
    move.check_released()


def both_break(path, seal, fault):
    """A transfer with a fault: both ends end with an error, and nothing wrong is in its place."""
    path.proxy.fault = fault
    move = path.move(seal)
    move.end()
    move.check()
    assert isinstance(move.sink_word, Broke)
    assert isinstance(move.source_word, PeerError)


@pytest.mark.parametrize("number", [2, 11])
@pytest.mark.parametrize("seal", SEALS)
def test_a_frame_of_an_earlier_transfer_is_not_taken_for_this_ones(path, seal, number):
    path.proxy.is_recording = True
    earlier = path.move(seal, frames=make_frames(seed=1), lease_s=WAIT_S)
    earlier.end()
    assert earlier.has_arrived
    (recorded,) = (u.raw for u in path.proxy.units if u.to_sink and u.number == number)

    def fault(unit: Unit) -> list[bytes]:
        return [recorded if unit.to_sink and unit.number == number else unit.raw]

    both_break(path, seal, fault)


@pytest.mark.parametrize("seal", SEALS)
def test_a_frame_of_the_same_connection_is_not_taken_again(path, seal):
    path.proxy.is_recording = True

    def fault(unit: Unit) -> list[bytes]:
        if unit.to_sink and unit.number == 15:
            return [next(u.raw for u in path.proxy.units if u.to_sink and u.number == 5), unit.raw]
        return [unit.raw]

    both_break(path, seal, fault)


@pytest.mark.parametrize("seal", SEALS)
def test_a_replayed_connection_does_not_disturb_the_next_transfer(path, seal):
    path.proxy.is_recording = True
    earlier = path.move(seal, lease_s=WAIT_S)
    earlier.end()
    assert earlier.has_arrived
    recorded = b"".join(unit.raw for unit in path.proxy.units if unit.to_sink)
    path.proxy.bytes_per_s = 200_000.0
    move = path.move(seal, lease_s=WAIT_S)
    until(lambda: move.credits)
    with socket.create_connection(split_address(path.sink.address)) as replayed:
        replayed.settimeout(WAIT_S)
        replayed.sendall(recorded)
        with contextlib.suppress(ConnectionResetError):  # it was told even less
            assert replayed.recv(1) == b""
    path.proxy.bytes_per_s = None
    move.end()
    move.check()
    assert move.has_arrived
    assert move.source_word == "done"


@pytest.mark.parametrize(
    ("to_sink", "change"),
    [
        (True, of_version(WIRE_VERSION + 1)),
        (True, of_version(0)),
        (True, flip(8 * 10)),  # its stream
        (True, flip(-1)),
        (True, drop),
        (True, cut(5)),
        (True, truncate(5)),
        (True, replace(b"GET / HTTP/1.1\r\n\r\n")),
        (False, flip(0)),
        (False, flip(-1)),
        (False, drop),
        (False, cut(5)),
    ],
)
def test_a_spoiled_greeting_opens_nothing(path, to_sink, change):
    path.proxy.fault = Spoil(0, change, to_sink=to_sink)
    move = path.move()
    move.end()
    move.check()
    assert not move.has_arrived
    assert isinstance(move.source_word, PeerError)
    move.check_released()
    path.proxy.fault = faithful
    again = path.move(lease_s=WAIT_S)
    again.end()
    assert again.has_arrived


@pytest.mark.parametrize(
    ("difference", "change"),
    [
        ("tensors: w here, X there", lambda f: renewed(f, "model", tensors="X")),
        ("tokenizer: t here, X there", lambda f: renewed(f, "model", tokenizer="X")),
        ("k_type: q8_0 here, f16 there", lambda f: renewed(f, "layout", k_type="f16")),
        ("k_rotation: 64 here, 0 there", lambda f: renewed(f, "layout", k_rotation=0)),
        ("num_layers: 3 here, 4 there", lambda f: renewed(f, "layout", num_layers=4)),
    ],
    ids=["model", "tokenizer", "KV type", "rotation", "layers"],
)
def test_kv_of_another_kind_is_refused_before_a_row_of_it_is_placed(path, difference, change):
    other = change(Fingerprint(model=MODEL, layout=LAYOUT))
    move = path.move(lease_s=WAIT_S, source_fingerprint=other)
    move.end()
    assert difference in str(move.sink_word.error)
    assert difference in str(move.source_word)
    assert move.sink_transfer.received_bytes == 0
    move.check_released()


def renewed(fingerprint, part, **fields):
    changed = msgspec.structs.replace(getattr(fingerprint, part), **fields)
    return msgspec.structs.replace(fingerprint, **{part: changed})


def test_an_honest_peer_of_another_wire_version_is_refused_with_a_reason(path, monkeypatch):
    def make_newer(ticket_id, key, stream):
        hello = of_version(WIRE_VERSION + 1)(make_hello(ticket_id, key, stream))[0]
        return hello[:-32] + blake3.blake3(hello[:-32], key=key).digest()

    monkeypatch.setattr(connection, "make_hello", make_newer)
    move = path.move()
    move.end()
    assert f"wire version: need {WIRE_VERSION}, have {WIRE_VERSION + 1}" in str(
        move.sink_word.error
    )
    assert isinstance(move.source_word, PeerError)
    move.check_released()


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_a_link_that_comes_back_in_time_loses_nothing(path, seconds):
    path.proxy.bytes_per_s = 100_000.0
    move = path.move(num_connections=2, lease_s=WAIT_S)
    until(lambda: move.credits)
    path.proxy.down()
    time.sleep(seconds)
    path.proxy.bytes_per_s = None
    path.proxy.up()
    move.end()
    move.check()
    assert move.has_arrived
    assert move.source_word == "done"
    move.check_released()


@pytest.mark.parametrize(("number", "share"), [(1, 0.0), (11, 0.5), (NUM_ROWS + 2, 0.5)])
def test_a_link_that_stays_down_ends_both_sides_within_the_lease(path, number, share):
    """Each by itself: nobody can tell them. The last that came is a part of a frame, or none."""

    def fault(unit: Unit) -> list[bytes]:
        if unit.to_sink and unit.number == number:
            path.proxy.swallows = True
            return [unit.raw[: int(share * len(unit.raw))]]
        return [unit.raw]

    path.proxy.fault = fault
    move = path.move(lease_s=2.0)  # twice as long would be more than a second too long
    move.hear(2.0 + GRACE_S)
    assert isinstance(move.sink_word, Broke)
    assert isinstance(move.source_word, PeerError)
    move.check_released()


@pytest.mark.parametrize("stage", ["before it connects", "moving"])
def test_a_source_that_gives_up_frees_everything_at_once_though_the_link_is_down(path, stage):
    if stage == "before it connects":
        path.proxy.down()
        move = path.move(lease_s=WAIT_S)
        until(lambda: path.proxy.num_connections)
    else:
        path.proxy.bytes_per_s = 50_000.0
        move = path.move(lease_s=WAIT_S)
        until(lambda: move.credits)
        path.proxy.down()
    move.source.abort("cancelled by the router")
    path.sink.forget(move.ticket.ticket_id, "cancelled by the router")
    move.check_released()
    until(lambda: not source_threads(), 1 + GRACE_S)


def source_threads():
    return [one for one in threading.enumerate() if one.name.startswith("source stream")]


@pytest.mark.parametrize("lost", [1, 2])
def test_one_of_several_connections_lost_breaks_the_transfer_for_both(path, lost):
    def fault(unit: Unit) -> list[bytes]:
        if unit.to_sink and unit.connection == lost and unit.number == 1:
            return cut(len(unit.raw) // 2)(unit.raw)
        return [unit.raw]

    path.proxy.fault = fault
    path.proxy.delay_s = 0.005
    move = path.move(num_connections=3, frames=make_frames(chunk=4))
    move.end()
    move.check()
    assert isinstance(move.sink_word, Broke)
    assert isinstance(move.source_word, PeerError)
    move.check_released()


def test_a_connection_may_end_before_the_last_word_of_another(path):
    """Done may be on its way on one connection when the others have nothing more to say."""

    def fault(unit: Unit) -> list[bytes]:
        is_busy = unit.to_sink and unit.connection == 0 and unit.number > 4
        time.sleep(0.02 if is_busy else 0)
        return [unit.raw]

    path.proxy.fault = fault
    for _ in range(5):
        move = path.move(num_connections=4, credit_bytes=10**6, lease_s=WAIT_S)
        move.end()
        move.check()
        assert move.has_arrived, move.sink_word
        assert move.source_word == "done"
        path.proxy.num_connections = 0


# A long path: 64 KiB frames over 20 ms each way.

LARGE = kv_layout(
    num_layers=1, num_kv_heads=8, head_dim_k=128, head_dim_v=128, k_type="f16", v_type="f16"
)
FRAME_BYTES = 32 * LARGE.row_bytes("k")


@pytest.fixture
def long_path():
    path = Path(delay_s=0.02, buffer_units=1024)
    yield path
    path.close()


def test_the_window_grows_to_what_a_long_path_holds(long_path):
    """Beside a transfer that may have two frames on the way, on the same path."""
    frames = make_frames(LARGE, num_tokens=2048, chunk=32)
    options = {"layout": LARGE, "lease_s": WAIT_S, "num_connections": None}
    narrow = long_path.move(frames=frames, credit_bytes=2 * FRAME_BYTES, **options)
    until(lambda: len(narrow.credits) > 4)
    before = len(narrow.credits)
    wide = long_path.move(frames=frames, credit_bytes=2**26, **options)
    wide.end()
    meanwhile = len(narrow.credits) - before
    wide.check()
    assert wide.has_arrived
    assert wide.source.transfer.window.num_bytes >= 8 * FRAME_BYTES
    assert len(wide.credits) >= 3 * meanwhile


def test_a_rate_that_falls_to_a_tenth_delays_a_transfer_and_no_more(path):
    frames = make_frames(LARGE, num_tokens=2048, chunk=32)
    path.proxy.bytes_per_s = 20e6
    move = path.move(
        frames=frames, layout=LARGE, lease_s=WAIT_S, credit_bytes=2**26, num_connections=None
    )
    until(lambda: len(move.credits) > 20)
    path.proxy.bytes_per_s = 2e6
    until(lambda: len(move.credits) > 40)
    path.proxy.bytes_per_s = 20e6
    move.end()
    move.check()
    assert move.has_arrived
    assert move.source_word == "done"
    move.check_released()
