"""Shapes of published models by name, and the tensors a model of some shape consists of.

Numbers are from each model's published `config.json`. No weights and no files here: `synth` writes
them, and the planner asks this table when the user has no model file yet.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from hetero.errors import ConfigError

RopeScaling = Literal["none", "linear", "yarn", "llama3"]

QUANTS = ("f16", "bf16", "q8_0", "q4_0", "q4_k", "q4_k_m", "q5_k_m", "q6_k")
DEFAULT_QUANT = "q4_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Everything about a model but its weights and vocabulary."""

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_base: float
    rope_scaling: RopeScaling = "none"
    rope_factor: float = 1.0
    rope_original_context: int = 0
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    num_experts_used: int = 0
    expert_ffn_size: int = 0

    @property
    def head_dim_k(self) -> int:
        return self.head_dim

    @property
    def head_dim_v(self) -> int:
        return self.head_dim

    @property
    def num_parameters(self) -> int:
        count = 0
        for dims in tensor_shapes(self).values():
            size = 1
            for dim in dims:
                size *= dim
            count += size
        return count


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name -> dimensions in numpy order, in the order files have them.

    The frequency factors of llama3 RoPE scaling are not counted: they are computed, not learned.
    """
    hidden, head = shape.hidden_size, shape.head_dim
    q_size, kv_size = shape.num_heads * head, shape.num_kv_heads * head
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (q_size, hidden),
            "attn_k.weight": (kv_size, hidden),
            "attn_v.weight": (kv_size, hidden),
            "attn_output.weight": (hidden, q_size),
            "ffn_norm.weight": (hidden,),
        }
        if shape.qkv_bias:
            block |= {
                "attn_q.bias": (q_size,),
                "attn_k.bias": (kv_size,),
                "attn_v.bias": (kv_size,),
            }
        if shape.qk_norm:
            block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        if shape.num_experts:
            experts, ffn = shape.num_experts, shape.expert_ffn_size
            block |= {
                "ffn_gate_inp.weight": (experts, hidden),
                "ffn_gate_exps.weight": (experts, ffn, hidden),
                "ffn_up_exps.weight": (experts, ffn, hidden),
                "ffn_down_exps.weight": (experts, hidden, ffn),
            }
        else:
            block |= {
                "ffn_gate.weight": (shape.ffn_size, hidden),
                "ffn_up.weight": (shape.ffn_size, hidden),
                "ffn_down.weight": (hidden, shape.ffn_size),
            }
        tensors |= {f"blk.{layer}.{name}": dims for name, dims in block.items()}
    tensors["output_norm.weight"] = (hidden,)
    if not shape.tied_embeddings:
        tensors["output.weight"] = (shape.vocab_size, hidden)
    return tensors


def parse_shape(text: str) -> tuple[Shape, str]:
    """ "llama-3.1-8b-q4_k_m" -> its shape and "q4_k_m"; without a quant, `DEFAULT_QUANT`.

    Raises: ConfigError that lists near names when there is no such shape or quant.
    """
    name, quant = text.lower(), DEFAULT_QUANT
    for candidate in QUANTS:
        if name.endswith("-" + candidate):
            name, quant = name.removesuffix("-" + candidate), candidate
            break
    if name in SHAPES:
        return SHAPES[name], quant
    # "llama-3.1-8b-q3_k": the shape is fine, what follows is not.
    for known in SHAPES:
        if name.startswith(known + "-"):
            unknown = name.removeprefix(known + "-")
            raise ConfigError(
                f"shape {text!r}: unknown quant {unknown!r}, have {', '.join(QUANTS)}"
            )
    near = get_close_matches(name, SHAPES, n=4, cutoff=0.5) or sorted(SHAPES)
    raise ConfigError(f"shape {text!r}: no such shape, near: {', '.join(near)}")


def _llama3(
    name: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    head_dim: int = 128,
    ffn: int,
    factor: float,
    tied: bool,
) -> Shape:
    return Shape(
        name=name,
        architecture="llama",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        ffn_size=ffn,
        vocab_size=128256,
        context_length=131072,
        norm_eps=1e-5,
        rope_base=500000.0,
        rope_scaling="llama3",
        rope_factor=factor,
        rope_original_context=8192,
        tied_embeddings=tied,
    )


def _qwen2(
    name: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 128,
    ffn: int,
    vocab: int = 151936,
    tied: bool,
) -> Shape:
    return Shape(
        name=name,
        architecture="qwen2",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=ffn,
        vocab_size=vocab,
        context_length=32768,
        norm_eps=1e-6,
        rope_base=1000000.0,
        tied_embeddings=tied,
        qkv_bias=True,
    )


def _qwen3(
    name: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int = 8,
    ffn: int,
    tied: bool,
    experts: int = 0,
    experts_used: int = 0,
    expert_ffn: int = 0,
) -> Shape:
    return Shape(
        name=name,
        architecture="qwen3moe" if experts else "qwen3",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        ffn_size=ffn,
        vocab_size=151936,
        context_length=40960,
        norm_eps=1e-6,
        rope_base=1000000.0,
        tied_embeddings=tied,
        qk_norm=True,
        num_experts=experts,
        num_experts_used=experts_used,
        expert_ffn_size=expert_ffn,
    )


def _llama2(name: str, *, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> Shape:
    return Shape(
        name=name,
        architecture="llama",
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        ffn_size=ffn,
        vocab_size=32000,
        context_length=4096,
        norm_eps=1e-5,
        rope_base=10000.0,
    )


_ALL = (
    # What most published speeds are of.
    _llama2("llama-2-7b", layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008),
    _llama2("llama-2-13b", layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824),
    _llama2("llama-2-70b", layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672),
    _llama3("llama-3.1-8b", layers=32, hidden=4096, heads=32, ffn=14336, factor=8, tied=False),
    _llama3("llama-3.1-70b", layers=80, hidden=8192, heads=64, ffn=28672, factor=8, tied=False),
    _llama3(
        "llama-3.2-1b",
        layers=16,
        hidden=2048,
        heads=32,
        head_dim=64,
        ffn=8192,
        factor=32,
        tied=True,
    ),
    _llama3("llama-3.2-3b", layers=28, hidden=3072, heads=24, ffn=8192, factor=32, tied=True),
    # v0.3: the versions before have 32,000 tokens and, in v0.1, a window llama.cpp ignores.
    Shape(
        name="mistral-7b",
        architecture="llama",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_size=14336,
        vocab_size=32768,
        context_length=32768,
        norm_eps=1e-5,
        rope_base=1000000.0,
    ),
    Shape(
        name="tinyllama-1.1b",
        architecture="llama",
        num_layers=22,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
        ffn_size=5632,
        vocab_size=32000,
        context_length=2048,
        norm_eps=1e-5,
        rope_base=10000.0,
    ),
    _qwen2(
        "qwen2.5-0.5b",
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        ffn=4864,
        tied=True,
    ),
    _qwen2("qwen2.5-1.5b", layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960, tied=True),
    _qwen2(
        "qwen2.5-7b",
        layers=28,
        hidden=3584,
        heads=28,
        kv_heads=4,
        ffn=18944,
        vocab=152064,
        tied=False,
    ),
    _qwen2(
        "qwen2.5-14b",
        layers=48,
        hidden=5120,
        heads=40,
        kv_heads=8,
        ffn=13824,
        vocab=152064,
        tied=False,
    ),
    _qwen3("qwen3-0.6b", layers=28, hidden=1024, heads=16, ffn=3072, tied=True),
    _qwen3("qwen3-1.7b", layers=28, hidden=2048, heads=16, ffn=6144, tied=True),
    _qwen3("qwen3-4b", layers=36, hidden=2560, heads=32, ffn=9728, tied=True),
    _qwen3("qwen3-8b", layers=36, hidden=4096, heads=32, ffn=12288, tied=False),
    _qwen3("qwen3-14b", layers=40, hidden=5120, heads=40, ffn=17408, tied=False),
    _qwen3("qwen3-32b", layers=64, hidden=5120, heads=64, ffn=25600, tied=False),
    _qwen3(
        "qwen3-30b-a3b",
        layers=48,
        hidden=2048,
        heads=32,
        kv_heads=4,
        ffn=6144,
        tied=False,
        experts=128,
        experts_used=8,
        expert_ffn=768,
    ),
)

SHAPES = {shape.name: shape for shape in _ALL}
