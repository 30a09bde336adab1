"""What the rows of one model's KV cache look like: names, sizes, rotation.

A row is one token's KV heads side by side. Nothing here imports torch or llama.cpp.
"""

from typing import Protocol

import msgspec

from hetero.errors import ModelError
from hetero.kv.types import KVType, kv_type

# llama.cpp rotates V in groups of 64 whatever its head_dim, K in the largest power of two that
# divides its head_dim, and neither where 64 does not divide it (llama-kv-cache.cpp, #21038).
_SMALLEST_ROTATION = 64


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The cache of one model at one pair of types; peers compare it field by field."""

    num_layers: int
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    k_type: str
    v_type: str
    k_rotation: int  # size of the Hadamard blocks its values are multiplied by; 0: none
    v_rotation: int

    @property
    def k_row_bytes(self) -> int:
        return kv_type(self.k_type).row_bytes(self.num_kv_heads * self.head_dim_k)

    @property
    def v_row_bytes(self) -> int:
        return kv_type(self.v_type).row_bytes(self.num_kv_heads * self.head_dim_v)

    def row_bytes(self, kind: str) -> int:
        return self.k_row_bytes if kind == "k" else self.v_row_bytes

    @property
    def token_bytes(self) -> int:
        """K and V of one token over all layers: what the wire carries per prompt token."""
        return self.num_layers * (self.k_row_bytes + self.v_row_bytes)


def kv_layout(
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim_k: int,
    head_dim_v: int,
    k_type: str,
    v_type: str,
) -> KVLayout:
    """The layout llama.cpp gives a model's cache.

    Raises: ConfigError for unknown types, ModelError when a row would not hold whole blocks.
    """
    for kind, name, head_dim in (("K", k_type, head_dim_k), ("V", v_type, head_dim_v)):
        blocks = kv_type(name).block_elements
        if head_dim % blocks:
            raise ModelError(
                f"{kind} cache of type {name}: need a head_dim divisible by {blocks}, "
                f"have {head_dim}; use f16"
            )
    return KVLayout(
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim_k=head_dim_k,
        head_dim_v=head_dim_v,
        k_type=k_type,
        v_type=v_type,
        k_rotation=_largest_power_of_two(head_dim_k)
        if _rotates(kv_type(k_type), head_dim_k)
        else 0,
        v_rotation=_SMALLEST_ROTATION if _rotates(kv_type(v_type), head_dim_v) else 0,
    )


class CachedModel(Protocol):
    """What of a model's spec its cache depends on."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim_k(self) -> int: ...
    @property
    def head_dim_v(self) -> int: ...


def model_layout(model: CachedModel, k_type: str, v_type: str) -> KVLayout:
    """`kv_layout` of a model's spec."""
    return kv_layout(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim_k=model.head_dim_k,
        head_dim_v=model.head_dim_v,
        k_type=k_type,
        v_type=v_type,
    )


def _rotates(kind: KVType, head_dim: int) -> bool:
    return kind.is_quantized and head_dim % _SMALLEST_ROTATION == 0


def _largest_power_of_two(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n
