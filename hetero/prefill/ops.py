"""What a transformer layer does between its matrix products, in plain torch: any device.

`kernels/elementwise.py` has the same operations as Triton kernels, a pass over memory each; this
is what they are held to, and what runs where Triton can't.

Axes: T tokens, E hidden, F ffn, H query heads, G KV heads, D head_dim, C cells of the KV pool.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from hetero.prefill.rope import RopeTable, apply_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How a token's row of the fused projection is cut: H query heads, G of K, G of V."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_norm_D: torch.Tensor | None
    k_norm_D: torch.Tensor | None
    norm_eps: float


class Ops(Protocol):
    name: str

    def rms_norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight, in x's type, computed in float32."""

    def add_rms_norm(
        self, x_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add delta to x in place; return the norm of the sum, as it is stored."""

    def silu_mul(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        """silu(first half) * second half of each row: (tokens, ffn)."""

    def rope_and_store(
        self,
        qkv_TX: torch.Tensor,
        heads: Heads,
        rope: RopeTable,
        positions_T: torch.Tensor,
        cells_T: torch.Tensor,
        k_CGD: torch.Tensor,
        v_CGD: torch.Tensor,
    ) -> torch.Tensor:
        """Norm (where the model does) and rotate Q and K; K and V go to their cells.

        `positions_T` and `cells_T` are int32. Q may be a view of `qkv_TX`, which is spent.
        Returns: q_THD.
        """


class TorchOps:
    name = "torch"

    def rms_norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        normed: torch.Tensor = F.rms_norm(x_TE, weight_E.shape, weight_E, eps)
        return normed

    def add_rms_norm(
        self, x_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self.rms_norm(x_TE.add_(delta_TE), weight_E, eps)

    def silu_mul(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        return F.silu(gate_TF).mul_(up_TF)

    def rope_and_store(
        self,
        qkv_TX: torch.Tensor,
        heads: Heads,
        rope: RopeTable,
        positions_T: torch.Tensor,
        cells_T: torch.Tensor,
        k_CGD: torch.Tensor,
        v_CGD: torch.Tensor,
    ) -> torch.Tensor:
        qkv_TND = qkv_TX.view(len(qkv_TX), -1, heads.head_dim)
        q_THD: torch.Tensor
        q_THD, k_TGD, v_TGD = qkv_TND.split(
            [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1
        )
        if heads.q_norm_D is not None:
            q_THD = self.rms_norm(q_THD, heads.q_norm_D, heads.norm_eps)
        if heads.k_norm_D is not None:
            k_TGD = self.rms_norm(k_TGD, heads.k_norm_D, heads.norm_eps)
        apply_rope(q_THD, rope, positions_T)
        apply_rope(k_TGD, rope, positions_T)
        k_CGD[cells_T], v_CGD[cells_T] = k_TGD, v_TGD
        return q_THD
