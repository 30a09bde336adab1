"""The kernels' values are gguf-py's, for every bit pattern a block can hold."""

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gpu_or_interpreter import DEVICE

from hetero.errors import CodecError, ModelError
from hetero.experiment.kernel_bench.dequantize_cases import dequantize_cases
from hetero.experiment.kernel_bench.torch_dequantize import torch_dequantize
from hetero.prefill.kernels.dequantize import DEQUANTIZABLE, dequantize

Type = gguf.GGMLQuantizationType
KINDS = sorted(DEQUANTIZABLE, key=lambda kind: kind.name)
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Where a block keeps its f16 scales. Its other bytes may be anything.
F16_OFFSETS = {
    Type.F16: [0],
    Type.Q8_0: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}


def num_values(kind, num_blocks):
    return num_blocks * gguf.GGML_QUANT_SIZES[kind][0]


def random_blocks(kind, rows, num_blocks, scale=None, seed=0):
    """(rows, row_bytes) of random bytes. Scales are any finite f16, or normal around `scale`."""
    rng = np.random.default_rng(seed)
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (rows * num_blocks, block_bytes), np.uint8)
    for offset in F16_OFFSETS.get(kind, ()):
        if scale is None:
            bits = rng.integers(0, 0x7C00, len(blocks), np.uint16)
            halves = bits | rng.integers(0, 2, len(blocks), np.uint16) << 15
        else:
            halves = (rng.standard_normal(len(blocks)) * scale).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    if kind in (Type.F32, Type.BF16):
        values = rng.standard_normal(len(blocks)).astype(np.float32)
        blocks = np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
    return blocks.reshape(rows, num_blocks * block_bytes)


def reference(blocks, kind):
    return torch.from_numpy(np.array(gguf.quants.dequantize(blocks, kind), np.float32))


def rounded(values, dtype, kind):
    """To `dtype` as the device rounds: Triton's interpreter cuts float32 off to make bfloat16."""
    if dtype == torch.bfloat16 and DEVICE == "cpu" and gguf.GGML_QUANT_SIZES[kind][0] > 1:
        values = (values.view(torch.int32) & -65536).view(torch.float32)
    return values.to(dtype)


def dequantized(blocks, kind, dtype=torch.float32):
    blocks_RB = torch.from_numpy(blocks).to(DEVICE)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    num_cols = blocks_RB.shape[1] // block_bytes * block_values
    out_RC = torch.full((len(blocks), num_cols), torch.nan, dtype=dtype, device=DEVICE)
    dequantize(blocks_RB, kind, out_RC)
    return out_RC.cpu()


def assert_same(have, want):
    torch.testing.assert_close(have, want, rtol=0, atol=0, equal_nan=True)


@by_kind
def test_any_bytes_mean_what_gguf_reads_in_them(kind):
    blocks = random_blocks(kind, rows=5, num_blocks=33)
    assert_same(dequantized(blocks, kind), reference(blocks, kind))


@by_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_rounded_once(kind, dtype):
    blocks = random_blocks(kind, rows=3, num_blocks=18, scale=0.01)
    want = rounded(reference(blocks, kind), dtype, kind)
    assert_same(dequantized(blocks, kind, dtype), want)


@by_kind
def test_every_code_and_every_packed_scale_is_met(kind):
    # One block per byte value, which fills the block: fields of all widths take all their values.
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.repeat(np.arange(256, dtype=np.uint8)[:, None], block_bytes, axis=1)
    for offset in F16_OFFSETS.get(kind, ()):
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    assert_same(dequantized(blocks, kind), reference(blocks, kind))


