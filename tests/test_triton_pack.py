"""Packed on the GPU, rows are those of the numpy codecs and of ggml."""

import numpy as np
import pytest
import torch
from gpu_or_interpreter import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero.errors import CodecError, ConfigError
from hetero.experiment.kernel_bench.pack_cases import pack_cases
from hetero.kv.codecs import IQ4_NL_LEVELS, decode, encode
from hetero.kv.pack_kernel import pack_rows_on_gpu
from hetero.kv.rotation import rotate
from hetero.kv.types import KV_TYPES, kv_type
from hetero.llama.quantize import quantize

QUANTIZED = [name for name, kind in KV_TYPES.items() if kind.is_quantized]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
by_type = pytest.mark.parametrize("type_name", QUANTIZED)
by_any_type = pytest.mark.parametrize("type_name", KV_TYPES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Words before a block's nibbles, or bytes: scale, minimum. Then the fifth bits, if there are.
NUM_SCALES = {"q8_0": 1, "q4_0": 1, "q4_1": 2, "q5_0": 1, "q5_1": 2, "iq4_nl": 1}


def values(layers=2, tokens=37, heads=2, head_dim=128, dtype=torch.bfloat16, seed=0):
    """Normal, by token at scales from 1e-3 to 1e2."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((layers, tokens, heads, head_dim), np.float32)
    scales = np.float32(10.0) ** rng.integers(-3, 3, (layers, tokens, 1, 1))
    return torch.from_numpy(x * scales).to(dtype)


def pack(x, type_name, rotation=0):
    """(rows, layers that are not finite)."""
    layers, tokens, heads, head_dim = x.shape
    shape = (layers, tokens, kv_type(type_name).row_bytes(heads * head_dim))
    rows = torch.full(shape, 0xAA, dtype=torch.uint8, device=DEVICE)
    not_finite = torch.zeros(layers, dtype=torch.int32, device=DEVICE)
    pack_rows_on_gpu(x.to(DEVICE), rows, not_finite, type_name=type_name, rotation=rotation)
    return rows.cpu().numpy(), not_finite.cpu().nonzero().flatten().tolist()


def packed(x, type_name, rotation=0):
    rows, not_finite = pack(x, type_name, rotation)
    assert not_finite == []
    return rows


def rotated(x, rotation):
    """(layers * tokens, width) float32."""
    flat = np.ascontiguousarray(x.float().cpu().numpy().reshape(x.shape[0] * x.shape[1], -1))
    return rotate(flat, rotation) if rotation else flat


def reference(x, type_name, rotation=0):
    return encode(rotated(x, rotation), type_name).reshape(*x.shape[:2], -1)


def native(x, type_name, rotation=0):
    flat = rotated(x, rotation)
    element = kv_type(type_name)
    rows = np.empty((len(flat), element.row_bytes(flat.shape[1])), np.uint8)
    quantize(flat, element.ggml_id, rows)
    return rows.reshape(*x.shape[:2], -1)


def scales_and_codes(rows, type_name):
    """(blocks, 1 or 2) int32, in which neighbours are an ulp apart, and (blocks, 32) int32."""
    blocks = rows.reshape(-1, kv_type(type_name).block_bytes)
    num_scales = NUM_SCALES[type_name]
    bits = np.ascontiguousarray(blocks[:, : 2 * num_scales]).view(np.int16).astype(np.int32)
    scales = np.where(bits < 0, -(bits & 0x7FFF), bits)
    rest = blocks[:, 2 * num_scales :]
    if type_name == "q8_0":
        return scales, rest.view(np.int8).astype(np.int32)
    nibbles = rest[:, -16:].astype(np.int32)
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    if type_name.startswith("q5"):
        codes += np.unpackbits(rest[:, :4], axis=1, bitorder="little").astype(np.int32) << 4
    return scales, codes


def assert_near(have, want, type_name, codes_off=1e-4, scales_off=1e-3):
    """The same, but for a share of codes that are one off and one of scales that are an ulp off.

    Of few values one or two may be more than that share.
    """
    our_scales, our_codes = scales_and_codes(have, type_name)
    their_scales, their_codes = scales_and_codes(want, type_name)
    if type_name == "iq4_nl":  # whose scale is made to suit the codes
        same_codes = (our_codes == their_codes).all(axis=1)
        our_scales, their_scales = our_scales[same_codes], their_scales[same_codes]
    for ours, theirs, share in (
        (our_codes, their_codes, codes_off),
        (our_scales, their_scales, scales_off),
    ):
        gap = np.abs(ours - theirs)
        assert gap.max() <= 1
        assert np.count_nonzero(gap) <= max(2, share * gap.size)


def assert_same(have, want, type_name):
    """Bit for bit; the sums behind iq4_nl's scale may be added in any order."""
    if type_name == "iq4_nl":
        assert_near(have, want, type_name, codes_off=0)
    else:
        np.testing.assert_array_equal(have, want)


@by_type
@by_dtype
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 64), (1, 96), (2, 80), (3, 32)])
def test_unrotated_rows_are_the_numpy_codecs_rows(type_name, dtype, heads, head_dim):
    x = values(tokens=131, heads=heads, head_dim=head_dim, dtype=dtype)
    assert_same(packed(x, type_name), reference(x, type_name), type_name)


