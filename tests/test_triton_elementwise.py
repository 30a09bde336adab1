from functools import partial

import numpy as np
import pytest
import torch
from float64_reference import rotate
from gpu_or_interpreter import DEVICE

from hetero.prefill.kernels.elementwise import TritonOps
from hetero.prefill.ops import Heads, TorchOps
from hetero.prefill.rope import RopeTable

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = 1e-5
NUM_POSITIONS, NUM_CELLS = 50, 11
OPS = TritonOps()
# The interpreter cuts float32 off to bfloat16 where a GPU rounds.
CUTS_BFLOAT16 = DEVICE == "cpu"


def normal(*shape, dtype=torch.float32, seed=0, scale=1.0):
    values = torch.randn(*shape, generator=torch.manual_seed(seed)) * scale
    return values.to(DEVICE, dtype)


def exact(x):
    return x.double().cpu().numpy()


def assert_rounded_once(have, want, float32_error):
    """Half a unit in the last place, and what float32 math may be off by (absolute)."""
    assert have.shape == want.shape
    element = torch.finfo(have.dtype)
    units = 1.0 if CUTS_BFLOAT16 and have.dtype == torch.bfloat16 else 0.5
    error = np.abs(exact(have) - want)
    assert np.all(error <= units * element.eps * np.abs(want) + element.tiny + float32_error)


def rounded(x, dtype):
    if CUTS_BFLOAT16 and dtype == torch.bfloat16:
        return (x.view(torch.int32) >> 16).to(torch.int16).view(dtype)
    return x.to(dtype)


def norm(x, weight, eps=EPS):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 1000, 5120, 16384])
def test_norm_rounds_once(dtype, hidden):
    for weight_dtype in {dtype, torch.float32}:
        x, weight = normal(3, hidden, dtype=dtype, scale=5), normal(hidden, dtype=weight_dtype)
        want = norm(exact(x), exact(weight))
        assert_rounded_once(OPS.rms_norm(x, weight, EPS), want, 1e-6 * np.abs(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 5120])
def test_the_stored_sum_is_what_is_normed(dtype, hidden):
    x, delta = normal(3, hidden, dtype=dtype), normal(3, hidden, dtype=dtype, seed=1, scale=0.01)
    weight, total = normal(hidden, dtype=dtype, seed=2), rounded(x.float() + delta.float(), dtype)
    have = OPS.add_rms_norm(x, delta, weight, EPS)
    assert torch.equal(x, total)
    want = norm(exact(total), exact(weight))
    assert_rounded_once(have, want, 1e-6 * np.abs(want))


