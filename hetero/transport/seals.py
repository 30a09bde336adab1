"""What protects the bytes of a connection: encrypted, authenticated, or only checked for damage.

    aead   AES-256-GCM: nobody on the wire reads or changes anything; the default
    mac    keyed BLAKE3: nobody changes anything, everybody can read it
    none   xxh3-128 with a seed of the connection's own: damage is noticed, malice is not

Each piece is sealed under a counter that both ends keep and neither sends, so that a piece that is
lost, repeated, replayed or out of turn is as wrong as a damaged one. A key serves one direction of
one connection, so no counter is ever used twice with it.
"""

import hmac
from typing import Protocol

import blake3
import numpy as np
import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hetero.errors import PeerError
from hetero.messages import SealName

TAG_BYTES = 16
KEY_BYTES = 32

_DAMAGED = "{} bytes: need them as they were sent, have them changed, out of turn or twice"


class Seal(Protocol):
    """One direction of a connection, at one end: only seals, or only opens."""

    def seal(self, piece: memoryview) -> tuple[memoryview | bytes, ...]:
        """What to send for a piece, in order: its length and TAG_BYTES in all. It is the caller's
        until the next call. `piece` itself may be among it."""

    def seal_into(self, piece: memoryview, room: memoryview) -> memoryview:
        """The part of `room` that the sealed piece takes."""

    def open(self, sealed: memoryview) -> memoryview:
        """The piece, in the memory of what came.

        Raises: PeerError if it isn't what the other end sealed as its piece of this number.
        """


def make_seal(name: SealName, key: bytes) -> Seal:
    match name:
        case "aead":
            return _Aead(key)
        case "mac":
            return _Mac(key)
        case "none":
            return _Checksum(key)


class _Aead:
    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._counter = 0
        self._sealed = bytearray()

    def seal(self, piece: memoryview) -> tuple[memoryview | bytes, ...]:
        size = piece.nbytes + TAG_BYTES
        if len(self._sealed) < size:
            self._sealed = bytearray(size)
        return (self.seal_into(piece, memoryview(self._sealed)),)

    def seal_into(self, piece: memoryview, room: memoryview) -> memoryview:
        sealed = room[: piece.nbytes + TAG_BYTES]
        self._cipher.encrypt_into(self._nonce(), piece, None, sealed)
        return sealed

    def open(self, sealed: memoryview) -> memoryview:
        piece = sealed[:-TAG_BYTES]
        try:
            # In place, which GCM allows and saves a copy. The caller sees nothing of it unless the
            # tag is right.
            self._cipher.decrypt_into(self._nonce(), sealed, None, piece)
        except InvalidTag:
            raise PeerError(_DAMAGED.format(piece.nbytes)) from None
        return piece

    def _nonce(self) -> bytes:
        self._counter += 1
        return self._counter.to_bytes(12, "little")


class _Mac:
    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def seal(self, piece: memoryview) -> tuple[memoryview | bytes, ...]:
        return piece, self._tag(piece)

    def seal_into(self, piece: memoryview, room: memoryview) -> memoryview:
        return _copied(piece, self._tag(piece), room)

    def open(self, sealed: memoryview) -> memoryview:
        piece = sealed[:-TAG_BYTES]
        if not hmac.compare_digest(self._tag(piece), sealed[-TAG_BYTES:]):
            raise PeerError(_DAMAGED.format(piece.nbytes))
        return piece

    def _tag(self, piece: memoryview) -> bytes:
        self._counter += 1
        hasher = blake3.blake3(self._counter.to_bytes(12, "little"), key=self._key)
        return hasher.update(piece).digest(TAG_BYTES)


class _Checksum:
    def __init__(self, key: bytes) -> None:
        # Else what was recorded on another connection would pass for this one's piece.
        self._seed = int.from_bytes(key[:8], "little")

    def seal(self, piece: memoryview) -> tuple[memoryview | bytes, ...]:
        return piece, self._tag(piece)

    def seal_into(self, piece: memoryview, room: memoryview) -> memoryview:
        return _copied(piece, self._tag(piece), room)

    def open(self, sealed: memoryview) -> memoryview:
        piece = sealed[:-TAG_BYTES]
        if self._tag(piece) != sealed[-TAG_BYTES:]:
            raise PeerError(_DAMAGED.format(piece.nbytes))
        return piece

    def _tag(self, piece: memoryview) -> bytes:
        self._seed = (self._seed + 1) % 2**64
        return xxhash.xxh3_128_digest(piece, seed=self._seed)


def _copied(piece: memoryview, tag: bytes, room: memoryview) -> memoryview:
    sealed = room[: piece.nbytes + TAG_BYTES]
    copy_bytes(piece, sealed[:-TAG_BYTES])
    sealed[-TAG_BYTES:] = tag
    return sealed


def copy_bytes(of: memoryview, to: memoryview) -> None:
    """Lets other threads run meanwhile, which assigning slices does not."""
    np.copyto(np.frombuffer(to, np.uint8), np.frombuffer(of, np.uint8))
