"""The torch engine with Triton's kernels throughout, in the interpreter where there is no GPU."""

import json

import gguf
import numpy as np
import pytest
from float64_reference import forward, relative_error
from gpu_or_interpreter import DEVICE
from llama_cache import row_values
from llama_reference import random_prompt
from test_cli import hetero
from tiny_models import write_tiny_model

from hetero.errors import CodecError, ConfigError
from hetero.model.demo import recall_prompt
from hetero.prefill.engine import Slice, read_alone
from hetero.prefill.residency import RESIDENCIES
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

PROMPT = random_prompt(45, vocab=300)
SMALL = {"num_layers": 2, "hidden": 64, "ffn": 64, "vocab": 300, "context_length": 64}


def read(path, prompt=PROMPT, types=("f16", "f16"), **options):
    """(K and V as values, logits), read by steps of 20 tokens."""
    options = {"device": DEVICE, "dtype": "float32", "chunk_tokens": 20} | options
    engine = make_torch_engine(path, types, TorchOptions(**options))
    run = engine.start(prompt)
    layout = engine.layout
    rows = {
        kind: np.zeros((layout.num_layers, len(prompt), layout.row_bytes(kind)), np.uint8)
        for kind in ("k", "v")
    }
    for frame in read_alone(engine, run):
        tokens = slice(frame.first_token, frame.end_token)
        rows[frame.kind][frame.first_layer : frame.end_layer, tokens] = frame.rows
    return rows, run.logits, layout


FAMILIES = [
    {"architecture": "llama", "head_dim": 64},
    {"architecture": "llama", "head_dim": 80, "num_heads": 3, "num_kv_heads": 1},
    {"architecture": "qwen2", "head_dim": 128, "num_heads": 2, "num_kv_heads": 1},
    {"architecture": "qwen3", "head_dim": 64, "num_heads": 4, "num_kv_heads": 4},
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "-".join(map(str, family.values())))
def test_logits_and_rows_are_those_of_the_exact_model(tmp_path, family):
    path = write_tiny_model(tmp_path / "m.gguf", **(SMALL | family))
    exact = forward(path, PROMPT)
    rows, logits, layout = read(path, attention="triton")
    assert relative_error(logits, exact.logits) < 1e-4
    for kind, want in (("k", exact.k), ("v", exact.v)):
        assert relative_error(row_values(rows[kind], layout), np.stack(want)) < 2**-11 / np.sqrt(3)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_where_weights_live_changes_nothing(tmp_path, residency):
    path = write_tiny_model(tmp_path / "m.gguf", weight_type="q8_0", **SMALL)
    want_rows, want_logits, _ = read(path, attention="sdpa")
    rows, logits, layout = read(path, attention="triton", residency=residency)
    assert relative_error(logits, want_logits) < 1e-4
    for kind in ("k", "v"):
        have, want = (row_values(r[kind], layout) for r in (rows, want_rows))
        np.testing.assert_allclose(have, want, rtol=2**-9, atol=1e-3)


@pytest.mark.parametrize("types", [("q8_0", "q4_0"), ("q5_1", "iq4_nl"), ("f16", "q8_0")])
def test_packed_rows_are_those_that_ggml_packs(tmp_path, types):
    """Attention sums in another order, so values differ in their last bits, and codes at ties."""
    path = write_tiny_model(tmp_path / "m.gguf", head_dim=128, **SMALL)
    by_ggml, _, _ = read(path, types=types, attention="sdpa")
    by_kernel, _, _ = read(path, types=types, attention="triton")
    for kind in ("k", "v"):
        differing = np.mean(by_ggml[kind] != by_kernel[kind])
        assert differing < 0.01


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_what_is_not_finite_is_refused_with_its_layer(tmp_path):
    """Scores beyond float32 make the first layer's output nan, and so the second layer's K."""
    path = write_tiny_model(tmp_path / "m.gguf", weight_type="f32", **SMALL)
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = (t for t in reader.tensors if t.name == "blk.0.attn_norm.weight")
    tensor.data[:] = 1e25
    reader.data.flush()
    with pytest.raises(CodecError, match="k rows of layer 1: need finite values"):
        read(path, types=("q8_0", "q8_0"), attention="triton")


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's limit")
def test_bfloat16_is_refused_in_the_interpreter(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", **SMALL)
    with pytest.raises(ConfigError, match="dtype bfloat16: Triton's interpreter multiplies"):
        read(path, attention="triton", dtype="bfloat16")


def test_prompts_packed_together_are_what_they_are_alone(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", **SMALL)
    options = TorchOptions(device=DEVICE, dtype="float32", attention="triton")
    engine = make_torch_engine(path, ("f16", "f16"), options)
    prompts = [PROMPT, PROMPT[:7], PROMPT[30:31]]
    want = [read(path, prompt, attention="triton")[1] for prompt in prompts]
    runs = [engine.start(prompt) for prompt in prompts]
    for _ in engine.read([Slice(run, len(run.tokens)) for run in runs]):
        pass
    for run, logits in zip(runs, want, strict=True):
        assert relative_error(run.logits, logits) < 1e-4


def test_the_command_gives_the_tokens_that_sdpa_gives():
    """End to end: three processes, quantized KV over a socket, the answer only the cache knows."""
    task = recall_prompt(40, seed=3)
    answers = {}
    for attention in ("sdpa", "triton"):
        run = hetero(
            *("generate", "-m", "demo", "--chat", "-p", task.content, "-n", "16", "--json"),
            *("--route", "split", "--prefill", "torch", "--attention", attention),
            TRITON_INTERPRET="1",
        )
        assert run.returncode == 0, run.stderr
        answers[attention] = json.loads(run.stdout.splitlines()[-1])
        assert answers[attention]["attention"] == attention
        assert answers[attention]["prefill_engine"] == "torch"
    assert answers["triton"]["tokens"] == answers["sdpa"]["tokens"]
    assert answers["triton"]["text"].strip() == task.answer
