"""The transformer of llama, qwen2 and qwen3 models in torch, one layer of one chunk at a time.

It knows neither frames nor packing: the engine drives it and reads the cache between layers.

Axes: T the chunk's tokens, P all tokens up to the chunk's last, E hidden, H query heads,
G KV heads, D head_dim, L layers, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from hetero.model.spec import ModelSpec
from hetero.prefill.attention import Attention
from hetero.prefill.rope import RopeTable, apply_rope, rope_table
from hetero.prefill.torch_weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCache:
    """K (after RoPE) and V of one prompt, in the weights' type; filled as layers are computed."""

    k_LPGD: torch.Tensor
    v_LPGD: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens [first, end) of the prompt on their way through the layers."""

    first: int
    end: int
    rope: RopeTable
    x_TE: torch.Tensor


class TorchModel:
    def __init__(self, spec: ModelSpec, weights: ModelWeights, attention: Attention) -> None:
        self._spec = spec
        self._weights = weights
        self._attention = attention
        self._device = weights.embedding_VE.device
        factors = weights.rope_factors_R
        self._rope_factors_R = None if factors is None else factors.numpy()

    def new_cache(self, num_tokens: int) -> PromptCache:
        spec = self._spec
        shape = (spec.num_layers, num_tokens, spec.num_kv_heads, spec.head_dim_k)
        like = self._weights.embedding_VE
        return PromptCache(k_LPGD=like.new_empty(shape), v_LPGD=like.new_empty(shape))

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int], first: int) -> Chunk:
        indices_T = torch.tensor(tokens, device=self._device)
        return Chunk(
            first=first,
            end=first + len(tokens),
            rope=rope_table(
                self._spec.rope, self._rope_factors_R, first, len(tokens), self._device
            ),
            x_TE=F.embedding(indices_T, self._weights.embedding_VE),
        )

    @torch.inference_mode()
    def run_layer(self, layer: int, chunk: Chunk, cache: PromptCache) -> None:
        """Add a layer to the chunk's residual stream; its K and V join the cache."""
        weights = self._weights.layers[layer]
        chunk.x_TE.add_(self._attend(weights, layer, chunk, cache))
        h_TE = self._norm(chunk.x_TE, weights.ffn_norm_E)
        gated_TF = F.silu(weights.gate(h_TE), inplace=True).mul_(weights.up(h_TE))
        chunk.x_TE.add_(weights.down(gated_TF))

    @torch.inference_mode()
    def last_logits(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        """(vocabulary,) float32 of the chunk's last token."""
        x_E = self._norm(chunk.x_TE[-1], self._weights.output_norm_E)
        logits: npt.NDArray[np.float32] = self._weights.output(x_E).float().cpu().numpy()
        return logits

    def _attend(
        self, weights: LayerWeights, layer: int, chunk: Chunk, cache: PromptCache
    ) -> torch.Tensor:
        spec = self._spec
        h_TE = self._norm(chunk.x_TE, weights.attention_norm_E)
        q_THD = weights.q(h_TE).view(len(h_TE), spec.num_heads, spec.head_dim_k)
        k_TGD = weights.k(h_TE).view(len(h_TE), spec.num_kv_heads, spec.head_dim_k)
        if weights.q_norm_D is not None:
            q_THD = self._norm(q_THD, weights.q_norm_D)
        if weights.k_norm_D is not None:
            k_TGD = self._norm(k_TGD, weights.k_norm_D)
        apply_rope(q_THD, chunk.rope)
        apply_rope(k_TGD, chunk.rope)
        k_PGD, v_PGD = cache.k_LPGD[layer, : chunk.end], cache.v_LPGD[layer, : chunk.end]
        k_PGD[chunk.first :] = k_TGD
        v_PGD[chunk.first :] = weights.v(h_TE).view(k_TGD.shape)
        attended_THD = self._attention(q_THD, k_PGD, v_PGD)
        return weights.attention_output(attended_THD.flatten(1))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self._spec.norm_eps)
