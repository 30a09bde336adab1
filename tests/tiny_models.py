"""Small random GGUF models for tests: real architectures, real quantization, milliseconds to run.

Weights are scaled so that activations keep their magnitude and attention is not flat: q and k are
twice as large as usual, else every position would look alike and a lost KV row would not show.
"""

import ctypes
from pathlib import Path
from typing import Literal

import gguf
import llama_cpp
import numpy as np

from hetero.model.shapes import RopeScaling, Shape, tensor_shapes
from hetero.model.synth import add_metadata, rope_factors

WeightType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"]

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4_k": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
}


def tiny_shape(
    *,
    architecture: Literal["llama", "qwen2", "qwen3", "qwen3moe"] = "llama",
    head_dim: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    num_layers: int = 3,
    hidden: int = 256,
    ffn: int = 384,
    vocab: int = 512,
    tied: bool = False,
    rope_scaling: RopeScaling | None = None,
    context_length: int = 32768,
) -> Shape:
    moe = architecture == "qwen3moe"
    return Shape(
        name=f"tiny-{architecture}",
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_size=ffn,
        vocab_size=vocab,
        context_length=context_length,
        norm_eps=1e-5 if architecture == "llama" else 1e-6,
        rope_base=10000.0,
        rope_scaling=rope_scaling or "none",
        rope_factor=4.0 if rope_scaling else 1.0,
        # Small, so that a 300-token prompt reaches beyond it and scaling shows.
        rope_original_context=64,
        tied_embeddings=tied,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "qwen3moe"),
        num_experts=4 if moe else 0,
        num_experts_used=2 if moe else 0,
        expert_ffn_size=ffn if moe else 0,
    )


def write_tiny_model(
    path: str | Path,
    *,
    architecture: Literal["llama", "qwen2", "qwen3", "qwen3moe"] = "llama",
    head_dim: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    num_layers: int = 3,
    hidden: int = 256,
    ffn: int = 384,
    vocab: int = 512,
    tied: bool = False,
    weight_type: WeightType = "f16",
    rope_scaling: RopeScaling | None = None,
    context_length: int = 32768,
    seed: int = 0,
    split_max_tensors: int = 0,
) -> Path:
    """Write a random model to `path` and return it; the same arguments give the same bytes.

    Token ids: 0 BOS, 1 EOS, 2 <|im_start|>, 3-258 one per byte, then words. Any text tokenizes.
    `q4_k` and `q6_k` need rows of 256: other tensors become q5_0 and q8_0, as in llama-quantize.
    `split_max_tensors` above zero writes `<stem>-00001-of-0000N.gguf` parts and returns the first.
    """
    shape = tiny_shape(
        architecture=architecture,
        head_dim=head_dim,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        num_layers=num_layers,
        hidden=hidden,
        ffn=ffn,
        vocab=vocab,
        tied=tied,
        rope_scaling=rope_scaling,
        context_length=context_length,
    )
    rng = np.random.default_rng(seed)
    path = Path(path)
    writer = gguf.GGUFWriter(path, shape.architecture, split_max_tensors=split_max_tensors)
    add_metadata(writer, shape, FILE_TYPES[weight_type])
    if shape.rope_scaling == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(shape))
    for name, dims in tensor_shapes(shape).items():
        values = _random_values(rng, name, dims, tied)
        # Norms, biases and the router stay f32, as in every published file.
        if len(dims) == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            data, kind = _quantize(values, weight_type)
            writer.add_tensor(name, data, raw_dtype=kind)
    num_parts = len(writer.tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if num_parts > 1:
        return path.with_name(f"{path.stem}-00001-of-{num_parts:05d}.gguf")
    return path


def _random_values(
    rng: np.random.Generator, name: str, dims: tuple[int, ...], tied: bool
) -> np.ndarray:
    values = rng.standard_normal(dims, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * values
    if name.endswith(".bias"):
        return 0.5 * values
    if name == "token_embd.weight" and not tied:
        return values
    scale = dims[-1] ** -0.5
    if "attn_q." in name or "attn_k." in name:
        scale *= 2
    return values * np.float32(scale)


def _quantize(
    values: np.ndarray, weight_type: WeightType
) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    kind = gguf.GGMLQuantizationType[weight_type.upper()]
    if weight_type in ("q4_k", "q6_k"):
        if values.shape[-1] % 256 == 0:
            return _quantize_by_ggml(values, kind), kind
        fallback = gguf.GGMLQuantizationType
        kind = fallback.Q5_0 if weight_type == "q4_k" else fallback.Q8_0
    return gguf.quants.quantize(values, kind), kind


def _quantize_by_ggml(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The gguf package reads K-quants but does not write them."""
    ggml = _ggml_base()
    values = np.ascontiguousarray(values)
    rows, cols = values.size // values.shape[-1], values.shape[-1]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((*values.shape[:-1], cols // block_size * block_bytes), np.uint8)
    written = ggml.ggml_quantize_chunk(
        int(kind), values.ctypes.data, out.ctypes.data, 0, rows, cols, None
    )
    assert written == out.nbytes
    return out


def _ggml_base() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library
