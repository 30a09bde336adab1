"""Dequantize blocks of 32 values with one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

Axes: T lanes, 8 consecutive values. A lane takes 8 code bytes of a block. In a byte of nibbles, the
low ones belong to the block's first 16 values, the high ones to the last 16.

A code times an f16 scale is exact in float32, so only a minimum's addition rounds: fused or not,
the values are those of ggml and gguf-py.
Block layouts: ggml-common.h in llama.cpp.
"""

import triton
import triton.language as tl

from hetero.prefill.kernels.block_lanes import (
    load_f16,
    load_words,
    locate_lanes,
    scaled_codes,
    store_values,
)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q8_0(blocks, out, num_blocks, LANES: tl.constexpr):
    """34 bytes: f16 scale, 32 int8 codes."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 34, 32, 4, LANES)
    scale_T = load_f16(block_at_T)
    words_T8 = load_words(block_at_T + 2 + 8 * chunk_T, ALIGNMENT=2)
    shift_8 = tl.arange(0, 8) % 4 * 8
    codes_T8 = (words_T8 >> shift_8.to(tl.uint32)[None, :]).to(tl.int8)
    store_values(out_at_T + 8 * chunk_T, scale_T[:, None] * codes_T8.to(tl.float32))


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q4_0(blocks, out, num_blocks, LANES: tl.constexpr):
    """18 bytes: f16 scale, 16 bytes of nibbles; code 8 is zero."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 18, 32, 2, LANES)
    scale_T = load_f16(block_at_T)
    words_T8 = load_words(block_at_T + 2 + 8 * chunk_T, ALIGNMENT=2)
    for half in tl.static_range(2):
        values_T8 = scaled_codes(words_T8, 4 * half, 0x0F, 8, scale_T)
        store_values(out_at_T + 16 * half + 8 * chunk_T, values_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q4_1(blocks, out, num_blocks, LANES: tl.constexpr):
    """20 bytes: f16 scale, f16 minimum, 16 bytes of nibbles."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 20, 32, 2, LANES)
    scale_T = load_f16(block_at_T)
    minimum_T = load_f16(block_at_T + 2)
    words_T8 = load_words(block_at_T + 4 + 8 * chunk_T, ALIGNMENT=4)
    for half in tl.static_range(2):
        values_T8 = scaled_codes(words_T8, 4 * half, 0x0F, 0, scale_T)
        store_values(out_at_T + 16 * half + 8 * chunk_T, values_T8 + minimum_T[:, None])


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q5_0(blocks, out, num_blocks, LANES: tl.constexpr):
    """22 bytes: f16 scale, the 32 fifth bits, 16 bytes of nibbles; code 16 is zero."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 22, 32, 2, LANES)
    scale_T = load_f16(block_at_T)
    fifths_T = _load_fifth_bits(block_at_T + 2, chunk_T)
    words_T8 = load_words(block_at_T + 6 + 8 * chunk_T, ALIGNMENT=2)
    for half in tl.static_range(2):
        codes_T8 = words_T8 >> 4 * half & 0x0F0F0F0F | _fifth_bits(fifths_T, 16 * half)
        values_T8 = scaled_codes(codes_T8, 0, 0x1F, 16, scale_T)
        store_values(out_at_T + 16 * half + 8 * chunk_T, values_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q5_1(blocks, out, num_blocks, LANES: tl.constexpr):
    """24 bytes: f16 scale, f16 minimum, the 32 fifth bits, 16 bytes of nibbles."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 24, 32, 2, LANES)
    scale_T = load_f16(block_at_T)
    minimum_T = load_f16(block_at_T + 2)
    fifths_T = _load_fifth_bits(block_at_T + 4, chunk_T)
    words_T8 = load_words(block_at_T + 8 + 8 * chunk_T, ALIGNMENT=8)
    for half in tl.static_range(2):
        codes_T8 = words_T8 >> 4 * half & 0x0F0F0F0F | _fifth_bits(fifths_T, 16 * half)
        values_T8 = scaled_codes(codes_T8, 0, 0x1F, 0, scale_T)
        store_values(out_at_T + 16 * half + 8 * chunk_T, values_T8 + minimum_T[:, None])


@triton.jit
def _load_fifth_bits(at_T, chunk_T):
    """Bits 0 to 7 of each lane's first eight values, bits 16 to 23 of its last eight: uint32."""
    halves_at_T = at_T.to(tl.pointer_type(tl.uint16))
    bits_T = tl.load(halves_at_T).to(tl.uint32) | tl.load(halves_at_T + 1).to(tl.uint32) << 16
    return bits_T >> (8 * chunk_T).to(tl.uint32)


@triton.jit
def _fifth_bits(bits_T, BIT: tl.constexpr):
    """Eight bits from `BIT` on, each as bit 4 of a byte: (T,) uint32 -> (T, 8) words.

    The product has bit i of four at place i + 7j + 4, for j of 0 to 3: no two meet, and byte i's
    bit 4 is the one with j = i.
    """
    shift_8 = tl.arange(0, 8) // 4 * 4 + BIT
    fours_T8 = bits_T[:, None] >> shift_8.to(tl.uint32)[None, :] & 0x0F
    return fours_T8 * 0x02040810 & 0x10101010
