"""Several prompts in a step: each as if alone, and what fails fails alone."""

import gguf
import numpy as np
import pytest
import torch
from float64_reference import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cache import row_values
from llama_reference import random_prompt
from tiny_models import write_tiny_model

from hetero.errors import CodecError, EngineError
from hetero.prefill.attention import SdpaAttention
from hetero.prefill.engine import Slice, read_alone
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

VOCAB = 300
NUM_LAYERS = 4
PROMPTS = [random_prompt(size, seed=seed, vocab=VOCAB) for seed, size in enumerate((40, 7, 1, 23))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("batches") / "m.gguf",
        num_layers=NUM_LAYERS,
        hidden=64,
        ffn=64,
        vocab=VOCAB,
        context_length=80,
    )


def make(path, **options):
    options = {"chunk_tokens": 64, "frame_bytes": 12_000} | options
    return make_torch_engine(path, ("f16", "f16"), TorchOptions(**options))


@pytest.fixture(scope="module")
def engine(path):
    return make(path)


@pytest.fixture(scope="module")
def alone(engine):
    """(K and V rows as values, logits) of each prompt, read by itself."""
    results = []
    for prompt in PROMPTS:
        run, rows = engine.start(prompt), Rows(engine.layout, len(prompt))
        for frame in read_alone(engine, run):
            rows.place(frame)
        results.append((rows.values(), run.logits))
    return results


class Rows:
    """What a prompt's frames hold, each row once."""

    def __init__(self, layout, num_tokens):
        self.layout = layout
        self.rows = {
            kind: np.zeros((NUM_LAYERS, num_tokens, layout.row_bytes(kind)), np.uint8)
            for kind in ("k", "v")
        }
        self.times = {kind: np.zeros((NUM_LAYERS, num_tokens), int) for kind in ("k", "v")}

    def place(self, frame):
        where = (
            slice(frame.first_layer, frame.end_layer),
            slice(frame.first_token, frame.end_token),
        )
        self.rows[frame.kind][where] = frame.rows
        self.times[frame.kind][where] += 1

    def values(self):
        assert all(np.all(times == 1) for times in self.times.values())
        return [row_values(self.rows[kind], self.layout) for kind in ("k", "v")]


def read_together(engine, runs, sizes):
    """Read the runs by steps of the given sizes per run; their rows."""
    rows = {run: Rows(engine.layout, len(run.tokens)) for run in runs}
    while any(run.num_unread and run.error is None for run in runs):
        pieces = [
            Slice(run, min(size, run.num_unread))
            for run, size in zip(runs, sizes, strict=True)
            if run.num_unread and run.error is None
        ]
        for run, frame in engine.read(pieces):
            rows[run].place(frame)
    return rows


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=4, max_size=4), order=st.permutations(range(4)))
def test_prompts_read_together_are_what_they_are_alone(engine, alone, sizes, order):
    runs = [engine.start(PROMPTS[index]) for index in order]
    try:
        rows = read_together(engine, runs, sizes)
        for index, run in zip(order, runs, strict=True):
            want_values, want_logits = alone[index]
            assert relative_error(run.logits, want_logits) < 1e-4
            for have, want in zip(rows[run].values(), want_values, strict=True):
                np.testing.assert_allclose(have, want, rtol=2**-9, atol=1e-3)
    finally:
        for run in runs:
            engine.end(run)


def test_room_is_for_two_prompts_of_full_length(engine):
    runs = [engine.start(random_prompt(80, vocab=VOCAB)) for _ in range(2)]
    assert not engine.has_room(1)
    engine.end(runs[0])
    assert engine.has_room(80)
    engine.end(runs[1])


