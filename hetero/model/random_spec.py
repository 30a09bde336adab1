"""The spec of random weights that nobody has written yet: whether they fit is asked first."""

from hetero.model.shapes import Shape
from hetero.model.spec import (
    YARN_BETA_FAST,
    YARN_BETA_SLOW,
    ModelSpec,
    RopeSpec,
    quantization_label,
    rope_kind,
)
from hetero.model.synth import file_type, weight_bytes


def random_spec(shape: Shape, quant: str) -> ModelSpec:
    """As `gguf_to_spec` would read it from the file that `write_synthetic` makes, less the bytes of
    the file's header."""
    num_bytes = weight_bytes(shape, quant)
    return ModelSpec(
        architecture=shape.architecture,
        name=shape.name,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim_k=shape.head_dim_k,
        head_dim_v=shape.head_dim_v,
        ffn_size=shape.ffn_size,
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        norm_eps=shape.norm_eps,
        rope=_rope(shape),
        qkv_bias=shape.qkv_bias,
        qk_norm=shape.qk_norm,
        tied_embeddings=shape.tied_embeddings,
        num_experts=shape.num_experts,
        num_experts_used=shape.num_experts_used,
        sliding_window=None,
        quantization=quantization_label(file_type(quant)),
        num_parameters=shape.num_parameters,
        file_bytes=num_bytes,
        weight_bytes=num_bytes,
    )


def _rope(shape: Shape) -> RopeSpec:
    # llama3's scaling is in its frequency factors.
    scaled = shape.rope_scaling if shape.rope_scaling in ("linear", "yarn") else None
    return RopeSpec(
        kind=rope_kind(shape.architecture),
        dim=shape.head_dim,
        base=shape.rope_base,
        scaling=scaled or "none",
        factor=shape.rope_factor if scaled else 1.0,
        original_context=shape.rope_original_context if scaled else shape.context_length,
        attn_factor=1.0,
        ext_factor=1.0 if scaled == "yarn" else 0.0,
        beta_fast=YARN_BETA_FAST,
        beta_slow=YARN_BETA_SLOW,
        has_factors=shape.rope_scaling == "llama3",
    )
