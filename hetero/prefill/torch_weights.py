"""What weights the torch model computes with, and which models it knows.

Axes: O outputs, I inputs of a matrix; E hidden, D head_dim, V vocabulary, N rows.

A tensor in the file that the model would not use is refused, not skipped: an unknown tensor is an
unknown term in the formula, and the KV would be wrong without any sign of it. Where the weights
lie is not this file's business: see `layer_sources`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
import torch.nn.functional as F

from hetero.errors import ModelError
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import ModelSpec

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Matrices with the same input are one product: one launch, and the input is read once.
FUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "attention_output": ("attn_output",),
        "gate_up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
    }
)


@dataclass(frozen=True, slots=True)
class Linear:
    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_OI, self.bias_O)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    attention_norm_E: torch.Tensor
    qkv: Linear
    q_norm_D: torch.Tensor | None
    k_norm_D: torch.Tensor | None
    attention_output: Linear
    ffn_norm_E: torch.Tensor
    gate_up: Linear
    down: Linear


class LayerSource(Protocol):
    def layers(self) -> Iterator[LayerWeights]:
        """One pass over the layers, in order. A layer's matrices are valid until the next."""


class VocabularyMatrix(Protocol):
    """The embedding, the output matrix, or both in one."""

    def rows(self, tokens_T: torch.Tensor) -> torch.Tensor:
        """(tokens, E): the embeddings of these tokens."""

    def logits(self, x_NE: torch.Tensor) -> torch.Tensor:
        """(N, V) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    embedding: VocabularyMatrix
    layers: LayerSource
    output_norm_E: torch.Tensor
    output: VocabularyMatrix
    rope_factors_R: torch.Tensor | None  # float32 on the CPU, where the tables are made


def check_supported(spec: ModelSpec) -> None:
    """Raises: ModelError if the torch model can't compute this model."""
    problem = _unsupported(spec)
    if problem:
        raise ModelError(f"{spec.name}: torch can't prefill {problem}: use --prefill llama")


def _unsupported(spec: ModelSpec) -> str | None:
    """What of this model the torch engine can't compute, or None."""
    if spec.architecture not in ARCHITECTURES:
        return f"architecture {spec.architecture!r} (it knows {', '.join(ARCHITECTURES)})"
    if spec.num_experts:
        return f"architecture {spec.architecture!r} with {spec.num_experts} experts"
    if spec.sliding_window is not None:
        return f"architecture {spec.architecture!r} with a sliding window"
    if spec.rope.scaling == "longrope":
        return f"architecture {spec.architecture!r} with longrope scaling"
    if spec.head_dim_k != spec.head_dim_v:
        return f"K heads of {spec.head_dim_k} dims with V heads of {spec.head_dim_v}"
    if spec.num_heads % spec.num_kv_heads:
        return f"{spec.num_heads} heads over {spec.num_kv_heads} KV heads"
    if spec.rope.dim % 2 or spec.rope.dim > spec.head_dim_k:
        return f"RoPE over {spec.rope.dim} of {spec.head_dim_k} dims"
    return None


def tensor_shapes(file: GGUFFile, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor the model uses: the required ones, and the optional ones the file has.

    Raises: ModelError if tensors are missing, unknown, or of the wrong shape.
    """
    hidden, ffn, head_dim = spec.hidden_size, spec.ffn_size, spec.head_dim_k
    q_size, kv_size = spec.num_heads * head_dim, spec.num_kv_heads * head_dim
    vocabulary = (spec.vocab_size, hidden)
    shapes = {"token_embd.weight": vocabulary, "output_norm.weight": (hidden,)}
    optional = {"output.weight": vocabulary, "output.bias": (spec.vocab_size,)}
    if spec.architecture == "llama":  # llama.cpp gives the others no factors
        optional["rope_freqs.weight"] = (spec.rope.dim // 2,)
    matrices = {
        "attn_q": (q_size, hidden),
        "attn_k": (kv_size, hidden),
        "attn_v": (kv_size, hidden),
        "attn_output": (hidden, q_size),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
    }
    norms = {"attn_norm": hidden, "ffn_norm": hidden}
    if spec.architecture == "qwen3":
        norms |= {"attn_q_norm": head_dim, "attn_k_norm": head_dim}
    for index in range(spec.num_layers):
        block = f"blk.{index}."
        shapes |= {f"{block}{name}.weight": (size,) for name, size in norms.items()}
        shapes |= {f"{block}{name}.weight": shape for name, shape in matrices.items()}
        optional |= {f"{block}{name}.bias": shape[:1] for name, shape in matrices.items()}
    shapes |= {name: optional[name] for name in optional.keys() & file.tensors.keys()}
    _check_tensors(file, shapes)
    return shapes


def _check_tensors(file: GGUFFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    path = file.parts[0]
    missing, unknown = shapes.keys() - file.tensors.keys(), file.tensors.keys() - shapes.keys()
    if missing:
        raise ModelError(f"{path}: need tensor {min(missing)!r}, the file has none")
    if unknown:
        raise ModelError(
            f"{path}: tensor {min(unknown)!r} is not in the formula torch knows for this "
            "architecture: use --prefill llama"
        )
    for name, need in shapes.items():
        have = file.tensors[name].shape
        if have != need:
            raise ModelError(f"{path}: tensor {name!r}: need shape {need}, have {have}")
