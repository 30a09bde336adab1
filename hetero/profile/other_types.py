"""Fits of caches that were not measured, from those that were: what attention reads is bytes.

Between two measured pairs of types the cost of a visible pair is a line over its bytes; from one
alone, it is in proportion. Neither knows how fast a type is decoded, so the interval is wide.
"""

from collections.abc import Iterator, Sequence

import msgspec

from hetero.errors import ModelError
from hetero.kv.layout import kv_layout
from hetero.profile.node_profile import EngineFit, ModelShape

# What a node may be asked for; K in more bits than V, since keys suffer more from few.
PAIRS = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"))

# Decoding 4 bits takes twice the arithmetic of 8 where that is what bounds a step.
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
            if types not in have and (num_bytes := _token_bytes(model, types)) is not None:
                yield _estimate(group, model, types, num_bytes)


def _estimate(
    group: Sequence[EngineFit], model: ModelShape, types: tuple[str, str], num_bytes: int
) -> EngineFit:
    known = [
        (have_bytes, fit)
        for fit in group
        if (have_bytes := _token_bytes(model, (fit.kv_k, fit.kv_v))) is not None
    ]
    known.sort(key=lambda each: each[0])
    nearest_bytes, nearest = min(known, key=lambda each: abs(each[0] - num_bytes))
    visible_s = nearest.cost.visible_s * num_bytes / nearest_bytes
    if len(known) > 1:
        (low_bytes, low), (high_bytes, high) = known[0], known[-1]
        slope = (high.cost.visible_s - low.cost.visible_s) / (high_bytes - low_bytes)
        on_line = nearest.cost.visible_s + slope * (num_bytes - nearest_bytes)
        # Fewer bytes never cost more than they do where they were measured, nor nothing.
        visible_s = min(max(on_line, visible_s), max(low.cost.visible_s, high.cost.visible_s))
    low_factor, high_factor = nearest.interval
    return msgspec.structs.replace(
        nearest,
        source="estimated",
        kv_k=types[0],
        kv_v=types[1],
        cost=msgspec.structs.replace(nearest.cost, visible_s=visible_s),
        interval=(low_factor / (1 + _SHARE), high_factor * (1 + _SHARE)),
        error=None,
        samples=[],
    )


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
