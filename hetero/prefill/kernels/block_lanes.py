"""How a program's lanes share quantized blocks, and the loads and stores they are made of.

Axes: T lanes of a program, 8 consecutive values (or code bytes) of a lane.

Block sizes such as 18 or 210 bytes fit no vector load, so a lane takes eight code bytes with the
widest loads that the block's alignment allows, and writes each run of eight values they hold as
one 16-byte store (bf16, f16). Neighbouring lanes take neighbouring bytes: what one load leaves of
a sector, the next finds in L1. For 2-byte values lane t is thread t in loads and stores alike, so
that nothing goes through shared memory; float32 values are exchanged there.
"""

import triton
import triton.language as tl


@triton.jit
def locate_lanes(
    blocks,
    out,
    num_blocks,
    BLOCK_BYTES: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    LANES_PER_BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """For each lane: where its block starts, where the block's values go, its place in the block.

    Lanes past the last block repeat that one. They store the values that are there already, which
    costs less than a mask on every load and store.
    """
    lane_T = tl.arange(0, LANES)
    first = tl.program_id(0).to(tl.int64) * (LANES // LANES_PER_BLOCK)
    last = tl.minimum(num_blocks - 1 - first, LANES).to(tl.int32)
    block_T = tl.minimum(lane_T // LANES_PER_BLOCK, last)
    block_at_T = blocks + first * BLOCK_BYTES + block_T * BLOCK_BYTES
    out_at_T = out + first * BLOCK_VALUES + block_T * BLOCK_VALUES
    return block_at_T, out_at_T, lane_T % LANES_PER_BLOCK


@triton.jit
def load_f16(at_T):
    return tl.load(at_T.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def load_words(at_T, ALIGNMENT: tl.constexpr):
    """Eight bytes from each of (T,) uint8 pointers, as (T, 8) uint32.

    Byte i of a lane is byte i % 4 of its word i: words 0 to 3 are the same, and so are 4 to 7.
    Whatever is done to whole words is therefore done twice per lane, not eight times.
    """
    if ALIGNMENT == 8:
        pair_T = tl.load(at_T.to(tl.pointer_type(tl.uint64)))
        low_T = pair_T.to(tl.uint32)
        high_T = (pair_T >> 32).to(tl.uint32)
    elif ALIGNMENT == 4:
        words_at_T = at_T.to(tl.pointer_type(tl.uint32))
        low_T = tl.load(words_at_T)
        high_T = tl.load(words_at_T + 1)
    else:
        halves_at_T = at_T.to(tl.pointer_type(tl.uint16))
        low_T = tl.load(halves_at_T).to(tl.uint32) | tl.load(halves_at_T + 1).to(tl.uint32) << 16
        high_T = (
            tl.load(halves_at_T + 2).to(tl.uint32) | tl.load(halves_at_T + 3).to(tl.uint32) << 16
        )
    return tl.where(tl.arange(0, 8)[None, :] < 4, low_T[:, None], high_T[:, None])


@triton.jit
def scaled_codes(words_T8, BIT: tl.constexpr, MASK: tl.constexpr, ZERO: tl.constexpr, step_T):
    """(code - ZERO) * step, for the field at bit `BIT` of each byte: (T, 8) float32.

    A field is converted where it stands in its word, to code * 2**place, and the step is divided
    by 2**place instead. Powers of two cost no rounding, and a shift per value is saved: shifts,
    masks and conversions share a half-rate pipe, the first thing these kernels would wait for.
    """
    place_8 = tl.arange(0, 8) % 4 * 8 + BIT
    mask_8 = tl.full((8,), MASK, tl.uint32) << place_8.to(tl.uint32)
    raised_T8 = (words_T8 & mask_8[None, :]).to(tl.float32)
    if ZERO:
        raised_T8 -= ZERO * _power_of_two(place_8)[None, :]
    return raised_T8 * (step_T[:, None] * _power_of_two(-place_8)[None, :])


@triton.jit
def _power_of_two(exponent):
    return (exponent + 127 << 23).to(tl.float32, bitcast=True)


@triton.jit
def store_values(at_T, values_T8):
    """Rounds to the nearest of out's type."""
    at_T8 = at_T[:, None] + tl.arange(0, 8)[None, :]
    tl.store(at_T8, values_T8.to(at_T.dtype.element_ty))
