"""Figure `pack`: f32 values that `pack_rows` rotates and quantizes per second, on one core.

Ceiling: memcpy of the input; packing reads as much and writes a quarter. In between lie three
passes: a dot product that finds inf and nan, the rotation (butterflies and a small matrix product),
and ggml's quantizer. Input is as a prefill engine has it, a frame's worth of layers at a time.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_least
from hetero.experiment.turns import flat, ratios, take_turns
from hetero.kv.layout import kv_layout
from hetero.kv.rows import pack_rows

_HEAD_DIMS = (64, 128, 256)
_ROW_VALUES = 1024  # 8 KV heads of 128, or as many values in other heads
_FRAME_LAYERS = 4

# Frames are packed one after the other, and were computed long before: not from the caches.
_NUM_FRAMES = 8


def measure(settings: Settings, say: Say) -> list[Figure]:
    say("pack: the ceiling is memcpy of the f32 input, beside it; the target is 1 GB/s")
    return [_measure(settings, head_dim) for head_dim in _HEAD_DIMS]


def _measure(settings: Settings, head_dim: int) -> Figure:
    layout = kv_layout(
        num_layers=_FRAME_LAYERS,
        num_kv_heads=_ROW_VALUES // head_dim,
        head_dim_k=head_dim,
        head_dim_v=head_dim,
        k_type="q8_0",
        v_type="q8_0",
    )
    shape = (_FRAME_LAYERS, settings.pack_tokens, _ROW_VALUES // head_dim, head_dim)
    rng = np.random.default_rng(0)
    frames = [rng.standard_normal(shape, dtype=np.float32) for _ in range(_NUM_FRAMES)]
    target = np.zeros_like(frames[0])
    rounds = take_turns(
        {
            "memcpy": lambda: _gb_per_s(frames, lambda frame: np.copyto(target, frame)),
            "pack": lambda: _gb_per_s(frames, lambda frame: pack_rows(frame, "k", layout)),
        },
        settings.num_rounds,
    )
    return Figure(
        name=f"pack_head_dim_{head_dim}",
        says="f32 input that is rotated and quantized to q8_0 on one core",
        value=median(flat(rounds["pack"])),
        unit="GB/s",
        target=at_least(1.0),
        arms={
            "pack_gb_per_s": flat(rounds["pack"]),
            "memcpy_gb_per_s": flat(rounds["memcpy"]),
            "round_ratio": ratios(rounds["pack"], rounds["memcpy"]),
        },
        parameters={"shape": shape, "rotation": layout.k_rotation},
    )


def _gb_per_s(frames: list[np.ndarray], copy: Callable[[np.ndarray], object]) -> list[float]:
    rates = []
    for frame in frames:
        started = time.perf_counter()
        copy(frame)
        rates.append(frame.nbytes / 1e9 / (time.perf_counter() - started))
    return rates
