"""Dequantize in torch's own operations: what the kernels are raced against.

Axes: R rows, B bytes of a row or block, N blocks, V values of a block, S its runs under one scale.

This is how a GGUF file is used from torch today where there are no kernels for it (ComfyUI-GGUF
works this way): one vectorized operation after the other, each a launch with its own pass over
memory. Not used for serving. Block layouts: ggml-common.h in llama.cpp.
"""

from collections.abc import Callable

import gguf
import torch

from hetero.errors import ModelError
from hetero.kv.codecs import IQ4_NL_LEVELS

_Type = gguf.GGMLQuantizationType


def torch_dequantize(
    blocks_RB: torch.Tensor,
    kind: gguf.GGMLQuantizationType,
    dtype: torch.dtype,
    arithmetic: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The values of rows of blocks: (rows, row_bytes) uint8 -> (rows, cols) of `dtype`.

    Error:  as of computing in `arithmetic`: none in float32. float16 is faster, and loses bits.
    Raises: ModelError if the type is not known here.
    """
    if kind in _FLOATS:
        return blocks_RB.view(_FLOATS[kind]).to(dtype)
    if kind not in _BLOCKS:
        raise ModelError(f"type {kind.name}: torch_dequantize does not know it")
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    values_NV = _BLOCKS[kind](blocks_RB.view(-1, block_bytes), arithmetic)
    return values_NV.reshape(len(blocks_RB), -1).to(dtype)


def _f16(bytes_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    return bytes_NB.contiguous().view(torch.float16).to(arithmetic)


def _fields(bytes_NB: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Codes of `bits` bits: of each `run` bytes first the lowest field, then the next."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=bytes_NB.device)
    runs = bytes_NB.reshape(len(bytes_NB), -1, 1, run) >> shifts[:, None]
    return (runs & ((1 << bits) - 1)).reshape(len(bytes_NB), -1)


def _bit_string(bytes_NB: torch.Tensor) -> torch.Tensor:
    """The bits of the bytes one after the other, lowest first."""
    return _fields(bytes_NB, 1, 1)


def _scaled(
    codes_NV: torch.Tensor, scale_NS: torch.Tensor, offset_NS: torch.Tensor | None = None
) -> torch.Tensor:
    """scale * code + offset, one scale per equal run of values."""
    num_blocks, num_runs = scale_NS.shape
    runs = codes_NV.reshape(num_blocks, num_runs, -1).to(scale_NS.dtype)
    values = scale_NS[:, :, None] * runs
    if offset_NS is not None:
        values = values + offset_NS[:, :, None]
    return values.reshape(num_blocks, -1)


def _q8_0(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    codes_NV = blocks_NB[:, 2:].contiguous().view(torch.int8)
    return _scaled(codes_NV, _f16(blocks_NB[:, :2], arithmetic))


def _q4_0(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    codes_NV = _fields(blocks_NB[:, 2:], 4, 16).to(torch.int8) - 8
    return _scaled(codes_NV, _f16(blocks_NB[:, :2], arithmetic))


def _q4_1(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    scale_and_minimum = _f16(blocks_NB[:, :4], arithmetic)
    codes_NV = _fields(blocks_NB[:, 4:], 4, 16)
    return _scaled(codes_NV, scale_and_minimum[:, :1], scale_and_minimum[:, 1:])


def _q5_0(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    codes_NV = _fields(blocks_NB[:, 6:], 4, 16) | _bit_string(blocks_NB[:, 2:6]) << 4
    return _scaled(codes_NV.to(torch.int8) - 16, _f16(blocks_NB[:, :2], arithmetic))


def _q5_1(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    scale_and_minimum = _f16(blocks_NB[:, :4], arithmetic)
    codes_NV = _fields(blocks_NB[:, 8:], 4, 16) | _bit_string(blocks_NB[:, 4:8]) << 4
    return _scaled(codes_NV, scale_and_minimum[:, :1], scale_and_minimum[:, 1:])


def _levels(codes_NV: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    levels = torch.tensor(IQ4_NL_LEVELS, dtype=arithmetic, device=codes_NV.device)
    return levels[codes_NV.to(torch.int32)]


def _iq4_nl(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    codes_NV = _fields(blocks_NB[:, 2:], 4, 16)
    return _scaled(_levels(codes_NV, arithmetic), _f16(blocks_NB[:, :2], arithmetic))


def _iq4_xs(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    high_NS, low_NS = _fields(blocks_NB[:, 2:4], 2, 1), _fields(blocks_NB[:, 4:8], 4, 1)
    scales_NS = (low_NS | high_NS << 4).to(torch.int8) - 32
    step_NS = _f16(blocks_NB[:, :2], arithmetic) * scales_NS.to(arithmetic)
    return _scaled(_levels(_fields(blocks_NB[:, 8:], 4, 16), arithmetic), step_NS)


def _q2_k(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    scale_and_minimum = _f16(blocks_NB[:, 80:], arithmetic)
    step_NS = scale_and_minimum[:, :1] * (blocks_NB[:, :16] & 15).to(arithmetic)
    offset_NS = scale_and_minimum[:, 1:] * (blocks_NB[:, :16] >> 4).to(arithmetic)
    return _scaled(_fields(blocks_NB[:, 16:80], 2, 32), step_NS, -offset_NS)


def _q3_k(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    low_NS, high_NS = _fields(blocks_NB[:, 96:104], 4, 8), _fields(blocks_NB[:, 104:108], 2, 4)
    scales_NS = (low_NS | high_NS << 4).to(torch.int8) - 32
    step_NS = _f16(blocks_NB[:, 108:], arithmetic) * scales_NS.to(arithmetic)
    codes_NV = _fields(blocks_NB[:, 32:96], 2, 32) | _fields(blocks_NB[:, :32], 1, 32) << 2
    return _scaled(codes_NV.to(torch.int8) - 4, step_NS)


def _six_bit_scales(
    blocks_NB: torch.Tensor, arithmetic: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and offsets of the eight runs of a Q4_K or Q5_K block."""
    scale_and_minimum = _f16(blocks_NB[:, :4], arithmetic)
    a, b, c = blocks_NB[:, 4:8], blocks_NB[:, 8:12], blocks_NB[:, 12:16]
    scales_NS = torch.cat([a & 0x3F, c & 0x0F | a >> 2 & 0x30], dim=1)
    minimums_NS = torch.cat([b & 0x3F, c >> 4 | b >> 2 & 0x30], dim=1)
    return (
        scale_and_minimum[:, :1] * scales_NS.to(arithmetic),
        scale_and_minimum[:, 1:] * minimums_NS.to(arithmetic),
    )


def _q4_k(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    step_NS, offset_NS = _six_bit_scales(blocks_NB, arithmetic)
    return _scaled(_fields(blocks_NB[:, 16:], 4, 32), step_NS, -offset_NS)


def _q5_k(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    step_NS, offset_NS = _six_bit_scales(blocks_NB, arithmetic)
    codes_NV = _fields(blocks_NB[:, 48:], 4, 32) | _fields(blocks_NB[:, 16:48], 1, 32) << 4
    return _scaled(codes_NV, step_NS, -offset_NS)


def _q6_k(blocks_NB: torch.Tensor, arithmetic: torch.dtype) -> torch.Tensor:
    scales_NS = blocks_NB[:, 192:208].contiguous().view(torch.int8)
    step_NS = _f16(blocks_NB[:, 208:], arithmetic) * scales_NS.to(arithmetic)
    codes_NV = _fields(blocks_NB[:, :128], 4, 64) | _fields(blocks_NB[:, 128:192], 2, 32) << 4
    return _scaled(codes_NV.to(torch.int8) - 32, step_NS)


_FLOATS = {_Type.F32: torch.float32, _Type.F16: torch.float16, _Type.BF16: torch.bfloat16}
_BLOCKS: dict[gguf.GGMLQuantizationType, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    _Type.Q8_0: _q8_0,
    _Type.Q4_0: _q4_0,
    _Type.Q4_1: _q4_1,
    _Type.Q5_0: _q5_0,
    _Type.Q5_1: _q5_1,
    _Type.Q2_K: _q2_k,
    _Type.Q3_K: _q3_k,
    _Type.Q4_K: _q4_k,
    _Type.Q5_K: _q5_k,
    _Type.Q6_K: _q6_k,
    _Type.IQ4_NL: _iq4_nl,
    _Type.IQ4_XS: _iq4_xs,
}
