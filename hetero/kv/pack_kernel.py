"""From computed K or V on the GPU to rows as llama.cpp keeps them: rotated, quantized, stored.

Axes: L layers, T tokens, G KV heads, D head_dim, B blocks of a tile, V values of a block.

A row is cut into units, and those into blocks. A unit is what is rotated together, or else one
block. A block is what has a scale of its own, 32 values, or else at most as many.

One launch reads and writes each byte once (of units over 256 bytes, the L2 cache answers what is
read again). Memory is what bounds it: by its compiled code a value takes 16 to 21 instructions, of
`iq4_nl` 30, and an H100 issues 25 to 30 in the time that it moves a value's bytes.
"""

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from hetero.errors import CodecError
from hetero.kv.codecs import IQ4_NL_LEVELS
from hetero.kv.pack_codecs import bf16_bits, f16_bits, store_quantized, store_words
from hetero.kv.pack_rotation import rotated_blocks
from hetero.kv.types import kv_type

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_ROTATIONS = (0, 64, 128, 256, 512)
_MAX_BLOCK = 32

# What a program loads: 64 2-byte values for each of 128 threads, which have the registers for it.
_TILE_BYTES = 16384
# What is rotated in registers. A longer unit has its parts rotated by a program each, which all
# read the whole unit: it is in the L2 cache by then, and registers are scarcer.
_PART_BYTES = 256


