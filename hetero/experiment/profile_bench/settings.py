"""On which models, how many points, and how a node would be configured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hetero.model.shapes import SHAPES, Shape


@dataclass(frozen=True)
class BenchModel:
    """longest_prompt: tokens; a large model reads them too slowly for more."""

    shape: Shape
    quant: str
    longest_prompt: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """models: by the name that --only takes."""

    folder: Path
    models: Mapping[str, BenchModel]
    num_points: int  # of each role
    budget_s: float
    slots: int
    context_tokens: int
    chunk_tokens: int


def full_settings(folder: Path) -> Settings:
    """Half an hour on two cores, 5 GB of memory, 1 GB of disk."""
    return Settings(
        folder=folder,
        models={
            "kv-heavy": BenchModel(_kv_heavy(), "f16", 4095),
            "1b": BenchModel(SHAPES["llama-3.2-1b"], "q4_0", 1024),
        },
        num_points=30,
        budget_s=180.0,
        slots=8,
        context_tokens=4096,
        chunk_tokens=512,
    )


def quick_settings(folder: Path) -> Settings:
    tiny = replace(_kv_heavy(), name="tiny", num_layers=2, hidden_size=128, num_heads=2,
                   num_kv_heads=2, ffn_size=256, vocab_size=1000)  # fmt: skip
    return replace(
        full_settings(folder),
        models={"tiny": BenchModel(tiny, "q8_0", 128)},
        num_points=4,
        budget_s=10.0,
        slots=2,
        context_tokens=256,
        chunk_tokens=64,
    )


def _kv_heavy() -> Shape:
    """145M parameters, at f16 more than a large server's last-level cache, and 52 kB of K and V a
    token: an eighth of a 7B model's, to a fiftieth of its weights."""
    return replace(
        SHAPES["llama-3.2-1b"],
        name="kv-heavy-145m",
        num_layers=17,
        hidden_size=768,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        ffn_size=2048,
        vocab_size=16000,
        tied_embeddings=False,
    )
