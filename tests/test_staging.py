"""The staging blob against llama.cpp's own state, and against every way to fill it wrongly."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_reference import Reference, random_prompt
from tiny_models import write_tiny_model

from hetero.errors import EngineError, PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob, read_state

LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="q4_0"
)


def frame(kind, layers, tokens, rows):
    (first_layer, end_layer), (first_token, end_token) = layers, tokens
    return RowFrame(
        kind=kind,
        first_layer=first_layer,
        end_layer=end_layer,
        first_token=first_token,
        end_token=end_token,
        rows=rows,
    )


def zeros(kind, layers, tokens):
    shape = (layers[1] - layers[0], tokens[1] - tokens[0], LAYOUT.row_bytes(kind))
    return frame(kind, layers, tokens, np.zeros(shape, np.uint8))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), num_tokens=st.integers(1, 40), num_streams=st.sampled_from([1, 2, 7]))
def test_frames_in_any_order_give_the_same_blob(data, num_tokens, num_streams):
    rng = np.random.default_rng(0)
    rows = {k: rng.integers(0, 256, (3, num_tokens, LAYOUT.row_bytes(k)), np.uint8) for k in "kv"}
    chunk = data.draw(st.integers(1, num_tokens))
    group = data.draw(st.integers(1, 3))
    blob = StagingBlob(LAYOUT, num_tokens, num_streams)
    pieces = list(itertools.product("kv", range(0, 3, group), range(0, num_tokens, chunk)))
    for kind, layer, first in data.draw(st.permutations(pieces)):
        last, end = min(layer + group, 3), min(first + chunk, num_tokens)
        assert not blob.is_complete
        blob.place(frame(kind, (layer, last), (first, end), rows[kind][layer:last, first:end]))
    assert blob.is_complete
    state = read_state(blob.blob, LAYOUT, range(num_tokens), num_streams)
    for kind in "kv":
        for layer in range(3):
            np.testing.assert_array_equal(state.rows(blob.blob, kind, layer), rows[kind][layer])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (zeros("k", (2, 4), (0, 4)), "k rows: need layers within 0-3, have 2-4"),
        (zeros("v", (1, 1), (0, 4)), "v rows: need layers within 0-3, have 1-1"),
        (zeros("v", (0, 3), (0, 11)), "v rows: need tokens within 0-10, have 0-11"),
        (zeros("k", (0, 1), (-1, 3)), "k rows: need tokens within 0-10, have -1-3"),
        (
            frame("k", (0, 1), (0, 4), np.zeros((1, 4, 135), np.uint8)),
            r"k rows: need shape \(1, 4, 136\), have \(1, 4, 135\)",
        ),
        (frame("q", (0, 1), (0, 4), np.zeros((1, 4, 136), np.uint8)), "need kind k or v"),
    ],
)
def test_rows_that_do_not_fit_are_the_peers_error(bad, message):
    blob = StagingBlob(LAYOUT, 10, 1)
    before = blob.blob.copy()
    with pytest.raises(PeerError, match=message):
        blob.place(bad)
    np.testing.assert_array_equal(blob.blob, before)


def test_repeated_rows_are_the_peers_error():
    blob = StagingBlob(LAYOUT, 10, 1)
    blob.place(zeros("k", (0, 2), (2, 6)))
    before = blob.blob.copy()
    ones = np.ones((2, 4, LAYOUT.row_bytes("k")), np.uint8)
    with pytest.raises(PeerError, match="k rows of layer 1: need token 2 once, have it twice"):
        blob.place(frame("k", (1, 3), (0, 4), ones))
    np.testing.assert_array_equal(blob.blob, before)
    blob.place(frame("k", (2, 3), (0, 4), ones[:1]))  # what was refused has claimed nothing


@pytest.mark.parametrize("unified", [True, False])
def test_a_state_with_a_foreign_header_is_refused(tmp_path, unified):
    path = write_tiny_model(tmp_path / "m.gguf")
    with Reference(path, k_type="q8_0", v_type="q4_0", unified=unified) as llama:
        llama.prefill(random_prompt(20))
        blob = llama.context.export_sequence(0)
    streams = 1 if unified else 2
    read_state(blob, LAYOUT, range(20), streams)
    with pytest.raises(EngineError, match=r"need 1345\d bytes for 21 tokens"):
        read_state(blob, LAYOUT, range(21), streams)
    with pytest.raises(EngineError, match="at byte 16, have"):
        read_state(blob, LAYOUT, range(1, 21), streams)
    blob[0] ^= 1
    with pytest.raises(EngineError, match="at byte 0, have"):
        read_state(blob, LAYOUT, range(20), streams)
