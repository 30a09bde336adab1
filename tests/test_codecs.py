"""The numpy codecs and ggml's SIMD quantizers describe the same bytes."""

import gguf
import numpy as np
import pytest

from hetero.errors import CodecError
from hetero.kv.codecs import decode, encode
from hetero.kv.types import KV_TYPES, kv_type
from hetero.llama.quantize import quantize


def values(rows=64, width=256, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.float32(10.0) ** rng.integers(-3, 3, (rows, 1))
    return (rng.standard_normal((rows, width), dtype=np.float32) * scales).astype(np.float32)


def native(x, type_name):
    element = kv_type(type_name)
    out = np.empty((len(x), element.row_bytes(x.shape[1])), np.uint8)
    quantize(np.ascontiguousarray(x), element.ggml_id, out)
    return out


@pytest.mark.parametrize("type_name", KV_TYPES)
def test_simd_bytes_equal_the_reference_but_for_rounding_ties(type_name):
    x = values()
    differing = native(x, type_name) != encode(x, type_name)
    assert differing.mean() < 1e-3


@pytest.mark.parametrize("type_name", KV_TYPES)
def test_simd_and_reference_decode_to_the_same_values_within_one_code(type_name):
    x = values()
    ours = decode(encode(x, type_name), type_name)
    theirs = decode(native(x, type_name), type_name)
    step = np.abs(x).reshape(len(x), -1, 32).max(axis=2, keepdims=True) / 7
    gap = np.abs(ours - theirs).reshape(len(x), -1, 32)
    assert (gap <= step * 1.01).all()


@pytest.mark.parametrize("type_name", KV_TYPES)
def test_reference_decodes_ggml_files_the_same_as_the_gguf_package(type_name):
    rows = native(values(), type_name)
    theirs = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kv_type(type_name).ggml_id))
    np.testing.assert_array_equal(decode(rows, type_name), theirs)


RELATIVE_ERROR = {
    "f16": 1e-3,
    "bf16": 8e-3,
    "q8_0": 8e-3,
    "q5_1": 0.06,
    "q5_0": 0.07,
    "q4_1": 0.11,
    "q4_0": 0.14,
    "iq4_nl": 0.12,
}


@pytest.mark.parametrize(("type_name", "relative_error"), RELATIVE_ERROR.items())
def test_round_trip_error_is_what_the_bit_width_allows(type_name, relative_error):
    x = values(seed=3)
    error = np.linalg.norm(decode(encode(x, type_name), type_name) - x) / np.linalg.norm(x)
    assert relative_error / 20 < error < relative_error


@pytest.mark.parametrize("type_name", KV_TYPES)
def test_zero_blocks_encode_to_zero(type_name):
    x = np.zeros((2, 64), np.float32)
    for rows in (encode(x, type_name), native(x, type_name)):
        assert not decode(rows, type_name).any()


def test_non_finite_values_are_refused():
    x = values()
    x[3, 5] = np.nan
    with pytest.raises(CodecError, match="q8_0: need finite values"):
        encode(x, "q8_0")


def test_unknown_type_names_the_known_ones():
    with pytest.raises(CodecError, match="codec 'q3_0': need one of f16, bf16"):
        encode(values(), "q3_0")
