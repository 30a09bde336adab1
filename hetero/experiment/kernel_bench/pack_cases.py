"""Launches of the packing kernel at the shapes of served models, for a table of what they take of a
chip.

Axes: L layers, T tokens, G KV heads, D head_dim, B bytes of a row.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from hetero.kv.layout import kv_layout
from hetero.kv.pack_kernel import pack_rows_on_gpu
from hetero.kv.types import KV_TYPES

L, T, G = 4, 2048, 8
HEAD_DIMS = (64, 128, 256)


def pack_cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, thunk that launches on meta tensors): bf16 values, as llama.cpp rotates K."""
    for head_dim in HEAD_DIMS:
        for type_name in KV_TYPES:
            layout = kv_layout(
                num_layers=L,
                num_kv_heads=G,
                head_dim_k=head_dim,
                head_dim_v=head_dim,
                k_type=type_name,
                v_type=type_name,
            )
            yield (
                f"pack {type_name}, head_dim {head_dim}",
                partial(
                    pack_rows_on_gpu,
                    torch.empty(L, T, G, head_dim, dtype=torch.bfloat16, device="meta"),
                    torch.empty(L, T, layout.k_row_bytes, dtype=torch.uint8, device="meta"),
                    torch.empty(L, dtype=torch.int32, device="meta"),
                    type_name=type_name,
                    rotation=layout.k_rotation,
                ),
            )
