"""Quantizing a tile of blocks on the GPU, and storing it as ggml lays blocks out.

Axes: B blocks of the tile, V the 32 values of a block, W 2-byte words of its codes.

The formulas are those of `hetero.kv.codecs` (ggml's scalar reference), with two savings. Values
come unscaled: `SCALE` is multiplied into what a block has one of, its scale and the inverse of it.
And unless `EXACT`, an inverse may be an ulp or two off: no more than the sums are that the values
come from, and a correctly rounded one takes twice the instructions.

Blocks are 18 to 34 bytes long, so what all types can be stored in is 2-byte words. Where the length
divides by four, the compiler joins two.
"""

import triton
import triton.language as tl


@triton.jit
def store_quantized(
    at_B, y_BV, levels, TYPE: tl.constexpr, SCALE: tl.constexpr, EXACT: tl.constexpr
):
    """Writes at (B,) uint16 pointers. Returns (B,) float32, about the scales.

    They are inf or nan where all of a block's values are. levels: `iq4_nl`'s table, else None.
    """
    if TYPE == "q8_0":
        scale_B = _store_q8_0(at_B, y_BV, SCALE, EXACT)
    elif TYPE == "q4_0":
        scale_B = _store_symmetric(at_B, y_BV, 4, SCALE, EXACT)
    elif TYPE == "q5_0":
        scale_B = _store_symmetric(at_B, y_BV, 5, SCALE, EXACT)
    elif TYPE == "q4_1":
        scale_B = _store_affine(at_B, y_BV, 4, SCALE, EXACT)
    elif TYPE == "q5_1":
        scale_B = _store_affine(at_B, y_BV, 5, SCALE, EXACT)
    else:
        scale_B = _store_iq4_nl(at_B, y_BV, levels, SCALE, EXACT)
    return scale_B


