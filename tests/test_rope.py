from dataclasses import replace

import numpy as np
import pytest
import torch
from float64_reference import relative_error, rope_frequencies, rotate
from hypothesis import given
from hypothesis import strategies as st
from llama_cache import llama_prefill
from tiny_models import write_tiny_model

from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import RopeSpec, gguf_to_spec
from hetero.prefill.rope import apply_rope, rope_angles, rope_table

CPU = torch.device("cpu")
NUM_TOKENS = 200
PLAIN = RopeSpec(
    kind="norm",
    dim=64,
    base=10000.0,
    scaling="none",
    factor=1.0,
    original_context=4096,
    attn_factor=1.0,
    ext_factor=0.0,
    beta_fast=32.0,
    beta_slow=1.0,
    has_factors=False,
)


def scaled(scaling, **changes):
    ext_factor = 1.0 if scaling == "yarn" else 0.0
    return replace(PLAIN, scaling=scaling, ext_factor=ext_factor, **changes)


def closed_form(rope, factors=None):
    return rope_frequencies(
        dim=rope.dim,
        base=rope.base,
        scaling=rope.scaling,
        factor=rope.factor,
        original_context=rope.original_context,
        divisors=1.0 if factors is None else factors.astype(np.float64),
    )


def rotated(rope, values, *, first_position=0, factors=None):
    x = torch.from_numpy(np.array(values, np.float32))
    apply_rope(x, rope_table(rope, factors, first_position, len(x), CPU), torch.arange(len(x)))
    return x.numpy()


@pytest.mark.parametrize("first_position", [0, 100_000])
@pytest.mark.parametrize(
    ("architecture", "head_dim", "rope_scaling"),
    [
        ("llama", 64, None),
        ("llama", 128, "llama3"),
        ("llama", 96, "linear"),
        ("llama", 64, "yarn"),
        ("qwen2", 64, None),
        ("qwen2", 64, "yarn"),
        ("qwen3", 128, None),
        ("qwen3", 96, "yarn"),
    ],
)
def test_keys_turn_by_the_angles_of_llama_cpp(
    tmp_path, architecture, head_dim, rope_scaling, first_position
):
    path = write_tiny_model(
        tmp_path / "m.gguf",
        architecture=architecture,
        head_dim=head_dim,
        rope_scaling=rope_scaling,
        weight_type="f32",
        num_layers=1,
    )
    file = GGUFFile.open(path)
    rope = gguf_to_spec(file).rope
    factors = file.dequantize("rope_freqs.weight") if rope.has_factors else None
    # A token's key in the first layer depends on its position alone, so a repeated token shows the
    # rotation by itself, and the key at position 0 has not turned.
    keys = llama_prefill(path, [7] * NUM_TOKENS, first_position).k[0]
    unturned = llama_prefill(path, [7]).k[0] / rope.magnitude
    have = rotated(
        rope,
        np.repeat(unturned, NUM_TOKENS, axis=0),
        first_position=first_position,
        factors=factors,
    )
    # Two roundings to f16 make 3e-4; exact angles would be 8e-4 or more away at position 100,000.
    assert relative_error(have, keys) < 5e-4


@given(
    dim=st.sampled_from([32, 64, 80, 96, 128]),
    base=st.floats(1e3, 1e7),
    scaling=st.sampled_from(["none", "linear", "yarn"]),
    factor=st.floats(1.0, 64.0),
    original_context=st.integers(256, 131072),
    first=st.integers(0, 100_000),
)
def test_angles_are_the_closed_form_to_float32(dim, base, scaling, factor, original_context, first):
    rope = scaled(
        scaling,
        dim=dim,
        base=base,
        factor=1.0 if scaling == "none" else factor,
        original_context=original_context,
    )
    frequencies, _ = closed_form(rope)
    want = np.arange(first, first + 3)[:, None] * frequencies
    # Each pair is one more rounded product by a rounded factor, a few operations of scaling on top.
    roundings = 2 * np.arange(dim // 2) + 6
    assert np.all(np.abs(rope_angles(rope, None, first, 3) - want) <= want * roundings * 2**-24)


@pytest.mark.parametrize("kind", ["norm", "neox"])
@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
def test_rotation_is_a_complex_product(kind, scaling):
    rope = scaled(scaling, kind=kind, factor=4.0 if scaling != "none" else 1.0)
    values = np.random.default_rng(0).standard_normal((50, 3, 64))
    frequencies, magnitude = closed_form(rope)
    want = rotate(values, np.arange(50)[:, None] * frequencies, magnitude, adjacent=kind == "norm")
    assert relative_error(rotated(rope, values), want) < 1e-6


def test_llama3_factors_divide_frequencies():
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    values = np.random.default_rng(0).standard_normal((50, 3, 64))
    frequencies, magnitude = closed_form(PLAIN, factors)
    want = rotate(values, np.arange(50)[:, None] * frequencies, magnitude, adjacent=True)
    assert relative_error(rotated(PLAIN, values, factors=factors), want) < 1e-6


def test_attn_factor_scales_what_is_rotated():
    values = np.random.default_rng(0).standard_normal((5, 2, 64))
    louder = replace(PLAIN, attn_factor=1.5)
    assert relative_error(rotated(louder, values), 1.5 * rotated(PLAIN, values)) < 1e-6


@pytest.mark.parametrize("kind", ["norm", "neox"])
def test_dims_beyond_the_rotary_ones_pass_through(kind):
    values = np.random.default_rng(0).standard_normal((20, 2, 64)).astype(np.float32)
    partial = replace(PLAIN, kind=kind, dim=48)
    have = rotated(partial, values)
    assert np.array_equal(have[..., 48:], values[..., 48:])
    assert relative_error(have[..., :48], rotated(partial, values[..., :48])) == 0
    assert not np.allclose(have[1:, :, :48], values[1:, :, :48], atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_the_result(dtype):
    exact = torch.randn(100, 2, 64, generator=torch.manual_seed(0)).to(dtype)
    x = exact.clone()
    apply_rope(x, rope_table(PLAIN, None, 0, 100, CPU), torch.arange(100))
    want = torch.from_numpy(rotated(PLAIN, exact.float().numpy())).to(dtype)
    assert torch.equal(x, want)
