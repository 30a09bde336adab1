"""Causal attention of a chunk over its prompt so far: one function per way to compute it.

Axes: T new tokens, P all tokens up to the last new one (the new ones are the last T of them),
H query heads, G KV heads (H is a multiple of G), D head_dim.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from hetero.errors import ConfigError

# (q_THD, k_PGD, v_PGD) -> attended_THD
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor) -> torch.Tensor:
    """Torch's fused kernels: scores never exist in memory, on a CPU either.

    A CPU does need the mask, 5 bytes per new token and token so far. On CUDA, float32 has no fused
    kernel with grouped heads, and scores are stored; use a 16-bit type there.
    """
    q_1HTD, k_1GPD, v_1GPD = (x.transpose(0, 1)[None] for x in (q_THD, k_PGD, v_PGD))
    attended_1HTD = F.scaled_dot_product_attention(
        q_1HTD,
        k_1GPD,
        v_1GPD,
        attn_mask=causal_lower_right(len(q_THD), len(k_PGD)),
        enable_gqa=True,
    )
    return attended_1HTD[0].transpose(0, 1)


ATTENTIONS: Mapping[str, Attention] = MappingProxyType({"sdpa": sdpa})


def attention_named(name: str) -> Attention:
    try:
        return ATTENTIONS[name]
    except KeyError:
        raise ConfigError(f"attention {name!r}: need one of {', '.join(ATTENTIONS)}") from None
