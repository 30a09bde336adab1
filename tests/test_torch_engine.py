import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cache import row_values
from llama_reference import random_prompt
from tiny_models import write_tiny_model

from hetero.errors import CodecError, ConfigError, EngineError, ModelError, PlanError
from hetero.prefill.attention import SdpaAttention
from hetero.prefill.engine import read_alone
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

PROMPT = random_prompt(48, vocab=300)
NUM_LAYERS = 5


def make(path, types=("f16", "f16"), **options):
    return make_torch_engine(path, types, TorchOptions(**options))


def read(engine, tokens, **options):
    """The run, read to its end, and its frames."""
    run = engine.start(tokens, **options)
    return run, list(read_alone(engine, run))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("torch") / "m.gguf",
        num_layers=NUM_LAYERS,
        hidden=64,
        ffn=64,
        vocab=300,
        context_length=50,
    )


@pytest.fixture(scope="module")
def engine(path):
    return make(path, num_threads=1, chunk_tokens=20, frame_bytes=1000)


@pytest.fixture(scope="module")
def whole(path):
    """K and V of PROMPT computed in one chunk: {kind: (layers, tokens, kv_heads, head_dim)}."""
    engine = make(path)
    _, frames = read(engine, PROMPT)
    assert [(f.kind, f.first_layer, f.end_layer) for f in frames] == [("k", 0, 5), ("v", 0, 5)]
    return {f.kind: row_values(f.rows, engine.layout) for f in frames}


schedules = {
    "num_tokens": st.integers(1, len(PROMPT)),
    "chunk_tokens": st.integers(1, 60),
    "frame_bytes": st.integers(1, 40_000),
}


