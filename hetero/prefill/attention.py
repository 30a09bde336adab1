"""Causal attention of new tokens over their prompts so far: what every implementation offers, and
torch's own.

Axes: T new tokens of all spans, packed one after the other; P a prompt's tokens so far; C cells
of the KV pool; H query heads, G KV heads (H is a multiple of G); D head_dim.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from hetero.prefill.span import Span


class Attention(Protocol):
    name: str

    def plan(self, spans: Sequence[Span], device: torch.device) -> Any:
        """What the layers of a batch share; made once, and passed to each call."""

    def __call__(
        self, q_THD: torch.Tensor, k_CGD: torch.Tensor, v_CGD: torch.Tensor, plan: Any
    ) -> torch.Tensor:
        """attended_THD: each new token over the cells of its prompt, up to itself."""


class SdpaAttention:
    """Torch's fused kernels, a prompt at a time: scores never exist in memory, on a CPU either.

    A CPU does need the mask, 5 bytes per new token and token so far. On CUDA, float32 has no fused
    kernel with grouped heads, and scores are stored; use a 16-bit type there.
    """

    name = "sdpa"

    def plan(self, spans: Sequence[Span], device: torch.device) -> Sequence[Span]:
        return spans

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_CGD: torch.Tensor,
        v_CGD: torch.Tensor,
        plan: Sequence[Span],
    ) -> torch.Tensor:
        queries = q_THD.split([span.num_new for span in plan])
        parts = [
            _sdpa(
                q, k_CGD[span.cell : span.cell + span.end], v_CGD[span.cell : span.cell + span.end]
            )
            for q, span in zip(queries, plan, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _sdpa(q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor) -> torch.Tensor:
    q_1HTD, k_1GPD, v_1GPD = (x.transpose(0, 1)[None] for x in (q_THD, k_PGD, v_PGD))
    attended_1HTD = F.scaled_dot_product_attention(
        q_1HTD,
        k_1GPD,
        v_1GPD,
        attn_mask=causal_lower_right(len(q_THD), len(k_PGD)),
        enable_gqa=True,
    )
    return attended_1HTD[0].transpose(0, 1)