@triton.jit
def _store_q8_0(at_B, y_BV, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """f16 scale, 32 int8 codes: the multiples nearest to the values, halves away from zero."""
    scale_B = _divide(tl.max(tl.abs(y_BV), 1) * SCALE, 7)
    multiple_BV = y_BV * _inverse(scale_B, SCALE, EXACT)[:, None]
    signed_half_BV = multiple_BV.to(tl.uint32, bitcast=True) & 0x80000000 | 0x3F000000
    code_BV = (multiple_BV + signed_half_BV.to(tl.float32, bitcast=True)).to(tl.int32)
    even_BW, odd_BW = tl.split(tl.reshape(code_BV, (y_BV.shape[0], 16, 2)))
    tl.store(at_B, f16_bits(scale_B))
    store_words(at_B + 1, even_BW & 0xFF | odd_BW << 8)
    return scale_B


@triton.jit
def _store_symmetric(at_B, y_BV, BITS: tl.constexpr, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """f16 scale, [fifth bits], nibbles: the value of largest magnitude has code 0."""
    ZERO: tl.constexpr = 1 << BITS - 1
    scale_B = _signed_extreme(y_BV) * (-SCALE / ZERO)
    code_BV = (y_BV * _inverse(scale_B, SCALE, EXACT)[:, None] + (ZERO + 0.5)).to(tl.int32)
    four_BW = _four_codes(code_BV)
    # A value near minus the extreme gets a code that is one too large, and no value a larger one.
    four_BW -= four_BW >> BITS & 0x01010101
    tl.store(at_B, f16_bits(scale_B))
    _store_codes(at_B + 1, four_BW, BITS)
    return scale_B


@triton.jit
def _store_affine(at_B, y_BV, BITS: tl.constexpr, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """f16 scale, f16 minimum, [fifth bits], nibbles: the minimum has code 0."""
    low_B = tl.min(y_BV, 1)
    scale_B = _divide((tl.max(y_BV, 1) - low_B) * SCALE, BITS)
    inverse_B = _inverse(scale_B, SCALE, EXACT)
    code_BV = ((y_BV - low_B[:, None]) * inverse_B[:, None] + 0.5).to(tl.int32)
    tl.store(at_B, f16_bits(scale_B))
    tl.store(at_B + 1, f16_bits(low_B * SCALE))
    _store_codes(at_B + 2, _four_codes(code_BV), BITS)
    return scale_B


@triton.jit
def _store_iq4_nl(at_B, y_BV, levels, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """f16 scale, nibbles: the nearest of 16 uneven levels, of which the extreme has the first.

    The scale is then the one of least squared error for those codes, weighted by magnitude squared.
    levels: (512,) int32, for every half from -128 to 127.5 the bits of the float32 level nearest to
    what lies between it and the next half. Levels are small integers, so the lowest four bits are
    free to hold the code.
    """
    guess_B = -_divide(_signed_extreme(y_BV) * SCALE, 7)
    halves_BV = tl.floor(y_BV * _inverse(guess_B, 2 * SCALE, EXACT)[:, None]).to(tl.int32)
    NUM_VALUES: tl.constexpr = y_BV.shape[0] * y_BV.shape[1]
    index = tl.reshape(halves_BV + 256 & 511, (NUM_VALUES,))
    entries = tl.gather(tl.load(levels + tl.arange(0, 512)), index, 0)
    entry_BV = tl.reshape(entries, y_BV.shape)
    level_BV = (entry_BV & -16).to(tl.float32, bitcast=True)
    weighted_BV = y_BV * y_BV * level_BV
    power_B = tl.sum(weighted_BV * level_BV, 1)
    cross_B = tl.sum(weighted_BV * y_BV, 1)
    tl.store(at_B, f16_bits(cross_B * _inverse(power_B, SCALE, EXACT)))
    _store_codes(at_B + 1, _four_codes(entry_BV & 15), 4)
    return guess_B


@triton.jit
def _divide(x, BITS: tl.constexpr):
    """x / (2**BITS - 1), correctly rounded, in a third of the instructions of a division.

    A first quotient may be an ulp off. What it leaves of x is exact: each difference below is one
    of nearly equal numbers, and the factors are powers of two.
    """
    NUM_STEPS: tl.constexpr = (1 << BITS) - 1
    quotient = x * (1 / NUM_STEPS)
    left = (x * 0.5**BITS - quotient) + quotient * 0.5**BITS
    return quotient + left * (2**BITS / NUM_STEPS)


@triton.jit
def _inverse(x, SCALE: tl.constexpr, EXACT: tl.constexpr):
    """SCALE / x, or 0 if x is."""
    x = tl.where(x != 0, x, float("inf"))
    return tl.div_rn(SCALE, x) if EXACT else SCALE / x


@triton.jit
def f16_bits(x):
    return x.to(tl.float16).to(tl.uint16, bitcast=True)


@triton.jit
def _signed_extreme(y_BV):
    """Each block's value of largest magnitude, the first of equals."""
    high_B, low_B = tl.max(y_BV, 1), tl.min(y_BV, 1)
    extreme_B = tl.where(high_B >= -low_B, high_B, low_B)
    is_tied_B = (high_B == -low_B) & (high_B > 0)
    # Which of two opposite extremes is the first takes more work than all else does, and is seldom
    # asked: not once in most tiles.
    if tl.max(is_tied_B.to(tl.int32), 0) != 0:
        order_BV = 2 * tl.arange(0, y_BV.shape[1])[None, :] + (y_BV < 0).to(tl.int32)
        is_extreme_BV = tl.abs(y_BV) == tl.abs(extreme_B)[:, None]
        first_B = tl.min(tl.where(is_extreme_BV, order_BV, 64), 1)
        extreme_B = tl.where(first_B % 2 != 0, low_B, high_B)
    return extreme_B


@triton.jit
def bf16_bits(x):
    """The nearest, of two equally near the even one. The interpreter's own cast would cut off."""
    bits = x.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).to(tl.uint16)


@triton.jit
def _four_codes(code_BV):
    """Word w of a block: codes 2w, 2w + 1, 2w + 16 and 2w + 17, a byte each, lowest first.

    Shapes: (B, 32) int32 -> (B, 8) int32. They are the codes of the block's w-th word of nibbles.
    """
    code_BWHP = tl.permute(tl.reshape(code_BV, (code_BV.shape[0], 2, 8, 2)), (0, 2, 1, 3))
    even_BWH, odd_BWH = tl.split(code_BWHP)
    low_BW, high_BW = tl.split(even_BWH | odd_BWH << 8)
    return low_BW | high_BW << 16


@triton.jit
def _store_codes(at_B, four_BW, BITS: tl.constexpr):
    """Fifth bits, if any, then nibbles: value j in byte j's low one, value j + 16 above it."""
    if BITS == 5:
        fifth_BW = four_BW >> 4 & 0x01010101
        pairs_BW = (fifth_BW | fifth_BW >> 7) & 0x00030003
        fifths_B = tl.sum(pairs_BW << 2 * tl.arange(0, 8)[None, :], 1)
        tl.store(at_B, fifths_B.to(tl.uint16))
        tl.store(at_B + 1, (fifths_B >> 16).to(tl.uint16))
    nibbles_BW = four_BW & 0x0F0F0F0F
    store_words(at_B + (2 if BITS == 5 else 0), nibbles_BW | nibbles_BW >> 12)


@triton.jit
def store_words(at_B, word_BW):
    at_BW = at_B[:, None] + tl.arange(0, word_BW.shape[1])[None, :]
    tl.store(at_BW, word_BW.to(tl.uint16))
