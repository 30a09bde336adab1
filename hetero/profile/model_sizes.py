"""A profile's model from a file's spec, or from a named shape that nobody has written yet."""

from hetero.messages import ModelFingerprint
from hetero.model.shapes import Shape
from hetero.model.spec import ModelSpec
from hetero.model.synth import weight_bytes
from hetero.profile.model_shape import ModelShape


def model_shape(spec: ModelSpec, fingerprint: ModelFingerprint | None) -> ModelShape:
    """fingerprint: None for random weights."""
    return _shape(spec, fingerprint, spec.name, spec.quantization, spec.weight_bytes)


def named_shape(shape: Shape, quant: str) -> ModelShape:
    """As `hetero model synth` would write it."""
    return _shape(shape, None, f"{shape.name}-{quant}", quant, weight_bytes(shape, quant))


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
