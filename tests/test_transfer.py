"""The transfer protocol without I/O: honest runs, every illegal message, every kind of damage."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Reserved,
    Rows,
    Ticket,
    Token,
    decode_to_sink,
    decode_to_source,
    encode,
)
from hetero.transport.transfer import (
    SINK_HEARS,
    SOURCE_HEARS,
    SinkTransfer,
    SourceTransfer,
    State,
)

LAYOUT = kv_layout(
    num_layers=2, num_kv_heads=1, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
MODEL = ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w")
FINGERPRINT = Fingerprint(model=MODEL, layout=LAYOUT)
TICKET = Ticket(
    ticket_id="r.1",
    address="tcp://x:1",
    num_tokens=6,
    lease_s=30,
    key=bytes(range(32)),
    seal="aead",
)
FIRST = (Token("r", 0, 0, 5),)


def frames(chunk=3, num_tokens=6):
    rng = np.random.default_rng(0)
    for first, layer, kind in itertools.product(range(0, num_tokens, chunk), range(2), "kv"):
        end = min(first + chunk, num_tokens)
        yield RowFrame(
            kind=kind,
            first_layer=layer,
            end_layer=layer + 1,
            first_token=first,
            end_token=end,
            rows=rng.integers(0, 256, (1, end - first, LAYOUT.row_bytes(kind)), np.uint8),
        )


def pair(credit_bytes=10**6):
    staging = StagingBlob(LAYOUT, 6, 1)
    return SourceTransfer(TICKET, FINGERPRINT), SinkTransfer(
        TICKET, FINGERPRINT, staging, credit_bytes
    )


def opened(credit_bytes=10**6):
    source, sink = pair(credit_bytes)
    source.receive(sink.receive(source.open()), 0.0)
    return source, sink


def payload(frame):
    return memoryview(frame.rows.reshape(-1))


@settings(deadline=None)
@given(data=st.data(), chunk=st.integers(1, 6), credit_bytes=st.integers(1, 2000))
def test_credit_is_never_exceeded_and_every_row_arrives(data, chunk, credit_bytes):
    """Frames on several connections overtake each other, and so do their credits."""
    source, sink = opened(credit_bytes)
    on_the_way, sizes = [], []

    def arrive():
        index = data.draw(st.integers(0, len(on_the_way) - 1))
        source.receive(sink.receive(*on_the_way.pop(index)), 0.0)
        sizes.pop(index)

    for frame in frames(chunk):
        while not source.may_send(frame.rows.nbytes):
            arrive()
        header = source.rows(frame, handed_over=0.0, now=0.0)
        on_the_way.append((header, payload(frame)))
        sizes.append(frame.rows.nbytes)
        assert sum(sizes) <= credit_bytes or len(sizes) == 1
        assert source.in_flight_bytes == sum(sizes)
    assert sink.receive(source.done(FIRST)) is None
    while on_the_way:
        assert source.state is State.CLOSING is sink.state
        arrive()
    assert source.state is State.DONE is sink.state
    assert sink.first_tokens == FIRST
    assert sink.staging.is_complete
    assert sink.received_bytes == source.sent_bytes


def test_wire_seconds_count_only_while_something_is_in_flight():
    source, sink = opened()
    sent = list(frames())
    for i, (frame, start, end) in enumerate(zip(sent, [0, 5, 9, 20], [2, 6, 11, 23], strict=False)):
        reply = sink.receive(
            source.rows(frame, handed_over=float(start), now=float(start)), payload(frame)
        )
        source.receive(reply, float(end))
        assert source.wire_s == [2, 3, 5, 8][i]
    assert source.last_group_s == 23 - 9  # the group's K was handed over at 9, its V came at 23


def test_a_peer_with_another_model_or_cache_is_told_every_difference():
    _, sink = pair()
    other = Fingerprint(
        model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="X"),
        layout=kv_layout(
            num_layers=2, num_kv_heads=1, head_dim_k=64, head_dim_v=64, k_type="q4_0", v_type="f16"
        ),
    )
    with pytest.raises(PeerError) as error:
        sink.receive(Open(ticket_id="r.1", fingerprint=other))
    assert "tensors: w here, X there" in str(error.value)
    assert "k_type: q8_0 here, q4_0 there" in str(error.value)
    assert "v_type" not in str(error.value)
    assert sink.state is State.ENDED


MESSAGES_TO_SINK = [
    Open(ticket_id="r.1", fingerprint=FINGERPRINT),
    Rows(
        ticket_id="r.1",
        kind="k",
        first_layer=0,
        end_layer=1,
        first_token=0,
        end_token=1,
        frame=0,
    ),
    Done(ticket_id="r.1", first_tokens=FIRST),
    Abort(ticket_id="r.1", reason="x"),
    Alive(ticket_id="r.1"),
]
VERSION = bytes([WIRE_VERSION])
MESSAGES_TO_SOURCE = [
    Ready(ticket_id="r.1", credit_bytes=9),
    Credit(ticket_id="r.1", frame=0),
    Refused(ticket_id="r.1", reason="x"),
    Alive(ticket_id="r.1"),
]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state, message)
        for state in State
        for message in MESSAGES_TO_SINK
        if (state, type(message)) not in SINK_HEARS
    ],
)
def test_every_message_the_table_does_not_list_is_the_sources_fault(state, message):
    _, sink = pair()
    sink.state = state
    with pytest.raises(PeerError, match=f"need no {type(message).__name__} while {state.value}"):
        sink.receive(message)
    assert sink.state is State.ENDED


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state, message)
        for state in State
        for message in MESSAGES_TO_SOURCE
        if (state, type(message)) not in SOURCE_HEARS
    ],
)
def test_every_message_the_table_does_not_list_is_the_sinks_fault(state, message):
    source, _ = pair()
    source.state = state
    with pytest.raises(PeerError, match=f"need no {type(message).__name__} while {state.value}"):
        source.receive(message, 0.0)
    assert source.state is State.ENDED


def test_a_cut_frame_is_noticed():
    source, sink = opened()
    frame = next(frames())
    header = source.rows(frame, handed_over=0.0, now=0.0)
    with pytest.raises(PeerError, match="need rows of 1 layers x 3 tokens, have 203 bytes"):
        sink.receive(header, payload(frame)[:-1])


def test_a_header_without_rows_is_the_sources_fault():
    source, sink = opened()
    with pytest.raises(PeerError, match="need rows after their header"):
        sink.receive(source.rows(next(frames()), handed_over=0.0, now=0.0))


def test_a_header_with_no_bytes_of_rows_is_the_sources_fault():
    _, sink = opened()
    far = {"first_layer": 0, "end_layer": 2**30, "first_token": 0, "end_token": 2**51}
    with pytest.raises(PeerError, match="need rows after their header"):
        sink.receive(Rows(ticket_id="r.1", kind="k", frame=0, **far), memoryview(b""))


def test_rows_that_come_twice_are_the_sources_fault():
    source, sink = opened()
    frame = next(frames())
    header = source.rows(frame, handed_over=0.0, now=0.0)
    sink.receive(header, payload(frame))
    with pytest.raises(PeerError, match="k rows of layer 0: need token 0 once, have it twice"):
        sink.receive(header, payload(frame))
    assert sink.state is State.ENDED


def test_a_transfer_with_gaps_is_never_done():
    source, sink = opened()
    for frame in list(frames())[1:]:
        sink.receive(source.rows(frame, handed_over=0.0, now=0.0), payload(frame))
    sink.receive(Done(ticket_id="r.1", first_tokens=FIRST))
    assert sink.state is State.CLOSING
    assert not sink.staging.is_complete


def test_what_was_dropped_takes_no_more_rows():
    source, sink = opened()
    frame = next(frames())
    header = source.rows(frame, handed_over=0.0, now=0.0)
    before = sink.staging.blob.copy()
    sink.end()
    with pytest.raises(PeerError, match="need no Rows while ended"):
        sink.receive(header, payload(frame))
    np.testing.assert_array_equal(sink.staging.blob, before)


def test_silence_is_filled_in_both_directions():
    source, sink = opened()
    source.receive(sink.receive(source.alive()), 0.0)
    assert source.state is State.MOVING is sink.state


def test_a_refusal_reaches_the_source_with_its_reason():
    source, _ = pair()
    source.open()
    with pytest.raises(PeerError, match="refused the KV: no room"):
        source.receive(Refused(ticket_id="r.1", reason="no room"), 0.0)


def test_credit_for_a_frame_never_sent_is_the_sinks_fault():
    source, _ = opened()
    with pytest.raises(PeerError, match="need credit for a frame in flight, have it for frame 9"):
        source.receive(Credit(ticket_id="r.1", frame=9), 0.0)


@pytest.mark.parametrize("message", MESSAGES_TO_SINK)
def test_messages_survive_encoding(message):
    assert decode_to_sink(encode(message)) == message


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", f"wire version: need {WIRE_VERSION}, have an empty message"),
        (b"\x01\x80", f"wire version: need {WIRE_VERSION}, have 1"),
        (VERSION, "malformed message"),
        (VERSION + b"\x80", "malformed message"),
        (VERSION + b"\x81\xa1\xff\xc0", "malformed message"),  # a name that isn't UTF-8
        (VERSION + b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0", "malformed message"),  # lists in lists
        (encode(MESSAGES_TO_SOURCE[0])[:-1], "malformed message"),
        (encode(MESSAGES_TO_SINK[0]), "malformed message"),  # to the wrong side
        (encode(Credit(ticket_id="x" * 201, frame=1)), "malformed message"),
        (encode(Credit(ticket_id="x", frame=-1)), "malformed message"),
    ],
)
def test_bytes_that_are_no_message_are_the_peers_error(raw, complaint):
    with pytest.raises(PeerError, match=complaint):
        decode_to_source(raw)


def test_a_tickets_key_is_in_no_repr():
    ticket = Ticket(
        ticket_id="r.1", address="tcp://x:1", num_tokens=6, lease_s=30, key=b"s" * 32, seal="aead"
    )
    assert "sss" not in repr(Reserved(request_id="r", ticket=ticket))