def test_eps_keeps_small_rows_small():
    x, ones = torch.full((1, 64), 1e-4, device=DEVICE), torch.ones(64, device=DEVICE)
    want = norm(exact(x), 1.0, eps=1e-3)
    assert_rounded_once(OPS.rms_norm(x, ones, 1e-3), want, 1e-6 * want)
    assert_rounded_once(OPS.add_rms_norm(x / 2, x / 2, ones, 1e-3), want, 1e-6 * want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ffn", [64, 1001, 1536])
def test_gate_is_not_rounded_before_the_product(dtype, ffn):
    gate_up = normal(3, 2 * ffn, dtype=dtype, scale=3)
    gate_up[0, :4] = torch.tensor([-3e4, -100.0, 0.0, 100.0])
    gate, up = np.split(exact(gate_up), 2, axis=1)
    want = gate * np.exp(-np.logaddexp(0, -gate)) * up
    with np.errstate(over="ignore"):  # exp(-gate) may be infinite
        have = OPS.silu_mul(gate_up)
    assert_rounded_once(have, want, 5e-6 * np.abs(want))


class Projection:
    """A fused projection of some tokens, the tables for it, and a pool of 7s to store it in."""

    def __init__(
        self, *, tokens=5, heads=6, kv_heads=2, head_dim=64, rope_dim=None, is_adjacent=False,
        q_norm=False, k_norm=False, dtype=torch.bfloat16, norm_dtype=None,
    ):  # fmt: skip
        rng = np.random.default_rng(0)
        norms = partial(normal, head_dim, dtype=norm_dtype or dtype)
        self.heads = Heads(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            q_norm_D=norms(seed=1) if q_norm else None,
            k_norm_D=norms(seed=2) if k_norm else None,
            norm_eps=EPS,
        )
        dim = head_dim if rope_dim is None else rope_dim
        self.angles = rng.uniform(0, 100, (NUM_POSITIONS, dim // 2))
        self.rope = RopeTable(
            cos_PR=torch.from_numpy(np.cos(self.angles)).float().to(DEVICE),
            sin_PR=torch.from_numpy(np.sin(self.angles)).float().to(DEVICE),
            dim=dim,
            is_adjacent=is_adjacent,
        )
        self.positions = rng.integers(0, NUM_POSITIONS, tokens).astype(np.int32)
        self.cells = rng.permutation(NUM_CELLS)[:tokens].astype(np.int32)
        self.qkv = normal(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, scale=2)
        pool = torch.full((NUM_CELLS, kv_heads, head_dim), 7, dtype=dtype, device=DEVICE)
        self.k_pool, self.v_pool = pool.clone(), pool.clone()

    def run(self, ops=OPS):
        positions, cells = (torch.from_numpy(x).to(DEVICE) for x in (self.positions, self.cells))
        return ops.rope_and_store(
            self.qkv, self.heads, self.rope, positions, cells, self.k_pool, self.v_pool
        )

    def want(self):
        """q, k and v of the tokens in float64."""
        heads, dim = self.heads, self.rope.dim
        qkv = exact(self.qkv).reshape(len(self.qkv), -1, heads.head_dim)
        q, k, v = np.split(qkv, np.cumsum([heads.num_heads, heads.num_kv_heads]), axis=1)
        if heads.q_norm_D is not None:
            q = norm(q, exact(heads.q_norm_D))
        if heads.k_norm_D is not None:
            k = norm(k, exact(heads.k_norm_D))
        for x in (q, k):
            angles = self.angles[self.positions]
            x[..., :dim] = rotate(x[..., :dim], angles, 1.0, adjacent=self.rope.is_adjacent)
        return q, k, v

    def check(self):
        q, k, v = self.want()
        have_q = self.run()
        # Cosines are off by half a unit of float32, and so are a few products of values up to 30.
        assert_rounded_once(have_q, q, 1e-5)
        assert_rounded_once(self.k_pool[self.cells], k, 1e-5)
        assert np.array_equal(exact(self.v_pool[self.cells]), v)
        others = np.setdiff1d(np.arange(NUM_CELLS), self.cells)
        assert (self.k_pool[others] == 7).all()
        assert (self.v_pool[others] == 7).all()


both_pairings = pytest.mark.parametrize("is_adjacent", [True, False])


@both_pairings
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "rope_dim"),
    [(64, 64), (80, 80), (80, 32), (80, 20), (96, 96), (128, 128), (128, 64), (256, 256)],
)
def test_heads_are_rotated_and_stored(head_dim, rope_dim, dtype, is_adjacent):
    Projection(head_dim=head_dim, rope_dim=rope_dim, dtype=dtype, is_adjacent=is_adjacent).check()


@both_pairings
@pytest.mark.parametrize(("q_norm", "k_norm"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("head_dim", "rope_dim"), [(128, 128), (80, 32)])
def test_heads_are_normed_before_they_turn(head_dim, rope_dim, q_norm, k_norm, is_adjacent):
    for dtype, norm_dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        Projection(
            head_dim=head_dim, rope_dim=rope_dim, is_adjacent=is_adjacent, q_norm=q_norm,
            k_norm=k_norm, dtype=dtype, norm_dtype=norm_dtype,
        ).check()  # fmt: skip


@both_pairings
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (28, 4), (32, 8), (33, 3)])
def test_heads_need_not_fill_programs(heads, kv_heads, is_adjacent):
    Projection(tokens=3, heads=heads, kv_heads=kv_heads, is_adjacent=is_adjacent).check()


@both_pairings
def test_dims_that_do_not_turn_keep_their_bits(is_adjacent):
    projection = Projection(head_dim=96, rope_dim=40, is_adjacent=is_adjacent)
    before = projection.qkv.view(5, -1, 96).clone()
    assert torch.equal(projection.run()[..., 40:], before[:, :6, 40:])
    assert torch.equal(projection.k_pool[projection.cells, :, 40:], before[:, 6:8, 40:])


def test_q_is_a_view_of_the_projection():
    projection = Projection()
    q = projection.run()
    assert q.data_ptr() == projection.qkv.data_ptr()
    assert q.stride() == (projection.qkv.shape[1], 64, 1)


def test_cells_beyond_2_31_values_are_reached():
    projection = Projection(tokens=1, kv_heads=1)
    _, k, v = projection.want()
    # Of these 4 GiB, one page is touched.
    values = torch.empty(2**31 + 128, dtype=torch.bfloat16, device=DEVICE)
    projection.cells[:] = 2
    projection.k_pool = values.as_strided((3, 1, 64), (2**30, 64, 1))
    projection.v_pool = values[64:].as_strided((3, 1, 64), (2**30, 64, 1), 64)
    projection.run()
    assert_rounded_once(values[2**31 :][None, None, :64], k, 1e-5)
    assert np.array_equal(exact(values[2**31 + 64 :][None, None]), v)


@both_pairings
def test_torch_and_triton_agree(is_adjacent):
    torch_ops = TorchOps()
    x, delta, weight = normal(3, 96), normal(3, 96, seed=1), normal(96, seed=2)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(OPS.rms_norm(x, weight, EPS), torch_ops.rms_norm(x, weight, EPS))
    added = x.clone()
    close(
        OPS.add_rms_norm(x, delta, weight, EPS), torch_ops.add_rms_norm(added, delta, weight, EPS)
    )
    assert torch.equal(x, added)
    close(OPS.silu_mul(x), torch_ops.silu_mul(x))
    triton, plain = (
        Projection(is_adjacent=is_adjacent, q_norm=True, k_norm=True, dtype=torch.float32)
        for _ in range(2)
    )
    close(triton.run(), plain.run(torch_ops))
    close(triton.k_pool, plain.k_pool)
    assert torch.equal(triton.v_pool, plain.v_pool)
