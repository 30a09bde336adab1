"""What a model is, read from its header: the numbers engines, caches and plans are built from.

Any architecture whose standard keys exist has a spec, since llama.cpp may run it; whether the torch
engine can is that engine's to say. KV bytes are not here: `kv.layout` computes them from a spec.

Semantics of the keys, and their defaults, are those of llama.cpp's load_hparams (llama-model.cpp).
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import gguf

from hetero.errors import ModelError
from hetero.model.gguf_file import GGUFFile

RopeKind = Literal["norm", "neox"]
RopeScalingKind = Literal["none", "linear", "yarn", "longrope"]

# llama_model_rope_type in llama-model.cpp: these rotate neighbours (0, 1), (2, 3) ...; we name the
# rest "neox", halves (i, i + dim / 2), which is right for all that any engine but llama.cpp runs.
_NORM_ROPE = frozenset(
    {
        "llama",
        "llama4",
        "deci",
        "baichuan",
        "internlm2",
        "minicpm",
        "command-r",
        "cohere2",
        "olmo",
        "deepseek",
        "deepseek2",
        "chatglm",
        "glm4",
        "granite",
        "granitemoe",
        "smollm3",
        "mistral3",
    }
)
# These may carry a window in their file, and llama.cpp gives them a full cache nevertheless.
_WINDOW_IGNORED = frozenset({"llama", "mistral3", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"})

# llama.cpp's defaults; of the architectures we name, only mistral3 and deepseek2 can override them.
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """The arguments llama.cpp passes to ggml_rope_ext.

    With theta = position * base**(-2i / dim), divided by entry i of `rope_freqs.weight` if
    `has_factors`, pair i turns by theta / factor; under yarn (`ext_factor` 1) by a mix:

        corr(beta) = dim * ln(original_context / (2 pi beta)) / (2 ln base)
        low, high  = max(0, floor(corr(beta_fast))), min(dim - 1, ceil(corr(beta_slow)))
        mix        = ext_factor * (1 - clip((i - low) / max(0.001, high - low), 0, 1))
        angle      = theta / factor * (1 - mix) + theta * mix

    cos and sin are then multiplied by `magnitude`. Exact for llama, qwen2, qwen3 and qwen3moe;
    some other architectures have scaling keys of their own, which only llama.cpp reads.
    """

    kind: RopeKind
    dim: int
    base: float
    scaling: RopeScalingKind
    factor: float
    original_context: int
    attn_factor: float
    ext_factor: float
    beta_fast: float
    beta_slow: float
    has_factors: bool

    @property
    def magnitude(self) -> float:
        """`attn_factor` is what the kernel gets; under yarn the kernel corrects it once more."""
        if self.ext_factor == 0:
            return self.attn_factor
        return self.attn_factor * (1.0 + 0.1 * math.log(self.factor))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model's architecture and sizes. `ffn_size` is 0 where a file names none."""

    architecture: str
    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    ffn_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    num_experts: int
    num_experts_used: int
    sliding_window: int | None
    quantization: str
    num_parameters: int
    file_bytes: int
    weight_bytes: int


