import shutil
import tracemalloc
from collections import namedtuple
from dataclasses import replace

import gguf
import llama_cpp
import numpy as np
import pytest
from tiny_models import tiny_shape, write_tiny_model

from hetero.errors import ConfigError, PlanError
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.model import synth
from hetero.model.gguf_file import GGUFFile
from hetero.model.random_blocks import random_data
from hetero.model.random_spec import random_spec
from hetero.model.shapes import QUANTS, SHAPES, tensor_shapes
from hetero.model.spec import gguf_to_spec
from hetero.model.synth import synthesize, tensor_type, write_synthetic


def logits_after_a_prompt(path):
    config = ContextConfig(
        num_sequences=1,
        tokens_per_sequence=256,
        unified=True,
        k_ggml_type=1,
        v_ggml_type=1,
        num_threads=1,
    )
    with Model(path) as model, Context(model, config) as context:
        tokens = model.vocab.tokenize(
            "any text: \u00e9\u4e16\U0001f600", add_special=True, parse_special=True
        )
        batch = Batch(64)
        batch.set_prompt(tokens, 0, 0, want_last=True)
        context.decode(batch)
        return context.logits(1)[0].copy()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3moe"])
@pytest.mark.parametrize("quant", QUANTS)
def test_llama_cpp_runs_it_with_sane_logits(tmp_path, architecture, quant):
    shape = tiny_shape(
        architecture=architecture,
        ffn=512,
        rope_scaling="llama3" if architecture == "llama" else None,
    )
    path = write_synthetic(shape, quant, tmp_path / "m.gguf")
    logits = logits_after_a_prompt(path)
    assert np.isfinite(logits).all()
    # A row of the output matrix times a normalized activation: deviation 1 by construction.
    assert 0.5 < logits.std() < 2.0
    assert abs(logits.mean()) < 0.3


@pytest.mark.parametrize("scaling", [None, "linear", "yarn", "llama3"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3moe"])
@pytest.mark.parametrize("quant", ["f16", "q4_k_m"])
def test_a_spec_is_known_before_anything_is_written(tmp_path, architecture, scaling, quant):
    shape = tiny_shape(
        architecture=architecture, rope_scaling=scaling, tied=architecture == "qwen2"
    )
    written = gguf_to_spec(GGUFFile.open(write_synthetic(shape, quant, tmp_path / "m.gguf")))
    # A file holds the epsilon as float32, and a header and padding.
    assert written.norm_eps == pytest.approx(shape.norm_eps)
    expected = replace(written, norm_eps=shape.norm_eps, file_bytes=written.weight_bytes)
    assert random_spec(shape, quant) == expected


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
)
def test_random_blocks_have_the_deviation_asked_for(kind):
    kind = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)
    # An odd chunk size: chunks must be whole blocks all the same.
    data = np.concatenate(list(random_data(kind, 2**18, 0.02, rng, chunk_bytes=9999)))
    values = gguf.quants.dequantize(data, kind)
    assert values.size == 2**18
    assert values.std() == pytest.approx(0.02, rel=0.03)
    assert abs(values.mean()) < 0.02 * 0.01
    assert len(np.unique(values)) >= 16


@pytest.mark.parametrize(
    ("quant", "hidden", "tied"),
    [
        ("q4_k_m", 256, False),
        ("q4_k_m", 256, True),
        ("q4_k_m", 192, False),
        ("q5_k_m", 192, True),
        ("q4_0", 256, False),
        ("q4_0", 192, True),
        ("q8_0", 256, False),
        ("q6_k", 192, False),
    ],
)
def test_types_are_those_llama_quantize_chooses(tmp_path, quant, hidden, tied):
    options = {"num_layers": 9, "num_heads": 4, "hidden": hidden, "ffn": 256, "tied": tied}
    source = write_tiny_model(tmp_path / "f16.gguf", weight_type="f16", **options)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(synth._QUANTS[quant][1])
    params.nthread = 1
    target = tmp_path / "quantized.gguf"
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert status == 0
    want = {name: tensor.type for name, tensor in GGUFFile.open(target).tensors.items()}
    shape = tiny_shape(**options)
    have = {
        name: tensor_type(shape, quant, name, dims) for name, dims in tensor_shapes(shape).items()
    }
    assert have == want


