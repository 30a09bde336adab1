"""Launches of the attention kernel: every stored configuration, and its options.

Axes: T new tokens, C cells, H query heads, G KV heads, D head_dim.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from hetero.prefill.kernels.attention import AttentionOptions, TritonAttention
from hetero.prefill.span import Span

T, C, G = 4096, 8192, 8
HEAD_DIMS = (64, 80, 96, 128, 256)
META = torch.device("meta")

# Query heads per KV head: without groups, those of most models, and one that is no power of two.
_GROUPS = (1, 4, 7)
_OPTIONS = {
    "window": AttentionOptions(window=4096),
    "softcap": AttentionOptions(softcap=50.0),
    "window and softcap": AttentionOptions(window=4096, softcap=50.0),
}


def attention_cases(capability: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """(label, thunk that launches on meta tensors)."""
    for head_dim in HEAD_DIMS:
        for dtype in (torch.bfloat16, torch.float16):
            label = f"attention {str(dtype).removeprefix('torch.')}, head_dim {head_dim}"
            yield label, partial(_launch, capability, head_dim, dtype)
    for group in _GROUPS:
        yield (
            f"attention bfloat16, head_dim 128, {group} heads a group",
            partial(_launch, capability, 128, torch.bfloat16, group=group),
        )
    for head_dim in (64, 128):
        for name, options in _OPTIONS.items():
            yield (
                f"attention bfloat16, head_dim {head_dim}, {name}",
                partial(_launch, capability, head_dim, torch.bfloat16, options=options),
            )
        yield (
            f"attention bfloat16, head_dim {head_dim}, sinks",
            partial(_launch, capability, head_dim, torch.bfloat16, sinks=True),
        )


def _launch(
    capability: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    group: int = 4,
    options: AttentionOptions | None = None,
    sinks: bool = False,
) -> None:
    attention = TritonAttention(
        num_heads=group * G,
        num_kv_heads=G,
        head_dim=head_dim,
        capability=capability,
        options=options,
    )
    q_THD = torch.empty(T, group * G, head_dim, dtype=dtype, device=META)
    pool_CGD = torch.empty(C, G, head_dim, dtype=dtype, device=META)
    sinks_H = torch.empty(group * G, device=META) if sinks else None
    plan = attention.plan([Span(cell=0, first=T, end=2 * T)], META)
    attention(q_THD, pool_CGD, pool_CGD, plan, sinks_H=sinks_H)
