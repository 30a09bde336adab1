"""What a step of a model reads and computes, from its sizes alone.

Parameters and bytes are spread as architectures of this family have them: an embedding that is
looked up, layers, a head that is read in full. A file's bytes are spread evenly over parameters.
"""

import math
from dataclasses import dataclass

import gguf

from hetero.messages import ModelFingerprint
from hetero.model.shapes import Shape, tensor_shapes
from hetero.model.spec import ModelSpec
from hetero.model.synth import tensor_type
from hetero.profile.node_profile import ModelShape

_UNQUANTIZED = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    name: str
    architecture: str
    quantization: str  # lower case
    num_parameters: int
    weight_bytes: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    vocab_size: int
    tied_embeddings: bool
    num_experts: int
    num_experts_used: int

    @property
    def is_quantized(self) -> bool:
        return self.quantization not in _UNQUANTIZED

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """Of all layers, with all experts."""
        matrices = 1 if self.tied_embeddings else 2
        return self.num_parameters - matrices * self.head_parameters

    @property
    def expert_parameters(self) -> int:
        """Of all experts of all layers: what is neither attention nor router."""
        if not self.num_experts:
            return 0
        attention = (
            self.num_heads * (self.head_dim_k + self.head_dim_v)
            + self.num_kv_heads * (self.head_dim_k + self.head_dim_v)
        ) * self.hidden_size
        others = self.num_layers * (attention + self.num_experts * self.hidden_size)
        return max(0, self.layer_parameters - others)

    def read_parameters(self, num_rows: int, *, with_head: bool) -> float:
        """Those that a step of so many rows reads: each once, an expert if any row is routed to it.

        Rows are taken to choose experts evenly and on their own; real text is less even.
        """
        used = self.num_experts_used / self.num_experts if self.num_experts else 1.0
        union = 1 - (1 - used) ** num_rows
        head = self.head_parameters if with_head else 0
        return self.layer_parameters + head - (1 - union) * self.expert_parameters

    def read_bytes(self, num_rows: int, *, with_head: bool) -> float:
        share = self.read_parameters(num_rows, with_head=with_head) / self.num_parameters
        return share * self.weight_bytes

    def row_flops(self, *, with_head: bool) -> float:
        """Of one row's matrix products, attention aside."""
        return 2 * self.read_parameters(1, with_head=with_head)

    @property
    def pair_flops(self) -> float:
        """Of one row's attention to one cell, in all layers: a product with K, one with V."""
        return 2 * self.num_layers * self.num_heads * (self.head_dim_k + self.head_dim_v)


def spec_to_sizes(spec: ModelSpec) -> ModelSizes:
    return _sizes(spec, spec.name, spec.quantization.lower(), spec.weight_bytes)


def shape_to_sizes(shape: Shape, quant: str) -> ModelSizes:
    """As `hetero model synth` would write it."""
    return _sizes(shape, f"{shape.name}-{quant}", quant, _shape_bytes(shape, quant))


def model_shape(model: ModelSpec | ModelSizes, fingerprint: ModelFingerprint | None) -> ModelShape:
    """What a profile says of the model that it is of. fingerprint: None for random weights."""
    return ModelShape(
        name=model.name,
        fingerprint=fingerprint,
        architecture=model.architecture,
        quantization=model.quantization,
        num_parameters=model.num_parameters,
        weight_bytes=model.weight_bytes,
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim_k=model.head_dim_k,
        head_dim_v=model.head_dim_v,
        num_experts=model.num_experts,
    )


def _shape_bytes(shape: Shape, quant: str) -> int:
    total = 0
    for name, dims in tensor_shapes(shape).items():
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type(shape, quant, name, dims)]
        total += math.prod(dims) // block_size * block_bytes
    return total


def _sizes(model: ModelSpec | Shape, name: str, quantization: str, weight_bytes: int) -> ModelSizes:
    return ModelSizes(
        name=name,
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
