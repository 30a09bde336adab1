"""The transformer of llama, qwen2 and qwen3 models in torch: a batch through it, layer by layer.

It knows neither frames nor packing: the engine drives it and reads the KV pool between layers.

Axes: T the batch's tokens, N prompts that end in it, E hidden, H query heads, G KV heads,
D head_dim, C cells, L layers, V vocabulary.
"""

from collections.abc import Iterator

import torch

from hetero.model.spec import ModelSpec
from hetero.prefill.attention import Attention
from hetero.prefill.batch import Batch
from hetero.prefill.kv_pool import KVPool
from hetero.prefill.ops import Heads, Ops
from hetero.prefill.rope import RopeTable, rope_table
from hetero.prefill.torch_weights import LayerWeights, ModelWeights


class TorchModel:
    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        attention: Attention,
        ops: Ops,
        *,
        context_tokens: int,
        device: torch.device,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._attention = attention
        self._ops = ops
        factors_R = weights.rope_factors_R
        self._rope: RopeTable = rope_table(
            spec.rope, None if factors_R is None else factors_R.numpy(), 0, context_tokens, device
        )

    @torch.inference_mode()
    def layers(self, batch: Batch, pool: KVPool) -> "Iterator[torch.Tensor | None]":
        """Compute a layer of the batch at each step of the iteration; its K and V are then in the
        pool. The last step yields the logits: (N, V) float32 of the prompts' last tokens, or None
        if no prompt ends here.

        Whatever comes after the K and V of the last layer is computed for those tokens alone.
        """
        ops, spec = self._ops, self._spec
        x_TE = self._weights.embedding.rows(batch.tokens_T)
        delta_TE: torch.Tensor | None = None
        plan = batch.plan
        logits_NV = None
        for index, weights in enumerate(self._weights.layers.layers()):
            h_TE = self._normed(x_TE, delta_TE, weights.attention_norm_E)
            k_CGD, v_CGD = pool.k_LCGD[index], pool.v_LCGD[index]
            q_THD = ops.rope_and_store(
                weights.qkv(h_TE),
                self._heads(weights),
                self._rope,
                batch.positions_T,
                batch.cells_T,
                k_CGD,
                v_CGD,
            )
            if index == spec.num_layers - 1:
                if batch.last_plan is None:
                    yield None
                    return
                x_TE, q_THD, plan = x_TE[batch.last_rows], q_THD[batch.last_rows], batch.last_plan
            attended_THD = self._attention(q_THD, k_CGD, v_CGD, plan)
            delta_TE = weights.attention_output(attended_THD.flatten(1))
            h_TE = self._normed(x_TE, delta_TE, weights.ffn_norm_E)
            delta_TE = weights.down(ops.silu_mul(weights.gate_up(h_TE)))
            if index < spec.num_layers - 1:
                yield None
        h_NE = self._normed(x_TE, delta_TE, self._weights.output_norm_E)
        logits_NV = self._weights.output.logits(h_NE)
        yield logits_NV

    def _normed(
        self, x_TE: torch.Tensor, delta_TE: torch.Tensor | None, weight_E: torch.Tensor
    ) -> torch.Tensor:
        """Norm of the residual stream, after what the last part of a layer adds to it."""
        if delta_TE is None:
            return self._ops.rms_norm(x_TE, weight_E, self._spec.norm_eps)
        return self._ops.add_rms_norm(x_TE, delta_TE, weight_E, self._spec.norm_eps)

    def _heads(self, weights: LayerWeights) -> Heads:
        spec = self._spec
        return Heads(
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim_k,
            q_norm_D=weights.q_norm_D,
            k_norm_D=weights.k_norm_D,
            norm_eps=spec.norm_eps,
        )
