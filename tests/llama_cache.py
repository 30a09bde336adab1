"""What llama.cpp's own f16 cache holds after reading a prompt, by value."""

from dataclasses import dataclass

import numpy as np
from llama_reference import Reference

from hetero.kv.layout import kv_layout
from hetero.kv.staging import read_state
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec


@dataclass(frozen=True, kw_only=True)
class LlamaPrefill:
    logits: np.ndarray  # (vocabulary,) of the last token
    k: np.ndarray  # (layers, tokens, kv_heads, head_dim) float32, after RoPE
    v: np.ndarray


def model_layout(path, k_type="f16", v_type="f16"):
    spec = gguf_to_spec(GGUFFile.open(path))
    return kv_layout(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim_k=spec.head_dim_k,
        head_dim_v=spec.head_dim_v,
        k_type=k_type,
        v_type=v_type,
    )


def llama_prefill(path, tokens, first_position=0):
    """All tokens in one batch, the first of them at `first_position`."""
    layout = model_layout(path)
    with Reference(path) as llama:
        llama.batch.set_prompt(tokens, first_position, 0, want_last=True)
        llama.context.decode(llama.batch)
        logits = llama.context.logits(1)[0].copy()
        blob = llama.context.export_sequence(0)
    state = read_state(blob, layout, range(first_position, first_position + len(tokens)))

    def values(kind):
        rows = [state.rows(blob, kind, layer) for layer in range(layout.num_layers)]
        return row_values(np.stack(rows), layout)

    return LlamaPrefill(logits=logits, k=values("k"), v=values("v"))


def row_values(rows, layout):
    """(layers, tokens, row_bytes) of f16 rows -> (layers, tokens, kv_heads, head_dim) float32."""
    values = rows.view(np.float16).astype(np.float32)
    return values.reshape(*rows.shape[:2], layout.num_kv_heads, layout.head_dim_k)
