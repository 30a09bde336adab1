"""Causal attention over a packed batch of prompts, one Triton kernel: `Attention` of attention.py.

Axes: T new tokens of all spans, C cells of the KV pool, H query heads, G KV heads, D head_dim; in
kernels M rows of a tile, N keys of a key tile.

A program holds a tile of one KV head: row m is new token m // GROUP under the group's query head
m % GROUP, so the keys it reads serve all heads of the group. It walks over the prompt's keys with
the running softmax of FlashAttention-2 (arXiv:2307.08691), in base 2. Key tiles that all rows see
need no masks and come first; only those on the diagonal, and at a window's edge, are masked; what
no row sees is not visited.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from hetero.errors import ConfigError, EngineError
from hetero.prefill.kernels.attention_configs import attention_config
from hetero.prefill.span import Span

_LOG2_E = tl.constexpr(math.log2(math.e))

# The running maximum before the first key: below any score, yet finite, so that a row which has
# seen nothing but masked keys has weights exp2(-inf - this) = 0 and not exp2(-inf + inf).
_NO_PEAK = tl.constexpr(-1e38)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """`window`: a token sees itself and the window - 1 tokens before it. `softcap`: scores become
    softcap * tanh(score / softcap)."""

    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """`tiles`: int32 (tiles, 5), the heaviest first: the span's first token in the packed batch,
    the tile's first row in the span, the span's number of rows, of tokens before it, and its cell.
    """

    tiles: torch.Tensor
    num_tokens: int
    longest: int  # tokens of the longest prompt so far


class TritonAttention:
    name = "triton"

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        capability: int,
        options: AttentionOptions | None = None,
    ) -> None:
        """`capability`: of the GPU, as 90 for 9.0.

        Raises: ConfigError if there is no kernel for such heads or such a GPU.
        """
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"attention: need query heads a multiple of KV heads, have {num_heads} and "
                f"{num_kv_heads}"
            )
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._capability = capability
        self._block_m = attention_config(capability, head_dim, 2).block_m
        self._options = options or AttentionOptions()

    def plan(self, spans: Sequence[Span], device: torch.device) -> TilePlan:
        group = self._num_heads // self._num_kv_heads
        starts = np.cumsum([0] + [span.num_new for span in spans])
        tables = []
        for span, start in zip(spans, starts, strict=False):
            num_rows = span.num_new * group
            row = np.arange(0, num_rows, self._block_m)
            table = np.empty((len(row), 6), np.int32)
            table[:] = (start, 0, num_rows, span.first, span.cell, 0)
            table[:, 1] = row
            num_keys = span.first + (np.minimum(row + self._block_m, num_rows) - 1) // group + 1
            if self._options.window is not None:
                num_keys = np.minimum(num_keys, self._options.window + self._block_m // group)
            table[:, 5] = num_keys
            tables.append(table)
        table = np.concatenate(tables) if tables else np.empty((0, 6), np.int32)
        # Programs start in this order: a heavy one that starts last would run alone.
        table = table[np.argsort(-table[:, 5], kind="stable"), :5]
        return TilePlan(
            tiles=torch.from_numpy(np.ascontiguousarray(table)).to(device),
            num_tokens=int(starts[-1]),
            longest=max((span.end for span in spans), default=0),
        )

    def __call__(
        self,
        q_THD: torch.Tensor,
        k_CGD: torch.Tensor,
        v_CGD: torch.Tensor,
        plan: TilePlan,
        *,
        sinks_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """attended_THD, contiguous. Q, K and V are bfloat16, float16 or float32, all the same.

        Q may have any strides but its last, K and V any strides between cells. `sinks_H`, float32:
        a logit per query head that takes part in the softmax and has no value.
        Raises: EngineError if the tensors do not fit the plan or the heads.
        """
        self._check(q_THD, k_CGD, v_CGD, plan)
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        if plan.num_tokens == 0:
            return out_THD
        config = attention_config(self._capability, self._head_dim, q_THD.element_size())
        softcap = self._options.softcap
        scale = self._head_dim**-0.5
        attention_kernel[(len(plan.tiles) * self._num_kv_heads,)](
            q_THD,
            k_CGD,
            v_CGD,
            sinks_H,
            out_THD,
            plan.tiles,
            q_THD.stride(0),
            q_THD.stride(1),
            # To what the score's exponential, base 2, or tanh takes.
            scale * math.log2(math.e) if softcap is None else scale / softcap,
            GROUP=self._num_heads // self._num_kv_heads,
            KV_HEADS=self._num_kv_heads,
            HEAD_DIM=self._head_dim,
            PART_D=config.part_dim,
            K_STRIDE=k_CGD.stride(0),
            V_STRIDE=v_CGD.stride(0),
            WINDOW=self._options.window,
            SOFTCAP=softcap,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            OVERLAP=config.overlap,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        return out_THD

    def _check(
        self, q_THD: torch.Tensor, k_CGD: torch.Tensor, v_CGD: torch.Tensor, plan: TilePlan
    ) -> None:
        shape = (plan.num_tokens, self._num_heads, self._head_dim)
        if q_THD.shape != shape:
            raise EngineError(f"attention: need q of shape {shape}, have {tuple(q_THD.shape)}")
        for name, x_CGD in (("k", k_CGD), ("v", v_CGD)):
            heads = (self._num_kv_heads, self._head_dim)
            if x_CGD.shape[1:] != heads or x_CGD.stride()[1:] != (self._head_dim, 1):
                raise EngineError(
                    f"attention: need {name} of shape (cells, {heads[0]}, {heads[1]}), a cell's "
                    f"values contiguous, have {tuple(x_CGD.shape)}, strides {x_CGD.stride()}"
                )
            # Within a prompt the kernel counts in int32; from prompt to prompt in int64.
            if plan.longest * x_CGD.stride(0) >= 2**31:
                raise EngineError(
                    f"attention: need prompts below {2**31 // x_CGD.stride(0)} tokens, have "
                    f"{plan.longest}"
                )


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    sinks,
    out,
    tiles,
    q_token_stride,
    q_head_stride,
    scale,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PART_D: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # KV heads go fastest: the heavy tiles of all of them come before the light ones of any.
    head = tl.program_id(0) % KV_HEADS
    tile = tiles + tl.program_id(0) // KV_HEADS * 5
    token = tl.load(tile)
    row = tl.load(tile + 1)
    num_rows = tl.load(tile + 2)
    first = tl.load(tile + 3)
    cell = tl.load(tile + 4).to(tl.int64)
    k += cell * K_STRIDE + head * HEAD_DIM
    v += cell * V_STRIDE + head * HEAD_DIM
    token_M, head_M = _token_and_head(row, head, GROUP, BLOCK_M)
    q += (token + row // GROUP).to(tl.int64) * q_token_stride
    q_at_M = q + token_M * q_token_stride + head_M * q_head_stride
    q_MD = _load_parts(q_at_M, tl.arange(0, BLOCK_M) < num_rows - row, HEAD_DIM, PART_D)

    # A token sees the keys up to itself. All rows see those before `shared`, none those from `end`.
    shared = first + row // GROUP + 1
    end = first + (tl.minimum(row + BLOCK_M, num_rows) - 1) // GROUP + 1
    low = 0
    inner = 0
    outer = shared // BLOCK_N * BLOCK_N
    if WINDOW is not None:
        low = tl.maximum(shared - WINDOW, 0) // BLOCK_N * BLOCK_N
        inner = tl.minimum(tl.cdiv(tl.maximum(end - WINDOW, 0), BLOCK_N) * BLOCK_N, outer)

    if sinks is not None:
        peak_M = tl.load(sinks + head_M) * _LOG2_E
        sum_M = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        peak_M = tl.full([BLOCK_M], _NO_PEAK, tl.float32)
        sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_MD = ()
    for part in tl.static_range(len(q_MD)):
        acc_MD += (tl.zeros(q_MD[part].shape, tl.float32),)
    decay_M = tl.full([BLOCK_M], 1.0, tl.float32)
    weights_MN = tl.zeros([BLOCK_M, BLOCK_N], q.dtype.element_ty)
    if OVERLAP:
        # Between iterations as integers: floats, the compiler would carry through shared memory.
        weights_MN = weights_MN.to(tl.int16, bitcast=True)
    state = (acc_MD, peak_M, sum_M, decay_M, weights_MN)
    # Masked by the window's edge, by nothing, by the diagonal. A wide window's edge is in other key
    # tiles than the diagonal.
    bounds = (low, inner, outer, end)
    NARROW: tl.constexpr = WINDOW is not None and WINDOW <= BLOCK_N + BLOCK_M // GROUP
    for stage in tl.static_range(0 if WINDOW is not None else 1, 3):
        state = _add_keys(
            state,
            q_MD,
            k,
            v,
            bounds[stage],
            bounds[stage + 1],
            low,
            end,
            row + first * GROUP,
            scale,
            GROUP,
            HEAD_DIM,
            PART_D,
            K_STRIDE,
            V_STRIDE,
            stage == 2,
            WINDOW if stage == 0 or (stage == 2 and NARROW) else None,
            SOFTCAP,
            BLOCK_N,
            OVERLAP,
        )
    acc_MD, peak_M, sum_M, decay_M, weights_MN = state
    if OVERLAP:
        last = (end - 1) // BLOCK_N * BLOCK_N
        n_N = tl.arange(0, BLOCK_N)
        v_ND = _load_parts(
            v + (last * V_STRIDE + n_N * V_STRIDE), n_N < end - last, HEAD_DIM, PART_D
        )
        weights_MN = weights_MN.to(q.dtype.element_ty, bitcast=True)
        acc_MD = _add_values(acc_MD, decay_M, weights_MN, v_ND)

    # Read again, and not kept through the loops: rows in the layout of loads take registers.
    row = tl.load(tile + 1, volatile=True)
    num_rows = tl.load(tile + 2, volatile=True)
    token_M, head_M = _token_and_head(row, head, GROUP, BLOCK_M)
    out += (token + row // GROUP).to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM)
    out_at_M = out + (token_M * (KV_HEADS * GROUP) + head_M) * HEAD_DIM
    # Rows past the last may have seen no key of a window; they are not stored.
    share_M = 1 / tl.where(sum_M > 0, sum_M, 1.0)
    is_row_M = tl.arange(0, BLOCK_M) < num_rows - row
    for part in tl.static_range(len(acc_MD)):
        out_MD = acc_MD[part] * share_M[:, None]
        at_MD = out_at_M[:, None] + (part * PART_D + tl.arange(0, out_MD.shape[1]))[None, :]
        tl.store(at_MD, out_MD.to(out.dtype.element_ty), mask=is_row_M[:, None])


@triton.jit
def _add_keys(
    state,
    q_MD,
    k,
    v,
    start,
    stop,
    low,
    end,
    row,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PART_D: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The state after the key tiles from `start` to `stop`.

    CAUSAL: these are the diagonal's; no key from `end` on is read. WINDOW: its edge is in them.
    OVERLAP: a tile's values are added in the next one's turn. That product keeps the matrix units
    busy during the softmax, which does not wait for it (as in FlashAttention-3, arXiv:2407.08608).
    The last tile's weights stay in the state.
    """
    acc_MD, peak_M, sum_M, decay_M, weights_MN = state
    dtype: tl.constexpr = k.dtype.element_ty
    n_N = tl.arange(0, BLOCK_N)
    for key in tl.range(start, stop, BLOCK_N):
        is_key_N = n_N < end - key if CAUSAL else tl.full([BLOCK_N], True, tl.int1)
        k_ND = _load_parts(k + (key * K_STRIDE + n_N * K_STRIDE), is_key_N, HEAD_DIM, PART_D)
        scores_MN = tl.zeros(weights_MN.shape, tl.float32)
        for part in tl.static_range(len(q_MD)):
            scores_MN = tl.dot(q_MD[part], k_ND[part].T, scores_MN, input_precision="ieee")
        if OVERLAP:
            is_past_N = tl.full([BLOCK_N], True, tl.int1) & (key > low)
            v_at_N = v + ((key - BLOCK_N) * V_STRIDE + n_N * V_STRIDE)
            v_ND = _load_parts(v_at_N, is_past_N, HEAD_DIM, PART_D)
            acc_MD = _add_values(acc_MD, decay_M, weights_MN.to(dtype, bitcast=True), v_ND)

        unit = scale
        if SOFTCAP is not None:
            # tanh(x) = 1 - 2 / (1 + exp(2x)), whose exponential may not overflow to inf.
            grown_MN = tl.exp2(tl.minimum(scores_MN * (scale * 2 * _LOG2_E), 100.0))
            scores_MN = 1 - 2 / (1 + grown_MN)
            unit = SOFTCAP * _LOG2_E
        # Token t sees key n if n <= t, that is if n * GROUP <= row: rows and columns are then a
        # thread's own number plus constants, which takes fewer registers than positions.
        limit_M = tl.arange(0, peak_M.shape[0]) + (row - key * GROUP)
        if CAUSAL and WINDOW is not None:
            ahead_MN = limit_M[:, None] - (n_N * GROUP)[None, :]
            is_seen_MN = ahead_MN.to(tl.uint32) < WINDOW * GROUP
            scores_MN = tl.where(is_seen_MN, scores_MN, float("-inf"))
        elif CAUSAL:
            is_seen_MN = (n_N * GROUP)[None, :] <= limit_M[:, None]
            scores_MN = tl.where(is_seen_MN, scores_MN, float("-inf"))
        elif WINDOW is not None:
            is_seen_MN = ((n_N + WINDOW) * GROUP)[None, :] > limit_M[:, None]
            scores_MN = tl.where(is_seen_MN, scores_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(scores_MN, 1) * unit)
        odds_MN = tl.exp2(scores_MN * unit - new_peak_M[:, None])
        decay_M = tl.exp2(peak_M - new_peak_M)
        sum_M = sum_M * decay_M + tl.sum(odds_MN, 1)
        peak_M = new_peak_M
        weights_MN = odds_MN.to(dtype)
        if OVERLAP:
            weights_MN = weights_MN.to(tl.int16, bitcast=True)
        else:
            v_ND = _load_parts(v + (key * V_STRIDE + n_N * V_STRIDE), is_key_N, HEAD_DIM, PART_D)
            acc_MD = _add_values(acc_MD, decay_M, weights_MN, v_ND)
    return acc_MD, peak_M, sum_M, decay_M, weights_MN


@triton.jit
def _add_values(acc_MD, decay_M, weights_MN, v_ND):
    sums_MD = ()
    for part in tl.static_range(len(acc_MD)):
        faded_MD = acc_MD[part] * decay_M[:, None]
        sums_MD += (tl.dot(weights_MN, v_ND[part], faded_MD, input_precision="ieee"),)
    return sums_MD


@triton.jit
def _token_and_head(row, head, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of each row of a tile: its token, from the tile's first, and its query head."""
    row_M = row + tl.arange(0, BLOCK_M)
    return row_M // GROUP - row // GROUP, head * GROUP + row_M % GROUP


@triton.jit
def _load_parts(at_M, is_row_M, HEAD_DIM: tl.constexpr, PART_D: tl.constexpr):
    """A head's rows as tensors of PART_D dims each and one of what is left; zero without a row."""
    parts_MD = ()
    for first in tl.static_range(0, HEAD_DIM, PART_D):
        d_D = tl.arange(0, PART_D if first + PART_D <= HEAD_DIM else HEAD_DIM - first)
        at_MD = at_M[:, None] + (first + d_D)[None, :]
        parts_MD += (tl.load(at_MD, mask=is_row_M[:, None], other=0.0),)
    return parts_MD
