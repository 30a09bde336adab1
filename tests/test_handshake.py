"""The first words of a connection: who may begin one, and that no two have the same keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.errors import PeerError
from hetero.messages import WIRE_VERSION
from hetero.transport.handshake import (
    MAX_HELLO_BYTES,
    check_welcome,
    make_hello,
    make_welcome,
    read_hello,
    session_keys,
)

KEY, OTHER = bytes(range(32)), bytes(32)


@given(ticket_id=st.text(max_size=60), stream=st.integers(0, 2**16 - 1))
def test_a_hello_is_read_as_it_was_made_and_only_when_whole(ticket_id, stream):
    raw = make_hello(ticket_id, KEY, stream)
    for size in range(len(raw)):
        assert read_hello(raw[:size]) is None
    hello = read_hello(raw)
    assert (hello.ticket_id, hello.stream, hello.version) == (ticket_id, stream, WIRE_VERSION)
    assert hello.is_from_holder_of(KEY)
    assert not hello.is_from_holder_of(OTHER)
    with pytest.raises(PeerError, match="have more"):
        read_hello(raw + b"x")


def test_every_changed_bit_of_a_hello_or_welcome_is_noticed():
    raw = make_hello("r.1", KEY, 0)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            hello = read_hello(bytes(changed))
        except PeerError:
            continue
        assert hello is None or not hello.is_from_holder_of(KEY)
    welcome = make_welcome(raw, KEY)
    check_welcome(raw, welcome, KEY)
    for bit in range(8 * len(welcome)):
        changed = bytearray(welcome)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerError, match="need the ticket's key"):
            check_welcome(raw, bytes(changed), KEY)


@given(st.binary(max_size=2 * MAX_HELLO_BYTES))
def test_bytes_that_are_no_hello_are_refused_or_waited_for(said):
    try:
        hello = read_hello(said)
    except PeerError:
        return
    assert hello is None
    assert len(said) < MAX_HELLO_BYTES


def test_a_welcome_to_another_hello_is_worth_nothing():
    mine, other = make_hello("r.1", KEY, 0), make_hello("r.1", KEY, 0)
    with pytest.raises(PeerError):
        check_welcome(mine, make_welcome(other, KEY), KEY)


def test_no_two_connections_or_directions_share_a_key():
    seen = set()
    hello = make_hello("r.1", KEY, 0)
    for said in (hello, hello, make_hello("r.1", KEY, 0), make_hello("r.1", KEY, 1)):
        keys = session_keys(said, make_welcome(said, KEY), KEY)
        seen |= {keys.to_sink, keys.to_source}
        assert keys.to_sink.hex() not in repr(keys)
    assert len(seen) == 8


def test_another_wire_version_is_named_to_whoever_holds_the_key():
    hello = read_hello(make_hello("r.1", KEY, 0))
    hello.check_version()
    newer = type(hello)(WIRE_VERSION + 1, hello.stream, hello.ticket_id, hello.raw)
    with pytest.raises(PeerError, match=f"need {WIRE_VERSION}, have {WIRE_VERSION + 1}; install"):
        newer.check_version()
