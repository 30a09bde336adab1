import ctypes
import struct

import gguf
import llama_cpp
import numpy as np
import pytest
from tiny_models import tiny_shape, write_tiny_model

from hetero.errors import ModelError
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec

ARCHITECTURES = ["llama", "qwen2", "qwen3", "qwen3moe"]
LLAMA_CPP_ROPE_KINDS = {0: "norm", 2: "neox"}


def read_spec(path):
    return gguf_to_spec(GGUFFile.open(path))


def write_header(path, architecture="llama", *, without=(), **keys):
    """A file with an architecture's standard keys, some of them changed, and one tensor."""
    values = {
        "block_count": 4,
        "embedding_length": 64,
        "attention.head_count": 2,
        "context_length": 1024,
        "vocab_size": 300,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | {key.replace("__", "."): value for key, value in keys.items()}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        name = f"{architecture}.{key}"
        if key in without:
            continue
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_float32(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((300, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spec_says_what_the_model_was_made_of(tmp_path, architecture):
    options = {"head_dim": 96, "num_heads": 6, "hidden": 512, "tied": True}
    path = write_tiny_model(tmp_path / "m.gguf", architecture=architecture, **options)
    shape = tiny_shape(architecture=architecture, **options)
    spec = read_spec(path)
    assert (spec.architecture, spec.name) == (architecture, shape.name)
    assert (spec.num_layers, spec.hidden_size, spec.ffn_size) == (3, 512, 384)
    assert (spec.num_heads, spec.num_kv_heads) == (6, 2)
    assert (spec.head_dim_k, spec.head_dim_v) == (96, 96)
    assert (spec.vocab_size, spec.context_length) == (512, 32768)
    assert spec.norm_eps == pytest.approx(shape.norm_eps)
    assert spec.tied_embeddings
    assert (spec.qkv_bias, spec.qk_norm) == (shape.qkv_bias, shape.qk_norm)
    assert (spec.num_experts, spec.num_experts_used) == (
        shape.num_experts,
        shape.num_experts_used,
    )
    assert spec.sliding_window is None
    assert spec.num_parameters == shape.num_parameters
    assert spec.file_bytes == path.stat().st_size


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spec_agrees_with_llama_cpp(tmp_path, architecture):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture=architecture, weight_type="q8_0", rope_scaling="yarn"
    )
    spec = read_spec(path)
    with Model(path) as model:
        pointer = model.pointer
        assert spec.num_layers == llama_cpp.llama_model_n_layer(pointer)
        assert spec.hidden_size == llama_cpp.llama_model_n_embd(pointer)
        assert spec.num_heads == llama_cpp.llama_model_n_head(pointer)
        assert spec.num_kv_heads == llama_cpp.llama_model_n_head_kv(pointer)
        assert spec.context_length == llama_cpp.llama_model_n_ctx_train(pointer)
        assert spec.vocab_size == model.vocab.num_tokens
        assert spec.num_parameters == llama_cpp.llama_model_n_params(pointer)
        assert spec.weight_bytes == llama_cpp.llama_model_size(pointer)
        assert 1 / spec.rope.factor == llama_cpp.llama_model_rope_freq_scale_train(pointer)
        assert spec.rope.kind == LLAMA_CPP_ROPE_KINDS[llama_cpp.llama_model_rope_type(pointer)]
        description = ctypes.create_string_buffer(200)
        llama_cpp.llama_model_desc(pointer, description, len(description))
        assert spec.quantization in description.value.decode()


def rope_by_spec(rope, x_THD, factors):
    """RoPE as RopeSpec's docstring defines it, in float64."""
    num_tokens = len(x_THD)
    pair = np.arange(rope.dim // 2)
    theta = np.arange(num_tokens)[:, None] * rope.base ** (-2 * pair / rope.dim)
    if rope.has_factors:
        theta = theta / factors
    angle = theta / rope.factor
    if rope.ext_factor:

        def corr(beta):
            turns = rope.original_context / (2 * np.pi * beta)
            return rope.dim * np.log(turns) / (2 * np.log(rope.base))

        low = max(0, np.floor(corr(rope.beta_fast)))
        high = min(rope.dim - 1, np.ceil(corr(rope.beta_slow)))
        mix = rope.ext_factor * (1 - np.clip((pair - low) / max(0.001, high - low), 0, 1))
        angle = angle * (1 - mix) + theta * mix
    cos_TD = (np.cos(angle) * rope.magnitude)[:, None]
    sin_TD = (np.sin(angle) * rope.magnitude)[:, None]
    out = np.empty_like(x_THD)
    half = rope.dim // 2
    first, second = (
        (np.s_[..., 0::2], np.s_[..., 1::2])
        if rope.kind == "norm"
        else (np.s_[..., :half], np.s_[..., half:])
    )
    out[first] = x_THD[first] * cos_TD - x_THD[second] * sin_TD
    out[second] = x_THD[first] * sin_TD + x_THD[second] * cos_TD
    return out


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        ("llama", None),
        ("llama", "linear"),
        ("llama", "yarn"),
        ("llama", "llama3"),
        ("qwen3", None),
        ("qwen3", "yarn"),
    ],
)
def test_rope_spec_gives_the_keys_llama_cpp_caches(tmp_path, architecture, scaling):
    path = write_tiny_model(
        tmp_path / "m.gguf",
        architecture=architecture,
        rope_scaling=scaling,
        num_layers=1,
        weight_type="f32",
    )
    file = GGUFFile.open(path)
    spec = gguf_to_spec(file)
    tokens = np.random.default_rng(1).integers(3, 512, 200)

    def weights(name):
        return file.dequantize(name).astype(np.float64)

    hidden = rms_norm(
        weights("token_embd.weight")[tokens], weights("blk.0.attn_norm.weight"), spec.norm_eps
    )
    k_THD = (hidden @ weights("blk.0.attn_k.weight").T).reshape(200, spec.num_kv_heads, -1)
    if spec.qk_norm:
        k_THD = rms_norm(k_THD, weights("blk.0.attn_k_norm.weight"), spec.norm_eps)
    factors = weights("rope_freqs.weight") if spec.rope.has_factors else None
    want = rope_by_spec(spec.rope, k_THD, factors).reshape(200, -1)

    np.testing.assert_allclose(cached_keys(path, tokens, want.shape), want, rtol=3e-3, atol=3e-3)


def cached_keys(path, tokens, shape):
    """The f16 K rows of a one-layer model's cache, cut out of llama.cpp's state blob."""
    config = ContextConfig(
        num_sequences=1,
        tokens_per_sequence=256,
        unified=True,
        k_ggml_type=1,
        v_ggml_type=1,
        num_threads=1,
    )
    with Model(path) as model, Context(model, config) as context:
        batch = Batch(len(tokens))
        batch.set_prompt(tokens, 0, 0, want_last=True)
        context.decode(batch)
        blob = context.export_sequence(0)
    # Four header words, three words a cell, two words, then the layer's type and row size.
    start = 16 + 12 * len(tokens) + 8
    assert struct.unpack_from("<iQ", blob, start) == (1, shape[1] * 2)
    rows = blob[start + 12 : start + 12 + shape[0] * shape[1] * 2]
    return rows.view(np.float16).reshape(shape).astype(np.float64)


def test_split_files_have_the_spec_of_the_whole(tmp_path):
    whole = read_spec(write_tiny_model(tmp_path / "m.gguf"))
    split = read_spec(write_tiny_model(tmp_path / "m.gguf", split_max_tensors=8))
    assert split.weight_bytes == whole.weight_bytes
    assert split.file_bytes > whole.file_bytes
    assert (split.num_parameters, split.rope) == (whole.num_parameters, whole.rope)


def test_architectures_we_do_not_name_have_a_spec(tmp_path):
    spec = read_spec(
        write_header(tmp_path / "m.gguf", "gemma3", attention__sliding_window=512, file_type=1)
    )
    assert (spec.architecture, spec.rope.kind, spec.sliding_window) == ("gemma3", "neox", 512)
    # Defaults of llama.cpp: as many KV heads as heads, heads that divide the hidden size.
    assert (spec.num_kv_heads, spec.head_dim_k, spec.head_dim_v) == (2, 32, 32)
    assert (spec.rope.base, spec.rope.dim, spec.rope.scaling) == (10000.0, 32, "none")


def test_a_window_llama_cpp_ignores_is_none(tmp_path):
    spec = read_spec(write_header(tmp_path / "m.gguf", attention__sliding_window=4096))
    assert spec.sliding_window is None


def test_values_per_layer_are_one_if_equal(tmp_path):
    spec = read_spec(write_header(tmp_path / "m.gguf", attention__head_count_kv=[2, 2, 2, 2]))
    assert spec.num_kv_heads == 2
    path = write_header(tmp_path / "m.gguf", attention__head_count_kv=[2, 0, 1, 2])
    with pytest.raises(ModelError, match="head_count_kv: need one value for all layers, have 0"):
        read_spec(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention__head_count", 0, "no attention heads"),
        ("block_count", 2.5, "llama.block_count: not a count: 2.5"),
        ("block_count", float("nan"), "llama.block_count: need a number, have nan"),
        ("rope__scaling__factor", -2.0, "more than 0, have -2.0"),
        ("rope__scaling__type", "magic", "need none, linear, yarn or longrope, have 'magic'"),
        ("embedding_length", "wide", "llama.embedding_length: need a number, have 'wide'"),
    ],
)
def test_nonsense_is_refused(tmp_path, key, value, message):
    path = write_header(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(ModelError, match=message):
        read_spec(path)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count"])
def test_a_missing_key_is_named(tmp_path, key):
    path = write_header(tmp_path / "m.gguf", "mamba", without=[key])
    with pytest.raises(ModelError, match=rf"mamba\.{key}: need a number, have None"):
        read_spec(path)


def test_scaling_none_ignores_its_factor(tmp_path):
    path = write_header(tmp_path / "m.gguf", rope__scaling__type="none", rope__scaling__factor=8.0)
    assert read_spec(path).rope.factor == 1.0
    # Without a type, a factor means linear scaling.
    path = write_header(tmp_path / "m.gguf", rope__scaling__factor=8.0)
    assert (read_spec(path).rope.scaling, read_spec(path).rope.factor) == ("linear", 8.0)


@pytest.mark.parametrize(
    ("file_type", "label"),
    [(15, "Q4_K_M"), (0, "F32"), (1024, "F16"), (999, "F16")],
)
def test_quantization_is_the_label_or_the_type_of_most_bytes(tmp_path, file_type, label):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    for key in ("block_count", "embedding_length", "context_length", "vocab_size"):
        writer.add_uint32(f"llama.{key}", 64)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_spec(path).quantization == label
