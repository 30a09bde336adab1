"""The Hadamard rotation of a tile of rows on the GPU: `kv.rotation`, without its scale.

Axes: B blocks of the tile, V the 32 values of a block.

The matrix of size 32 n is the Kronecker product of those of sizes n and 32. A matrix product on
tensor cores mixes the 32 values of each block, exact but for its sums: the values are added as they
are or negated. What is left is adding and subtracting whole blocks, which are in registers by then.
"""

import triton
import triton.language as tl

# Bit n is 1 if n < 32 has an odd number of bits set.
_IS_ODD = tl.constexpr(0x96696996)


@triton.jit
def rotated_blocks(
    at_BV, part, NUM_PARTS: tl.constexpr, PART_BLOCKS: tl.constexpr, OPERAND: tl.constexpr
):
    """The blocks of one part of each rotated unit, unit by unit: (B, 32) float32, times sqrt(size).

    at_BV: addresses of the units' first parts, block by block: all units' first blocks, then all
    their second ones.
    """
    NUM_BLOCKS: tl.constexpr = at_BV.shape[0]
    place_V = tl.arange(0, 32)
    y_BV = tl.zeros((NUM_BLOCKS, 32), tl.float32)
    for other in tl.static_range(NUM_PARTS):
        x_BV = tl.load(at_BV + other * PART_BLOCKS * 32)
        signs_VV = _sign(place_V[:, None] & place_V[None, :] ^ part & other)
        y_BV = _add_product(x_BV, signs_VV.to(OPERAND), y_BV)

    # Each pass adds and subtracts blocks whose numbers differ in one bit: the highest of the index
    # (block, unit, value), which it makes the lowest. After the last one the index is (unit, value,
    # block).
    y = tl.reshape(y_BV, (NUM_BLOCKS * 32,))
    LOG2_BLOCKS: tl.constexpr = PART_BLOCKS.bit_length() - 1
    for _ in tl.static_range(LOG2_BLOCKS):
        a, b = tl.split(tl.permute(tl.reshape(y, (2, NUM_BLOCKS * 16)), (1, 0)))
        y = tl.reshape(tl.join(a + b, a - b), (NUM_BLOCKS * 32,))
    y = tl.permute(tl.reshape(y, (NUM_BLOCKS // PART_BLOCKS, 32, PART_BLOCKS)), (0, 2, 1))
    return tl.reshape(y, (NUM_BLOCKS, 32))


@triton.jit
def _add_product(x_BV, signs_VV, y_BV):
    if x_BV.dtype == tl.float32:
        # A float32 is the sum of three bfloat16, and tensor cores take those.
        for _ in tl.static_range(3):
            bits_BV = x_BV.to(tl.uint32, bitcast=True) & 0xFFFF0000
            high_BV = bits_BV.to(tl.float32, bitcast=True)
            y_BV = tl.dot(high_BV.to(signs_VV.dtype), signs_VV, y_BV)
            x_BV -= high_BV
    else:
        y_BV = tl.dot(x_BV.to(signs_VV.dtype), signs_VV, y_BV)
    return y_BV


@triton.jit
def _sign(n):
    """-1 where n < 32 has an odd number of bits set, else 1.

    Sylvester's matrix has the sign of i & j at (i, j).
    """
    is_odd = _IS_ODD >> n.to(tl.uint32) & 1
    return tl.where(is_odd != 0, -1.0, 1.0)
