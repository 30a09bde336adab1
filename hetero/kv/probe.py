"""The start-up check that llama.cpp's cache is what we think it is, on the very model to serve.

The layout of saved state has drifted three times, carries no version, and a missed rotation
restores "successfully" to garbage. So before a node serves, it decodes a few tokens, exports them,
and compares headers byte for byte and layer 0's rotated values against our own arithmetic.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hetero.errors import EngineError
from hetero.kv.codecs import decode
from hetero.kv.layout import KVLayout
from hetero.kv.rotation import rotate
from hetero.kv.rows import Kind, RowFrame
from hetero.kv.staging import StagingBlob, read_state
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context
from hetero.llama.model import Model

_NUM_TOKENS = 5

# Quantization moves values by at most a few percent of their norm at 4 bits; a wrong or missing
# rotation moves them by about 140%.
_LARGEST_RELATIVE_ERROR = 0.3


def probe_state_format(model: Model, context: Context, layout: KVLayout) -> None:
    """Raise EngineError unless blobs of `layout` are what this library writes and reads.

    `context` must be idle; its sequence 0 is used and emptied again.
    """
    tokens = list(range(min(_NUM_TOKENS, model.vocab.num_tokens)))
    positions = range(len(tokens))
    theirs = _exported(context, tokens)
    state = read_state(theirs, layout, positions, context.config.num_streams)

    ours = StagingBlob(layout, len(tokens), context.config.num_streams)
    kinds: tuple[Kind, Kind] = ("k", "v")
    for kind in kinds:
        for layer in range(layout.num_layers):
            ours.place(
                RowFrame(
                    kind=kind,
                    first_layer=layer,
                    end_layer=layer + 1,
                    first_token=0,
                    end_token=len(tokens),
                    rows=state.rows(theirs, kind, layer)[None],
                )
            )
    differing = np.flatnonzero(ours.blob[8:] != theirs[8:])  # after magic and sequence id
    if differing.size:
        raise EngineError(
            f"llama.cpp sequence state: {differing.size} bytes differ from ours, the first at "
            f"byte {8 + differing[0]}; its format has changed"
        )
    context.restore_sequence(0, ours.blob)
    if context.last_position(0) != len(tokens) - 1:
        raise EngineError("llama.cpp sequence state: our blob restores to other positions")
    context.remove_sequence(0)
    _check_rotation(model, context, layout, tokens, theirs)


def _check_rotation(
    model: Model,
    context: Context,
    layout: KVLayout,
    tokens: Sequence[int],
    exported: npt.NDArray[np.uint8],
) -> None:
    """Layer 0's K and V do not depend on the cache, so an f16 cache holds them unrotated."""
    f16 = kv_type("f16")
    plain_config = replace(
        context.config,
        num_sequences=1,
        tokens_per_sequence=256,
        k_ggml_type=f16.ggml_id,
        v_ggml_type=f16.ggml_id,
    )
    with Context(model, plain_config) as plain_context:
        plain = _exported(plain_context, tokens)
    plain_layout = KVLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim_k=layout.head_dim_k,
        head_dim_v=layout.head_dim_v,
        k_type="f16",
        v_type="f16",
        k_rotation=0,
        v_rotation=0,
    )
    plain_state = read_state(plain, plain_layout, range(len(tokens)))
    state = read_state(exported, layout, range(len(tokens)), context.config.num_streams)
    parts: tuple[tuple[Kind, str, int], ...] = (
        ("k", layout.k_type, layout.k_rotation),
        ("v", layout.v_type, layout.v_rotation),
    )
    for kind, type_name, rotation in parts:
        expected = decode(plain_state.rows(plain, kind, 0), "f16")
        if rotation:
            expected = rotate(expected, rotation)
        have = decode(state.rows(exported, kind, 0), type_name)
        error = np.linalg.norm(have - expected) / np.linalg.norm(expected)
        if not error < _LARGEST_RELATIVE_ERROR:
            raise EngineError(
                f"llama.cpp's {kind.upper()} cache of type {type_name}: need values rotated in "
                f"blocks of {rotation}, have others (relative error {error:.2f}); "
                f"unset LLAMA_ATTN_ROT_DISABLE, or this library rotates differently"
            )


def _exported(context: Context, tokens: Sequence[int]) -> npt.NDArray[np.uint8]:
    batch = Batch(len(tokens))
    batch.set_prompt(tokens, 0, sequence=0, want_last=True)
    context.decode(batch)
    blob = context.export_sequence(0)
    context.remove_sequence(0)
    return blob