@pytest.mark.parametrize("type_name", ["f16", "bf16"])
@by_dtype
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 128), (1, 80), (3, 80), (3, 5)])
def test_unquantized_rows_are_rounded_to_the_nearest(type_name, dtype, heads, head_dim):
    x = values(heads=heads, head_dim=head_dim, dtype=dtype)
    np.testing.assert_array_equal(packed(x, type_name), reference(x, type_name))
    np.testing.assert_array_equal(packed(x, type_name), native(x, type_name))


@by_type
def test_unrotated_rows_are_ggmls_but_for_ties(type_name):
    x = values(tokens=131, dtype=torch.float32)
    assert_near(packed(x, type_name), native(x, type_name), type_name, codes_off=1e-3)


@by_type
@by_dtype
@pytest.mark.parametrize("rotation", [64, 128, 256, 512])
def test_rotated_rows_are_the_numpy_codecs_and_ggmls(type_name, dtype, rotation):
    heads = max(1, 256 // rotation)
    x = values(1, 101, heads, head_dim=rotation, dtype=dtype, seed=rotation)
    rows = packed(x, type_name, rotation)
    assert_near(rows, reference(x, type_name, rotation), type_name)
    assert_near(rows, native(x, type_name, rotation), type_name)


@by_type
@pytest.mark.parametrize(("head_dim", "rotation"), [(192, 64), (128, 64), (256, 64), (384, 128)])
def test_rotation_may_be_a_part_of_the_head(type_name, head_dim, rotation):
    x = values(tokens=43, head_dim=head_dim)
    rows = packed(x, type_name, rotation)
    assert_near(rows, reference(x, type_name, rotation), type_name)


@by_any_type
@pytest.mark.parametrize("rotation", [0, 128])
@pytest.mark.parametrize(
    ("layers", "tokens", "heads"), [(1, 1, 1), (3, 1, 2), (1, 7, 3), (2, 65, 1)]
)
def test_any_number_of_tokens(type_name, rotation, layers, tokens, heads):
    rotation *= type_name in QUANTIZED
    x = values(layers, tokens, heads)
    rows = packed(x, type_name, rotation)
    want = reference(x, type_name, rotation)
    if type_name in QUANTIZED:
        assert_near(rows, want, type_name)
    else:
        np.testing.assert_array_equal(rows, want)


@by_any_type
def test_no_tokens(type_name):
    assert packed(values(tokens=0), type_name).shape[1] == 0


@by_any_type
@pytest.mark.parametrize("rotation", [0, 64])
def test_reads_views_of_a_pool(type_name, rotation):
    rotation *= type_name in QUANTIZED
    x = values(layers=3, tokens=9, head_dim=64)
    by_layer = torch.full((5, 30, 2, 64), torch.nan, dtype=x.dtype)
    by_layer[1:4, 11:20] = x
    by_cell = torch.full((30, 5, 2, 64), torch.nan, dtype=x.dtype)
    by_cell[11:20, 1:4] = x.transpose(0, 1)
    want = packed(x, type_name, rotation)
    for view in (by_layer[1:4, 11:20], by_cell.transpose(0, 1)[1:4, 11:20]):
        np.testing.assert_array_equal(packed(view, type_name, rotation), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rotation", [0, 128])
def test_offsets_past_32_bits(rotation):
    x = values(layers=2, tokens=2)
    pool = torch.empty(2**32 + 2**31, dtype=x.dtype, device="cuda")
    for strides in ((2**31 + 64, 256), (256, 2**31 + 64), (2**32, 2**31)):
        view = pool.as_strided(x.shape, (*strides, 128, 1))
        view.copy_(x)
        rows = packed(view, "q8_0", rotation)
        np.testing.assert_array_equal(rows, packed(x, "q8_0", rotation))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_past_32_bits():
    x = values(layers=1, tokens=1, heads=8)
    many = x.to(DEVICE).expand(1, 2**31 // 1088 + 100, 8, 128)
    rows = torch.empty(*many.shape[:2], 1088, dtype=torch.uint8, device="cuda")
    not_finite = torch.zeros(1, dtype=torch.int32, device="cuda")
    pack_rows_on_gpu(many, rows, not_finite, type_name="q8_0", rotation=128)
    assert (rows == rows[:, :1]).all()
    np.testing.assert_array_equal(rows[:, :1].cpu().numpy(), packed(x, "q8_0", 128))


samples = {
    "seed": st.integers(0, 2**32 - 1),
    "tokens": st.integers(1, 40),
    "rotation": st.sampled_from([0, 64, 128, 256]),
    "dtype": st.sampled_from(DTYPES),
    "offset": st.sampled_from([0.0, 3.0]),
}


def sample(seed, tokens, dtype, offset):
    x = values(tokens=tokens, heads=1, head_dim=256, dtype=torch.float32, seed=seed)
    return (x + offset * x.abs().amax(dim=(2, 3), keepdim=True)).to(dtype)


def lost(type_name, y):
    """What of each block's values may be lost: half a step, and what f16 loses of the scales."""
    peak = np.abs(y).max(axis=1, keepdims=True)
    # Minus the extreme has no code of its own: it takes the last one, a whole step below.
    half_step = {
        "q8_0": peak / 254,
        "q4_0": peak / 8,
        "q4_1": np.ptp(y, axis=1, keepdims=True) / 30,
        "q5_0": peak / 16,
        "q5_1": np.ptp(y, axis=1, keepdims=True) / 62,
        # The widest gap of levels is 24 of 127. The scale moves a little to suit most values.
        "iq4_nl": peak * np.diff(IQ4_NL_LEVELS).max() / 254 * 1.6,
    }[type_name]
    # f16 keeps a scale to 2**-11 of itself, and the smallest ones to 2**-25, times 127.
    return 1.001 * half_step + peak * 2**-9 + 2.0**-18


@by_type
@settings(max_examples=12, deadline=None)
@given(**samples)
def test_what_is_lost_is_half_a_step(type_name, seed, tokens, rotation, dtype, offset):
    x = sample(seed, tokens, dtype, offset)
    y = rotated(x, rotation).reshape(-1, 32)
    rows = packed(x, type_name, rotation).reshape(2 * tokens, -1)
    kept = decode(rows, type_name).reshape(-1, 32)
    assert (np.abs(kept - y) <= lost(type_name, y)).all()


@by_any_type
@settings(max_examples=6, deadline=None)
@given(**samples, data=st.data())
def test_rows_depend_on_their_own_token_alone(
    type_name, seed, tokens, rotation, dtype, offset, data
):
    rotation *= type_name in QUANTIZED
    x = sample(seed, tokens, dtype, offset)
    first = data.draw(st.integers(0, tokens - 1))
    end = data.draw(st.integers(first + 1, tokens))
    part = packed(x[1:, first:end], type_name, rotation)
    np.testing.assert_array_equal(part, packed(x, type_name, rotation)[1:, first:end])
    others = torch.randn_like(x)
    others[1:, first:end] = x[1:, first:end]
    np.testing.assert_array_equal(part, packed(others, type_name, rotation)[1:, first:end])


def extreme_rows():
    """(name, row of 256): what has no digits to spare, or ties."""
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(256).astype(np.float32)
    spike = np.zeros(256, np.float32)
    spike[77] = 1000
    opposite = np.where(np.arange(256) % 32 < 9, -1, 1).astype(np.float32)
    ties = (np.arange(256) % 255 - 127).astype(np.float32) / 2
    return {
        "zeros": np.zeros(256, np.float32),
        "minus zeros": -np.zeros(256, np.float32),
        "constant": np.full(256, 0.3, np.float32),
        "negative constant": np.full(256, -7, np.float32),
        "spike": spike,
        "spike in noise": normal + 30 * spike,
        "opposite extremes": opposite,
        "opposite extremes, reversed": -opposite,
        "ties": ties,
        "ties, reversed": ties[::-1].copy(),
        "small": normal * np.float32(1e-9),
        "scale overflows f16": normal * np.float32(1e9),
        "large": normal * np.float32(1e18),
    }


@by_type
@pytest.mark.parametrize("name", extreme_rows())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the reference overflows too
def test_extreme_rows_are_the_numpy_codecs_rows(type_name, name):
    row = torch.from_numpy(extreme_rows()[name]).reshape(1, 1, 2, 128)
    if type_name == "iq4_nl" and name == "large":
        pytest.skip("the sums behind the scale overflow, in ggml as well")
    assert_same(packed(row, type_name), reference(row, type_name), type_name)


@by_type
@pytest.mark.parametrize("rotation", [64, 128])
@pytest.mark.parametrize(
    "name", ["zeros", "constant", "negative constant", "spike", "spike in noise", "ties", "small"]
)
def test_extreme_rows_are_rotated(type_name, rotation, name):
    # What is left of sums that should cancel depends on their order: there are no codes to compare.
    row = torch.from_numpy(extreme_rows()[name]).reshape(1, 1, 2, 128)
    y = rotated(row, rotation).reshape(-1, 32)
    kept = decode(packed(row, type_name, rotation)[0], type_name).reshape(-1, 32)
    noise = np.abs(y).max() * 2**-20
    assert (np.abs(kept - y) <= lost(type_name, y) + noise).all()


@by_type
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_denormal_values_decode_to_nothing(type_name):
    x = torch.full((1, 2, 2, 64), 2.0**-140)
    x[:, :, :, ::3] *= -1
    for rotation in (0, 64):
        assert not decode(packed(x, type_name, rotation)[0], type_name).any()


@by_any_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rotation", [0, 64, 256])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of numpy
def test_layers_with_inf_or_nan_are_named(type_name, dtype, rotation):
    rotation *= type_name in QUANTIZED
    x = values(layers=4, tokens=35, heads=1, head_dim=256, dtype=dtype)
    x[0, -1, -1, -1] = torch.nan
    x[2, 0, 0, 0] = torch.inf
    x[3, 17, 0, 40] = -torch.inf
    x[3, 17, 0, 41] = torch.inf
    assert pack(x, type_name, rotation)[1] == [0, 2, 3]


def buffers():
    """Values, rows and flags that fit q8_0 at rotation 128."""
    return (
        torch.zeros(2, 3, 2, 128, device=DEVICE),
        torch.zeros(2, 3, 272, dtype=torch.uint8, device=DEVICE),
        torch.zeros(2, dtype=torch.int32, device=DEVICE),
    )


def at_odd_address(rows):
    return torch.zeros(rows.numel() + 1, dtype=rows.dtype, device=DEVICE)[1:].view_as(rows)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, rows, flags: (x.int(), rows, flags), "bfloat16.*, have int32"),
        (lambda x, rows, flags: (x[:, :, :1].expand_as(x), rows, flags), "token's heads"),
        (lambda x, rows, flags: (x, rows[:1], flags), r"rows: need .*\(2, 3, 272\).*\(1, 3, 272\)"),
        (lambda x, rows, flags: (x, rows.view(torch.int8), flags), "rows: need .*uint8.* int8"),
        (lambda x, rows, flags: (x, rows.mT.contiguous().mT, flags), r"strides \(816, 1, 3\)"),
        (lambda x, rows, flags: (x, rows, flags[:1]), r"not_finite: need contiguous \(2,\)"),
        (lambda x, rows, flags: (x, rows, flags.long()), "not_finite: need .*int32.* int64"),
        (lambda x, rows, flags: (x, rows.to("meta"), flags), "rows: need .*have meta"),
        (lambda x, rows, flags: (x, at_odd_address(rows), flags), "rows: need an even address"),
    ],
)
def test_buffers_that_do_not_fit_are_codec_errors(spoil, message):
    with pytest.raises(CodecError, match=message):
        pack_rows_on_gpu(*spoil(*buffers()), type_name="q8_0", rotation=128)


