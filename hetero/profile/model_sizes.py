"""A profile's model from a file's spec, or from a named shape that nobody has written yet."""

import math

import gguf

from hetero.messages import ModelFingerprint
from hetero.model.shapes import Shape, tensor_shapes
from hetero.model.spec import ModelSpec
from hetero.model.synth import tensor_type
from hetero.profile.model_shape import ModelShape


def model_shape(spec: ModelSpec, fingerprint: ModelFingerprint | None) -> ModelShape:
    """fingerprint: None for random weights."""
    return _shape(spec, fingerprint, spec.name, spec.quantization, spec.weight_bytes)


def named_shape(shape: Shape, quant: str) -> ModelShape:
    """As `hetero model synth` would write it."""
    return _shape(shape, None, f"{shape.name}-{quant}", quant, _weight_bytes(shape, quant))


def _weight_bytes(shape: Shape, quant: str) -> int:
    total = 0
    for name, dims in tensor_shapes(shape).items():
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type(shape, quant, name, dims)]
        total += math.prod(dims) // block_size * block_bytes
    return total


def _shape(
    model: ModelSpec | Shape,
    fingerprint: ModelFingerprint | None,
    name: str,
    quantization: str,
    weight_bytes: int,
) -> ModelShape:
    return ModelShape(
        name=name,
        fingerprint=fingerprint,
        architecture=model.architecture,
        quantization=quantization,
        num_parameters=model.num_parameters,
        weight_bytes=weight_bytes,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim_k=model.head_dim_k,
        head_dim_v=model.head_dim_v,
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        num_experts=model.num_experts,
        num_experts_used=model.num_experts_used,
    )
