"""The torch engine against a float64 forward pass and against llama.cpp, family by family."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from float64_reference import Forward, forward, relative_error
from llama_cache import LlamaPrefill, llama_prefill, row_values
from llama_reference import Reference, random_prompt
from model_cases import MODELS, write_model

from hetero.kv.staging import StagingBlob
from hetero.prefill.engine import read_alone
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

PROMPT = random_prompt(300)

F16_MODELS = [model for model in MODELS if model[6] == "f16"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and PROMPT read by everybody; torch in chunks of 128 tokens."""

    path: Path
    exact: Forward
    llama: LlamaPrefill
    logits: np.ndarray
    k: np.ndarray
    v: np.ndarray


def prefill(path, types=("f16", "f16"), prompt=PROMPT, **options):
    """The engine, its logits and its frames."""
    engine = make_torch_engine(path, types, TorchOptions(num_threads=1, **options))
    run = engine.start(prompt)
    frames = list(read_alone(engine, run))
    return engine, run.logits, frames


def frame_values(engine, frames, kind):
    """(layers, tokens, kv_heads, head_dim) float32 from f16 frames."""
    layout = engine.layout
    rows = np.zeros((layout.num_layers, len(PROMPT), layout.row_bytes(kind)), np.uint8)
    for frame in frames:
        if frame.kind == kind:
            tokens = slice(frame.first_token, frame.end_token)
            rows[frame.first_layer : frame.end_layer, tokens] = frame.rows
    return row_values(rows, layout)


def staged(engine, frames):
    blob = StagingBlob(engine.layout, len(PROMPT), num_streams=1)
    for frame in frames:
        blob.place(frame)
    assert blob.is_complete
    return blob.blob


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: "-".join(map(str, model)))
def case(request, tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("parity") / "m.gguf", request.param)
    engine, logits, frames = prefill(path, chunk_tokens=128)
    return Case(
        path=path,
        exact=forward(path, PROMPT),
        llama=llama_prefill(path, PROMPT),
        logits=logits,
        k=frame_values(engine, frames, "k"),
        v=frame_values(engine, frames, "v"),
    )


def test_logits_are_within_half_a_percent_and_no_further_than_llama_cpp(case):
    error = relative_error(case.logits, case.exact.logits)
    assert error < 0.005
    assert error <= relative_error(case.llama.logits, case.exact.logits)


def test_chunks_and_whole_prompt_agree(case):
    _, whole, _ = prefill(case.path, chunk_tokens=512)
    # float32 sums in another order.
    assert relative_error(case.logits, whole) < 1e-4


def test_rows_are_the_exact_values_rounded_to_f16(case):
    for rows, exact in ((case.k, case.exact.k), (case.v, case.exact.v)):
        for have, want in zip(rows, exact, strict=True):
            # Rounding to 11 bits costs 2**-12 / sqrt(3) to 2**-11 / sqrt(3) of the magnitude.
            assert relative_error(have, want) < 2**-11 / np.sqrt(3)


def test_rows_are_those_of_llama_cpp_up_to_its_own_error(case):
    """Which is 0.03% to 0.2% with f16 weights, and up to 7% where it quantizes activations too."""
    kinds = ((case.k, case.llama.k, case.exact.k), (case.v, case.llama.v, case.exact.v))
    for rows, llama_rows, exact_rows in kinds:
        for have, llama, exact in zip(rows, llama_rows, exact_rows, strict=True):
            own_error = relative_error(llama, exact)
            assert relative_error(have, llama) < 1.01 * own_error + 1e-4


@pytest.mark.parametrize("model", F16_MODELS, ids=lambda model: "-".join(map(str, model)))
def test_greedy_tokens_after_hand_over_are_those_of_llama_cpp(tmp_path, model):
    path = write_model(tmp_path / "m.gguf", model)
    with Reference(path) as alone:
        expected, expected_logits = alone.greedy(alone.prefill(PROMPT), len(PROMPT), 64)
    engine, first_logits, frames = prefill(path, chunk_tokens=128)
    with Reference(path) as decode:
        decode.context.restore_sequence(0, staged(engine, frames))
        tokens, logits = decode.greedy(first_logits, len(PROMPT), 64)
    for step, (have, want) in enumerate(zip(logits, expected_logits, strict=True)):
        assert relative_error(have, want) < 0.01
        if tokens[step] != expected[step]:
            second, first = np.sort(want)[-2:]
            assert first - second <= 2 * np.abs(have - want).max()
            break  # another token from here on: another text


@pytest.mark.parametrize("types", [("q8_0", "q8_0"), ("q8_0", "q4_0"), ("f16", "q8_0")])
@pytest.mark.parametrize("model", F16_MODELS, ids=lambda model: "-".join(map(str, model)))
def test_quantized_rows_continue_better_than_llama_cpp_does(tmp_path, model, types):
    """Judged against an f16 cache: llama.cpp's own prefill already attends over quantized rows."""
    path = write_model(tmp_path / "m.gguf", model)
    k_type, v_type = types
    engine, first_logits, frames = prefill(path, types, chunk_tokens=128)
    token = int(first_logits.argmax())
    with Reference(path) as exact:
        exact.prefill(PROMPT)
        want = exact.step(token, len(PROMPT))
    with Reference(path, k_type=k_type, v_type=v_type) as alone:
        alone.prefill(PROMPT)
        own_error = relative_error(alone.step(token, len(PROMPT)), want)
    with Reference(path, k_type=k_type, v_type=v_type) as decode:
        decode.context.restore_sequence(0, staged(engine, frames))
        assert relative_error(decode.step(token, len(PROMPT)), want) < own_error


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.15)])
@pytest.mark.parametrize("model", F16_MODELS[:2], ids=["plain", "rope-factors"])
def test_half_precision_is_as_close_as_its_mantissa(tmp_path, model, dtype, tolerance):
    path = write_model(tmp_path / "m.gguf", model)
    _, logits, _ = prefill(path, dtype=dtype, chunk_tokens=128)
    assert relative_error(logits, forward(path, PROMPT).logits) < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", F16_MODELS, ids=lambda model: "-".join(map(str, model)))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.005), ("bfloat16", 0.15)])
def test_cuda_is_as_close_as_the_cpu(tmp_path, model, dtype, tolerance):
    path = write_model(tmp_path / "m.gguf", model)
    _, logits, _ = prefill(path, device="cuda", dtype=dtype, chunk_tokens=128)
    assert relative_error(logits, forward(path, PROMPT).logits) < tolerance