def ggml_quantize(values, kind):
    """By llama.cpp's reference quantizers, as its files are made."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    rows, num_cols = values.shape
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.empty((rows, num_cols // block_values * block_bytes), np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, blocks.ctypes.data, 0, rows, num_cols, None
    )
    assert written == blocks.nbytes
    return blocks


@by_kind
def test_quantized_floats_come_back(kind):
    values = np.random.default_rng(1).standard_normal((3, 512), np.float32)
    blocks = ggml_quantize(values, kind)
    have = dequantized(blocks, kind)
    assert_same(have, reference(blocks, kind))
    # 2-bit codes keep a third of a normal deviation, 8-bit codes a hundredth of a percent.
    assert (have - torch.from_numpy(values)).square().mean() < 0.1


@by_kind
@pytest.mark.parametrize(("rows", "num_blocks"), [(1, 1), (3, 1), (1, 129), (7, 5)])
def test_any_number_of_blocks(kind, rows, num_blocks):
    blocks = random_blocks(kind, rows, num_blocks, scale=0.1)
    assert_same(dequantized(blocks, kind), reference(blocks, kind))


@by_kind
def test_no_rows(kind):
    assert dequantized(random_blocks(kind, 1, 2)[:0], kind).shape == (0, num_values(kind, 2))


@by_kind
def test_writes_its_part_of_a_larger_buffer_and_nothing_else(kind):
    blocks = random_blocks(kind, rows=3, num_blocks=3, scale=0.1)
    fused_RC = torch.full((8, num_values(kind, 3)), 7.0, device=DEVICE)
    dequantize(torch.from_numpy(blocks).to(DEVICE), kind, fused_RC[2:5])
    assert_same(fused_RC[2:5].cpu(), reference(blocks, kind))
    assert (fused_RC[:2] == 7).all()
    assert (fused_RC[5:] == 7).all()


@by_kind
def test_reads_rows_of_a_larger_buffer(kind):
    blocks = random_blocks(kind, rows=6, num_blocks=3, scale=0.1)
    out_RC = torch.empty((2, num_values(kind, 3)), device=DEVICE)
    dequantize(torch.from_numpy(blocks).to(DEVICE)[3:5], kind, out_RC)
    assert_same(out_RC.cpu(), reference(blocks[3:5], kind))


@by_kind
def test_gathered_rows(kind):
    blocks = random_blocks(kind, rows=9, num_blocks=2, scale=0.1)
    token_ids = torch.tensor([8, 0, 3, 3], device=DEVICE)
    out_RC = torch.empty((4, num_values(kind, 2)), device=DEVICE)
    dequantize(torch.from_numpy(blocks).to(DEVICE)[token_ids], kind, out_RC)
    assert_same(out_RC.cpu(), reference(blocks, kind)[token_ids.cpu()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q6_K], ids=lambda kind: kind.name)
def test_offsets_past_32_bits(kind):
    rows = 2**31 // num_values(kind, 16) + 1
    last = random_blocks(kind, 1, 16, scale=0.1)
    blocks_RB = torch.zeros((rows, last.shape[1]), dtype=torch.uint8, device="cuda")
    blocks_RB[-1] = torch.from_numpy(last[0])
    out_RC = torch.empty((rows, num_values(kind, 16)), dtype=torch.float16, device="cuda")
    dequantize(blocks_RB, kind, out_RC)
    assert_same(out_RC[-1:].cpu(), reference(last, kind).half())
    assert not out_RC[:-1].any()


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q3_K, Type.Q4_K, Type.IQ4_XS])
def test_scales_that_are_not_finite_show_in_the_values(kind, bits):
    blocks = random_blocks(kind, rows=1, num_blocks=2, scale=0.1)
    offset = F16_OFFSETS[kind][0]
    blocks[0, offset : offset + 2] = np.array([bits], np.uint16).view(np.uint8)
    with np.errstate(invalid="ignore"):
        have, want = dequantized(blocks, kind), reference(blocks, kind)
    assert not want[0, : num_values(kind, 1)].isfinite().any()
    assert_same(have, want)


@by_kind
def test_torch_peer_agrees(kind):
    blocks = random_blocks(kind, rows=3, num_blocks=5)
    have = torch_dequantize(torch.from_numpy(blocks).to(DEVICE), kind, torch.float32)
    assert_same(have.cpu(), reference(blocks, kind))


@by_kind
def test_torch_peer_in_half_precision_is_near(kind):
    blocks = random_blocks(kind, rows=3, num_blocks=5, scale=1e-3)
    have = torch_dequantize(
        torch.from_numpy(blocks).to(DEVICE), kind, torch.bfloat16, arithmetic=torch.float16
    )
    want = reference(blocks, kind)
    torch.testing.assert_close(have.cpu().float(), want, rtol=1e-2, atol=want.abs().max() * 1e-2)


def test_torch_peer_refuses_unknown_types():
    with pytest.raises(ModelError, match="IQ2_XXS: torch_dequantize does not know it"):
        torch_dequantize(torch.zeros(1, 66, dtype=torch.uint8), Type.IQ2_XXS, torch.float32)


def test_unsupported_type_is_model_error():
    blocks_RB, out_RC = torch.zeros(1, 66, dtype=torch.uint8), torch.zeros(1, 256)
    with pytest.raises(ModelError, match=r"IQ2_XXS: need one of BF16, .*: use --prefill llama"):
        dequantize(blocks_RB, Type.IQ2_XXS, out_RC)


def q4_k_buffers(rows=2, num_blocks=2, dtype=torch.float32):
    blocks_RB = torch.zeros(rows, 144 * num_blocks, dtype=torch.uint8, device=DEVICE)
    return blocks_RB, torch.zeros(rows, 256 * num_blocks, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda blocks, out: (blocks[:, :-1].contiguous(), out),
            "whole blocks, 144 bytes each, have 287",
        ),
        (lambda blocks, out: (blocks[:, :144], out[:, :256].contiguous()), "need contiguous"),
        (lambda blocks, out: (blocks.view(torch.int8), out), "uint8, have .* torch.int8"),
        (lambda blocks, out: (blocks.view(-1), out), r"have \(576,\)"),
        (lambda blocks, out: (blocks, out[:1]), r"room for \(2, 512\).*have \(1, 512\)"),
        (lambda blocks, out: (blocks, out[:, :256]), r"room for \(2, 512\).*have \(2, 256\)"),
        (lambda blocks, out: (blocks[:, :144].contiguous(), out[:, :256]), r"strides \(512, 1\)"),
        (lambda blocks, out: (blocks, out.int()), "bfloat16, float16 or float32, have torch.int32"),
        (lambda blocks, out: (blocks, out.to("meta")), "on one device"),
        (lambda blocks, out: (blocks.view(-1)[4:292].view(1, 288), out[:1]), "4 bytes past it"),
    ],
)
def test_buffers_that_do_not_fit_are_codec_errors(spoil, message):
    with pytest.raises(CodecError, match=message):
        dequantize(*[(pair := spoil(*q4_k_buffers()))[0], Type.Q4_K, pair[1]])


def test_bench_cases_cover_every_kernel():
    labels = [label for label, _ in dequantize_cases()]
    assert len(labels) == len(DEQUANTIZABLE) - 3
    assert "dequantize Q4_K" in labels
