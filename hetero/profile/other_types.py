"""Fits of caches that were not measured, from those that were.

What a pair takes in a decode step is its cell's way from memory, and arithmetic: the way is bytes
over the device's bandwidth, or all of it where cells came faster, out of caches. The way is scaled
by bytes, arithmetic is the nearest measured type's, K's and V's halves each on their own. So many
cores, which wait for memory, get all of a smaller type's advantage, and few, which compute, little.
In a chunk only its cells are scaled: pairs find theirs in caches.

How fast a type is decoded is not known, nor how far its way hides behind arithmetic, so the
interval is wide.
"""

from collections.abc import Sequence

import msgspec

from hetero.errors import ModelError
from hetero.kv.layout import KVLayout, model_layout
from hetero.kv.types import kv_type
from hetero.profile.model_shape import ModelShape
from hetero.profile.node_profile import Ceilings, EngineFit
from hetero.profile.rates import roof
from hetero.profile.step_cost import StepCost

# What a node may be asked for; K in more bits than V, since keys suffer more from few.
PAIRS = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0"))

# 90% of estimates are thought to lie within this share, beside the fit's own interval: a guess.
# Floats from quantized types or the other way round is a wider one.
_SHARE = 0.35
_OTHER_KIND_SHARE = 1.0

_KINDS = ("k", "v")


def estimated_fits(
    fits: Sequence[EngineFit], model: ModelShape, ceilings: Ceilings
) -> list[EngineFit]:
    """For each role, engine, device and cache mode: those of PAIRS that it lacks. Of a device that
    the ceilings say nothing of, nothing is taken to wait for memory."""
    found = []
    groups: dict[tuple[object, ...], list[EngineFit]] = {}
    for fit in fits:
        key = (fit.role, fit.engine, fit.device, fit.unified)
        groups.setdefault(key, []).append(fit)
    for group in groups.values():
        above = roof(ceilings, group[0].device)
        of_group = _Group(group, model, None if above is None else above.bytes_per_s)
        have = {(fit.kv_k, fit.kv_v) for fit in group}
        for types in PAIRS:
            layout = _layout(model, *types)
            if types not in have and layout is not None:
                found.append(of_group.estimate(layout))
    return found


class _Group:
    """Fits that differ in types alone."""

    def __init__(
        self, fits: Sequence[EngineFit], model: ModelShape, bytes_per_s: float | None
    ) -> None:
        self._fits = [(fit, model_layout(model, fit.kv_k, fit.kv_v)) for fit in fits]
        self._bytes_per_s = bytes_per_s

    def estimate(self, want: KVLayout) -> EngineFit:
        nearest, have = min(self._fits, key=lambda each: _distance(each[1], want, _KINDS))
        is_other_kind = _is_quantized(have, _KINDS) != _is_quantized(want, _KINDS)
        share = _OTHER_KIND_SHARE if is_other_kind else _SHARE
        low, high = nearest.interval
        return msgspec.structs.replace(
            nearest,
            source="estimated",
            kv_k=want.k_type,
            kv_v=want.v_type,
            cost=self._cost(nearest.cost, have, want),
            interval=(low / (1 + share), high * (1 + share)),
            error=None,
            samples=[],
        )

    def _cost(self, cost: StepCost, have: KVLayout, want: KVLayout) -> StepCost:
        scale = want.token_bytes / have.token_bytes
        halves = [self._half_pair_s(want, kind) for kind in _KINDS]
        pair_s = [sum(both) for both in zip(*halves, strict=True)]
        return msgspec.structs.replace(
            cost,
            pair_s=pair_s,
            tiles=None,  # llama.cpp has them for f16 only
            cell_s=scale * cost.cell_s,
            deep_cell_s=scale * cost.deep_cell_s,
        )

    def _half_pair_s(self, want: KVLayout, kind: str) -> list[float]:
        """Of K or of V, by length."""
        source, have = min(
            self._fits,
            key=lambda each: (
                *_distance(each[1], want, (kind,)),
                *_distance(each[1], want, _KINDS),
            ),
        )
        way_s = 0.0
        if source.role == "decode" and self._bytes_per_s is not None:
            way_s = have.token_bytes / self._bytes_per_s
        part = _head_dim(want, kind) / (want.head_dim_k + want.head_dim_v)
        bytes_share = want.num_layers * want.row_bytes(kind) / have.token_bytes
        return [
            part * (seconds - min(way_s, seconds)) + bytes_share * min(way_s, seconds)
            for seconds in source.cost.pair_s
        ]


def _distance(have: KVLayout, want: KVLayout, kinds: Sequence[str]) -> tuple[bool, int]:
    """The smaller, the more alike are those caches' K, V, or both."""
    return (
        _is_quantized(have, kinds) != _is_quantized(want, kinds),
        abs(sum(have.row_bytes(kind) - want.row_bytes(kind) for kind in kinds)),
    )


def _is_quantized(layout: KVLayout, kinds: Sequence[str]) -> bool:
    types = {"k": layout.k_type, "v": layout.v_type}
    return any(kv_type(types[kind]).is_quantized for kind in kinds)


def _head_dim(layout: KVLayout, kind: str) -> int:
    return layout.head_dim_k if kind == "k" else layout.head_dim_v


def _layout(model: ModelShape, kv_k: str, kv_v: str) -> KVLayout | None:
    """None: this model's heads don't hold whole blocks of such a type."""
    try:
        return model_layout(model, kv_k, kv_v)
    except ModelError:
        return None
