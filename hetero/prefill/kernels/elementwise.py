"""What a transformer layer does between its matrix products, as Triton kernels: `Ops` of ops.py.

All of it waits for memory, so each kernel passes over it once: a value is read, worked on in
float32 registers and written. Lanes take 16 bytes at a time wherever rows are aligned to that.

Axes: T tokens, E hidden, F ffn, H query heads, G KV heads, D head_dim, C cells of the KV pool,
X a token's row of the fused projection ((H + 2G) * D); in kernels N heads of a program, P pairs of
a head's dims.
"""

import math

import torch
import triton
import triton.language as tl

from hetero.prefill.ops import Heads
from hetero.prefill.rope import RopeTable

# Two 16-byte loads of 16-bit values a lane. It takes 28 to 48 registers, so a multiprocessor holds
# lanes enough to have 30 KiB or more under way: an H100 needs 13 (half of 3.35 TB/s is reads, by
# 132 multiprocessors, for about a microsecond).
_VALUES_PER_WARP = 2 * 32 * 8
_WARPS = 4
_MAX_NORM_WARPS = 16
_LOG2_E = tl.constexpr(math.log2(math.e))


class TritonOps:
    name = "triton"

    def rms_norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        return _norm(x_TE, None, weight_E, eps)

    def add_rms_norm(
        self, x_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return _norm(x_TE, delta_TE, weight_E, eps)

    def silu_mul(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        tokens, ffn = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
        out_TF = gate_up_T2F.new_empty(tokens, ffn)
        block = _WARPS * _VALUES_PER_WARP // 2
        blocks = triton.cdiv(ffn, block)
        silu_mul_kernel[(tokens * blocks,)](
            gate_up_T2F,
            out_TF,
            gate_up_T2F.stride(0),
            F=ffn,
            BLOCK=block,
            BLOCKS=blocks,
            num_warps=_WARPS,
        )
        return out_TF

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
        """Q is rotated where it lies: what is returned is a view of `qkv_TX`."""
        tokens = len(qkv_TX)
        num_q, num_kv, head_dim = heads.num_heads, heads.num_kv_heads, heads.head_dim
        block_pairs = triton.next_power_of_2(head_dim // 2)
        block_heads = _WARPS * _VALUES_PER_WARP // (2 * block_pairs)
        tiles = triton.cdiv(num_q + 2 * num_kv, block_heads)
        rope_and_store_kernel[(tokens * tiles,)](
            qkv_TX,
            k_CGD,
            v_CGD,
            heads.q_norm_D,
            heads.k_norm_D,
            rope.cos_PR,
            rope.sin_PR,
            positions_T,
            cells_T,
            qkv_TX.stride(0),
            k_CGD.stride(0),
            v_CGD.stride(0),
            heads.norm_eps,
            H=num_q,
            G=num_kv,
            D=head_dim,
            R=rope.dim // 2,
            IS_ADJACENT=rope.is_adjacent,
            BLOCK_N=block_heads,
            BLOCK_P=block_pairs,
            TILES=tiles,
            num_warps=_WARPS,
        )
        return qkv_TX.view(tokens, -1, head_dim)[:, :num_q]


def _norm(
    x_TE: torch.Tensor, delta_TE: torch.Tensor | None, weight_E: torch.Tensor, eps: float
) -> torch.Tensor:
    tokens, hidden = x_TE.shape
    out_TE = x_TE.new_empty(tokens, hidden)
    block = triton.next_power_of_2(hidden)
    rms_norm_kernel[(tokens,)](
        x_TE,
        delta_TE,
        weight_E,
        out_TE,
        x_TE.stride(0),
        0 if delta_TE is None else delta_TE.stride(0),
        eps,
        E=hidden,
        BLOCK=block,
        num_warps=min(max(block // _VALUES_PER_WARP, 1), _MAX_NORM_WARPS),
    )
    return out_TE


@triton.jit
def rms_norm_kernel(
    x, delta, weight, out, x_stride, delta_stride, eps, E: tl.constexpr, BLOCK: tl.constexpr
):
    """A program is a row of E. With `delta` (None or as x), x becomes x + delta first."""
    row = tl.program_id(0).to(tl.int64)
    at_E = tl.arange(0, BLOCK)
    mask = at_E < E
    x_at_E = x + row * x_stride + at_E
    x_E = tl.load(x_at_E, mask=mask, other=0.0).to(tl.float32)
    weight_E = tl.load(weight + at_E, mask=mask, other=0.0)
    if delta is not None:
        delta_E = tl.load(delta + row * delta_stride + at_E, mask=mask, other=0.0)
        # What is normed is the sum as later layers will read it.
        sum_E = (x_E + delta_E.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x_at_E, sum_E, mask=mask)
        x_E = sum_E.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x_E * x_E, axis=0) / E + eps)
    normed_E = x_E * scale * weight_E.to(tl.float32)
    tl.store(out + row * E + at_E, normed_E.to(out.dtype.element_ty), mask=mask)


@triton.jit
def silu_mul_kernel(
    gate_up, out, stride, F: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """A program is `BLOCK` values of a row."""
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    at = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = at < F
    gate = tl.load(gate_up + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + F + at, mask=mask, other=0.0).to(tl.float32)
    value = gate / (1 + tl.exp2(gate * -_LOG2_E)) * up
    tl.store(out + row * F + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def rope_and_store_kernel(
    qkv,
    k_pool,
    v_pool,
    q_norm,
    k_norm,
    cos,
    sin,
    positions,
    cells,
    qkv_stride,
    k_stride,
    v_stride,
    eps,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    IS_ADJACENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TILES: tl.constexpr,
):
    """A program is `BLOCK_N` heads of a token, be they of Q, K or V: they differ in the norm and
    the angles they take (V's are zero) and in where they go.

    Q is overwritten. Each value is read once, and everything written depends on what was read
    there, so no write can come before that read.
    """
    token = tl.program_id(0) // TILES
    head_N1 = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    is_q_N1 = head_N1 < H
    is_k_N1 = (head_N1 >= H) & (head_N1 < H + G)
    is_v_N1 = (head_N1 >= H + G) & (head_N1 < H + 2 * G)
    from_N1 = qkv + token.to(tl.int64) * qkv_stride + head_N1 * D
    a_NP, b_NP = _load_pairs(from_N1, head_N1 < H + 2 * G, 0.0, D, R, BLOCK_P, IS_ADJACENT)

    if q_norm is not None or k_norm is not None:
        mean_N1 = tl.sum(a_NP * a_NP + b_NP * b_NP, axis=1, keep_dims=True) / D
        scale_N1 = tl.rsqrt(mean_N1 + eps)
        if q_norm is not None:
            weight_a_NP, weight_b_NP = _load_pairs(q_norm, is_q_N1, 1.0, D, R, BLOCK_P, IS_ADJACENT)
            a_NP *= tl.where(is_q_N1, scale_N1, 1.0) * weight_a_NP
            b_NP *= tl.where(is_q_N1, scale_N1, 1.0) * weight_b_NP
        if k_norm is not None:
            weight_a_NP, weight_b_NP = _load_pairs(k_norm, is_k_N1, 1.0, D, R, BLOCK_P, IS_ADJACENT)
            a_NP *= tl.where(is_k_N1, scale_N1, 1.0) * weight_a_NP
            b_NP *= tl.where(is_k_N1, scale_N1, 1.0) * weight_b_NP

    pair_1P = tl.arange(0, BLOCK_P)[None, :]
    turns_NP = (head_N1 < H + G) & (pair_1P < R)
    table_1P = tl.load(positions + token) * R + pair_1P
    cos_NP = tl.load(cos + table_1P, mask=turns_NP, other=1.0)
    sin_NP = tl.load(sin + table_1P, mask=turns_NP, other=0.0)
    rotated_a_NP = a_NP * cos_NP - b_NP * sin_NP
    rotated_b_NP = a_NP * sin_NP + b_NP * cos_NP

    cell = tl.load(cells + token).to(tl.int64)
    k_N1 = k_pool + cell * k_stride + (head_N1 - H) * D
    v_N1 = v_pool + cell * v_stride + (head_N1 - H - G) * D
    # Three masked writes, not one to a chosen pointer: the compiler would lose the alignment.
    _store_pairs(from_N1, is_q_N1, rotated_a_NP, rotated_b_NP, D, R, IS_ADJACENT)
    _store_pairs(k_N1, is_k_N1, rotated_a_NP, rotated_b_NP, D, R, IS_ADJACENT)
    _store_pairs(v_N1, is_v_N1, rotated_a_NP, rotated_b_NP, D, R, IS_ADJACENT)


@triton.jit
def _load_pairs(
    at_N1, mask_N1, other, D: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ADJ: tl.constexpr
):
    """Both dims of each pair of heads, as float32 (N, P)."""
    if ADJ:
        dim_1D = tl.arange(0, 2 * P)[None, :]
        x_ND = tl.load(at_N1 + dim_1D, mask=mask_N1 & (dim_1D < D), other=other).to(tl.float32)
        a_NP, b_NP = tl.split(tl.reshape(x_ND, (x_ND.shape[0], P, 2)))
    else:
        pair_1P = tl.arange(0, P)[None, :]
        mask_NP = mask_N1 & (pair_1P < D // 2)
        a_1P, b_1P = _halves(pair_1P, D, R)
        a_NP = tl.load(at_N1 + a_1P, mask=mask_NP, other=other).to(tl.float32)
        b_NP = tl.load(at_N1 + b_1P, mask=mask_NP, other=other).to(tl.float32)
    return a_NP, b_NP


@triton.jit
def _store_pairs(
    at_N1,
    mask_N1,
    a_NP,
    b_NP,
    D: tl.constexpr,
    R: tl.constexpr,
    ADJ: tl.constexpr,
):
    N: tl.constexpr = a_NP.shape[0]
    P: tl.constexpr = a_NP.shape[1]
    dtype = at_N1.dtype.element_ty
    if ADJ:
        dim_1D = tl.arange(0, 2 * P)[None, :]
        x_ND = tl.reshape(tl.join(a_NP, b_NP), (N, 2 * P))
        tl.store(at_N1 + dim_1D, x_ND.to(dtype), mask=mask_N1 & (dim_1D < D))
    else:
        pair_1P = tl.arange(0, P)[None, :]
        mask_NP = mask_N1 & (pair_1P < D // 2)
        a_1P, b_1P = _halves(pair_1P, D, R)
        tl.store(at_N1 + a_1P, a_NP.to(dtype), mask=mask_NP)
        tl.store(at_N1 + b_1P, b_NP.to(dtype), mask=mask_NP)


@triton.jit
def _halves(pair_1P, D: tl.constexpr, R: tl.constexpr):
    """Where the dims of pairs lie: R pairs that turn, dim / 2 apart, then what is left, halved."""
    if 2 * R == D:
        return pair_1P, pair_1P + R
    else:
        a_1P = pair_1P + tl.where(pair_1P < R, 0, R)
        return a_1P, pair_1P + tl.where(pair_1P < R, R, D // 2)
