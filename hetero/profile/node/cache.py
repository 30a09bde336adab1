"""A way of keeping KV, and what was measured on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetero.profile.node_profile import Sample
from hetero.profile.tiling import Tiling
from hetero.profile.work import Work


@dataclass(frozen=True)
class Cache:
    """One way of keeping KV: what a fit is of."""

    unified: bool
    kv_k: str
    kv_v: str
    tiling: Tiling | None = None  # None: never attended to in tiles

    @property
    def types(self) -> tuple[str, str]:
        return self.kv_k, self.kv_v

    def tiling_of(self, work: Work) -> Tiling | None:
        return self.tiling if work.fills_tile else None


Samples = Mapping[Cache, Sequence[Sample]]
