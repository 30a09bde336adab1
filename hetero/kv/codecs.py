"""The KV cache's block codecs in readable numpy: the reference the fast quantizers are held to.

Each encoder follows ggml's scalar reference (ggml-quants.c): scales are stored as f16, but values
are divided by the unrounded f32 scale. ggml's SIMD kernels round ties the other way, so codes may
differ by one on ties.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hetero.errors import CodecError
from hetero.kv.types import KV_TYPES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 32

# The 16 levels of iq4_nl (kvalues_iq4nl in ggml-common.h).
IQ4_NL_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def encode(values: Floats, type_name: str) -> Bytes:
    """Encode rows. Shapes: (rows, width) float32 -> (rows, row_bytes) uint8."""
    if not np.isfinite(values).all():
        raise CodecError(f"{type_name}: need finite values, have inf or nan")
    return _ENCODERS[_known(type_name)](values).reshape(len(values), -1)


def decode(rows: Bytes, type_name: str) -> Floats:
    """Decode rows. Shapes: (rows, row_bytes) uint8 -> (rows, width) float32."""
    return _DECODERS[_known(type_name)](rows).reshape(len(rows), -1)


def _known(type_name: str) -> str:
    if type_name not in KV_TYPES:
        raise CodecError(f"codec {type_name!r}: need one of {', '.join(KV_TYPES)}")
    return type_name


def _blocks(values: Floats) -> Floats:
    return np.ascontiguousarray(values, np.float32).reshape(-1, _BLOCK)


def _inverse(scale: Floats) -> Floats:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _f16(values: Floats) -> Bytes:
    return values.astype("<f2").view(np.uint8).reshape(len(values), -1)


def _read_f16(columns: Bytes) -> Floats:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def _round_half_away(values: Floats) -> Floats:
    return np.trunc(values + np.copysign(np.float32(0.5), values))


def _pack_nibbles(codes: npt.NDArray[np.uint8]) -> Bytes:
    """Element j in the low nibble of byte j, element j + 16 in the high one."""
    return (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)


def _unpack_nibbles(packed: Bytes) -> npt.NDArray[np.uint8]:
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _pack_fifth_bits(codes: npt.NDArray[np.uint8]) -> Bytes:
    return np.packbits(codes >> 4 & 1, axis=1, bitorder="little")


def _unpack_fifth_bits(packed: Bytes) -> npt.NDArray[np.uint8]:
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    return (bits << 4).astype(np.uint8)


def _signed_extreme(blocks: Floats) -> Floats:
    """Each block's element of largest magnitude, the first of equals, with its sign."""
    at = np.abs(blocks).argmax(axis=1)
    extremes: Floats = blocks[np.arange(len(blocks)), at]
    return extremes[:, None]


def _encode_f16(values: Floats) -> Bytes:
    return _f16(values)


def _decode_f16(rows: Bytes) -> Floats:
    return _read_f16(rows)


def _encode_bf16(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest_even = bits + (0x7FFF + (bits >> 16 & 1))
    return (nearest_even >> 16).astype("<u2").view(np.uint8)


def _decode_bf16(rows: Bytes) -> Floats:
    return (np.ascontiguousarray(rows).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _encode_q8_0(values: Floats) -> Bytes:
    blocks = _blocks(values)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    codes = _round_half_away(blocks * _inverse(scale)).astype(np.int8)
    return np.concatenate([_f16(scale), codes.view(np.uint8)], axis=1)


def _decode_q8_0(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 34)
    return _read_f16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _encode_q4_0(values: Floats) -> Bytes:
    blocks = _blocks(values)
    scale = _signed_extreme(blocks) / np.float32(-8)
    codes = np.minimum(15, blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8)
    return np.concatenate([_f16(scale), _pack_nibbles(codes)], axis=1)


def _decode_q4_0(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 18)
    return _read_f16(blocks[:, :2]) * (_unpack_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _encode_q4_1(values: Floats) -> Bytes:
    blocks = _blocks(values)
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    codes = np.minimum(15, (blocks - low) * _inverse(scale) + np.float32(0.5)).astype(np.uint8)
    return np.concatenate([_f16(scale), _f16(low), _pack_nibbles(codes)], axis=1)


def _decode_q4_1(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 20)
    codes = _unpack_nibbles(blocks[:, 4:]).astype(np.float32)
    return _read_f16(blocks[:, :2]) * codes + _read_f16(blocks[:, 2:4])


def _encode_q5_0(values: Floats) -> Bytes:
    blocks = _blocks(values)
    scale = _signed_extreme(blocks) / np.float32(-16)
    codes = np.minimum(31, blocks * _inverse(scale) + np.float32(16.5)).astype(np.uint8)
    return np.concatenate([_f16(scale), _pack_fifth_bits(codes), _pack_nibbles(codes & 15)], axis=1)


def _decode_q5_0(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 22)
    codes = _unpack_nibbles(blocks[:, 6:]) | _unpack_fifth_bits(blocks[:, 2:6])
    return _read_f16(blocks[:, :2]) * (codes.astype(np.float32) - 16)


def _encode_q5_1(values: Floats) -> Bytes:
    blocks = _blocks(values)
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(31)
    codes = ((blocks - low) * _inverse(scale) + np.float32(0.5)).astype(np.uint8)
    return np.concatenate(
        [_f16(scale), _f16(low), _pack_fifth_bits(codes), _pack_nibbles(codes & 15)], axis=1
    )


def _decode_q5_1(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 24)
    codes = _unpack_nibbles(blocks[:, 8:]) | _unpack_fifth_bits(blocks[:, 4:8])
    return _read_f16(blocks[:, :2]) * codes.astype(np.float32) + _read_f16(blocks[:, 2:4])


def _encode_iq4_nl(values: Floats) -> Bytes:
    """Nearest levels at the scale that maps the extreme to level 0, then the scale that minimizes
    the squared error of those codes, weighted by magnitude squared."""
    blocks = _blocks(values)
    codes = _nearest_level(blocks * _inverse(_signed_extreme(blocks) / IQ4_NL_LEVELS[0]))
    levels = IQ4_NL_LEVELS[codes]
    weights = blocks * blocks
    cross = (weights * levels * blocks).sum(axis=1, keepdims=True)
    power = (weights * levels * levels).sum(axis=1, keepdims=True)
    return np.concatenate([_f16(cross * _inverse(power)), _pack_nibbles(codes)], axis=1)


def _nearest_level(values: Floats) -> npt.NDArray[np.uint8]:
    midpoints = (IQ4_NL_LEVELS[1:] + IQ4_NL_LEVELS[:-1]) / 2
    return np.searchsorted(midpoints, values, side="right").astype(np.uint8)


def _decode_iq4_nl(rows: Bytes) -> Floats:
    blocks = rows.reshape(-1, 18)
    return _read_f16(blocks[:, :2]) * IQ4_NL_LEVELS[_unpack_nibbles(blocks[:, 2:])]


_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {
    "f16": _encode_f16,
    "bf16": _encode_bf16,
    "q8_0": _encode_q8_0,
    "q5_1": _encode_q5_1,
    "q5_0": _encode_q5_0,
    "q4_1": _encode_q4_1,
    "q4_0": _encode_q4_0,
    "iq4_nl": _encode_iq4_nl,
}
_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    "f16": _decode_f16,
    "bf16": _decode_bf16,
    "q8_0": _decode_q8_0,
    "q5_1": _decode_q5_1,
    "q5_0": _decode_q5_0,
    "q4_1": _decode_q4_1,
    "q4_0": _decode_q4_0,
    "iq4_nl": _decode_iq4_nl,
}
