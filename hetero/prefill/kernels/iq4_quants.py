"""Dequantize the 4-bit types whose codes are places in a table of levels: IQ4_NL, IQ4_XS.

Axes: T lanes, 8 consecutive values. A lane takes 8 code bytes at a time; in a run of 32 values, the
low nibbles of 16 bytes are the first 16, the high ones the last 16.

The table's 16 floats are 64 bytes, so that a warp's look-ups all fall into one line of L1. Scale
times level is exact in float32: the values are those of ggml and gguf-py.
Block layouts: ggml-common.h in llama.cpp.
"""

import triton
import triton.language as tl

from hetero.prefill.kernels.block_lanes import (
    load_f16,
    load_words,
    locate_lanes,
    store_values,
)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_iq4_nl(blocks, out, num_blocks, levels, LANES: tl.constexpr):
    """18 bytes: f16 scale, 16 bytes of nibbles."""
    block_at_T, out_at_T, chunk_T = locate_lanes(blocks, out, num_blocks, 18, 32, 2, LANES)
    scale_T = load_f16(block_at_T)
    words_T8 = load_words(block_at_T + 2 + 8 * chunk_T, ALIGNMENT=2)
    for half in tl.static_range(2):
        levels_T8 = _look_up(levels, words_T8, 4 * half)
        store_values(out_at_T + 16 * half + 8 * chunk_T, scale_T[:, None] * levels_T8)


@triton.jit(do_not_specialize=["num_blocks"])
def dequantize_iq4_xs(blocks, out, num_blocks, levels, LANES: tl.constexpr):
    """136 bytes: f16 scale, then for each of 8 runs the high two bits of its scale (2 bytes), the
    low four (4 bytes), and 16 bytes of nibbles. Scales are zero at 32. A lane works on two runs.
    """
    block_at_T, out_at_T, lane_T = locate_lanes(blocks, out, num_blocks, 136, 256, 8, LANES)
    pair_T, chunk_T = lane_T // 2, lane_T % 2
    scale_T = load_f16(block_at_T)
    high_T = tl.load((block_at_T + 2).to(tl.pointer_type(tl.uint16))).to(tl.int32) >> 4 * pair_T
    low_T = tl.load(block_at_T + 4 + pair_T).to(tl.int32)
    words_at_T = block_at_T + 8 + 32 * pair_T + 8 * chunk_T
    words = (load_words(words_at_T, ALIGNMENT=8), load_words(words_at_T + 16, ALIGNMENT=8))
    for run in tl.static_range(2):
        run_scale_T = (low_T >> 4 * run & 15) + (high_T >> 2 * run & 3) * 16 - 32
        step_T = scale_T * run_scale_T.to(tl.float32)
        for half in tl.static_range(2):
            levels_T8 = _look_up(levels, words[run], 4 * half)
            values_T8 = step_T[:, None] * levels_T8
            store_values(out_at_T + 64 * pair_T + 32 * run + 16 * half + 8 * chunk_T, values_T8)


@triton.jit
def _look_up(levels, words_T8, BIT: tl.constexpr):
    """The levels of the nibbles at bit `BIT` of each byte: (T, 8) float32."""
    shift_8 = tl.arange(0, 8) % 4 * 8 + BIT
    return tl.load(levels + (words_T8 >> shift_8.to(tl.uint32)[None, :] & 0x0F))
