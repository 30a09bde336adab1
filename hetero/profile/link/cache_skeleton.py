"""A llama.cpp cache of a model's geometry without the model: restores need no weights.

A model of the same layers and KV heads, but next to no width, gives the same cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hetero.errors import ModelError
from hetero.kv.layout import KVLayout
from hetero.kv.types import kv_type
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.model.shapes import Shape
from hetero.model.synth import MIN_VOCAB_SIZE, write_synthetic

_WIDTH = 64


@contextmanager
def cache_context(layout: KVLayout, *, num_sequences: int, num_tokens: int) -> Iterator[Context]:
    """A context whose sequences take states of `layout`.

    Raises: ModelError if no such cache can be made of a plain layout.
    """
    if layout.head_dim_k != layout.head_dim_v:
        raise ModelError(
            f"cache: need K and V heads of one size, have {layout.head_dim_k} and "
            f"{layout.head_dim_v}: its restore can't be measured"
        )
    shape = Shape(
        name="cache-skeleton",
        architecture="llama",
        num_layers=layout.num_layers,
        hidden_size=_WIDTH,
        num_heads=layout.num_kv_heads,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim_k,
        ffn_size=_WIDTH,
        vocab_size=MIN_VOCAB_SIZE,
        context_length=num_tokens,
        norm_eps=1e-5,
        rope_base=10_000.0,
        tied_embeddings=True,
    )
    config = ContextConfig(
        num_sequences=num_sequences,
        tokens_per_sequence=num_tokens,
        unified=False,
        k_ggml_type=kv_type(layout.k_type).ggml_id,
        v_ggml_type=kv_type(layout.v_type).ggml_id,
        num_threads=1,
        batch_tokens=16,
    )
    with TemporaryDirectory(prefix="hetero-profile-") as folder:
        path = write_synthetic(shape, "f16", Path(folder) / "skeleton.gguf")
        with Model(path) as loaded, Context(loaded, config) as context:
            yield context
