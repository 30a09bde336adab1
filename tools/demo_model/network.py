"""The demo model in torch: llama's architecture with tied embeddings, and its shape.

Axes: B sequences, T tokens, H query heads, G key/value heads, D head dimensions, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_model.vocabulary import TOKENS


@dataclass(frozen=True, kw_only=True)
class Shape:
    num_layers: int = 3
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    ffn_width: int = 256
    norm_eps: float = 1e-5
    # Words must match over thousands of positions, so about half of the rotated pairs have to
    # turn slower than once in the context. The usual 10,000 leaves three pairs.
    rope_base: float = 1e8


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q_width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.attn_norm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.attn_q = nn.Linear(shape.width, q_width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(q_width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.ffn_width, bias=False)
        self.ffn_down = nn.Linear(shape.ffn_width, shape.width, bias=False)

    def forward(self, x_BTE: Tensor, rope: tuple[Tensor, Tensor], kv_noise: float) -> Tensor:
        batch, tokens, _ = x_BTE.shape
        h_BTE = self.attn_norm(x_BTE)
        heads = (batch, tokens, -1, self.shape.head_dim)
        q_BHTD = rotate(self.attn_q(h_BTE).view(heads).transpose(1, 2), rope)
        k_BGTD = rotate(self.attn_k(h_BTE).view(heads).transpose(1, 2), rope)
        v_BGTD = self.attn_v(h_BTE).view(heads).transpose(1, 2)
        if kv_noise:
            k_BGTD, v_BGTD = with_noise(k_BGTD, kv_noise), with_noise(v_BGTD, kv_noise)
        group = self.shape.num_heads // self.shape.num_kv_heads
        o_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BGTD.repeat_interleave(group, 1),
            v_BGTD.repeat_interleave(group, 1),
            is_causal=True,
        )
        x_BTE = x_BTE + self.attn_output(o_BHTD.transpose(1, 2).reshape(batch, tokens, -1))
        h_BTE = self.ffn_norm(x_BTE)
        return x_BTE + self.ffn_down(F.silu(self.ffn_gate(h_BTE)) * self.ffn_up(h_BTE))


class DemoNetwork(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(len(TOKENS), shape.width)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_eps)
        nn.init.normal_(self.token_embd.weight, std=shape.width**-0.5)

    def forward(
        self, tokens_BT: Tensor, positions_BT: Tensor, wanted_BT: Tensor, kv_noise: float
    ) -> Tensor:
        """Logits (wanted tokens, V) at the places where `wanted_BT`."""
        shape = self.shape
        turns = shape.rope_base ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = positions_BT[:, None, :, None].float() * turns
        rope = (angles.cos(), angles.sin())
        x_BTE = self.token_embd(tokens_BT)
        for layer in self.blk:
            x_BTE = layer(x_BTE, rope, kv_noise)
        return self.output_norm(x_BTE[wanted_BT]) @ self.token_embd.weight.T


def rotate(x_BHTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE over adjacent pairs, the convention of llama GGUF files."""
    cos, sin = rope
    even, odd = x_BHTD[..., 0::2], x_BHTD[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def with_noise(x_BGTD: Tensor, fraction: float) -> Tensor:
    """What a quantized cache does to a row: llama.cpp rotates it by a Hadamard matrix first, so
    the rounding error spreads over all of it, in proportion to the row's size."""
    rms = x_BGTD.detach().square().mean(-1, keepdim=True).sqrt()
    return x_BGTD + fraction * rms * torch.randn_like(x_BGTD)
