"""Prefill by llama.cpp: handed-over sequences continue exactly as llama.cpp alone would."""

import numpy as np
import pytest
from llama_reference import Reference, random_prompt
from model_cases import MODELS, write_model
from tiny_models import write_tiny_model

from hetero.errors import ConfigError, EngineError, PlanError
from hetero.kv.layout import kv_layout
from hetero.kv.staging import StagingBlob
from hetero.kv.types import KV_TYPES
from hetero.prefill.engine import Slice, read_alone
from hetero.prefill.llama_engine import LlamaEngine

PROMPT = random_prompt(300)


def layout(k_type, v_type, head_dim=64, num_kv_heads=2):
    return kv_layout(
        num_layers=3,
        num_kv_heads=num_kv_heads,
        head_dim_k=head_dim,
        head_dim_v=head_dim,
        k_type=k_type,
        v_type=v_type,
    )


def hand_over(path, kv, num_streams, chunk_tokens=128):
    """The staging blob and last logits of PROMPT read by the llama engine."""
    engine = LlamaEngine(
        path, kv, context_tokens=1024, num_threads=1, chunk_tokens=chunk_tokens, frame_bytes=20000
    )
    try:
        run = engine.start(PROMPT)
        blob = StagingBlob(kv, len(PROMPT), num_streams)
        for frame in read_alone(engine, run):
            blob.place(frame)
        assert blob.is_complete
        return blob.blob, run.logits
    finally:
        engine.close()


PAIRS = [(t, t) for t in KV_TYPES] + [("q8_0", "q4_0"), ("f16", "q8_0"), ("q5_1", "f16")]


@pytest.mark.parametrize(("k_type", "v_type"), PAIRS)
@pytest.mark.parametrize("unified", [False, True], ids=["streams", "unified"])
def test_bytes_and_greedy_tokens_equal_llama_alone(tmp_path, k_type, v_type, unified):
    path = write_tiny_model(tmp_path / "m.gguf")
    kv = layout(k_type, v_type)
    kinds = {"k_type": k_type, "v_type": v_type, "unified": unified, "chunk_tokens": 128}
    with Reference(path, **kinds) as alone:
        logits = alone.prefill(PROMPT)
        own_state = alone.context.export_sequence(0)
        expected, _ = alone.greedy(logits, len(PROMPT), 64)
    blob, first_logits = hand_over(path, kv, 1 if unified else 2)
    np.testing.assert_array_equal(blob[8:], own_state[8:])
    with Reference(path, **kinds) as decode:
        decode.context.restore_sequence(1, blob)
        tokens, _ = decode.greedy(first_logits, len(PROMPT), 64, sequence=1)
    assert tokens == expected


MOE = ("qwen3moe", 64, 4, 2, 256, False, "q4_k", None)


@pytest.mark.parametrize("model", [*MODELS, MOE], ids=lambda model: "-".join(map(str, model)))
def test_every_kind_of_model_hands_over_exactly(tmp_path, model):
    path = write_model(tmp_path / "m.gguf", model)
    _, head_dim, _, num_kv_heads, *_ = model
    kinds = {"k_type": "q8_0", "v_type": "q8_0", "unified": False, "chunk_tokens": 128}
    with Reference(path, **kinds) as alone:
        logits = alone.prefill(PROMPT)
        own_state = alone.context.export_sequence(0)
        expected, _ = alone.greedy(logits, len(PROMPT), 64)
    blob, first_logits = hand_over(path, layout("q8_0", "q8_0", head_dim, num_kv_heads), 2)
    np.testing.assert_array_equal(blob[8:], own_state[8:])
    with Reference(path, **kinds) as decode:
        decode.context.restore_sequence(1, blob)
        tokens, _ = decode.greedy(first_logits, len(PROMPT), 64, sequence=1)
    assert tokens == expected


def test_a_layout_that_is_not_the_models_is_refused_at_start(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf")
    with pytest.raises(EngineError, match="its format or this model's cache is of another kind"):
        LlamaEngine(path, layout("f16", "f16", num_kv_heads=4), context_tokens=512, num_threads=1)


@pytest.mark.parametrize("kind", ["k", "v"])
def test_a_library_that_does_not_rotate_is_refused_at_start(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    path = write_tiny_model(tmp_path / "m.gguf")
    kv = layout("q8_0", "f16") if kind == "k" else layout("f16", "q8_0")
    with pytest.raises(
        EngineError, match=f"{kind.upper()} cache of type q8_0: need values rotated"
    ):
        LlamaEngine(path, kv, context_tokens=512, num_threads=1)


@pytest.fixture
def engine(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf")
    engine = LlamaEngine(path, layout("f16", "f16"), context_tokens=512, num_threads=1)
    yield engine
    engine.close()


def test_prompts_that_can_not_be_read_are_refused(engine):
    with pytest.raises(ConfigError, match="need at least one token"):
        engine.start([])
    with pytest.raises(ConfigError, match="need token ids from 0 to 511, have 512"):
        engine.start([5, 512])
    with pytest.raises(PlanError, match="need room for 513 tokens, have a context of 512"):
        engine.start([5] * 513)


def test_logits_before_the_end_are_refused(engine):
    run = engine.start(PROMPT)
    next(read_alone(engine, run))
    with pytest.raises(EngineError, match="need the prompt read to its end"):
        _ = run.logits


def test_an_abandoned_run_leaves_the_engine_as_new(engine):
    whole = engine.start(PROMPT)
    for _ in read_alone(engine, whole):
        pass
    abandoned = read_alone(engine, engine.start(PROMPT[::-1]))
    next(abandoned)
    abandoned.close()
    again = engine.start(PROMPT, want_rows=False)
    assert list(read_alone(engine, again)) == []
    np.testing.assert_array_equal(again.logits, whole.logits)


def test_there_is_room_for_one_prompt_until_it_ends(engine):
    assert engine.has_room(300)
    run = engine.start(PROMPT)
    assert not engine.has_room(1)
    list(engine.read([Slice(run, 10)]))
    assert not engine.has_room(1)
    engine.end(run)
    assert engine.has_room(300)