def test_the_spec_of_the_file_is_the_shape(tmp_path):
    shape = tiny_shape(architecture="qwen3moe", ffn=512)
    spec = gguf_to_spec(GGUFFile.open(write_synthetic(shape, "q4_k_m", tmp_path / "m.gguf")))
    assert (spec.name, spec.architecture, spec.quantization) == (
        "tiny-qwen3moe",
        "qwen3moe",
        "Q4_K_M",
    )
    assert spec.num_parameters == shape.num_parameters
    assert (spec.num_experts, spec.num_experts_used) == (4, 2)


def test_norms_are_one_and_rope_factors_are_the_published_ones(tmp_path):
    path = write_synthetic(tiny_shape(rope_scaling="llama3"), "q4_0", tmp_path / "m.gguf")
    file = GGUFFile.open(path)
    np.testing.assert_array_equal(file.dequantize("blk.0.attn_norm.weight"), 1.0)
    # Llama-3.1-8B's rope_freqs.weight: nothing for the fast pairs, 8 for the slow, between a ramp.
    factors = synth.rope_factors(SHAPES["llama-3.1-8b"])
    assert factors.shape == (64,)
    np.testing.assert_array_equal(factors[:29], 1.0)
    np.testing.assert_allclose(factors[35:], 8.0, rtol=1e-6)
    assert (np.diff(factors[28:36]) > 0).all()


def test_the_same_seed_gives_the_same_file(tmp_path):
    shape = tiny_shape()
    first, again, other = (
        write_synthetic(shape, "q4_0", tmp_path / f"{i}.gguf", seed=seed).read_bytes()
        for i, seed in enumerate([5, 5, 6])
    )
    assert first == again
    assert first != other


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "CHUNK_BYTES", 2**18)
    shape = tiny_shape(hidden=1024, ffn=4096, num_layers=4)
    tracemalloc.start()
    path = write_synthetic(shape, "q8_0", tmp_path / "m.gguf")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 50 * 2**20
    assert peak_bytes < 4 * 2**20


def test_text_survives_the_tokenizer(tmp_path):
    path = write_synthetic(tiny_shape(vocab=1000), "f16", tmp_path / "m.gguf")
    text = "Any text,\n\ttabs \u00e9\u4e16\u754c \U0001f600 <|im_start|> and 123\x00\x7f."
    with Model(path, vocab_only=True) as model:
        tokens = model.vocab.tokenize(text, add_special=False, parse_special=False)
        assert model.vocab.detokenize(tokens) == text
        assert model.vocab.num_tokens == 1000
        # Every token that isn't a control token shows as text.
        assert all(model.vocab.piece(token) for token in range(3, 1000))


def test_progress_ends_at_the_total(tmp_path):
    steps = []
    path = write_synthetic(
        tiny_shape(), "q8_0", tmp_path / "m.gguf", progress=lambda *step: steps.append(step)
    )
    done = [step[0] for step in steps]
    total = steps[-1][1]
    assert done == sorted(done)
    assert done[-1] == total <= path.stat().st_size


def test_an_existing_file_stays_unless_forced(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists already; --force replaces it"):
        write_synthetic(tiny_shape(), "q4_0", path)
    assert path.read_text() == "precious"
    write_synthetic(tiny_shape(), "q4_0", path, force=True)
    assert GGUFFile.open(path).tensors


def test_a_failure_leaves_nothing_behind_and_the_old_file_alone(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("precious")

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tiny_shape(), "q4_0", path, force=True, progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_text() == "precious"


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * 2**30, 8 * 2**30, 2 * 2**30))
    with pytest.raises(PlanError, match=r"need 4\.3 GiB of disk, have 2\.0 GiB free"):
        synthesize("llama-3.1-8b-q4_0", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_unusable_places_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no directory"):
        synthesize("llama-3.2-1b", tmp_path / "none" / "m.gguf")
    with pytest.raises(ConfigError, match="a directory, need a file name"):
        synthesize("llama-3.2-1b", tmp_path)
