"""What a step of an engine costs: seconds of one pass over the weights, by what is in it.

    seconds = rows_s(rows) + rest rows * rest_s

    and of attention
              sum(pairs * pair_s) + cells * cell_s + deep cells * deep_cell_s + masked * masked_s
    or, in tiles,
              tile pairs * pair_s + masked * masked_s

`rows_s` reads every weight once and does each row's arithmetic: bound by bandwidth for few rows, by
flops for many, so it is a line through knots, not a formula; `rest_s` is what each row beyond the
last four costs more, where weights are repacked to meet four at a time. The others are bytes of K
and V, and arithmetic on them: a cell that many rows attend to is read once, and the longer a
context, the less of it is in any cache. What a step's work is, `hetero.profile.work` counts, and
`hetero.profile.tiling` what tiles make of it.

Planning evaluates this on a laptop: nothing here needs an engine.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from hetero.profile.knots import hat_weights
from hetero.profile.quantities import NotNegative, OneOrMore
from hetero.profile.tiling import Tiling
from hetero.profile.work import LENGTHS, Work


class TileCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of attention where a chunk fills a tile; seconds, none negative."""

    tiling: Tiling
    pair_s: NotNegative
    masked_s: NotNegative


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients of the formula above, all seconds, none negative."""

    rows: list[OneOrMore]  # knots, ascending
    rows_s: list[NotNegative]  # at the knots; beyond the last, along the last two, never down
    rest_s: NotNegative
    pair_s: list[NotNegative]  # by length
    cell_s: NotNegative
    deep_cell_s: NotNegative  # in addition, of those beyond the first length
    masked_s: NotNegative
    tiles: TileCost | None  # None: never attends in tiles

    def __post_init__(self) -> None:
        if not self.rows or any(b <= a for a, b in pairwise(self.rows)):
            raise ValueError(f"rows: need one knot or more, ascending, have {self.rows}")
        for name, need in (("rows_s", self.rows), ("pair_s", LENGTHS)):
            have = len(getattr(self, name))
            if have != len(need):
                raise ValueError(f"{name}: need {len(need)} numbers, have {have}")

    def seconds(self, work: Work) -> float:
        return self.rows_seconds(work) + self._attention_seconds(work)

    def rows_seconds(self, work: Work) -> float:
        """Of a step without any attention."""
        line_s = _sum_products(hat_weights(self.rows, work.rows), self.rows_s)
        if work.rows > self.rows[-1]:
            line_s = max(line_s, self.rows_s[-1])  # noise may let the last two fall
        return line_s + work.rest_rows * self.rest_s

    def masked_pair_s(self, work: Work) -> float:
        """What scanning a cell for nothing costs in such a step."""
        tiles = self._tiles_of(work)
        return self.masked_s if tiles is None else tiles.masked_s

    def _attention_seconds(self, work: Work) -> float:
        tiles = self._tiles_of(work)
        if tiles is None:
            each_s = [*self.pair_s, self.cell_s, self.deep_cell_s, self.masked_s]
            return _sum_products(plain_counts(work), each_s)
        return _sum_products(tile_counts(work, tiles.tiling), [tiles.pair_s, tiles.masked_s])

    def _tiles_of(self, work: Work) -> TileCost | None:
        return self.tiles if work.fills_tile else None


def plain_cost(
    rows: Sequence[int], rows_s: Sequence[float], *, pair_s: float, masked_s: float
) -> StepCost:
    """Where neither length nor tiles make a difference: of datasheets, nothing more is known."""
    return StepCost(
        rows=list(rows),
        rows_s=list(rows_s),
        rest_s=0.0,
        pair_s=[pair_s] * len(LENGTHS),
        cell_s=0.0,
        deep_cell_s=0.0,
        masked_s=masked_s,
        tiles=None,
    )


def plain_counts(work: Work) -> list[float]:
    """What attention's coefficients are multiplied by, in their order: all but those of tiles."""
    return [*work.pairs, work.cells, max(0.0, work.cells - LENGTHS[0]), work.masked]


def tile_counts(work: Work, tiling: Tiling) -> list[float]:
    """And those of tiles."""
    return [tiling.pairs(work.rows, round(work.cells)), work.masked]


def _sum_products(counts: Sequence[float], each_s: Sequence[float]) -> float:
    return sum(count * seconds for count, seconds in zip(counts, each_s, strict=True))
