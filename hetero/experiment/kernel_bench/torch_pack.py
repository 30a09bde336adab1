"""Cache rows in torch's own operations: what the packing kernel is raced against.

Axes: L layers, T tokens, G KV heads, D head_dim, R a rotation's values, N blocks, B bytes.

How a torch program would do it without a kernel: one operation after the other, each with its own
pass over memory. Not used for serving; codes that lie between two may go the other way.
"""

import torch

from hetero.kv.rotation import hadamard

_BLOCK = 32  # values under one scale


def torch_pack_f16(values_LTGD: torch.Tensor) -> torch.Tensor:
    return values_LTGD.to(torch.float16).flatten(2).view(torch.uint8)


def torch_pack_q8_0(values_LTGD: torch.Tensor, rotation: int) -> torch.Tensor:
    """(L, T, row bytes) uint8. Source: quantize_row_q8_0_ref in ggml-quants.c."""
    matrix_RR = torch.from_numpy(hadamard(rotation)).to(values_LTGD.device)
    rotated_NR = values_LTGD.float().reshape(-1, rotation) @ matrix_RR
    blocks_NV = rotated_NR.view(-1, _BLOCK)
    scale_N1 = blocks_NV.abs().amax(1, keepdim=True) / 127
    codes_NV = torch.round(blocks_NV / scale_N1.clamp(min=1e-30)).to(torch.int8)
    blocks_NB = torch.cat(
        [scale_N1.to(torch.float16).view(torch.uint8), codes_NV.view(torch.uint8)], dim=1
    )
    return blocks_NB.view(*values_LTGD.shape[:2], -1)