def gguf_to_spec(model: GGUFFile) -> ModelSpec:
    """Raises: ModelError that names the key which is missing or differs between layers."""
    keys = _Keys(model)
    num_heads = keys.integer("attention.head_count")
    if num_heads == 0:
        raise ModelError(f"{model.parts[0]}: {keys.architecture}: no attention heads")
    hidden_size = keys.integer("embedding_length")
    head_dim_k = keys.integer("attention.key_length", hidden_size // num_heads)
    context_length = keys.integer("context_length")
    window = keys.integer("attention.sliding_window", 0)
    tensors = model.tensors
    return ModelSpec(
        architecture=keys.architecture,
        name=_name(model),
        num_layers=keys.integer("block_count"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_heads),
        head_dim_k=head_dim_k,
        head_dim_v=keys.integer("attention.value_length", hidden_size // num_heads),
        ffn_size=keys.integer("feed_forward_length", 0),
        vocab_size=_vocab_size(model, keys),
        context_length=context_length,
        norm_eps=keys.number(
            "attention.layer_norm_rms_epsilon", keys.number("attention.layer_norm_epsilon", 0.0)
        ),
        rope=_rope(model, keys, head_dim_k, context_length),
        qkv_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings="output.weight" not in tensors,
        num_experts=keys.integer("expert_count", 0),
        num_experts_used=keys.integer("expert_used_count", 0),
        sliding_window=None if window == 0 or keys.architecture in _WINDOW_IGNORED else window,
        quantization=_quantization(model),
        num_parameters=sum(
            math.prod(tensor.shape)
            for tensor in tensors.values()
            # Frequency factors are computed from the configuration, not learned.
            if not tensor.name.startswith("rope_")
        ),
        file_bytes=sum(part.stat().st_size for part in model.parts),
        weight_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
    )


def rope_kind(architecture: str) -> RopeKind:
    return "norm" if architecture in _NORM_ROPE else "neox"


def quantization_label(file_type: gguf.LlamaFileType) -> str:
    """As users know it: "Q4_K_M"."""
    return str(file_type.name).removeprefix("MOSTLY_").removeprefix("ALL_")


class _Keys:
    """A file's `<architecture>.*` keys as numbers."""

    def __init__(self, model: GGUFFile) -> None:
        self._path = model.parts[0]
        self._metadata = model.metadata
        architecture = model.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ModelError(f"{self._path}: no key general.architecture: not a model file")
        self.architecture = architecture

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value != int(value) or value < 0:
            raise ModelError(f"{self._path}: {self.architecture}.{key}: not a count: {value}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        name = f"{self.architecture}.{key}"
        value = self._metadata.get(name, default)
        if isinstance(value, list):
            # Some architectures say it layer by layer.
            if len(set(value)) != 1:
                raise ModelError(
                    f"{self._path}: {name}: need one value for all layers, have {min(value)} to "
                    f"{max(value)}"
                )
            value = value[0]
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"{self._path}: {name}: need a number, have {value!r}")
        return value

    def rope_scaling(self) -> RopeScalingKind:
        name = f"{self.architecture}.rope.scaling.type"
        match self._metadata.get(name, "linear"):
            case "none" | "linear" | "yarn" | "longrope" as scaling:
                return scaling
            case other:
                raise ModelError(
                    f"{self._path}: {name}: need none, linear, yarn or longrope, have {other!r}"
                )


def _rope(model: GGUFFile, keys: _Keys, head_dim: int, context_length: int) -> RopeSpec:
    scaling = keys.rope_scaling()
    # "rope.scale_linear" is what the oldest files call it; 0 and absent both mean 1.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    if factor < 0:
        raise ModelError(f"{model.parts[0]}: RoPE scaling factor: need more than 0, have {factor}")
    if scaling == "none":
        factor = 1.0
    if scaling == "linear" and factor == 1.0:
        scaling = "none"
    original_context = keys.integer("rope.scaling.original_context_length", context_length)
    if scaling == "yarn" and original_context < 1:
        raise ModelError(
            f"{model.parts[0]}: RoPE original context: need at least 1, have {original_context}"
        )
    attn_factor = keys.number("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn" and factor < 1.0:
        # llama-context.cpp divides by what the kernel will multiply with, then sets the magnitude
        # itself; for factors above 1 the two cancel.
        attn_factor /= 1.0 + 0.1 * math.log(factor)
    return RopeSpec(
        kind=rope_kind(keys.architecture),
        dim=keys.integer("rope.dimension_count", head_dim),
        base=keys.number("rope.freq_base", 10000.0),
        scaling=scaling,
        factor=factor,
        original_context=original_context,
        attn_factor=attn_factor,
        ext_factor=1.0 if scaling == "yarn" else 0.0,
        beta_fast=YARN_BETA_FAST,
        beta_slow=YARN_BETA_SLOW,
        has_factors="rope_freqs.weight" in model.tensors,
    )


def _name(model: GGUFFile) -> str:
    name = model.metadata.get("general.name")
    return name if isinstance(name, str) and name else model.parts[0].stem


def _vocab_size(model: GGUFFile, keys: _Keys) -> int:
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else keys.integer("vocab_size")


def _quantization(model: GGUFFile) -> str:
    """The label users know ("Q4_K_M"), else the type that most bytes are stored in."""
    file_type = model.metadata.get("general.file_type")
    try:
        label = gguf.LlamaFileType(file_type)
    except ValueError:
        label = gguf.LlamaFileType.GUESSED
    if label != gguf.LlamaFileType.GUESSED:
        return quantization_label(label)
    type_bytes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        type_bytes[tensor.type.name] += tensor.num_bytes
    return type_bytes.most_common(1)[0][0] if type_bytes else "none"