def test_what_is_not_finite_fails_its_own_prompt_and_names_the_layer(tmp_path, engine, alone):
    path = write_tiny_model(
        tmp_path / "m.gguf",
        num_layers=NUM_LAYERS,
        hidden=64,
        ffn=64,
        vocab=VOCAB,
        context_length=80,
        weight_type="f32",
    )
    poison = max(set(range(VOCAB)) - {token for prompt in PROMPTS for token in prompt})
    reader = gguf.GGUFReader(path, "r+")
    (embedding,) = (t for t in reader.tensors if t.name == "token_embd.weight")
    embedding.data[poison] = np.nan
    reader.data.flush()
    engine = make(path)
    healthy, sick = engine.start(PROMPTS[0]), engine.start([poison, *PROMPTS[1]])
    rows = read_together(engine, [healthy, sick], [40, 40])
    assert isinstance(sick.error, CodecError)
    assert "k rows of layer 0: need finite values" in str(sick.error)
    assert healthy.error is None
    rows[healthy].values()
    assert not rows[sick].times["k"].any()


def test_when_memory_runs_out_the_largest_prompt_fails_and_the_others_go_on(
    engine, alone, monkeypatch
):
    """As another program takes the GPU's memory while the third layer is computed."""
    calls = 0
    attend = SdpaAttention.__call__

    def scarce(self, q, k, v, plan):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB. And so on")
        return attend(self, q, k, v, plan)

    monkeypatch.setattr(SdpaAttention, "__call__", scarce)
    runs = [engine.start(PROMPTS[index]) for index in (1, 0, 3)]
    rows = read_together(engine, runs, [40, 40, 40])
    small, large, middle = runs
    assert isinstance(large.error, EngineError)
    assert "need more for 40 tokens of a prompt" in str(large.error)
    assert "tried to allocate 20" in str(large.error)
    for run, index in ((small, 1), (middle, 3)):
        assert run.error is None
        for have, want in zip(rows[run].values(), alone[index][0], strict=True):
            np.testing.assert_allclose(have, want, rtol=2**-9, atol=1e-3)
        assert relative_error(run.logits, alone[index][1]) < 1e-4
    for run in runs:
        engine.end(run)
    assert engine.has_room(80)


@pytest.mark.parametrize("frame_bytes", [3_000, 12_000, 20_000])
@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_whenever_memory_runs_out_the_others_rows_are_whole(
    path, alone, monkeypatch, failing_call, frame_bytes
):
    calls = 0
    attend = SdpaAttention.__call__

    def scarce(self, q, k, v, plan):
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")
        return attend(self, q, k, v, plan)

    engine = make(path, frame_bytes=frame_bytes)
    monkeypatch.setattr(SdpaAttention, "__call__", scarce)
    runs = [engine.start(PROMPTS[index]) for index in (1, 0, 2)]
    rows = read_together(engine, runs, [40, 40, 40])
    assert [run.error is None for run in runs] == [True, False, True]
    for run, index in ((runs[0], 1), (runs[2], 2)):
        for have, want in zip(rows[run].values(), alone[index][0], strict=True):
            np.testing.assert_allclose(have, want, rtol=2**-9, atol=1e-3)


def test_other_errors_are_not_taken_for_want_of_memory(engine, monkeypatch):
    def broken(self, q, k, v, plan):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(SdpaAttention, "__call__", broken)
    run = engine.start(PROMPTS[0])
    with pytest.raises(RuntimeError, match="illegal instruction"):
        list(engine.read([Slice(run, 40)]))
    engine.end(run)


def test_when_memory_is_out_for_all_each_fails(engine, monkeypatch):
    def none_left(self, q, k, v, plan):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(SdpaAttention, "__call__", none_left)
    runs = [engine.start(prompt) for prompt in PROMPTS[:2]]
    read_together(engine, runs, [40, 40])
    assert all(isinstance(run.error, EngineError) for run in runs)
    for run in runs:
        engine.end(run)


def test_only_the_last_tokens_row_of_logits_is_computed(engine, monkeypatch):
    shapes = []
    output = engine._model._weights.output
    logits = type(output).logits
    monkeypatch.setattr(
        type(output), "logits", lambda self, x: shapes.append(x.shape) or logits(self, x)
    )
    run = engine.start(PROMPTS[0])
    read_together(engine, [run], [15])
    engine.end(run)
    assert shapes == [(1, 64)]
