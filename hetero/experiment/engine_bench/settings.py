"""How large the benchmark is: one set of sizes for figures worth keeping, one to try it out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hetero.model.shapes import SHAPES, Shape


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of every figure. Models are made in `folder` and kept there."""

    folder: Path
    num_threads: int  # of each engine
    quick: bool

    shape: Shape  # the 1B one
    quant: str
    context_tokens: int  # each sequence's length when measuring begins
    headroom_tokens: int  # that it may grow by: fills up a multiple of llama.cpp's 256 cells
    num_rounds: int

    batch_sizes: tuple[int, ...]
    rows_per_turn: int  # decode steps x batch, so that turns take about the same time

    churn_batch: int
    churn_steps: int  # per turn
    churn_every: int  # steps between a leave and a join, on average

    python_batch: int
    python_steps: int
    python_shape: Shape  # so small that Python's part of a step shows
    vocabulary_shape: Shape  # nothing but a large vocabulary
    large_shape: Callable[[int], Shape]  # by its number of layers
    large_layers: tuple[int, int]  # measured
    large_all_layers: int  # extrapolated to

    restore_shape: Shape
    restore_tokens: tuple[int, ...]
    num_copies: int  # per turn

    pack_tokens: int
    num_exposed: int
    prefill_dtype: str

    itl_streams: int
    itl_steps: int  # per turn
    arrival_s: float  # a prompt's rows are spread over this time

    memory_slots: int


def full_settings(folder: Path, num_threads: int) -> Settings:
    """A quarter of an hour on two cores, 10 GB of memory, 4 GB of disk."""
    return Settings(
        folder=folder,
        num_threads=num_threads,
        quick=False,
        shape=SHAPES["llama-3.2-1b"],
        quant="q4_0",
        context_tokens=2000,
        headroom_tokens=304,
        num_rounds=3,
        batch_sizes=(1, 8, 32),
        rows_per_turn=48,
        churn_batch=16,
        churn_steps=16,
        churn_every=4,
        python_batch=32,
        python_steps=100,
        python_shape=_small_shape("tiny"),
        vocabulary_shape=_small_shape("vocabulary", vocab_size=128256),
        large_shape=lambda layers: replace(
            SHAPES["llama-3.1-8b"], name=f"llama-3.1-8b-{layers}-layers", num_layers=layers
        ),
        large_layers=(2, 6),
        large_all_layers=32,
        # The KV of an 8B model, 68 KiB a token at q8_0, without its weights.
        restore_shape=_small_shape(
            "kv-of-8b", num_layers=32, num_heads=8, num_kv_heads=8, head_dim=128
        ),
        restore_tokens=(1024, 2048),
        num_copies=5,
        pack_tokens=512,
        num_exposed=5,
        prefill_dtype="bfloat16" if _computes_bfloat16() else "float32",
        itl_streams=16,
        itl_steps=30,
        arrival_s=1.0,
        memory_slots=8,
    )


def quick_settings(folder: Path, num_threads: int) -> Settings:
    """Every figure in seconds, on models too small for any number to mean something."""
    return replace(
        full_settings(folder, num_threads),
        quick=True,
        shape=_small_shape("tiny"),
        context_tokens=96,
        headroom_tokens=160,
        num_rounds=2,
        batch_sizes=(1, 2, 4),
        rows_per_turn=8,
        churn_batch=4,
        churn_steps=12,
        python_batch=4,
        python_steps=4,
        vocabulary_shape=_small_shape("quick-vocabulary", vocab_size=2048),
        large_shape=lambda layers: _small_shape(f"quick-{layers}-layers", num_layers=layers),
        large_layers=(1, 2),
        large_all_layers=4,
        restore_shape=_small_shape("tiny"),
        restore_tokens=(64,),
        num_copies=2,
        pack_tokens=16,
        num_exposed=2,
        prefill_dtype="float32",
        itl_streams=3,
        itl_steps=8,
        arrival_s=0.02,
        memory_slots=2,
    )


def _small_shape(
    name: str,
    *,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    vocab_size: int = 512,
) -> Shape:
    return Shape(
        name=name,
        architecture="llama",
        num_layers=num_layers,
        hidden_size=256,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        ffn_size=512,
        vocab_size=vocab_size,
        context_length=4096,
        norm_eps=1e-5,
        rope_base=10000.0,
    )


def _computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively: torch emulates it slowly where it doesn't."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
