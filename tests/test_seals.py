"""Seals: what they keep out, and that the strong ones are the algorithms they claim to be."""

import hashlib

import blake3
import numpy as np
import pytest
import xxhash
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from hetero.errors import PeerError
from hetero.tickets import STRENGTH
from hetero.transport.seals import TAG_BYTES, make_seal

KEY = hashlib.sha256(b"a key").digest()
PIECES = [b"first", b"", b"second" * 1000, b"third"]


def sealed(seal, piece):
    return bytearray(b"".join(seal.seal(memoryview(piece))))


@pytest.mark.parametrize("name", STRENGTH)
@given(pieces=st.lists(st.binary(max_size=300), max_size=8))
def test_what_was_sealed_opens_in_its_turn(name, pieces):
    ours, theirs = make_seal(name, KEY), make_seal(name, KEY)
    for piece in pieces:
        received = sealed(ours, piece)
        assert len(received) == len(piece) + TAG_BYTES
        assert bytes(theirs.open(memoryview(received))) == piece


@pytest.mark.parametrize("name", STRENGTH)
def test_each_changed_bit_is_noticed(name):
    received = sealed(make_seal(name, KEY), b"rows of a cache")
    for bit in range(8 * len(received)):
        changed = bytearray(received)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerError, match="need them as they were sent"):
            make_seal(name, KEY).open(memoryview(changed))


@pytest.mark.parametrize("name", STRENGTH)
def test_a_piece_out_of_turn_or_twice_is_noticed(name):
    ours = make_seal(name, KEY)
    first, second = sealed(ours, b"same"), sealed(ours, b"same")
    with pytest.raises(PeerError):
        make_seal(name, KEY).open(memoryview(bytearray(second)))
    theirs = make_seal(name, KEY)
    theirs.open(memoryview(bytearray(first)))
    with pytest.raises(PeerError):
        theirs.open(memoryview(bytearray(first)))


@pytest.mark.parametrize("name", ["mac", "aead"])
def test_another_key_opens_nothing(name):
    received = sealed(make_seal(name, KEY), b"rows")
    with pytest.raises(PeerError):
        make_seal(name, bytes(32)).open(memoryview(received))


def test_aead_is_aes_gcm_under_a_counter():
    seal = make_seal("aead", KEY)
    for number, piece in enumerate(PIECES, start=1):
        nonce = number.to_bytes(12, "little")
        assert bytes(sealed(seal, piece)) == AESGCM(KEY).encrypt(nonce, piece, None)


def test_mac_is_keyed_blake3_over_counter_and_piece():
    seal = make_seal("mac", KEY)
    for number, piece in enumerate(PIECES, start=1):
        tag = blake3.blake3(number.to_bytes(12, "little") + piece, key=KEY).digest(TAG_BYTES)
        assert bytes(sealed(seal, piece)) == piece + tag


def test_none_is_a_checksum_with_a_seed_of_the_connections_own():
    tag = xxhash.xxh3_128_digest(b"rows", seed=int.from_bytes(KEY[:8], "little") + 1)
    assert bytes(sealed(make_seal("none", KEY), b"rows")) == b"rows" + tag


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4095, 2**20 + 3])
def test_decrypting_in_place_gives_every_byte(size):
    """The library is not asked to promise it, so every size class is looked at."""
    rows = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    received = sealed(make_seal("aead", KEY), rows.tobytes())
    opened = make_seal("aead", KEY).open(memoryview(received))
    np.testing.assert_array_equal(np.frombuffer(opened, np.uint8), rows)