def pack_rows_on_gpu(
    values_LTGD: torch.Tensor,
    rows_LTB: torch.Tensor,
    not_finite_L: torch.Tensor,
    *,
    type_name: str,
    rotation: int,
) -> None:
    """Rotate and quantize K (after RoPE) or V into cache rows, as `kv.rows.pack_rows` does.

    Shapes: (layers, tokens, kv_heads, head_dim) bfloat16, float16 or float32, each token's heads
    contiguous -> (layers, tokens, row_bytes) uint8, contiguous. In `not_finite_L`, int32, the entry
    of a layer with inf or nan becomes 1; so it does where rotating or scaling overflows float32.
    Error:  without rotation, none: the bytes are those of `kv.codecs`, but for the last bit of
    some iq4_nl scales. Rotated sums are added in another order: less than 1e-4 of the codes are
    one off, and less than 1e-3 of the scales one ulp (iq4_nl: and those that suit other codes).
    Raises: ConfigError for an unknown type, CodecError for tensors or a rotation that do not fit.
    """
    element = kv_type(type_name)
    num_layers, num_tokens, num_heads, head_dim = values_LTGD.shape
    width = num_heads * head_dim
    if rotation not in _ROTATIONS or (rotation and head_dim % rotation):
        raise CodecError(
            f"rotation: need one of {_ROTATIONS} that divides head_dim {head_dim}, have {rotation}"
        )
    if rotation and not element.is_quantized:
        raise CodecError(f"rotation: need 0 for {type_name}, have {rotation}")
    _check_results(values_LTGD, rows_LTB, not_finite_L, element.row_bytes(width))
    if values_LTGD.numel() == 0:
        return
    _check_values(values_LTGD)

    block = min(_MAX_BLOCK, width & -width)
    unit = rotation or block
    block_bytes = block * values_LTGD.itemsize
    part_blocks = min(unit // block, _PART_BYTES // block_bytes)
    num_parts = unit // block // part_blocks
    tile_units = _TILE_BYTES // block_bytes // part_blocks
    num_units = num_tokens * (width // unit)
    _pack[(triton.cdiv(num_units, tile_units) * num_parts, num_layers)](
        values_LTGD,
        rows_LTB,
        not_finite_L,
        _iq4_nl_table(values_LTGD.device) if type_name == "iq4_nl" else None,
        values_LTGD.stride(0),
        values_LTGD.stride(1),
        num_units,
        TYPE=type_name,
        BLOCK=block,
        BLOCK_BYTES=element.row_bytes(block),
        UNITS_PER_ROW=width // unit,
        NUM_PARTS=num_parts,
        PART_BLOCKS=part_blocks,
        TILE_UNITS=tile_units,
        OPERAND=_operand(values_LTGD) if rotation else None,
        IS_SHORT=num_units < tile_units,
        # Exact divisions take registers.
        num_warps=4 if rotation else 8,
        # A product that is not rounded before it is added to would give other codes than ggml's.
        enable_fp_fusion=False,
    )


def _check_values(values_LTGD: torch.Tensor) -> None:
    num_heads, head_dim = values_LTGD.shape[2:]
    if values_LTGD.dtype not in _FLOATS:
        raise CodecError(
            f"values: need bfloat16, float16 or float32, have {str(values_LTGD.dtype)[6:]}"
        )
    if values_LTGD.stride(3) != 1 or (num_heads > 1 and values_LTGD.stride(2) != head_dim):
        raise CodecError(
            f"values: need each token's heads contiguous, strides (any, any, {head_dim}, 1), "
            f"have {values_LTGD.stride()}: copy them first"
        )


def _check_results(
    values_LTGD: torch.Tensor, rows_LTB: torch.Tensor, not_finite_L: torch.Tensor, row_bytes: int
) -> None:
    num_layers, num_tokens = values_LTGD.shape[:2]
    for name, tensor, shape, dtype in (
        ("rows", rows_LTB, (num_layers, num_tokens, row_bytes), torch.uint8),
        ("not_finite", not_finite_L, (num_layers,), torch.int32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise CodecError(
                f"{name}: need contiguous {shape} {str(dtype)[6:]}, have {tuple(tensor.shape)} "
                f"{str(tensor.dtype)[6:]}, strides {tensor.stride()}"
            )
        if tensor.device != values_LTGD.device:
            raise CodecError(f"{name}: need {values_LTGD.device}, have {tensor.device}")
    if rows_LTB.data_ptr() % 2:
        raise CodecError("rows: need an even address, have an odd one")


def _operand(values: torch.Tensor) -> tl.dtype:
    """What to rotate in. Values meet nothing but signs, so products are exact in all of these."""
    if values.device.type == "cpu":
        return tl.float32  # Triton's interpreter would multiply bfloat16's bits as integers
    return tl.float16 if values.dtype == torch.float16 else tl.bfloat16


@cache
def _iq4_nl_table(device: torch.device) -> torch.Tensor:
    """512 levels, each with its code in the lowest four bits: see `pack_codecs`."""
    midpoints = (IQ4_NL_LEVELS[1:] + IQ4_NL_LEVELS[:-1]) / 2
    codes = np.searchsorted(midpoints, np.arange(-128, 128, 0.5), side="right").astype(np.int32)
    return torch.from_numpy(IQ4_NL_LEVELS[codes].view(np.int32) | codes).to(device)


@triton.jit(do_not_specialize=["num_units"])
def _pack(
    values,
    rows,
    not_finite,
    levels,
    layer_stride,
    token_stride,
    num_units,  # of a layer
    TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    UNITS_PER_ROW: tl.constexpr,
    NUM_PARTS: tl.constexpr,  # of a unit
    PART_BLOCKS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
    OPERAND: tl.constexpr,  # type to rotate in; None: no rotation
    IS_SHORT: tl.constexpr,  # a layer has less than `TILE_UNITS` units
):
    """A program takes one part of each of `TILE_UNITS` units of a layer."""
    UNIT_BLOCKS: tl.constexpr = NUM_PARTS * PART_BLOCKS
    layer = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0) % NUM_PARTS
    first = tl.program_id(0) // NUM_PARTS * TILE_UNITS
    if not IS_SHORT:
        # The last program starts early, and writes what another one writes too. With neither masks
        # nor minimums, the addresses of a thread differ by constants.
        first = tl.minimum(first, num_units - TILE_UNITS)
    block_B = tl.arange(0, TILE_UNITS * PART_BLOCKS)

    # Read block by block: those of a unit are then in the registers of the same threads.
    unit_B = first + _existing(block_B % TILE_UNITS, num_units, IS_SHORT)
    at_B = values + layer * layer_stride + (unit_B // UNITS_PER_ROW).to(tl.int64) * token_stride
    at_B += (unit_B % UNITS_PER_ROW * UNIT_BLOCKS + block_B // TILE_UNITS) * BLOCK
    at_BV = at_B[:, None] + tl.arange(0, BLOCK)[None, :]
    if OPERAND is None:
        y_BV = tl.load(at_BV).to(tl.float32)
    else:
        y_BV = rotated_blocks(at_BV, part, NUM_PARTS, PART_BLOCKS, OPERAND)

    # Written in the order of memory.
    unit_B = _existing(block_B // PART_BLOCKS, num_units, IS_SHORT)
    out = rows + ((layer * num_units + first) * UNIT_BLOCKS + part * PART_BLOCKS) * BLOCK_BYTES
    out_B = out + (unit_B * UNIT_BLOCKS + block_B % PART_BLOCKS) * BLOCK_BYTES
    out_B = out_B.to(tl.pointer_type(tl.uint16))
    if TYPE == "f16":
        store_words(out_B, f16_bits(y_BV))
    elif TYPE == "bf16":
        store_words(out_B, bf16_bits(y_BV))
    else:
        SCALE: tl.constexpr = 1.0 if OPERAND is None else (UNIT_BLOCKS * BLOCK) ** -0.5
        scale_B = store_quantized(out_B, y_BV, levels, TYPE, SCALE, OPERAND is None)

    if OPERAND is None:
        magnitude_BV = y_BV.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        is_finite_B = tl.max(magnitude_BV, 1) < 0x7F800000
    else:
        # One inf or nan has made all sums of its unit inf or nan.
        is_finite_B = tl.abs(scale_B) < float("inf")
    tl.store(not_finite + layer + tl.zeros_like(block_B), 1, mask=is_finite_B == 0)


@triton.jit
def _existing(unit_B, num_units, IS_SHORT: tl.constexpr):
    """Past a short layer's last unit that one is repeated."""
    if IS_SHORT:
        unit_B = tl.minimum(unit_B, num_units - 1)
    return unit_B
