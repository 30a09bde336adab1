"""How large the kernel benchmark is: sizes worth measuring, and some to try it out."""

from dataclasses import dataclass, replace
from pathlib import Path

from hetero.model.shapes import SHAPES, Shape

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of every figure. The model is made in `folder` and kept there."""

    folder: Path
    quick: bool

    num_rounds: int
    turn_s: float  # about what an arm takes each round ...
    most_calls: int  # ... but no more calls than the CPU can queue while the GPU is busy
    runway_bytes: int  # filled before each turn: how the GPU is kept busy
    rotated_bytes: int  # memory that the inputs of calls alternate over: several L2 caches

    copy_bytes: int
    host_bytes: int
    matmul_size: int
    sustained_s: float  # of matrix products, whose clock sinks with their heat, as a prefill's does

    num_heads: int  # of attention and of the operations around it
    num_kv_heads: int
    head_dim: int
    attention_tokens: tuple[int, ...]
    chunk: tuple[int, int]  # first and end of the new tokens
    small_head_tokens: int  # at head_dim 64
    packed_lengths: tuple[int, ...]

    pack_layers: int
    pack_tokens: int
    pack_heads: int
    matrix_shape: tuple[int, int]
    op_tokens: int
    hidden_size: int
    ffn_size: int

    shape: Shape
    quant: str
    prompt_tokens: int


def full_settings(folder: Path) -> Settings:
    """An 8B model's sizes: five minutes, 20 GB of GPU memory, 5 GB of disk."""
    return Settings(
        folder=folder,
        quick=False,
        num_rounds=7,
        turn_s=0.01,
        most_calls=12,
        runway_bytes=256 * _MIB,
        rotated_bytes=512 * _MIB,
        copy_bytes=1024 * _MIB,
        host_bytes=256 * _MIB,
        matmul_size=8192,
        sustained_s=0.25,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        attention_tokens=(4096, 8192, 16384, 32768),
        chunk=(6144, 8192),
        small_head_tokens=8192,
        packed_lengths=tuple(range(64, 64 + 16 * 64, 64)),
        pack_layers=4,
        pack_tokens=8192,
        pack_heads=8,
        matrix_shape=(4096, 14336),
        op_tokens=4096,
        hidden_size=4096,
        ffn_size=14336,
        shape=SHAPES["llama-3.1-8b"],
        quant="q4_k_m",
        prompt_tokens=8192,
    )


def quick_settings(folder: Path) -> Settings:
    """Every figure in seconds, also where Triton is interpreted: the numbers mean nothing."""
    return replace(
        full_settings(folder),
        quick=True,
        num_rounds=1,
        turn_s=0.0,
        most_calls=1,
        runway_bytes=_MIB,
        rotated_bytes=1,
        copy_bytes=_MIB,
        host_bytes=_MIB,
        matmul_size=64,
        sustained_s=0.0,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        attention_tokens=(48,),
        chunk=(24, 40),
        small_head_tokens=40,
        packed_lengths=(5, 17),
        pack_layers=1,
        pack_tokens=8,
        pack_heads=2,
        matrix_shape=(8, 512),
        op_tokens=5,
        hidden_size=128,
        ffn_size=64,
        shape=Shape(
            name="tiny-kernels",
            architecture="llama",
            num_layers=2,
            hidden_size=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=64,
            ffn_size=256,
            vocab_size=512,
            context_length=4096,
            norm_eps=1e-5,
            rope_base=10000.0,
        ),
        prompt_tokens=24,
    )