@given(types=st.sampled_from([("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "f16")]), **schedules)
def test_frames_come_in_order_and_cover_every_row_once(
    path, types, num_tokens, chunk_tokens, frame_bytes
):
    engine = make(path, types, chunk_tokens=chunk_tokens, frame_bytes=frame_bytes)
    layout, keys = engine.layout, []
    times_seen = {kind: np.zeros((NUM_LAYERS, num_tokens), int) for kind in ("k", "v")}
    for frame in read(engine, PROMPT[:num_tokens])[1]:
        layers, tokens = frame.end_layer - frame.first_layer, frame.end_token - frame.first_token
        assert frame.rows.shape == (layers, tokens, layout.row_bytes(frame.kind))
        assert frame.rows.nbytes <= frame_bytes or layers == tokens == 1
        rows = slice(frame.first_token, frame.end_token)
        times_seen[frame.kind][frame.first_layer : frame.end_layer, rows] += 1
        chunk = frame.first_token // chunk_tokens
        assert chunk == (frame.end_token - 1) // chunk_tokens
        keys.append((chunk, frame.first_layer, frame.kind, frame.first_token))
    assert keys == sorted(set(keys))
    assert all(np.all(seen == 1) for seen in times_seen.values())


@settings(max_examples=40)
@given(**schedules)
def test_rows_do_not_depend_on_the_schedule(path, whole, num_tokens, chunk_tokens, frame_bytes):
    engine = make(path, chunk_tokens=chunk_tokens, frame_bytes=frame_bytes)
    for frame in read(engine, PROMPT[:num_tokens])[1]:
        have = row_values(frame.rows, engine.layout)
        tokens = slice(frame.first_token, frame.end_token)
        want = whole[frame.kind][frame.first_layer : frame.end_layer, tokens]
        # Sums in another order may round to the neighbouring f16; values reach 8.
        np.testing.assert_allclose(have, want, rtol=2**-9, atol=1e-3)


def test_frames_leave_before_later_layers_are_computed(path, monkeypatch):
    calls = []

    def counted(self, q, k, v, plan):
        calls.append(plan[-1].end)
        return attend(self, q, k, v, plan)

    attend = SdpaAttention.__call__
    monkeypatch.setattr(SdpaAttention, "__call__", counted)
    row_bytes = 2 * 64 * 2
    engine = make(path, chunk_tokens=32, frame_bytes=2 * 32 * row_bytes)
    run = engine.start(PROMPT)
    computed = [len(calls) for _ in read_alone(engine, run)]
    # Groups of two layers in the first chunk, of four in the second, shorter one; K, then V. The
    # last layer attends for the prompt's last token alone.
    assert computed == [2, 2, 4, 4, 4, 4, 8, 8, 9, 9]
    assert calls == [32] * 4 + [48] * 5


def test_without_rows_the_logits_are_the_same_and_nothing_is_packed(engine):
    with_rows, frames = read(engine, PROMPT)
    without, no_frames = read(engine, PROMPT, want_rows=False)
    assert frames
    assert no_frames == []
    assert np.array_equal(with_rows.logits, without.logits)
    assert with_rows.logits.shape == (300,)
    assert with_rows.logits.dtype == np.float32
    assert with_rows.pack_s > 0 == without.pack_s


def test_a_dropped_run_leaves_the_engine_ready(engine):
    first, _ = read(engine, PROMPT)
    dropped = read_alone(engine, engine.start(PROMPT[::-1]))
    next(dropped)
    del dropped
    again, _ = read(engine, PROMPT)
    assert np.array_equal(first.logits, again.logits)


def test_logits_of_an_unfinished_run_are_refused(engine):
    run = engine.start(PROMPT)
    reading = read_alone(engine, run)
    next(reading)
    with pytest.raises(EngineError, match="need the prompt read to its end before its logits"):
        _ = run.logits


def test_split_files_are_read_whole(tmp_path, path):
    options = {"num_layers": NUM_LAYERS, "hidden": 64, "ffn": 64, "vocab": 300}
    parts = write_tiny_model(tmp_path / "m.gguf", **options, split_max_tensors=10)
    of_parts, of_whole = (read(make(source), PROMPT)[0] for source in (parts, path))
    assert np.array_equal(of_parts.logits, of_whole.logits)


def test_num_threads_is_torchs(path):
    before = torch.get_num_threads()
    try:
        make(path, num_threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_and_cache_are_of_the_chosen_type(path, dtype):
    engine = make(path, dtype=dtype)
    assert engine.dtype == getattr(torch, dtype)


def test_prompt_as_long_as_the_context_is_read(engine):
    prompt = random_prompt(50, vocab=300)
    run, _ = read(engine, prompt)
    assert np.isfinite(run.logits).all()
    with pytest.raises(PlanError, match="need room for 51 tokens, have a context of 50"):
        engine.start([*prompt, 3])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "prompt: need at least one token, have none"),
        ([5, 300, 6], "prompt: need token ids from 0 to 299, have 300"),
        ([5, -1, 6], "prompt: need token ids from 0 to 299, have -1"),
    ],
)
def test_bad_prompts_are_refused(engine, tokens, message):
    with pytest.raises(ConfigError, match=message):
        engine.start(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens: need 1 or more, have 0"),
        ({"frame_bytes": -5}, "frame_bytes: need 1 or more, have -5"),
        ({"num_threads": 0}, "num_threads: need 1 or more, have 0"),
        ({"attention": "flash9"}, "attention 'flash9': need one of auto, sdpa, triton"),
        ({"residency": "cloud"}, "residency 'cloud': need one of auto, resident, quantized, str"),
        (
            {"residency": "quantized"},
            "residency quantized: need Triton's kernels: attention triton; or leave",
        ),
        ({"device": "tpu"}, "device 'tpu': need cpu or cuda"),
        ({"device": "meta"}, "device 'meta': need cpu or cuda"),
        ({"dtype": "int8"}, "dtype 'int8': need one of float32, bfloat16, float16"),
    ],
)
def test_bad_options_are_refused(path, options, message):
    with pytest.raises(ConfigError, match=message):
        make(path, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_said(path):
    with pytest.raises(ConfigError, match="device 'cuda': need a GPU and torch built for CUDA"):
        make(path, device="cuda")


def test_unknown_cache_type_is_refused(path):
    with pytest.raises(ConfigError, match="KV type 'q9_0': need one of f16"):
        make(path, ("f16", "q9_0"))


def test_unsupported_architecture_points_to_llama(tmp_path):
    path = write_tiny_model(tmp_path / "moe.gguf", architecture="qwen3moe")
    with pytest.raises(ModelError, match=r"architecture 'qwen3moe'.*: use --prefill llama"):
        make(path)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        ("attn_norm", CodecError, "k rows of layer 0: need finite values"),
        ("ffn_norm", EngineError, "logits: need finite values.*float16.*use bfloat16 or float32"),
    ],
)
def test_overflow_is_an_error_not_a_poisoned_cache(tmp_path, norm, error, message):
    """float16 activations of some models exceed 65,504."""
    path = write_tiny_model(tmp_path / "m.gguf", num_layers=1)
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = (t for t in reader.tensors if t.name == f"blk.0.{norm}.weight")
    tensor.data[:] = 1e5
    reader.data.flush()
    with pytest.raises(error, match=message):
        read(make(path, dtype="float16"), PROMPT)
