"""Weights as a GGUF file stores them, to the floats that a matrix multiplication takes, on the GPU.

Axes: R rows, B bytes of a row, C values of a row.

The blocks stay in memory as they came from the file; a layer is dequantized when it is needed, into
a buffer the caller owns. One launch, no temporary memory. Reads and writes each byte once; the
kernels (`legacy_quants`, `k_quants`, `iq4_quants`) say how.
"""

import math
from functools import cache
from typing import Any

import gguf
import torch
import triton

from hetero.errors import CodecError, ModelError
from hetero.kv.codecs import IQ4_NL_LEVELS
from hetero.prefill.kernels.iq4_quants import dequantize_iq4_nl, dequantize_iq4_xs
from hetero.prefill.kernels.k_quants import (
    dequantize_q2_k,
    dequantize_q3_k,
    dequantize_q4_k,
    dequantize_q5_k,
    dequantize_q6_k,
)
from hetero.prefill.kernels.legacy_quants import (
    dequantize_q4_0,
    dequantize_q4_1,
    dequantize_q5_0,
    dequantize_q5_1,
    dequantize_q8_0,
)

_Type = gguf.GGMLQuantizationType

_FLOATS = {_Type.F32: torch.float32, _Type.F16: torch.float16, _Type.BF16: torch.bfloat16}
# Each type's kernel, and how many values one of its lanes writes.
_KERNELS: dict[gguf.GGMLQuantizationType, tuple[Any, int]] = {
    _Type.Q8_0: (dequantize_q8_0, 8),
    _Type.Q4_0: (dequantize_q4_0, 16),
    _Type.Q4_1: (dequantize_q4_1, 16),
    _Type.Q5_0: (dequantize_q5_0, 16),
    _Type.Q5_1: (dequantize_q5_1, 16),
    _Type.Q2_K: (dequantize_q2_k, 32),
    _Type.Q3_K: (dequantize_q3_k, 32),
    _Type.Q4_K: (dequantize_q4_k, 32),
    _Type.Q5_K: (dequantize_q5_k, 32),
    _Type.Q6_K: (dequantize_q6_k, 32),
    _Type.IQ4_NL: (dequantize_iq4_nl, 16),
    _Type.IQ4_XS: (dequantize_iq4_xs, 32),
}
DEQUANTIZABLE = frozenset(_FLOATS) | frozenset(_KERNELS)

# 32 values per thread: enough to spread a thread's address arithmetic, few enough for 32 to 40
# registers, which leaves room for all the threads that hide the memory's latency.
_PROGRAM_VALUES = 4096
_NUM_WARPS = 4


def dequantize(
    blocks_RB: torch.Tensor, kind: gguf.GGMLQuantizationType, out_RC: torch.Tensor
) -> None:
    """Write the values of `blocks_RB`, rows of a tensor of type `kind`, into `out_RC`.

    Shapes: (rows, row_bytes) uint8 as stored, contiguous -> (rows, cols) bfloat16, float16 or
    float32, contiguous, on the same device.
    Error:  none in float32 (bit for bit gguf-py's values); bfloat16 and float16 round once.
    Raises: ModelError if the type has no kernel; CodecError if the buffers do not fit.
    """
    if kind not in DEQUANTIZABLE:
        known = ", ".join(sorted(known.name for known in DEQUANTIZABLE))
        raise ModelError(f"type {kind.name}: need one of {known}: use --prefill llama")
    _check_buffers(blocks_RB, kind, out_RC)
    if out_RC.numel() == 0:
        return
    if kind in _FLOATS:
        out_RC.copy_(blocks_RB.view(_FLOATS[kind]))
        return
    kernel, lane_values = _KERNELS[kind]
    tables = {}
    if kind in (_Type.IQ4_NL, _Type.IQ4_XS):
        tables["levels"] = _iq4_levels(blocks_RB.device)
    kernel[(triton.cdiv(out_RC.numel(), _PROGRAM_VALUES),)](
        blocks_RB,
        out_RC,
        out_RC.numel() // gguf.GGML_QUANT_SIZES[kind][0],
        **tables,
        LANES=_PROGRAM_VALUES // lane_values,
        num_warps=_NUM_WARPS,
    )


def _check_buffers(
    blocks_RB: torch.Tensor, kind: gguf.GGMLQuantizationType, out_RC: torch.Tensor
) -> None:
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if blocks_RB.ndim != 2 or blocks_RB.dtype != torch.uint8 or not blocks_RB.is_contiguous():
        raise CodecError(
            f"{kind.name} blocks: need contiguous (rows, row_bytes) uint8, have "
            f"{tuple(blocks_RB.shape)} {blocks_RB.dtype}, strides {blocks_RB.stride()}"
        )
    num_rows, row_bytes = blocks_RB.shape
    if row_bytes % block_bytes:
        raise CodecError(
            f"{kind.name} blocks: need rows of whole blocks, {block_bytes} bytes each, "
            f"have {row_bytes} bytes"
        )
    need = (num_rows, row_bytes // block_bytes * block_values)
    if out_RC.shape != need or not out_RC.is_contiguous():
        raise CodecError(
            f"{kind.name} values: need room for {need}, contiguous, have {tuple(out_RC.shape)}, "
            f"strides {out_RC.stride()}"
        )
    if out_RC.dtype not in _FLOATS.values():
        raise CodecError(
            f"{kind.name} values: need bfloat16, float16 or float32, have {out_RC.dtype}"
        )
    if blocks_RB.device != out_RC.device:
        raise CodecError(
            f"{kind.name}: need blocks and values on one device, have {blocks_RB.device} and "
            f"{out_RC.device}"
        )
    # The kernels load words as wide as a block's size lets every block begin at.
    alignment = math.gcd(block_bytes, 8)
    if blocks_RB.data_ptr() % alignment:
        raise CodecError(
            f"{kind.name} blocks: need an address that {alignment} divides, have one "
            f"{blocks_RB.data_ptr() % alignment} bytes past it: copy them first"
        )


@cache
def _iq4_levels(device: torch.device) -> torch.Tensor:
    return torch.tensor(IQ4_NL_LEVELS, device=device)