@pytest.mark.parametrize(
    ("type_name", "rotation", "head_dim", "error", "message"),
    [
        ("q8_0", 32, 128, CodecError, "divides head_dim 128, have 32"),
        ("q8_0", 96, 96, CodecError, r"one of \(0, 64, .* 512\) that divides head_dim 96, have 96"),
        ("q8_0", 256, 128, CodecError, "divides head_dim 128, have 256"),
        ("f16", 128, 128, CodecError, "rotation: need 0 for f16, have 128"),
        ("q3_0", 0, 128, ConfigError, "KV type 'q3_0': need one of f16"),
        ("q8_0", 0, 80, ConfigError, "need rows of a multiple of 32 elements, have 80"),
    ],
)
def test_rows_that_llama_cpp_has_not_are_refused(type_name, rotation, head_dim, error, message):
    x = torch.zeros(2, 3, 1, head_dim, device=DEVICE)
    with pytest.raises(error, match=message):
        pack_rows_on_gpu(x, *buffers()[1:], type_name=type_name, rotation=rotation)


def test_bench_cases_cover_every_type_and_head_dim():
    labels = [label for label, _ in pack_cases()]
    assert len(labels) == len(set(labels)) == 3 * len(KV_TYPES)
    assert "pack q4_0, head_dim 256" in labels
