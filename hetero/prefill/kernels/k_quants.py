"""Dequantize super-blocks of 256 values: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

Axes: T lanes, 8 consecutive values. Eight lanes share a block: `half` is which 128 of its values a
lane works on, `chunk` which 8 of each 32 among them. Its 32 values lie in four groups 32 apart, one
for each field of the code bytes it takes.

An f16 scale times a 6-bit one is exact in float32, and so is that times a code of up to 5 bits:
fused or not, the values are those of ggml and gguf-py. Q6_K rounds once, in the last product.
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
def dequantize_q2_k(blocks, out, num_blocks, LANES: tl.constexpr):
    """84 bytes: 16 of nibbles (scale, then minimum), 64 of codes, f16 scale, f16 minimum."""
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 84, 256, 8, LANES)
    half_T, chunk_T = lane_T // 4, lane_T % 4
    scale_T = load_f16(block_at_T + 80)
    minimum_T = load_f16(block_at_T + 82)
    words_T8 = load_words(block_at_T + 16 + 32 * half_T + 8 * chunk_T, ALIGNMENT=4)
    scales_at_T = block_at_T + 8 * half_T + chunk_T // 2
    packed = (
        tl.load(scales_at_T),
        tl.load(scales_at_T + 2),
        tl.load(scales_at_T + 4),
        tl.load(scales_at_T + 6),
    )
    for group in tl.static_range(4):
        step_T = scale_T * (packed[group] & 15).to(tl.float32)
        offset_T = minimum_T * (packed[group] >> 4).to(tl.float32)
        values_T8 = scaled_codes(words_T8, 2 * group, 3, 0, step_T) - offset_T[:, None]
        store_values(out_at_T + 128 * half_T + 32 * group + 8 * chunk_T, values_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q3_k(blocks, out, num_blocks, LANES: tl.constexpr):
    """110 bytes: 32 of third bits, 64 of low bits, 12 of packed scales, f16 scale; code 4 is zero.

    Scale i of 16, zero at 32: its low nibble is in byte i % 8, its high two bits in byte 8 + i % 4.
    """
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 110, 256, 8, LANES)
    half_T, chunk_T = lane_T // 4, lane_T % 4
    scale_T = load_f16(block_at_T + 108)
    thirds_T8 = load_words(block_at_T + 8 * chunk_T, ALIGNMENT=2)
    words_T8 = load_words(block_at_T + 32 + 32 * half_T + 8 * chunk_T, ALIGNMENT=2)
    scales_at_T = block_at_T + 96 + chunk_T // 2
    low = (
        tl.load(scales_at_T),
        tl.load(scales_at_T + 2),
        tl.load(scales_at_T + 4),
        tl.load(scales_at_T + 6),
    )
    high = (tl.load(scales_at_T + 8), tl.load(scales_at_T + 10))
    thirds_T8 = thirds_T8 >> (4 * half_T).to(tl.uint32)[:, None]
    for group in tl.static_range(4):
        nibble_T = low[group] >> (4 * half_T) & 15
        top_T = high[group % 2] >> (4 * half_T + group // 2 * 2) & 3
        step_T = scale_T * ((nibble_T | top_T << 4).to(tl.int32) - 32).to(tl.float32)
        low_T8 = words_T8 >> 2 * group & 0x03030303
        codes_T8 = low_T8 | (thirds_T8 >> group & 0x01010101) << 2
        values_T8 = scaled_codes(codes_T8, 0, 7, 4, step_T)
        store_values(out_at_T + 128 * half_T + 32 * group + 8 * chunk_T, values_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q4_k(blocks, out, num_blocks, LANES: tl.constexpr):
    """144 bytes: f16 scale, f16 minimum, 12 of packed scales, 128 of nibbles."""
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 144, 256, 8, LANES)
    half_T, chunk_T = lane_T // 4, lane_T % 4
    scale_T = load_f16(block_at_T)
    minimum_T = load_f16(block_at_T + 2)
    scales_T, minimums_T = _load_scales(block_at_T + 4, half_T)
    words_at_T = block_at_T + 16 + 64 * half_T + 8 * chunk_T
    words = (load_words(words_at_T, ALIGNMENT=8), load_words(words_at_T + 32, ALIGNMENT=8))
    for group in tl.static_range(4):
        step_T = scale_T * (scales_T >> 8 * group & 0xFF).to(tl.float32)
        offset_T = minimum_T * (minimums_T >> 8 * group & 0xFF).to(tl.float32)
        values_T8 = scaled_codes(words[group // 2], group % 2 * 4, 0x0F, 0, step_T)
        values_T8 -= offset_T[:, None]
        store_values(out_at_T + 128 * half_T + 32 * group + 8 * chunk_T, values_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q5_k(blocks, out, num_blocks, LANES: tl.constexpr):
    """176 bytes: f16 scale, f16 minimum, 12 of packed scales, 32 of fifth bits, 128 of nibbles."""
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 176, 256, 8, LANES)
    half_T, chunk_T = lane_T // 4, lane_T % 4
    scale_T = load_f16(block_at_T)
    minimum_T = load_f16(block_at_T + 2)
    scales_T, minimums_T = _load_scales(block_at_T + 4, half_T)
    fifths_T8 = load_words(block_at_T + 16 + 8 * chunk_T, ALIGNMENT=8)
    words_at_T = block_at_T + 48 + 64 * half_T + 8 * chunk_T
    words = (load_words(words_at_T, ALIGNMENT=8), load_words(words_at_T + 32, ALIGNMENT=8))
    fifths_T8 = fifths_T8 >> (4 * half_T).to(tl.uint32)[:, None]
    for group in tl.static_range(4):
        step_T = scale_T * (scales_T >> 8 * group & 0xFF).to(tl.float32)
        offset_T = minimum_T * (minimums_T >> 8 * group & 0xFF).to(tl.float32)
        nibbles_T8 = words[group // 2] >> group % 2 * 4 & 0x0F0F0F0F
        codes_T8 = nibbles_T8 | (fifths_T8 >> group & 0x01010101) << 4
        values_T8 = scaled_codes(codes_T8, 0, 0x1F, 0, step_T) - offset_T[:, None]
        store_values(out_at_T + 128 * half_T + 32 * group + 8 * chunk_T, values_T8)


@triton.jit
def _load_scales(at_T, half_T):
    """The four 6-bit scales and the four minimums of one half of a block: bytes of two uint32.

    Twelve bytes, as three words a, b, c. First half: the low six bits of a's and of b's bytes.
    Second: the nibbles of c's bytes, low for scales, under the high two bits of a's and of b's.
    """
    words_at_T = at_T.to(tl.pointer_type(tl.uint32))
    a_T = tl.load(words_at_T)
    b_T = tl.load(words_at_T + 1)
    c_T = tl.load(words_at_T + 2)
    first_T = half_T == 0
    scales_T = tl.where(first_T, a_T & 0x3F3F3F3F, c_T & 0x0F0F0F0F | a_T >> 2 & 0x30303030)
    minimums_T = tl.where(first_T, b_T & 0x3F3F3F3F, c_T >> 4 & 0x0F0F0F0F | b_T >> 2 & 0x30303030)
    return scales_T, minimums_T


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_q6_k(blocks, out, num_blocks, LANES: tl.constexpr):
    """210 bytes: 128 of nibbles, 64 of high bits, 16 int8 scales, f16 scale; code 32 is zero."""
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 210, 256, 8, LANES)
    half_T, chunk_T = lane_T // 4, lane_T % 4
    scale_T = load_f16(block_at_T + 208)
    words_at_T = block_at_T + 64 * half_T + 8 * chunk_T
    words = (load_words(words_at_T, ALIGNMENT=2), load_words(words_at_T + 32, ALIGNMENT=2))
    high_T8 = load_words(block_at_T + 128 + 32 * half_T + 8 * chunk_T, ALIGNMENT=2)
    scales_at_T = (block_at_T + 192 + 8 * half_T + chunk_T // 2).to(tl.pointer_type(tl.int8))
    scales = (
        tl.load(scales_at_T),
        tl.load(scales_at_T + 2),
        tl.load(scales_at_T + 4),
        tl.load(scales_at_T + 6),
    )
    for group in tl.static_range(4):
        step_T = scale_T * scales[group].to(tl.float32)
        nibbles_T8 = words[group % 2] >> group // 2 * 4 & 0x0F0F0F0F
        codes_T8 = nibbles_T8 | (high_T8 >> 2 * group & 0x03030303) << 4
        values_T8 = scaled_codes(codes_T8, 0, 0x3F, 32, step_T)
        store_values(out_at_T + 128 * half_T + 32 * group + 8 * chunk_T, values_T8)
