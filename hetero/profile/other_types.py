"""Fits of caches that were not measured, from those that were.

What a chunk reads of cells is in proportion to their bytes. What a pair takes is that of the
nearest measured types, f16 and bf16 from such, quantized ones from quantized ones where there are
any: in a decode step nothing is scaled. Neither knows how fast a type is decoded, so the interval
is wide.
"""

from collections.abc import Iterator, Sequence

import msgspec

from hetero.errors import ModelError
from hetero.kv.layout import kv_layout
from hetero.profile.node_profile import EngineFit, ModelShape

# What a node may be asked for; K in more bits than V, since keys suffer more from few.
PAIRS = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"))

# 90% of estimates are thought to lie within this share, beside the fit's own interval.
_SHARE = 0.35


def estimated_fits(
    fits: Sequence[EngineFit], model: ModelShape, pairs: Sequence[tuple[str, str]] = PAIRS
) -> Iterator[EngineFit]:
    """For each role, engine, device and cache mode: the pairs that it lacks."""
    groups: dict[tuple[object, ...], list[EngineFit]] = {}
    for fit in fits:
        key = (fit.role, fit.engine, fit.device, fit.unified)
        groups.setdefault(key, []).append(fit)
    for group in groups.values():
        have = {(fit.kv_k, fit.kv_v) for fit in group}
        for types in pairs:
            num_bytes = _token_bytes(model, types)
            if types not in have and num_bytes is not None:
                yield _estimate(group, model, types, num_bytes)


def _estimate(
    group: Sequence[EngineFit], model: ModelShape, types: tuple[str, str], num_bytes: int
) -> EngineFit:
    def distance(fit: EngineFit) -> tuple[bool, float]:
        have = (fit.kv_k, fit.kv_v)
        return _is_quantized(have) != _is_quantized(types), abs(bytes_of(fit) - num_bytes)

    def bytes_of(fit: EngineFit) -> int:
        return _token_bytes(model, (fit.kv_k, fit.kv_v)) or num_bytes

    nearest = min(group, key=distance)
    scale = num_bytes / bytes_of(nearest)
    cost = msgspec.structs.replace(
        nearest.cost,
        cell_s=scale * nearest.cost.cell_s,
        tile_cell_s=scale * nearest.cost.tile_cell_s,
    )
    low, high = nearest.interval
    return msgspec.structs.replace(
        nearest,
        source="estimated",
        kv_k=types[0],
        kv_v=types[1],
        cost=cost,
        interval=(low / (1 + _SHARE), high * (1 + _SHARE)),
        error=None,
        samples=[],
    )


def _is_quantized(types: tuple[str, str]) -> bool:
    return any(name not in ("f16", "bf16", "f32") for name in types)


def _token_bytes(model: ModelShape, types: tuple[str, str]) -> int | None:
    """None: this model's heads don't hold whole blocks of such a type."""
    try:
        layout = kv_layout(
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads,
            head_dim_k=model.head_dim_k,
            head_dim_v=model.head_dim_v,
            k_type=types[0],
            v_type=types[1],
        )
    except ModelError:
        return None
    return layout.token_bytes
