"""Launches of the kernels between matrix products, at the shapes of an 8B model, for a table of
what they take of a chip.

Axes: T tokens, E hidden, F ffn, H query heads, G KV heads, D head_dim, C cells, P positions,
R rotated pairs.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from hetero.prefill.kernels.elementwise import TritonOps
from hetero.prefill.ops import Heads
from hetero.prefill.rope import RopeTable

T, C, P = 2048, 32768, 8192
E, F = 4096, 14336
H, G, D = 32, 8, 128
EPS = 1e-6


def elementwise_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, thunk that launches on meta tensors): bf16."""
    ops = TritonOps()
    x_TE, weight_E = _empty(T, E), _empty(E)
    yield "rms_norm", partial(ops.rms_norm, x_TE, weight_E, EPS)
    yield "add_rms_norm", partial(ops.add_rms_norm, x_TE, _empty(T, E), weight_E, EPS)
    yield "silu_mul", partial(ops.silu_mul, _empty(T, 2 * F))
    for has_norms in (False, True):
        for is_adjacent in (True, False):
            label = "rope_and_store"
            label += ", adjacent" if is_adjacent else ", halves"
            label += ", normed" if has_norms else ""
            yield label, partial(_rope_and_store, ops, is_adjacent, has_norms)


def _rope_and_store(ops: TritonOps, is_adjacent: bool, has_norms: bool) -> None:
    norm_D = _empty(D) if has_norms else None
    angles_PR = _empty(P, D // 2, dtype=torch.float32)
    indices_T = _empty(T, dtype=torch.int32)
    ops.rope_and_store(
        _empty(T, (H + 2 * G) * D),
        Heads(
            num_heads=H,
            num_kv_heads=G,
            head_dim=D,
            q_norm_D=norm_D,
            k_norm_D=norm_D,
            norm_eps=EPS,
        ),
        RopeTable(cos_PR=angles_PR, sin_PR=angles_PR, dim=D, is_adjacent=is_adjacent),
        positions_T=indices_T,
        cells_T=indices_T,
        k_CGD=_empty(C, G, D),
        v_CGD=_empty(C, G, D),
    )


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
